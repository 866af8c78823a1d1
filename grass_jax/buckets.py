"""Folders in buckets, `gs://` and `s3://`: their paths, and one sentence where they cannot be reached.

Paths of this machine stay what they are. A path in a bucket is an `etils.epath.Path`, which does what the program asks
of a path (`/`, `exists`, `is_dir`, `iterdir`, `read_text`, `write_bytes`, `unlink`) through fsspec.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax

from grass_jax.config import ConfigError

LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}  # what fsspec reads each of them with
# packages behind a bucket whose errors are not all OSErrors
BEHIND = {"fsspec", "gcsfs", "s3fs", "aiohttp", "aiobotocore", "botocore", "google", "requests", "urllib3"}


class BucketError(FileNotFoundError):
    """A bucket, or a folder in it, cannot be read or written; the message is one sentence."""


def scheme_of(path: str | os.PathLike) -> str:
    """What stands before `://`; empty for a path of this machine."""
    before, sign, _ = os.fspath(path).partition("://")
    return before if sign and before.isalnum() else ""


def place(path: str | os.PathLike, *, absolute: bool = False) -> Path:
    """The path of a folder or file on this machine or in a bucket; asks nobody whether it exists.

    Args:
        path: `~` is resolved; `gs://bucket/...` and `s3://bucket/...` are in buckets.
        absolute: whether one of this machine is to begin at its root.

    Returns:
        A `pathlib.Path`, or an `epath.Path` that behaves like one.

    Raises:
        BucketError: it is neither, or the library that reads it is missing.
    """
    scheme = scheme_of(path)
    if not scheme:
        return Path(path).expanduser().absolute() if absolute else Path(path).expanduser()
    if scheme not in LIBRARIES:
        raise BucketError(f"{path} is no folder of this machine and none in a bucket (gs://, s3://): give one.")
    filesystem(path)
    os.environ.setdefault("EPATH_USE_TF", "false")  # the same reader, whether or not TensorFlow happens to be there
    from etils import epath

    return cast(Path, epath.Path(os.fspath(path)))


def filesystem(path: str | os.PathLike) -> Any:
    """The fsspec file system of a path in a bucket.

    Raises:
        BucketError: its library is not installed.
    """
    import fsspec
    import fsspec.config

    scheme = scheme_of(path)
    # others write there, too: orbax, and the other processes
    fsspec.config.conf.setdefault("gcs" if scheme == "gs" else scheme, {}).setdefault("use_listings_cache", False)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the stack of every try that failed
    try:
        return fsspec.filesystem("gcs" if scheme == "gs" else scheme)
    except ImportError as error:
        raise BucketError(f"{path} needs {LIBRARIES[scheme]}: pip install '.[remote]'.") from error


def existing(path: str | os.PathLike) -> Path:
    """Like `place`, for what is to be read: one sentence where a bucket does not answer.

    Args:
        path: of a folder or file, on this machine or in a bucket.

    Returns:
        The absolute path; on this machine it may be missing, and in a bucket it is there.

    Raises:
        BucketError: it is in a bucket and cannot be read.
    """
    found = place(path, absolute=True)
    if scheme_of(path):
        with answering(path):
            there = found.exists()
        if not there:
            raise BucketError(f"There is no {path}: correct the name of the bucket or of what is in it.")
    return found


def open_workdir(workdir: str | os.PathLike) -> Path:
    """The folder of a run that is to be written to: something is written to see whether that works.

    Args:
        workdir: on this machine, where it is not made yet, or in a bucket.

    Returns:
        Its path.

    Raises:
        ConfigError: it cannot be written to, or it is in a bucket and not for several processes.
    """
    try:
        found = there = place(workdir)
        if scheme_of(workdir) == "s3" and jax.process_count() > 1:
            raise ConfigError(
                f"--workdir={workdir} is for one process: several share a gs:// workdir or a disk that all of them see."
            )
        with answering(workdir):
            while not (scheme_of(workdir) or there.exists()):
                there = there.parent
            probe = there / f".written_by_process_{jax.process_index()}"
            probe.write_bytes(b"")
            probe.unlink(missing_ok=True)  # another run may begin beside this one
    except BucketError as error:
        raise ConfigError(f"--workdir: {error}") from error
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written to ({error.strerror or error}): give a folder that can."
        ) from error
    return found


def on_this_machine(path: str | os.PathLike, what: str) -> Path:
    """The path of something that only works on this machine.

    Raises:
        ConfigError: it is in a bucket.
    """
    if scheme_of(path):
        raise ConfigError(f"{what} must be on this machine, not {path}.")
    return Path(path).expanduser()


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a path of this machine is a folder; one in a bucket is taken for one until it is opened."""
    return bool(scheme_of(path)) or Path(path).expanduser().is_dir()


def move_folder(folder: Path, to: Path) -> Path:
    """Moves a folder within this machine or within a bucket, where its files move one by one.

    Args:
        folder: what is moved.
        to: its new name; it gets `_again` at its end where something has it already.

    Returns:
        The new name.
    """
    while to.exists():
        to = to.with_name(f"{to.name}_again")
    if scheme_of(folder):
        filesystem(folder).mv(os.fspath(folder), os.fspath(to), recursive=True)
    else:
        folder.rename(to)
    return to


def cache_folder() -> Path:
    """Where copies of what is in buckets are kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "grass_jax"


def of_storage(error: BaseException) -> bool:
    """Says whether an error is one of a disk, a network or a bucket's library, and none of the program."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or not packages.isdisjoint(BEHIND)


@contextmanager
def answering(path: str | os.PathLike) -> Iterator[None]:
    """Turns whatever the block's calls for a bucket raise into one sentence; nothing changes for this machine's paths.

    Args:
        path: what is read or written in the block.

    Raises:
        BucketError: it is in a bucket and cannot be reached.
    """
    try:
        yield
    except Exception as error:  # every library has errors of its own
        if not scheme_of(path):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BucketError(
            f"{path} cannot be reached ({reason.removesuffix('.')}): correct its name, or give this machine "
            "credentials and a network for it."
        ) from error
