"""The train steps: pure functions of (state, batch, key). This is the file to read first.

A step is global: `batch` holds global arrays, negatives and batch-norm statistics span all devices, and nothing here
names a device. `compile_step` adds jit, donation and shardings once.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from grass_jax.methods import Method
from grass_jax.sampling import crop_boxes, loss_attention_map, salient_boxes
from grass_jax.sharding import each_device_alone, replicated, split_by_tile
from grass_jax.state import TrainState

Augment = Callable[[jax.Array, dict[str, jax.Array]], jax.Array]


@dataclass(frozen=True)
class GuidanceSettings:
    """Choices of the guided sampling.

    Attributes:
        threshold: height above which a map pixel belongs to a region, as a share of the map's range.
        sign: what a map without a positive value gives: `fallback`, the whole view; `flip`, the original's division by
            the maximum, which turns the map upside down and selects its most negative region.
    """

    threshold: float = 0.5
    sign: Literal["fallback", "flip"] = "fallback"

    def __post_init__(self):
        if not 0 < self.threshold < 1:
            raise ValueError(f"guidance threshold must lie between 0 and 1, not {self.threshold}.")
        if self.sign not in ("fallback", "flip"):
            raise ValueError(f"guidance sign must be 'fallback' or 'flip', not {self.sign!r}.")


class Guidance(NamedTuple):
    """What one guidance pass found.

    Attributes:
        boxes: salient boxes (y0, x0, y1, x1), half-open, in view pixels, (b, 2, 4) int32.
        maps: loss attention maps, (b, 2, h, w).
        fallback: views that stay whole because their map has no positive value, (b, 2) bool.
        loss: the contrastive loss of the views as they came, scalar.
    """

    boxes: jax.Array
    maps: jax.Array
    fallback: jax.Array
    loss: jax.Array


def update(
    state: TrainState, views: jax.Array, *, method: Method, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Does one optimiser update on ready views.

    Args:
        state: before the step.
        views: (b, 2, s, s, c), normalised.
        method: supplies encoder and loss.
        optimizer: as given to `create_state`.

    Returns:
        The state after the step, and scalars: `loss`, `gradient_norm` and the method's own.
    """
    targets = method.targets(state, views)

    def objective(params: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        features, stats = method.encode(params, state.stats, views)
        return method.loss(params, stats, features, targets)

    (loss, (stats, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = method.after(state.extra, params, targets)
    state = state.replace(step=state.step + 1, params=params, stats=stats, opt_state=opt_state, extra=extra)
    return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradients), **metrics}


def guide(
    state: TrainState, views: jax.Array, *, method: Method, hp: GuidanceSettings, local: Callable = lambda f: f
) -> tuple[Guidance, Any]:
    """Asks the gradient of the loss at the features which box of each view carries the discrimination.

    One encoder forward in train mode; the gradient goes through head and loss only (the original runs the whole network
    backward for the same map). No gradient flows through the boxes.

    Args:
        state: supplies parameters and statistics.
        views: (b, 2, s, s, c), normalised.
        method: supplies encoder and loss.
        hp: the choices.
        local: wraps the map -> box function so that each device runs it on its own rows.

    Returns:
        The guidance, and the batch-norm statistics after the pass (the original updates them here, too).
    """
    targets = method.targets(state, views)
    features, stats = method.encode(state.params, state.stats, views)
    # in float32 also where the encoder computes in bfloat16: boxes jump with the last digit of a map
    features = jax.lax.stop_gradient(features.astype(jnp.promote_types(features.dtype, jnp.float32)))

    def objective(features: jax.Array) -> tuple[jax.Array, Any]:
        loss, (new_stats, _) = method.loss(state.params, stats, features, targets)
        return loss, new_stats

    (loss, stats), gradients = jax.value_and_grad(objective, has_aux=True)(features)
    maps = loss_attention_map(features, gradients, normalise=hp.sign == "flip")
    size = views.shape[-2]
    boxes = local(partial(salient_boxes, size=size, threshold=hp.threshold))(maps)
    fallback = jnp.zeros(maps.shape[:-2], bool) if hp.sign == "flip" else maps.max((-2, -1)) <= 0
    boxes = jnp.where(fallback[..., None], jnp.array([0, 0, size, size], jnp.int32), boxes)
    return Guidance(boxes, maps, fallback, loss), stats


def warmup_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    method: Method,
    optimizer: optax.GradientTransformation,
    augment: Augment,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The step of the ID warm-up: instance discrimination on augmented views.

    Args:
        state: before the step.
        batch: `image`, tiles as stored, (b, h, w, c), and what else `augment` reads.
        key: of this step, e.g. `jax.random.fold_in(key, step)`.
        method: supplies encoder and loss.
        optimizer: as given to `create_state`.
        augment: (key, batch) -> views (b, 2, s, s, c).

    Returns:
        The state after the step, and scalar metrics.
    """
    return update(state, augment(key, batch), method=method, optimizer=optimizer)


def gs_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    method: Method,
    optimizer: optax.GradientTransformation,
    augment: Augment,
    hp: GuidanceSettings = GuidanceSettings(),
    local: Callable = lambda f: f,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The step of GS training: views are cropped to their salient boxes, and the guided views train (arXiv 2306.15868).

    Args:
        state: before the step.
        batch: as for `warmup_step`.
        key: of this step.
        method: supplies encoder and loss.
        optimizer: as given to `create_state`.
        augment: (key, batch) -> views (b, 2, s, s, c).
        hp: the choices of the guidance.
        local: filled in by `compile_step`.

    Returns:
        The state after the step, and scalar metrics: those of `update`, and `loss_before` (on the uncropped views),
        `box_area` (mean, as a share of the view), `whole_boxes` (share of views whose box is naturally the whole view)
        and `fallback` (share of views that stayed whole because of their map's sign).
    """
    views = augment(key, batch)
    guidance, stats = guide(state, views, method=method, hp=hp, local=local)
    guided = local(crop_boxes)(views, guidance.boxes)
    state, metrics = update(state.replace(stats=stats), guided, method=method, optimizer=optimizer)
    return state, metrics | {"loss_before": guidance.loss} | box_metrics(guidance, views.shape[-2])


def box_metrics(guidance: Guidance, size: int) -> dict[str, jax.Array]:
    """Sums up the boxes of one batch; `size` is the view's, in pixels."""
    y0, x0, y1, x1 = jnp.moveaxis(guidance.boxes, -1, 0)
    area = ((y1 - y0) * (x1 - x0)).astype(jnp.float32) / size**2
    return {
        "box_area": area.mean(),
        "whole_boxes": ((area == 1) & ~guidance.fallback).mean(),
        "fallback": guidance.fallback.mean(),
    }


def compile_step(step: Callable, mesh: Mesh) -> Callable:
    """Compiles a step for a mesh: jit, the state donated and replicated, the batch split by tile.

    Args:
        step: (state, batch, key) -> (state, metrics), e.g. `partial(gs_step, method=..., ...)`; where it takes `local`,
            what loops per view is run by each device on its own rows.
        mesh: from `sharding.make_mesh`.

    Returns:
        The compiled step; the state passed in must not be used again.
    """
    if "local" in inspect.signature(step).parameters:
        step = partial(step, local=each_device_alone(mesh))
    whole = replicated(mesh)
    return jax.jit(step, in_shardings=(whole, split_by_tile(mesh), whole), out_shardings=whole, donate_argnums=0)
