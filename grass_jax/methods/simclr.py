"""SimCLR (arXiv 2002.05709): InfoNCE on average-pooled features. GraSS is this method's GS training."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from grass_jax.config import AT_LEAST_A_HUNDREDTH, YES_OR_NO, whole
from grass_jax.losses import collapse_signals, info_nce
from grass_jax.methods import Method
from grass_jax.methods.skeleton import init_network, pool, run_encoder, run_head
from grass_jax.models.heads import ProjectionHead

RULES = {
    "hidden": whole(0, " (0: the width of the features)"),
    "embedding": whole(2),
    "relu": YES_OR_NO,
    "temperature": AT_LEAST_A_HUNDREDTH,
}


def simclr(
    encoder: nn.Module, *, temperature: float, hidden: int = 0, embedding: int = 128, relu: bool = True
) -> Method:
    """Instance discrimination with in-batch negatives.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        temperature: of InfoNCE.
        hidden: channels of the head's hidden layer; 0 takes those of the features.
        embedding: channels e of the embedding.
        relu: whether the head has a ReLU between its two layers.

    Returns:
        The method; its params have the keys `encoder` and `head`, its stats `encoder`.
    """
    head = ProjectionHead(embedding, hidden, relu, dtype=getattr(encoder, "dtype", None))

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        params, stats = init_network(encoder, {"head": head}, key, views)
        return params, {"encoder": stats["encoder"]}, ()

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        embeddings, _ = run_head(head, params["head"], {}, pool(features))
        return info_nce(embeddings, temperature=temperature), (stats, collapse_signals(embeddings))

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss)
