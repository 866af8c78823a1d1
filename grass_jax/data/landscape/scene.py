"""One scene of the procedural landscape: layers painted from the ground up, each with its label."""

import numpy as np

from grass_jax.data.landscape.country import paint_country, plant_trees
from grass_jax.data.landscape.texture import blur, cast_shadow, noise
from grass_jax.data.landscape.town import build_town, clear_roads
from grass_jax.data.landscape.ways import draw_roads, draw_water

CLASS_NAMES = ("background", "field", "forest", "water", "road", "building")
BACKGROUND, FIELD, FOREST, WATER, ROAD, BUILDING = range(6)


def landscape(seed: int, size: int = 960) -> tuple[np.ndarray, np.ndarray]:
    """A scene with the light, season and layout that belong to its seed; a pixel is somewhat below a metre.

    Args:
        seed: number of the scene; every seed is another place.
        size: side in pixels.

    Returns:
        (size, size, 3) uint8 RGB and (size, size) uint8 ids in the order of `CLASS_NAMES`.
    """
    rng = np.random.default_rng(seed)
    season = rng.choice(["spring", "summer", "autumn"])
    image, mask, parcels = paint_country(rng, size, season)
    draw_water(rng, image, mask, WATER)
    town = build_town(rng, size, mask == WATER)
    draw_roads(rng, image, mask, parcels, town, road=ROAD, background=BACKGROUND)
    town = clear_roads(town, mask == ROAD)
    woods = parcels.woods & ~town.area
    height, slopes = plant_trees(rng, image, mask, woods, town, season, forest=FOREST, avoid=(WATER, ROAD))
    built = town.roofs >= 0
    image[built] = town.colours[town.roofs[built]] * (1 + 0.05 * rng.standard_normal(built.sum())[:, None])
    image[built] *= 1 - 0.12 * town.edges[built][:, None]
    mask[built] = BUILDING
    height = np.where(built, town.heights[np.maximum(town.roofs, 0)], height).astype(np.float32)

    azimuth, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.3)
    sun = np.array([-np.sin(azimuth), -np.cos(azimuth)], np.float32)  # towards the sun
    crowns = -(slopes[0] * sun[0] + slopes[1] * sun[1])
    faces = town.slopes[np.maximum(town.roofs, 0)] @ sun
    image *= 1 + 0.22 * np.where(built, faces, np.clip(crowns, -2.2, 2.0)).astype(np.float32)[..., None]
    shade = blur(cast_shadow(height, azimuth, slope))[..., None]
    image *= 1 - shade.astype(np.float32) * np.array([0.62, 0.56, 0.46], np.float32)  # shadows are lit by the blue sky

    image *= 1 + 0.05 * noise(rng, size, size / 2, 2)[..., None]
    image = np.stack([blur(image[..., band], 1) for band in range(3)], -1)
    haze = rng.uniform(0, 0.16)
    gains = (rng.normal(1, 0.03, 3) * rng.uniform(0.9, 1.15) * (1 - haze)).astype(np.float32)
    image = (image * gains + np.array([150, 160, 175], np.float32) * np.float32(haze)) / 255
    image = np.clip(image, 0, 1) ** np.float32(rng.uniform(0.82, 1.1)) * 255
    image += 2.2 * rng.standard_normal(image.shape, np.float32)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), mask
