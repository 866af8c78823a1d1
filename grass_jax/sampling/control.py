"""The control of guided sampling: boxes of the same sizes, placed without looking."""

import jax
import jax.numpy as jnp
from jax import Array


def random_places(key: Array, boxes: Array, size: int) -> Array:
    """Moves every box to a random place inside its view; height and width stay.

    Args:
        key: random key.
        boxes: (..., 4) int32 (y0, x0, y1, x1), half-open, inside the view.
        size: side s of the view, pixels.

    Returns:
        (..., 4) int32 boxes, every place where the box fits equally likely.
    """
    extent = boxes[..., 2:] - boxes[..., :2]
    room = size - extent
    draws = jax.random.uniform(key, extent.shape, jnp.float32)
    corner = jnp.minimum((draws * (room + 1)).astype(jnp.int32), room)  # the product may round up to room + 1
    return jnp.concatenate([corner, corner + extent], -1)
