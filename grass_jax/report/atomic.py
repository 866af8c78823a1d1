"""Files that are either the old one or the new one, whenever the run is killed."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grass_jax.buckets import answering, filesystem, scheme_of

FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OSError):
    """A file could not be written because its disk is full; the message is one sentence."""

    def __init__(self, error: OSError, path: str | os.PathLike):
        super().__init__(error.errno, error.strerror, os.fspath(path))

    def __str__(self) -> str:
        return f"{self.filename} cannot be written, as its disk is full: make room and give the same command again."


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to, and puts what was written in place of `path` when the block ends without an error.

    Args:
        path: The file to replace or create, on this machine or in a bucket; its folder is made when it is missing.

    Yields:
        The path of a file in the same folder; for one in a bucket, of a file on this machine.

    Raises:
        DiskFullError: there is no room for it.
        BucketError: it is in a bucket that does not take it; an OSError, too.
    """
    try:
        with _sent(path) if scheme_of(path) else _renamed(Path(path)) as temporary:
            yield temporary
    except OSError as error:
        if error.errno not in FULL or isinstance(error, DiskFullError):
            raise
        raise DiskFullError(error, path) from error


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name: what a killed run leaves behind is overwritten by the next one and does not pile up.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _sent(path: str | os.PathLike) -> Iterator[Path]:
    """A bucket shows an object once it is whole."""
    with tempfile.TemporaryDirectory(prefix="grass_jax_") as folder:
        temporary = Path(folder) / os.fspath(path).rpartition("/")[2]
        yield temporary
        with answering(path):
            filesystem(path).put_file(str(temporary), os.fspath(path))
