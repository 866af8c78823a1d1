"""Rivers, lakes and roads."""

import numpy as np
from PIL import Image, ImageDraw

from grass_jax.data.landscape.texture import blur, noise


def bent_line(rng: np.random.Generator, size: int, bend: float) -> list[tuple[float, float]]:
    """A winding line from one edge of the scene to the opposite one, as (x, y) points every few pixels."""
    t = np.linspace(-0.1, 1.1, 120)
    swing = sum(rng.normal(0, bend / k) * np.sin(2 * np.pi * k * t * 0.7 + rng.uniform(0, 6.3)) for k in (1, 2, 3))
    start, end = rng.uniform(0.1, 0.9, 2)
    across = start + (end - start) * t + swing
    line = np.stack([t, across], -1) * size
    return [tuple(point) for point in (line[:, ::-1] if rng.random() < 0.5 else line).tolist()]


def stroke(size: int, lines: list[list[tuple[float, float]]], width: int) -> np.ndarray:
    """Lines of a width in pixels as a (size, size) boolean mask."""
    canvas = Image.new("1", (size, size))
    draw = ImageDraw.Draw(canvas)
    for line in lines:
        draw.line(line, fill=1, width=width, joint="curve")
    return np.array(canvas)


def draw_water(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, water: int) -> None:
    """Paint a river and lakes in place.

    Args:
        rng: random numbers.
        image: (size, size, 3) float32 colours, changed.
        mask: (size, size) uint8 ids, changed.
        water: id of water.
    """
    size = len(mask)
    depth = noise(rng, size, 330, 3) - rng.uniform(1.4, 1.8)  # lakes where it is above zero
    if rng.random() < 0.75:
        river = stroke(size, [bent_line(rng, size, 0.12)], int(rng.integers(18, 60))).astype(np.float32)
        small = Image.fromarray(river).resize((size // 8, size // 8), Image.Resampling.BOX)
        soft = blur(np.asarray(small), 3)
        soft = np.asarray(Image.fromarray(soft).resize((size, size), Image.Resampling.BICUBIC))
        depth = np.maximum(depth, 2 * soft - 0.8 + 0.06 * noise(rng, size, 40))
    wet = depth > 0
    bank = (depth > -0.1) & ~wet
    sand = np.array([(158, 144, 116), (96, 104, 66)][int(rng.integers(2))], np.float32)
    image[bank] = sand * (1 + 0.08 * noise(rng, size, 10)[bank])[:, None]
    mask[bank] = 0
    shallow = np.exp(-np.clip(depth, 0, None) * 6)[..., None]
    deep = np.array([(42, 60, 66), (58, 72, 56), (84, 88, 72), (34, 56, 76)][int(rng.integers(4))], np.float32)
    ripple = (
        1 + 0.05 * noise(rng, size, 6, 2) * (1 + noise(rng, size, 160, 1).clip(-1, 1)) + 0.05 * noise(rng, size, 250)
    )
    colour = (deep * (1 - 0.4 * shallow) + sand * 0.4 * shallow) * ripple[..., None]
    image[wet] = colour[wet]
    mask[wet] = water


def draw_roads(rng: np.random.Generator, image, mask, parcels, town, *, road: int, background: int) -> None:
    """Paint country roads with marks, farm tracks and streets in place.

    Args:
        rng: random numbers.
        image: (size, size, 3) float32 colours, changed.
        mask: (size, size) uint8 ids, changed.
        parcels: layout of the country; tracks follow the borders of some parcels.
        town: layout of the town, with its streets.
        road: id of roads.
        background: id of verges and gardens.
    """
    size = len(mask)
    rough, fine = noise(rng, size, 18), rng.standard_normal((size, size)).astype(np.float32)
    garden = town.area & (mask != 3)
    lawn = np.array([(112, 120, 78), (136, 124, 92), (98, 112, 70)][int(rng.integers(3))], np.float32)
    plots = rng.normal(1, 0.1, 4096).astype(np.float32)[town.plots % 4096]
    image[garden] = lawn * ((plots + 0.09 * rough)[garden])[:, None]
    mask[garden] = background

    tracks = (parcels.border < rng.uniform(1.6, 2.4)) & (rng.random(parcels.number.max() + 1) < 0.45)[parcels.number]
    tracks &= (mask < 2) & ~town.area & ~parcels.woods
    earth = np.array([(176, 158, 128), (150, 130, 104), (168, 164, 152)][int(rng.integers(3))], np.float32)
    image[tracks] = earth * (1 + 0.07 * rough[tracks])[:, None]
    mask[tracks] = road

    surfaces = [(96, 96, 100), (128, 126, 122), (74, 76, 80), (158, 154, 146)]
    streets = stroke(size, town.streets, 9) & (mask != 3)
    kerbs = stroke(size, town.streets, 13) & (mask != 3)
    image[kerbs] = (172, 168, 160)
    mask[kerbs] = road
    image[streets] = np.array(surfaces[int(rng.integers(4))]) * (1 + 0.04 * rough + 0.03 * fine)[streets][:, None]

    for _ in range(int(rng.integers(1, 4))):
        line = bent_line(rng, size, 0.07)
        width = int(rng.choice([9, 11, 15, 22]))
        verge = stroke(size, [line], width + 8) & (mask != 3) & (mask != road)
        image[verge] = (116, 116, 76) * (1 + 0.1 * rough[verge])[:, None]
        mask[verge] = background
        paved = stroke(size, [line], width)
        surface = np.array(surfaces[int(rng.integers(4))], np.float32)
        image[paved] = surface * (1 + 0.05 * rough + 0.03 * fine)[paved][:, None]
        mask[paved] = road
        marks = [line[i : i + 2] for i in range(0, len(line) - 1, 2)] if width < 20 else [line]
        image[stroke(size, marks, 1)] = (208, 206, 196)
        if width >= 15:
            sides = paved & ~stroke(size, [line], width - 4) & stroke(size, [line], width - 2)
            image[sides] = (202, 200, 192)
        _drive_cars(rng, image, line, width)


def _drive_cars(rng: np.random.Generator, image: np.ndarray, line: list[tuple[float, float]], width: int) -> None:
    """Small bright and dark cars on both lanes; they count as road."""
    size = len(image)
    for i in rng.choice(len(line) - 1, int(rng.integers(3, 10)), replace=False):
        (x0, y0), (x1, y1) = line[i], line[i + 1]
        along = np.array([x1 - x0, y1 - y0]) / max(1e-6, np.hypot(x1 - x0, y1 - y0))
        side = np.array([-along[1], along[0]]) * width / 4 * rng.choice([-1, 1])
        for step in np.arange(-3, 3.1, 0.5):
            for lateral in np.arange(-1.2, 1.3, 0.6):
                x, y = np.array([x0, y0]) + side + along * step + np.array([-along[1], along[0]]) * lateral
                if 0 <= x < size and 0 <= y < size:
                    image[int(y), int(x)] = CARS[i % len(CARS)]


CARS = np.array([(228, 228, 226), (40, 42, 48), (150, 40, 36), (120, 124, 130), (52, 70, 120)], np.float32)
