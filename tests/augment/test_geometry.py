"""Crop, resize and flip against Pillow and a plain loop of the crop rule."""

import math
import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image

from grass_jax import augment
from grass_jax.augment import Augmentation, Geometry, two_views

PLAIN = {"flip": 0.0, "jitter": 0.0, "greyscale": 0.0, "blur": 0.0}


def as_float(image):
    return jnp.asarray(image, jnp.float32) / 255


def pillow_crop(image, box, size):
    """Float crop and resize by Pillow, band by band, so that nothing is rounded."""
    y0, x0, y1, x1 = (int(v) for v in box)
    bands = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(3)]
    bands = [b.crop((x0, y0, x1, y1)).resize((size, size), Image.Resampling.BILINEAR) for b in bands]
    return np.stack([np.asarray(b) for b in bands], -1)


@pytest.mark.parametrize("size", [9, 24, 64])
def test_resized_crop_is_pillows(picture, size):
    boxes = np.array([[0, 0, 40, 56], [3, 5, 39, 20], [10, 11, 11, 12], [30, 0, 40, 56], [12, 20, 36, 44]], np.int32)
    crops = jax.jit(jax.vmap(lambda box: augment.resized_crop(as_float(picture), box, size)))(boxes)
    for box, crop in zip(boxes, np.asarray(crops), strict=True):
        np.testing.assert_allclose(crop, pillow_crop(picture.astype(np.float32) / 255, box, size), atol=2e-6)
        y0, x0, y1, x1 = box.tolist()
        rounded = Image.fromarray(picture).crop((x0, y0, x1, y1)).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(crop * 255, np.asarray(rounded), atol=1.5)


def test_flip_mirrors_left_to_right(picture):
    np.testing.assert_array_equal(augment.horizontal_flip(jnp.asarray(picture), True), picture[:, ::-1])
    np.testing.assert_array_equal(augment.horizontal_flip(jnp.asarray(picture), False), picture)


def torchvision_box(rng, height, width, area, aspect):
    """The rule as a plain loop; returns the box and whether no try fitted."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            y0, x0 = rng.randint(0, height - h), rng.randint(0, width - w)
            return (y0, x0, y0 + h, x0 + w), False
    w, h = width, height
    if width / height < aspect[0]:
        h = round(w / aspect[0])
    elif width / height > aspect[1]:
        w = round(h * aspect[1])
    y0, x0 = (height - h) // 2, (width - w) // 2
    return (y0, x0, y0 + h, x0 + w), True


@pytest.mark.parametrize(("height", "width"), [(64, 64), (90, 20), (20, 90)])
def test_crop_boxes_are_distributed_as_torchvisions(height, width):
    number, area, aspect = 4000, (0.08, 1.0), (3 / 4, 4 / 3)
    rng = random.Random(0)
    drawn = [torchvision_box(rng, height, width, area, aspect) for _ in range(number)]
    theirs, central = np.array([box for box, _ in drawn]), np.array([fell for _, fell in drawn])
    keys = jax.random.split(jax.random.key(5), number)
    draw = partial(augment.random_resized_crop_box, height=height, width=width, area=area, aspect=aspect)
    ours = np.asarray(jax.jit(jax.vmap(draw))(keys))
    assert ours.dtype == np.int32
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] <= [height, width]).all()
    assert (ours[:, 2:] > ours[:, :2]).all()
    for quantity in (lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]), lambda b: b[:, 0], lambda b: b[:, 3]):
        assert scipy.stats.ks_2samp(quantity(ours), quantity(theirs)).pvalue > 1e-3
    ratios = [(b[:, 3] - b[:, 1]) / (b[:, 2] - b[:, 0]) for b in (ours, theirs)]
    assert scipy.stats.ks_2samp(*ratios).pvalue > 1e-3
    if height != width:  # a fitting try may give the central box, too, so the two shares are of equal boxes
        centre = theirs[central][0]
        shares = [(b == centre).all(axis=1).mean() for b in (ours, theirs)]
        assert min(shares) > 0.05
        assert abs(shares[0] - shares[1]) < 0.03  # about four standard deviations


def test_an_aspect_that_never_fits_gives_the_central_box():
    box = augment.random_resized_crop_box(jax.random.key(0), 10, 41, (0.9, 1.0), (0.5, 2.0))
    np.testing.assert_array_equal(box, [0, 10, 10, 30])
    box = augment.random_resized_crop_box(jax.random.key(0), 41, 10, (0.9, 1.0), (0.5, 2.0))
    np.testing.assert_array_equal(box, [10, 0, 30, 10])


def test_geometry_tells_where_a_view_comes_from(tiles):
    settings = Augmentation(16, **PLAIN | {"flip": 0.5})
    views, where = jax.jit(partial(two_views, augmentation=settings, geometry=True))(jax.random.key(1), tiles)
    assert isinstance(where, Geometry)
    assert where.boxes.dtype == jnp.int32
    assert where.boxes.shape == (8, 2, 4)
    assert where.flips.dtype == bool
    assert 0 < np.asarray(where.flips).mean() < 1
    for tile, view in np.ndindex(8, 2):
        expected = pillow_crop(tiles[tile].astype(np.float32) / 255, where.boxes[tile, view], 16)
        if where.flips[tile, view]:
            expected = expected[:, ::-1]
        expected = (expected - settings.bands.mean) / settings.bands.std
        np.testing.assert_allclose(views[tile, view], expected, atol=2e-5)
