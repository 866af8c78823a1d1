"""The bands of stored images against plain NumPy."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grass_jax.bands import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RGB,
    Bands,
    choose_bands,
    denormalise,
    normalise,
    picture,
    unit_range,
)

DEEP = Bands(
    numbers=(2, 3, 4, 8),
    dtype="uint16",
    low=(100.0, 200.0, 0.0, 50.5),
    high=(1100.0, 2200.0, 500.0, 4000.0),
    mean=(0.3, 0.4, 0.5, 0.6),
    std=(0.1, 0.2, 0.3, 0.4),
    rgb=(4, 3, 2),
)
OPEN = {"numbers": (), "dtype": "", "low": (), "high": (), "mean": (), "std": (), "rgb": ()}


def scaled(images, bands):
    low, high = np.array(bands.low), np.array(bands.high)
    return np.clip((images.astype(np.float64) - low) / (high - low), 0, 1)


def test_channels_of_the_colours():
    assert (len(RGB), RGB.colours, RGB.shown) == (3, (0, 1, 2), (0, 1, 2))
    assert (len(DEEP), DEEP.colours, DEEP.shown) == (4, (2, 1, 0), (2, 1, 0))
    unknown = replace(DEEP, rgb=())
    assert (unknown.colours, unknown.shown) == ((), (0, 1, 2))
    two = Bands((5, 1), "float32", (0, 0), (1, 1), (0, 0), (1, 1), ())
    assert (two.colours, two.shown) == ((), (0, 0, 0))


def test_bands_from_a_configuration_are_hashable_and_come_back():
    section = {name: list(value) if isinstance(value, tuple) else value for name, value in DEEP.asdict().items()}
    assert Bands(**section) == DEEP
    assert hash(Bands(**section)) == hash(DEEP)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "int16"}, "bands.dtype must be uint8, uint16 or float32, not 'int16'"),
        ({"numbers": ()}, "bands.numbers must be 1 to 16 different bands"),
        ({"numbers": (2, 3, 4, 4)}, "bands.numbers must be 1 to 16 different bands"),
        ({"numbers": (0, 2, 3, 4)}, "counted from 1, not (0, 2, 3, 4)"),
        ({"numbers": tuple(range(1, 18))}, "bands.numbers must be 1 to 16"),
        ({"low": (0.0,)}, "bands.low must have a number for each of the 4 bands, not 1"),
        ({"std": (1.0,) * 5}, "bands.std must have a number for each of the 4 bands, not 5"),
        ({"mean": (0.1, float("nan"), 0.1, 0.1)}, "bands.mean must be finite"),
        ({"high": (float("inf"),) * 4}, "bands.high must be finite"),
        ({"high": (100.0, 2200.0, 500.0, 4000.0)}, "bands.low must be below bands.high"),
        ({"std": (0.1, 0.2, 0.3, 0.0)}, "bands.std above 0"),
        ({"rgb": (2, 3)}, "bands.rgb must be three different ones of the bands (2, 3, 4, 8), or none, not (2, 3)"),
        ({"rgb": (2, 3, 5)}, "bands.rgb must be three"),
        ({"rgb": (2, 2, 3)}, "bands.rgb must be three"),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        replace(DEEP, **changes)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(["uint8", "uint16", "float32"]), count=st.sampled_from([1, 2, 4, 16]))
def test_unit_range_is_numpys(data, dtype, count):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    top = {"uint8": 255, "uint16": 65535, "float32": 1e4}[dtype]
    low = np.sort(rng.uniform(0 if dtype != "float32" else -top, top, (2, count)), axis=0)
    low[1] += 0.1 * top  # far enough apart for float32
    bands = Bands(tuple(range(1, count + 1)), dtype, *map(tuple, low.tolist()), (0.5,) * count, (1.0,) * count, ())
    images = rng.uniform(0 if dtype != "float32" else -top, top, (2, 3, 4, count)).astype(dtype)
    found = unit_range(jnp.asarray(images), bands)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, scaled(images, bands), atol=3e-6)


def test_levels_are_divided_by_255():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    np.testing.assert_array_equal(unit_range(jnp.asarray(levels), RGB), levels * np.float32(1 / 255))


def test_floats_for_integers_are_in_unit_range_already():
    images = np.random.default_rng(0).random((2, 3, 3, 4), dtype=np.float32)
    np.testing.assert_array_equal(unit_range(jnp.asarray(images), DEEP), images)
    half = unit_range(jnp.asarray(images, jnp.bfloat16), DEEP)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, images, atol=4e-3)


def test_what_is_no_number_becomes_0():
    bands = Bands((1, 2), "float32", (10.0, -5.0), (20.0, 5.0), (0.0, 0.0), (1.0, 1.0), ())
    values = np.array([np.nan, np.inf, -np.inf, 1e38, 2.5], np.float32)
    images = np.broadcast_to(values[None, None, :, None], (1, 2, 5, 2))
    expected = np.array([[0, 0], [1, 1], [0, 0], [1, 1], [0, 0.75]])
    np.testing.assert_allclose(unit_range(jnp.asarray(images), bands)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("bands", "shape", "dtype", "words"),
    [
        (DEEP, (2, 4, 4, 3), np.uint16, "images must end with 4 bands, (..., h, w, 4), not (2, 4, 4, 3)."),
        (DEEP, (4, 4), np.uint16, "images must end with 4 bands"),
        (DEEP, (2, 4, 4, 4), np.uint8, "images must be uint16 or float in 0..1, not uint8."),
        (RGB, (2, 4, 4, 3), np.uint16, "images must be uint8 or float in 0..1, not uint16."),
        (replace(DEEP, dtype="float32"), (2, 4, 4, 4), np.uint16, "images must be float32, not uint16."),
    ],
)
def test_images_that_do_not_fit(bands, shape, dtype, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        unit_range(jnp.zeros(shape, dtype), bands)


def test_normalise_and_back():
    images = np.random.default_rng(0).random((2, 2, 5, 4, 4), dtype=np.float32)
    normal = normalise(jnp.asarray(images), DEEP)
    np.testing.assert_allclose(normal, (images - [0.3, 0.4, 0.5, 0.6]) / [0.1, 0.2, 0.3, 0.4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(denormalise(normal, DEEP), images[..., [2, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(denormalise(normal, replace(DEEP, rgb=())), images[..., :3], atol=1e-6)
    one = Bands((1,), "uint8", (0.0,), (255.0,), (0.5,), (0.25,), ())
    np.testing.assert_allclose(
        denormalise(jnp.asarray([[[0.4], [3.0], [-3.0]]]), one), [[[0.6] * 3, [1.0] * 3, [0.0] * 3]], atol=1e-6
    )


def test_figures_gather_nothing():
    program = str(jax.make_jaxpr(lambda images: denormalise(images, DEEP))(np.zeros((2, 3, 3, 4), np.float32)))
    assert "gather" not in program


def test_pictures_are_stretched():
    images = np.random.default_rng(0).integers(0, 4500, (6, 7, 4), dtype=np.uint16)
    shown = picture(images, DEEP)
    assert (shown.shape, shown.dtype) == ((6, 7, 3), np.uint8)
    np.testing.assert_allclose(shown, 255 * scaled(images, DEEP)[..., [2, 1, 0]], atol=0.5 + 1e-3)
    assert (shown == 0).any()
    assert (shown == 255).any()


def test_pictures_of_levels_are_themselves():
    levels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(picture(levels, RGB), levels)
    np.testing.assert_array_equal(picture(levels, replace(RGB, rgb=(3, 1, 2))), levels[..., [2, 0, 1]])
    assert picture(levels, RGB) is levels
    more = Bands((1, 2, 3, 4), "uint8", (0.0,) * 4, (255.0,) * 4, (0.1,) * 4, (0.2,) * 4)
    four = np.concatenate([levels, levels[..., :1]], -1)
    np.testing.assert_array_equal(picture(four, more), levels)
    for image, bands in ((levels, replace(RGB, rgb=(3, 1, 2))), (four, more)):
        assert picture(image, bands).flags.c_contiguous, "not a plane for each channel"
    one = Bands((1,), "uint8", (0.0,), (255.0,), (0.5,), (0.25,), ())
    np.testing.assert_array_equal(picture(levels[..., :1], one), levels[..., :1].repeat(3, -1))
    faint = picture(levels, replace(RGB, low=(0.0, 50.0, 0.0), high=(255.0, 100.0, 255.0)))
    np.testing.assert_array_equal(faint[..., [0, 2]], levels[..., [0, 2]])
    np.testing.assert_array_equal(faint[..., 1], np.rint(np.clip((levels[..., 1] - 50.0) * 5.1, 0, 255)))


def test_pictures_of_what_is_no_number_are_black():
    bands = Bands((1,), "float32", (-1.0,), (1.0,), (0.0,), (1.0,), ())
    image = np.array([[[np.nan], [np.inf], [-np.inf], [0.2]]], np.float32)
    np.testing.assert_array_equal(picture(image, bands)[0, :, 0], [0, 255, 0, 153])


def test_open_values_are_those_of_the_data():
    assert choose_bands(OPEN, DEEP) == DEEP
    assert choose_bands({}, DEEP) == DEEP
    assert choose_bands(DEEP.asdict(), DEEP) == DEEP


def test_given_values_come_first():
    given = OPEN | {"mean": [0.1, 0.2, 0.3, 0.4], "rgb": [8, 4, 3]}
    assert choose_bands(given, DEEP) == replace(DEEP, mean=(0.1, 0.2, 0.3, 0.4), rgb=(8, 4, 3))


def test_eight_bit_colour_is_normalised_as_photographs():
    measured = replace(RGB, mean=(0.1,) * 3, std=(0.3,) * 3)
    assert choose_bands(OPEN, measured) == RGB
    assert choose_bands(OPEN | {"std": (1.0,) * 3}, measured) == replace(RGB, std=(1.0,) * 3)
    unknown = replace(measured, rgb=())
    assert choose_bands(OPEN, unknown) == unknown
    assert choose_bands(OPEN | {"rgb": (1, 2, 3)}, unknown) == RGB
    swapped = replace(measured, rgb=(3, 2, 1))  # the order of the channels is not that of the photographs
    assert choose_bands(OPEN, swapped) == swapped
    more = Bands((1, 2, 3, 4), "uint8", (0.0,) * 4, (255.0,) * 4, (0.1,) * 4, (0.2,) * 4)
    assert choose_bands(OPEN, more) == more
    deep = replace(measured, dtype="uint16")
    assert choose_bands(OPEN, deep) == deep
    assert (RGB.mean, RGB.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_measured_statistics_follow_another_scale():
    values = np.random.default_rng(0).uniform(300, 900, (1000, 2))
    low, high = (300.0, 100.0), (900.0, 1100.0)
    unit = (values - low) / np.subtract(high, low)
    measured = Bands((1, 2), "uint16", low, high, tuple(unit.mean(0).tolist()), tuple(unit.std(0).tolist()), ())
    found = choose_bands(OPEN | {"low": (0.0, 200.0), "high": (1000.0, 1200.0)}, measured)
    unit = (values - [0.0, 200.0]) / 1000
    np.testing.assert_allclose(found.mean, unit.mean(0))
    np.testing.assert_allclose(found.std, unit.std(0))
    assert (found.low, found.high) == ((0.0, 200.0), (1000.0, 1200.0))
    given = choose_bands(OPEN | {"high": (1000.0, 1200.0), "mean": (0.5, 0.5)}, measured)
    assert given.mean == (0.5, 0.5)
    hash(found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"numbers": (4, 3, 2, 8)}, "bands.numbers must be that of the data, (2, 3, 4, 8), not (4, 3, 2, 8)."),
        ({"dtype": "uint8"}, "bands.dtype must be that of the data, uint16, not uint8."),
        ({"low": (0.0,)}, "bands.low must have a number for each of the 4 bands"),
        ({"rgb": (1, 2, 3)}, "bands.rgb must be three"),
    ],
)
def test_given_values_must_fit_the_data(given, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        choose_bands(OPEN | given, DEEP)
