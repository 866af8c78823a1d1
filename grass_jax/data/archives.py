"""What a folder of archives holds: files, members of zip files, and members of zip files that lie in zip files."""

import contextlib
import functools
import io
import lzma
import os
import re
import shutil
import struct
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from absl import logging

# What zipfile raises for archives that are broken or encrypted; NotImplementedError, a RuntimeError, for methods of
# compression that it does not know.
_DAMAGE = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error, ValueError, KeyError, RuntimeError)
_LOCK = threading.RLock()


class DamagedArchiveError(ValueError):
    """An archive that cannot be read; the message names it and its member."""


@dataclass(frozen=True)
class Member:
    """A file in a folder, or a member of a zip file in it.

    Attributes:
        folder: the folder.
        chain: one name for a file in the folder; for a member of a zip file that file and the member's name in it; with
            a zip file between them, three.
        size: in bytes.
        state: changes with the content: time of change in ns of a file, CRC-32 of a member.
    """

    folder: Path
    chain: tuple[str, ...]
    size: int
    state: int

    @property
    def name(self) -> str:
        """Its path relative to the folder, in which zip files stand as folders do."""
        return "/".join(self.chain).replace("\\", "/")

    @contextlib.contextmanager
    def open(self, scratch: Path | None = None) -> Iterator[Path]:
        """Open it as a file.

        Args:
            scratch: folder for temporary files; the system's where None or where it cannot be written.

        Yields:
            its path; of a member that of a temporary copy, which goes when the context ends.

        Raises:
            DamagedArchiveError: if it is not in its archive as the archive says.
            OSError: if the copy cannot be written.
        """
        if len(self.chain) == 1:
            yield self.folder / self.chain[0]
            return
        with tempfile.TemporaryDirectory(prefix="unpacked-", dir=_writable(scratch)) as parent:
            # Names come from whoever made the archive: none but the suffix becomes part of a path.
            path = Path(parent, "member" + PurePosixPath(self.name).suffix)
            archive, _ = _open_zip(self.folder, self.chain[:-1], scratch)
            _copy(archive, self.chain[-1], path, f"{self.name} in {self.folder}")
            yield path


def list_members(
    folder: Path, pattern: str, *, nested: Collection[str] = (), scratch: Path | None = None
) -> tuple[list[Member], list[str]]:
    """Find files in a folder tree and in its zip files, by the directories of the archives alone.

    Hidden files and those of `__MACOSX` are passed over. A zip file that lies compressed in another has to be unpacked
    to be listed, into a temporary file that this process keeps.

    Args:
        folder: where to look.
        pattern: found, whatever the case, in the `Member.name` of what is wanted.
        nested: names of the zip files to look into where they lie in others.
        scratch: folder for temporary files; the system's where None or where it cannot be written.

    Returns:
        the members sorted by name, those in fewer archives first, and a sentence for each archive that cannot be read.

    Raises:
        FileNotFoundError, NotADirectoryError: if the folder is none.
    """
    if not folder.is_dir():
        missing = NotADirectoryError if folder.exists() else FileNotFoundError
        raise missing(f"{folder} is no folder: set path to the folder that holds the archives.")
    wanted = re.compile(pattern, re.IGNORECASE)
    within = {name.lower() for name in nested}
    found: list[Member] = []
    damaged: list[str] = []

    def look_into(chain: tuple[str, ...]) -> None:
        try:
            members = _open_zip(folder, chain, scratch)[0].infolist()
        except DamagedArchiveError as error:
            damaged.append(str(error))
            return
        for info in members:
            name = info.filename.replace("\\", "/")
            if info.is_dir() or _is_hidden(name):
                continue
            member = Member(folder, (*chain, info.filename), info.file_size, info.CRC)
            if len(chain) == 1 and PurePosixPath(name).name.lower() in within:
                look_into(member.chain)
            elif wanted.search(member.name):
                found.append(member)

    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() == ".zip":
            look_into((name,))
        elif wanted.search(name):
            status = path.stat()
            found.append(Member(folder, (name,), status.st_size, status.st_mtime_ns))
    return sorted(found, key=lambda member: (len(member.chain), member.name)), damaged


def _writable(scratch: Path | None) -> Path | None:
    """The folder for temporary files, made where it does not exist; None, the system's, where it cannot be written."""
    if scratch is not None:
        with contextlib.suppress(OSError):
            scratch.mkdir(parents=True, exist_ok=True)
    return scratch if scratch is not None and scratch.is_dir() and os.access(scratch, os.W_OK) else None


def _files(folder: Path) -> Iterator[Path]:
    """All files under a folder that are not hidden, in a stable order; links are followed, no folder twice."""
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        paths = (Path(parent, name) for name in sorted(names) if not _is_hidden(name))
        yield from (path for path in paths if path.is_file())


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


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


def _open_zip(folder: Path, chain: tuple[str, ...], scratch: Path | None) -> tuple[zipfile.ZipFile, _Window]:
    path = folder / chain[0]
    with _LOCK:  # two threads would unpack the same archive
        return _opened_zip(path, path.stat().st_mtime_ns, chain, scratch)


@functools.lru_cache(maxsize=16)  # the directory of a large archive takes a while to read
def _opened_zip(
    path: Path, changed: int, chain: tuple[str, ...], scratch: Path | None
) -> tuple[zipfile.ZipFile, _Window]:
    name = os.fspath(path) if len(chain) == 1 else f"{chain[1]} in {path}"
    with _damage(f"The archive {name}"):
        if len(chain) == 1:
            window = _Window(os.open(path, os.O_RDONLY), 0, path.stat().st_size)
        else:
            window = _inner(*_opened_zip(path, changed, chain[:1], scratch), chain[1], name, scratch)
        return zipfile.ZipFile(window), window  # pyright: ignore[reportArgumentType]


def _inner(archive: zipfile.ZipFile, window: _Window, member: str, name: str, scratch: Path | None) -> _Window:
    """A member of an archive as a file: its place in the archive where it is stored, or else an unpacked copy."""
    info = archive.getinfo(member)
    if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
        window.seek(info.header_offset)
        header = struct.unpack("<4s22x2H", window.read(30) or b"")
        if header[0] != b"PK\3\4":
            raise zipfile.BadZipFile("a member is not where the directory says")
        return _Window(window, info.header_offset + 30 + header[1] + header[2], info.compress_size)
    logging.info(
        "%s is compressed once more: unpacking %.1f GB for this run. Unzip the outer archive to save the time.",
        name,
        info.file_size / 1e9,
    )
    descriptor, path = tempfile.mkstemp(prefix="unpacked-", dir=_writable(scratch))
    os.unlink(path)  # it has no name any more and goes with the process, however that ends
    unpacked = _Window(descriptor, 0, info.file_size)
    _copy(archive, member, descriptor, name)
    return unpacked


def _copy(archive: zipfile.ZipFile, member: str, target: Path | int, name: str) -> None:
    with _damage(name):
        info = archive.getinfo(member)
        with archive.open(info) as source:  # checks the CRC at the end
            try:
                with open(target, "wb", closefd=not isinstance(target, int)) as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                    size = copy.tell()
            except OSError as error:
                if error.errno is None:  # of a decoder
                    raise zipfile.BadZipFile(str(error)) from error
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
    except _DAMAGE as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise DamagedArchiveError(f"{name} cannot be read ({text}): download the archive again.") from error
