"""An encoder's weights out of the files of other libraries: torchvision, timm, VISSL, MoCo and what names like them.

The encoder is what lies below one prefix of the names; its first convolution is adapted to the number of bands.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from grass_jax.bands import RGB, Bands
from grass_jax.interop.names import encoder_leaves, from_torch, torch_shape
from grass_jax.interop.open_weights import open_weights
from grass_jax.interop.torch_read import StoredTensor

FIRST, BLOCK = "conv1.weight", "layer1.0.conv1.weight"
DEEP_STEMS = ("conv1.0.weight", "stem.0.weight")
FLOATS = ("float64", "float32", "float16", "bfloat16")
CLASSIFIER = r"(^|\.)(fc|classifier|head\.fc)\."
# batch norm's counter, and what belongs to an optimiser rather than to a network
NO_WEIGHTS = re.compile(r"(^|\.)(num_batches_tracked$|optimizers?\.|optimizer_states?\.)")
LISTED = 10  # names of each kind of fault in a message


def read_encoder(
    path: str | os.PathLike,
    variables_like: Mapping[str, Any],
    *,
    bands: Bands = RGB,
    prefix: str = "",
    ignore: str = CLASSIFIER,
) -> dict[str, Any]:
    """Reads an encoder's weights; the first convolution is adapted to the bands (`adapt_stem`), and the log says so.

    Args:
        path: a `.safetensors` file or a PyTorch checkpoint, which is read without executing what is in it.
        variables_like: `params` and `batch_stats` of the encoder (`models.ResNet`) for these bands, of which only
            shapes and dtypes count; `jax.eval_shape` of its init will do.
        bands: the c bands that the encoder is to read.
        prefix: of the encoder's names, `.` for none. Given, nothing outside counts. Empty: the file may hold only one
            ResNet, and nothing unknown outside.
        ignore: pattern of unknown names that are passed over, as the message has them; the default knows classifiers.

    Returns:
        The same tree with the file's values, as NumPy arrays in the tree's dtypes.

    Raises:
        ValueError: the file cannot be read, or its tensors are not those of this encoder; the message lists them.
    """
    leaves, structure = encoder_leaves(variables_like)
    wanted = {name: torch_shape(leaf.shape) for name, leaf in leaves.items()}
    if wanted[FIRST][1] != len(bands):
        raise ValueError(f"The encoder reads {wanted[FIRST][1]} bands, and {len(bands)} are described.")
    with open_weights(path) as (tensors, _):
        try:
            found = choose_prefix(tensors, prefix)
        except ValueError as error:
            raise ValueError(f"{path} {error}.") from None
        own = {name.removeprefix(found): tensor for name, tensor in tensors.items() if name.startswith(found)}
        unknown = tensors.keys() - {found + name for name in wanted}
        if prefix:
            unknown = {name for name in unknown if name.startswith(found)}
        unknown = {name for name in unknown if not NO_WEIGHTS.search(name) and not (ignore and re.search(ignore, name))}
        _refuse(path, found, own, wanted, unknown)
        channels = own[FIRST].shape[1]
        if adapted := adaption(channels, bands):
            logging.info("%s: %s.", path, adapted)
        values = {}
        for name, leaf in leaves.items():
            value = own[name].read()
            with np.errstate(over="ignore", invalid="ignore"):  # looked for below
                value = adapt_stem(value, bands) if name == FIRST else value
                values[name] = from_torch(value).astype(leaf.dtype)
    _refuse_numbers(path, values)
    return dict(jax.tree.unflatten(structure, list(values.values())))


def _refuse(
    path: str | os.PathLike,
    prefix: str,
    own: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    unknown: set[str],
) -> None:
    """Raises ValueError with the list of what is missing, unknown, of another shape or of a type that is not read."""
    missing, shapes, types = sorted(wanted.keys() - own.keys()), [], []
    for name in sorted(wanted.keys() & own.keys()):
        shape, expected = own[name].shape, wanted[name]
        if name == FIRST and len(shape) == 4 and shape[1] > 0:
            expected = (expected[0], shape[1], *expected[2:])  # any number of channels can be adapted
        if own[name].dtype not in FLOATS:
            types.append(f"{name} of {own[name].dtype}")
        elif shape != expected:
            shapes.append(f"{name} {shape} instead of {expected}")
    faults = _faults(
        {
            "missing": missing,
            "unknown": sorted(unknown),
            "of another shape": shapes,
            "of a type that is not read": types,
        }
    )
    if faults:
        advice = ["set config.model to the file's network"] if missing or shapes else []
        advice += ["write the file anew with numbers of float32"] if types else []
        if unknown:
            only = prefix.rstrip(".") or "."
            advice += ["leave unknown names out with config.init_ignore=PATTERN"]
            advice += [f"read only what lies below one name with config.init_prefix={only}"] if prefix else []
        where = f" below {prefix.rstrip('.')!r}" if prefix else ""
        raise ValueError(f"{path} does not hold this encoder{where}; tensors {faults}: {', or '.join(advice)}.")


def _refuse_numbers(path: str | os.PathLike, values: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError with the list of tensors whose numbers no network can have."""
    faults = _faults(
        {
            "with NaN or infinity": [name for name, value in values.items() if not np.isfinite(value).all()],
            "with negative variances": [
                name for name, value in values.items() if name.endswith("running_var") and (value < 0).any()
            ],
        }
    )
    if faults:
        raise ValueError(f"{path} holds no usable weights; tensors {faults}: give those of a training that went well.")


def _faults(names_of: Mapping[str, Sequence[str]]) -> str:
    return " and ".join(f"{len(names)} {fault} ({_cut(names)})" for fault, names in names_of.items() if names)


def _cut(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def choose_prefix(names: Iterable[str], wanted: str = "") -> str:
    """Finds the prefix below which a ResNet lies.

    Files have many: `module.` of DistributedDataParallel, `state_dict.module.encoder_q.` of MoCo, `backbone.`,
    `classy_state_dict.base_model.model.trunk._feature_blocks.` of VISSL.

    Args:
        names: of all tensors, with the keys of nested dicts.
        wanted: the prefix, with or without its last dot, `.` for no prefix; empty where the file has only one ResNet.

    Returns:
        The prefix with its last dot, or "".

    Raises:
        ValueError: there is no ResNet, or one of another kind, or several; half a sentence about the file.
    """
    names = set(names)
    below = sorted(name.removesuffix(BLOCK) for name in names if name == BLOCK or name.endswith("." + BLOCK))
    found = [prefix for prefix in below if prefix + FIRST in names]
    listed = ", ".join(prefix.rstrip(".") or "." for prefix in found[:10])
    if wanted:
        prefix = wanted.strip(".") + "." if wanted.strip(".") else ""
        if prefix in found:
            return prefix
        _refuse_deep_stem(prefix, names)
        raise ValueError(f"has no ResNet below {wanted!r}: set config.init_prefix to one of {listed or 'none'}")
    if len(found) > 1:
        raise ValueError(f"has {len(found)} networks ({listed}): choose one of them with config.init_prefix=NAME")
    if found:
        return found[0]
    for prefix in below:
        _refuse_deep_stem(prefix, names)
    if not names:
        raise ValueError("has no tensors by name: give a file of a state dict, as model.state_dict() has it")
    raise ValueError(
        f"has no ResNet, no {FIRST} and {BLOCK} below one name, but {len(names)} other tensors "
        f"({', '.join(sorted(names)[:5])}, ...): give the state dict of a ResNet"
    )


def _refuse_deep_stem(prefix: str, names: set[str]) -> None:
    """Raises ValueError where the stem has three convolutions."""
    if any(prefix + stem in names for stem in DEEP_STEMS):
        raise ValueError(
            "holds a ResNet whose stem has three convolutions (ResNet-C or -D, resnetv1c, resnet50d), which is another "
            "network: give one whose stem is a single 7x7 convolution, as torchvision's"
        )


def adapt_stem(weight: np.ndarray, bands: Bands) -> np.ndarray:
    """Makes the kernel of a first convolution for other bands.

    Red, green and blue keep their weights where `bands` says which they are and the file has three channels; every
    other band takes the mean over the file's channels. All are scaled so that the response to a grey surface stays
    about as strong.

    Args:
        weight: (out, i, h, w).
        bands: the c bands that are read.

    Returns:
        (out, c, h, w) of the same dtype; `weight` itself where c is i and red, green and blue are not in another order.
    """
    channels = weight.shape[1]
    if _fits(channels, bands):
        return weight
    wide = weight.astype(np.float64)
    adapted = np.repeat(wide.mean(1, keepdims=True), len(bands), axis=1)
    if channels == 3 and bands.colours:
        adapted[:, np.array(bands.colours)] = wide
    return (adapted * (channels / len(bands))).astype(weight.dtype)


def adaption(channels: int, bands: Bands) -> str:
    """Says in words what `adapt_stem` does; empty where it does nothing."""
    if _fits(channels, bands):
        return ""
    if channels == len(bands):
        return f"the weights of red, green and blue go to the bands {', '.join(map(str, bands.rgb))}"
    words = f"its first convolution reads {channels} channels and {len(bands)} bands are given: "
    if channels == 3 and bands.colours:
        colours = ", ".join(str(number) for number in bands.rgb)
        words += f"bands {colours} keep the weights of red, green and blue, every other band takes their mean"
    else:
        words += "every band takes the mean of their weights"
    return words + f", all times {channels}/{len(bands)}"


def _fits(channels: int, bands: Bands) -> bool:
    return channels == len(bands) and (channels != 3 or bands.colours in ((), (0, 1, 2)))
