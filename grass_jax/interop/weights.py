"""An encoder's weights out of the files of other libraries: torchvision, timm, VISSL, MoCo and what names like them."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging

from grass_jax.bands import RGB, Bands
from grass_jax.interop.names import encoder_leaves, from_torch, torch_shape
from grass_jax.interop.prefix import FIRST, choose_prefix
from grass_jax.interop.stem import adapt_stem, adaption
from grass_jax.interop.torch_file import StoredTensor
from grass_jax.interop.weights_file import open_weights

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
    with open_weights(path) as tensors:
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
        values = []
        for name, leaf in leaves.items():
            value = own[name].read()
            value = adapt_stem(value, bands) if name == FIRST else value
            values.append(from_torch(value).astype(leaf.dtype))
    return dict(jax.tree.unflatten(structure, values))


def _refuse(
    path: str | os.PathLike,
    prefix: str,
    own: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    unknown: set[str],
) -> None:
    """Raises ValueError with the list of what is missing, unknown, or of another shape or type."""
    missing = sorted(wanted.keys() - own.keys())
    other = []
    for name in sorted(wanted.keys() & own.keys()):
        shape, expected = own[name].shape, wanted[name]
        if name == FIRST and len(shape) == 4 and shape[1] > 0:
            expected = (expected[0], shape[1], *expected[2:])  # any number of channels can be adapted
        if shape != expected:
            other.append(f"{name} {shape} instead of {expected}")
        elif not own[name].floating:
            other.append(f"{name} of whole numbers")
    faults = [
        f"{len(names)} {words} ({_cut(names)})"
        for names, words in ((missing, "missing"), (sorted(unknown), "unknown"), (other, "of another shape or type"))
        if names
    ]
    if faults:
        advice = "set config.model to the file's network" if missing or other else ""
        if unknown:
            only = prefix.rstrip(".") or "."
            advice += f"{', or ' * bool(advice)}leave unknown names out with config.init_ignore=PATTERN"
            advice += f", or read only what lies below one name with config.init_prefix={only}" * bool(prefix)
        where = f" below {prefix.rstrip('.')!r}" if prefix else ""
        raise ValueError(f"{path} does not hold this encoder{where}; tensors {' and '.join(faults)}: {advice}.")


def _cut(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
