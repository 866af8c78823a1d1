"""Open country: meadows, parcels of fields with their furrows, woods."""

from typing import NamedTuple

import numpy as np

from grass_jax.data.landscape.texture import noise, place_crowns

# Mean colours of crops, RGB; every parcel shifts its own.
CROPS = {
    "spring": [(92, 118, 58), (118, 138, 72), (126, 100, 74), (142, 118, 92), (150, 148, 62), (104, 84, 64)],
    "summer": [(178, 158, 98), (94, 114, 56), (198, 178, 124), (72, 98, 50), (148, 132, 84), (134, 112, 88)],
    "autumn": [(122, 96, 72), (148, 124, 96), (106, 112, 62), (166, 146, 106), (92, 74, 60), (84, 104, 58)],
}
LEAVES = {
    "spring": [(62, 86, 42), (78, 102, 50), (48, 72, 44), (88, 108, 62)],
    "summer": [(50, 74, 38), (62, 86, 44), (42, 62, 38), (72, 88, 50)],
    "autumn": [(110, 88, 46), (74, 84, 42), (128, 80, 44), (56, 70, 40)],
}
GRASS = {"spring": (100, 118, 70), "summer": (128, 122, 82), "autumn": (112, 108, 72)}


class Parcels(NamedTuple):
    """Layout of the country: number of every pixel's parcel, distance to its border in pixels, and the woods."""

    number: np.ndarray
    border: np.ndarray
    woods: np.ndarray


def paint_country(rng: np.random.Generator, size: int, season: str) -> tuple[np.ndarray, np.ndarray, Parcels]:
    """Paint meadows and fields.

    Args:
        rng: random numbers.
        size: side of the scene in pixels.
        season: key of `CROPS`.

    Returns:
        (size, size, 3) float32 colours, (size, size) uint8 mask (0 background, 1 field), and the layout.
    """
    y, x = np.mgrid[:size, :size].astype(np.float32)
    rough, broad = noise(rng, size, 14), noise(rng, size, 220)
    image = np.array(GRASS[season], np.float32) * (1 + 0.08 * rough + 0.1 * broad)[..., None]
    bare = np.clip(noise(rng, size, 150, 4) - 1.2, 0, 1)[..., None]
    image = image * (1 - bare) + np.array([172, 150, 120], np.float32) * (1 + 0.06 * rough[..., None]) * bare

    bend_y, bend_x = (10 * noise(rng, size, 500, 1) for _ in range(2))
    angle = rng.uniform(0, np.pi)
    # Two districts with their own direction, parted by a bent line.
    other = noise(rng, size, 700, 1) > 0.3
    angles = np.where(other, angle + rng.uniform(0.4, 1.2), angle).astype(np.float32)
    u = (x + bend_x) * np.cos(angles) + (y + bend_y) * np.sin(angles)
    v = -(x + bend_x) * np.sin(angles) + (y + bend_y) * np.cos(angles)
    strip, across = _cut(rng, u, size, 70, 190)
    number, border = np.zeros((size, size), np.int32), across
    for s in np.unique(strip):
        inside = strip == s
        piece, along = _cut(rng, v[inside], size, 90, 320)
        number[inside] = s * 64 + piece
        border[inside] = np.minimum(border[inside], along)
    number = np.unique(number * 2 + other, return_inverse=True)[1].reshape(size, size)
    count = number.max() + 1

    kind = rng.choice(4, count, p=[0.62, 0.12, 0.12, 0.14])  # crop, mown meadow, wood, rough meadow
    woods = ((kind == 2)[number] & (border > 3)) | (noise(rng, size, 260, 4) > 1.15)
    field = (kind <= 1)[number] & (border > rng.uniform(1.5, 4, count)[number]) & ~woods
    colours = np.array(CROPS[season], np.float32)[rng.integers(0, len(CROPS[season]), count)]
    colours[kind == 1] = np.array(GRASS[season]) * (0.92, 1.06, 0.86)
    colours = (colours * rng.normal(1, 0.08, (count, 1)) + rng.normal(0, 5, (count, 3))).astype(np.float32)
    period = np.where(kind == 1, rng.uniform(9, 16, count), rng.choice([3.2, 4.0, 5.5, 7.5], count)).astype(np.float32)
    strength = (rng.uniform(0.02, 0.16, count) * (1.0 - 0.4 * (kind == 1))).astype(np.float32)
    lengthwise = rng.random(count) < 0.7
    track = np.where(lengthwise[number], u, v)
    wave = np.sin(2 * np.pi * track / period[number] + 0.5 * rough)
    tram = (np.mod(track, 27) < 1.6) | (np.mod(track + 5, 27) < 1.6)
    tram &= (rng.random(count) < 0.55)[number]
    headland = border < 9  # the plough turns here
    light = 1 + strength[number] * np.where(headland, 0.3, wave) - 0.13 * tram * ~headland
    light += rng.uniform(0.01, 0.07, count).astype(np.float32)[number] * rough + 0.05 * broad
    patchy = rng.uniform(0, 0.12, count).astype(np.float32)[number] * noise(rng, size, 60)
    painted = colours[number] * (light + patchy)[..., None]
    image = np.where(field[..., None], painted, image)
    return image.astype(np.float32), field.astype(np.uint8), Parcels(number, border, woods)


def _cut(rng: np.random.Generator, along: np.ndarray, size: int, low: float, high: float):
    """Number of the piece and distance to the nearest cut for coordinates along one direction."""
    cuts = np.cumsum(rng.uniform(low, high, int(4 * size / low))) - 2 * size
    piece = np.searchsorted(cuts, along).clip(1, len(cuts) - 1)
    return piece, np.minimum(along - cuts[piece - 1], cuts[piece] - along)


def plant_trees(rng, image, mask, woods, town, season: str, *, forest: int, avoid: tuple[int, ...]):
    """Paint woods, hedges and garden trees in place.

    Args:
        rng: random numbers.
        image: (size, size, 3) float32 colours, changed.
        mask: (size, size) uint8 ids, changed.
        woods: (size, size) true where woods stand.
        town: the town, whose gardens hold single trees.
        season: key of `LEAVES`.
        forest: id of trees.
        avoid: ids on which no tree grows.

    Returns:
        (size, size) heights in pixels and their slopes as (2, size, size).
    """
    size = len(mask)
    free = ~np.isin(mask, avoid) & (town.roofs < 0)
    y, x = (np.mgrid[:size:7, :size:7].reshape(2, -1) + rng.integers(-3, 4, (2, (-(-size // 7)) ** 2))).clip(
        0, size - 1
    )
    dense = noise(rng, size, 90)
    chance = np.where(woods, 0.9, np.where(town.area, 0.05, 0.004)).astype(np.float32)
    chance[~woods & ~town.area & (mask == 0) & (dense > 0.9)] = 0.14  # hedges and groups on meadows
    chance[mask == 1] = 0.0006
    grows = free[y, x] & (rng.random(len(y)) < chance[y, x])
    centres = np.stack([y, x], -1)[grows]
    conifer = (noise(rng, size, 200)[centres[:, 0], centres[:, 1]] + rng.normal(0, 0.4, len(centres))) > 0.5
    radii = np.where(conifer, rng.uniform(2.8, 4.6, len(centres)), rng.uniform(3.5, 7.5, len(centres)))
    height, slopes, owner = place_crowns(rng, centres, radii, size, conifer)
    leaves = np.array(LEAVES[season], np.float32)[rng.integers(0, 4, len(centres))]
    leaves[conifer] = (40, 58, 42)
    leaves *= rng.normal(1, 0.1, (len(centres), 1))
    floor = woods & free & (owner < 0)
    image[floor] = (38, 46, 32)
    crown = (owner >= 0) & (town.roofs < 0)
    leafy = 1 + 0.1 * rng.standard_normal((size, size)).astype(np.float32)
    image[crown] = leaves[owner[crown]] * leafy[crown][:, None]
    mask[crown | floor] = forest
    height[~crown] = 0
    slopes[:, ~crown] = 0
    return height, slopes
