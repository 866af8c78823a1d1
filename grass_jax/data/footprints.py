"""Which files show the same ground: by the footprints of their geotransforms."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grass_jax.data.geotiff import Georeference

STEPS = 8  # points along an edge: a straight edge bends in another coordinate system


class Footprint(NamedTuple):
    """Where a scene lies on the ground.

    Attributes:
        crs: coordinate system as WKT; empty where the file has a geotransform alone.
        transform: a, b, c, d, e, f of the affine transform from pixels (x, y) to coordinates.
        height: in pixels.
        width: in pixels.
    """

    crs: str
    transform: tuple[float, ...]
    height: int
    width: int


def footprint_of(georeference: Georeference | None, height: int, width: int) -> Footprint | None:
    """Where a scene lies, in numbers and text; None where its file does not say it."""
    if georeference is None or (georeference.crs is None and georeference.transform.is_identity):
        return None
    crs = "" if georeference.crs is None else georeference.crs.to_wkt()
    return Footprint(crs, tuple(georeference.transform)[:6], height, width)


def merge_overlapping(
    groups: Sequence[str], footprints: Sequence[Footprint | None]
) -> tuple[list[str], list[tuple[int, int]]]:
    """Join the groups of files whose footprints overlap by more than a pixel.

    Args:
        groups: group of every file.
        footprints: footprint of every file; None where it has none.

    Returns:
        the group of every file, joined ones under the first of their names; and the pairs i < j of overlapping files,
        sorted.
    """
    pairs = overlapping_footprints(footprints)
    root = {group: group for group in groups}

    def find(group: str) -> str:
        while root[group] != group:
            root[group] = root[root[group]]
            group = root[group]
        return group

    for i, j in pairs:
        first, second = sorted((find(groups[i]), find(groups[j])))
        root[second] = first
    return [find(group) for group in groups], pairs


def overlapping_footprints(footprints: Sequence[Footprint | None]) -> list[tuple[int, int]]:
    """Pairs i < j of files whose footprints share more than a pixel in either direction, sorted.

    Files of several coordinate systems are compared in longitude and latitude; those whose system has no way there
    (a local one, or none, as beside a world file) only with each other.
    """
    import shapely

    several = len({footprint.crs for footprint in footprints if footprint is not None and footprint.crs}) > 1
    shapes: dict[str | None, list] = {}  # by coordinate system; None: longitude and latitude
    members: dict[str | None, list[int]] = {}
    for i, footprint in enumerate(footprints):
        if footprint is not None:
            points = _outline(footprint)
            degrees = _in_degrees(points, footprint.crs) if several and footprint.crs else None
            system = footprint.crs if degrees is None else None
            shapes.setdefault(system, []).append(shapely.Polygon(points if degrees is None else degrees))
            members.setdefault(system, []).append(i)
    pairs = []
    for system, polygons in shapes.items():
        found = shapely.STRtree(polygons).query(polygons, predicate="intersects")
        first, second = np.array(members[system])[found]
        pairs += [(i, j) for i, j in zip(first.tolist(), second.tolist(), strict=True) if i < j]
    return sorted(pairs)


def _outline(footprint: Footprint) -> np.ndarray:
    """Points of the scene's edge, half a pixel inside: outlines meet where scenes share more than a pixel."""
    a, b, c, d, e, f = footprint.transform
    low, right, bottom = 0.5, footprint.width - 0.5, footprint.height - 0.5
    corners = np.array([(low, low), (right, low), (right, bottom), (low, bottom), (low, low)])
    along = np.arange(STEPS)[:, None] / STEPS
    pixels = np.concatenate([start + along * (end - start) for start, end in itertools.pairwise(corners)])
    return np.stack([pixels @ (a, b) + c, pixels @ (d, e) + f], axis=1)


def _in_degrees(points: np.ndarray, crs: str) -> np.ndarray | None:
    from rasterio.warp import transform

    try:
        degrees = np.stack(transform(crs, "EPSG:4326", *points.T.tolist()), axis=1)
    except Exception:  # GDAL's kinds of errors are private to rasterio
        return None
    return degrees if np.isfinite(degrees).all() else None
