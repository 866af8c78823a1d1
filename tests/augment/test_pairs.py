"""Images and masks changed together: coordinates written into both, Pillow, and the shares of the draws."""

import dataclasses
import re
from fractions import Fraction
from functools import partial
from math import floor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from grass_jax import augment
from grass_jax.augment import PairAugmentation, augment_pairs
from grass_jax.augment.geometry import _pick_by_gather, _pick_by_product
from grass_jax.augment.pairs import RULES
from grass_jax.bands import RGB, Bands

RAW = {"jitter": 0.0, "bands": dataclasses.replace(RGB, mean=(0.0,) * 3, std=(1.0,) * 3)}
ROWS, COLUMNS = (a.astype(np.uint8) for a in np.mgrid[:50, :60])


def coordinates(settings, seed, count=64):
    """Views whose first two bands, and masks which, say the row and the column of a 50 x 60 tile they come from."""
    make = jax.jit(partial(augment_pairs, augmentation=settings))
    image = np.stack([ROWS, COLUMNS, np.zeros_like(ROWS)], -1)
    images = np.broadcast_to(image, (count, *image.shape))
    views, rows = make(jax.random.key(seed), images, np.broadcast_to(ROWS, images.shape[:3]))
    _, columns = make(jax.random.key(seed), images, np.broadcast_to(COLUMNS, images.shape[:3]))
    assert views.dtype == jnp.float32
    assert rows.dtype == jnp.uint8
    return np.asarray(views[..., :2]) * 255, np.stack([rows, columns], -1)


def placement(where):
    """Box and orientation of a magnified view, read from the coordinates (s, s, 2) in its masks."""
    y0, x0 = where.min((0, 1)).tolist()
    y1, x1 = (where.max((0, 1)) + 1).tolist()
    transposed = bool(where[0, 0, 0] == where[-1, 0, 0])
    down, across = (where[-1, 0, 1], where[0, -1, 0]) if transposed else (where[-1, 0, 0], where[0, -1, 1])
    start = where[0, 0, ::-1] if transposed else where[0, 0]
    return (y0, x0, y1, x1), transposed, bool(down < start[0]), bool(across < start[1])


def test_the_mask_follows_the_image():
    settings = PairAugmentation(32, scale=(1.0, 3.0), **RAW)
    views, where = coordinates(settings, seed=0)
    # enlarging, a view's value is the coordinate of its centre and the mask's that of the pixel that holds the centre
    assert np.abs(views - where).max() < 0.5 + 1e-3
    placements = [placement(one) for one in where]
    assert len({tuple(orientation) for _, *orientation in placements}) == 8
    assert len({box for box, *_ in placements}) > 32


def test_shrunk_masks_follow_the_image():
    views, where = coordinates(PairAugmentation(16, scale=(0.32, 0.8), **RAW), seed=1)
    inside = np.s_[:, 2:-2, 2:-2]  # at the border the shrinking filter is cut off and its mean moves inwards
    assert np.abs(views[inside] - where[inside]).max() < 0.5 + 1e-3
    assert np.abs(np.diff(views[inside], axis=1)).max() > 2.9  # down to a third


def test_views_are_pillows():
    settings = PairAugmentation(32, scale=(1.0, 2.0), **RAW)
    _, where = coordinates(settings, seed=3, count=16)
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    mask = np.random.default_rng(1).integers(0, 256, (50, 60), dtype=np.uint8)
    tiles, masks = (np.broadcast_to(a, (16, *a.shape)) for a in (image, mask))
    views, ids = jax.jit(partial(augment_pairs, augmentation=settings))(jax.random.key(3), tiles, masks)
    for view, labels, coordinate in zip(views, ids, where, strict=True):
        (y0, x0, y1, x1), transposed, upside_down, mirrored = placement(coordinate)
        assert y1 - y0 == x1 - x0
        bands = [Image.fromarray(np.float32(image[..., c])).crop((x0, y0, x1, y1)) for c in range(3)]
        crop = np.stack([np.asarray(band.resize((32, 32), Image.Resampling.BILINEAR)) for band in bands], -1) / 255
        nearest = np.asarray(Image.fromarray(mask).crop((x0, y0, x1, y1)).resize((32, 32), Image.Resampling.NEAREST))
        if transposed:
            crop, nearest = crop.transpose(1, 0, 2), nearest.T
        if upside_down:
            crop, nearest = np.flipud(crop), np.flipud(nearest)
        if mirrored:
            crop, nearest = np.fliplr(crop), np.fliplr(nearest)
        np.testing.assert_allclose(view, crop, atol=2e-5)
        np.testing.assert_array_equal(labels, nearest)


@pytest.mark.parametrize("size", [8, 24, 64])
def test_nearest_crop_is_pillows(size):
    mask = np.random.default_rng(2).integers(0, 256, (40, 56), dtype=np.uint8)
    for y0, x0, y1, x1 in ((0, 0, 40, 56), (3, 5, 39, 20), (10, 11, 11, 12), (12, 20, 36, 44)):
        crop = augment.nearest_crop(mask, np.array([y0, x0, y1, x1], np.int32), size)
        expected = Image.fromarray(mask).crop((x0, y0, x1, y1)).resize((size, size), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(crop, np.asarray(expected))


def test_a_centre_on_an_edge_reads_the_pixel_after_it():
    # Pillow adds the step up in floats and falls short of such an edge
    mask = np.random.default_rng(2).integers(0, 256, (40, 56), dtype=np.uint8)
    centres = [Fraction(2 * i + 1, 2 * 61) for i in range(61)]
    expected = mask[[floor(40 * c) for c in centres]][:, [floor(56 * c) for c in centres]]
    np.testing.assert_array_equal(augment.nearest_crop(mask, np.array([0, 0, 40, 56], np.int32), 61), expected)


def test_what_a_tpu_computes_is_the_gather():
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    row, column = np.array([7, 0, 3, 3], np.int32), np.arange(31, -1, -1, dtype=np.int32)
    expected = mask[row][:, column]
    np.testing.assert_array_equal(jax.jit(_pick_by_product)(mask, row, column), expected)
    np.testing.assert_array_equal(_pick_by_gather(jnp.asarray(mask), row, column), expected)


def test_a_tpus_program_gathers_nothing(tiles):
    traced = jax.jit(partial(augment_pairs, augmentation=PairAugmentation(16))).trace(
        jax.random.key(0), tiles, tiles[..., 0]
    )
    assert "stablehlo.gather" not in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.gather" in traced.lower(lowering_platforms=("cpu",)).as_text()
    bands = Bands((1, 2, 3, 4), "uint8", (0.0,) * 4, (200.0,) * 4, (0.0,) * 4, (1.0,) * 4, rgb=(4, 1, 3))
    traced = jax.jit(partial(augment_pairs, augmentation=PairAugmentation(16, bands=bands))).trace(
        jax.random.key(0), tiles[..., [0, 1, 2, 0]], tiles[..., 0]
    )
    assert "stablehlo.gather" not in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_orientations_are_numpys():
    image = np.random.default_rng(3).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(augment.oriented(image, False, False, False), image)
    np.testing.assert_array_equal(augment.oriented(image, True, False, False), image.transpose(1, 0, 2))
    np.testing.assert_array_equal(augment.oriented(image, True, True, False), np.rot90(image, 1))
    np.testing.assert_array_equal(augment.oriented(image, False, True, True), np.rot90(image, 2))
    np.testing.assert_array_equal(augment.oriented(image[..., 0], True, False, True), np.rot90(image[..., 0], 3))


def draws(settings, height, width, count=4000):
    draw = partial(augment.draw_placement, height=height, width=width, augmentation=settings)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(5), count)))


def test_sides_are_log_uniform_and_places_uniform():
    boxes = draws(PairAugmentation(32, scale=(0.25, 2.0)), 100, 120).box
    sides = boxes[:, 2] - boxes[:, 0]
    np.testing.assert_array_equal(sides, boxes[:, 3] - boxes[:, 1])
    assert boxes.min() == 0
    assert (boxes[:, 2:].max(0) == [100, 120]).all()
    # sides from 16 to 128 in three equal octaves, the last cut off at the tile's shorter side
    for low, high, share in ((16, 32, 1 / 3), (32, 64, 1 / 3), (64, 100, np.log2(100 / 64) / 3)):
        assert abs(((sides >= low) & (sides < high)).mean() - share) < 0.03
    assert abs((sides == 100).mean() - np.log2(128 / 100) / 3) < 0.03
    small = boxes[sides <= 50]
    places = small[:, :2] / ([100, 120] - (small[:, 2:] - small[:, :2]))
    for axis in range(2):
        assert scipy.stats.kstest(places[:, axis], "uniform").statistic < 0.05
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.07


def test_a_crop_larger_than_the_tile_is_the_tile():
    boxes = draws(PairAugmentation(64, scale=(0.5, 1.0)), 64, 64, count=50).box
    np.testing.assert_array_equal(boxes, np.broadcast_to([0, 0, 64, 64], (50, 4)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, np.full(8, 1 / 8)),
        ({"flip": 0.0}, [1 / 4, 0, 0, 1 / 4, 0, 1 / 4, 1 / 4, 0]),  # the four turns
        ({"rotate": False}, [1 / 4] * 4 + [0] * 4),
        ({"rotate": False, "flip": 0.2}, [0.64, 0.16, 0.16, 0.04, 0, 0, 0, 0]),
        ({"rotate": False, "flip": 0.0}, [1] + [0] * 7),
    ],
)
def test_shares_of_the_orientations(changes, expected):
    _, transposed, upside_down, mirrored = draws(PairAugmentation(32, **changes), 32, 32)
    shares = np.bincount(4 * transposed + 2 * upside_down + mirrored, minlength=8) / 4000
    np.testing.assert_allclose(shares, expected, atol=0.03)
    np.testing.assert_array_equal(shares == 0, np.asarray(expected) == 0)


def test_neither_flips_nor_turns_leave_a_whole_tile_as_it_is(tiles):
    masks = tiles[..., 0]
    settings = PairAugmentation(20, scale=(1.0, 1.0), flip=0.0, rotate=False, **RAW)
    views, ids = augment_pairs(jax.random.key(0), tiles[:, :20], masks[:, :20], settings)
    np.testing.assert_allclose(views, tiles[:, :20] / 255, atol=1e-6)
    np.testing.assert_array_equal(ids, masks[:, :20])


def test_colour_changes_the_image_alone():
    tiles = np.random.default_rng(4).integers(0, 256, (400, 16, 16, 3), dtype=np.uint8)
    masks = tiles[..., 0]
    plain = PairAugmentation(16)
    plain, coloured = dataclasses.replace(plain, jitter=0.0), dataclasses.replace(plain, jitter=0.25)
    views, ids = jax.jit(partial(augment_pairs, augmentation=plain))(jax.random.key(6), tiles, masks)
    others, same = jax.jit(partial(augment_pairs, augmentation=coloured))(jax.random.key(6), tiles, masks)
    np.testing.assert_array_equal(ids, same)
    changed = np.abs(np.asarray(views - others)).max((1, 2, 3)) > 1e-3
    assert abs(changed.mean() - 0.25) < 0.09  # four standard deviations of 400 draws
    raw = np.asarray(views) * RGB.std + RGB.mean
    assert raw.min() > -1e-5
    assert raw.max() < 1 + 1e-5


def test_five_deep_bands_follow_their_masks():
    """The last band is a line of the mask, and stays one away from outlines; NaN is 0, and 0 to 100 is 0 to 1."""
    masks = np.stack(
        [np.kron(np.random.default_rng(i).permutation(16).reshape(4, 4), np.ones((8, 8))) for i in range(8)]
    )
    images = np.random.default_rng(0).uniform(-20, 120, (8, 32, 32, 5)).astype(np.float32)
    images[..., 3], images[..., 4] = np.nan, 40 + masks
    bands = Bands((1, 2, 3, 4, 5), "float32", (0.0,) * 5, (100.0,) * 5, (0.25,) * 5, (0.5,) * 5, rgb=(3, 2, 1))
    settings = PairAugmentation(24, scale=(0.75, 1.5), bands=bands)
    make = jax.jit(partial(augment_pairs, augmentation=settings))
    views, ids = map(np.asarray, make(jax.random.key(2), images, masks.astype(np.uint8)))
    assert (views.shape, views.dtype, ids.shape, ids.dtype) == ((8, 24, 24, 5), jnp.float32, (8, 24, 24), jnp.uint8)
    raw = views * 0.5 + 0.25
    assert raw.min() > -1e-5
    assert raw.max() < 1 + 1e-5
    np.testing.assert_allclose(raw[..., 3], 0, atol=1e-6)
    inside = scipy.ndimage.maximum_filter(ids, (0, 3, 3)) == scipy.ndimage.minimum_filter(ids, (0, 3, 3))
    slopes = [scipy.stats.linregress(ids[i][inside[i]], raw[i, ..., 4][inside[i]]) for i in range(8)]
    # brightness and contrast are lines; about half of the tiles have none
    assert min(slope.rvalue for slope in slopes) > 1 - 1e-5
    unchanged = [abs(slope.slope - 0.01) < 1e-5 for slope in slopes]
    assert 0 < sum(unchanged) < 8


def test_a_pair_does_not_depend_on_the_others_but_on_key_and_place(tiles):
    make = jax.jit(partial(augment_pairs, augmentation=PairAugmentation(16)))
    masks = tiles[..., 1]
    views, ids = make(jax.random.key(4), tiles, masks)
    others = np.concatenate([tiles[:3], tiles[::-1][:5]])
    views_too, ids_too = make(jax.random.key(4), others, others[..., 1])
    np.testing.assert_array_equal(views[:3], views_too[:3])
    np.testing.assert_array_equal(ids[:3], ids_too[:3])
    same = np.broadcast_to(tiles[:1], tiles.shape)
    ids = np.asarray(make(jax.random.key(4), same, same[..., 1])[1])
    assert (ids[1:] != ids[:-1]).any((1, 2)).all()
    assert (make(jax.random.key(5), same, same[..., 1])[1] != ids).any((1, 2)).all()


def test_x64_makes_nothing_64_bit(tiles):
    settings = PairAugmentation(16)
    with jax.enable_x64(True):
        program = str(
            jax.make_jaxpr(partial(augment_pairs, augmentation=settings))(jax.random.key(4), tiles, tiles[..., 0])
        )
    assert re.search(r"\bf32\[\d", program)
    assert not re.findall(r"\b[fiu]64\[\d", program)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices")
def test_eight_devices_make_the_pairs_without_talking(tiles):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    make = partial(augment_pairs, augmentation=PairAugmentation(16))
    spread = jax.jit(make, in_shardings=(whole, split, split), out_shardings=split)
    masks = tiles[..., 2]
    text = spread.lower(jax.random.key(4), tiles, masks).compile().as_text()
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|custom_call", text)
    views, ids = spread(jax.random.key(4), tiles, masks)
    alone, ids_alone = jax.jit(make)(jax.random.key(4), tiles, masks)
    np.testing.assert_allclose(views, alone, atol=1e-5)
    np.testing.assert_array_equal(ids, ids_alone)


def test_settings_are_checked():
    assert RULES.keys() | {"bands"} == {field.name for field in dataclasses.fields(PairAugmentation)}
    assert PairAugmentation(16, scale=[0.5, 1.0]) == PairAugmentation(16, scale=(0.5, 1.0))  # from a configuration file
    hash(PairAugmentation(16, scale=[0.5, 1.0]))
    wrong = {
        "size": 0,
        "scale": (2.0, 0.5),
        "flip": True,
        "rotate": 1,
        "jitter": 1.5,
        "hue": 0.6,
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"PairAugmentation {name} must be .*, not "):
            PairAugmentation(**{"size": 16, name: value})


def test_other_masks_and_images_are_refused(tiles):
    settings = PairAugmentation(16)
    with pytest.raises(ValueError, match=r"masks must be uint8 \(8, 24, 20\)"):
        augment_pairs(jax.random.key(0), tiles, tiles[:, :20, :, 0], settings)
    with pytest.raises(ValueError, match="masks must be uint8"):
        augment_pairs(jax.random.key(0), tiles, tiles[..., 0].astype(np.int32), settings)
    with pytest.raises(ValueError, match="images must end with 3 bands"):
        augment_pairs(jax.random.key(0), tiles[..., :2], tiles[..., 0], settings)
    with pytest.raises(ValueError, match=r"images must be tiles, \(b, h, w, 3\), not \(24, 20, 3\)"):
        augment_pairs(jax.random.key(0), tiles[0], tiles[0, ..., 0], settings)
