"""The values of the bands: stored integers to [0, 1], and the normalisation that the encoder expects."""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np


class BandStatistics(Protocol):
    """Whatever has a mean and a standard deviation for each band: an augmentation, a loaded encoder, a segmenter."""

    @property
    def mean(self) -> Sequence[float]:
        """Of each band, in [0, 1]."""
        ...

    @property
    def std(self) -> Sequence[float]:
        """Of each band, above 0."""
        ...


def unit_range(images: jax.Array) -> jax.Array:
    """Turn tiles as stored into floats in [0, 1].

    Args:
        images: (b, h, w, 3) tiles, uint8 in 0..255 or float in 0..1.

    Returns:
        (b, h, w, 3) float32 in 0..1.

    Raises:
        ValueError: where `images` has another shape or dtype.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be tiles of three bands, (b, h, w, 3), not {images.shape}.")
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 in 0..255 or float in 0..1, not {images.dtype}.")
    scale = 1 / 255 if images.dtype == jnp.uint8 else 1.0
    return images.astype(jnp.float32) * np.float32(scale)


def normalise(views: jax.Array, statistics: BandStatistics) -> jax.Array:
    """Subtract the mean of each band and divide by its standard deviation.

    Args:
        views: (..., 3) in [0, 1].
        statistics: supplies mean and std.

    Returns:
        (..., 3).
    """
    return (views - np.asarray(statistics.mean, np.float32)) / np.asarray(statistics.std, np.float32)


def denormalise(views: jax.Array, statistics: BandStatistics) -> jax.Array:
    """Undo `normalise`, for figures.

    Args:
        views: (..., 3) normalised.
        statistics: supplies mean and std.

    Returns:
        (..., 3) in [0, 1].
    """
    views = views * np.asarray(statistics.std, np.float32) + np.asarray(statistics.mean, np.float32)
    return jnp.clip(views, 0.0, 1.0)
