"""Steps on however many devices and processes it is started with; test_sharding.py compares what the jobs write.

python tests/distributed_job.py OUT.npz PARTS [COORDINATOR PROCESSES PROCESS]
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from grass_jax.augment import Augmentation
from grass_jax.build import build_augment
from grass_jax.methods import Method
from grass_jax.methods.moco_v2 import moco_v2
from grass_jax.methods.simclr import simclr
from grass_jax.models.resnet import BasicBlock, ResNet
from grass_jax.optim import decay_mask, larc
from grass_jax.sharding import global_batch, initialize, make_mesh, replicated
from grass_jax.state import create_state
from grass_jax.steps import compile_step, gs_step, warmup_step

TILES, TILE, VIEW = 16, 72, 64
ENCODER = ResNet((1, 1, 1, 1), BasicBlock, width=4, output_stride=16)
SIMCLR = simclr(ENCODER, embedding=16, temperature=0.5)
MOCO = moco_v2(ENCODER, embedding=16, queue=3 * TILES, momentum=0.9)  # a target network, and keys of earlier steps
PARTS = {
    "float32": lambda: job(gs_step, SIMCLR, np.float32, 1),
    "float64": lambda: job(gs_step, SIMCLR, np.float64, 3),
    "moco_float64": lambda: job(warmup_step, MOCO, np.float64, 3),
}


def job(step: Callable, method: Method, dtype: type, count: int) -> dict[str, np.ndarray]:
    """Does `count` steps.

    Args:
        step: `gs_step`, on views augmented in the step; `warmup_step`, on views that are ready.
        method: of the steps.
        dtype: of parameters and views.
        count: steps.

    Returns:
        `losses` and `box_areas` (count,), and `state`, all that a step changes in one row.
    """
    mesh = make_mesh()
    optimizer = larc(0.5, decay_mask=decay_mask)
    in_the_step = build_augment(ConfigDict({"model": {"dtype": np.dtype(dtype).name}}), Augmentation(size=VIEW))
    augment = in_the_step if step is gs_step else lambda key, batch: batch["image"]
    state = create_state(jax.random.key(0), method, optimizer, size=VIEW)
    state = jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, state)
    state = jax.device_put(state, replicated(mesh))
    rng, (tiles, size) = np.random.default_rng(0), ((TILES,), TILE) if step is gs_step else ((TILES, 2), VIEW)
    images = rng.integers(0, 256, (count, *tiles, size // 8, size // 8, 3), np.uint8).repeat(8, -3).repeat(8, -2)
    images = images if step is gs_step else (images / 128 - 1).astype(dtype)
    mine = slice(
        jax.process_index() * TILES // jax.process_count(), (jax.process_index() + 1) * TILES // jax.process_count()
    )
    batches = [global_batch({"image": batch[mine]}, mesh) for batch in images]
    keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(count)]
    compiled = compile_step(partial(step, method=method, optimizer=optimizer, augment=augment), mesh)
    losses, box_areas = [], []
    for batch, key in zip(batches, keys, strict=True):
        state, metrics = compiled(state, batch, key)
        losses.append(float(metrics["loss"]))
        box_areas.append(float(metrics.get("box_area", 1)))
    changed = jax.tree.leaves((state.params, state.stats, state.extra))
    found = {"losses": losses, "box_areas": box_areas, "state": np.concatenate([np.ravel(leaf) for leaf in changed])}
    return {name: np.asarray(values) for name, values in found.items()}


if __name__ == "__main__":
    out, parts, *cluster = sys.argv[1:]
    if cluster:
        initialize(cluster[0], int(cluster[1]), int(cluster[2]))
    results: dict[str, Any] = {}
    for part in parts.split(","):
        with jax.enable_x64("float64" in part):
            results |= {f"{part}_{name}": value for name, value in PARTS[part]().items()}
    if jax.process_index() == 0:
        np.savez(out, devices=jax.device_count(), processes=jax.process_count(), **results)
