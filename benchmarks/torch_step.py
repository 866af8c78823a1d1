"""The original's GS step in plain PyTorch and ours, on the same views in the same run.

    pip install torch scikit-image
    python -m benchmarks.torch_step          ResNet-50, 16 views of 224, float32, CPU: five minutes on 2 cores

Both start from the same weights and get the same augmented views, and the losses of their first steps are printed side
by side. They are timed in turns, with a thread for every core that the process may use (`taskset` says which); the
ratio is the median over the pairs. The original augments in other processes while it trains: so our step is timed on
ready views, and with augmentation beside it.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.timing import interleaved, milliseconds, quartiles, spread, table
from grass_jax.augment import Augmentation, two_views
from grass_jax.data.workers import cores
from grass_jax.guidance import GuidanceSettings, guide
from grass_jax.interop.names import encoder_tensors
from grass_jax.methods import Method
from grass_jax.methods.simclr import simclr
from grass_jax.models.resnet import Bottleneck, ResNet
from grass_jax.optim import decay_mask, larc
from grass_jax.sampling import crop_boxes
from grass_jax.state import TrainState, create_state
from grass_jax.steps import gs_step, update

RATE = 0.6  # the original's first
SETTINGS = GuidanceSettings(sign="flip")  # the original's division by the maximum


def our_method(layers: tuple[int, ...], width: int) -> Method:
    """The original's network and loss here: an affine head on a trunk of bottlenecks, temperature 0.5."""
    return simclr(ResNet(layers, Bottleneck, width=width), relu=False, temperature=0.5)


def step_on_views(state: TrainState, views: jax.Array, *, method: Method, optimizer: Any) -> tuple[TrainState, dict]:
    """Our GS step without the augmentation: guidance, crop and update of views (b, 2, s, s, 3)."""
    guidance, stats = guide(state, views, method=method, hp=SETTINGS)
    guided = crop_boxes(views, guidance.boxes)
    state, metrics = update(state.replace(stats=stats), guided, method=method, optimizer=optimizer)
    return state, metrics | {"loss_before": guidance.loss, "boxes": guidance.boxes}


def rows_of(views: jax.Array) -> np.ndarray:
    """Views (b, 2, s, s, 3) as the original has them, (2b, 3, s, s): all first ones, then all second ones."""
    return np.ascontiguousarray(np.asarray(views).swapaxes(0, 1).reshape(-1, *views.shape[2:]).transpose(0, 3, 1, 2))


def torch_weights(state: TrainState) -> dict[str, np.ndarray]:
    """Our parameters and statistics with the names and layout of `benchmarks.torch_gs.Network`."""
    named = encoder_tensors({"params": state.params["encoder"], "batch_stats": state.stats["encoder"]})
    for layer, arrays in state.params["head"].items():
        named[f"{layer}.weight"], named[f"{layer}.bias"] = np.asarray(arrays["kernel"]).T, np.asarray(arrays["bias"])
    return named


def load(network: Any, weights: dict[str, np.ndarray]) -> None:
    """Copies weights into a torch network; all but the counters of its batch norms must be there."""
    import torch  # pyright: ignore[reportMissingImports]

    tensors = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    missing, unknown = network.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise ValueError(f"The weights lack {missing} and have {unknown}: give both networks the same layers.")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times all three; returns what `--json` writes."""
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks.torch_gs import Network, Trainer

    threads = cores()
    torch.set_num_threads(threads)  # JAX takes as many
    size, layers = options.size, tuple(options.layers)
    method, optimizer = our_method(layers, options.width), larc(RATE, decay_mask=decay_mask)
    new_state = partial(create_state, jax.random.key(0), method, optimizer, size=size)
    images = np.random.default_rng(0).integers(0, 256, (options.tiles, size * 8 // 7, size * 8 // 7, 3), np.uint8)
    augmentation, key = Augmentation(size=size), jax.random.key(0)
    views = jax.jit(lambda images: two_views(key, images, augmentation))(images)

    trainer = Trainer(Network(layers, options.width))
    load(trainer.network, torch_weights(new_state()))
    rows = torch.from_numpy(rows_of(views))
    settings = {"method": method, "optimizer": optimizer}
    on_views = jax.jit(partial(step_on_views, **settings), donate_argnums=0)
    with_augment = jax.jit(
        partial(
            gs_step, augment=lambda key, batch: two_views(key, batch["image"], augmentation), hp=SETTINGS, **settings
        ),
        donate_argnums=0,
    )

    def stepping(step: Callable, *inputs: Any) -> Callable[[], jax.Array]:
        states = [new_state()]

        def call() -> jax.Array:
            states[0], metrics = step(states[0], *inputs)
            return metrics["loss"]

        return call

    theirs = trainer(rows.clone(), RATE)
    ours = jax.device_get(on_views(new_state(), views)[1])
    functions = {
        "PyTorch, ready views": lambda: trainer(rows.clone(), RATE).loss,
        "ours, ready views": stepping(on_views, views),
        "ours, with augmentation": stepping(with_augment, {"image": jax.numpy.asarray(images)}, key),
    }
    seconds = interleaved(functions, rounds=options.pairs)
    ends = {name: float(step()) for name, step in functions.items()}
    if not np.isfinite(list(ends.values())).all():
        raise FloatingPointError(f"The losses are {ends}: what was timed is no training.")
    first = seconds["PyTorch, ready views"]
    return {
        "options": vars(options) | {"json": None},
        "threads": threads,
        "versions": {"torch": torch.__version__, "jax": jax.__version__},
        "seconds": {name: quartiles(values) for name, values in seconds.items()},
        "ratios": {name: quartiles(first / values) for name, values in seconds.items() if name.startswith("ours")},
        "losses": {
            "PyTorch": [theirs.loss_before, theirs.loss],
            "ours": [float(ours["loss_before"]), float(ours["loss"])],
        },
        "equal_boxes": float((rows_of_boxes(ours["boxes"]) == theirs.boxes).all(-1).mean()),
    }


def rows_of_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes (b, 2, 4) in the order of the original's rows, (2b, 4)."""
    return boxes.swapaxes(0, 1).reshape(-1, 4)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=4, default=[3, 4, 6, 3], help="blocks of the stages: ResNet-50's")
    parser.add_argument("--width", type=int, default=64, help="channels of the stem")
    parser.add_argument("--tiles", type=int, default=8, help="tiles in a batch; two views of each")
    parser.add_argument("--size", type=int, default=224, help="view size in pixels")
    parser.add_argument("--pairs", type=int, default=8, help="timed rounds")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("skimage") is None:
        sys.exit("grass_jax: benchmarks.torch_step needs PyTorch and scikit-image: pip install torch scikit-image")
    if jax.default_backend() != "cpu":
        sys.exit("grass_jax: benchmarks.torch_step compares on CPU: run it with JAX_PLATFORMS=cpu.")
    found = measure(options)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(f"{2 * options.tiles} views of {options.size}, float32, {found['threads']} threads, {versions}\n")
    faster = {name: spread(ratio, digits=2) for name, ratio in found["ratios"].items()}
    rows = [[name, milliseconds(value), faster.get(name, "1")] for name, value in found["seconds"].items()]
    print(table(["GS step", "ms (quartiles)", f"times faster, median of {options.pairs} pairs"], rows))
    for name, losses in found["losses"].items():
        print(f"\nfirst step of {name}: loss {losses[0]:.6f} before the crop, {losses[1]:.6f} after it", end="")
    print(f"\nequal boxes in the first step: {100 * found['equal_boxes']:.0f} %")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
