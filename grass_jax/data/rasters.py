"""Read image files of any size as rows of some of their bands, at their own resolution or another."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from grass_jax.data.geotiff import (
    TIFF_SUFFIXES,
    Georeference,
    colour_table,
    georeference,
    looks_like_alpha,
    masked_values,
    open_raster,
    row_window,
    valid_rows,
)
from grass_jax.data.layout import RGB_LAYOUT, Layout, layout_of, picture_layout, read_bands
from grass_jax.data.limits import UnusableImageError, one_line
from grass_jax.data.pictures import JPEG_SUFFIXES, is_deep, no_pillow_limit, open_picture
from grass_jax.data.resampling import Rows, new_length, resample_rows, resample_valid

SUFFIXES = TIFF_SUFFIXES | JPEG_SUFFIXES | {".png"}
STRIP = 1 << 26  # pixels that are read at once to see whether they can be


def reason(error: Exception) -> str:
    """Why a file cannot be used, in the words of what went wrong."""
    if isinstance(error, UnusableImageError):
        return str(error)
    # rasterio's own words refer to the exception that it was raised from
    text = one_line(str(error.__cause__ or error.__context__ or error))
    return f"it is broken: {text or type(error).__name__}"


class Scene(NamedTuple):
    """An open image file.

    Attributes:
        height: height in pixels.
        width: width in pixels.
        rows: reads rows y0 to y1 as (y1 - y0, width, c) in the dtype of the layout; where `valid` is not, 0 in integers
            and NaN in floats, which are NaN in single bands as well, where they are nodata or no finite number.
        georeference: where the pixels lie; None for PNG, JPEG and plain TIFF.
        valid: reads which pixels of rows y0 to y1 hold an image by the file's nodata value, alpha channel or mask,
            (y1 - y0, width) bool; None where all of them do.
        values: reads which integers of rows y0 to y1 are not nodata in their band, (y1 - y0, width, c) bool; None where
            `valid` or NaN says as much.
        factors: height and width of a pixel in pixels of the file, other than 1 where it was resampled.
    """

    height: int
    width: int
    rows: Rows
    georeference: Georeference | None = None
    valid: Rows | None = None
    values: Rows | None = None
    factors: tuple[float, float] = (1.0, 1.0)


@contextlib.contextmanager
def open_scene(
    path: Path, *, layout: Layout = RGB_LAYOUT, min_size: int = 1, gsd: float | None = None, verify: bool = True
) -> Iterator[Scene]:
    """Open an image file, by default after making sure that all of its pixels can be read.

    Args:
        path: a file with one of `SUFFIXES`.
        layout: the bands to read and their dtype, c of them. Where these are the first three in 8 bits, grey is
            repeated; int8, int16, float16 and float64 are read as float32.
        min_size: smallest usable side in pixels, after resampling.
        gsd: resample to this ground sampling distance in metres (those of the file's CRS); None leaves it as stored.
        verify: read all pixels once, so that a broken file is found now and not half-way; pictures always are.

    Yields:
        the scene; values as stored (alpha is no band, palettes are looked up), upright by EXIF.

    Raises:
        UnusableImageError: if the file lacks a band, holds another dtype or has a side below `min_size`, or `gsd` is
            asked of one whose pixels have no size in metres; other errors where it is broken.
        ValueError: if `gsd` is not positive.
    """
    if gsd is not None and not gsd > 0:
        raise ValueError(f"gsd must be above 0 metres, not {gsd}.")
    if path.stat().st_size == 0:
        raise UnusableImageError("the file is empty")
    opened = _open_tiff(path, layout, verify) if path.suffix.lower() in TIFF_SUFFIXES else _open_picture(path, layout)
    with opened as stored:
        scene = stored if gsd is None else _resampled(stored, gsd)
        if min(scene.height, scene.width) < min_size:
            raise UnusableImageError(f"{scene.width}x{scene.height} pixels are too small for tiles of {min_size}")
        yield scene if scene.valid is None else scene._replace(rows=_filled(scene.rows, scene.valid))


def _filled(rows: Rows, valid: Rows) -> Rows:
    """Reads 0, or NaN in floats, where nothing is valid."""

    def read(y0: int, y1: int) -> np.ndarray:
        pixels = rows(y0, y1)
        nothing = pixels.dtype.type(np.nan if pixels.dtype.kind == "f" else 0)
        return np.where(valid(y0, y1)[..., None], pixels, nothing)

    return read


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
        return resample_rows(scene.rows, scene.values or scene.valid, y0, y1, size=size, factors=factors)

    def counted(stored: Rows | None) -> Rows | None:
        return stored and (lambda y0, y1: resample_valid(stored, y0, y1, size=size, factors=factors))

    grid = scene.georeference.scaled(factors)
    return Scene(height, width, rows, grid, counted(scene.valid), counted(scene.values), factors)


@contextlib.contextmanager
def _open_picture(path: Path, layout: Layout) -> Iterator[Scene]:
    with open_picture(path) as picture:
        if is_deep(picture):
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
            yield _deep_picture(path, layout, orientation)
            return
        channels = [band - 1 for band in read_bands(picture_layout(picture), layout)]
        colours, opacity = colour_picture(picture)

        def rows(y0: int, y1: int) -> np.ndarray:
            return _channels(picture_rows(colours, y0, y1), channels)

        def valid(y0: int, y1: int) -> np.ndarray:
            assert opacity is not None
            return picture_rows(opacity, y0, y1) > 0

        yield Scene(colours.height, colours.width, rows, valid=valid if opacity else None)


def _channels(colours: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """Channels of (h, w, 3), pixel by pixel in memory; all three, or grey in all three, are there already."""
    return colours if list(channels) in ([0, 1, 2], [0, 0, 0]) else np.take(colours, channels, axis=-1)


def _deep_picture(path: Path, layout: Layout, orientation: int) -> Scene:
    """A PNG of 16 bits a channel, decoded whole by GDAL: Pillow keeps the high bytes of colours alone."""
    stored = layout_of(path)
    bands = read_bands(stored, layout)
    with open_raster(path, "PNG") as raster:
        pixels = _turned(np.moveaxis(raster.read(bands), 0, -1), orientation)
        read_valid = valid_rows(raster, bands, _alpha(raster, stored))
        valid = None if read_valid is None else _turned(read_valid(0, raster.height), orientation)
    height, width = pixels.shape[:2]
    return Scene(
        height, width, lambda y0, y1: pixels[y0:y1], valid=None if valid is None else lambda y0, y1: valid[y0:y1]
    )


def _alpha(raster: Any, stored: Layout) -> int:
    """The alpha channel of a rasterio data set, which is the band that its layout leaves out; 0 where it has none."""
    return next((number for number in range(1, raster.count + 1) if number not in stored.numbers), 0)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (h, w, ...) as the value 1 to 8 of the EXIF tag says that they stand upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def upright(picture: Image.Image) -> Image.Image:
    """Decode a picture and turn it as its EXIF tag says.

    Raises:
        UnusableImageError: if there is not enough memory for it; others where it is broken.
    """
    try:
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
    except MemoryError:
        raise UnusableImageError(
            f"{picture.width}x{picture.height} pixels take more memory than there is: convert it to a GeoTIFF"
        ) from None
    except ValueError as error:  # of a chunk behind the pixels
        raise UnusableImageError(f"it is broken: {one_line(str(error))}") from error
    return picture


def colour_picture(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A picture as 8-bit RGB, upright, and its alpha channel where it has one."""
    picture = upright(picture)
    if "transparency" in picture.info or picture.mode in ("LA", "PA"):
        picture = picture.convert("RGBA")  # a palette with alpha has to pass through here, or Pillow warns
    opacity = picture.getchannel("A") if picture.mode == "RGBA" else None
    if opacity is not None:
        counts = opacity.histogram()
        if not looks_like_alpha(counts[0] + counts[255], sum(counts)):
            opacity = None
    return picture if picture.mode == "RGB" else picture.convert("RGB"), opacity


def picture_rows(picture: Image.Image, y0: int, y1: int) -> np.ndarray:
    """Rows y0 to y1 of a picture of any size, (y1 - y0, width) or (y1 - y0, width, c)."""
    with no_pillow_limit():
        return np.asarray(picture.crop((0, y0, picture.width, y1)))


@contextlib.contextmanager
def _open_tiff(path: Path, layout: Layout, verify: bool) -> Iterator[Scene]:
    stored = layout_of(path)
    bands = read_bands(stored, layout)
    with open_raster(path) as raster:
        palette = colour_table(raster)
        looked_at = list(dict.fromkeys(bands)) if palette is None else [1]  # grey that is repeated is read once
        masked = masked_values(raster, looked_at, _alpha(raster, stored))
        floating = any(np.dtype(raster.dtypes[band - 1]).kind == "f" for band in looked_at)

        def rows(y0: int, y1: int) -> np.ndarray:
            window = row_window(raster, y0, y1)
            if palette is not None:
                return _channels(palette[raster.read(1, window=window)], [band - 1 for band in bands])
            pixels = raster.read(looked_at, window=window, out_dtype=layout.dtype)
            if layout.dtype == "float32" and masked is not None:
                pixels[~masked(y0, y1)] = np.nan
            if floating:
                pixels[~np.isfinite(pixels)] = np.nan
            pixels = np.moveaxis(pixels, 0, -1)
            return pixels if len(looked_at) == len(bands) else np.repeat(pixels, len(bands), axis=-1)

        def values(y0: int, y1: int) -> np.ndarray:
            assert masked is not None
            return np.moveaxis(masked(y0, y1), 0, -1)

        def valid(y0: int, y1: int) -> np.ndarray:
            return (~np.isnan(rows(y0, y1)) if layout.dtype == "float32" else values(y0, y1)).max(axis=-1)

        scene = Scene(
            raster.height,
            raster.width,
            rows,
            georeference(raster),
            valid if floating or masked is not None else None,
            values if masked is not None and layout.dtype != "float32" and len(looked_at) > 1 else None,
        )
        if verify:
            # A truncated raster opens well and fails in the middle; once tiles are written they cannot be taken back.
            step = max(256, min(raster.block_shapes[0][0], STRIP // raster.width))
            for y in range(0, raster.height, step):
                for read in (rows, masked):
                    if read is not None:
                        read(y, min(y + step, raster.height))
        yield scene
