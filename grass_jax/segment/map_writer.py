"""Write maps as GeoTIFFs, strip by strip, whole or not at all."""

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from grass_jax.data.geotiff import open_raster
from grass_jax.data.labels import IGNORE
from grass_jax.report.atomic import replacing

BLOCK = 256  # side of the tiles of the file
NODATA = IGNORE  # of a map where the image's own value cannot be used, of probabilities always
CERTAIN = 250  # stored value of the probability 1: above it there has to be room for NODATA
Write = Callable[[int, int, np.ndarray], None]  # y0, x0, rows


class OutputError(ValueError):
    """An output folder that cannot be written; the message is a sentence that names it."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of the block, which writes `path`, into an OutputError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror
        if not reason:  # GDAL's, which has no better words for a full disk than "write error"
            reason = " ".join(str(error.__cause__ or error).split())[:200].rstrip(".")
            with contextlib.suppress(OSError):
                reason += f"; {shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB are free"
        raise OutputError(
            f"The output folder {path.parent} cannot be written ({path.name}: {reason}): make room in it, or choose "
            "another folder."
        ) from error


@contextlib.contextmanager
def class_map(
    path: Path,
    height: int,
    width: int,
    *,
    classes: Sequence[str],
    colours: np.ndarray,
    nodata: int | None,
    placement: Mapping[str, Any],
) -> Iterator[Write]:
    """A map of class ids: one uint8 band with a colour table and the names of the classes.

    The names stand as tags CLASS_0, CLASS_1, ... in the file, and as GDAL's category names in `<path>.aux.xml`, where
    QGIS and ArcGIS look for the legend.

    Args:
        path: file to write, from `replacing_raster`.
        height: height in pixels.
        width: width in pixels.
        classes: names of the ids 0 to k - 1.
        colours: (k, 3) uint8.
        nodata: value of the pixels without data; None where there are none.
        placement: what rasterio is told of the place on the ground: `crs` and `transform`, or `crs` and `gcps`.

    Yields:
        a function that takes y0, x0 and ids (rows, w) uint8, strips from top to bottom within the same columns.
    """
    with _raster(path, height, width, 1, nodata=nodata, placement=placement, photometric="palette") as blocks:
        blocks.raster.write_colormap(1, {i: (*map(int, colour), 255) for i, colour in enumerate(colours)})
        blocks.raster.update_tags(1, **{f"CLASS_{i}": name for i, name in enumerate(classes)})
        yield lambda y0, x0, ids: blocks.write(y0, x0, ids[None])
    _write_categories(_sidecar(path), classes)


@contextlib.contextmanager
def probability_map(
    path: Path, height: int, width: int, *, classes: Sequence[str], nodata: bool, placement: Mapping[str, Any]
) -> Iterator[Write]:
    """A map of probabilities: a uint8 band for each class, 0 to CERTAIN, with the scale that makes them 0 to 1.

    Args:
        path: file to write, from `replacing_raster`.
        height: height in pixels.
        width: width in pixels.
        classes: names of the bands.
        nodata: whether there are pixels without data, which are NODATA.
        placement: as for `class_map`.

    Yields:
        a function that takes y0, x0 and values (k, rows, w) uint8 as `encode_probabilities` gives them.
    """
    value = NODATA if nodata else None
    shape = height, width, len(classes)
    with _raster(path, *shape, nodata=value, placement=placement, interleave="band") as blocks:
        blocks.raster.scales = (1 / CERTAIN,) * len(classes)
        blocks.raster.descriptions = tuple(classes)
        yield blocks.write


def encode_probabilities(logits: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Softmax of logits (rows, w, k) as (k, rows, w) uint8 in 0 to CERTAIN, and NODATA where `valid` is False."""
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares *= CERTAIN / shares.sum(-1, keepdims=True)
    values = np.moveaxis(np.rint(shares).astype(np.uint8), -1, 0)
    return values if valid is None else np.where(valid, values, np.uint8(NODATA))


def choose_nodata(value: float | None, classes: int) -> int:
    """The image's own nodata value where the map can have it, else NODATA: it must be a byte and no class id."""
    return int(value) if value is not None and value in range(classes, 256) else NODATA


@contextlib.contextmanager
def replacing_raster(path: Path) -> Iterator[Path]:
    """As `replacing`, for a raster and what GDAL keeps beside it, such as a CRS that GeoTIFF has no words for."""
    with replacing(path) as temporary:
        try:
            yield temporary
            # Before the raster, which is complete where it stands.
            if _sidecar(temporary).exists():
                os.replace(_sidecar(temporary), _sidecar(path))
            else:
                _sidecar(path).unlink(missing_ok=True)
        finally:
            _sidecar(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def _raster(
    path: Path, height: int, width: int, count: int, *, placement: Mapping[str, Any], **options
) -> Iterator["_Blocks"]:
    """Opens a raster to write, and makes sure in the end that all of it is in the file."""
    import rasterio  # GDAL loads slowly
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the map of a plain picture has no place
        raster = rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=count,
            dtype="uint8",
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            compress="deflate",
            bigtiff="IF_SAFER",
            **placement,
            **options,
        )
    with raster:
        blocks = _Blocks(raster)
        yield blocks
    # GDAL writes the last of it as it closes the file, and keeps to itself that the disk is full.
    if _sum_of_values(path) != blocks.sum:
        raise OSError("not all of it could be written")


def _sum_of_values(path: Path) -> int:
    from rasterio.windows import Window

    with open_raster(path) as raster:
        windows = [Window(0, y, raster.width, min(BLOCK, raster.height - y)) for y in range(0, raster.height, BLOCK)]  # pyright: ignore[reportCallIssue]
        return sum(int(raster.read(band, window=here).sum()) for band in raster.indexes for here in windows)


class _Blocks:
    """Gathers strips into whole rows of the file's tiles: a tile that is written twice leaves a hole in the file.

    Attributes:
        raster: the rasterio data set.
        sum: of all values written.
    """

    def __init__(self, raster: Any):
        self.raster, self.sum, self._waiting, self._top = raster, 0, [], 0

    def write(self, y0: int, x0: int, bands: np.ndarray) -> None:
        """Takes rows (count, rows, w) that follow on those before, or begin at the top of other columns."""
        from rasterio.windows import Window

        self.sum += int(bands.sum())
        if not self._waiting:
            self._top = y0
        self._waiting.append(bands)
        stop = y0 + bands.shape[1]
        ready = (stop if stop == self.raster.height else stop // BLOCK * BLOCK) - self._top
        if ready > 0:
            rows = np.concatenate(self._waiting, 1)
            here = Window(x0, self._top, rows.shape[2], ready)  # pyright: ignore[reportCallIssue]
            self.raster.write(rows[:, :ready], window=here)
            self._waiting = [rows[:, ready:]] if ready < rows.shape[1] else []
            self._top += ready


def _sidecar(raster: Path) -> Path:
    return raster.with_name(f"{raster.name}.aux.xml")


def _write_categories(path: Path, classes: Sequence[str]) -> None:
    """Adds category names to a raster's sidecar, which is made where GDAL had no need of one."""
    tree = ElementTree.parse(path) if path.exists() else ElementTree.ElementTree(ElementTree.Element("PAMDataset"))
    root = tree.getroot()
    assert root is not None
    band = root.find("PAMRasterBand[@band='1']")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1") if band is None else band
    categories = ElementTree.SubElement(band, "CategoryNames")
    for name in classes:
        ElementTree.SubElement(categories, "Category").text = name
    tree.write(path, encoding="utf-8")
