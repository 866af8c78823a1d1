"""Weights files of either kind, told apart by what is in them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grass_jax.interop.torch_file import TO_SAFETENSORS, StoredTensor, open_torch

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
FLOATS = ("F64", "F32", "F16", "BF16")


@contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[dict[str, StoredTensor]]:
    """Opens a weights file; nothing in it is executed.

    Args:
        path: of a `.safetensors` file or a PyTorch checkpoint, under any name.

    Yields:
        The tensors by name, with dots between the keys of nested dicts.

    Raises:
        ValueError: it cannot be read; one sentence.
    """
    path = Path(path).expanduser()
    try:
        with open(path, "rb") as file:
            head = file.read(9)
        if head[:4] == ZIP:
            with open_torch(path) as tensors:
                yield tensors
        elif head[8:] == b"{":
            with _open_safetensors(path) as tensors:
                yield tensors
        elif head[:1] == PICKLE:
            raise ValueError(f"{path} has the format that PyTorch wrote before version 1.6: {TO_SAFETENSORS}.")
        else:
            raise ValueError(f"{path} is neither a .safetensors file nor a PyTorch checkpoint: give one of these.")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): give a weights file.") from None


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """What a file that `export` has written says of its encoder.

    Args:
        path: of a `.safetensors` file; others say nothing.

    Returns:
        `model` (name and width) and `bands` (the fields of `Bands`), or nothing.
    """
    import safetensors

    try:
        with safetensors.safe_open(Path(path).expanduser(), "numpy") as file:
            found = file.metadata() or {}
        if "grass_jax" not in found:
            return {}
        values = {name: json.loads(found[name]) for name in ("low", "high", "mean", "std", "rgb", "width")}
        bands = {"numbers": json.loads(found["bands"]), "dtype": found["dtype"]}
    except (safetensors.SafetensorError, OSError, KeyError, ValueError):  # `open_weights` says what is wrong with it
        return {}
    return {"model": {"name": found["encoder"], "width": values.pop("width")}, "bands": bands | values}


@contextmanager
def _open_safetensors(path: Path) -> Iterator[dict[str, StoredTensor]]:
    import safetensors

    try:
        with safetensors.safe_open(path, "numpy") as file:

            def stored(name: str) -> StoredTensor:
                entry = file.get_slice(name)
                shape = tuple(entry.get_shape())
                return StoredTensor(shape, entry.get_dtype() in FLOATS, lambda: file.get_tensor(name))

            yield {name: stored(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as .safetensors ({error}): give a whole file of that format."
        ) from None
