"""The parts of a step, each compiled alone: where the time goes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.job import Job
from benchmarks.timing import interleaved, quartiles
from grass_jax.guidance import guide
from grass_jax.sampling import crop_boxes, salient_boxes
from grass_jax.sharding import each_device_alone
from grass_jax.state import TrainState
from grass_jax.steps import update

BOX_MAPS, BOX_SIZE = 512, 224  # the size at which the original's host loop takes 1.07 s on 2 cores
MAPS_TO_CROPS = f"{BOX_MAPS} maps of 7x7 to boxes and crops of {BOX_SIZE}"
# what no program does alone: the time of one minus the time of others, round by round
DIFFERENCES = {
    "main backward": ("forward and backward", "main forward"),
    "optimiser": ("whole update", "forward and backward", "targets"),
}


def time_parts(job: Job, tiles: int, *, rounds: int, calls: int) -> dict[str, dict[str, Any]]:
    """Times the parts of the GS step in turns.

    Args:
        job: what is timed.
        tiles: in a batch.
        rounds: timed rounds over all parts.
        calls: of a part before its result is waited for.

    Returns:
        By name, in the order of the step: median and quartiles of the seconds, and `difference`, whether they are the
        difference between two programs.
    """
    times = interleaved(part_calls(job, tiles), rounds=rounds, calls=calls)
    parts = {}
    for name, values in with_differences(times).items():
        parts[name] = quartiles(values) | {"difference": name in DIFFERENCES}
    return parts


def with_differences(times: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts backward and optimiser in, each before the program whose time it is a part of."""
    whole = {minuend: name for name, (minuend, *_) in DIFFERENCES.items()}
    found = {}
    for name, values in times.items():
        if name in whole:
            rest = [times[other] for other in DIFFERENCES[whole[name]][1:] if other in times]
            found[whole[name]] = values - np.sum(rest, axis=0)
        found[name] = values
    return found


def part_calls(job: Job, tiles: int) -> dict[str, Callable[[], Any]]:
    """The parts as functions without arguments; the inputs of each are made beforehand."""
    method, local = job.method, each_device_alone(job.mesh)
    state, batch, key = job.state(), job.batch(tiles), jax.random.key(0)

    def guided(state: TrainState, views: jax.Array, geometry: Any) -> Any:
        return guide(state, views, method=method, hp=job.hp, geometry=geometry, key=key, local=local)[0]

    def objective(params: Any, state: TrainState, views: jax.Array, targets: Any) -> Any:
        features, stats = method.encode(params, state.stats, views)
        return method.loss(params, stats, features, targets)

    def forward(state: TrainState, views: jax.Array, targets: Any) -> Any:
        return objective(state.params, state, views, targets)

    def backward(state: TrainState, views: jax.Array, targets: Any) -> Any:
        return jax.value_and_grad(objective, has_aux=True)(state.params, state, views, targets)

    def whole(state: TrainState, views: jax.Array, geometry: Any) -> Any:
        return update(state, views, method=method, optimizer=job.optimizer, geometry=geometry)

    augment, find_targets = jax.jit(job.augment), jax.jit(method.targets)
    views, geometry = augment(key, batch)
    targets = find_targets(state, views, geometry)
    found = jax.jit(guided)(state, views, geometry)
    programs = {
        "augmentation": (augment, key, batch),
        # boxes are not asked for, so the compiler leaves them out
        "guidance forward, head, loss, map": (jax.jit(lambda *a: guided(*a).maps), state, views, geometry),
        "map to box": (jax.jit(local(partial(salient_boxes, size=job.size))), found.maps),
        "crop": (jax.jit(local(crop_boxes)), views, found.boxes),
        "targets": (find_targets, state, views, geometry),
        "main forward": (jax.jit(forward), state, views, targets),
        "forward and backward": (jax.jit(backward), state, views, targets),
        "whole update": (jax.jit(whole), state, views, geometry),
        MAPS_TO_CROPS: (
            jax.jit(lambda maps, pictures: crop_boxes(pictures, salient_boxes(maps, size=BOX_SIZE))),
            lam_like_maps(BOX_MAPS, 7),
            jnp.zeros((BOX_MAPS, BOX_SIZE, BOX_SIZE, 3)),
        ),
    }
    if not jax.tree.leaves(targets):
        del programs["targets"]
    return {name: partial(*program) for name, program in programs.items()}


def lam_like_maps(count: int, side: int) -> jax.Array:
    """Maps as a network gives them: non-negative features weighted by a gradient of zero mean, (count, side, side)."""
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(size=(count, side, side, 64)), 0) @ rng.normal(size=(64, 1))
    return jnp.asarray(features[..., 0] - features.mean((1, 2, 3))[:, None, None], jnp.float32)
