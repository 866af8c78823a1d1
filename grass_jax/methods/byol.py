"""BYOL (arXiv 2006.07733): a network predicts what a moving average of itself says of the other view."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from grass_jax.augment import Geometry
from grass_jax.config import BELOW_ONE, whole
from grass_jax.losses import collapse_signals, crossed_cosine
from grass_jax.methods import Method
from grass_jax.methods.skeleton import cosine_momentum, init_network, moving_average, pool, run_encoder, run_head
from grass_jax.models.heads import MLPHead
from grass_jax.state import TrainState

RULES = {"hidden": whole(1), "embedding": whole(2), "momentum": BELOW_ONE}


def byol_loss(predictions: jax.Array, projections: jax.Array) -> jax.Array:
    """2 - 2 cos(q, z') per view, averaged over the tiles and summed over the two views (equations 2 and 3).

    Args:
        predictions: q of the online network, (b, 2, e).
        projections: z' of the target network, (b, 2, e); no gradient enters them.

    Returns:
        A scalar between 0 and 8, in at least float32.
    """
    return 2 * (2 - 2 * crossed_cosine(predictions, projections))


def byol(
    encoder: nn.Module, *, total_steps: int, hidden: int = 4096, embedding: int = 256, momentum: float = 0.996
) -> Method:
    """Bootstraps the encoder from its own moving average, without negatives.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        total_steps: over which the momentum rises to 1.
        hidden: channels of the hidden layers of projector and predictor.
        embedding: channels e of the embedding.
        momentum: of the moving average in the first step.

    Returns:
        The method; its params and stats have the keys `encoder`, `projector` and `predictor`, its extra, the parameters
        of the target network, `encoder` and `projector`.
    """
    dtype = getattr(encoder, "dtype", None)
    projector, predictor = (MLPHead((hidden, embedding), dtype=dtype) for _ in range(2))

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        params, stats = init_network(encoder, {"projector": projector, "predictor": predictor}, key, views)
        return params, stats, {"encoder": params["encoder"], "projector": params["projector"]}

    def targets(state: TrainState, views: jax.Array, geometry: Geometry | None) -> tuple[jax.Array, jax.Array]:
        del geometry
        # in train mode the batch's own statistics normalise: the target network needs no running ones
        features, _ = run_encoder(encoder, state.extra, state.stats, views)
        projections, _ = run_head(projector, state.extra["projector"], state.stats["projector"], pool(features))
        return jax.lax.stop_gradient(projections), cosine_momentum(momentum, state.step, total_steps)

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        projections, of_projector = run_head(projector, params["projector"], stats["projector"], pool(features))
        predictions, of_predictor = run_head(predictor, params["predictor"], stats["predictor"], projections)
        stats = {**stats, "projector": of_projector, "predictor": of_predictor}
        return byol_loss(predictions, targets[0]), (stats, collapse_signals(projections) | {"momentum": targets[1]})

    def after(extra: Any, params: Any, targets: Any) -> Any:
        return moving_average(extra, {name: params[name] for name in extra}, targets[1])

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss, targets=targets, after=after)
