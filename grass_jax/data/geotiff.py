"""GeoTIFF files: opening them, where their pixels lie, and which of their pixels count."""

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grass_jax.data.limits import check_raster, file_size

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
# GDAL keeps what it has read, by default up to 5 % of the machine's memory: a scene as a whole where that is large. It
# takes this, in megabytes, when it is first used.
os.environ.setdefault("GDAL_CACHEMAX", "256")


class Georeference(NamedTuple):
    """Where the pixels of a file lie: a rasterio CRS or None, and the affine map from (column, row) to its units."""

    crs: Any
    transform: Any

    @property
    def gsd(self) -> float | None:
        """Ground sampling distance in metres of the CRS, the side of a square as large as a pixel; None if unknown."""
        sides = self.pixel_sides
        # Not the product of the sides: the axes of a sheared grid are not at right angles.
        return None if sides is None else math.sqrt(abs(self.transform.determinant)) * self._unit

    @property
    def pixel_sides(self) -> tuple[float, float] | None:
        """Height and width of a pixel in metres of the CRS, in the directions of the grid; None if unknown."""
        if not self.crs or not self.crs.is_projected:
            return None
        t = self.transform
        return math.hypot(t.b, t.e) * self._unit, math.hypot(t.a, t.d) * self._unit

    @property
    def _unit(self) -> float:
        return self.crs.linear_units_factor[1]

    def factors(self, gsd: float) -> tuple[float, float]:
        """Height and width of a square pixel of `gsd` metres in pixels of this grid.

        Args:
            gsd: ground sampling distance in metres.

        Returns:
            the factors of `grass_jax.data.resampling`.

        Raises:
            ValueError: if the CRS does not say how many metres a pixel has.
        """
        sides = self.pixel_sides
        if sides is None:
            what = f"its CRS {self.crs.to_string()} is not in metres" if self.crs else "it has no CRS"
            raise ValueError(f"{what} to resample by: reproject it to a projected CRS or leave gsd unset")
        return gsd / sides[0], gsd / sides[1]

    def scaled(self, factors: tuple[float, float]) -> "Georeference":
        """The grid whose pixels are `factors` (height, width) as large, with the same upper left corner."""
        a, b, c, d, e, f = self.transform[:6]
        # Written out, as affine 2 multiplies transforms by `*` and affine 3 by `@`.
        scaled = a * factors[1], b * factors[0], c, d * factors[1], e * factors[0], f
        return Georeference(self.crs, type(self.transform)(*scaled))


@contextlib.contextmanager
def open_raster(path: Path, driver: str = "GTiff") -> Iterator[Any]:
    """Open a TIFF, or a file of another of GDAL's drivers, as a rasterio data set; it needs no georeference.

    Raises:
        UnusableImageError: if it is refused by `limits.check_raster`; rasterio's errors where it is broken.
    """
    import rasterio  # GDAL loads slowly, and most runs read no raster
    from rasterio.errors import NotGeoreferencedWarning

    size = file_size(path)
    with contextlib.ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            raster = stack.enter_context(rasterio.open(path, driver=driver))
        check_raster(raster, size)
        yield raster


@contextlib.contextmanager
def quiet_gdal() -> Iterator[None]:
    """Keep GDAL's notes, which the reason of a skipped file repeats, out of the log."""
    gdal = logging.getLogger("rasterio")
    level = gdal.level
    gdal.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        gdal.setLevel(level)


def georeference(raster: Any) -> Georeference | None:
    """Where the pixels of a rasterio data set lie; None where it has neither a CRS nor a transform."""
    crs = raster.crs or None
    return None if crs is None and raster.transform.is_identity else Georeference(crs, raster.transform)


def row_window(raster: Any, y0: int, y1: int) -> Any:
    """The whole rows y0 to y1 of a rasterio data set, as a window."""
    from rasterio.windows import Window

    return Window(0, y0, raster.width, y1 - y0)  # pyright: ignore[reportCallIssue]


def colour_table(raster: Any) -> np.ndarray | None:
    """What the values of a single band look like, (k, 3) uint8; None where they are grey levels or colours."""
    from rasterio.enums import ColorInterp

    if raster.count == 1 and raster.colorinterp[0] == ColorInterp.palette:
        colours, size = raster.colormap(1), np.iinfo(raster.dtypes[0]).max + 1
        return np.array([colours.get(i, (0, 0, 0))[:3] for i in range(size)], np.uint8)
    if raster.count == 1 and raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1":
        return np.repeat(np.array([[0], [255]], np.uint8), 3, axis=1)
    return None


def masked_values(
    raster: Any, bands: Sequence[int], alpha: int | None = None
) -> Callable[[int, int], np.ndarray] | None:
    """A function that reads which values count by the nodata value, the alpha channel or the mask of a data set.

    Args:
        raster: a rasterio data set.
        bands: the bands to look at, from 1.
        alpha: what `alpha_band` finds, where that is known.

    Returns:
        reads rows y0 to y1 as (len(bands), y1 - y0, width) bool; None where every value counts.
    """
    from rasterio.enums import MaskFlags
    from rasterio.errors import NodataShadowWarning

    bands = list(bands)
    flags = {flag for band in bands for flag in raster.mask_flag_enums[band - 1]}
    if flags == {MaskFlags.all_valid}:
        return None
    if MaskFlags.alpha in flags and not (alpha_band(raster) if alpha is None else alpha):
        return None

    def read(y0: int, y1: int) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NodataShadowWarning)  # near infrared that passes for alpha, see below
            return raster.read_masks(bands, window=row_window(raster, y0, y1)) > 0

    return read


def valid_rows(raster: Any, bands: Sequence[int], alpha: int | None = None) -> Callable[[int, int], np.ndarray] | None:
    """A function that reads which pixels count: those with a value that does, see `masked_values`, and is finite.

    Args:
        raster: a rasterio data set.
        bands: the bands to look at, from 1.
        alpha: what `alpha_band` finds, where that is known.

    Returns:
        reads rows y0 to y1 as (y1 - y0, width) bool; None where every pixel counts.
    """
    bands, masked = list(bands), masked_values(raster, bands, alpha)
    floating = any(np.dtype(raster.dtypes[band - 1]).kind == "f" for band in bands)
    if masked is None and not floating:
        return None

    def read(y0: int, y1: int) -> np.ndarray:
        good = np.ones((len(bands), y1 - y0, raster.width), bool) if masked is None else masked(y0, y1)
        if floating:
            good = good & np.isfinite(raster.read(bands, window=row_window(raster, y0, y1)))
        return good.max(axis=0)

    return read


def has_alpha(raster: Any) -> bool:
    """Whether a band of a rasterio data set is tagged as alpha."""
    from rasterio.enums import ColorInterp

    return ColorInterp.alpha in raster.colorinterp


def alpha_band(raster: Any) -> int:
    """Number, from 1, of the alpha channel of a rasterio data set; 0 where none is, or other values pass for one."""
    from rasterio.enums import ColorInterp

    if not has_alpha(raster):
        return 0
    band = raster.colorinterp.index(ColorInterp.alpha) + 1
    lines = sorted({int((i + 0.5) * raster.height / 16) for i in range(16)})
    values = np.stack([raster.read(band, window=row_window(raster, y, y + 1)) for y in lines])
    top = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else values.max()
    return band if looks_like_alpha(int(((values == 0) | (values == top)).sum()), values.size) else 0


def looks_like_alpha(extreme: int, count: int) -> bool:
    """Whether a channel that is tagged as alpha is one, as `extreme` of its `count` values are 0 or its type's largest.

    GDAL tags the fourth 8-bit band of a TIFF as alpha unless told otherwise, so near infrared often passes for alpha,
    and dark water for transparent. An alpha channel is all but wholly 0 and 255, or 65535, which near infrared is not.
    """
    return extreme >= 0.99 * count
