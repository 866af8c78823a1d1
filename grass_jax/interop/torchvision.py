"""An encoder's weights in a `.safetensors` file with the names of torchvision's ResNet.

`layer1_0/conv1/kernel` (h, w, in, out) is `layer1.0.conv1.weight` (out, in, h, w), and batch norm's `scale`, `bias`,
`mean` and `var` are `weight`, `bias`, `running_mean` and `running_var`. The numbers are copied as they are; what was
trained here holds the biased running variance and what was trained in PyTorch the unbiased one, which differ by less
than a thousandth wherever a batch has more than a thousand feature pixels.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grass_jax.report.atomic import replacing

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# what torchvision's files hold beyond the encoder: the classifier and a counter of batch norm
NOT_OURS = re.compile(r"fc\.(weight|bias)|(.*\.)?num_batches_tracked")


def read_encoder(path: str | os.PathLike, variables_like: Mapping[str, Any]) -> dict[str, Any]:
    """Reads an encoder's weights.

    Args:
        path: a `.safetensors` file; `fc.*` and `num_batches_tracked` are passed over.
        variables_like: `params` and `batch_stats` of the encoder (`models.ResNet`), of which only shapes and dtypes
            count; `jax.eval_shape` of its init will do.

    Returns:
        The same tree with the file's values, as NumPy arrays in the tree's dtypes.

    Raises:
        ValueError: the file is no `.safetensors`, or its tensors are not those of this encoder; the message lists them.
    """
    import safetensors
    import safetensors.numpy

    try:
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as .safetensors ({error}): give a whole file of that format."
        ) from None
    tensors = {name: value for name, value in tensors.items() if not NOT_OURS.fullmatch(name)}
    leaves, structure = _named_leaves(variables_like)
    wanted = {name: _torch_shape(leaf.shape) for name, leaf in leaves.items()}
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - tensors.keys())]
    faults += [f"{name} is unknown" for name in sorted(tensors.keys() - wanted.keys())]
    faults += [
        f"{name} has shape {tensors[name].shape} instead of {shape}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if faults:
        raise ValueError(
            f"{path} does not hold this encoder: {'; '.join(faults)}. Set config.model to the file's network."
        )
    values = [_from_torch(tensors[name]).astype(leaf.dtype) for name, leaf in leaves.items()]
    return dict(jax.tree.unflatten(structure, values))


def write_encoder(path: str | os.PathLike, variables: Mapping[str, Any]) -> None:
    """Writes an encoder's weights; `read_encoder` gives the same bits back.

    Args:
        path: the `.safetensors` file to write or replace.
        variables: `params` and `batch_stats` of the encoder.
    """
    import safetensors.numpy

    leaves, _ = _named_leaves(variables)
    tensors = {name: _to_torch(np.asarray(leaf)) for name, leaf in leaves.items()}
    with replacing(Path(path)) as temporary:
        safetensors.numpy.save_file(tensors, temporary)


def _named_leaves(variables: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The leaves of `params` and `batch_stats` by torchvision's names, in the tree's order, and its structure."""
    tree = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    named = {}
    for (_, *modules, leaf), value in leaves:
        # layer1_0 -> layer1.0, downsample_0 -> downsample.0
        modules = [re.sub(r"_(\d+)$", r".\1", module.key) for module in modules]
        named[".".join([*modules, LEAVES[leaf.key]])] = value
    return named, structure


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def _from_torch(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def _to_torch(value: np.ndarray) -> np.ndarray:
    # safetensors writes the bytes as they lie, so they must lie in order
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
