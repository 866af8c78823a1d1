import numpy as np
import pytest

from grass_jax.bands import Bands
from grass_jax.data.layout import Layout
from grass_jax.data.statistics import PixelSample

rng = np.random.default_rng(0)


def measured(tiles, dtype, valid=None, **options):
    sample = PixelSample(Layout(tuple(range(1, tiles.shape[-1] + 1)), dtype), **options)
    for i, tile in enumerate(tiles):
        sample.add(tile, None if valid is None else valid[i])
    return sample.bands()


def plain(pixels, dtype):
    """Statistics of all of (n, c), band by band."""
    low, high = np.percentile(pixels.astype(np.float64), (0.5, 99.5), axis=0)
    if dtype == "uint8":
        low, high = 0 * low, 0 * high + 255
    scaled = np.clip((pixels - low) / (high - low), 0, 1)
    return low, high, scaled.mean(0), scaled.std(0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("masked", [False, True])
def test_tiles_of_sixteen_pixels_are_measured_whole(dtype, masked):
    tiles = rng.gamma(3, 20, (9, 16, 16, 4)).clip(0, 255) * {"uint8": 1, "uint16": 40, "float32": 1e-4}[dtype]
    tiles = tiles.astype(dtype)
    valid = rng.random((9, 16, 16)) < 0.6 if masked else None
    tiles[~(np.ones((9, 16, 16), bool) if valid is None else valid)] = 0
    bands = measured(tiles, dtype, valid)
    pixels = tiles.reshape(-1, 4) if valid is None else tiles[valid]
    for found, expected in zip((bands.low, bands.high, bands.mean, bands.std), plain(pixels, dtype), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert (bands.numbers, bands.dtype, bands.rgb) == ((1, 2, 3, 4), dtype, ())
    assert Bands(**bands.asdict()) == bands


def test_larger_tiles_are_thinned_evenly_and_always_alike():
    tiles = (rng.gamma(3, 300, (40, 96, 96, 2)) + np.linspace(0, 500, 40)[:, None, None, None]).astype(np.uint16)
    for most in (1 << 20, 5000):
        bands = measured(tiles, "uint16", most=most)
        assert bands == measured(tiles, "uint16", most=most)
        low, high, mean, std = plain(tiles.reshape(-1, 2), "uint16")
        np.testing.assert_allclose(bands.low, low, atol=0.02 * high.max())
        np.testing.assert_allclose(bands.high, high, rtol=0.1)
        np.testing.assert_allclose(bands.mean, mean, atol=0.03)
        np.testing.assert_allclose(bands.std, std, atol=0.02)


def test_memory_stays_bounded_and_tiles_stay_evenly_taken():
    sample = PixelSample(Layout((1,), "float32"), most=1000)
    for i in range(1000):
        sample.add(np.full((16, 16, 1), i, np.float32))
        assert sum(len(pixels) for pixels in sample._kept) <= 1000
    taken = [int(pixels[0, 0]) for pixels in sample._kept]
    assert len(taken) >= 2
    assert len(set(np.diff(taken))) == 1, "every so-manieth tile"


def test_bands_without_contrast_can_be_scaled_all_the_same():
    tiles = np.zeros((2, 16, 16, 4), np.float32)
    tiles[..., 0], tiles[..., 1] = 0.3, -5e9
    tiles[0, 0, 0, 2] = 7  # so rare that both percentiles are 0
    bands = measured(tiles, "float32")
    low, high = np.array(bands.low, np.float32), np.array(bands.high, np.float32)
    np.testing.assert_allclose(low, [0.3, -5e9, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(high, [1.3, 0, 7, 1], rtol=1e-6)
    assert np.isfinite(1 / (high - low)).all()
    assert bands.std[2] == pytest.approx(np.sqrt(1 / 512 * (1 - 1 / 512)))
    assert (bands.std[0], bands.std[1], bands.std[3]) == (1, 1, 1)
    flat = measured(np.full((1, 16, 16, 1), 7, np.uint8), "uint8")
    assert (flat.low, flat.high, flat.std) == ((0,), (255,), (1,))
    assert flat.mean == pytest.approx([7 / 255])
    nothing = measured(np.zeros((1, 32, 32, 1), np.uint16), "uint16", np.zeros((1, 32, 32), bool))
    assert (nothing.low, nothing.high, nothing.std) == ((0,), (1,), (1,))
