"""PyTorch's checkpoints (.pth, .pt, .tar) without PyTorch, and without running what is pickled in them.

A checkpoint of PyTorch 1.6 or later is a zip file, not compressed: `data.pkl` says what the tensors are called and how
they lie in the storages, and every storage is a file `data/<key>` of plain numbers.
"""

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grass_jax.interop.pickle_data import Call, Global, Persistent, read_pickle

TO_SAFETENSORS = (
    "convert it where PyTorch is installed, with `safetensors.torch.save_file(torch.load(OLD, weights_only=True), "
    "'NEW.safetensors')`, or with the state dict that is in OLD"
)
DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",  # its bits; NumPy has no such type
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
REBUILD = "_rebuild_tensor_v2"
REBUILD_PARAMETER = ("_rebuild_parameter", "_rebuild_parameter_with_state")
MAX_DEPTH, MAX_ENTRIES, MAX_NAME = 12, 200_000, 500


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: in PyTorch's order.
        floating: whether it holds floating point numbers.
        read: reads it; ValueError where the file is damaged.
    """

    shape: tuple[int, ...]
    floating: bool
    read: Callable[[], np.ndarray]


@contextmanager
def open_torch(path: Path) -> Iterator[dict[str, StoredTensor]]:
    """Opens a PyTorch checkpoint.

    Args:
        path: of a zip file.

    Yields:
        Every tensor in its (nested) dicts, by the keys with dots between: `state_dict.conv1.weight`. Nothing but the
        names has been read.

    Raises:
        ValueError: it is no such checkpoint, or malformed; one sentence.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield _Archive(path, archive).tensors()
    # RuntimeError: encrypted; UnicodeError: of the names in the archive
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, UnicodeError) as error:
        raise ValueError(f"{path} is damaged ({str(error) or 'it is cut'}): get the whole file again.") from None


class _Archive:
    """The open zip file, with the storage that was read last."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path, self._archive = path, archive
        self._last: tuple[str, bytes] = ("", b"")
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if any(name.endswith("constants.pkl") for name in names):
            raise ValueError(
                f"{path} is a TorchScript program: save its weights alone where PyTorch is installed, with "
                "`torch.save(torch.jit.load(OLD).state_dict(), 'NEW.pth')`."
            )
        if len(pickles) != 1:
            raise ValueError(f"{path} is a zip file but no PyTorch checkpoint: give one that torch.save wrote.")
        self._root = pickles[0].removesuffix("data.pkl")
        if self._root + "byteorder" in names and self._entry("byteorder").strip() != b"little":
            raise ValueError(f"{path} was written on a big-endian machine: {TO_SAFETENSORS}.")

    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor of the dicts, by its name."""
        pickled = self._entry("data.pkl")
        try:
            tree = read_pickle(pickled)
        except ValueError as error:
            raise ValueError(f"{self._path} {error}: get the whole file again, or {TO_SAFETENSORS}.") from None
        found, left, waiting = {}, MAX_ENTRIES, [("", tree, 0)]
        while waiting:
            prefix, node, depth = waiting.pop()
            for key, value in node.items() if isinstance(node, dict) else ():
                left -= 1
                if left < 0:
                    raise ValueError(f"{self._path} has more entries than any checkpoint needs: {TO_SAFETENSORS}.")
                if len(prefix) + len(str(key)) > MAX_NAME:
                    continue
                name = prefix + (key if isinstance(key, str) and key.isprintable() else ascii(key))
                tensor = _unwrap(value)
                if tensor is not None:
                    found[name] = self._stored(name, tensor)
                elif isinstance(value, dict) and depth < MAX_DEPTH:
                    waiting.append((f"{name}.", value, depth + 1))
        return found

    def _stored(self, name: str, arguments: tuple[Any, ...]) -> StoredTensor:
        """Checks how a tensor lies in its storage."""
        match arguments:
            case (
                Persistent(("storage", Global(_, kind), str(key), _, int(count), *_)),
                int(offset),
                tuple(size),
                tuple(stride),
                *_,
            ):
                pass
            case _:
                raise ValueError(f"{self._path} describes {name} in an unknown way: {TO_SAFETENSORS}.")
        whole = [isinstance(n, int) and 0 <= n < 2**40 for n in (offset, count, *size, *stride)]
        fits = len(size) == len(stride) <= 8 and all(whole) and math.prod(size) <= count
        if fits and math.prod(size):
            fits = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) < count
        if not fits:
            raise ValueError(f"{self._path} has a tensor {name} that exceeds its storage: get the whole file again.")

        def read() -> np.ndarray:
            if kind not in DTYPES:
                raise ValueError(f"{self._path} holds {name} as {kind[:50]}: {TO_SAFETENSORS}.")
            dtype = np.dtype(DTYPES[kind])
            data = self._entry(f"data/{key}")
            if len(data) < count * dtype.itemsize:
                raise ValueError(f"{self._path} has too few numbers for {name}: get the whole file again.")
            steps = tuple(step * dtype.itemsize for step in stride)
            array = np.empty(size, dtype)
            if array.size:  # an empty one takes any strides; NumPy checks those of others once more
                array = np.ndarray(size, dtype, data, offset * dtype.itemsize, steps)
            if kind == "BFloat16Storage":
                return (array.astype(np.uint32) << 16).view(np.float32)
            return np.ascontiguousarray(array).reshape(size)  # the former makes a scalar a vector

        return StoredTensor(size, kind in ("FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage"), read)

    def _entry(self, name: str) -> bytes:
        """Reads a file of the archive, which can never be longer than the archive."""
        if self._last[0] == name:  # tensors may share a storage
            return self._last[1]
        try:
            info = self._archive.getinfo(self._root + name)
        except KeyError:
            raise ValueError(f"{self._path} lacks its file {name[:50]!r}: get the whole file again.") from None
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{self._path} is compressed, as PyTorch writes none: {TO_SAFETENSORS}.")
        if info.file_size > self._path.stat().st_size:
            raise ValueError(f"{self._path} is shorter than it says: get the whole file again.")
        self._last = (name, self._archive.read(info))
        return self._last[1]


def _unwrap(value: Any) -> tuple[Any, ...] | None:
    """The arguments of a tensor's making; None for anything else."""
    for _ in range(2):
        match value:
            case Call(Global("torch._utils", name), tuple(arguments)) if arguments and name in REBUILD_PARAMETER:
                value = arguments[0]
            case Call(Global("torch._utils", name), tuple(arguments)) if name == REBUILD:
                return arguments
    return None
