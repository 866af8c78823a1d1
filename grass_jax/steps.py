"""The train steps: pure functions of (state, batch, key). This is the file to read first.

A step is global: `batch` holds global arrays, negatives and batch-norm statistics span all devices, and nothing here
names a device. `compile_step` adds jit, donation and shardings once.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from grass_jax.augment import Geometry, zoomed
from grass_jax.guidance import Guidance, GuidanceSettings, guide
from grass_jax.methods import Method
from grass_jax.sampling import crop_boxes
from grass_jax.sharding import each_device_alone, replicated, split_by_tile
from grass_jax.state import TrainState

DEFAULTS = GuidanceSettings()
PLACING = 2**31 - 1  # of a step's keys: the tiles of `augment` have the numbers from 0
# views (b, 2, s, s, c), or a pair of them and their geometry
Augment = Callable[[jax.Array, dict[str, jax.Array]], jax.Array | tuple[jax.Array, Geometry]]


def update(
    state: TrainState,
    views: jax.Array,
    *,
    method: Method,
    optimizer: optax.GradientTransformation,
    geometry: Geometry | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Does one optimiser update on ready views.

    Args:
        state: before the step.
        views: (b, 2, s, s, c), normalised.
        method: supplies encoder and loss.
        optimizer: as given to `create_state`.
        geometry: of the views, for a method that needs it.

    Returns:
        The state after the step, and scalars: `loss`, `gradient_norm` and the method's own.
    """
    targets = method.targets(state, views, geometry)

    def objective(params: Any) -> tuple[jax.Array, tuple[Any, dict]]:
        features, stats = method.encode(params, state.stats, views)
        return method.loss(params, stats, features, targets)

    (loss, (stats, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = method.after(state.extra, params, targets)
    state = state.replace(step=state.step + 1, params=params, stats=stats, opt_state=opt_state, extra=extra)
    return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradients), **metrics}


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
        augment: (key, batch) -> views (b, 2, s, s, c), or a pair of them and their geometry.

    Returns:
        The state after the step, and scalar metrics.
    """
    views, geometry = _with_geometry(augment(key, batch))
    return update(state, views, method=method, optimizer=optimizer, geometry=geometry)


def gs_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    method: Method,
    optimizer: optax.GradientTransformation,
    augment: Augment,
    hp: GuidanceSettings = DEFAULTS,
    local: Callable = lambda f: f,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The step of GS training: views are cropped to their salient boxes, and the guided views train (arXiv 2306.15868).

    Args:
        state: before the step.
        batch: as for `warmup_step`.
        key: of this step.
        method: supplies encoder and loss.
        optimizer: as given to `create_state`.
        augment: (key, batch) -> views (b, 2, s, s, c), or a pair of them and their geometry.
        hp: the choices of the guidance.
        local: filled in by `compile_step`.

    Returns:
        The state after the step, and scalar metrics: those of `update`, and `loss_before` (on the uncropped views),
        `box_area` (mean, as a share of the view), `whole_boxes` (share of views whose box is naturally the whole view)
        and `fallback` (share of views that stayed whole because of their map's sign).
    """
    views, geometry = _with_geometry(augment(key, batch))
    size = views.shape[-2]
    guidance, stats = guide(
        *(state, views), method=method, hp=hp, geometry=geometry, key=jax.random.fold_in(key, PLACING), local=local
    )
    guided = local(crop_boxes)(views, guidance.boxes)
    if geometry is not None:
        geometry = zoomed(geometry, guidance.boxes, size)
    state, metrics = update(state.replace(stats=stats), guided, method=method, optimizer=optimizer, geometry=geometry)
    return state, metrics | {"loss_before": guidance.loss} | box_metrics(guidance, size)


def _with_geometry(augmented: jax.Array | tuple[jax.Array, Geometry]) -> tuple[jax.Array, Geometry | None]:
    return augmented if isinstance(augmented, tuple) else (augmented, None)


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
