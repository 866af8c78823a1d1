"""Where a view looks: the random crop, its resize and the flip."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

TRIES = 10


def random_resized_crop_box(
    key: jax.Array, height: int, width: int, area: Sequence[float], aspect: Sequence[float]
) -> jax.Array:
    """Draw the box of a random resized crop by torchvision's rule: the first of ten tries that fits, else the centre.

    Args:
        key: random key.
        height: rows of the tile, pixels.
        width: columns of the tile, pixels.
        area: smallest and largest area of the box, as a share of the tile's.
        aspect: smallest and largest width / height of the box; its logarithm is uniform.

    Returns:
        (4,) int32 box (y0, x0, y1, x1), half-open, in tile pixels. Where no try fits it is the central box, as large as
        the aspect range allows.

    Source: torchvision's `RandomResizedCrop`, which the original's pipeline names.
    """
    # One draw for everything: ten columns of (area, aspect) and a last one for the position.
    draws = jax.random.uniform(key, (2, TRIES + 1), jnp.float32)
    tile = np.array([height, width], np.int32)
    areas = height * width * (area[0] + (area[1] - area[0]) * draws[0, :TRIES])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    log_aspects = low + (high - low) * draws[1, :TRIES]
    sizes = jnp.round(jnp.sqrt(areas * jnp.exp(log_aspects * np.array([[-1.0], [1.0]], np.float32)))).astype(jnp.int32)
    tries = np.arange(TRIES, dtype=np.int32)
    first = jnp.min(jnp.where(jnp.all((sizes > 0) & (sizes <= tile[:, None]), axis=0), tries, TRIES))
    # A masked sum instead of indexing: a gather per view is slow on TPU.
    chosen = jnp.sum(jnp.where(tries == first, sizes, 0), axis=1, dtype=jnp.int32)
    size = jnp.where(first < TRIES, chosen, _central_size(height, width, aspect))
    room = tile - size
    corner = jnp.where(first < TRIES, _place(draws[:, TRIES], room), room // 2)
    return jnp.concatenate([corner, corner + size])


def random_square_box(key: jax.Array, height: int, width: int, side: Sequence[float]) -> jax.Array:
    """Draw a square box of random size and place; a side that the tile has no room for becomes the tile's shorter one.

    Args:
        key: random key.
        height: rows of the tile, pixels.
        width: columns of the tile, pixels.
        side: shortest and longest side of the box, pixels; its logarithm is uniform, so that half and double the
            geometric mean are equally likely.

    Returns:
        (4,) int32 box (y0, x0, y1, x1), half-open, in tile pixels.
    """
    draws = jax.random.uniform(key, (3,), jnp.float32)
    low, high = math.log(side[0]), math.log(side[1])
    drawn = jnp.clip(jnp.round(jnp.exp(low + (high - low) * draws[0])), 1, min(height, width)).astype(jnp.int32)
    corner = _place(draws[1:], np.array([height, width], np.int32) - drawn)
    return jnp.concatenate([corner, corner + drawn])


def _place(draws: jax.Array, room: jax.Array | np.ndarray) -> jax.Array:
    """Corner of a box, uniform over the whole numbers 0..room, from draws in [0, 1)."""
    # The product may round up to room + 1 for very large tiles: hence the minimum.
    return jnp.minimum((draws * (room + 1).astype(jnp.float32)).astype(jnp.int32), room)


def _central_size(height: int, width: int, aspect: Sequence[float]) -> np.ndarray:
    """Height and width of the largest box inside the tile whose aspect is within the range."""
    if width / height < aspect[0]:
        height = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        width = max(1, round(height * aspect[1]))
    return np.array([height, width], np.int32)


def resized_crop(image: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """Cut a box out of an image and resize it as Pillow's antialiased bilinear filter does, without its rounding.

    Args:
        image: (h, w, c) float.
        box: (4,) int32 (y0, x0, y1, x1), half-open, inside the image.
        size: height and width of the result, pixels.

    Returns:
        (size, size, c) float32.

    Source: Pillow's `Image.crop(...).resize(..., BILINEAR)`, the resize of the original's pipeline.
    """
    # Not jax.image.scale_and_translate: its filter would look at pixels outside of the box.
    rows = _resize_weights(box[0], box[2], image.shape[0], size)
    columns = _resize_weights(box[1], box[3], image.shape[1], size)
    image = image.astype(jnp.float32)
    # HIGH: on accelerators full float32 would cost more than it gives, errors far below a level of 8 bits
    image = jnp.einsum("yh,hwc->ywc", rows, image, precision=jax.lax.Precision.HIGH)
    return jnp.einsum("xw,ywc->yxc", columns, image, precision=jax.lax.Precision.HIGH)


def _resize_weights(start: jax.Array, stop: jax.Array, length: int, size: int) -> jax.Array:
    """Matrix (size, length) that resizes pixels [start, stop) to `size`: a triangle that widens when shrinking."""
    scale = (stop - start).astype(jnp.float32) / size
    centres = start.astype(jnp.float32) + (np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale
    pixels = np.arange(length, dtype=np.int32)
    distances = jnp.abs((pixels + np.float32(0.5)).astype(np.float32) - centres[:, None]) / jnp.maximum(scale, 1.0)
    weights = jnp.where((pixels >= start) & (pixels < stop), jnp.maximum(1.0 - distances, 0.0), 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def horizontal_flip(image: jax.Array, flip: jax.Array | bool) -> jax.Array:
    """Mirror an image left to right where `flip` is true.

    Args:
        image: (h, w, c).
        flip: () bool.

    Returns:
        (h, w, c) of the image's dtype.
    """
    return jnp.where(flip, image[:, ::-1], image)


def nearest_crop(mask: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """Cut a box out of a mask and resize it to the nearest pixel, as `resized_crop` does with the image.

    A pixel of the result reads the pixel that its centre falls into, as with Pillow's NEAREST.

    Args:
        mask: (h, w) uint8.
        box: (4,) int32 (y0, x0, y1, x1), half-open, inside the mask.
        size: height and width of the result, pixels.

    Returns:
        (size, size) uint8.
    """
    # In whole numbers, floor((i + 1/2) length / size): rounding cannot move an index.
    twice_centres = 2 * np.arange(size, dtype=np.int32) + 1
    row = box[0] + twice_centres * (box[2] - box[0]) // (2 * size)
    column = box[1] + twice_centres * (box[3] - box[1]) // (2 * size)
    # A TPU gathers one index after another while its matrix unit is idle; a CPU is the other way round.
    return jax.lax.platform_dependent(mask, row, column, tpu=_pick_by_product, default=_pick_by_gather)


def _pick_by_gather(mask: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    return mask[row][:, column]


def _pick_by_product(mask: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Do the same with one-hot matrices: whole numbers up to 256 are exact in bfloat16."""
    pick_rows = jax.nn.one_hot(row, mask.shape[0], dtype=jnp.bfloat16)
    pick_columns = jax.nn.one_hot(column, mask.shape[1], dtype=jnp.bfloat16)
    rows = jnp.einsum("yh,hw->yw", pick_rows, mask.astype(jnp.bfloat16))
    return jnp.einsum("xw,yw->yx", pick_columns, rows).astype(mask.dtype)


def oriented(
    image: jax.Array, transposed: jax.Array | bool, upside_down: jax.Array | bool, mirrored: jax.Array | bool
) -> jax.Array:
    """Give a square image one of its eight orientations: transpose it, then flip it top to bottom and left to right.

    Args:
        image: (s, s) or (s, s, c).
        transposed: () bool, whether rows and columns change places.
        upside_down: () bool, whether the rows are then reversed.
        mirrored: () bool, whether the columns are then reversed.

    Returns:
        The image's shape and dtype.
    """
    image = jnp.where(transposed, jnp.swapaxes(image, 0, 1), image)
    image = jnp.where(upside_down, image[::-1], image)
    return horizontal_flip(image, mirrored)
