"""Batches larger than memory: the encoder sees a batch part by part, the loss sees it whole.

This is gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
arXiv 2101.06983) written as rematerialisation: the first pass keeps the features of every part and nothing from inside
the encoder; the loss of the whole batch gives the gradient at all features; the backward pass runs each part forward
again, to carry its share of that gradient through. Memory is that of one part and of all views and features; the price
is one more forward of the encoder that trains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax


@dataclass(frozen=True)
class MicroBatched:
    """An encoder for the methods that runs on one part of the batch after the other; see `part_by_part`.

    Attributes:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        parts: in how many parts; it divides the number of tiles of a batch.
    """

    encoder: nn.Module
    parts: int

    @property
    def dtype(self) -> Any:
        """Of the encoder's computation."""
        return getattr(self.encoder, "dtype", None)

    def init_with_output(self, *arguments: Any, **options: Any) -> Any:
        """That of the encoder: parameters do not depend on the parts."""
        return self.encoder.init_with_output(*arguments, **options)


def part_by_part(forward: Callable[..., tuple[Any, Any]], parts: int) -> Callable[..., tuple[jax.Array, Any]]:
    """Makes a forward pass that holds one part of the batch in memory at a time, forwards and backwards.

    Part p holds the tiles p, p + parts, p + 2 parts, ... : whatever devices share the batch share every part alike, and
    no image moves. Features are those of `forward` on the whole batch; where batch norm is in it, each part is
    normalised by its own statistics (ghost batch norm, arXiv 1705.08741), and the running statistics are the mean of
    what every part makes of those before.

    Args:
        forward: (params, stats, views) -> features (b, 2, h, w, d), stats.
        parts: in how many parts.

    Returns:
        A function like `forward`.

    Raises:
        ValueError: when called with a number of tiles that `parts` does not divide.
    """

    def whole(params: Any, stats: Any, views: jax.Array) -> tuple[jax.Array, Any]:
        tiles = views.shape[0]
        if tiles % parts:
            raise ValueError(f"{parts} parts cannot share {tiles} tiles: config.micro_batches must divide the batch.")
        # checkpoint: the backward pass keeps a part's views and computes the rest anew. A loop keeps what it would
        # reuse apart by itself, so that no barriers against common subexpressions are needed.
        remembered = jax.checkpoint(forward, prevent_cse=False)
        split = views.reshape(tiles // parts, parts, *views.shape[1:]).swapaxes(0, 1)
        features, each = jax.lax.map(lambda part: remembered(params, stats, part), split)
        features = features.swapaxes(0, 1).reshape(tiles, *features.shape[2:])
        return features, jax.tree.map(lambda a: a.mean(0), each)

    return whole
