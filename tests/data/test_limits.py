import os
import struct
import zlib

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

from grass_jax.data import limits
from grass_jax.data.geotiff import open_raster
from grass_jax.data.limits import UnusableImageError, one_line
from grass_jax.data.pictures import open_picture
from grass_jax.data.rasters import open_scene

FLAT = np.full((1200, 1000, 3), 7, np.uint8)


def png(width, height, kind=2, depth=8, data=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(width, height, bands=1, compression=1, rows=1, side=None):
    """A TIFF that says these things and holds nothing."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, bands), (278, 4, 1, rows), (279, 4, 1, 0)]
    if side:
        tags = [tag for tag in tags if tag[0] not in (273, 278, 279)]
        tags += [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8), (325, 4, 1, 0)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<4sIH", b"II*\0", 8, len(tags)) + entries + bytes(4)


def scene(path):
    with open_scene(path) as opened:
        return opened.rows(0, opened.height)


@pytest.mark.parametrize(("width", "height"), [(60_000, 10_000), (30_000, 30_000), (1, 999_999_999)])
def test_a_picture_that_is_too_short_for_its_pixels_is_not_decoded(tmp_path, monkeypatch, width, height):
    def decoded(self):
        raise AssertionError("was decoded")

    (tmp_path / "a.png").write_bytes(png(width, height, data=bytes(1 << 20)))
    monkeypatch.setattr(Image.Image, "load", decoded)
    with pytest.raises(
        UnusableImageError, match=rf"^it says that it has {width}x{height} pixels, which a file of \d+ "
    ):
        scene(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["RGB", "L", "1", "P", "RGBA", "jpeg", "grey jpeg", "progressive jpeg"])
def test_the_flattest_pictures_are_read(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(limits, "SMALL", 0)
    image = Image.fromarray(FLAT)
    if "jpeg" in kind:
        path = tmp_path / "a.jpg"
        image = image.convert("L") if "grey" in kind else image
        image.save(path, quality=1, optimize=True, progressive="progressive" in kind)
    else:
        path = tmp_path / "a.png"
        image.convert(kind).save(path, compress_level=9)
    assert scene(path).shape == FLAT.shape


def test_memory_that_is_lacking_is_one_sentence(tmp_path, monkeypatch):
    def lacking(self):
        raise MemoryError

    Image.fromarray(FLAT).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lacking)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lacking)
    with pytest.raises(UnusableImageError, match=r"^1000x1200 pixels take more memory than there is: convert it to a"):
        scene(tmp_path / "a.png")


@pytest.mark.parametrize("compress", ["deflate", "lzw", "zstd", "lzma"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_flattest_rasters_are_read(tmp_path, monkeypatch, compress, sparse):
    monkeypatch.setattr(limits, "SMALL_RASTER", 0)
    profile = {"width": 2048, "height": 2048, "count": 3, "dtype": "uint8", "tiled": True, "crs": CRS.from_epsg(32611)}
    profile |= {"blockxsize": 256, "blockysize": 256, "transform": Affine(1, 0, 4e5, 0, -1, 4e6), "sparse_ok": sparse}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", compress=compress, **profile) as raster:
        raster.write(np.zeros((3, 2048, 2048), np.uint8))
    assert scene(tmp_path / "a.tif").shape == (2048, 2048, 3)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (
            {"width": 30_000, "height": 30_000},
            r"it says that it has 30000x30000 pixels of 1 band\(s\), which a file of",
        ),
        ({"width": 2**31 - 1, "height": 2**31 - 1}, "it says that it has 2147483647x2147483647"),
        ({"width": 64, "height": 64, "bands": 60_000, "rows": 64}, "it has 60000 bands, above the limit of 4096"),
        ({"width": 2**25, "height": 1}, "33554432 pixels in a row take too much memory"),
        (
            {"width": 100, "height": 100, "side": 2**15, "compression": 8},
            "its blocks of 32768x32768 pixels take 1024 MiB",
        ),
    ],
)
def test_a_raster_that_says_too_much_is_not_decoded(tmp_path, monkeypatch, says, words):
    (tmp_path / "a.tif").write_bytes(tiff(**says))
    with pytest.raises(UnusableImageError, match=f"^{words}"):
        scene(tmp_path / "a.tif")


def test_a_scene_of_30000_pixels_a_side_has_no_limit(tmp_path):
    profile = {"width": 30_000, "height": 30_000, "dtype": "uint16", "count": 4, "crs": CRS.from_epsg(32611)}
    profile |= {"transform": Affine(1, 0, 4e5, 0, -1, 4e6), "compress": "deflate", "sparse_ok": True}
    for name, tiling in {"tiles": {"tiled": True, "blockxsize": 512, "blockysize": 512}, "strips": {}}.items():
        path = tmp_path / f"{name}.tif"
        with rasterio.open(path, "w", driver="GTiff", **profile, **tiling) as raster:
            raster.write(np.ones((4, 512, 512), np.uint16), window=((0, 512), (0, 512)))
        with path.open("ab") as file:
            file.truncate(1 << 19)  # an empty scene is nearly nothing: half a megabyte stands for its pixels
        with open_raster(path) as raster:
            assert (raster.height, raster.width, raster.count) == (30_000, 30_000, 4)


def test_pipes_are_not_waited_for(tmp_path):
    for name in ("a.png", "a.tif"):
        os.mkfifo(tmp_path / name)
    for opened in (open_picture(tmp_path / "a.png"), open_raster(tmp_path / "a.tif"), open_picture(tmp_path)):
        with pytest.raises(UnusableImageError, match=r"^it is no regular file$"), opened:
            pass


def test_a_decoders_words_are_one_line_that_a_terminal_can_show():
    assert one_line("a\n b \t c" * 100) == ("a b c" * 100)[:200]
    assert one_line("tag \x1b[31m") == r"'tag \x1b[31m'"
