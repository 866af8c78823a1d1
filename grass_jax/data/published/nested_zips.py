"""Zip files, and zip files that lie in zip files, opened for several threads at once."""

import contextlib
import functools
import io
import lzma
import os
import shutil
import struct
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from grass_jax.data.limits import one_line

# What zipfile raises for archives that are broken; NotImplementedError, a RuntimeError, for methods of compression that
# it does not know.
_DAMAGE = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error, ValueError, KeyError, RuntimeError)
_LOCK = threading.RLock()
SMALL = 1 << 26  # bytes that any member may have
MAX_MEMBER = 1 << 30  # bytes of a file in an archive; the largest of the published ones has 144 million
MAX_RATIO = 100  # how much more an archive in an archive may hold than it takes there


class DamagedArchiveError(ValueError):
    """A file that cannot be opened or an archive that cannot be read; the message names it and its member."""


def title(folder: Path, chain: tuple[str, ...]) -> str:
    """A zip file in a folder, or one that lies in it, in messages."""
    return " in ".join((*chain[:0:-1], os.fspath(folder / chain[0])))


def open_file(path: Path, named: str) -> int:
    """The descriptor of a file to read, or a DamagedArchiveError that says why it cannot be opened."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DamagedArchiveError(not_opened(named, error)) from error


def not_opened(named: str, error: OSError) -> str:
    """What to say of a file or a folder that cannot be opened."""
    return f"{named} cannot be opened ({error.strerror}): see to it that you may read it."


def writable(scratch: Path | None) -> Path | None:
    """The folder for temporary files, made where it does not exist; None, the system's, where it cannot be written."""
    if scratch is not None:
        with contextlib.suppress(OSError):
            scratch.mkdir(parents=True, exist_ok=True)
    return scratch if scratch is not None and scratch.is_dir() and os.access(scratch, os.W_OK) else None


def open_zip(folder: Path, chain: tuple[str, ...], scratch: Path | None) -> zipfile.ZipFile:
    """Open a zip file in a folder, or one that lies in it.

    Args:
        folder: the folder.
        chain: the name of the zip file in the folder, and that of its member.
        scratch: folder for temporary files; the system's where None or where it cannot be written.

    Returns:
        the archive, which this process keeps open for a while.

    Raises:
        DamagedArchiveError: if it cannot be read.
        OSError: if it has to be unpacked first and that cannot be written.
    """
    changed = (folder / chain[0]).stat().st_mtime_ns
    with _LOCK:  # two threads would unpack the same archive
        return _opened_zip(folder, changed, chain, scratch)[0]


class _Window(io.RawIOBase):
    """A part of an open file, read without moving the file's own position, so that parts do not disturb each other."""

    def __init__(self, owner: Any, start: int, size: int):
        self._owner = owner  # the whole file is closed when nothing refers to any part of it
        self._descriptor: int = owner if isinstance(owner, int) else owner._descriptor
        self._start = start + (0 if isinstance(owner, int) else owner._start)
        self._size, self._at = size, 0
        if isinstance(owner, int):
            weakref.finalize(self, os.close, owner)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError("the file is too short")  # zipfile looks for this where no zip file is as short
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), max(self._size - self._at, 0))
        read = os.pread(self._descriptor, count, self._start + self._at)
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)


@functools.lru_cache(maxsize=16)  # the directory of a large archive takes a while to read
def _opened_zip(
    folder: Path, changed: int, chain: tuple[str, ...], scratch: Path | None
) -> tuple[zipfile.ZipFile, _Window]:
    name = title(folder, chain)
    with _damage(f"The archive {name}"):
        if len(chain) == 1:
            path = folder / chain[0]
            window = _Window(open_file(path, f"The archive {name}"), 0, path.stat().st_size)
        else:
            outer = _opened_zip(folder, changed, chain[:1], scratch)
            window = _inner(*outer, chain[1], name, scratch)
        return zipfile.ZipFile(window), window  # pyright: ignore[reportArgumentType]


def _inner(archive: zipfile.ZipFile, window: _Window, member: str, name: str, scratch: Path | None) -> _Window:
    """A member of an archive as a file: its place in the archive where it is stored, or else an unpacked copy."""
    info = archive.getinfo(member)
    if info.compress_type == zipfile.ZIP_STORED:
        # Read through a window of its own, as other threads read through the archive's.
        header = (info.header_offset >= 0 and _Window(window, info.header_offset, 30).read(30)) or b""
        if not header.startswith(b"PK\3\4") or len(header) < 30:
            raise zipfile.BadZipFile("a member is not where the directory says")
        return _Window(window, info.header_offset + 30 + sum(struct.unpack("<2H", header[26:])), info.compress_size)
    logging.info(
        "%s is compressed once more: unpacking %.1f GB for this run. Unzip the outer archive to save the time.",
        name,
        info.file_size / 1e9,
    )
    descriptor, path = tempfile.mkstemp(prefix="unpacked-", dir=writable(scratch))
    os.unlink(path)  # it has no name any more and goes with the process, however that ends
    unpacked = _Window(descriptor, 0, info.file_size)
    copy_member(archive, member, descriptor, name, most=max(SMALL, MAX_RATIO * info.compress_size))
    return unpacked


def copy_member(
    archive: zipfile.ZipFile, member: str, target: Path | int, name: str, *, most: int | None = None
) -> None:
    """Copy a member of an archive into a file or a descriptor, and check that it is whole.

    Args:
        archive: the archive.
        member: its name there.
        target: the file, or its descriptor.
        name: how messages call the member.
        most: bytes that it may unpack to; `MAX_MEMBER` where None.

    Raises:
        DamagedArchiveError: if it is not, by `name`.
        OSError: if the copy cannot be written.
    """
    with _damage(name):
        info = archive.getinfo(member)
        most = MAX_MEMBER if most is None else most
        if info.file_size > most:
            raise DamagedArchiveError(
                f"{name} says that it unpacks to {info.file_size / 1e9:.1f} GB, above the limit of {most / 1e9:.1f} GB "
                "for it: download the archive again."
            )
        # Only deflate is unpacked piece by piece: of other methods a megabyte, read at once, may become many gigabytes.
        piece = 1 << 20 if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else 1 << 12
        with archive.open(info) as source:  # checks the CRC at the end
            try:
                with open(target, "wb", closefd=not isinstance(target, int)) as copy:
                    shutil.copyfileobj(source, copy, piece)
                    size = copy.tell()
            except OSError as error:
                if error.errno is None:
                    raise
                gigabytes = info.file_size / 1e9
                raise OSError(error.errno, f"{error.strerror} while unpacking {name}, {gigabytes:.1f} GB") from error
        if size != info.file_size:
            raise zipfile.BadZipFile("it ends early")


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    try:
        yield
    except DamagedArchiveError:
        raise
    except NotImplementedError as error:
        raise DamagedArchiveError(
            f"{name} cannot be read, as Python does not know its compression ({error}): unzip the archive by hand and "
            "leave the folder in its place."
        ) from error
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of zipfile or a decoder
            raise
        text = one_line(str(error)) or type(error).__name__
        raise DamagedArchiveError(f"{name} cannot be read ({text}): download the archive again.") from error
