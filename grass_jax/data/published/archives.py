"""What a folder of archives holds: files, members of zip files, and members of zip files that lie in zip files."""

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from grass_jax.data.published.nested_zips import (
    DamagedArchiveError,
    copy_member,
    not_opened,
    open_file,
    open_zip,
    title,
    writable,
)


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
            DamagedArchiveError: if it cannot be opened, or is not in its archive as the archive says.
            OSError: if the copy cannot be written.
        """
        if len(self.chain) == 1:
            path = self.folder / self.chain[0]
            os.close(open_file(path, f"{self.name} in {self.folder}"))  # decoders do not say why they cannot
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="unpacked-", dir=writable(scratch)) as parent:
            # Names come from whoever made the archive: none but the suffix becomes part of a path.
            path = Path(parent, "member" + PurePosixPath(self.name).suffix)
            archive = open_zip(self.folder, self.chain[:-1], scratch)
            copy_member(archive, self.chain[-1], path, f"{self.name} in {self.folder}")
            yield path


def list_members(
    folder: Path, pattern: str, *, nested: Collection[str] = (), scratch: Path | None = None
) -> tuple[list[Member], dict[str, str]]:
    """Find files in a folder tree and in its zip files, by the directories of the archives alone.

    Hidden files and those of `__MACOSX` are passed over. A zip file that lies compressed in another has to be unpacked
    to be listed, into a temporary file that this process keeps.

    Args:
        folder: where to look.
        pattern: found, whatever the case, in the `Member.name` of what is wanted.
        nested: names of the zip files to look into where they lie in others.
        scratch: folder for temporary files; the system's where None or where it cannot be written.

    Returns:
        the members sorted by name, those in fewer archives first; and a sentence for each archive or folder that cannot
        be read, by what would be its `Member.name` (`.` of the folder itself).

    Raises:
        FileNotFoundError, NotADirectoryError: if the folder is none.
    """
    try:
        missing = None if stat.S_ISDIR(folder.stat().st_mode) else NotADirectoryError
    except PermissionError:
        missing = None  # nobody knows; the walk below is told so too
    except OSError:
        missing = FileNotFoundError
    if missing is not None:
        raise missing(f"{folder} is no folder: set path to the folder that holds the archives.")
    wanted = re.compile(pattern, re.IGNORECASE)
    within = {name.lower() for name in nested}
    found: list[Member] = []
    unreadable: dict[str, str] = {}

    def look_into(archive: Member) -> None:
        try:
            members = open_zip(folder, archive.chain, scratch).infolist()
        except DamagedArchiveError as error:
            unreadable[archive.name] = str(error)
            return
        for info in members:
            name = info.filename.replace("\\", "/")
            if info.is_dir() or _is_hidden(name):
                continue
            member = Member(folder, (*archive.chain, info.filename), info.file_size, info.CRC)
            inner = len(archive.chain) == 1 and PurePosixPath(name).name.lower() in within
            if not inner and not wanted.search(member.name):
                continue
            if info.flag_bits & 1:
                its = f"The archive {title(folder, archive.chain)}"
                unreadable[archive.name] = f"{its} is encrypted: unzip it by hand and leave the folder in its place."
            elif inner:
                look_into(member)
            else:
                found.append(member)

    def closed(error: OSError) -> None:
        path = Path(error.filename)
        unreadable[path.relative_to(folder).as_posix()] = not_opened(os.fspath(path), error)

    for path, status in _files(folder, closed):
        file = Member(folder, (path.relative_to(folder).as_posix(),), status.st_size, status.st_mtime_ns)
        if path.suffix.lower() == ".zip":
            look_into(file)
        elif wanted.search(file.name):
            found.append(file)
    return sorted(found, key=lambda member: (len(member.chain), member.name)), unreadable


def _files(folder: Path, closed: Callable[[OSError], None]) -> Iterator[tuple[Path, os.stat_result]]:
    """All files under a folder that are not hidden, in a stable order; links are followed, no folder twice.

    `closed` is told of folders that cannot be opened.
    """
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=closed):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for path in (Path(parent, name) for name in sorted(names) if not _is_hidden(name)):
            try:
                status = path.stat()
            except PermissionError as error:  # of its folder, whose names alone can be read, or of where it links to
                place = path if os.path.islink(path) else path.parent
                closed(PermissionError(error.errno, error.strerror, os.fspath(place)))
            except OSError:
                continue  # a link to nowhere
            else:
                if stat.S_ISREG(status.st_mode):
                    yield path, status


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
