"""SwAV (arXiv 2006.09882): each view predicts the prototypes to which the other view is assigned.

Otherwise than in the paper's best results: two views, no multi-crop; and no queue, so that there should be no more
prototypes than tiles in a batch.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grass_jax.augment import Geometry
from grass_jax.config import AT_LEAST_A_HUNDREDTH, whole
from grass_jax.losses import collapse_signals, normalised
from grass_jax.methods import Method
from grass_jax.methods.skeleton import init_network, pool, run_encoder, run_head
from grass_jax.models.heads import MLPHead
from grass_jax.state import TrainState

RULES = {
    "hidden": whole(1),
    "embedding": whole(2),
    "prototypes": whole(2),
    "temperature": AT_LEAST_A_HUNDREDTH,
    "epsilon": AT_LEAST_A_HUNDREDTH,
    "iterations": whole(1),
    "freeze_steps": whole(0),
}


def sinkhorn(scores: jax.Array, *, epsilon: float, iterations: int) -> jax.Array:
    """Assigns a batch to prototypes so that each gets about as much as the others: the codes (equations 3 to 5).

    Sinkhorn-Knopp's normalisations of exp(scores / epsilon), in turn over samples and over prototypes, on logarithms:
    nothing overflows at a small epsilon.

    Args:
        scores: of samples and prototypes, (..., b, k).
        epsilon: of the entropy: small values make hard assignments.
        iterations: pairs of normalisations.

    Returns:
        Codes (..., b, k): each sample's sum to 1.
    """
    logs = scores / epsilon
    for _ in range(iterations):
        logs = logs - jax.nn.logsumexp(logs, axis=-2, keepdims=True)  # prototypes get alike
        logs = jax.nn.log_softmax(logs, axis=-1)
    return jnp.exp(logs)


def swav_loss(scores: jax.Array, codes: jax.Array, *, temperature: float) -> jax.Array:
    """Cross-entropy of each view's softmax over the prototypes with the other view's codes (equations 1 and 2).

    Args:
        scores: of views and prototypes, (b, 2, k).
        codes: (b, 2, k); no gradient enters them.
        temperature: of the softmax, above 0.

    Returns:
        The mean over the 2 b views, a scalar in at least float32.
    """
    codes = jax.lax.stop_gradient(codes)
    return -jnp.sum(codes[:, ::-1] * jax.nn.log_softmax(scores / temperature, axis=-1), axis=-1).mean()


def swav(
    encoder: nn.Module,
    *,
    hidden: int = 2048,
    embedding: int = 128,
    prototypes: int = 3000,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    freeze_steps: int = 0,
) -> Method:
    """Clusters while it learns: views of a tile must agree in their assignment to prototypes.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        hidden: channels of the projector's hidden layer.
        embedding: channels e of the embedding.
        prototypes: number k of them.
        temperature: of the prediction.
        epsilon: of the assignment, see `sinkhorn`.
        iterations: of the assignment.
        freeze_steps: the prototypes stay as they are for so many steps from the first.

    Returns:
        The method; its params have the keys `encoder`, `projector` and `prototypes`, its stats the first two.
    """
    projector = MLPHead((hidden, embedding), dtype=getattr(encoder, "dtype", None))

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        key, prototypes_key = jax.random.split(key)
        params, stats = init_network(encoder, {"projector": projector}, key, views)
        kernel = normalised(jax.random.normal(prototypes_key, (prototypes, embedding))).T
        return params | {"prototypes": {"kernel": kernel}}, stats, ()

    def targets(state: TrainState, views: jax.Array, geometry: Geometry | None) -> jax.Array:
        del views, geometry
        return state.step < freeze_steps

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        embeddings, updated = run_head(projector, params["projector"], stats["projector"], pool(features))
        kernel = params["prototypes"]["kernel"]
        # rows of unit length: the scores are cosines, and decay, which only shortens rows, moves no frozen prototype
        rows = normalised(jnp.where(targets, jax.lax.stop_gradient(kernel), kernel).T)
        scores = jnp.einsum("bve,ke->bvk", normalised(embeddings), rows, precision="highest")
        # each view's codes on their own, as in the authors' code: over all tiles of the batch
        assign = partial(sinkhorn, epsilon=epsilon, iterations=iterations)
        codes = jax.lax.stop_gradient(jax.vmap(assign, in_axes=1, out_axes=1)(scores))
        metrics = {"code_entropy": -jax.scipy.special.xlogy(codes, codes).sum(-1).mean()}
        value = swav_loss(scores, codes, temperature=temperature)
        return value, ({**stats, "projector": updated}, collapse_signals(embeddings) | metrics)

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss, targets=targets)
