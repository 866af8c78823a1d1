"""Barlow Twins (arXiv 2103.03230): the two views' embeddings agree in every channel, and no two channels do."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grass_jax.config import NOT_NEGATIVE, whole
from grass_jax.losses import collapse_signals, diagonal_and_rest
from grass_jax.methods import Method
from grass_jax.methods.skeleton import init_network, pool, run_encoder, run_head
from grass_jax.models.heads import MLPHead

RULES = {"hidden": whole(1), "embedding": whole(2), "redundancy": NOT_NEGATIVE}


def cross_correlation(embeddings: jax.Array) -> jax.Array:
    """Correlation over the batch of every channel of the first views with every channel of the second (equation 2).

    Args:
        embeddings: (b, 2, e); each view's channels are brought to mean 0 and variance 1 over its own batch.

    Returns:
        C, (e, e), between -1 and 1, in at least float32.
    """
    embeddings = embeddings.astype(jnp.promote_types(embeddings.dtype, jnp.float32))
    # 1e-5 as in the released code, whose standardisation is a batch norm: a constant channel correlates with nothing
    z = (embeddings - embeddings.mean(0)) * jax.lax.rsqrt(embeddings.var(0) + 1e-5)
    return jnp.einsum("be,bf->ef", z[:, 0], z[:, 1], precision="highest") / len(z)


def barlow_twins_loss(embeddings: jax.Array, *, redundancy: float) -> jax.Array:
    """The sum of (1 - C_ii)^2, plus `redundancy` times the sum of C_ij^2 off the diagonal (equation 1).

    Args:
        embeddings: (b, 2, e), whose cross-correlation is C.
        redundancy: weight of the second sum, the paper's lambda.

    Returns:
        A scalar in at least float32; not a mean: it grows with e.
    """
    diagonal, rest = diagonal_and_rest(cross_correlation(embeddings))
    return jnp.sum((1 - diagonal) ** 2) + redundancy * jnp.sum(rest**2)


def barlow_twins(encoder: nn.Module, *, hidden: int = 8192, embedding: int = 8192, redundancy: float = 5e-3) -> Method:
    """Redundancy reduction, without negatives, predictor or stop-gradient.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        hidden: channels of the projector's two hidden layers.
        embedding: channels e of the embedding.
        redundancy: weight of the correlations between channels.

    Returns:
        The method; its params and stats have the keys `encoder` and `projector`.
    """
    projector = MLPHead((hidden, hidden, embedding), dtype=getattr(encoder, "dtype", None))

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        return *init_network(encoder, {"projector": projector}, key, views), ()

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        embeddings, of_projector = run_head(projector, params["projector"], stats["projector"], pool(features))
        diagonal, rest = diagonal_and_rest(cross_correlation(embeddings))  # compiled, it is computed once
        metrics = {
            "diagonal": diagonal.mean(),  # towards 1
            "off_diagonal": jnp.sqrt(jnp.sum(rest**2) / (rest.size - len(rest))),  # root mean square, towards 0
        }
        loss = barlow_twins_loss(embeddings, redundancy=redundancy)
        return loss, ({**stats, "projector": of_projector}, collapse_signals(embeddings) | metrics)

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss)
