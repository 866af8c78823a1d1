"""What torchvision's files hold, written down by hand, and weights that keep a deep network's numbers in range."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import export as export_config
from grass_jax.bands import RGB, Bands
from grass_jax.checkpoints.saving import Checkpoints
from grass_jax.interop import export
from grass_jax.models import build_encoder, build_segmenter
from grass_jax.state import TrainState, variable_shapes


@pytest.fixture(scope="session")
def torch_shapes():
    """Names and shapes of a torchvision ResNet's state dict, from its constructor."""

    def shapes_of(blocks, *, bottleneck, width, bands=3):
        shapes = {"conv1.weight": (width, bands, 7, 7)}

        def norm(name, channels):
            shapes.update({f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")})
            shapes[f"{name}.num_batches_tracked"] = ()

        norm("bn1", width)
        inputs = width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            outputs = planes * (4 if bottleneck else 1)
            for block in range(count):
                name = f"layer{stage + 1}.{block}"
                kernels = [(planes, inputs, 1), (planes, planes, 3), (outputs, planes, 1)]
                for i, (o, c, k) in enumerate(kernels if bottleneck else [(planes, inputs, 3), (planes, planes, 3)], 1):
                    shapes[f"{name}.conv{i}.weight"] = (o, c, k, k)
                    norm(f"{name}.bn{i}", o)
                if block == 0 and (stage > 0 or bottleneck):
                    shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                    norm(f"{name}.downsample.1", outputs)
                inputs = outputs
        return shapes | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}

    return shapes_of


@pytest.fixture(scope="session")
def random_tensors():
    """Draws a state dict: batch norm far from its initial state, kernels of He's size."""

    def draw(shapes, seed=0):
        rng = np.random.default_rng(seed)

        def one(name, shape):
            if len(shape) > 1:
                return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
            if name.endswith(("running_var", "weight")):
                return rng.uniform(0.5, 1.5, shape)
            return rng.normal(0, 0.1, shape)

        return {name: np.asarray(one(name, shape), np.float32) for name, shape in shapes.items()}

    return draw


@pytest.fixture(scope="session")
def random_variables():
    """Draws `params` and `batch_stats` for a tree of shapes, with the same care."""

    def draw(shapes, seed=0):
        rng = np.random.default_rng(seed)

        def one(path, leaf):
            match path[-1].key:
                case "kernel":
                    value = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
                case "var" | "scale":
                    value = rng.uniform(0.5, 1.5, leaf.shape)
                case _:
                    value = rng.normal(0, 0.1, leaf.shape)
            return np.asarray(value, np.float32)

        return jax.tree_util.tree_map_with_path(one, shapes)

    return draw


@pytest.fixture(scope="session")
def four():
    """Bands of a satellite, of 16 bits: blue, green, red and the fifth of its file."""
    values = {"low": (10.0,) * 4, "high": (4000.0, 3000.0, 2000.0, 5000.0)}
    return Bands((1, 2, 3, 5), "uint16", **values, mean=(0.4, 0.3, 0.2, 0.5), std=(0.1, 0.2, 0.1, 0.2), rgb=(3, 2, 1))


HEAD = {"name": "deeplabv3plus", "channels": 8, "dropout": 0.1}
CLASSES = ["grass", "stone", "water"]


@pytest.fixture
def make_run(tmp_path, random_variables):
    """Writes the folder of a run as training leaves it: config.json, summary.json and a checkpoint."""

    def make(task="pretrain", *, name="resnet18", width=8, stride=32, bands=RGB, head=HEAD, steps=(4,), summary=True):
        model = {"name": name, "width": width, "output_stride": stride, "dtype": "float32"}
        config = {
            "task": task,
            "bands": bands.asdict(),
            "model": model,
            "data": {"name": "image_folder", "path": "/home/somebody/secret/potsdam", "tile_size": 256, "gsd": 0.0},
            "augment": {"size": 224, "area": (0.08, 1.0), "hue": 0.1},
            "optimizer": {"name": "larc", "momentum": 0.9},
            "batch_size": 8,
            "init": "/home/somebody/secret/first",
            "init_step": 7,
            "log": {"every": 10},
        }
        if task == "pretrain":
            config |= {
                "phases": ("warmup", "gs"),
                "warmup": {"step": "warmup_step", "epochs": 1},
                "method": {"name": "simclr"},
            }
            config |= {"gs": {"step": "gs_step", "epochs": 1}}
            network, numbers = build_encoder(**model), {"steps": 4, "phases": {"warmup": {"ends": {"loss": 3.25}}}}
        else:
            config |= {"phases": ("finetune",), "finetune": {"steps": 4}, "head": head}
            network = build_segmenter(model, head, len(CLASSES))
            numbers = {"chosen_step": steps[-1], "test": {"miou": 0.625, "iou": {"grass": 0.5}, "absent": []}}
        variables = random_variables(variable_shapes(network, len(bands)))
        params, stats = variables["params"], variables["batch_stats"]
        if task == "pretrain":
            params, stats = {"encoder": params, "head": {"bias": np.ones(3, np.float32)}}, {"encoder": stats}
        workdir = tmp_path / "run"
        with Checkpoints(workdir, keep=9) as checkpoints:
            for step in steps:
                state = TrainState(np.int32(step), jax.tree.map(lambda a, n=step: a * n / 4, params), stats, (), ())
                checkpoints.save(step, jax.tree.map(jnp.asarray, state))
        record = {"config": config, "data": {"tiles": 16, "batch_size": 8}}
        record |= {"environment": {"versions": {"jax": "0.10.1", "grain": None}}}
        if task == "segment":
            record["labels"] = {"classes": CLASSES, "colours": [[0, 0, 0]] * 3}
        (workdir / "config.json").write_text(json.dumps(record))
        if summary:
            (workdir / "summary.json").write_text(json.dumps(numbers))
        return workdir, variables

    return make


@pytest.fixture(scope="session")
def run():
    """Exports a run: `run(workdir, output, **changes)`."""

    def export_run(workdir, output, **changes):
        config = export_config.get_config()
        config.update({"model": str(workdir), "output": str(output), **changes})
        return export.run(config, workdir.parent / "exported")

    return export_run
