"""A folder of images in a bucket: a copy on this machine that only fetches what has changed."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
from absl import logging
from tensorflow_datasets.core.constants import DATA_DIR

from grass_jax.buckets import BucketError, existing, filesystem, scheme_of
from grass_jax.report.atomic import FULL, DiskFullError

AT_ONCE = 16  # files in flight
LOCK, PART = ".lock", ".part"  # end hidden names: of what one process holds, and of a file that is being fetched


def local_folder(path: str, data_dir: str | None = None) -> str:
    """The folder itself, or the copy of one in a bucket: fetched now, as far as it is not there yet.

    Files lie below `<data_dir>/downloads/<scheme>/<bucket>/...` as they lie in the bucket and carry its times of
    change, so that the data set prepared from them is the same on every machine. A file counts as fetched when its
    size and time agree; what is no longer in the bucket is removed.

    Args:
        path: on this machine, or `gs://...` or `s3://...`.
        data_dir: where data sets are kept; `TFDS_DATA_DIR` or `~/tensorflow_datasets` where None or empty.

    Returns:
        A path of this machine.

    Raises:
        BucketError: the bucket or folder cannot be read, or holds nothing.
        OSError: the copy cannot be written, `DiskFullError` where there is no room for it.
    """
    if not scheme_of(path):
        return path
    existing(path)
    files, began = filesystem(path), time.monotonic()
    folder = Path(data_dir or DATA_DIR).expanduser() / "downloads" / path.rstrip("/").replace("://", "/")
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / f".{folder.name}{LOCK}"):  # others of this machine wait, and find it done
        try:
            above = files._strip_protocol(path).rstrip("/")
            wanted = {
                folder / name.removeprefix(above).lstrip("/"): (name, facts)
                for name, facts in files.find(path, detail=True).items()
                if not name.endswith("/")  # what some programs put there for a folder
            }
            outside = [name for own, (name, _) in wanted.items() if ".." in own.parts]
            if not wanted or outside:
                raise BucketError(f"{path} holds {outside[0] if outside else 'no file'}: give a folder of images.")
            for own in {own for own in folder.rglob("*") if own.is_file() and own.suffix != LOCK} - set(wanted):
                own.unlink()
            due = {own: entry for own, entry in wanted.items() if not _is_there(own, entry[1])}
            if due:
                size = sum(facts["size"] for _, facts in due.values()) / 1e9
                logging.info(
                    "Fetching %d of %d files, %.2f GB, of %s to %s.", len(due), len(wanted), size, path, folder
                )
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for _ in pool.map(lambda item: _fetch(files, *item), due.items()):
                    pass
            if due:
                logging.info("Fetched in %.0f s.", time.monotonic() - began)
        except OSError as error:
            if error.errno in FULL:
                raise DiskFullError(error, folder) from error
            raise
        except Exception as error:  # every library has errors of its own
            raise BucketError(f"{path} cannot be fetched ({error}): give the same command again.") from error
    return str(folder)


def _fetch(files: Any, own: Path, entry: tuple[str, dict[str, Any]]) -> None:
    """Copies one file, which has its name once it is whole."""
    name, facts = entry
    own.parent.mkdir(parents=True, exist_ok=True)
    part = own.with_name(f".{own.name}{PART}")
    try:
        files.get_file(name, str(part))
        os.utime(part, ns=(_changed(facts), _changed(facts)))
        os.replace(part, own)
    finally:
        part.unlink(missing_ok=True)


def _is_there(own: Path, facts: dict[str, Any]) -> bool:
    try:
        status = own.stat()
    except OSError:
        return False
    return status.st_size == facts["size"] and status.st_mtime_ns == _changed(facts)


def _changed(facts: dict[str, Any]) -> int:
    """When an object was written, in ns: a date, which fsspec calls LastModified for S3 and mtime for Google."""
    when = facts.get("LastModified") or facts.get("mtime")
    return int(when.timestamp() * 1e6) * 1000 if when is not None else 0
