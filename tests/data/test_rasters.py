import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT

from grass_jax.data import limits
from grass_jax.data.layout import RGB_LAYOUT, Layout, layout_of
from grass_jax.data.rasters import UnusableImageError, open_scene, reason

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (20, 31, 3), np.uint8)
UTM = CRS.from_epsg(26911)
HALF_METRE = Affine(0.5, 0, 3e5, 0, -0.5, 4e6)
COS, SIN = 0.5 * np.cos(0.6), 0.5 * np.sin(0.6)
TURNED = Affine(COS, SIN, 3e5, SIN, -COS, 4e6)


def read(path, **options):
    with open_scene(path, **options) as scene:
        whole = scene.rows(0, scene.height)
        np.testing.assert_array_equal(scene.rows(3, 9), whole[3:9])
        layout = options.get("layout", RGB_LAYOUT)
        assert whole.shape == (scene.height, scene.width, len(layout.numbers))
        assert whole.dtype == layout.dtype
        return whole


def write_tiff(path, bands, **options):
    bands = np.asarray(bands)
    profile = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with pytest.warns(NotGeoreferencedWarning):
        raster = rasterio.open(path, "w", driver="GTiff", **profile, **options)
    with raster:
        raster.write(bands)
        if "colours" in path.stem:
            raster.write_colormap(1, {i: (i, 255 - i, 7, 255) for i in range(256)})


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_modes(tmp_path, mode):
    picture = Image.fromarray(RGB).convert(mode)
    picture.save(tmp_path / "a.PNG")
    np.testing.assert_array_equal(read(tmp_path / "a.PNG"), np.asarray(picture.convert("RGB")))


def test_alpha_is_dropped_and_colours_stay_as_stored(tmp_path):
    Image.fromarray(np.dstack([RGB, rng.integers(0, 256, RGB.shape[:2], np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), RGB)


def test_palette_with_transparency(tmp_path):
    picture = Image.fromarray(RGB).quantize(16)
    picture.save(tmp_path / "a.png", transparency=bytes(range(0, 160, 10)))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_modes(tmp_path, mode):
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.jpeg", quality=95)
    with Image.open(tmp_path / "a.jpeg") as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(read(tmp_path / "a.jpeg"), np.asarray(picture.convert("RGB")))


def test_a_jpeg_of_several_pictures_is_its_first(tmp_path):
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    first.save(tmp_path / "one.jpg", quality=95)
    first.save(tmp_path / "two.jpg", "MPO", quality=95, save_all=True, append_images=[second])
    with Image.open(tmp_path / "two.jpg") as picture, Image.open(tmp_path / "one.jpg") as alone:
        assert (picture.format, picture.n_frames) == ("MPO", 2)
        np.testing.assert_array_equal(read(tmp_path / "two.jpg"), np.asarray(alone))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_file_that_is_no_picture_is_refused_with_that_reason(tmp_path, name):
    (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(UnusableImageError) as caught:
        read(tmp_path / name)
    assert reason(caught.value) == "it is no readable PNG or JPEG file"


def test_the_reason_is_what_went_wrong_at_first():
    assert reason(UnusableImageError("it is empty")) == "it is empty"
    assert reason(OSError("cut\n  short")) == "it is broken: cut short"
    assert reason(KeyError()) == "it is broken: KeyError"
    outer = OSError("see the previous one")
    outer.__cause__ = ValueError("tile 7")
    assert reason(outer) == "it is broken: tile 7"


def test_exif_orientation_gives_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter when stored
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.rot90(RGB, -1))


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_tiff_band_counts(tmp_path, count):
    bands = rng.integers(0, 256, (count, 20, 31), np.uint8)
    write_tiff(tmp_path / "a.TIF", bands, blockysize=4)
    expected = bands[:3] if count >= 3 else bands[[0, 0, 0]]
    np.testing.assert_array_equal(read(tmp_path / "a.TIF"), np.moveaxis(expected, 0, -1))


def test_tiff_with_a_colour_table_and_with_one_bit(tmp_path):
    ids = rng.integers(0, 256, (1, 20, 31), np.uint8)
    write_tiff(tmp_path / "colours.tif", ids, photometric="PALETTE")
    expected = np.stack([ids[0], 255 - ids[0], np.full_like(ids[0], 7)], -1)
    np.testing.assert_array_equal(read(tmp_path / "colours.tif"), expected)
    write_tiff(tmp_path / "bits.tif", ids % 2, nbits=1)
    np.testing.assert_array_equal(read(tmp_path / "bits.tif"), np.repeat(ids[0] % 2 * 255, 3).reshape(20, 31, 3))


DEEP = RGB.astype(np.uint16) * 257 + rng.integers(0, 99, RGB.shape, np.uint16)
DEEP_LAYOUT = Layout((1, 2, 3), "uint16", (1, 2, 3))


def deep_png(pixels, *chunks):
    """A PNG of 16-bit RGB or RGBA, which Pillow cannot write."""
    height, width, count = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[count], 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))
    chunks = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bits_are_not_read_as_eight(tmp_path):
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "grey.png")
    write_tiff(tmp_path / "a.tif", DEEP.transpose(2, 0, 1))
    (tmp_path / "colour.png").write_bytes(deep_png(DEEP))
    for name, count in (("grey.png", "1 band"), ("colour.png", "3 bands"), ("a.tif", "3 bands")):
        with pytest.raises(UnusableImageError, match=f"^it has {count} of uint16 and 3 of uint8 are wanted$"):
            read(tmp_path / name)


def test_pngs_of_sixteen_bits(tmp_path):
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read(tmp_path / "grey.png", layout=Layout((1,), "uint16")), DEEP[..., :1])
    (tmp_path / "colour.png").write_bytes(deep_png(DEEP))
    np.testing.assert_array_equal(read(tmp_path / "colour.png", layout=DEEP_LAYOUT), DEEP)
    assert layout_of(tmp_path / "colour.png") == DEEP_LAYOUT
    opacity = np.where(rng.random(RGB.shape[:2]) < 0.5, 0, 65535)[..., None].astype(np.uint16)
    (tmp_path / "alpha.png").write_bytes(deep_png(np.concatenate([DEEP, opacity], -1)))
    with open_scene(tmp_path / "alpha.png", layout=DEEP_LAYOUT) as scene:
        assert scene.valid is not None
        np.testing.assert_array_equal(scene.valid(2, 20), opacity[2:, :, 0] > 0)
        np.testing.assert_array_equal(scene.rows(0, 20), np.where(opacity > 0, DEEP, 0))
        assert scene.georeference is None
    whole = deep_png(rng.integers(0, 65536, (300, 300, 3), np.uint16))
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match=r".+"), open_scene(tmp_path / "half.png", layout=DEEP_LAYOUT):
        pytest.fail("a truncated file was opened")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pngs_of_sixteen_bits_are_turned_as_pillow_turns_others(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "shallow.png", exif=exif)
    chunk = b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")
    (tmp_path / "deep.png").write_bytes(deep_png(RGB.astype(np.uint16), chunk))
    deep = read(tmp_path / "deep.png", layout=DEEP_LAYOUT)
    np.testing.assert_array_equal(deep, read(tmp_path / "shallow.png"))


def test_pictures_above_the_limit_are_refused(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(limits, "MAX_PIXELS", 20 * 31)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit does not decide
    read(tmp_path / "a.png", min_size=20)
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(limits, "MAX_PIXELS", 20 * 31 - 1)
    with pytest.raises(UnusableImageError, match="convert it to a GeoTIFF"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_truncated_pixels_are_found_when_the_file_is_opened(tmp_path, name):
    path = tmp_path / name
    pixels = rng.integers(0, 256, (300, 300, 3), np.uint8)
    if name == "a.tif":
        write_tiff(path, pixels.transpose(2, 0, 1), compress="deflate", blockysize=16)
    else:
        Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(Exception, match=r".+"), open_scene(path):
        pytest.fail("a truncated file was opened")


def write_placed(path, bands, crs=UTM, transform=HALF_METRE, **options):
    bands = np.asarray(bands)
    profile = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **profile, **options) as raster:
        raster.write(bands)
        if "colours" in path.stem:
            raster.write_colormap(1, {i: (i, 255 - i, 7, 255) for i in range(256)})
    return path


def test_without_a_check_a_broken_file_fails_where_it_is_broken(tmp_path):
    pixels = rng.integers(0, 256, (3, 600, 300), np.uint8)
    path = write_placed(tmp_path / "a.tif", pixels, compress="deflate", blockysize=16)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with open_scene(path, verify=False) as scene:
        np.testing.assert_array_equal(scene.rows(0, 32), pixels[:, :32].transpose(1, 2, 0))
        with pytest.raises(rasterio.errors.RasterioIOError):
            scene.rows(560, 592)


def test_a_scene_knows_where_it_lies(tmp_path):
    for crs, transform in [(UTM, TURNED), (None, HALF_METRE)]:
        with open_scene(write_placed(tmp_path / "a.tif", RGB.transpose(2, 0, 1), crs, transform)) as scene:
            assert scene.georeference is not None
            assert scene.georeference.crs == crs
            assert scene.georeference.transform.almost_equals(transform)
            assert scene.georeference.gsd == (None if crs is None else pytest.approx(0.5))
            assert scene.factors == (1, 1)
    write_tiff(tmp_path / "plain.tif", RGB.transpose(2, 0, 1))
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for name in ("plain.tif", "a.png"):
        with open_scene(tmp_path / name) as scene:
            assert scene.georeference is None
            assert scene.valid is None


def test_nodata_and_transparency_are_not_valid(tmp_path):
    cut = np.zeros((20, 31), bool)
    cut[:4], cut[:, 25:] = True, True
    bordered = np.where(cut[..., None], np.uint8(0), np.maximum(RGB, 1))
    infrared = rng.integers(0, 256, (1, 20, 31), np.uint8)
    write_placed(tmp_path / "a.tif", [*bordered.transpose(2, 0, 1), *infrared], nodata=0)
    Image.fromarray(np.dstack([RGB, np.where(cut, 0, 255).astype(np.uint8)])).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        with open_scene(tmp_path / name) as scene:
            assert scene.valid is not None
            np.testing.assert_array_equal(scene.valid(0, 20), ~cut)
            np.testing.assert_array_equal(scene.valid(2, 11), ~cut[2:11])
            stored = bordered if name == "a.tif" else RGB
            np.testing.assert_array_equal(scene.rows(2, 11), np.where(cut[..., None], 0, stored)[2:11])


@pytest.mark.parametrize("transform", [HALF_METRE, TURNED], ids=["north up", "turned"])
@pytest.mark.parametrize(("gsd", "way"), [(1.25, Resampling.average), (0.2, Resampling.bilinear)])
def test_resampling_agrees_with_gdal(tmp_path, transform, gsd, way):
    # Smooth, as GDAL weighs the pixels under an edge in steps.
    y, x = np.mgrid[:60, :90]
    bands = np.stack([2 * x + y, 100 + 90 * np.sin(x / 9), 100 + 90 * np.cos(y / 7)]).astype(np.uint8)
    path = write_placed(tmp_path / "a.tif", bands, transform=transform)
    with open_scene(path, gsd=gsd) as scene:
        assert (scene.height, scene.width) == (round(60 * 0.5 / gsd), round(90 * 0.5 / gsd))
        assert scene.georeference is not None
        assert scene.georeference.gsd == pytest.approx(gsd)
        assert scene.factors == pytest.approx((gsd / 0.5, gsd / 0.5))
        whole = scene.rows(0, scene.height)
        np.testing.assert_array_equal(scene.rows(3, 20), whole[3:20])
        grid = {"transform": scene.georeference.transform, "height": scene.height, "width": scene.width}
        with rasterio.open(path) as raster, WarpedVRT(raster, crs=UTM, resampling=way, **grid) as warped:
            expected = warped.read()
    inner = np.abs(whole.transpose(2, 0, 1).astype(int) - expected)[:, 2:-2, 2:-2]
    assert inner.max() <= 2
    assert inner.mean() < 0.3


BANDS = {
    "uint8": rng.integers(0, 256, (5, 20, 30), np.uint8),
    "uint16": rng.integers(0, 65536, (5, 20, 30), np.uint16),
    "int16": rng.integers(-900, 900, (5, 20, 30), np.int16),
    "float32": rng.normal(0, 3, (5, 20, 30)).astype(np.float32),
    "float64": rng.normal(0, 3, (5, 20, 30)),
}


@pytest.mark.parametrize("dtype", BANDS)
@pytest.mark.parametrize("numbers", [(1, 2, 3, 4, 5), (5, 1), (2,)])
def test_any_bands_of_any_depth(tmp_path, dtype, numbers):
    path = write_placed(tmp_path / "a.tif", BANDS[dtype])
    layout = Layout(numbers, {"int16": "float32", "float64": "float32"}.get(dtype, dtype))
    expected = BANDS[dtype][[number - 1 for number in numbers]].transpose(1, 2, 0).astype(layout.dtype)
    np.testing.assert_array_equal(read(path, layout=layout), expected)
    means = expected.astype(np.float64).reshape(10, 2, 15, 2, -1).mean((1, 3))
    resampled = read(path, layout=layout, gsd=1)
    assert np.abs(resampled - means).max() <= (0.51 if layout.dtype != "float32" else 1e-3)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", 7), ("uint16", 7), ("int16", 7), ("int16", -99)]
    + [(dtype, nodata) for dtype in ("float32", "float64") for nodata in (7, -99, float("nan"), None)],
)
def test_nodata_and_what_is_no_number_are_not_valid(tmp_path, dtype, nodata):
    floating = dtype.startswith("float")
    bands = BANDS[dtype].copy()
    bands[bands == nodata] = 8
    bands[:, :4, :7] = np.nan if nodata is None else nodata  # in all bands
    bands[4, 10, :9] = np.nan if nodata is None else nodata  # in one
    if floating:
        bands[0, 12] = np.inf
    path = write_placed(tmp_path / "a.tif", bands, nodata=nodata)
    layout = Layout((1, 2, 5), "float32" if dtype == "int16" or floating else dtype)
    stored = bands[[0, 1, 4]].transpose(1, 2, 0).astype(np.float64)
    good = np.isfinite(stored) & (stored != nodata)
    good[:4, :7] = False
    with open_scene(path, layout=layout) as scene:
        assert scene.valid is not None
        np.testing.assert_array_equal(scene.valid(0, 20), good.any(-1))
        deep = layout.dtype == "float32"
        wanted = np.where(good, stored, np.nan) if deep else np.where(good.any(-1)[..., None], stored, 0)
        np.testing.assert_array_equal(scene.rows(1, 20), wanted[1:].astype(layout.dtype))
        assert (scene.values is None) == deep
        if scene.values is not None:
            np.testing.assert_array_equal(scene.values(1, 20), good[1:])
    with open_scene(path, layout=layout, gsd=1) as scene:
        assert scene.valid is not None
        count = good.reshape(10, 2, 15, 2, 3).sum((1, 3))
        pixels = good.any(-1).reshape(10, 2, 15, 2).sum((1, 3)) >= 2
        mean = np.where(good, stored, 0).reshape(10, 2, 15, 2, 3).sum((1, 3)) / np.maximum(count, 1)
        mean = np.where(pixels[..., None] & (count > 0), mean, np.nan if deep else 0)
        np.testing.assert_array_equal(scene.valid(2, 10), pixels[2:])
        np.testing.assert_allclose(scene.rows(2, 10), mean[2:], atol=1e-3 if deep else 0.51)
        if scene.values is not None:
            np.testing.assert_array_equal(scene.values(2, 10), (count >= 2)[2:])
    with open_scene(path, layout=layout._replace(numbers=(5,)), gsd=1) as scene:
        assert scene.valid is not None
        alone, count = np.where(good, stored, 0)[..., 2], good[..., 2].reshape(10, 2, 15, 2).sum((1, 3))
        mean = alone.reshape(10, 2, 15, 2).sum((1, 3)) / np.maximum(count, 1)
        np.testing.assert_array_equal(scene.valid(0, 10), count >= 2)
        expected = np.where(count >= 2, mean, np.nan if deep else 0)
        np.testing.assert_allclose(scene.rows(0, 10)[..., 0], expected, atol=1e-3 if deep else 0.51)


def test_alpha_counts_for_all_bands(tmp_path):
    opacity = np.where(rng.random((1, 20, 30)) < 0.5, 0, 65535).astype(np.uint16)
    bands = np.concatenate([BANDS["uint16"][:3], opacity])
    path = write_placed(tmp_path / "a.tif", bands, photometric="RGB", alpha="yes")
    with open_scene(path, layout=DEEP_LAYOUT) as scene:
        assert scene.valid is not None
        np.testing.assert_array_equal(scene.valid(3, 20), opacity[0, 3:] > 0)
        np.testing.assert_array_equal(scene.rows(3, 20), np.where(opacity > 0, bands[:3], 0).transpose(1, 2, 0)[3:])
    infrared = np.concatenate([BANDS["uint16"][:3], BANDS["uint16"][4:] // 2 * (opacity > 0)])
    path = write_placed(tmp_path / "b.tif", infrared, photometric="RGB", alpha="yes")
    layout = Layout((1, 2, 3, 4), "uint16", (1, 2, 3))
    assert layout_of(path) == layout
    with open_scene(path, layout=layout) as scene:
        assert scene.valid is None
        np.testing.assert_array_equal(scene.rows(0, 20), infrared.transpose(1, 2, 0))


@pytest.mark.parametrize("kind", ["a.png", "grey.png", "colours.tif", "grey.tif"])
def test_colours_lie_pixel_by_pixel_in_memory(tmp_path, kind):
    grey = BANDS["uint8"][:1]
    if kind.endswith("png"):
        Image.fromarray(RGB if kind == "a.png" else grey[0]).save(tmp_path / kind)
    else:
        write_placed(tmp_path / kind, grey, **({"photometric": "PALETTE"} if kind == "colours.tif" else {}))
    with open_scene(tmp_path / kind) as scene:
        rows = scene.rows(2, 11)
        assert rows.shape == (9, scene.width, 3)
        assert rows.flags.c_contiguous
    if kind.endswith("png"):
        with open_scene(tmp_path / kind, layout=Layout((1,), "uint8")) as scene:
            np.testing.assert_array_equal(scene.rows(2, 11), rows[..., :1])


def test_grey_that_is_repeated_is_read_once(tmp_path, monkeypatch):
    path, asked = write_placed(tmp_path / "a.tif", BANDS["uint8"][:1], nodata=9), []
    with open_scene(path) as scene:
        read = rasterio.DatasetReader.read
        monkeypatch.setattr(rasterio.DatasetReader, "read", lambda *a, **k: (asked.append(a[1]), read(*a, **k))[1])
        rows = scene.rows(0, 20)
    assert asked == [[1]]
    grey = BANDS["uint8"][0]
    np.testing.assert_array_equal(rows, np.stack([np.where(grey == 9, 0, grey)] * 3, -1))


def test_a_raster_is_never_read_whole(tmp_path):
    path = write_placed(tmp_path / "a.tif", np.zeros((6, 4096, 256), np.uint16), blockysize=64)
    layout = Layout((1, 2, 3, 4, 5, 6), "uint16")
    with open_scene(path, layout=layout):
        pass  # loads what is loaded once
    tracemalloc.start()
    try:
        with open_scene(path, layout=layout, gsd=1) as scene:
            scene.rows(100, 164)
        assert tracemalloc.get_traced_memory()[1] < 6 * 4096 * 256 * 2 / 2
    finally:
        tracemalloc.stop()


def test_resampling_looks_colours_up_and_leaves_nodata_out(tmp_path):
    ids = rng.integers(1, 256, (1, 20, 30), np.uint8)
    ids[0, :3, :3] = 0
    path = write_placed(tmp_path / "colours.tif", ids, photometric="PALETTE", nodata=0)
    table = np.stack([ids[0], 255 - ids[0], np.full_like(ids[0], 7)], -1).astype(float)
    with open_scene(path, gsd=1) as scene:
        assert scene.valid is not None
        result, valid = scene.rows(0, 10), scene.valid(0, 10)
    for i, j in np.ndindex(10, 15):
        block = table[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(4, 3)
        good = ids[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel() != 0
        assert valid[i, j] == (good.sum() >= 2)
        expected = block[good].mean(0) if valid[i, j] else np.zeros(3)
        assert np.abs(result[i, j] - expected).max() <= 0.5


def test_a_scene_of_nearly_the_wanted_resolution_is_left_alone(tmp_path):
    path = write_placed(tmp_path / "a.tif", RGB.transpose(2, 0, 1))
    np.testing.assert_array_equal(read(path, gsd=0.5003), RGB)
    assert read(path, gsd=0.51).shape == (20, 30, 3)


@pytest.mark.parametrize("gsd", [0.0, -1.0, float("nan")])
def test_no_pixel_has_such_a_size(tmp_path, gsd):
    path = write_placed(tmp_path / "a.tif", RGB.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="gsd must be above 0"), open_scene(path, gsd=gsd):
        pass


def test_resampling_needs_metres_and_enough_pixels(tmp_path):
    bands = RGB.transpose(2, 0, 1)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    write_placed(tmp_path / "degrees.tif", bands, CRS.from_epsg(4326), Affine(1e-5, 0, 8, 0, -1e-5, 50))
    write_placed(tmp_path / "none.tif", bands, None)
    write_placed(tmp_path / "a.tif", bands)
    for name, words in [
        ("a.png", "no georeference to resample by"),
        ("degrees.tif", "EPSG:4326 is not in metres"),
        ("none.tif", "no CRS to resample by"),
        ("a.tif", "16x10 pixels are too small for tiles of 20"),
    ]:
        with pytest.raises(UnusableImageError, match=words):
            read(tmp_path / name, gsd=1, min_size=20)
