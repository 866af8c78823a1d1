"""Writes PyTorch's checkpoints without PyTorch: what `torch.load(path, weights_only=True)` reads."""

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

# opcodes of pickle protocol 2; a mark is "(", a tuple from the mark on is "t"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
FALSE = b"\x89"
STORAGE = b"ctorch\nFloatStorage\n"


def write_torch(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint.

    Args:
        path: the file to write.
        content: nested mappings with names as keys; arrays (which become float32 tensors), text and whole numbers.

    Raises:
        TypeError: something else is among them.
    """
    storages: list[np.ndarray] = []
    pickled = b"\x80\x02" + _pickled(content, storages) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        files = {"data.pkl": pickled, "byteorder": b"little"}
        files |= {f"data/{key}": array.tobytes() for key, array in enumerate(storages)}
        for name, data in (files | {"version": b"3\n"}).items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # without a date: same weights, same file


def _pickled(value: Any, storages: list[np.ndarray]) -> bytes:
    match value:
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case str():
            data = value.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case tuple():
            return b"(" + b"".join(_pickled(item, storages) for item in value) + b"t"
        case Mapping():
            items = (_pickled(key, storages) + _pickled(item, storages) for key, item in value.items())
            return b"}(" + b"".join(items) + b"u"
        case np.ndarray():
            return _tensor(value, storages)
    raise TypeError(f"{type(value).__name__} cannot be written to a checkpoint: give arrays, text or whole numbers.")


def _tensor(array: np.ndarray, storages: list[np.ndarray]) -> bytes:
    key = str(len(storages))
    storages.append(np.ascontiguousarray(array, "<f4"))
    storage = _pickled("storage", []) + STORAGE + b"".join(_pickled(part, []) for part in (key, "cpu", array.size))
    strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
    layout = b"".join(_pickled(part, []) for part in (0, array.shape, strides)) + FALSE  # no gradient is kept
    return REBUILD + b"((" + storage + b"tQ" + layout + ORDERED_DICT + b"tR"
