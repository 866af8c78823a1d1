"""DenseCL (arXiv 2011.09157): MoCo v2's contrast of whole views, and the same of single cells of the feature maps.

Otherwise than in the paper: the loss is symmetric, and no keys are shuffled; see `moco_v2.py`.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grass_jax.augment import Geometry
from grass_jax.config import number
from grass_jax.losses import collapse_signals, normalised, queue_info_nce
from grass_jax.methods import Method
from grass_jax.methods.moco_v2 import RULES as MOCO_RULES
from grass_jax.methods.moco_v2 import moco_v2_loss
from grass_jax.methods.skeleton import (
    cells,
    enqueue,
    init_encoder,
    init_head,
    moving_average,
    pool,
    random_queue,
    run_encoder,
    run_head,
)
from grass_jax.models.heads import ProjectionHead
from grass_jax.state import TrainState

RULES = {**MOCO_RULES, "dense_weight": number("from 0 to 1", lambda v: 0 <= v <= 1)}
QUEUES = ("queue", "dense_queue")  # of views, and of the averages of their cells


def matched_keys(features: jax.Array, key_features: jax.Array, dense_keys: jax.Array) -> jax.Array:
    """Finds the positive of every cell: the key of the other view's cell with the most similar features (section 3.4).

    Args:
        features: of the query network's encoder, (b, 2, n, d), n cells of a view.
        key_features: of the key network's encoder, (b, 2, n, d).
        dense_keys: (b, 2, n, e).

    Returns:
        For every cell of a view a key of the other view, (b, 2, n, e); no gradient leads back.
    """
    features, key_features, dense_keys = jax.lax.stop_gradient((features, key_features[:, ::-1], dense_keys[:, ::-1]))
    similarity = jnp.einsum("bvid,bvjd->bvij", normalised(features), normalised(key_features), precision="highest")
    # a product with ones and zeros instead of indexing: a gather per cell is slow on TPU
    chosen = jax.nn.one_hot(similarity.argmax(-1), similarity.shape[-1], dtype=dense_keys.dtype)
    return jnp.einsum("bvij,bvje->bvie", chosen, dense_keys, precision="highest")


def densecl(
    encoder: nn.Module,
    *,
    queue: int,
    hidden: int = 0,
    embedding: int = 128,
    momentum: float = 0.999,
    temperature: float = 0.2,
    dense_weight: float = 0.5,
) -> Method:
    """Contrasts views and cells of views, each with a queue of negatives.

    The loss is (1 - w) L_global + w L_dense (section 3.3): `moco_v2_loss` of the pooled features' embeddings, and
    `queue_info_nce` of every cell's embedding with its key of `matched_keys`, against earlier views' average cells.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        queue: keys q in each of the two queues, at least as many as a batch has views.
        hidden: channels of the hidden layers of both heads; 0 takes those of the features.
        embedding: channels e of the embeddings.
        momentum: of the moving average.
        temperature: of InfoNCE.
        dense_weight: w, the paper's lambda.

    Returns:
        The method; its params have the keys `encoder`, `head` and `dense_head`, its stats `encoder`, its extra those
        of its params, for the key network, and `queue` and `dense_queue`, (q, e).
    """
    # on feature maps its two dense layers are the paper's two 1x1 convolutions
    head = ProjectionHead(embedding, hidden, dtype=getattr(encoder, "dtype", None))

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        keys = jax.random.split(key, 5)
        features, params, stats = init_encoder(encoder, keys[0], views)
        _, head_params, _ = init_head(head, keys[1], pool(features))
        _, dense_params, _ = init_head(head, keys[2], features)
        params = {"encoder": params, "head": head_params, "dense_head": dense_params}
        queues = {name: random_queue(k, queue, embedding) for name, k in zip(QUEUES, keys[3:], strict=True)}
        return params, {"encoder": stats}, {**params, **queues}

    def embed(params: Any, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        embeddings, _ = run_head(head, params["head"], {}, pool(features))
        dense, _ = run_head(head, params["dense_head"], {}, cells(features))
        return embeddings, dense

    def targets(state: TrainState, views: jax.Array, geometry: Geometry | None) -> dict[str, jax.Array]:
        del geometry
        # in train mode the batch's own statistics normalise: the key network needs no running ones
        features, _ = run_encoder(encoder, state.extra, state.stats, views)
        keys, dense_keys = embed(state.extra, features)
        found = {"keys": normalised(keys), "dense_keys": dense_keys, "features": cells(features)}
        return jax.lax.stop_gradient(found | {name: state.extra[name] for name in QUEUES})

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        embeddings, dense = embed(params, features)
        positives = matched_keys(cells(features), targets["features"], targets["dense_keys"])
        of_views = moco_v2_loss(embeddings, targets["keys"], targets["queue"], temperature=temperature)
        of_cells = queue_info_nce(dense, positives, targets["dense_queue"], temperature=temperature)
        value = (1 - dense_weight) * of_views + dense_weight * of_cells
        metrics = {"loss_global": of_views, "loss_dense": of_cells}
        return value, (stats, collapse_signals(embeddings) | metrics)

    def after(extra: Any, params: Any, targets: Any) -> Any:
        network = moving_average({name: extra[name] for name in params}, params, momentum)
        new = {"queue": targets["keys"], "dense_queue": normalised(targets["dense_keys"].mean(-2))}
        return network | {name: enqueue(extra[name], new[name]) for name in QUEUES}

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss, targets=targets, after=after)
