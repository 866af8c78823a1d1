"""Read image files of any size as rows of 8-bit RGB."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 1_000_000_000  # PNG and JPEG are decoded whole: 4 GB of memory at this size; a GeoTIFF has no limit
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
SUFFIXES = TIFF_SUFFIXES | {".png", ".jpg", ".jpeg"}


class UnusableImageError(Exception):
    """An image file that cannot be used; the message is the reason."""


class Scene(NamedTuple):
    """An open image file: its size in pixels, and a function that reads rows y0 to y1 as (y1 - y0, width, 3) uint8."""

    height: int
    width: int
    rows: Callable[[int, int], np.ndarray]


@contextlib.contextmanager
def open_scene(path: Path, *, min_size: int = 1) -> Iterator[Scene]:
    """Open an image file after making sure that all of its pixels can be read.

    Args:
        path: a file with one of `SUFFIXES`.
        min_size: smallest usable side in pixels.

    Yields:
        the scene; colours as stored (alpha is dropped, grey is repeated, palettes are looked up), upright by EXIF.

    Raises:
        UnusableImageError: if the file is no 8-bit image of at least `min_size`; other errors where it is broken.
    """
    if path.stat().st_size == 0:
        raise UnusableImageError("the file is empty")
    opened = _open_tiff(path, min_size) if path.suffix.lower() in TIFF_SUFFIXES else _open_picture(path, min_size)
    with opened as scene:
        yield scene


def _check_size(height: int, width: int, min_size: int) -> None:
    if min(height, width) < min_size:
        raise UnusableImageError(f"{width}x{height} pixels are too small for tiles of {min_size}")


@contextlib.contextmanager
def _open_picture(path: Path, min_size: int) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        try:
            with _no_pillow_limit():
                picture = stack.enter_context(Image.open(path, formats=("PNG", "JPEG", "MPO")))
        except Image.UnidentifiedImageError:
            raise UnusableImageError("it is no readable PNG or JPEG file") from None
        if picture.width * picture.height > MAX_PIXELS:
            raise UnusableImageError(
                f"{picture.width}x{picture.height} pixels are above the limit of {MAX_PIXELS} for PNG and JPEG: "
                "convert it to a GeoTIFF"
            )
        _check_size(picture.height, picture.width, min_size)
        # Pillow reads 16-bit RGB as its high bytes, dark for 11-bit and 12-bit sensors: refused like 16-bit grey.
        stored = " ".join(str(tile[3]) for tile in picture.tile)
        if picture.mode.startswith(("I", "F")) or "16" in stored:
            raise UnusableImageError("it holds 16 bits a channel: convert it to 8 bits")
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        upright: Image.Image = picture
        if "transparency" in upright.info:
            upright = upright.convert("RGBA")  # a palette with alpha has to pass through here, or Pillow warns
        if upright.mode != "RGB":
            upright = upright.convert("RGB")

        def rows(y0: int, y1: int) -> np.ndarray:
            with _no_pillow_limit():
                return np.asarray(upright.crop((0, y0, upright.width, y1)))

        yield Scene(upright.height, upright.width, rows)


@contextlib.contextmanager
def _no_pillow_limit() -> Iterator[None]:
    """Lift Pillow's own limit, which is below a legitimate scene of 20000x20000."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextlib.contextmanager
def _open_tiff(path: Path, min_size: int) -> Iterator[Scene]:
    import rasterio  # GDAL loads slowly, and most runs read no raster
    from rasterio.enums import ColorInterp
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.windows import Window

    with contextlib.ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a plain TIFF is as good here
            raster = stack.enter_context(rasterio.open(path, driver="GTiff"))
        bands = [1, 2, 3] if raster.count >= 3 else [1, 1, 1]
        kinds = {raster.dtypes[band - 1] for band in bands}
        if kinds != {"uint8"}:
            raise UnusableImageError(f"it holds {' and '.join(sorted(kinds))}: convert it to 8 bits")
        _check_size(raster.height, raster.width, min_size)
        palette = None
        if raster.count == 1 and raster.colorinterp[0] == ColorInterp.palette:
            colours = raster.colormap(1)
            palette = np.array([colours.get(i, (0, 0, 0))[:3] for i in range(256)], np.uint8)
        elif raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1":
            palette = np.repeat(np.array([[0], [255]], np.uint8), 3, axis=1)

        def rows(y0: int, y1: int) -> np.ndarray:
            window = Window(0, y0, raster.width, y1 - y0)  # pyright: ignore[reportCallIssue]
            if palette is not None:
                return palette[raster.read(1, window=window)]
            if bands[0] == bands[-1]:
                return np.repeat(raster.read(1, window=window)[..., None], 3, axis=2)
            return np.moveaxis(raster.read(bands, window=window), 0, -1)

        # A truncated raster opens well and fails in the middle; once tiles are written they cannot be taken back.
        step = max(256, raster.block_shapes[0][0])
        for y in range(0, raster.height, step):
            rows(y, min(y + step, raster.height))
        yield Scene(raster.height, raster.width, rows)
