"""PixPro (arXiv 2011.10043): cells of two views that look at the same place agree, one after smoothing by likeness."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grass_jax.augment import Geometry
from grass_jax.config import BELOW_ONE, POSITIVE, number, whole
from grass_jax.losses import collapse_signals, normalised
from grass_jax.methods import Method
from grass_jax.methods.places import near_cells, require_places
from grass_jax.methods.skeleton import (
    cells,
    cosine_momentum,
    init_encoder,
    init_head,
    moving_average,
    run_encoder,
    run_head,
)
from grass_jax.models.heads import MLPHead
from grass_jax.state import TrainState

RULES = {
    "hidden": whole(1),
    "embedding": whole(2),
    "distance": POSITIVE,
    "gamma": number("of at least 1", lambda v: v >= 1),
    "momentum": BELOW_ONE,
}


def propagate(embeddings: jax.Array, values: jax.Array, *, gamma: float) -> jax.Array:
    """Smooths the cells of a view by likeness: y_i = sum over j of max(cos(x_i, x_j), 0)^gamma g(x_j).

    Args:
        embeddings: x, unnormalised, (..., n, e).
        values: g(x), unnormalised, (..., n, e); they enter at unit length.
        gamma: sharpness, at least 1.

    Returns:
        (..., n, e) in at least float32.

    Source: arXiv 2011.10043, equations 3 and 4; the unit length of the values as in zdaxie/PixPro.
    """
    x = normalised(embeddings)
    likeness = jnp.maximum(jnp.einsum("...ie,...je->...ij", x, x, precision="highest"), 0) ** gamma
    return jnp.einsum("...ij,...je->...ie", likeness, normalised(values), precision="highest")


def pixpro_loss(propagated: jax.Array, targets: jax.Array, positives: jax.Array) -> jax.Array:
    """Pixel-to-propagation consistency: -cos(y_i, x'_j) - cos(y_j, x'_i), averaged over the pairs of a tile.

    Args:
        propagated: y of the trained network, unnormalised, (b, 2, n, e).
        targets: x' of its moving average, unnormalised, (b, 2, n, e); no gradient enters them.
        positives: pairs (i, j) of a cell of the first and a cell of the second view, (b, n, n) bool.

    Returns:
        The mean over the tiles that have a pair, between -2 and 2, a scalar in at least float32; 0 where none has.

    Source: arXiv 2011.10043, equation 5.
    """
    y, x = normalised(propagated), normalised(jax.lax.stop_gradient(targets))
    pairs = positives.astype(y.dtype)
    count = pairs.sum((1, 2))
    forth = jnp.einsum("bij,bie,bje->b", pairs, y[:, 0], x[:, 1], precision="highest")
    back = jnp.einsum("bij,bje,bie->b", pairs, y[:, 1], x[:, 0], precision="highest")
    agreement = (forth + back) / jnp.maximum(count, 1)
    return -agreement.sum() / jnp.maximum((count > 0).sum(), 1)


def pixpro(
    encoder: nn.Module,
    *,
    hidden: int,
    embedding: int,
    total_steps: int,
    distance: float = 0.7,
    gamma: float = 2.0,
    momentum: float = 0.99,
) -> Method:
    """Pixel-level consistency without negatives.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        hidden: channels of the projection's hidden layer.
        embedding: channels e of a cell's embedding.
        total_steps: length of the run, over which the momentum rises to 1.
        distance: below which two cells are a pair, in diagonals of a cell.
        gamma: sharpness of the propagation.
        momentum: of the moving average at the start.

    Returns:
        The method; its params have the keys `encoder`, `head` and `transform`, its stats `encoder` and `head`, its
        extra, the moving averages, `encoder` and `head`.
    """
    dtype = getattr(encoder, "dtype", None)
    head, transform = MLPHead((hidden, embedding), dtype=dtype), MLPHead((embedding,))

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        keys = jax.random.split(key, 3)
        features, params, stats = init_encoder(encoder, keys[0], views)
        embeddings, head_params, head_stats = init_head(head, keys[1], cells(features))
        _, transform_params, _ = init_head(transform, keys[2], embeddings)
        params = {"encoder": params, "head": head_params, "transform": transform_params}
        return params, {"encoder": stats, "head": head_stats}, {name: params[name] for name in ("encoder", "head")}

    def targets(state: TrainState, views: jax.Array, geometry: Geometry | None) -> dict[str, jax.Array]:
        geometry = require_places(geometry, "pixpro")
        # in train mode the batch's own statistics normalise: the moving average needs no running ones
        features, _ = run_encoder(encoder, state.extra, state.stats, views)
        embeddings, _ = run_head(head, state.extra["head"], state.stats["head"], cells(features))
        return {
            "embeddings": jax.lax.stop_gradient(embeddings),
            "positives": near_cells(geometry, features.shape[2], features.shape[3], distance),
            "momentum": cosine_momentum(momentum, state.step, total_steps),
        }

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        embeddings, head_stats = run_head(head, params["head"], stats["head"], cells(features))
        values, _ = run_head(transform, params["transform"], {}, embeddings)
        propagated = propagate(embeddings, values, gamma=gamma)
        metrics = collapse_signals(jnp.swapaxes(embeddings, 1, 2).reshape(-1, 2, embedding))  # of all cells
        metrics["overlapping"] = targets["positives"].any((1, 2)).mean()
        value = pixpro_loss(propagated, targets["embeddings"], targets["positives"])
        return value, ({**stats, "head": head_stats}, metrics)

    def after(extra: Any, params: Any, targets: Any) -> Any:
        return moving_average(extra, {name: params[name] for name in extra}, targets["momentum"])

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss, targets=targets, after=after)
