"""A network's arrays under the names and in the layout that they have in PyTorch.

`layer1_0/conv1/kernel` (h, w, in, out) is torchvision's `layer1.0.conv1.weight` (out, in, h, w), and batch norm's
`scale`, `bias`, `mean` and `var` are `weight`, `bias`, `running_mean` and `running_var`. The numbers are copied as they
are; what was trained here holds the biased running variance and what was trained in PyTorch the unbiased one, which
differ by less than a thousandth wherever a batch has more than a thousand feature pixels.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def encoder_leaves(variables: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Names the leaves of an encoder as torchvision does.

    Args:
        variables: `params` and `batch_stats` of `models.ResNet`.

    Returns:
        The leaves as they are by name, in the tree's order, and the tree's structure.
    """
    tree = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
    return dict(_named(tree, _encoder_module)), jax.tree.structure(tree)


def encoder_tensors(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An encoder's arrays with torchvision's names and layout; `variables` as for `encoder_leaves`."""
    return {name: to_torch(np.asarray(leaf)) for name, leaf in encoder_leaves(variables)[0].items()}


def network_tensors(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a `models.Segmenter` for PyTorch.

    Args:
        variables: its `params` and `batch_stats`.

    Returns:
        The encoder's below `backbone.`, the pyramid's below `aspp.` with the names of torchvision's `ASPP`, and the
        rest as `low_level`, `refine1`, `refine2`, `block` and `classifier`, in which a convolution is 0 and its batch
        norm 1.
    """
    named = {f"backbone.{name}": value for name, value in encoder_tensors(part_of(variables, "encoder")).items()}
    decoder = _named(part_of(variables, "decoder"), _decoder_module)
    return named | {name: to_torch(np.asarray(leaf)) for name, leaf in decoder}


def part_of(variables: Mapping[str, Any], part: str) -> dict[str, Any]:
    """`params` and, where there are any, `batch_stats` of a part (encoder or decoder) of a network."""
    return {kind: tree[part] for kind, tree in variables.items() if part in tree}


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a kernel (h, w, in, out) has in PyTorch; others stay."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def from_torch(value: np.ndarray) -> np.ndarray:
    """Turns (out, in, h, w) to (h, w, in, out) and leaves the rest."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def to_torch(value: np.ndarray) -> np.ndarray:
    """Turns a kernel (h, w, in, out), or (in, out) for 1x1, to (out, in, h, w) and leaves the rest."""
    if value.ndim == 2:
        value = value[None, None]
    # safetensors writes the bytes as they lie, so they must lie in order
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)


def _named(tree: Any, module_name: Callable[[list[str]], str]) -> Iterator[tuple[str, Any]]:
    for (_, *modules, leaf), value in jax.tree_util.tree_leaves_with_path(tree):
        yield f"{module_name([module.key for module in modules])}.{LEAVES[leaf.key]}", value


def _encoder_module(modules: list[str]) -> str:
    # layer1_0 -> layer1.0, downsample_0 -> downsample.0
    return ".".join(re.sub(r"_(\d+)$", r".\1", module) for module in modules)


def _decoder_module(modules: list[str]) -> str:
    *outer, inner = modules
    if outer == ["classifier"]:
        return "classifier"
    index = {"conv": 0, "bn": 1}[inner]
    if outer[0] != "aspp":
        return f"{outer[0]}.{index}"
    branch = outer[1]
    if branch == "project":
        return f"aspp.project.{index}"
    if branch == "pool":  # the last one, behind the pooling
        return f"aspp.convs.4.{index + 1}"
    return f"aspp.convs.{branch.removeprefix('atrous').replace('point', '0')}.{index}"
