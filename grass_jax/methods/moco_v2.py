"""MoCo v2 (arXiv 2003.04297): InfoNCE against a queue of keys that a moving average of the network has made.

Otherwise than in the paper: the loss is symmetric, every view is a query and a key; and batch norm sees the whole
batch, so that there are no parts of it among which the keys could be shuffled (arXiv 1911.05722, section 3.3).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from grass_jax.augment import Geometry
from grass_jax.config import AT_LEAST_A_HUNDREDTH, BELOW_ONE, whole
from grass_jax.losses import collapse_signals, normalised, queue_info_nce
from grass_jax.methods import Method
from grass_jax.methods.skeleton import (
    enqueue,
    init_network,
    moving_average,
    pool,
    random_queue,
    run_encoder,
    run_head,
)
from grass_jax.models.heads import ProjectionHead
from grass_jax.state import TrainState

RULES = {
    "hidden": whole(0, " (0: the width of the features)"),
    "embedding": whole(2),
    "queue": whole(4),
    "momentum": BELOW_ONE,
    "temperature": AT_LEAST_A_HUNDREDTH,
}


def moco_v2_loss(embeddings: jax.Array, keys: jax.Array, queue: jax.Array, *, temperature: float) -> jax.Array:
    """InfoNCE of every view's query with the other view's key against the queue (arXiv 1911.05722, equation 1).

    Args:
        embeddings: the queries, unnormalised, (b, 2, e).
        keys: (b, 2, e); no gradient enters them.
        queue: earlier keys, of unit length, (q, e).
        temperature: T, above 0.

    Returns:
        The mean over the 2 b views, a scalar in at least float32.
    """
    return queue_info_nce(embeddings, keys[:, ::-1], queue, temperature=temperature)


def moco_v2(
    encoder: nn.Module,
    *,
    queue: int,
    hidden: int = 0,
    embedding: int = 128,
    momentum: float = 0.999,
    temperature: float = 0.2,
) -> Method:
    """Instance discrimination with a queue of negatives.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        queue: keys q in the queue, at least as many as a batch has views.
        hidden: channels of the head's hidden layer; 0 takes those of the features.
        embedding: channels e of the embedding.
        momentum: of the moving average.
        temperature: of InfoNCE.

    Returns:
        The method; its params have the keys `encoder` and `head`, its stats `encoder`, its extra `encoder` and `head`,
        the parameters of the key network, and `queue`, (q, e).
    """
    head = ProjectionHead(embedding, hidden, dtype=getattr(encoder, "dtype", None))

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        key, queue_key = jax.random.split(key)
        params, stats = init_network(encoder, {"head": head}, key, views)
        return params, {"encoder": stats["encoder"]}, {**params, "queue": random_queue(queue_key, queue, embedding)}

    def targets(state: TrainState, views: jax.Array, geometry: Geometry | None) -> dict[str, jax.Array]:
        del geometry
        # in train mode the batch's own statistics normalise: the key network needs no running ones
        features, _ = run_encoder(encoder, state.extra, state.stats, views)
        keys, _ = run_head(head, state.extra["head"], {}, pool(features))
        return jax.lax.stop_gradient({"keys": normalised(keys), "queue": state.extra["queue"]})

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        embeddings, _ = run_head(head, params["head"], {}, pool(features))
        value = moco_v2_loss(embeddings, targets["keys"], targets["queue"], temperature=temperature)
        return value, (stats, collapse_signals(embeddings))

    def after(extra: Any, params: Any, targets: Any) -> Any:
        network = moving_average({name: extra[name] for name in params}, params, momentum)
        return {**network, "queue": enqueue(extra["queue"], targets["keys"])}

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss, targets=targets, after=after)
