import struct
import zlib

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from grass_jax.data import rasters
from grass_jax.data.rasters import UnusableImageError, open_scene

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (20, 31, 3), np.uint8)


def read(path, **options):
    with open_scene(path, **options) as scene:
        whole = scene.rows(0, scene.height)
        np.testing.assert_array_equal(scene.rows(3, 9), whole[3:9])
        assert whole.shape == (scene.height, scene.width, 3)
        assert whole.dtype == np.uint8
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


def test_exif_orientation_gives_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter when stored
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.rot90(RGB, -1))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
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


def test_sixteen_bits_are_refused_with_the_way_out(tmp_path):
    Image.fromarray(RGB[..., 0].astype(np.uint16) * 9).save(tmp_path / "grey.png")
    write_tiff(tmp_path / "a.tif", RGB.astype(np.uint16).transpose(2, 0, 1))
    # Pillow cannot write 16-bit colour, so the PNG is put together here.
    header = struct.pack(">IIBBBBB", 31, 20, 16, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB))
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    (tmp_path / "colour.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    for name in ("grey.png", "colour.png", "a.tif"):
        with pytest.raises(UnusableImageError, match="convert it to 8 bits"):
            read(tmp_path / name)


def test_pictures_above_the_limit_are_refused(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(rasters, "MAX_PIXELS", 20 * 31)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit does not decide
    read(tmp_path / "a.png", min_size=20)
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(rasters, "MAX_PIXELS", 20 * 31 - 1)
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
