import itertools

import numpy as np
import pytest
from PIL import Image

from grass_jax.data import resampling
from grass_jax.data.resampling import majority_rows, new_length, resample_rows, resample_valid

rng = np.random.default_rng(0)


def overlaps(factor, length):
    """(new, stored) lengths that a new and a stored pixel share, by plain arithmetic."""
    new = max(1, round(length / factor))
    table = np.zeros((new, length))
    for i, j in itertools.product(range(new), range(length)):
        table[i, j] = max(0.0, min((i + 1) * factor, j + 1) - max(i * factor, j))
    return table


def resample(image, factors, valid=None, step=None):
    size = image.shape[:2]
    height = new_length(size[0], factors[0])
    every = np.ones(size, bool) if valid is None else valid
    grid, colours, counted = {"size": size, "factors": factors}, [], []
    for y in range(0, height, step or height):
        bounds = y, min(y + (step or height), height)
        given = None if valid is None else lambda y0, y1: every[y0:y1]
        colours.append(resample_rows(lambda y0, y1: image[y0:y1], given, *bounds, **grid))
        counted.append(resample_valid(lambda y0, y1: every[y0:y1], *bounds, **grid))
    return np.concatenate(colours), np.concatenate(counted)


@pytest.mark.parametrize("factors", [(2.0, 2.0), (3.0, 5.0), (1.7, 2.4), (5.3, 1.2)])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_larger_pixels_are_means_over_what_is_valid(factors, share, dtype):
    image = (rng.random((23, 31, 3)) * {"uint8": 256, "uint16": 65536, "float32": 4}[dtype]).astype(dtype)
    valid = rng.random((23, 31)) < share
    valid[:8, :8] = share == 1
    result, counted = resample(image, factors, None if share == 1 else valid)
    y, x = overlaps(factors[0], 23), overlaps(factors[1], 31)
    weight = np.einsum("ih,jw,hw->ij", y, x, valid)
    expected = np.einsum("ih,jw,hw,hwc->ijc", y, x, valid, image) / np.maximum(weight, 1e-9)[..., None]
    assert result.dtype == dtype
    if dtype == "float32":
        np.testing.assert_array_equal(np.isnan(result), np.broadcast_to((weight < 1e-9)[..., None], result.shape))
        result = np.nan_to_num(result)
    assert np.abs(result - expected).max() <= {"uint8": 0.501, "uint16": 0.55, "float32": 1e-5}[dtype]
    clear = np.abs(weight / np.einsum("ih,jw->ij", y, x) - 0.5) > 1e-4
    np.testing.assert_array_equal(counted[clear], (weight / np.einsum("ih,jw->ij", y, x) >= 0.5)[clear])
    assert (share == 1) == counted.all()


def test_floats_that_are_no_number_have_no_part_in_their_band():
    image = rng.normal(0, 1, (12, 16, 2)).astype(np.float32)
    image[rng.random(image.shape) < 0.3] = np.nan
    image[:2, :2] = np.inf
    valid = np.isfinite(image).any(-1)
    blocks = (
        np.where(np.isfinite(image), image, np.nan).reshape(6, 2, 8, 2, 2).transpose(0, 2, 4, 1, 3).reshape(6, 8, 2, 4)
    )
    count = np.isfinite(blocks).sum(-1)
    expected = np.where(count > 0, np.nansum(blocks, -1) / np.maximum(count, 1), np.nan)
    assert np.isnan(expected).any()
    for given in (valid, None):
        np.testing.assert_allclose(resample(image, (2.0, 2.0), given)[0], expected, atol=1e-5)


def test_integers_that_are_nodata_in_their_band_have_no_part_in_it():
    image = rng.integers(1, 60000, (12, 16, 3)).astype(np.uint16)
    values = rng.random(image.shape) < 0.6
    values[:4, :4] = False
    image[~values] = 65535
    result, counted = resample(image, (2.0, 2.0), values)
    blocks, good = (
        array.reshape(6, 2, 8, 2, 3).transpose(0, 2, 4, 1, 3).reshape(6, 8, 3, 4) for array in (image, values)
    )
    count = good.sum(-1)
    mean = np.where(good, blocks.astype(float), 0).sum(-1) / np.maximum(count, 1)
    assert np.abs(result - mean).max() <= 0.51, "0 where there is none"
    np.testing.assert_array_equal(counted, count >= 2)


def test_smaller_pixels_are_bilinear():
    image = rng.integers(0, 256, (9, 12, 3), np.uint8)
    result, counted = resample(image, (0.25, 0.5))
    expected = np.asarray(Image.fromarray(image).resize((24, 36), Image.Resampling.BILINEAR), int)
    assert np.abs(result - expected).max() <= 1  # Pillow rounds in between
    assert counted.all()


@pytest.mark.parametrize("factors", [(2.3, 3.1), (0.4, 0.7), (3.0, 0.5)])
def test_rows_do_not_depend_on_how_they_are_asked_for(factors, monkeypatch):
    image, valid = rng.integers(0, 256, (40, 17, 3), np.uint8), rng.random((40, 17)) < 0.7
    ids = rng.integers(0, 3, (40, 17)).astype(np.uint8)
    height = new_length(40, factors[0])

    def majority(y0, y1):
        return majority_rows(lambda top, bottom: ids[top:bottom], y0, y1, size=ids.shape, factors=factors)

    whole, mask = resample(image, factors, valid), majority(0, height)
    monkeypatch.setattr(resampling, "STORED_ROWS", 6)
    for step in (1, 3, height):
        parts = resample(image, factors, valid, step)
        np.testing.assert_array_equal(parts[0], whole[0])
        np.testing.assert_array_equal(parts[1], whole[1])
        rows = [majority(y, min(y + step, height)) for y in range(0, height, step)]
        np.testing.assert_array_equal(np.concatenate(rows), mask)


@pytest.mark.parametrize("factors", [(2.0, 2.0), (3.0, 3.0), (2.6, 4.1), (3.5, 0.5)])
def test_larger_pixels_take_the_largest_area_and_the_lowest_of_equals(factors):
    ids = rng.choice(np.array([0, 1, 7, 255], np.uint8), (19, 26))
    result = majority_rows(lambda y0, y1: ids[y0:y1], 0, new_length(19, factors[0]), size=(19, 26), factors=factors)
    y, x = overlaps(factors[0], 19), overlaps(factors[1], 26)
    for i, j in np.ndindex(result.shape):
        areas = {label: (np.outer(y[i], x[j]) * (ids == label)).sum() for label in (0, 1, 7, 255)}
        most = max(areas.values())
        assert result[i, j] == min(label for label, area in areas.items() if area > most - 1e-6)


def test_smaller_pixels_take_the_nearest_id():
    ids = rng.integers(0, 250, (7, 9)).astype(np.uint8)
    result = majority_rows(lambda y0, y1: ids[y0:y1], 0, 14, size=(7, 9), factors=(0.5, 1 / 3))
    np.testing.assert_array_equal(result, np.repeat(np.repeat(ids, 2, 0), 3, 1))
    uneven = majority_rows(lambda y0, y1: ids[y0:y1], 0, 10, size=(7, 9), factors=(0.7, 0.75))
    expected = Image.fromarray(ids).resize((12, 10), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(uneven, np.asarray(expected))
