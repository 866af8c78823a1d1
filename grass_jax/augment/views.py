"""Two augmented views of every tile: the parts in the original's order."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp

from grass_jax.augment.blur import gaussian_blur
from grass_jax.augment.colour import greyscale, jittered
from grass_jax.augment.geometry import horizontal_flip, nearest_crop, random_resized_crop_box, resized_crop
from grass_jax.augment.rules import COLOUR, PAIR, PROBABILITY, SIZE, check_fields
from grass_jax.bands import RGB, Bands, normalise, unit_range
from grass_jax.config import Rule


@dataclass(frozen=True)
class Augmentation:
    """How views are made; the defaults are the original's (GeoX-Lab/GraSS, its SimCLR pretraining configuration).

    Attributes:
        size: height and width of a view, pixels.
        area: smallest and largest area of a crop, as a share of the tile's.
        aspect: smallest and largest width / height of a crop.
        flip: probability of mirroring left to right.
        jitter: probability of the colour jitter; bands that are not red, green and blue get a brightness and a contrast
            each of their own instead.
        brightness: the factor is uniform in 1 -+ this (and at least 0).
        contrast: the same for contrast.
        saturation: the same for saturation.
        hue: largest turn of the hue, as a share of a full turn, at most 0.5.
        greyscale: probability of losing all colour; nothing happens where no bands are red, green and blue.
        blur: probability of the Gaussian blur.
        blur_sigma: smallest and largest standard deviation of the blur, view pixels.
        bands: of the tiles: how they become floats, which are red, green and blue, and how they are normalised.

    Raises:
        ValueError: where a value is not allowed, naming the field.
    """

    size: int
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    greyscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    bands: Bands = RGB

    def __post_init__(self):
        check_fields(self, RULES)


# of the keys that a configuration gives: `bands` comes from the data
RULES = {
    **COLOUR,
    "size": SIZE,
    "area": Rule(f"{PAIR.words} <= 1", lambda v: PAIR.holds(v) and v[1] <= 1),
    "aspect": PAIR,
    "flip": PROBABILITY,
    "greyscale": PROBABILITY,
    "blur": PROBABILITY,
    "blur_sigma": PAIR,
}


class Geometry(NamedTuple):
    """Where views come from: for masks, and for methods that match places between views.

    Attributes:
        boxes: (b, 2, 4) int32 (y0, x0, y1, x1), half-open, tile pixels; float32 after a crop to boxes, see `zoomed`.
        flips: (b, 2) bool, whether the crop was mirrored left to right after its resize.
    """

    boxes: jax.Array
    flips: jax.Array


@overload
def two_views(
    key: jax.Array, images: jax.Array, augmentation: Augmentation, *, geometry: Literal[False] = False
) -> jax.Array: ...
@overload
def two_views(
    key: jax.Array, images: jax.Array, augmentation: Augmentation, *, geometry: Literal[True]
) -> tuple[jax.Array, Geometry]: ...
def two_views(
    key: jax.Array, images: jax.Array, augmentation: Augmentation, *, geometry: bool = False
) -> jax.Array | tuple[jax.Array, Geometry]:
    """Make two augmented views of every tile, each drawn independently.

    A view depends on the key, on its tile and on the tile's place in the batch, not on the other tiles.

    Args:
        key: random key.
        images: (b, h, w, c) tiles in the dtype of the augmentation's bands, or float in 0..1 in place of integers.
        augmentation: how views are made.
        geometry: whether to return crop and flip of every view, too.

    Returns:
        (b, 2, s, s, c) float32 views, normalised; with `geometry` a pair of them and their Geometry.

    Raises:
        ValueError: where `images` has another shape or dtype.

    Source: the original's order of transforms (GeoX-Lab/GraSS, its SimCLR pretraining configuration).
    """
    if images.ndim != 4:
        raise ValueError(f"images must be tiles, (b, h, w, {len(augmentation.bands)}), not {images.shape}.")
    images = unit_range(images, augmentation.bands)

    def of_tile(index: jax.Array, image: jax.Array) -> tuple[jax.Array, Geometry]:
        keys = jax.random.split(jax.random.fold_in(key, index))
        return jax.vmap(lambda view_key: one_view(view_key, image, augmentation))(keys)

    tiles = jnp.arange(images.shape[0], dtype=jnp.uint32)
    views, where = jax.vmap(of_tile)(tiles, images)
    return (views, where) if geometry else views


def one_view(key: jax.Array, image: jax.Array, augmentation: Augmentation) -> tuple[jax.Array, Geometry]:
    """Make one augmented view of a tile.

    Args:
        key: random key.
        image: (h, w, c) float in 0..1.
        augmentation: how views are made.

    Returns:
        (s, s, c) float32 view, normalised; its Geometry, without the leading axes.
    """
    a = augmentation
    box_key, jitter_key, key = jax.random.split(key, 3)
    draws = jax.random.uniform(key, (4,), jnp.float32)
    box = random_resized_crop_box(box_key, image.shape[0], image.shape[1], a.area, a.aspect)
    flip = draws[0] < a.flip
    view = horizontal_flip(resized_crop(image, box, a.size), flip)
    # What can never happen is left out of the program.
    if a.jitter > 0:
        view = jittered(jitter_key, view, a)
    if a.greyscale > 0 and a.bands.colours:
        view = greyscale(view, draws[1] < a.greyscale, colours=a.bands.colours)
    if a.blur > 0:
        low, high = a.blur_sigma
        sigma = jnp.where(draws[2] < a.blur, low + (high - low) * draws[3], 0.0)
        view = gaussian_blur(view, sigma, radius=math.ceil(4 * high))
    return normalise(view, a.bands), Geometry(box, flip)


def zoomed(geometry: Geometry, boxes: jax.Array, size: int) -> Geometry:
    """Says where views look after they have been cropped to boxes: for methods that match places between views.

    Args:
        geometry: of the views, (b, 2).
        boxes: (b, 2, 4) (y0, x0, y1, x1), half-open, in pixels of views of `size`.
        size: height and width s of a view, pixels.

    Returns:
        The same flips, and (b, 2, 4) float32 boxes in tile pixels.
    """
    start, stop = geometry.boxes[..., None, :2], geometry.boxes[..., None, 2:]
    corners = boxes.astype(jnp.float32).reshape(*boxes.shape[:-1], 2, 2) / size
    y, x0, x1 = corners[..., 0], corners[..., 0, 1], corners[..., 1, 1]
    flips = geometry.flips
    x = jnp.stack([jnp.where(flips, 1 - x1, x0), jnp.where(flips, 1 - x0, x1)], -1)
    places = start + jnp.stack([y, x], -1) * (stop - start)
    return Geometry(places.reshape(boxes.shape), flips)


def view_masks(masks: jax.Array, geometry: Geometry, size: int) -> jax.Array:
    """Let masks follow the crop and flip of their views, to the nearest pixel.

    Args:
        masks: (b, h, w) uint8 ids of the tiles.
        geometry: of their views, from `two_views`.
        size: height and width s of a view, pixels.

    Returns:
        (b, 2, s, s) uint8 ids.
    """

    def of_view(mask: jax.Array, box: jax.Array, flip: jax.Array) -> jax.Array:
        return horizontal_flip(nearest_crop(mask, box, size), flip)

    return jax.vmap(jax.vmap(of_view, in_axes=(None, 0, 0)))(masks, geometry.boxes, geometry.flips)
