"""Two views: shares of their parts, properties, devices, settings."""

import itertools
import re
from dataclasses import fields, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from grass_jax.augment import Augmentation, Geometry, one_view, two_views, view_masks, zoomed
from grass_jax.augment.views import RULES
from grass_jax.bands import RGB, Bands
from grass_jax.sampling import crop_boxes

UNCHANGED = replace(RGB, mean=(0.0,) * 3, std=(1.0,) * 3)
WHOLE = {"area": (1.0, 1.0), "aspect": (1.0, 1.0), "bands": UNCHANGED}
PLAIN = {"jitter": 0.0, "greyscale": 0.0, "blur": 0.0}


@pytest.fixture(scope="module")
def settings_16():
    return Augmentation(16)


@pytest.fixture(scope="module")
def make(settings_16):
    return jax.jit(lambda key, images: two_views(key, images, settings_16, geometry=True))


def test_shares_of_views_with_each_part():
    # Two halves of one colour each, 12 pixels wide: the blur reaches 8, so a corner shows what happened to the colour,
    # and the middle whether there was a blur. The jitter is too weak to clip, which would hide the others.
    tile = np.zeros((24, 24, 3), np.float32)
    tile[:, :12], tile[:, 12:] = (0.2, 0.4, 0.3), (0.4, 0.3, 0.2)
    weak = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}
    settings = Augmentation(24, **WHOLE, **weak, flip=0.0, blur_sigma=(0.5, 2.0))
    make = jax.jit(partial(two_views, augmentation=settings))
    views = np.asarray(make(jax.random.key(7), np.tile(tile, (1000, 1, 1, 1))))
    corner, middle = views[:, :, 0, 0], views[:, :, 0, 11]
    grey = np.ptp(corner, axis=-1) < 1e-5
    blurred = np.abs(middle - corner).max(-1) > 1e-4
    expected = np.where(grey[..., None], tile[0, 0] @ np.float32([0.299, 0.587, 0.114]), tile[0, 0])
    jittered = np.abs(corner - expected).max(-1) > 1e-4
    parts = ((grey, 0.2), (blurred, 0.5), (jittered, 0.8))
    for happened, probability in parts:
        # Four standard deviations of 2,000 and of 1,000 draws; the two views of a tile are drawn independently.
        assert abs(happened.mean() - probability) < 0.045
        assert abs(happened.all(axis=1).mean() - probability**2) < 0.065
    for (one, p), (other, q) in itertools.combinations(parts, 2):
        assert abs((one & other).mean() - p * q) < 0.045  # and so are the parts of a view


def test_share_of_flips(make):
    tiles = np.zeros((8, 24, 20, 3), np.uint8)
    flips = np.concatenate([np.asarray(make(jax.random.key(seed), tiles)[1].flips) for seed in range(125)])
    assert abs(flips.mean() - 0.5) < 0.045  # four standard deviations of 2,000 draws
    assert abs(flips.all(axis=1).mean() - 0.25) < 0.055


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["noise", "black", "white", "binary", "float"]))
def test_views_are_finite_in_range_and_a_function_of_the_key(make, settings_16, seed, kind):
    rng = np.random.default_rng(seed)
    images = {
        "noise": lambda: rng.integers(0, 256, (8, 24, 20, 3), dtype=np.uint8),
        "black": lambda: np.zeros((8, 24, 20, 3), np.uint8),
        "white": lambda: np.full((8, 24, 20, 3), 255, np.uint8),
        "binary": lambda: rng.integers(0, 2, (8, 24, 20, 3), dtype=np.uint8) * np.uint8(255),
        "float": lambda: rng.random((8, 24, 20, 3), dtype=np.float32),
    }[kind]()
    views, where = make(jax.random.key(seed), images)
    assert views.shape == (8, 2, 16, 16, 3)
    assert views.dtype == jnp.float32
    colours = np.asarray(views) * RGB.std + RGB.mean
    assert colours.min() > -1e-5  # false where a value is not finite
    assert colours.max() < 1 + 1e-5
    again, where_again = make(jax.random.key(seed), images)
    np.testing.assert_array_equal(views, again)
    np.testing.assert_array_equal(where.boxes, where_again.boxes)
    if kind == "noise":
        other = make(jax.random.key(seed + 1), images)[0]
        assert (np.abs(np.asarray(other) - views).max((2, 3, 4)) > 1e-3).all()
        assert (np.abs(np.asarray(views[:, 0] - views[:, 1])).max((1, 2, 3)) > 1e-3).all()


def test_a_view_does_not_depend_on_the_other_tiles(make, tiles, settings_16):
    views = make(jax.random.key(4), tiles)[0]
    others = np.concatenate([tiles[:3], tiles[::-1][:5]])
    np.testing.assert_array_equal(views[:3], make(jax.random.key(4), others)[0][:3])
    fewer = jax.jit(partial(two_views, augmentation=settings_16))(jax.random.key(4), tiles[:3])
    np.testing.assert_allclose(views[:3], fewer, atol=1e-5)


def test_bytes_and_floats_give_the_same_views(make, tiles):
    views = make(jax.random.key(4), tiles)[0]
    np.testing.assert_allclose(views, make(jax.random.key(4), tiles / np.float32(255))[0], atol=2e-5)


def test_x64_changes_nothing_and_makes_nothing_64_bit(make, tiles, settings_16):
    def boxes_and_views(key, images):
        return two_views(key, images, settings_16, geometry=True)

    views, where = make(jax.random.key(4), tiles)
    with jax.enable_x64(True):
        program = str(jax.make_jaxpr(boxes_and_views)(jax.random.key(4), tiles))
        views_64, where_64 = jax.jit(boxes_and_views)(jax.random.key(4), tiles)
    assert views_64.dtype == jnp.float32
    assert where_64.boxes.dtype == jnp.int32
    assert re.search(r"\bf32\[\d", program)
    assert not re.findall(r"\b[fiu]64\[\d", program)  # scalars are Python's numbers, and free
    np.testing.assert_allclose(views, views_64, atol=1e-5)
    np.testing.assert_array_equal(where.boxes, where_64.boxes)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices")
def test_eight_devices_make_the_views_without_talking(make, tiles, settings_16):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    step = jax.jit(partial(two_views, augmentation=settings_16), in_shardings=(whole, split), out_shardings=split)
    compiled = step.lower(jax.random.key(4), tiles).compile()
    text = compiled.as_text()
    for word in (
        "all-gather",
        "all-reduce",
        "all-to-all",
        "collective-permute",
        "reduce-scatter",
        "custom_call_target",
    ):
        assert word not in text
    key, images = jax.device_put(jax.random.key(4), whole), jax.device_put(tiles, split)
    np.testing.assert_allclose(compiled(key, images), make(jax.random.key(4), tiles)[0], atol=1e-5)


def bands_of(count, dtype, rgb=()):
    if dtype == "uint8":
        low, high = (0.0,) * count, (255.0,) * count
    else:
        low, high = tuple(100.0 + 7 * i for i in range(count)), tuple(900.0 + 50 * i for i in range(count))
    mean, std = (tuple(a + 0.01 * i for i in range(count)) for a in (0.3, 0.2))
    return Bands(tuple(range(1, count + 1)), dtype, low, high, mean, std, rgb)


@pytest.mark.parametrize(
    "bands",
    [
        bands_of(1, "uint8"),
        bands_of(2, "uint16"),
        bands_of(4, "uint8", (1, 2, 3)),
        bands_of(5, "uint16", (4, 3, 2)),
        bands_of(16, "float32", (4, 3, 2)),
    ],
    ids=lambda bands: f"{len(bands)}-{bands.dtype}",
)
def test_any_bands(bands):
    """Without colour and blur each band is Pillow's crop of its scaled values; with them all stays in range."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256 if bands.dtype == "uint8" else 1200, (3, 12, 10, len(bands))).astype(bands.dtype)
    low, high = (np.array(values) for values in (bands.low, bands.high))
    scaled = np.clip((images - low) / (high - low), 0, 1).astype(np.float32)
    if bands.dtype == "float32":
        images[rng.random(images.shape) < 0.1] = np.nan
        scaled[np.isnan(images)] = 0
    plain = jax.jit(partial(two_views, augmentation=Augmentation(9, **PLAIN, bands=bands), geometry=True))
    views, where = plain(jax.random.key(0), images)
    assert (views.shape, views.dtype) == ((3, 2, 9, 9, len(bands)), jnp.float32)
    raw = np.asarray(views) * bands.std + bands.mean
    for tile, view in np.ndindex(3, 2):
        y0, x0, y1, x1 = where.boxes[tile, view].tolist()
        for band in range(len(bands)):
            crop = Image.fromarray(np.ascontiguousarray(scaled[tile, ..., band])).crop((x0, y0, x1, y1))
            expected = np.asarray(crop.resize((9, 9), Image.Resampling.BILINEAR))
            expected = expected[:, ::-1] if where.flips[tile, view] else expected
            np.testing.assert_allclose(raw[tile, view, ..., band], expected, atol=1e-5)
    settings = Augmentation(9, jitter=1.0, greyscale=1.0, blur=1.0, bands=bands)
    changed = np.asarray(jax.jit(partial(two_views, augmentation=settings))(jax.random.key(0), images))
    changed = changed * bands.std + bands.mean
    assert changed.min() > -1e-5  # false where a value is not finite
    assert changed.max() < 1 + 1e-5
    assert (np.abs(changed - raw).max((0, 1, 2, 3)) > 1e-3).all()  # every band is changed
    grey = [band for band in range(len(bands)) if band in bands.colours]
    for one, other in itertools.combinations(range(len(bands)), 2):
        alike = np.abs(changed[..., one] - changed[..., other]).max() < 1e-5
        assert alike == (one in grey and other in grey)


def test_colours_in_another_order_are_those_of_the_image_in_that_order(tiles):
    deep = np.concatenate([tiles[..., ::-1], tiles[..., :1]], axis=-1).astype(np.uint16) * 200
    bgrn = Bands((1, 2, 3, 4), "uint16", (0.0,) * 4, (51000.0,) * 4, (0.0,) * 4, (1.0,) * 4, rgb=(3, 2, 1))
    ours = jax.jit(partial(two_views, augmentation=Augmentation(16, bands=bgrn)))(jax.random.key(5), deep)
    expected = jax.jit(partial(two_views, augmentation=Augmentation(16, bands=UNCHANGED)))(jax.random.key(5), tiles)
    np.testing.assert_allclose(ours[..., 2::-1], expected, atol=1e-5)
    assert np.abs(ours[..., 3] - expected[..., 0]).max() > 0.01  # has the values of red, and a jitter of its own


def test_bands_without_colours_have_no_program_for_colours():
    image = np.zeros((8, 8, 3), np.float32)

    def program(**changes):
        settings = Augmentation(8, bands=bands_of(3, "uint8"), **changes)
        return str(jax.make_jaxpr(partial(one_view, augmentation=settings))(jax.random.key(0), image))

    assert program() == program(greyscale=0.0)
    assert program(brightness=0.0, contrast=0.0) == program(jitter=0.0)
    assert program() != program(jitter=0.0)
    assert "0.587" not in program()  # luminance


def test_settings_from_a_configuration():
    assert RULES.keys() | {"bands"} == {field.name for field in fields(Augmentation)}
    settings = Augmentation(**{"size": 64, "area": [0.2, 1]})
    assert settings == Augmentation(64, area=(0.2, 1.0))
    assert hash(settings) == hash(Augmentation(64, area=(0.2, 1.0)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("size", 64.0),
        ("size", True),
        ("area", (0.5, 0.2)),
        ("area", (0.0, 1.0)),
        ("area", (0.5, 1.5)),
        ("aspect", (1.0,)),
        ("aspect", 1.0),
        ("flip", 1.1),
        ("jitter", -0.1),
        ("greyscale", "0.2"),
        ("blur", float("nan")),
        ("brightness", -1),
        ("contrast", float("inf")),
        ("saturation", None),
        ("hue", 0.6),
        ("blur_sigma", (2.0, 0.1)),
    ],
)
def test_a_bad_setting_is_named(field, value):
    with pytest.raises(ValueError, match=rf"^Augmentation {field} must be "):
        Augmentation(**{"size": 64} | {field: value})


def test_numpys_numbers_are_settings_too():
    given = {"flip": np.float32(0.5), "hue": np.int64(0), "area": [np.float32(0.25), np.int64(1)]}
    assert Augmentation(64, **given) == Augmentation(64, flip=0.5, hue=0, area=(0.25, 1))
    with pytest.raises(ValueError, match=r"^Augmentation flip must be a number from 0 to 1, not 1000"):
        Augmentation(64, flip=10**400)  # beyond what a float holds


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((2, 8, 8, 4), np.uint8, "must end with 3 bands"),
        ((8, 8, 3), np.uint8, r"must be tiles, \(b, h, w, 3\)"),
        ((2, 8, 8, 3), np.int32, "must be uint8 or float in 0..1, not int32"),
    ],
)
def test_images_that_cannot_be_used(settings_16, shape, dtype, words):
    with pytest.raises(ValueError, match=words):
        two_views(jax.random.key(0), jnp.zeros(shape, dtype), settings_16)


@pytest.mark.parametrize("size", [5, 16, 37])
def test_view_masks_are_pillows_nearest(size):
    masks = np.random.default_rng(0).integers(0, 5, (3, 24, 24)).astype(np.uint8)
    boxes = np.array([[[0, 0, 24, 24], [3, 5, 20, 9]], [[10, 11, 11, 12], [1, 0, 24, 13]], [[7, 2, 23, 24]] * 2])
    flips = np.array([[False, True], [True, False], [True, True]])
    found = np.asarray(view_masks(masks, Geometry(boxes, flips), size))
    assert (found.shape, found.dtype) == ((3, 2, size, size), np.uint8)
    for tile, view in np.ndindex(3, 2):
        y0, x0, y1, x1 = boxes[tile, view].tolist()
        expected = Image.fromarray(masks[tile]).crop((x0, y0, x1, y1)).resize((size, size), Image.Resampling.NEAREST)
        expected = np.asarray(expected)[:, ::-1] if flips[tile, view] else np.asarray(expected)
        np.testing.assert_array_equal(found[tile, view], expected)


def test_masks_follow_the_views():
    """The image is the mask in grey: away from outlines a view shows the value of its mask."""
    masks = np.stack([np.kron(np.random.default_rng(seed).permutation(16).reshape(4, 4), np.ones((12, 12))) for seed in
                      range(4)]).astype(np.uint8)  # fmt: skip
    plain = Augmentation(40, **PLAIN, bands=UNCHANGED)
    images = np.repeat(masks[..., None] * 16, 3, -1)
    views, where = jax.jit(partial(two_views, augmentation=plain, geometry=True))(jax.random.key(3), images)
    followed = np.asarray(view_masks(masks, where, 40))
    inside = scipy.ndimage.maximum_filter(followed, (0, 0, 3, 3)) == scipy.ndimage.minimum_filter(
        followed, (0, 0, 3, 3)
    )
    assert inside.mean() > 0.5
    np.testing.assert_allclose(np.asarray(views)[..., 0][inside] * 255, 16.0 * followed[inside], atol=1e-3)


@pytest.mark.parametrize("size", [16, 21])
def test_zoomed_is_where_a_cropped_view_looks(size):
    """Views that show the tile coordinates of their pixels: what a crop of them shows is where it looks."""
    rng = np.random.default_rng(0)
    tiles, places = 6, np.arange(size)
    corners = rng.integers(0, 20, (tiles, 2, 2))
    boxes = np.concatenate([corners, corners + rng.integers(5, 28, corners.shape)], -1).astype(np.int32)
    flips = rng.random((tiles, 2)) < 0.5
    corners = rng.integers(0, size - 1, (tiles, 2, 2))
    salient = np.concatenate([corners, rng.integers(corners + 1, size + 1)], -1).astype(np.int32)
    salient[0] = 0, 0, size, size
    salient[1, 0] = 3, 4, 4, 5  # a single pixel
    flips[:2] = [[True, False], [True, False]]
    views = np.empty((tiles, 2, size, size, 2), np.float32)
    for tile, view in np.ndindex(tiles, 2):
        y0, x0, y1, x1 = boxes[tile, view]
        columns = places[::-1] if flips[tile, view] else places
        views[tile, view, ..., 0] = (y0 + (places + 0.5) * (y1 - y0) / size)[:, None]
        views[tile, view, ..., 1] = x0 + (columns + 0.5) * (x1 - x0) / size
    where = zoomed(Geometry(jnp.asarray(boxes), jnp.asarray(flips)), jnp.asarray(salient), size)
    assert where.boxes.dtype == jnp.float32
    np.testing.assert_array_equal(where.flips, flips)
    seen = np.asarray(crop_boxes(jnp.asarray(views), jnp.asarray(salient)))
    half = (boxes[..., 2:] - boxes[..., :2]) / size / 2  # of a view's pixel, in tile pixels: coordinates are centres
    found = np.concatenate([seen.min((2, 3)) - half, seen.max((2, 3)) + half], -1)
    np.testing.assert_allclose(where.boxes, found, atol=1e-4)
    np.testing.assert_allclose(where.boxes[0], boxes[0], atol=1e-4)
    rightwards = np.sign(seen[..., 0, -1, 1] - seen[..., 0, 0, 1])
    assert (rightwards[flips] <= 0).all()
    assert (rightwards[~flips] >= 0).all()
    again = zoomed(where, jnp.asarray(salient), size)  # a crop of the crop: the float boxes go in, too
    seen = np.asarray(crop_boxes(jnp.asarray(seen), jnp.asarray(salient)))
    middle = seen.mean((2, 3))  # to a pixel of the first crop, as the crop takes the nearest
    np.testing.assert_allclose((again.boxes[..., :2] + again.boxes[..., 2:]) / 2, middle, atol=2 * half.max())
