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


def test_memory_stays_bounded_and_every_tile_keeps_its_share():
    sample = PixelSample(Layout((1,), "float32"), most=1000)
    for i in range(300):
        sample.add(np.full((16, 16, 1), i, np.float32))
        assert sum(pixels.nbytes for pixels, _ in sample._kept) <= 4 * 1000
    counts = np.bincount(np.concatenate([pixels[:, 0] for pixels, _ in sample._kept]).astype(int), minlength=300)
    assert set(counts) == {2}, "the largest power of two of which 300 tiles have fewer than 1000"
    for i in range(300, 2000):
        sample.add(np.full((16, 16, 1), i, np.float32))
    counts = np.bincount(np.concatenate([pixels[:, 0] for pixels, _ in sample._kept]).astype(int), minlength=2000)
    assert set(counts) == {1}, "and one of every tile, whatever the number"


def test_tiles_that_alternate_have_an_equal_part():
    """Images before and after an event, say, one tile each: no stride through the tiles may take those of one kind."""
    tiles = rng.integers(1000, 2000, (600, 16, 16, 1)).astype(np.uint16)
    tiles[1::2] += 2000
    bands = measured(tiles, "uint16", most=20000)
    low, high, mean, std = plain(tiles.reshape(-1, 1), "uint16")
    np.testing.assert_allclose(bands.low, low, atol=10)
    np.testing.assert_allclose(bands.high, high, atol=10)
    np.testing.assert_allclose(bands.mean, mean, atol=0.01)
    np.testing.assert_allclose(bands.std, std, atol=0.01)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_band_is_measured_on_its_own_values(dtype):
    tiles = rng.gamma(3, 20, (9, 16, 16, 3)).clip(1, 255) * {"uint8": 1, "uint16": 40, "float32": -1e-2}[dtype]
    tiles = tiles.astype(dtype)
    values = rng.random(tiles.shape) < (0.3, 0.6, 0.9)
    values[..., 2] |= rng.random(values.shape[:3]) < 0.5
    values[:, :5, :7] = False
    bad = tiles.copy()
    bad[~values] = np.nan if dtype == "float32" else np.iinfo(dtype).max
    bands = measured(bad, dtype, None if dtype == "float32" else values)
    for band in range(3):
        expected = plain(tiles[values[..., band]][:, band : band + 1], dtype)
        found = bands.low[band], bands.high[band], bands.mean[band], bands.std[band]
        np.testing.assert_allclose(found, np.ravel(expected), rtol=1e-9)
    if dtype == "float32":
        bad[..., 1] = np.nan
        empty = measured(bad, dtype)
        assert (empty.low[1], empty.high[1], empty.mean[1], empty.std[1]) == (0, 1, 0, 1)
        assert (empty.low[0], empty.std[2]) == (bands.low[0], bands.std[2])


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


def outliers(values, dtype):
    """Those of one band's values (n,), n a multiple of 256."""
    sample = PixelSample(Layout((7,), dtype))
    for tile in values.astype(dtype).reshape(-1, 16, 16, 1):
        sample.add(tile)
    return sample.outliers()


LAND = rng.gamma(3, 400, 10240).round() + 200
DECIBELS = rng.normal(-12, 3, 10240)


@pytest.mark.parametrize(
    ("values", "dtype", "nodata"),
    [
        (DECIBELS, "float32", -9999.0),
        (DECIBELS, "float32", float(np.finfo(np.float32).min)),
        (rng.uniform(270, 320, 10240), "float32", 0.0),
        (LAND, "uint16", 65535.0),
        (LAND + 2000, "uint16", 0.0),
        (np.append(LAND[1:], 40000), "uint16", 65535.0),  # a glint between the two
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.008, 0.012, 0.7])
def test_nodata_without_a_tag_is_noticed(values, dtype, nodata, share):
    count = int(share * values.size)
    filled = values.copy()
    filled[:count] = nodata
    found = outliers(filled, dtype)
    if share < 0.01:
        assert found == []
        return
    others = filled[count:].astype(dtype)
    expected = 7, np.array(nodata, dtype), count / values.size, others.min(), others.max()
    np.testing.assert_allclose(found, [expected])


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ((LAND * 10).clip(0, 20000), "uint16"),  # 11 bits and more, cut off at the end of the sensor's range
        ((rng.pareto(1, 10240) * 2000).clip(0, 65535), "uint16"),  # bright scatterers of a radar
        ((DECIBELS + 12).clip(0), "float32"),  # cut off at 0
        (np.where(rng.random(10240) < 0.5, 0, rng.gamma(2, 9, 10240)), "float32"),  # sea and land
        (rng.integers(0, 2, 10240), "float32"),
        (rng.integers(0, 5, 10240) ** 4, "uint16"),  # levels, not a scale
        (rng.integers(0, 40, 10240) * 1000, "uint16"),
        (np.where(rng.random(10240) < 0.2, 255, rng.integers(0, 40, 10240)), "uint8"),
        (np.full(10240, -9999), "float32"),
        (np.full(10240, np.nan), "float32"),
    ],
)
def test_values_that_belong_to_a_scale_are_no_nodata(values, dtype):
    assert outliers(values, dtype) == []
