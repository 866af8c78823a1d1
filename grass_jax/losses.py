"""Losses: arrays in, a scalar out, and the numbers that show a collapse of the embeddings."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalised(embeddings: jax.Array) -> jax.Array:
    """Scales embeddings (..., e) to unit length, in at least float32; a zero vector stays zero."""
    embeddings = embeddings.astype(jnp.promote_types(embeddings.dtype, jnp.float32))
    square = jnp.sum(embeddings**2, axis=-1, keepdims=True)
    # max(norm, 1e-12), written so that the gradient of a zero vector is finite
    return embeddings * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def info_nce(embeddings: jax.Array, *, temperature: float, valid: jax.Array | None = None) -> jax.Array:
    """InfoNCE over a batch of view pairs (NT-Xent of SimCLR, arXiv 2002.05709 equation 1).

    The positive of a view is the other view of its tile, the negatives are all views of all other tiles. Per view the
    loss is log(1 + sum over negatives of exp((s_neg - s_pos) / T)): computed from the differences to the positive it
    keeps its relative precision down to losses of 1e-4, where the textbook form subtracts two equal numbers.

    Args:
        embeddings: unnormalised, (b, 2, e).
        temperature: T, above 0.
        valid: pairs that take part, as positives and as negatives of others, (b,) bool; None takes all.

    Returns:
        The mean over the 2 b views, a scalar in at least float32; 0 where no pair takes part, or only one.

    Raises:
        ValueError: the shape is not (b, 2, e) with b of at least 2.
    """
    if embeddings.ndim != 3 or embeddings.shape[0] < 2 or embeddings.shape[1] != 2:
        raise ValueError(f"info_nce takes embeddings of shape (b, 2, e) with b >= 2, not {embeddings.shape}.")
    z = normalised(embeddings)
    b = z.shape[0]
    similarity = jnp.einsum("kve,lwe->kvlw", z, z, precision="highest")
    positive = jnp.sum(z[:, 0] * z[:, 1], axis=-1)
    left_out = jnp.eye(b, dtype=bool)[:, None, :, None]
    if valid is not None:
        left_out |= ~valid[:, None, None, None] | ~valid[:, None]
    difference = (similarity - positive[:, None, None, None]) / temperature
    negatives = jax.nn.logsumexp(jnp.where(left_out, -jnp.inf, difference), axis=(2, 3))
    losses = jax.nn.softplus(negatives)  # 0 without negatives
    return losses.mean() if valid is None else losses.sum() / (2 * jnp.maximum(valid.sum(), 1))


def queue_info_nce(queries: jax.Array, keys: jax.Array, queue: jax.Array, *, temperature: float) -> jax.Array:
    """InfoNCE of each query with one positive key against a queue of negatives (MoCo, arXiv 1911.05722 equation 1).

    Per query the loss is log(1 + sum over the queue of exp((q n - q k) / T)), in the form that `info_nce` explains. No
    gradient enters keys and queue.

    Args:
        queries: unnormalised, (..., e).
        keys: the positive of every query, unnormalised, (..., e).
        queue: the negatives, of unit length, (n, e).
        temperature: T, above 0.

    Returns:
        The mean over all queries, a scalar in at least float32.
    """
    q, k = normalised(queries), normalised(jax.lax.stop_gradient(keys))
    similarity = jnp.einsum("...e,ne->...n", q, jax.lax.stop_gradient(queue), precision="highest")
    positive = jnp.sum(q * k, axis=-1, keepdims=True)
    return jax.nn.softplus(jax.nn.logsumexp((similarity - positive) / temperature, axis=-1)).mean()


def crossed_cosine(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cosine between what one view predicts and what the other view of its tile is.

    Args:
        predictions: unnormalised, (b, 2, e).
        targets: unnormalised, (b, 2, e); no gradient enters them.

    Returns:
        The mean over the 2 b views, a scalar in at least float32.
    """
    others = jax.lax.stop_gradient(normalised(targets))[:, ::-1]
    return jnp.sum(normalised(predictions) * others, axis=-1).mean()


def diagonal_and_rest(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Takes square matrices (..., e, e) apart: their diagonals (..., e), and the matrices with zeros there."""
    on = jnp.eye(matrices.shape[-1], dtype=bool)  # masks instead of a gather, which is slow on TPU
    return jnp.sum(jnp.where(on, matrices, 0), axis=-1), jnp.where(on, 0, matrices)


def collapse_signals(embeddings: jax.Array) -> dict[str, jax.Array]:
    """Measures how far the embeddings are from having collapsed to a point.

    Args:
        embeddings: unnormalised, (b, 2, e).

    Returns:
        `embedding_std`: standard deviation over views of the unit-length embeddings, averaged over the e channels
        (about 1/sqrt(e) when they fill the sphere, 0 when they are all equal); `mean_cosine`: mean cosine between views
        of different tiles (towards 1 on collapse).
    """
    z = normalised(jax.lax.stop_gradient(embeddings))
    b = z.shape[0]
    total = z.sum((0, 1))
    same_tile = jnp.sum(z.sum(1) ** 2)  # every pair of views of one tile, each view with itself included
    return {
        "embedding_std": z.std((0, 1)).mean(),
        "mean_cosine": (jnp.sum(total**2) - same_tile) / (4 * b * (b - 1)),
    }


def cross_entropy(
    logits: jax.Array, masks: jax.Array, class_weights: jax.typing.ArrayLike | Sequence[float] | None = None
) -> jax.Array:
    """Cross-entropy of every labelled pixel, averaged.

    A pixel counts where its id is that of a class, below k: 255, which marks pixels without a label, never is.

    Args:
        logits: (..., k), k at most 255.
        masks: class ids, (...) uint8.
        class_weights: weight of each class, (k,), of at least 0; None weighs all alike.

    Returns:
        The sum of weight times cross-entropy over the sum of the weights, as PyTorch averages; a scalar in at least
        float32, 0 where no pixel counts.

    Raises:
        ValueError: the shapes do not belong together.
    """
    k = logits.shape[-1]
    if masks.shape != logits.shape[:-1]:
        raise ValueError(f"cross_entropy takes a mask of shape {logits.shape[:-1]} for its logits, not {masks.shape}.")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # a comparison with every class instead of indexing: a gather per pixel is slow on TPU
    chosen = masks[..., None] == jnp.arange(k, dtype=masks.dtype)
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
    if class_weights is None:
        weights = (masks < k).astype(logits.dtype)
    else:
        class_weights = jnp.asarray(class_weights, logits.dtype)
        if class_weights.shape != (k,):
            raise ValueError(f"class_weights must hold {k} numbers, one for each class, not {class_weights.shape}.")
        weights = jnp.sum(jnp.where(chosen, class_weights, 0), axis=-1)
    total = jnp.sum(weights)
    return jnp.sum(weights * losses) / jnp.where(total > 0, total, 1)
