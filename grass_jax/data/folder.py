"""Find the images of a folder and tell one state of the folder from another."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from grass_jax.data.rasters import SUFFIXES


class ImageFile(NamedTuple):
    """An image file: its path relative to the folder (with slashes), its size in bytes and its time of change in ns."""

    name: str
    size: int
    changed: int


def find_images(folder: Path, exclude: str = "") -> list[ImageFile]:
    """All image files under a folder, hidden ones left out, links followed, no folder visited twice.

    Args:
        folder: where to look.
        exclude: pattern; files with a match in their name relative to the folder are left out. Empty: none is.

    Returns:
        the files sorted by name.

    Raises:
        FileNotFoundError: if the folder does not exist.
        NotADirectoryError: if it is a file.
        ValueError: if there is no file of a known kind in it, or `exclude` leaves none.
    """
    if not folder.exists():
        raise FileNotFoundError(f"The image folder {folder} does not exist: correct the path.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: give the folder that holds the images.")
    found, visited = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link back up, or a second link to the same images
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            try:
                status = path.stat()
            except OSError:  # a dangling link: opening it names the reason
                status = path.lstat()
            found.append(ImageFile(path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns))
    if not found:
        raise ValueError(f"There is no image in {folder}: put {', '.join(sorted(SUFFIXES))} files into it.")
    kept = [file for file in found if not exclude or not re.search(exclude, file.name)]
    if not kept:
        raise ValueError(f"The pattern {exclude!r} leaves out all {len(found)} images of {folder}: narrow it.")
    return sorted(kept)


def fingerprint(files: Sequence[ImageFile], *settings: object) -> str:
    """Twelve hexadecimal digits that change with any file's name, size or time of change, and with the settings."""
    digest = hashlib.sha256(" ".join(map(str, settings)).encode() + b"\n")
    for file in files:
        digest.update(os.fsencode(f"{file.name}\0{file.size}\0{file.changed}\n"))
    return digest.hexdigest()[:12]
