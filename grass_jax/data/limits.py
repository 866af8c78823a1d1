"""What is refused before it is decoded, so that a damaged or malicious file costs neither memory nor hours.

A scene of 30,000 x 30,000 pixels stays far below all of this: what counts is how much a file holds beside what it says.
"""

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageFile

# PNG and JPEG are decoded whole: 4 GB of memory at this size, and twice that with 16 bits a channel; GeoTIFFs are not.
MAX_PIXELS = 1_000_000_000
SMALL = 1 << 24  # pixels that may be in any file, however short
# Deflate, which PNG uses, packs at most 1,032 bytes into one. A JPEG needs a bit or more for 64 pixels.
PNG_RATIO, JPEG_RATIO = 1032, 512
MAX_STORED_BANDS = 4096  # hyperspectral sensors have hundreds
MAX_ROW = 1 << 23  # bytes of a row of the bands that are read: 1,000,000 pixels of 4 bands in 16 bits
MAX_BLOCK = 1 << 29  # bytes of a strip or tile, which GDAL unpacks as a whole
# Compressed nodata of the best method takes a byte for a few thousand, and a tile that is left out 16 for its place.
SMALL_RASTER, RASTER_RATIO = 1 << 26, 20_000


class UnusableImageError(Exception):
    """An image file that cannot be used; the message is the reason."""


def file_size(path: str | os.PathLike) -> int:
    """The size of a file in bytes.

    Raises:
        UnusableImageError: if it is a folder, or a pipe or device, which would be waited for.
        OSError: if it cannot be looked at.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableImageError("it is no regular file")
    return status.st_size


def one_line(text: str, most: int = 200) -> str:
    """The beginning of a decoder's message, which may hold what a file holds, as one line that a terminal can show."""
    line = " ".join(text.split())[:most]
    return line if line.isprintable() else ascii(line)


def check_picture(picture: ImageFile.ImageFile, size: int) -> None:
    """Refuse a PNG or JPEG that is not decoded yet and would take too much memory, or cannot be whole.

    Args:
        picture: as Pillow opens it.
        size: of its file in bytes.

    Raises:
        UnusableImageError: if it is above `MAX_PIXELS`, or the file too short for its pixels.
    """
    pixels = picture.width * picture.height
    if pixels > MAX_PIXELS:
        raise UnusableImageError(
            f"{picture.width}x{picture.height} pixels are above the limit of {MAX_PIXELS} for PNG and JPEG: "
            "convert it to a GeoTIFF"
        )
    stored = str(picture.tile[0][3]) if picture.tile else ""
    bits = 1 if ";" in stored or picture.mode in ("1", "P") else 8 * len(picture.getbands())
    most = size * PNG_RATIO * 8 // bits if picture.format == "PNG" else size * JPEG_RATIO
    if pixels > max(SMALL, most):
        raise UnusableImageError(_too_short(f"{picture.width}x{picture.height} pixels", size))


def check_raster(raster: Any, size: int) -> None:
    """Refuse a rasterio data set whose rows or blocks would take too much memory, or that says it is endless.

    Args:
        raster: the data set.
        size: of its file in bytes.

    Raises:
        UnusableImageError: if it has too many bands, rows that are too long, blocks that are too large, or more than
            `RASTER_RATIO` bytes of pixels for each byte of the file.
    """
    width, height, count = raster.width, raster.height, raster.count
    if count > MAX_STORED_BANDS:
        raise UnusableImageError(f"it has {count} bands, above the limit of {MAX_STORED_BANDS}: store fewer of them")
    depth = max((np.dtype(kind).itemsize for kind in raster.dtypes if kind != "complex_int16"), default=4)
    if width * height * count * depth > max(SMALL_RASTER, size * RASTER_RATIO):
        raise UnusableImageError(_too_short(f"{width}x{height} pixels of {count} band(s)", size))
    if width * min(count, 4) * depth > MAX_ROW:
        raise UnusableImageError(f"{width} pixels in a row take too much memory: divide it into several files")
    rows, columns = raster.block_shapes[0]
    block = rows * columns * depth * (1 if raster.interleaving and raster.interleaving.name == "band" else count)
    if block > MAX_BLOCK:
        raise UnusableImageError(
            f"its blocks of {columns}x{rows} pixels take {block / 2**20:.0f} MiB each, above the limit of "
            f"{MAX_BLOCK >> 20}: rewrite it in tiles (gdal_translate -co TILED=YES)"
        )


def _too_short(what: str, size: int) -> str:
    return f"it says that it has {what}, which a file of {size} bytes cannot hold: get the whole file again"
