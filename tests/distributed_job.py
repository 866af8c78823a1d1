"""GS steps on however many devices and processes it is started with; test_sharding.py compares what the jobs write.

python tests/distributed_job.py OUT.npz [COORDINATOR PROCESSES PROCESS]
"""

import sys
from functools import partial

import jax
import numpy as np

from grass_jax.augment import Augmentation, two_views
from grass_jax.guidance import GuidanceSettings, guide
from grass_jax.methods.simclr import simclr
from grass_jax.models.resnet import Bottleneck, ResNet
from grass_jax.optim import decay_mask, larc
from grass_jax.sharding import each_device_alone, global_batch, initialize, make_mesh, replicated, split_by_tile
from grass_jax.state import create_state
from grass_jax.steps import compile_step, gs_step

TILES, TILE, VIEW = 16, 72, 64


def job(x64: bool, count: int) -> dict[str, np.ndarray]:
    """Does `count` GS steps; returns losses, parameters, and maps and boxes of the first step."""
    mesh = make_mesh()
    dtype = np.float64 if x64 else np.float32
    encoder = ResNet((1, 1, 1, 1), Bottleneck, width=8, output_stride=16)
    method = simclr(encoder, embedding=16, temperature=0.5)
    optimizer = larc(0.5, decay_mask=decay_mask)
    augmentation = Augmentation(size=VIEW)

    def augment(key, batch):
        return two_views(key, batch["image"], augmentation).astype(dtype)

    settings = {"method": method, "optimizer": optimizer, "augment": augment}
    state = create_state(jax.random.key(0), method, optimizer, size=VIEW)
    state = jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, state)
    state = jax.device_put(state, replicated(mesh))
    tiles = np.random.default_rng(0).integers(0, 256, (count, TILES, TILE // 8, TILE // 8, 3), np.uint8)
    tiles = tiles.repeat(8, 2).repeat(8, 3)
    mine = slice(
        jax.process_index() * TILES // jax.process_count(), (jax.process_index() + 1) * TILES // jax.process_count()
    )
    batches = [global_batch({"image": images[mine]}, mesh) for images in tiles]
    keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(count)]

    @partial(jax.jit, in_shardings=(replicated(mesh), split_by_tile(mesh)), out_shardings=replicated(mesh))
    def look(state, batch):
        views = augment(keys[0], batch)
        guidance, _ = guide(state, views, method=method, hp=GuidanceSettings(), local=each_device_alone(mesh))
        return guidance.maps, guidance.boxes

    maps, boxes = look(state, batches[0])
    step = compile_step(partial(gs_step, **settings), mesh)
    losses = []
    for batch, key in zip(batches, keys, strict=True):
        state, metrics = step(state, batch, key)
        losses.append(float(metrics["loss"]))
    params = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves((state.params, state.stats))])
    return {"losses": np.array(losses), "params": params, "maps": np.asarray(maps), "boxes": np.asarray(boxes)}


if __name__ == "__main__":
    out, *cluster = sys.argv[1:]
    if cluster:
        initialize(cluster[0], int(cluster[1]), int(cluster[2]))
    results = {f"float32_{name}": value for name, value in job(False, 1).items()}
    with jax.enable_x64(True):
        results |= {f"float64_{name}": value for name, value in job(True, 3).items()}
    if jax.process_index() == 0:
        np.savez(out, devices=jax.device_count(), **results)
