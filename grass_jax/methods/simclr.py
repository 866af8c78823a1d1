"""SimCLR (arXiv 2002.05709): InfoNCE on average-pooled features. GraSS is this method's GS training."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grass_jax.losses import collapse_signals, info_nce
from grass_jax.methods import Method


def simclr(encoder: nn.Module, head: nn.Module, *, temperature: float) -> Method:
    """Instance discrimination with in-batch negatives.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        head: pooled features (..., d) -> embeddings (..., e).
        temperature: of InfoNCE.

    Returns:
        The method; its params and stats have the keys `encoder` and `head` (stats: `encoder` alone).
    """

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        encoder_key, head_key = jax.random.split(key)
        features, variables = encoder.init_with_output(encoder_key, views[:, 0], train=True)
        params = {"encoder": variables["params"], "head": head.init(head_key, features.mean((-3, -2)))["params"]}
        return params, {"encoder": variables["batch_stats"]}, ()

    def encode(params: Any, stats: Any, views: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": params["encoder"], "batch_stats": stats["encoder"]}
        features, updated = encoder.apply(
            variables, views.reshape(-1, *views.shape[2:]), train=True, mutable=["batch_stats"]
        )
        return features.reshape(*views.shape[:2], *features.shape[1:]), {**stats, "encoder": updated["batch_stats"]}

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        pooled = features.mean((-3, -2), dtype=jnp.promote_types(features.dtype, jnp.float32))
        embeddings: jax.Array = head.apply({"params": params["head"]}, pooled)  # pyright: ignore[reportAssignmentType]
        return info_nce(embeddings, temperature=temperature), (stats, collapse_signals(embeddings))

    return Method(
        init=init,
        encode=encode,
        targets=lambda state, views: (),
        loss=loss,
        after=lambda extra, params, targets: extra,
    )
