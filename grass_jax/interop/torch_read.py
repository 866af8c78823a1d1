"""PyTorch's checkpoints (.pth, .pt, .tar) without PyTorch, and without running what is pickled in them.

A checkpoint of PyTorch 1.6 or later is a zip file, not compressed: `data.pkl` says what the tensors are called and how
they lie in the storages, and every storage is a file `data/<key>` of plain numbers. An older one is five pickles in a
row (a magic number, the version, the machine, the content, and the storages' keys), and then for every key the count
of its numbers and the numbers.
"""

import functools
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from grass_jax.interop.pickle_data import MAX_BYTES, Call, Global, Persistent, printable, read_pickle

TO_SAFETENSORS = (
    "convert it where PyTorch is installed, with `safetensors.torch.save_file(torch.load(OLD, weights_only=True), "
    "'NEW.safetensors')`, or with the state dict that is in OLD"
)
AGAIN = "get the whole file again"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the older format
DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2")
REBUILD_PARAMETER = ("_rebuild_parameter", "_rebuild_parameter_with_state")
MAX_DEPTH, MAX_ENTRIES, MAX_NAME = 12, 200_000, 500


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: in PyTorch's order; () where `read` fails.
        dtype: name of its numbers' type, as the file has it where NumPy has no such type.
        read: reads it; ValueError where the file is damaged or the tensor one of an unknown kind.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Weights(NamedTuple):
    """An open weights file.

    Attributes:
        tensors: by name, with dots between the keys of nested dicts.
        said: what the file says of itself: text under names.
    """

    tensors: dict[str, StoredTensor]
    said: dict[str, str]


class _Content(NamedTuple):
    """What has been pickled, and the function that reads the storage of a key."""

    tree: Any
    storage: Callable[[str], bytes]


@contextmanager
def open_torch(path: Path) -> Iterator[Weights]:
    """Opens a PyTorch checkpoint.

    Args:
        path: of a zip file, or of a row of pickles.

    Yields:
        Every tensor in its (nested) dicts, by the keys with dots between, `state_dict.conv1.weight`, and the text in
        its dict `meta`. No numbers have been read.

    Raises:
        ValueError: it is no such checkpoint, or malformed; one sentence.
    """
    try:
        with open(path, "rb") as file:
            if file.read(1) == b"P":
                with zipfile.ZipFile(file) as archive:
                    yield _weights(path, _open_zip(path, archive))
            else:
                yield _weights(path, _open_row(path, file))
    # RuntimeError: encrypted, or compressed in an unknown way; UnicodeError: of the names in the archive
    except (zipfile.BadZipFile, EOFError, RuntimeError, UnicodeError) as error:
        words = printable(str(error)[:200])  # a name that is not in the archive may be 65,535 letters long
        raise ValueError(f"{path} is damaged ({words or 'it is cut'}): {AGAIN}.") from None


def _open_zip(path: Path, archive: zipfile.ZipFile) -> _Content:
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if any(name.endswith("constants.pkl") for name in names):
        raise ValueError(
            f"{path} is a TorchScript program: save its weights alone where PyTorch is installed, with "
            "`torch.save(torch.jit.load(OLD).state_dict(), 'NEW.pth')`."
        )
    if len(pickles) != 1:
        raise ValueError(f"{path} is a zip file but no PyTorch checkpoint: give one that torch.save wrote.")
    root = pickles[0].removesuffix("data.pkl")

    def entry(name: str) -> bytes:
        """Reads a file of the archive, which can never be longer than the archive."""
        try:
            info = archive.getinfo(root + name)
        except KeyError:
            raise ValueError(f"{path} lacks its file {name[:50]!a}: {AGAIN}.") from None
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path} is compressed, as PyTorch writes none: {TO_SAFETENSORS}.")
        if info.file_size > path.stat().st_size:
            raise ValueError(f"{path} is shorter than it says: {AGAIN}.")
        return archive.read(info)

    _refuse_order(path, root + "byteorder" not in names or entry("byteorder").strip() == b"little")
    (tree,) = _pickles(path, entry("data.pkl"), 1)
    return _Content(tree.value, lambda key: entry(f"data/{key}"))


def _open_row(path: Path, file: BinaryIO) -> _Content:
    file.seek(0)
    data = file.read(MAX_BYTES)
    if _pickles(path, data, 1)[0].value != MAGIC:
        raise ValueError(f"{path} is a pickle but no PyTorch checkpoint: give one that torch.save wrote.")
    _, version, machine, tree, keys = _pickles(path, data, 5)
    if version.value != VERSION or not isinstance(machine.value, dict) or not isinstance(keys.value, list):
        raise ValueError(f"{path} has an unknown format of PyTorch before 1.6: {TO_SAFETENSORS}.")
    _refuse_order(path, machine.value.get("little_endian") is True)
    kinds = {}
    for reference in tree.references:
        match reference.key:
            case ("storage", Global(_, kind), str(key), *_):
                kinds[key] = kind
    length, place, places = file.seek(0, os.SEEK_END), keys.end, {}
    for key in keys.value:
        kind = kinds.get(key) if isinstance(key, str) else None
        if kind not in DTYPES:  # nobody knows where the next one begins
            raise ValueError(f"{path} holds numbers of {printable(str(kind)[:50])}: {TO_SAFETENSORS}.")
        file.seek(place)
        head = file.read(8)
        size = struct.unpack("<q", head)[0] * _numbers(kind).itemsize if len(head) == 8 else -1
        if not 0 <= size <= length - place - 8:
            raise ValueError(f"{path} is shorter than it says: {AGAIN}.")
        places[key] = (place + 8, size)
        place += 8 + size

    def storage(key: str) -> bytes:
        if key not in places:
            raise ValueError(f"{path} lacks its storage {key[:50]!a}: {AGAIN}.")
        file.seek(places[key][0])
        return file.read(places[key][1])

    return _Content(tree.value, storage)


def _pickles(path: Path, data: bytes, count: int) -> list[Any]:
    """Reads pickles that follow on each other."""
    found, end = [], 0
    try:
        for _ in range(count):
            found.append(read_pickle(data, end))
            end = found[-1].end
    except ValueError as error:
        raise ValueError(f"{path} {error}: {AGAIN}, or {TO_SAFETENSORS}.") from None
    return found


def _refuse_order(path: Path, little: bool) -> None:
    if not little:
        raise ValueError(f"{path} was written on a big-endian machine: {TO_SAFETENSORS}.")


def _weights(path: Path, content: _Content) -> Weights:
    """Every tensor of the dicts, by its name, and the text of `meta`."""
    storage = functools.lru_cache(1)(content.storage)  # tensors may share one
    found, left, waiting = {}, MAX_ENTRIES, [("", content.tree, 0)]
    while waiting:
        prefix, node, depth = waiting.pop()
        for key, value in node.items() if isinstance(node, dict) else ():
            left -= 1
            if left < 0:
                raise ValueError(f"{path} has more entries than any checkpoint needs: {TO_SAFETENSORS}.")
            if len(prefix) + len(str(key)) > MAX_NAME:
                continue
            name = prefix + printable(str(key))
            if rebuilt := _rebuilt(value):
                found[name] = _stored(path, name, *rebuilt, storage)
            elif isinstance(value, dict) and depth < MAX_DEPTH:
                waiting.append((f"{name}.", value, depth + 1))
    meta = content.tree.get("meta") if isinstance(content.tree, dict) else None
    said = (
        {k: v for k, v in meta.items() if isinstance(k, str) and isinstance(v, str)} if isinstance(meta, dict) else {}
    )
    return Weights(found, said)


def _rebuilt(value: Any) -> tuple[str, tuple[Any, ...]] | None:
    """Name and arguments of the function that makes a tensor; None for anything else."""
    for _ in range(4):
        match value:
            case Call(Global("torch._tensor", "_rebuild_from_type_v2"), (function, _, tuple(arguments), *_)):
                value = Call(function, arguments)
            case Call(Global("torch._utils", name), (inner, *_)) if name in REBUILD_PARAMETER:
                value = inner
            case Call(Global(module, name), tuple(arguments)) if module.startswith("torch") and "_rebuild" in name:
                return name, arguments
            case _:
                return None
    return None


def _stored(
    path: Path, name: str, function: str, arguments: tuple[Any, ...], storage: Callable[[str], bytes]
) -> StoredTensor:
    """How a tensor lies in its storage; one that does not, or of which that is not known, fails when it is read."""

    def unreadable(dtype: str, problem: str, shape: tuple[int, ...] = ()) -> StoredTensor:
        def read() -> np.ndarray:
            raise ValueError(f"{path} {problem}.")

        return StoredTensor(shape, dtype, read)

    match function, arguments:
        case "_rebuild_tensor_v3", (_, _, _, _, _, _, Global("torch", kind), *_):  # of the newest types
            kind = printable(kind[:50])
            return unreadable(kind, f"holds {name} as {kind}: {TO_SAFETENSORS}")
        case _, (
            Persistent(("storage", Global(_, kind), str(key), _, int(count), *view)),
            int(offset),
            tuple(size),
            tuple(stride),
            *_,
        ) if function in REBUILD:
            pass
        case _:
            how = printable(function[:50])
            return unreadable(how, f"describes {name} in an unknown way ({how}): {TO_SAFETENSORS}")
    match view:
        case [(_, int(start), _)]:  # the older format has storages within storages
            offset += start
    whole = [isinstance(n, int) and 0 <= n < 2**40 for n in (offset, count, *size, *stride)]
    fits = len(size) == len(stride) <= 8 and all(whole) and math.prod(size) <= count
    if fits and math.prod(size):
        fits = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) < count
    if kind not in DTYPES:
        kind = printable(kind[:50])
        return unreadable(kind, f"holds {name} as {kind}: {TO_SAFETENSORS}")
    if not fits:
        problem = f"has a tensor {name} that exceeds its storage: {AGAIN}, or save the tensor's .contiguous()"
        return unreadable(DTYPES[kind], problem, size if all(whole) else ())

    def read() -> np.ndarray:
        dtype = _numbers(kind)
        data = storage(key)
        if len(data) < count * dtype.itemsize:
            raise ValueError(f"{path} has too few numbers for {name}: {AGAIN}.")
        steps = tuple(step * dtype.itemsize for step in stride)
        array = np.empty(size, dtype)
        if array.size:  # an empty one takes any strides; NumPy checks those of others once more
            array = np.ndarray(size, dtype, data, offset * dtype.itemsize, steps)
        if DTYPES[kind] == "bfloat16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(array).reshape(size)  # the former makes a scalar a vector

    return StoredTensor(size, DTYPES[kind], read)


def _numbers(kind: str) -> np.dtype:
    """NumPy's type for the numbers of a storage; for bfloat16, which it has not, that of their bits."""
    return np.dtype(DTYPES[kind].replace("bfloat16", "uint16")).newbyteorder("<")
