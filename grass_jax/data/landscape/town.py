"""Towns: streets on a turned grid, houses in rows, halls."""

import itertools
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from grass_jax.data.landscape.texture import noise

# Roof colours, RGB: tiles, slate, sheet metal, gravel, membranes.
ROOFS = [
    (158, 86, 62),
    (132, 74, 58),
    (94, 92, 94),
    (70, 72, 78),
    (176, 172, 166),
    (214, 212, 206),
    (112, 96, 82),
    (104, 118, 132),
]


class Town(NamedTuple):
    """Layout of a town.

    Attributes:
        area: (size, size) true inside the town.
        plots: (size, size) number of every pixel's plot.
        streets: lines of (x, y) points.
        roofs: (size, size) number of the roof face, -1 outside.
        edges: (size, size) true along roof edges and on what stands on roofs.
        colours: (faces, 3) float32 RGB.
        heights: (faces,) float32 in pixels.
        slopes: (faces, 2) float32, where each face looks, y and x; zero for flat roofs.
        houses: (faces,) int, number of the house.
    """

    area: np.ndarray
    plots: np.ndarray
    streets: list
    roofs: np.ndarray
    edges: np.ndarray
    colours: np.ndarray
    heights: np.ndarray
    slopes: np.ndarray
    houses: np.ndarray


class _Faces:
    """Collects roof faces while they are drawn."""

    def __init__(self, size: int):
        self.canvas, self.lines = Image.new("I", (size, size), 0), Image.new("1", (size, size))
        self.draw, self.line = ImageDraw.Draw(self.canvas), ImageDraw.Draw(self.lines)
        self.colours, self.heights, self.slopes, self.houses = [], [], [], []
        self.house = 0

    def add(self, corners: np.ndarray, colour, height: float, slope=(0.0, 0.0)) -> None:
        self.colours.append(colour)
        self.heights.append(height)
        self.slopes.append(slope)
        self.houses.append(self.house)
        points = [tuple(corner) for corner in corners.tolist()]
        self.draw.polygon(points, fill=len(self.colours))
        self.line.line([*points, points[0]], fill=1, width=1)


def build_town(rng: np.random.Generator, size: int, water: np.ndarray) -> Town:
    """Lay out a town or a few hamlets, off the water.

    Args:
        rng: random numbers.
        size: side of the scene in pixels.
        water: (size, size) true on water.

    Returns:
        the town.
    """
    y, x = np.mgrid[:size, :size].astype(np.float32)
    area = np.zeros((size, size), bool)
    edge = 0.25 * noise(rng, size, 160)
    for _ in range(int(rng.integers(2, 5))):
        cy, cx, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0.16, 0.4) * size
        area |= np.hypot(y - cy, x - cx) / r + edge < 1
    area &= ~water
    angle = rng.uniform(0, np.pi / 2)
    along, down = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    u, v = x * np.float32(along[0]) + y * np.float32(along[1]), x * np.float32(down[0]) + y * np.float32(down[1])
    us, vs = (np.cumsum(rng.uniform(low, high, int(4 * size / low))) - 2 * size for low, high in ((90, 200), (62, 90)))
    plots = (np.floor(u / 26) * 131 + np.searchsorted(vs, v) * 2 + 100_000).astype(np.int64)

    def inside(uv: np.ndarray) -> np.ndarray:
        xy = np.rint(uv[..., :1] * along + uv[..., 1:] * down).astype(int)
        within = ((xy >= 0) & (xy < size)).all(-1)
        xy = xy.clip(0, size - 1)
        return within & area[xy[..., 1], xy[..., 0]]

    streets = []
    for lines, fixed in ((us, 0), (vs, 1)):
        for value in lines:
            walk = np.full((int(4 * size / 6), 2), value)
            walk[:, 1 - fixed] = np.arange(len(walk)) * 6 - 2 * size
            keep = inside(walk)
            for run in np.split(np.arange(len(walk)), np.flatnonzero(np.diff(keep.astype(int))) + 1):
                if keep[run[0]] and len(run) > 3:
                    street = walk[run, :1] * along + walk[run, 1:] * down
                    streets.append([tuple(point) for point in street.tolist()])

    faces = _Faces(size)
    styles = rng.choice(len(ROOFS), 4, replace=False)
    for u0, u1 in itertools.pairwise(us):
        for v0, v1 in itertools.pairwise(vs):
            if inside(np.array([[(u0 + u1) / 2, (v0 + v1) / 2]]))[0]:
                _build_block(rng, faces, (u0 + 9, u1 - 9, v0 + 9, v1 - 9), (along, down), inside, styles)
    roofs = np.where(water, -1, np.array(faces.canvas, np.int32) - 1)
    colours = np.array(faces.colours, np.float32).reshape(-1, 3)
    if not len(colours):  # keeps the tables indexable where there is no roof
        faces.heights, faces.slopes, faces.houses, colours = [0.0], [(0.0, 0.0)], [0], np.zeros((1, 3), np.float32)
    heights, slopes = np.array(faces.heights, np.float32), np.array(faces.slopes, np.float32)
    houses = np.array(faces.houses)
    return Town(area, plots, streets, roofs, np.array(faces.lines), colours, heights, slopes, houses)


def clear_roads(town: Town, road: np.ndarray) -> Town:
    """The town without the houses that a country road cuts: (size, size) true on roads."""
    cut = np.isin(town.houses, town.houses[np.unique(town.roofs[road & (town.roofs >= 0)])])
    return town._replace(roofs=np.where((town.roofs >= 0) & ~cut[town.roofs], town.roofs, -1))


def _build_block(rng, faces: _Faces, block, axes, inside, styles) -> None:
    """Fill a block between streets with one hall, or with houses along its two long sides."""
    u0, u1, v0, v1 = block
    if rng.random() < 0.22:
        colour = np.array(ROOFS[int(rng.choice([4, 5, 2, 7]))]) * rng.normal(1, 0.06)
        _add_flat(rng, faces, (u0 + 4, u1 - rng.uniform(4, 30), v0 + 3, v1 - rng.uniform(3, 12)), axes, colour, inside)
        return
    for near in (True, False):
        u = u0 + rng.uniform(1, 6)
        while u + 14 < u1:
            width, depth, gap = rng.uniform(14, 30), rng.uniform(12, 19), rng.uniform(1, 5)
            v = v0 + gap if near else v1 - gap - depth
            box = (u, min(u + width, u1), v, v + depth)
            u += width + rng.uniform(3, 9)
            colour = np.array(ROOFS[int(rng.choice(styles))]) * rng.normal(1, 0.1) + rng.normal(0, 4, 3)
            if rng.random() < 0.06 or box[1] - box[0] < 9:
                continue
            if rng.random() < 0.25:
                _add_flat(rng, faces, box, axes, colour, inside)
            else:
                _add_gable(faces, box, axes, colour, rng.uniform(5, 9), inside)
            if rng.random() < 0.3:  # a wing makes it an L
                middle, reach = (box[0] + box[1]) / 2, rng.uniform(5, 10)
                wing = (box[0], middle, box[3], box[3] + reach) if near else (middle, box[1], box[2] - reach, box[2])
                _add_flat(rng, faces, wing, axes, colour * 0.92, inside)


def _corners(box, axes) -> np.ndarray:
    u0, u1, v0, v1 = box
    return np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1)]) @ np.stack(axes)


def _stands(box, inside) -> bool:
    u0, u1, v0, v1 = box
    return bool(inside(np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1)])).all())


def _add_flat(rng, faces: _Faces, box, axes, colour, inside) -> None:
    if not _stands(box, inside):
        return
    faces.house += 1
    u0, u1, v0, v1 = box
    height = rng.uniform(6, 12)
    faces.add(_corners(box, axes), colour, height)
    for _ in range(int((u1 - u0) * (v1 - v0) / 600)):  # skylights and machines
        u, v = rng.uniform(u0 + 2, u1 - 6), rng.uniform(v0 + 2, v1 - 6)
        faces.add(_corners((u, u + 3, v, v + 3), axes), colour * rng.choice([0.6, 1.2]), height + 1)


def _add_gable(faces: _Faces, box, axes, colour, height: float, inside) -> None:
    if not _stands(box, inside):
        return
    faces.house += 1
    u0, u1, v0, v1 = box
    middle = (v0 + v1) / 2
    down = axes[1][::-1]  # as (y, x)
    faces.add(_corners((u0, u1, v0, middle), axes), colour, height, tuple(-down))
    faces.add(_corners((u0, u1, middle, v1), axes), colour, height, tuple(down))
