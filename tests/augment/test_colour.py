"""Colours and blur against Pillow, colorsys, SciPy and plain NumPy."""

import colorsys
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image, ImageEnhance, ImageFilter

from grass_jax import augment
from grass_jax.augment import Jitter

FACTORS = (0.2, 0.7, 1.0, 1.3, 1.8)


def as_float(image):
    return jnp.asarray(image, jnp.float32) / 255


# Pillow cuts the blend off at whole levels (1); contrast's mean is rounded and that of rounded L's (0.8 x 1), and
# saturation's L is rounded (0.8 x 0.5).
@pytest.mark.parametrize(
    ("adjust", "enhance", "tolerance"),
    [
        (augment.adjust_brightness, ImageEnhance.Brightness, 1.01),
        (augment.adjust_contrast, ImageEnhance.Contrast, 1.81),
        (augment.adjust_saturation, ImageEnhance.Color, 1.41),
    ],
)
def test_blends_are_pillows(picture, adjust, enhance, tolerance):
    adjust = jax.jit(adjust)
    for factor in FACTORS:
        expected = np.asarray(enhance(Image.fromarray(picture)).enhance(factor), np.float32)
        np.testing.assert_allclose(np.asarray(adjust(as_float(picture), factor)) * 255, expected, atol=tolerance)


def test_hue_is_that_of_colorsys_and_near_pillows(picture):
    adjust = jax.jit(augment.adjust_hue)
    for turn in (-0.5, -0.2, 0.0, 0.13, 0.2, 1.0):
        ours = np.asarray(adjust(as_float(picture), turn))
        expected = np.empty_like(ours)
        for place in np.ndindex(picture.shape[:2]):
            hue, saturation, value = colorsys.rgb_to_hsv(*(picture[place] / 255).tolist())
            expected[place] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        np.testing.assert_allclose(ours, expected, atol=3e-6)
        # Pillow cuts the hue, and torchvision the turn, to 1/255 turn, and wraps at 256: up to 3 steps, each of which
        # moves a band by six levels at full chroma.
        hsv = np.array(Image.fromarray(picture).convert("HSV"))
        hsv[..., 0] += np.int32(turn * 255).astype(np.uint8)
        pillow = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"), np.float32)
        assert np.abs(ours * 255 - pillow).max() < 19
        assert np.abs(ours * 255 - pillow).mean() < 3


def test_greyscale_is_pillows_l(picture):
    expected = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[..., None].repeat(3, -1)
    np.testing.assert_allclose(np.asarray(augment.greyscale(as_float(picture))) * 255, expected, atol=0.51)
    np.testing.assert_array_equal(augment.greyscale(as_float(picture), False), as_float(picture))


def test_blur_is_a_gaussian_with_the_border_continued(picture):
    blur = jax.jit(augment.gaussian_blur)
    for sigma in (0.1, 0.3, 0.8, 1.4, 2.0):
        ours = np.asarray(blur(as_float(picture), sigma))
        image = picture.astype(np.float64) / 255
        expected = scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", radius=(8, 8, 0))
        np.testing.assert_allclose(ours, expected, atol=2e-6)
        # Pillow's box blurs are near a Gaussian, except below half a pixel, where the sampled Gaussian blurs less.
        boxes = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma)), np.float32) / 255
        assert np.abs(ours - boxes).mean() < (0.02 if sigma < 0.5 else 0.01)
    np.testing.assert_allclose(blur(as_float(picture), 0.0), as_float(picture), atol=1e-7)


def test_blur_of_an_image_smaller_than_its_radius(picture):
    small = np.concatenate([picture, picture[:, ::-1]], axis=-1)[:3, :5, :5]
    expected = scipy.ndimage.gaussian_filter(small / 255.0, (2, 2, 0), mode="nearest", radius=(8, 8, 0))
    np.testing.assert_allclose(augment.gaussian_blur(as_float(small), 2.0), expected, atol=2e-6)


def numpy_operation(image, name, amount):
    grey = image @ np.array([0.299, 0.587, 0.114])
    if name == 3:
        turned = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3).tolist()]
        return np.array([colorsys.hsv_to_rgb((h + amount) % 1, s, v) for h, s, v in turned]).reshape(image.shape)
    target = (0.0, grey.mean(), grey[..., None])[name]
    return np.clip(amount * image + (1 - amount) * target, 0, 1)


def test_jitter_applies_its_operations_in_its_order(picture):
    image = picture[:6, :7]
    orders = np.array(list(itertools.permutations(range(4))), np.int32)
    amounts = np.array([1.6, 0.4, 1.7, -0.17], np.float32)
    turns = np.argsort(orders, axis=1).astype(np.int32)
    jitter = Jitter(turns, *(np.broadcast_to(a, (24, *a.shape)) for a in (amounts, np.zeros((2, 0), np.float32))))
    ours = jax.jit(jax.vmap(partial(augment.apply_jitter, as_float(image))))(jitter)
    for order, result in zip(orders, np.asarray(ours), strict=True):
        expected = image / 255.0
        for name in order:
            expected = numpy_operation(expected, name, float(amounts[name]))
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_draws_of_the_jitter():
    keys = jax.random.split(jax.random.key(3), 4800)
    draw = jax.vmap(lambda key: augment.draw_jitter(key, 0.8, 0.8, 1.5, 0.4, 0.2, bands=3))
    turns, amounts, factors = map(np.asarray, jax.jit(draw)(keys))
    np.testing.assert_array_equal(np.sort(turns, axis=1), np.tile(np.arange(4), (4800, 1)))
    counts = np.unique(turns, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    happens = (amounts != [1, 1, 1, 0]).any(axis=1)
    drawn = amounts[happens]
    assert abs(len(drawn) / 4800 - 0.8) < 0.025  # more than four standard deviations
    for column, (low, high) in zip(drawn.T, [(0.2, 1.8), (0.0, 2.5), (0.6, 1.4), (-0.2, 0.2)], strict=True):
        assert scipy.stats.kstest(column, "uniform", (low, high - low)).pvalue > 1e-3
    assert factors.shape == (4800, 2, 3)
    np.testing.assert_array_equal((factors != 1).any(axis=(1, 2)), happens)  # all bands of an image, or none
    for kind, (low, high) in enumerate([(0.2, 1.8), (0.0, 2.5)]):
        for band in range(3):
            drawn_factors = factors[happens, kind, band]
            assert scipy.stats.kstest(drawn_factors, "uniform", (low, high - low)).pvalue > 1e-3
    everything = np.concatenate([drawn, factors[happens].reshape(-1, 6)], axis=1)
    assert np.abs(np.corrcoef(everything.T) - np.eye(10)).max() < 0.075  # four and a half standard deviations
    without = augment.draw_jitter(keys[5], 0.8, 0.8, 1.5, 0.4, 0.2)
    np.testing.assert_array_equal(without.turns, turns[5])
    np.testing.assert_allclose(without.amounts, amounts[5], rtol=1e-6)


@pytest.mark.parametrize("colours", [(), (3, 2, 1)])
def test_each_other_band_gets_its_own_brightness_and_contrast(colours):
    image = np.random.default_rng(0).random((7, 9, 5), dtype=np.float32)
    orders = np.array(list(itertools.permutations(range(4))), np.int32)
    amounts = np.array([1.6, 0.4, 1.7, -0.17], np.float32)
    factors = np.array([[0.3, 1.5, 1.2, 0.8, 1.7], [1.8, 0.4, 1.3, 1.6, 0.7]], np.float32)
    jitter = Jitter(np.argsort(orders, axis=1).astype(np.int32), *(np.stack([a] * 24) for a in (amounts, factors)))
    ours = jax.jit(jax.vmap(partial(augment.apply_jitter, image, colours=colours)))(jitter)
    for order, result in zip(orders, np.asarray(ours), strict=True):
        expected = image.astype(np.float64)
        for name in order:
            if colours:
                expected[..., colours] = numpy_operation(expected[..., colours], name, float(amounts[name]))
            for band in set(range(5)) - set(colours) if name < 2 else ():
                target = (0.0, expected[..., band].mean())[name]
                factor = float(factors[name, band])
                expected[..., band] = np.clip(factor * expected[..., band] + (1 - factor) * target, 0, 1)
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_jitter_without_factors_leaves_other_bands():
    image = np.random.default_rng(0).random((4, 4, 6), dtype=np.float32)
    jitter = augment.colour_jitter(
        jax.random.key(0), image, colours=(5, 0, 2), probability=1.0, brightness=0.0, contrast=0.0
    )
    np.testing.assert_array_equal(np.asarray(jitter)[..., [1, 3, 4]], image[..., [1, 3, 4]])
    assert (np.abs(np.asarray(jitter) - image)[..., [0, 2, 5]].max((0, 1)) > 1e-3).all()


def test_greyscale_of_the_colours_alone(picture):
    image = np.concatenate([picture[..., ::-1], picture[..., :2]], axis=-1)
    grey = np.asarray(augment.greyscale(as_float(image), colours=(2, 1, 0)))
    np.testing.assert_array_equal(grey[..., 3:], as_float(image)[..., 3:])
    np.testing.assert_array_equal(grey[..., :3], augment.greyscale(as_float(picture)))


def test_what_cannot_happen_costs_nothing():
    image = np.zeros((6, 6, 4), np.float32)

    def program(**settings):
        return str(jax.make_jaxpr(partial(augment.colour_jitter, **settings))(jax.random.key(0), image))

    assert "floor" in program(colours=(0, 1, 2))  # of the hue
    assert "floor" not in program(colours=())
    # the two means are of the colours' luminance and of the fourth band
    assert (
        program(colours=(0, 1, 2)).count("reduce_sum")
        - program(colours=(0, 1, 2), brightness=0, contrast=0).count("reduce_sum")
        == 1
    )
    assert not jax.make_jaxpr(partial(augment.colour_jitter, colours=(), brightness=0.0, contrast=0.0))(
        jax.random.key(0), image
    ).eqns
