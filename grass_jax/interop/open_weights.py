"""Weights files of either kind, told apart by what is in them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import logging

from grass_jax.bands import Bands
from grass_jax.interop.pickle_data import printable
from grass_jax.interop.torch_read import StoredTensor, Weights, open_torch
from grass_jax.models import ENCODERS

ZIP, PICKLE, TAR = b"PK\x03\x04", b"\x80", b"ustar"
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MAX_WIDTH = 4096  # no ResNet comes near


@contextmanager
def open_weights(path: str | os.PathLike) -> Iterator[Weights]:
    """Opens a weights file; nothing in it is executed.

    Args:
        path: of a `.safetensors` file or a PyTorch checkpoint, under any name.

    Yields:
        Its tensors, and what it says of itself.

    Raises:
        ValueError: it cannot be read; one sentence.
    """
    path = Path(path).expanduser()
    try:
        if not path.is_file() and path.exists() and not path.is_dir():  # a pipe would be waited for
            raise ValueError(f"{path} is no regular file: give a weights file.")
        with open(path, "rb") as file:
            head = file.read(262)
        safetensors = head[8:9] == b"{" and head[:4] != ZIP  # before it stands a length, that may look like a pickle
        if safetensors or head[:4] == ZIP or head[:1] == PICKLE:
            with _open_safetensors(path) if safetensors else open_torch(path) as weights:
                yield weights
        elif head[257:] == TAR:
            raise ValueError(
                f"{path} is a tar archive: unpack it, or, where the first PyTorch wrote it and you trust it, write it "
                "anew with `torch.save(torch.load(OLD, weights_only=False), 'NEW.pth')`, which runs what is in it."
            )
        else:
            raise ValueError(f"{path} is neither a .safetensors file nor a PyTorch checkpoint: give one of these.")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): give a weights file.") from None


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """What a file that `export` has written says of its encoder.

    Args:
        path: of a weights file; others say nothing.

    Returns:
        `model` (name and width) and `bands` (the fields of `Bands`), or nothing; a warning tells of a file that says
        what cannot be.
    """
    try:
        with open_weights(path) as weights:
            said = weights.said
    except ValueError:  # `read_encoder` says what is wrong with it
        return {}
    if "grass_jax" not in said:
        return {}
    try:
        if said["encoder"] not in ENCODERS:
            raise ValueError(f"the encoder {said['encoder'][:50]!a} is not known")
        (width,) = _whole([json.loads(said["width"])])
        if width % 4 or not 4 <= width <= MAX_WIDTH:
            raise ValueError(f"the width {width} is that of no encoder")
        numbers, rgb = (tuple(_whole(json.loads(said[name]))) for name in ("bands", "rgb"))
        reals = {name: _reals(json.loads(said[name])) for name in ("low", "high", "mean", "std")}
        bands = Bands(numbers=numbers, dtype=said["dtype"], rgb=rgb, **reals)
    except (LookupError, ValueError, TypeError, OverflowError, RecursionError) as error:
        logging.warning(
            "%s says of its encoder what cannot be (%s), so config.model and config.bands count.",
            *(path, printable(str(error)[:200])),
        )
        return {}
    return {"model": {"name": said["encoder"], "width": width}, "bands": bands.asdict()}


def _whole(values: Any) -> list[int]:
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ValueError("other things where whole numbers belong")
    return values


def _reals(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
        raise ValueError("other things where numbers belong")
    return tuple(map(float, values))


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Weights]:
    import safetensors

    try:
        with safetensors.safe_open(path, "numpy") as file:

            def stored(name: str) -> StoredTensor:
                entry = file.get_slice(name)
                dtype = str(entry.get_dtype())
                return StoredTensor(tuple(entry.get_shape()), FLOATS.get(dtype, dtype), lambda: file.get_tensor(name))

            yield Weights({printable(name): stored(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as .safetensors ({printable(str(error))}): give a whole file of that format."
        ) from None
