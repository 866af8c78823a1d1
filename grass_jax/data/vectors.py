"""Burn polygons, lines and points of vector files into masks of class ids."""

import functools
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grass_jax.data.geotiff import Georeference
from grass_jax.data.labels import IGNORE, Labels, UnknownLabelError
from grass_jax.data.limits import UnusableImageError, file_size

SUFFIXES = frozenset({".gpkg", ".geojson", ".json", ".shp"})
# How files of these names begin. GDAL goes by the content: a text of another driver can name any file or web address,
# and its features would be those that are found there.
BEGINNINGS = {".gpkg": b"SQLite format 3\0", ".shp": b"\0\0\x27\x0a"}
JSON_BEGINNING = re.compile(rb"(\xef\xbb\xbf)?\s*\{\s*\"")


class VectorMask(NamedTuple):
    """A mask that is drawn when it is read.

    Attributes:
        height: height in pixels.
        width: width in pixels.
        rows: draws rows y0 to y1 as (y1 - y0, width) uint8 classes, IGNORE where a pixel does not count.
        georeference: where the pixels lie.
        features: how many features of the file touch the scene; with none, no pixel is labelled by one.
    """

    height: int
    width: int
    rows: Callable[[int, int], np.ndarray]
    georeference: Georeference
    features: int


class _Features(NamedTuple):
    """What a vector file holds: geometries (n,) of shapely, their classes (n,) uint8, a search tree, and the CRS."""

    shapes: np.ndarray
    classes: np.ndarray
    tree: Any
    crs: Any


def burn(
    path: Path,
    georeference: Georeference,
    height: int,
    width: int,
    labels: Labels,
    attribute: str,
    *,
    radius: float = 2.0,
    all_touched: bool = False,
) -> VectorMask:
    """Draw the features of a vector file on the pixels of a scene, the later ones over the earlier.

    Args:
        path: a GeoPackage, GeoJSON or Shapefile of polygons, lines or points, in any CRS.
        georeference: where the pixels of the scene lie.
        height: height of the scene in pixels.
        width: width of the scene in pixels.
        labels: the classes; what no feature covers is `labels.background` or IGNORE.
        attribute: field with the class of each feature: its name, or an id as in masks (0, 1, ... where those hold
            colours).
        radius: points become discs and lines strokes of this radius in pixels, 1 at least; 0 for single pixels.
        all_touched: polygons cover every pixel that they touch, and not only those whose centre they hold.

    Returns:
        the mask.

    Raises:
        UnknownLabelError: if a feature's class is neither among the classes nor ignored.
        UnusableImageError: if the file is not of the kind that its name says.
        ValueError: if the field or the CRS of either side is missing; other errors where the file is broken.
    """
    if not (radius >= 1 or radius == 0):
        raise ValueError(f"radius must be 0 or at least 1 pixel, or discs would miss every pixel, not {radius}.")
    if not georeference.crs:
        raise ValueError(f"The image has no CRS to place the features of {path} by: give it one (gdal_edit.py -a_srs).")
    import shapely

    size = file_size(path)
    _check_kind(path)
    features = _read(path, path.stat().st_mtime_ns, size, labels, attribute)
    shapes, order = _on_pixels(features, georeference, height, width, radius)
    shapes = _stroked(shapes, radius)
    tree = shapely.STRtree(shapes)
    inside = tree.query(shapely.box(0, 0, width, height), predicate="intersects")
    rows = functools.partial(_draw, shapes, features.classes[order], tree, width, all_touched, _background(labels))
    return VectorMask(height, width, rows, georeference, len(inside))


def _check_kind(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(1 << 12)
    beginning = BEGINNINGS.get(path.suffix.lower())
    if not (head.startswith(beginning) if beginning else JSON_BEGINNING.match(head)):
        raise UnusableImageError(f"it does not begin as a {path.suffix.lower()} file does: export it anew")


def _background(labels: Labels) -> int:
    return labels.classes.index(labels.background) if labels.background else IGNORE


def _draw(shapes, classes, tree, width: int, all_touched: bool, background: int, y0: int, y1: int) -> np.ndarray:
    import rasterio.features
    import shapely
    from rasterio.transform import Affine

    canvas = np.full((y1 - y0, width), background, np.uint8)
    found = np.sort(tree.query(shapely.box(0, y0, width, y1)))
    if len(found):
        # Whole pixels of shift leave every coordinate's fraction alone: rows are the same in any division.
        rasterio.features.rasterize(
            zip(shapes[found], classes[found].tolist(), strict=True),
            out=canvas,
            transform=Affine.translation(0, y0),
            all_touched=all_touched,
        )
    return canvas


def _on_pixels(
    features: _Features, georeference: Georeference, height: int, width: int, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """The features around a scene in its pixels (x, y), and their places in the file, in the file's order."""
    import rasterio.warp
    import shapely

    def to_pixels(points: np.ndarray) -> np.ndarray:
        if georeference.crs != features.crs:
            points = np.stack(rasterio.warp.transform(features.crs, georeference.crs, *points.T.tolist()), 1)
        inverse = ~georeference.transform
        x, y = points[:, 0], points[:, 1]
        return np.stack([inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f], 1)

    area = _area(features.crs, georeference, height, width, margin)
    order = np.sort(features.tree.query(area))
    shapes = features.shapes[order]
    # Far corners of a large feature may have no place in the scene's CRS, and cost time.
    left, bottom, right, top = area.bounds
    far = (shapely.bounds(shapes) - (left, bottom, right, top)) * (-1, -1, 1, 1)
    large = (far > np.array([right - left, top - bottom] * 2)).any(1)
    shapes[large] = shapely.clip_by_rect(
        shapely.make_valid(shapes[large]), 2 * left - right, 2 * bottom - top, 2 * right - left, 2 * top - bottom
    )
    shapes = shapely.transform(shapes, to_pixels)
    good = ~shapely.is_empty(shapes) & np.isfinite(shapely.bounds(shapes)).all(1)
    return shapes[good], order[good]


def _area(crs, georeference: Georeference, height: int, width: int, margin: float) -> Any:
    """A box around a scene and a margin of some pixels, in another CRS."""
    import rasterio.warp
    import shapely

    t, margin = georeference.transform, margin + 2
    corners = np.array([(x, y) for x in (-margin, width + margin) for y in (-margin, height + margin)])
    x, y = corners @ (t.a, t.b) + t.c, corners @ (t.d, t.e) + t.f
    bounds = x.min(), y.min(), x.max(), y.max()
    left, bottom, right, top = rasterio.warp.transform_bounds(georeference.crs, crs, *bounds)
    if left > right:  # across the 180th meridian
        left, right = -180.0, 180.0
    return shapely.box(left, bottom, right, top)


def _stroked(shapes: np.ndarray, radius: float) -> np.ndarray:
    """Geometries of pixels (n,) with the points widened to discs and the lines to strokes."""
    import shapely

    if not radius:
        return shapes
    shapes = shapes.copy()
    thin = np.isin(shapely.get_dimensions(shapes), (0, 1))
    shapes[thin] = shapely.buffer(shapes[thin], radius, quad_segs=16)
    return shapes


@functools.lru_cache(maxsize=4)  # one file often covers hundreds of scenes
def _read(path: Path, modified: int, size: int, labels: Labels, attribute: str) -> _Features:
    """The features of a file that is in the state of the second and third argument."""
    del modified, size
    import pyogrio.raw
    import shapely
    from rasterio.crs import CRS

    layer = _layer(path, attribute)
    meta, _, shapes, values = pyogrio.raw.read(path, layer=layer, columns=[attribute], force_2d=True)
    if not meta["crs"]:
        raise ValueError(f"{path} does not say its CRS: add it, for a Shapefile as a .prj file.")
    classes = _classes(values[0], labels, attribute, path)
    shapes = shapely.from_wkb(shapes)  # none and empty ones are never found by the tree
    return _Features(shapes, classes, shapely.STRtree(shapes), CRS.from_user_input(meta["crs"]))


def _layer(path: Path, attribute: str) -> str:
    """The one layer of a file that has geometries and the field; a GeoPackage of QGIS also holds tables of styles."""
    import pyogrio

    layers = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
    fields = {name: list(pyogrio.read_info(path, layer=name)["fields"]) for name in layers}
    found = [name for name in layers if attribute in fields[name]]
    if not found:
        known = ", ".join(dict.fromkeys(field for name in layers for field in fields[name])) or "none"
        raise ValueError(f"{path} has no field {attribute!r} with the class of each feature, its fields are: {known}.")
    if len(found) > 1:
        raise ValueError(f"{path} has the field {attribute!r} in the layers {', '.join(found)}: keep one of them.")
    return found[0]


def _classes(values: np.ndarray, labels: Labels, attribute: str, path: Path) -> np.ndarray:
    """Class ids (n,) uint8 of the values of a field; each different value is looked at once."""
    names = {name: i for i, name in enumerate(labels.classes)}
    ids = dict(enumerate(range(len(labels.classes)))) if labels.by_colour else labels.known
    plain = [None if value is None or value != value else value for value in values.tolist()]  # a float's null is nan
    table = {}
    for value, count in Counter(plain).items():
        found = names.get(value) if isinstance(value, str) else None
        if found is None:
            found = ids.get(_whole(value))  # pyright: ignore[reportArgumentType]
        if found is None:
            what = f"without a value in the field {attribute!r}" if value is None else f"of the class {value!r}"
            raise UnknownLabelError(
                f"{os.fspath(path)} holds {count} feature(s) {what}, which is neither a class nor ignored: add it to "
                "the classes or to ignore, or leave them out"
            )
        table[value] = found
    return np.array([table[value] for value in plain], np.uint8)


def _whole(value: Any) -> int | None:
    """A value of a field as an id; numbers may be stored as floats or as text."""
    try:
        number = float(value)
        return int(number) if number.is_integer() else None
    except (TypeError, ValueError):
        return None
