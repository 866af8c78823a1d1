"""Labelled tiles and their masks, changed together for fine-tuning: crop and scale, flips, quarter turns, colour."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from grass_jax.augment.colour import jittered
from grass_jax.augment.geometry import nearest_crop, oriented, random_square_box, resized_crop
from grass_jax.augment.rules import COLOUR, PAIR, PROBABILITY, SIZE, check_fields
from grass_jax.bands import RGB, Bands, normalise, unit_range
from grass_jax.config import YES_OR_NO


@dataclass(frozen=True)
class PairAugmentation:
    """How labelled tiles are changed; seen from above, a scene has no top, so all eight orientations are likely.

    Attributes:
        size: height and width of the result, pixels.
        scale: smallest and largest magnification; its logarithm is uniform. The crop's side is size / scale, at most
            the tile's: where the tile is as large as `size`, all magnifications below 1 give the whole tile.
        flip: probability of flipping, for each of the two axes.
        rotate: whether to turn by 0, 1, 2 or 3 quarters of a turn, equally likely.
        jitter: probability of the colour jitter; bands that are not red, green and blue get a brightness and a contrast
            each of their own instead.
        brightness: the factor is uniform in 1 -+ this (and at least 0).
        contrast: the same for contrast.
        saturation: the same for saturation.
        hue: largest turn of the hue, as a share of a full turn, at most 0.5.
        bands: of the tiles: how they become floats, which are red, green and blue, and how they are normalised.

    Raises:
        ValueError: where a value is not allowed, naming the field.
    """

    size: int
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    rotate: bool = True
    jitter: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.05
    bands: Bands = RGB

    def __post_init__(self):
        check_fields(self, RULES)


# of the keys that a configuration gives: `bands` comes from the data
RULES = {
    **COLOUR,
    "size": SIZE,
    "scale": PAIR,
    "flip": PROBABILITY,
    "rotate": YES_OR_NO,
}


class Placement(NamedTuple):
    """What an image and its mask share.

    Attributes:
        box: (4,) int32 (y0, x0, y1, x1), half-open, tile pixels; a square.
        transposed: () bool, whether the resized crop is transposed.
        upside_down: () bool, whether it is then flipped top to bottom.
        mirrored: () bool, whether it is then flipped left to right.
    """

    box: jax.Array
    transposed: jax.Array
    upside_down: jax.Array
    mirrored: jax.Array


def augment_pairs(
    key: jax.Array, images: jax.Array, masks: jax.Array, augmentation: PairAugmentation
) -> tuple[jax.Array, jax.Array]:
    """Crop, scale, flip and turn tiles and masks together, and change the tiles' colours.

    A result depends on the key, on its tile and on the tile's place in the batch, not on the other tiles.

    Args:
        key: random key.
        images: (b, h, w, c) tiles in the dtype of the augmentation's bands, or float in 0..1 in place of integers.
        masks: (b, h, w) uint8 class ids.
        augmentation: how the tiles are changed.

    Returns:
        (b, s, s, c) float32 views, normalised, and their masks, (b, s, s) uint8.

    Raises:
        ValueError: where `images` or `masks` has another shape or dtype.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be tiles, (b, h, w, {len(augmentation.bands)}), not {images.shape}.")
    if masks.shape != images.shape[:-1] or masks.dtype != jnp.uint8:
        raise ValueError(f"masks must be uint8 {images.shape[:-1]}, not {masks.dtype} {masks.shape}.")
    images = unit_range(images, augmentation.bands)

    def of_tile(index: jax.Array, image: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        return one_pair(jax.random.fold_in(key, index), image, mask, augmentation)

    return jax.vmap(of_tile)(jnp.arange(images.shape[0], dtype=jnp.uint32), images, jnp.asarray(masks))


def one_pair(
    key: jax.Array, image: jax.Array, mask: jax.Array, augmentation: PairAugmentation
) -> tuple[jax.Array, jax.Array]:
    """Change one tile and its mask.

    Args:
        key: random key.
        image: (h, w, c) float in 0..1.
        mask: (h, w) uint8 class ids.
        augmentation: how the tile is changed.

    Returns:
        (s, s, c) float32 view, normalised, and its mask, (s, s) uint8.
    """
    a = augmentation
    place_key, jitter_key = jax.random.split(key)
    box, *orientation = draw_placement(place_key, image.shape[0], image.shape[1], a)
    view, mask = resized_crop(image, box, a.size), nearest_crop(mask, box, a.size)
    # What can never happen is left out of the program.
    if a.rotate or a.flip > 0:
        view, mask = oriented(view, *orientation), oriented(mask, *orientation)
    if a.jitter > 0:
        view = jittered(jitter_key, view, a)
    return normalise(view, a.bands), mask


def draw_placement(key: jax.Array, height: int, width: int, augmentation: PairAugmentation) -> Placement:
    """Draw the crop and the orientation of a tile.

    Args:
        key: random key.
        height: rows of the tile, pixels.
        width: columns of the tile, pixels.
        augmentation: supplies size, scale, flip and rotate.

    Returns:
        The placement.
    """
    a = augmentation
    box_key, key = jax.random.split(key)
    draws = jax.random.uniform(key, (3,), jnp.float32)
    box = random_square_box(box_key, height, width, (a.size / a.scale[1], a.size / a.scale[0]))
    quarters = (draws[2] * (4 if a.rotate else 0)).astype(jnp.int32)
    # A quarter turn against the clock is a transposition and a flip top to bottom, half a turn is both flips, three
    # quarters are a transposition and a flip left to right.
    upside_down = (draws[0] < a.flip) ^ ((quarters == 1) | (quarters == 2))
    mirrored = (draws[1] < a.flip) ^ (quarters >= 2)
    return Placement(box, quarters % 2 == 1, upside_down, mirrored)
