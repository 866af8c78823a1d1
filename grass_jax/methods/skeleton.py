"""The parts that methods share: the encoder on both views, heads with their statistics, moving averages, queues."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grass_jax.losses import normalised
from grass_jax.methods.micro_batches import MicroBatched, part_by_part


def init_encoder(encoder: nn.Module, key: jax.Array, views: jax.Array) -> tuple[jax.Array, Any, Any]:
    """Initialises an encoder.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        key: for its parameters.
        views: (b, 2, s, s, c).

    Returns:
        Features (b, 2, h, w, d) of the views, which lend their shape to the heads; params; batch statistics.
    """
    features, variables = encoder.init_with_output(key, _rows(views), train=True)
    return _pairs(features, views), variables["params"], variables.get("batch_stats", {})  # pyright: ignore[reportReturnType]


def run_encoder(
    encoder: nn.Module | MicroBatched, params: Any, stats: Any, views: jax.Array, *, begin: int = 0, end: int = 4
) -> tuple[jax.Array, Any]:
    """Encodes both views of every tile in one forward, in train mode.

    Args:
        encoder: as for `init_encoder`.
        params: with the key `encoder`.
        stats: with the key `encoder`.
        views: (b, 2, s, s, c), or the features of stage `begin`.
        begin: stages that are already done.
        end: the last stage to run.

    Returns:
        Features (b, 2, h, w, d), and the statistics with those of the encoder updated.
    """
    if isinstance(encoder, MicroBatched):
        forward = partial(run_encoder, encoder.encoder, begin=begin, end=end)
        return part_by_part(forward, encoder.parts)(params, stats, views)
    variables = {"params": params["encoder"], "batch_stats": stats["encoder"]}
    part: dict[str, Any] = {} if (begin, end) == (0, 4) else {"begin": begin, "end": end}
    features, updated = encoder.apply(variables, _rows(views), train=True, mutable=["batch_stats"], **part)
    return _pairs(features, views), {**stats, "encoder": updated.get("batch_stats", {})}  # pyright: ignore[reportReturnType]


def pool(features: jax.Array) -> jax.Array:
    """Averages features (..., h, w, d) over space, in at least float32."""
    return features.mean((-3, -2), dtype=jnp.promote_types(features.dtype, jnp.float32))


def cells(features: jax.Array) -> jax.Array:
    """Lists the cells of features (..., h, w, d): (..., h w, d)."""
    return features.reshape(*features.shape[:-3], -1, features.shape[-1])


def init_head(head: nn.Module, key: jax.Array, inputs: jax.Array) -> tuple[jax.Array, Any, Any]:
    """Initialises a head.

    Args:
        head: inputs (..., d) -> outputs, called with `train=`.
        key: for its parameters.
        inputs: of the shape that it gets, two views and all.

    Returns:
        Its outputs, params, and batch statistics ({} where it has none).
    """
    outputs, variables = head.init_with_output(key, inputs, train=True)
    return outputs, variables["params"], variables.get("batch_stats", {})  # pyright: ignore[reportReturnType]


def init_network(
    encoder: nn.Module, heads: Mapping[str, nn.Module], key: jax.Array, views: jax.Array
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Initialises an encoder and heads on its pooled features, each head on the outputs of the one before.

    Args:
        encoder: as for `init_encoder`.
        heads: by name, in the order in which they follow each other.
        key: for the parameters.
        views: (b, 2, s, s, c).

    Returns:
        Params and batch statistics, both with the keys `encoder` and those of the heads.
    """
    keys = jax.random.split(key, 1 + len(heads))
    features, encoder_params, encoder_stats = init_encoder(encoder, keys[0], views)
    params, stats = {"encoder": encoder_params}, {"encoder": encoder_stats}
    outputs = pool(features)
    for head_key, (name, head) in zip(keys[1:], heads.items(), strict=True):
        outputs, params[name], stats[name] = init_head(head, head_key, outputs)
    return params, stats


def run_head(head: nn.Module, params: Any, stats: Any, inputs: jax.Array) -> tuple[jax.Array, Any]:
    """Applies a head in train mode; batch norm sees both views of all tiles together.

    Args:
        head: as for `init_head`.
        params: its own.
        stats: its own.
        inputs: (b, 2, ..., d).

    Returns:
        Its outputs, and its statistics updated.
    """
    outputs, updated = head.apply({"params": params, "batch_stats": stats}, inputs, train=True, mutable=["batch_stats"])
    return outputs, updated.get("batch_stats", {})  # pyright: ignore[reportReturnType]


def moving_average(target: Any, online: Any, momentum: jax.Array | float) -> Any:
    """momentum target + (1 - momentum) online, for two trees of the same structure."""
    return jax.tree.map(lambda old, new: (momentum * old + (1 - momentum) * new).astype(old.dtype), target, online)


def cosine_momentum(base: float, step: jax.Array, total_steps: int) -> jax.Array:
    """Momentum that rises from `base` to 1: 1 - (1 - base) (cos(pi k / K) + 1) / 2 (BYOL, arXiv 2006.07733, 3.2)."""
    share = jnp.minimum(step / max(1, total_steps), 1.0)
    return 1 - (1 - base) * (jnp.cos(jnp.pi * share) + 1) / 2


def random_queue(key: jax.Array, size: int, embedding: int) -> jax.Array:
    """A queue before its first keys: (size, embedding) random vectors of unit length."""
    return normalised(jax.random.normal(key, (size, embedding)))


def enqueue(queue: jax.Array, keys: jax.Array) -> jax.Array:
    """Puts new keys in front of a queue and drops as many of the oldest.

    Args:
        queue: (q, e).
        keys: (..., e), in all at most q rows.

    Returns:
        (q, e).

    Raises:
        ValueError: there are more keys than places.
    """
    keys = keys.reshape(-1, keys.shape[-1]).astype(queue.dtype)
    if len(keys) > len(queue):
        raise ValueError(
            f"A queue of {len(queue)} cannot take {len(keys)} keys a step: raise config.method.queue to a few batches."
        )
    return jnp.concatenate([keys, queue[: len(queue) - len(keys)]])


def _rows(views: jax.Array) -> jax.Array:
    return views.reshape(-1, *views.shape[2:])


def _pairs(rows: Any, views: jax.Array) -> jax.Array:
    return rows.reshape(*views.shape[:2], *rows.shape[1:])
