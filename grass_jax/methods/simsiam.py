"""SimSiam (arXiv 2011.10566): one view predicts the other, whose side takes no gradient; no negatives, no average."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from grass_jax.config import whole
from grass_jax.losses import collapse_signals, crossed_cosine
from grass_jax.methods import Method
from grass_jax.methods.skeleton import init_network, pool, run_encoder, run_head
from grass_jax.models.heads import MLPHead

RULES = {"hidden": whole(1), "embedding": whole(2), "bottleneck": whole(1)}


def simsiam_loss(predictions: jax.Array, projections: jax.Array) -> jax.Array:
    """-cos(p, stop(z')) averaged over tiles and views: equation 4 with equation 2's symmetry.

    Args:
        predictions: p of each view, (b, 2, e).
        projections: z of each view, (b, 2, e); no gradient enters them here.

    Returns:
        A scalar between -1 and 1, in at least float32.
    """
    return -crossed_cosine(predictions, projections)


def simsiam(encoder: nn.Module, *, hidden: int = 2048, embedding: int = 2048, bottleneck: int = 512) -> Method:
    """A Siamese network with a predictor on one side and a stop-gradient on the other.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        hidden: channels of the projector's two hidden layers.
        embedding: channels e of the embedding.
        bottleneck: channels of the predictor's hidden layer.

    Returns:
        The method; its params and stats have the keys `encoder`, `projector` and `predictor`.
    """
    dtype = getattr(encoder, "dtype", None)
    projector = MLPHead((hidden, hidden, embedding), last_norm="fixed", dtype=dtype)
    predictor = MLPHead((bottleneck, embedding), dtype=dtype)

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        return *init_network(encoder, {"projector": projector, "predictor": predictor}, key, views), ()

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        projections, of_projector = run_head(projector, params["projector"], stats["projector"], pool(features))
        predictions, of_predictor = run_head(predictor, params["predictor"], stats["predictor"], projections)
        stats = {**stats, "projector": of_projector, "predictor": of_predictor}
        return simsiam_loss(predictions, projections), (stats, collapse_signals(projections))

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss)
