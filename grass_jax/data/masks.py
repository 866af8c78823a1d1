"""Read mask files of any size as rows of class ids."""

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grass_jax.data.geotiff import (
    Georeference,
    colour_table,
    georeference,
    has_alpha,
    open_raster,
    row_window,
    valid_rows,
)
from grass_jax.data.labels import (
    IGNORE,
    Labels,
    UnknownLabelError,
    colour_codes,
    look_up,
    refuse_unknown,
)
from grass_jax.data.rasters import (
    JPEG_SUFFIXES,
    TIFF_SUFFIXES,
    UnusableImageError,
    colour_picture,
    open_picture,
    picture_rows,
    resampling_factors,
    upright,
)
from grass_jax.data.resampling import majority_rows, new_length


class Mask(NamedTuple):
    """An open mask.

    Attributes:
        height: height in pixels.
        width: width in pixels.
        rows: reads rows y0 to y1 as (y1 - y0, width) uint8 classes, IGNORE where a pixel does not count.
        georeference: where the pixels lie; None where the file does not say it.
    """

    height: int
    width: int
    rows: Callable[[int, int], np.ndarray]
    georeference: Georeference | None = None


# Reads rows y0 to y1 as (y1 - y0, width) ids or colour codes, and which of them count (None: all).
_Codes = Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]


@contextlib.contextmanager
def open_mask(
    path: Path,
    labels: Labels,
    *,
    gsd: float | None = None,
    factors: tuple[float, float] | None = None,
    name: str = "",
    verify: bool = True,
) -> Iterator[Mask]:
    """Open a mask file, by default after making sure that the labels explain all of its pixels.

    With ids as labels, a palette's indices, grey levels and the equal channels of a colour picture are ids; with
    colours as labels, palettes are looked up and grey levels are colours. What the file's nodata value, alpha channel
    or mask leaves out is IGNORE.

    Args:
        path: a PNG or GeoTIFF file.
        labels: what its ids or colours mean.
        gsd: resample to this ground sampling distance in metres, by the largest area in a pixel or the nearest; a mask
            that lies as its image does is then on the grid of `open_scene(image, gsd=gsd)`.
        factors: `Scene.factors` of the image, by which to resample a mask that has no CRS of its own.
        name: how messages call the file; empty for its path.
        verify: read all pixels once, so that an unknown label is found now and not half-way.

    Yields:
        the mask.

    Raises:
        UnknownLabelError: if it holds an id or a colour that is neither a class nor ignored.
        UnusableImageError: if the file is no mask; other errors where it is broken.
        ValueError: if `gsd` is not positive.
    """
    if gsd is not None and not gsd > 0:
        raise ValueError(f"gsd must be above 0 metres, not {gsd}.")
    if path.suffix.lower() in JPEG_SUFFIXES:
        raise UnusableImageError("JPEG changes ids and colours where classes meet: save masks as PNG or GeoTIFF")
    if path.stat().st_size == 0:
        raise UnusableImageError("the file is empty")
    name = name or os.fspath(path)
    opened = _open_tiff if path.suffix.lower() in TIFF_SUFFIXES else _open_png
    with opened(path, labels, name) as (size, grid, read):

        def rows(y0: int, y1: int) -> np.ndarray:
            decoded, unknown = _decode(*read(y0, y1), labels)
            refuse_unknown(unknown, labels, name)
            return decoded

        if verify:
            found = Counter()
            for y in range(0, size[0], 512):
                found += _decode(*read(y, min(y + 512, size[0])), labels)[1]
            refuse_unknown(found, labels, name)
        stored = Mask(*size, rows, grid)
        yield stored if gsd is None else _resampled(stored, gsd, factors)


def _decode(codes: np.ndarray, counted: np.ndarray | None, labels: Labels) -> tuple[np.ndarray, Counter[int]]:
    if counted is None:
        return look_up(codes, labels)
    some = next(iter(labels.known))  # what does not count may hold anything
    decoded, unknown = look_up(np.where(counted, codes, codes.dtype.type(some)), labels)
    return np.where(counted, decoded, np.uint8(IGNORE)), unknown


def _resampled(mask: Mask, gsd: float, factors: tuple[float, float] | None) -> Mask:
    size, grid = (mask.height, mask.width), mask.georeference
    if factors is None or (grid is not None and grid.gsd is not None):
        factors = resampling_factors(grid, size, gsd)
    if factors == (1.0, 1.0):
        return mask
    height, width = (new_length(length, factor) for length, factor in zip(size, factors, strict=True))
    rows = functools.partial(majority_rows, mask.rows, size=size, factors=factors)
    return Mask(height, width, rows, grid and grid.scaled(factors))


@contextlib.contextmanager
def _open_png(path: Path, labels: Labels, name: str) -> Iterator[tuple[tuple[int, int], None, _Codes]]:
    with open_picture(path, formats=("PNG",)) as picture:
        stored = str(picture.tile[0][3])  # Pillow's name of the samples in the file, such as "L;4"; gone once decoded
        if "16" in stored and not picture.mode.startswith("I"):
            raise UnusableImageError("it holds colours of 16 bits a channel: save masks as 8-bit colours or as ids")
        if labels.by_colour:
            colours, opacity = colour_picture(picture)
        else:
            colours, opacity = upright(picture), None
            if picture.mode in ("LA", "RGBA"):
                opacity = picture.getchannel("A")
        # Pillow stretches grey of 2 and 4 bits over 0 to 255.
        stretch = {"L;2": 85, "L;4": 17}.get(stored, 1) if not labels.by_colour else 1

        def read(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
            pixels = picture_rows(colours, y0, y1)
            codes = colour_codes(pixels) if labels.by_colour else _ids(pixels, name) // stretch
            return codes, None if opacity is None else picture_rows(opacity, y0, y1) > 0

        yield (colours.height, colours.width), None, read


@contextlib.contextmanager
def _open_tiff(path: Path, labels: Labels, name: str) -> Iterator[tuple[tuple[int, int], Georeference | None, _Codes]]:
    with open_raster(path) as raster:
        if raster.count == 2 and not has_alpha(raster):
            raise UnusableImageError("it has 2 bands: save one of ids or three of colours")
        bands = [1, 2, 3] if raster.count >= 3 else [1]
        kinds = {np.dtype(raster.dtypes[band - 1]) for band in bands}
        if any(kind.kind not in "iu" for kind in kinds):
            raise UnusableImageError(f"it holds {raster.dtypes[0]}: convert it to whole ids or to 8-bit colours")
        if labels.by_colour and kinds != {np.dtype(np.uint8)}:
            raise UnusableImageError(f"it holds {raster.dtypes[0]} and the labels are colours: convert it to 8 bits")
        palette = colour_table(raster) if labels.by_colour else None
        counted = valid_rows(raster, bands)
        _check_nodata(raster, labels, palette, name)

        def read(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
            pixels = np.moveaxis(raster.read(bands, window=row_window(raster, y0, y1)), 0, -1)
            if labels.by_colour:
                grey = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
                codes = colour_codes(grey if palette is None else palette[pixels[..., 0]])
            else:
                codes = _ids(pixels, name)
            return codes, counted and counted(y0, y1)

        yield (raster.height, raster.width), georeference(raster), read


def _ids(pixels: np.ndarray, name: str) -> np.ndarray:
    """Ids of pixels (h, w) or (h, w, c); colours that are grey throughout were ids before somebody converted them."""
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.ndim == 2:
        return pixels
    first = pixels[..., 0]
    if pixels.shape[2] >= 3 and any((pixels[..., i] != first).any() for i in (1, 2)):
        raise UnknownLabelError(
            f'mask {name} holds colours, not ids: give a colour "#RRGGBB" for each class as mask_values'
        )
    return first


def _check_nodata(raster: Any, labels: Labels, palette: np.ndarray | None, name: str) -> None:
    """Refuse a nodata value that is a class: one of the two is a mistake, and a class would be lost without a word."""
    value = raster.nodata
    if value is None or not float(value).is_integer():
        return
    code = int(value)
    if labels.by_colour:
        if not 0 <= code <= 255:
            return
        code = int(colour_codes(palette[code] if palette is not None else np.full(3, code, np.uint8)))
    class_id = labels.known.get(code, IGNORE)
    if class_id != IGNORE:
        raise UnknownLabelError(
            f"mask {name} has the nodata value {value:g}, which is also the class {labels.classes[class_id]}: remove "
            "it from the file (gdal_edit.py -unsetnodata), or add it to ignore"
        )
