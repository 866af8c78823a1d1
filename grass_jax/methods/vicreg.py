"""VICReg (arXiv 2105.04906): views agree, every channel varies over the batch, and channels do not vary together."""

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

RULES = {
    "hidden": whole(1),
    "embedding": whole(2),
    "invariance": NOT_NEGATIVE,
    "variance": NOT_NEGATIVE,
    "covariance": NOT_NEGATIVE,
}


def vicreg_terms(embeddings: jax.Array) -> dict[str, jax.Array]:
    """The three terms of the loss, before their weights (equations 1 to 4, and algorithm 1).

    Args:
        embeddings: unnormalised, (b, 2, e), b of at least 2.

    Returns:
        Scalars in at least float32. `invariance`: mean square of the difference of the two views, over tiles and
        channels as in algorithm 1 (equation 5 sums over channels, to which the published weights do not belong);
        `variance`: mean over channels of max(0, 1 - sqrt(variance + 1e-4)); `covariance`: sum of the squared
        covariances of different channels, divided by e. The last two are summed over the two views, and variances and
        covariances divide by b - 1.
    """
    embeddings = embeddings.astype(jnp.promote_types(embeddings.dtype, jnp.float32))
    b, _, e = embeddings.shape
    centred = embeddings - embeddings.mean(0)
    covariance = jnp.einsum("bve,bvf->vef", centred, centred, precision="highest") / (b - 1)
    variances, rest = diagonal_and_rest(covariance)
    return {
        "invariance": jnp.mean((embeddings[:, 0] - embeddings[:, 1]) ** 2),
        "variance": jnp.sum(jnp.maximum(0, 1 - jnp.sqrt(variances + 1e-4))) / e,
        "covariance": jnp.sum(rest**2) / e,
    }


def vicreg_loss(embeddings: jax.Array, *, invariance: float, variance: float, covariance: float) -> jax.Array:
    """The weighted sum of the three terms (equation 6).

    Args:
        embeddings: unnormalised, (b, 2, e), b of at least 2.
        invariance: weight of the views' difference, the paper's lambda.
        variance: weight of the hinge on the standard deviations, mu.
        covariance: weight of the covariances, nu.

    Returns:
        A scalar in at least float32.
    """
    terms = vicreg_terms(embeddings)
    return invariance * terms["invariance"] + variance * terms["variance"] + covariance * terms["covariance"]


def vicreg(
    encoder: nn.Module,
    *,
    hidden: int = 8192,
    embedding: int = 8192,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Method:
    """Variance, invariance and covariance regularisation, without negatives, predictor or stop-gradient.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        hidden: channels of the expander's two hidden layers.
        embedding: channels e of the embedding.
        invariance: weight of the views' difference.
        variance: weight of the hinge on the standard deviations.
        covariance: weight of the covariances.

    Returns:
        The method; its params and stats have the keys `encoder` and `projector`, the paper's expander.
    """
    projector = MLPHead((hidden, hidden, embedding), dtype=getattr(encoder, "dtype", None))

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        return *init_network(encoder, {"projector": projector}, key, views), ()

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        embeddings, of_projector = run_head(projector, params["projector"], stats["projector"], pool(features))
        loss = vicreg_loss(embeddings, invariance=invariance, variance=variance, covariance=covariance)
        terms = vicreg_terms(embeddings)  # compiled, they are computed once
        metrics = {name: terms[name] for name in ("invariance", "variance")}
        return loss, ({**stats, "projector": of_projector}, collapse_signals(embeddings) | metrics)

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss)
