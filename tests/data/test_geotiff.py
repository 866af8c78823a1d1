import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from grass_jax.data.geotiff import Georeference, alpha_band, georeference, open_raster, valid_rows

rng = np.random.default_rng(0)
UTM = CRS.from_epsg(26911)
COS, SIN = 0.5 * np.cos(0.6), 0.5 * np.sin(0.6)
TURNED = Affine(COS, SIN, 5e5, SIN, -COS, 4e6)  # turned pixels of half a unit


def write(path, bands, *, mask=None, **options):
    bands = np.asarray(bands)
    options = {"crs": UTM, "transform": TURNED} | options
    profile = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **profile, **options) as raster:
        raster.write(bands)
        if mask is not None:
            raster.write_mask(mask)
    return path


@pytest.mark.parametrize(
    ("code", "transform", "metres"),
    [
        (26911, Affine(0.6, 0, 3e5, 0, -0.6, 4e6), 0.6),
        (26911, TURNED, 0.5),
        (26911, Affine.scale(2, -8), 4.0),
        (26911, Affine.shear(30, 0), 1.0),
        (2263, TURNED, 0.5 * 1200 / 3937),  # New York's feet of the US survey
        (4326, Affine.scale(1e-5, -1e-5), None),
        (None, Affine.scale(0.5, -0.5), None),
    ],
)
def test_ground_sampling_distance(code, transform, metres):
    grid = Georeference(None if code is None else CRS.from_epsg(code), transform)
    assert grid.gsd == (None if metres is None else pytest.approx(metres, rel=1e-9))


def test_a_scaled_grid_keeps_its_corner_and_directions():
    grid = Georeference(UTM, TURNED)
    height, width = grid.factors(1.5)
    np.testing.assert_allclose((height, width), 3)
    scaled = grid.scaled((height, width))
    assert scaled.gsd == pytest.approx(1.5)
    for column, row in [(0, 0), (4, 0), (0, 7), (11, 5)]:
        t, s = grid.transform, scaled.transform
        stored = t.a * 3 * column + t.b * 3 * row + t.c, t.d * 3 * column + t.e * 3 * row + t.f
        np.testing.assert_allclose((s.a * column + s.b * row + s.c, s.d * column + s.e * row + s.f), stored, rtol=1e-12)
    other = Georeference(UTM, Affine.scale(2, -8)).factors(4)
    np.testing.assert_allclose(other, (0.5, 2))


@pytest.mark.parametrize(
    ("crs", "words"), [(None, "it has no CRS"), (CRS.from_epsg(4326), "EPSG:4326 is not in metres")]
)
def test_a_grid_without_metres_cannot_be_resampled(crs, words):
    with pytest.raises(ValueError, match=f"{words} to resample by: reproject it"):
        Georeference(crs, Affine.identity()).factors(1)


def test_where_the_pixels_lie(tmp_path):
    pixels = rng.integers(0, 256, (1, 4, 5), np.uint8)
    with open_raster(write(tmp_path / "a.tif", pixels)) as raster:
        place = georeference(raster)
    assert place is not None
    assert place.crs == UTM
    assert place.transform.almost_equals(TURNED)
    with open_raster(write(tmp_path / "b.tif", pixels, crs=None)) as raster:
        place = georeference(raster)
    assert place is not None
    assert place.crs is None
    assert place.transform.almost_equals(TURNED)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write(tmp_path / "c.tif", pixels, crs=None, transform=None)
    with open_raster(tmp_path / "c.tif") as raster:
        assert georeference(raster) is None


def test_nodata_alpha_and_mask_say_what_counts(tmp_path):
    rgb = rng.integers(0, 3, (3, 40, 50), np.uint8)
    cut = rng.random((40, 50)) < 0.3
    opacity = np.where(cut, 0, 255).astype(np.uint8)
    wanted = {
        "nodata": (write(tmp_path / "nodata.tif", rgb, nodata=1), (rgb != 1).any(0)),
        "alpha": (write(tmp_path / "alpha.tif", [*rgb, opacity], alpha="yes"), ~cut),
        "mask": (write(tmp_path / "mask.tif", rgb, mask=opacity), ~cut),
        "none": (write(tmp_path / "none.tif", rgb), None),
    }
    for name, (path, expected) in wanted.items():
        with open_raster(path) as raster:
            valid = valid_rows(raster, [1, 2, 3])
            if expected is None:
                assert valid is None, name
            else:
                assert valid is not None, name
                np.testing.assert_array_equal(valid(0, 40), expected, name)
                np.testing.assert_array_equal(valid(7, 23), expected[7:23], name)


@pytest.mark.parametrize("tagged", [True, False])
def test_what_counts_depends_on_the_bands_that_are_read(tmp_path, tagged):
    bands = rng.normal(0, 1, (3, 40, 50)).astype(np.float32)
    nodata = -9999 if tagged else np.nan
    bands[0, :9], bands[1, :, :7] = nodata, nodata
    bands[2, 5:12] = np.inf
    with open_raster(write(tmp_path / "a.tif", bands, nodata=nodata if tagged else None)) as raster:
        for chosen in ([1], [2], [1, 2], [1, 2, 3], [3, 1]):
            good = np.isfinite(bands) & (bands != nodata)
            valid = valid_rows(raster, chosen)
            assert valid is not None
            np.testing.assert_array_equal(valid(3, 40), good[[band - 1 for band in chosen], 3:].any(0))


@pytest.mark.parametrize(
    ("dtype", "count", "photometric"), [("uint8", 4, "RGB"), ("uint16", 4, "RGB"), ("uint8", 2, None)]
)
def test_an_alpha_channel_is_known_by_its_values(tmp_path, dtype, count, photometric):
    bands = rng.integers(1, 200, (count, 40, 50)).astype(dtype)
    options = {"photometric": photometric} if photometric else {}
    with open_raster(write(tmp_path / "a.tif", bands, alpha="yes", **options)) as raster:
        assert alpha_band(raster) == 0
    bands[-1] = np.where(rng.random((40, 50)) < 0.5, 0, np.iinfo(dtype).max)
    with open_raster(write(tmp_path / "b.tif", bands, alpha="yes", **options)) as raster:
        assert alpha_band(raster) == count
    with open_raster(write(tmp_path / "c.tif", bands[:1])) as raster:
        assert alpha_band(raster) == 0


def test_near_infrared_is_not_alpha(tmp_path):
    bands = rng.integers(0, 256, (4, 64, 50), np.uint8)
    path = write(tmp_path / "a.tif", bands)
    with open_raster(path) as raster:
        assert raster.colorinterp[3] == ColorInterp.alpha  # what GDAL makes of any fourth band
        assert valid_rows(raster, [1, 2, 3]) is None
    assert (bands[3] == 0).any()
