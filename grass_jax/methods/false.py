"""FALSE (arXiv 2211.07928): SimCLR that moves the false negative of a batch to the positives."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grass_jax.config import AT_LEAST_A_HUNDREDTH, number, whole
from grass_jax.losses import collapse_signals, info_nce, normalised
from grass_jax.methods import Method
from grass_jax.methods.skeleton import init_network, pool, run_encoder, run_head
from grass_jax.models.heads import ProjectionHead

RULES = {
    "hidden": whole(0, " (0: the width of the features)"),
    "embedding": whole(2),
    "temperature": AT_LEAST_A_HUNDREDTH,
    "threshold": number("between -1 and 1", lambda v: -1 <= v <= 1),
    "confidence": number("of at least 0 and at most 1", lambda v: 0 <= v <= 1),
}


def false_negatives(embeddings: jax.Array, *, temperature: float, threshold: float) -> jax.Array:
    """Determines the false negative of a batch coarsely (FNSD): the one that is as similar as a positive.

    Of all pairs of a view and a negative the one is chosen whose |exp(s_neg / T) - exp(s_pos / T)| is the smallest,
    s_pos being the cosine of the view's positive pair, and all that equal it. It is taken for a false negative where
    s_pos is at least the threshold, that is where the network already knows a positive when it sees one.

    Args:
        embeddings: unnormalised, (b, 2, e).
        temperature: T, above 0.
        threshold: of s_pos.

    Returns:
        (b, 2, b, 2) bool: view (k, v) and its negative (l, w). No gradient enters.

    Source: GeoX-Lab/FALSE. There a pair is looked at in one direction only, from the view that comes first in the
    batch; here in both, so that the order of the batch does not matter.
    """
    similarity, positive, same_tile = _similarities(jax.lax.stop_gradient(embeddings))
    # the logarithm of the difference: the exponentials of low temperatures overflow
    difference = jnp.log(-jnp.expm1(-jnp.abs(similarity - positive) / temperature))
    difference += jnp.maximum(similarity, positive) / temperature
    difference = jnp.where(same_tile, jnp.inf, difference)
    return (difference == difference.min()) & (positive >= threshold)


def false_loss(embeddings: jax.Array, *, temperature: float, threshold: float, confidence: float) -> jax.Array:
    """InfoNCE with the false negative of the batch among the positives (FNCC).

    With P, N and F the exponentials of a view's positive, of its negatives and of its false negatives (none for most
    views), the loss of a view is -log((P + a F) / (P + N)), N containing F: a F has moved from the negatives to the
    positives, (1 - a) F has stayed.

    Args:
        embeddings: unnormalised, (b, 2, e).
        temperature: above 0.
        threshold: see `false_negatives`.
        confidence: a, 0 to 1; 0 is InfoNCE.

    Returns:
        The mean over the 2 b views, a scalar in at least float32.

    Source: arXiv 2211.07928; GeoX-Lab/FALSE.
    """
    similarity, positive, _ = _similarities(embeddings)
    moved = false_negatives(embeddings, temperature=temperature, threshold=threshold)
    shares = jnp.where(moved, jnp.exp(jnp.where(moved, (similarity - positive) / temperature, 0)), 0)  # F / P
    gain = jnp.log1p(confidence * shares.sum((2, 3)))
    return info_nce(embeddings, temperature=temperature) - gain.mean()


def _similarities(embeddings: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cosines (b, 2, b, 2), those of the positive pairs (b, 1, 1, 1), and which pairs are of one tile (b, 1, b, 1)."""
    z = normalised(embeddings)
    similarity = jnp.einsum("kve,lwe->kvlw", z, z, precision="highest")
    positive = jnp.sum(z[:, 0] * z[:, 1], axis=-1)[:, None, None, None]
    return similarity, positive, jnp.eye(z.shape[0], dtype=bool)[:, None, :, None]


def false(
    encoder: nn.Module,
    *,
    temperature: float,
    hidden: int = 0,
    embedding: int = 128,
    threshold: float = 0.9,
    confidence: float = 1.0,
) -> Method:
    """Instance discrimination aware of false negatives.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        temperature: of InfoNCE.
        hidden: channels of the head's hidden layer; 0 takes those of the features.
        embedding: channels e of the embedding.
        threshold: cosine of a positive pair from which on its view may have a false negative.
        confidence: share of a false negative that moves to the positives.

    Returns:
        The method; its params have the keys `encoder` and `head`, its stats `encoder`.
    """
    head = ProjectionHead(embedding, hidden, dtype=getattr(encoder, "dtype", None))
    criterion = {"temperature": temperature, "threshold": threshold}

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        return *init_network(encoder, {"head": head}, key, views), ()

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        embeddings, _ = run_head(head, params["head"], {}, pool(features))
        _, positive, _ = _similarities(embeddings)
        metrics = collapse_signals(embeddings)
        metrics["positive_cosine"] = jax.lax.stop_gradient(positive).mean()
        metrics["false_negatives"] = false_negatives(embeddings, **criterion).sum().astype(positive.dtype)
        return false_loss(embeddings, **criterion, confidence=confidence), (stats, metrics)

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss)
