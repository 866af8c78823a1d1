"""Read image files of any size as rows of 8-bit RGB, at their own resolution or another."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from grass_jax.data.geotiff import (
    Georeference,
    colour_table,
    georeference,
    looks_like_alpha,
    open_raster,
    row_window,
    valid_rows,
)
from grass_jax.data.resampling import new_length, resample_rows, resample_valid

MAX_PIXELS = 1_000_000_000  # PNG and JPEG are decoded whole: 4 GB of memory at this size; a GeoTIFF has no limit
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})
SUFFIXES = TIFF_SUFFIXES | JPEG_SUFFIXES | {".png"}


class UnusableImageError(Exception):
    """An image file that cannot be used; the message is the reason."""


def reason(error: Exception) -> str:
    """Why a file cannot be used, in the words of what went wrong."""
    if isinstance(error, UnusableImageError):
        return str(error)
    # rasterio's own words refer to the exception that it was raised from
    text = " ".join(str(error.__cause__ or error.__context__ or error).split())[:200]
    return f"it is broken: {text or type(error).__name__}"


class Scene(NamedTuple):
    """An open image file.

    Attributes:
        height: height in pixels.
        width: width in pixels.
        rows: reads rows y0 to y1 as (y1 - y0, width, 3) uint8.
        georeference: where the pixels lie; None for PNG, JPEG and plain TIFF.
        valid: reads which pixels of rows y0 to y1 hold an image by the file's nodata value, alpha channel or mask,
            (y1 - y0, width) bool; None where all of them do.
        factors: height and width of a pixel in pixels of the file, other than 1 where it was resampled.
    """

    height: int
    width: int
    rows: Callable[[int, int], np.ndarray]
    georeference: Georeference | None = None
    valid: Callable[[int, int], np.ndarray] | None = None
    factors: tuple[float, float] = (1.0, 1.0)


@contextlib.contextmanager
def open_scene(path: Path, *, min_size: int = 1, gsd: float | None = None, verify: bool = True) -> Iterator[Scene]:
    """Open an image file, by default after making sure that all of its pixels can be read.

    Args:
        path: a file with one of `SUFFIXES`.
        min_size: smallest usable side in pixels, after resampling.
        gsd: resample to this ground sampling distance in metres (those of the file's CRS); None leaves it as stored.
        verify: read all pixels once, so that a broken file is found now and not half-way; pictures always are.

    Yields:
        the scene; colours as stored (alpha is dropped, grey is repeated, palettes are looked up), upright by EXIF.

    Raises:
        UnusableImageError: if the file is no 8-bit image of at least `min_size`, or `gsd` is asked of one whose
            pixels have no size in metres; other errors where it is broken.
        ValueError: if `gsd` is not positive.
    """
    if gsd is not None and not gsd > 0:
        raise ValueError(f"gsd must be above 0 metres, not {gsd}.")
    if path.stat().st_size == 0:
        raise UnusableImageError("the file is empty")
    opened = _open_tiff(path, verify) if path.suffix.lower() in TIFF_SUFFIXES else _open_picture(path)
    with opened as stored:
        scene = stored if gsd is None else _resampled(stored, gsd)
        if min(scene.height, scene.width) < min_size:
            raise UnusableImageError(f"{scene.width}x{scene.height} pixels are too small for tiles of {min_size}")
        yield scene


def resampling_factors(grid: Georeference | None, size: tuple[int, int], gsd: float) -> tuple[float, float]:
    """Height and width of a pixel of `gsd` metres in stored pixels.

    Args:
        grid: where the stored pixels lie.
        size: height and width of the file in pixels.
        gsd: ground sampling distance in metres, above 0.

    Returns:
        the factors of `grass_jax.data.resampling`; ones where no pixel of the file would move by half of itself.

    Raises:
        UnusableImageError: if the file does not say how many metres a pixel has.
    """
    if grid is None:
        raise UnusableImageError("it has no georeference to resample by: convert it to a GeoTIFF or leave gsd unset")
    try:
        factors = grid.factors(gsd)
    except ValueError as error:
        raise UnusableImageError(str(error)) from None
    near = all(abs(factor - 1) * length < 0.5 for factor, length in zip(factors, size, strict=True))
    return (1.0, 1.0) if near else factors


def _resampled(scene: Scene, gsd: float) -> Scene:
    size = scene.height, scene.width
    factors = resampling_factors(scene.georeference, size, gsd)
    if factors == (1.0, 1.0) or scene.georeference is None:
        return scene
    height, width = new_length(size[0], factors[0]), new_length(size[1], factors[1])

    def rows(y0: int, y1: int) -> np.ndarray:
        return resample_rows(scene.rows, scene.valid, y0, y1, size=size, factors=factors)

    def valid(y0: int, y1: int) -> np.ndarray:
        assert scene.valid is not None
        return resample_valid(scene.valid, y0, y1, size=size, factors=factors)

    return Scene(height, width, rows, scene.georeference.scaled(factors), scene.valid and valid, factors)


@contextlib.contextmanager
def _open_picture(path: Path) -> Iterator[Scene]:
    with open_picture(path) as picture:
        # Pillow reads 16-bit RGB as its high bytes, dark for 11-bit and 12-bit sensors: refused like 16-bit grey.
        stored = " ".join(str(tile[3]) for tile in picture.tile)
        if picture.mode.startswith(("I", "F")) or "16" in stored:
            raise UnusableImageError("it holds 16 bits a channel: convert it to 8 bits")
        colours, opacity = colour_picture(picture)

        def rows(y0: int, y1: int) -> np.ndarray:
            return picture_rows(colours, y0, y1)

        def valid(y0: int, y1: int) -> np.ndarray:
            assert opacity is not None
            return picture_rows(opacity, y0, y1) > 0

        yield Scene(colours.height, colours.width, rows, valid=valid if opacity else None)


@contextlib.contextmanager
def open_picture(path: Path, formats: tuple[str, ...] = ("PNG", "JPEG")) -> Iterator[ImageFile.ImageFile]:
    """Open a PNG or JPEG up to `MAX_PIXELS` without decoding it.

    Args:
        path: the file.
        formats: Pillow's names of the formats to accept; JPEG includes MPO, a JPEG of several pictures.

    Yields:
        the picture as Pillow opens it; `upright` decodes it.

    Raises:
        UnusableImageError: if it is none of the formats or above `MAX_PIXELS`.
    """
    with contextlib.ExitStack() as stack:
        try:
            with _no_pillow_limit():
                picture = stack.enter_context(Image.open(path, formats=formats))
        except Image.UnidentifiedImageError:
            raise UnusableImageError(f"it is no readable {' or '.join(formats)} file") from None
        if picture.width * picture.height > MAX_PIXELS:
            raise UnusableImageError(
                f"{picture.width}x{picture.height} pixels are above the limit of {MAX_PIXELS} for PNG and JPEG: "
                "convert it to a GeoTIFF"
            )
        yield picture


def upright(picture: Image.Image) -> Image.Image:
    """Decode a picture and turn it as its EXIF tag says."""
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def colour_picture(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A picture as 8-bit RGB, upright, and its alpha channel where it has one."""
    picture = upright(picture)
    if "transparency" in picture.info or picture.mode in ("LA", "PA"):
        picture = picture.convert("RGBA")  # a palette with alpha has to pass through here, or Pillow warns
    opacity = picture.getchannel("A") if picture.mode == "RGBA" else None
    if opacity is not None and not looks_like_alpha(np.array(opacity.histogram())):
        opacity = None
    return picture if picture.mode == "RGB" else picture.convert("RGB"), opacity


def picture_rows(picture: Image.Image, y0: int, y1: int) -> np.ndarray:
    """Rows y0 to y1 of a picture of any size, (y1 - y0, width) or (y1 - y0, width, c)."""
    with _no_pillow_limit():
        return np.asarray(picture.crop((0, y0, picture.width, y1)))


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
def _open_tiff(path: Path, verify: bool) -> Iterator[Scene]:
    with open_raster(path) as raster:
        bands = [1, 2, 3] if raster.count >= 3 else [1]
        kinds = {raster.dtypes[band - 1] for band in bands}
        if kinds != {"uint8"}:
            raise UnusableImageError(f"it holds {' and '.join(sorted(kinds))}: convert it to 8 bits")
        palette = colour_table(raster)

        def rows(y0: int, y1: int) -> np.ndarray:
            colours = np.moveaxis(raster.read(bands, window=row_window(raster, y0, y1)), 0, -1)
            if palette is not None:
                return palette[colours[..., 0]]
            return colours if len(bands) == 3 else np.repeat(colours, 3, axis=2)

        scene = Scene(raster.height, raster.width, rows, georeference(raster), valid_rows(raster, bands))
        if verify:
            # A truncated raster opens well and fails in the middle; once tiles are written they cannot be taken back.
            step = max(256, raster.block_shapes[0][0])
            for y in range(0, raster.height, step):
                for read in (scene.rows, scene.valid):
                    if read is not None:
                        read(y, min(y + step, raster.height))
        yield scene
