"""GLCNet (arXiv 2106.10605): views of a tile agree in style, and in each region that both of them see.

Two differences from the original (GeoX-Lab/G-RSIM), which pretrains a DeepLabV3+: it matches in the output of the
decoder, this in the encoder's last feature map, as there is an encoder only; and it draws four squares a tile at random
places that both views see, this takes a fixed grid of regions over all that both see. The views are random, so are the
places of the grid.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grass_jax.augment import Geometry
from grass_jax.config import AT_LEAST_A_HUNDREDTH, number, whole
from grass_jax.losses import collapse_signals, info_nce
from grass_jax.methods import Method
from grass_jax.methods.places import coverage, require_places, shared_regions
from grass_jax.methods.skeleton import init_encoder, init_head, run_encoder, run_head
from grass_jax.models.heads import ProjectionHead
from grass_jax.state import TrainState

RULES = {
    "hidden": whole(0, " (0: the width of what comes in)"),
    "embedding": whole(2),
    "temperature": AT_LEAST_A_HUNDREDTH,
    "grid": whole(1),
    "global_weight": number("of at least 0 and at most 1", lambda v: 0 <= v <= 1),
}


def style(features: jax.Array) -> jax.Array:
    """Mean and standard deviation of every channel over space, after one another.

    Args:
        features: (..., h, w, d).

    Returns:
        (..., 2 d) in at least float32; a channel without variation has the deviation sqrt(1e-5).

    Source: arXiv 2106.10605; the released code (GeoX-Lab/G-RSIM) takes the variance.
    """
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    # the small number keeps the gradient of a channel that is 0 everywhere finite
    return jnp.concatenate([features.mean((-3, -2)), jnp.sqrt(features.var((-3, -2)) + 1e-5)], -1)


def region_means(features: jax.Array, rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Averages features over regions, each cell weighted by its part in the region.

    Args:
        features: (b, 2, h, w, d).
        rows: first and last edge of g rows of regions, as shares of the view's height, (b, 2, g, 2).
        columns: the same of its width, (b, 2, g, 2).

    Returns:
        (b, 2, g g, d) in at least float32; and whether the regions count, (b, g g) bool: not where one is smaller than
        a cell in either direction in either view, as regions of one cell have the same features but would be told
        apart.
    """
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    (b, _, height, width, d), g = features.shape, rows.shape[2]
    weights = coverage(rows, height), coverage(columns, width)
    means = jnp.einsum("bvih,bvjw,bvhwd->bvijd", *weights, features, precision="highest")
    high, wide = ((each[..., 1] - each[..., 0]).min(1) for each in (rows, columns))  # (b, g): in the view with fewer
    almost = 1 - 1e-3
    counts = (high * height >= almost)[:, :, None] & (wide * width >= almost)[:, None, :]
    return means.reshape(b, 2, g * g, d), counts.reshape(b, g * g)


def glcnet_loss(
    styles: jax.Array, regions: jax.Array, counts: jax.Array, *, temperature: float, global_weight: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """InfoNCE of the views' styles, and of their regions.

    The positive of a region is the same region in the other view; its negatives are all other regions of all tiles,
    those of its own tile included.

    Args:
        styles: unnormalised embeddings (b, 2, e).
        regions: unnormalised embeddings (b, 2, r, e).
        counts: regions that take part, (b, r) bool.
        temperature: of both.
        global_weight: l, share of the styles' loss.

    Returns:
        l L_global + (1 - l) L_local, L_global and L_local, scalars in at least float32.

    Source: arXiv 2106.10605; GeoX-Lab/G-RSIM.
    """
    rows = jnp.swapaxes(regions, 1, 2).reshape(-1, 2, regions.shape[-1])
    whole_views = info_nce(styles, temperature=temperature)
    local = info_nce(rows, temperature=temperature, valid=counts.reshape(-1))
    return global_weight * whole_views + (1 - global_weight) * local, whole_views, local


def glcnet(
    encoder: nn.Module,
    *,
    temperature: float,
    hidden: int = 0,
    embedding: int = 64,
    grid: int = 2,
    global_weight: float = 0.5,
) -> Method:
    """Global style and local matching contrast.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        temperature: of both InfoNCE losses.
        hidden: channels of the heads' hidden layers; 0 takes those of what comes in.
        embedding: channels e of the embeddings.
        grid: regions along each side of what both views see; `grid`^2 regions a tile.
        global_weight: share of the styles' loss.

    Returns:
        The method; its params have the keys `encoder`, `head` (of the style) and `local_head`, its stats `encoder`.
    """
    head = ProjectionHead(embedding, hidden, dtype=getattr(encoder, "dtype", None))  # one module, two sets of weights

    def init(key: jax.Array, views: jax.Array) -> tuple[Any, Any, Any]:
        keys = jax.random.split(key, 3)
        features, params, stats = init_encoder(encoder, keys[0], views)
        _, head_params, _ = init_head(head, keys[1], style(features))
        _, local_params, _ = init_head(head, keys[2], features)
        return {"encoder": params, "head": head_params, "local_head": local_params}, {"encoder": stats}, ()

    def targets(state: TrainState, views: jax.Array, geometry: Geometry | None) -> tuple[jax.Array, jax.Array]:
        return shared_regions(require_places(geometry, "glcnet"), grid)

    def loss(params: Any, stats: Any, features: jax.Array, targets: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        styles, _ = run_head(head, params["head"], {}, style(features))
        means, counts = region_means(features, *targets)
        regions, _ = run_head(head, params["local_head"], {}, means)
        value, of_styles, _ = glcnet_loss(
            *(styles, regions, counts), temperature=temperature, global_weight=global_weight
        )
        metrics = {**collapse_signals(styles), "global_loss": of_styles, "matched": counts.mean()}
        return value, (stats, metrics)

    return Method(init=init, encode=partial(run_encoder, encoder), loss=loss, targets=targets)
