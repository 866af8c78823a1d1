"""Step times of warm-up and GS training, their ratio, and the parts of the GS step.

    python -m benchmarks.step                                  ResNet-50, 16 views of 224: five minutes on 2 CPU cores
    python -m benchmarks.step --tiles=256 --dtype=bfloat16     one large GPU

The two steps are timed in pairs, one after the other, so that whatever else the machine does meets both; the ratio is
the median over the pairs. The parts are compiled and timed one by one and need not add up to the step.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grass_jax.augment import Augmentation, two_views
from grass_jax.guidance import GuidanceSettings, guide
from grass_jax.methods.simclr import simclr
from grass_jax.models import ENCODERS, build_encoder
from grass_jax.optim import decay_mask, larc
from grass_jax.sampling import crop_boxes, salient_boxes
from grass_jax.sharding import each_device_alone, global_batch, make_mesh, replicated
from grass_jax.state import create_state
from grass_jax.steps import compile_step, gs_step, update, warmup_step

BOX_MAPS, BOX_SIZE = 512, 224  # the size at which the original's host loop takes 1.07 s on 2 cores


def seconds(function: Callable, *arguments, repeats: int) -> float:
    """Median time of a call, its result awaited; the first call, which compiles, is not counted."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def step_pairs(warmup: Callable, gs: Callable, state, batch, *, pairs: int) -> np.ndarray:
    """Times of both steps in turn, (pairs, 2) seconds."""
    key = jax.random.key(0)
    times = np.zeros((pairs + 1, 2))
    for pair in range(pairs + 1):
        for which, step in enumerate((warmup, gs)):
            start = time.perf_counter()
            state, metrics = step(state, batch, key)
            jax.block_until_ready((state, metrics))
            times[pair, which] = time.perf_counter() - start
    return times[1:]


def lam_like_maps(count: int, size: int) -> jax.Array:
    """Maps as a network gives them: non-negative features weighted by a gradient of zero mean, (count, size, size)."""
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(size=(count, size, size, 64)), 0) @ rng.normal(size=(64, 1))
    return jnp.asarray(features[..., 0] - features.mean((1, 2, 3))[:, None, None], jnp.float32)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Runs everything; returns seconds by name."""
    mesh = make_mesh()
    encoder = build_encoder(
        options.model, width=options.width, output_stride=options.output_stride, dtype=options.dtype
    )
    method = simclr(encoder, temperature=0.5)
    optimizer = larc(0.1, decay_mask=decay_mask)
    augmentation = Augmentation(size=options.size)

    def augment(key, batch):
        return two_views(key, batch["image"], augmentation)

    settings = {"method": method, "optimizer": optimizer, "augment": augment}
    hp, local = GuidanceSettings(), each_device_alone(mesh)
    tile = options.size * 8 // 7
    images = np.random.default_rng(0).integers(0, 256, (options.tiles, tile, tile, 3), np.uint8)
    batch = global_batch({"image": images}, mesh)
    new_state = partial(create_state, jax.random.key(0), method, optimizer, size=options.size)

    results = {}
    start = time.perf_counter()
    warmup = compile_step(partial(warmup_step, **settings), mesh)
    gs = compile_step(partial(gs_step, hp=hp, **settings), mesh)
    times = step_pairs(warmup, gs, jax.device_put(new_state(), replicated(mesh)), batch, pairs=options.pairs)
    results["compile and first pair"] = time.perf_counter() - start - times.sum()
    results["warm-up step"], results["GS step"] = np.median(times, axis=0)
    results["GS / warm-up"] = float(np.median(times[:, 1] / times[:, 0]))

    state = jax.device_put(new_state(), replicated(mesh))
    part = partial(seconds, repeats=options.repeats)
    augment_jit = jax.jit(augment)
    views = augment_jit(jax.random.key(0), batch)
    found, _ = jax.jit(lambda s, v: guide(s, v, method=method, hp=hp, local=local))(state, views)
    results["augmentation"] = part(augment_jit, jax.random.key(0), batch)
    results["guidance (forward, head and loss, map)"] = part(
        jax.jit(lambda s, v: guide(s, v, method=method, hp=hp, local=local)[0].maps), state, views
    )
    results["map to box"] = part(jax.jit(local(partial(salient_boxes, size=options.size))), found.maps)
    results["crop"] = part(jax.jit(local(crop_boxes)), views, found.boxes)
    results["update (forward, backward, optimiser)"] = part(
        jax.jit(partial(update, method=method, optimizer=optimizer)), state, views
    )

    maps = lam_like_maps(BOX_MAPS, 7)
    pictures = jnp.zeros((BOX_MAPS, BOX_SIZE, BOX_SIZE, 3))
    boxes_and_crops = jax.jit(lambda m, p: crop_boxes(p, salient_boxes(m, size=BOX_SIZE)))
    results[f"{BOX_MAPS} maps of 7x7 to boxes and crops at {BOX_SIZE}"] = part(boxes_and_crops, maps, pictures)
    return {name: float(value) for name, value in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", choices=ENCODERS)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--output_stride", type=int, default=32)
    parser.add_argument("--tiles", type=int, default=8, help="tiles in a batch; two views of each")
    parser.add_argument("--size", type=int, default=224, help="view size in pixels")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--pairs", type=int, default=8, help="timed pairs of a warm-up and a GS step")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each part")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    results = measure(options)
    device = jax.devices()[0].device_kind
    views = f"{2 * options.tiles} views of {options.size}"
    print(f"{options.model}, {views}, {options.dtype}, {jax.device_count()} x {device}")
    for name, value in results.items():
        print(f"{name:48s} {value:9.3f}" if "/" in name else f"{name:48s} {1000 * value:9.1f} ms")
    print(f"{'views per second, warm-up':48s} {2 * options.tiles / results['warm-up step']:9.1f}")
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options) | {"json": None}, "seconds": results}, indent=2))


if __name__ == "__main__":
    main()
