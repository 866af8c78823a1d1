"""What torchvision's files hold, written down by hand, and weights that keep a deep network's numbers in range."""

import jax
import numpy as np
import pytest


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
