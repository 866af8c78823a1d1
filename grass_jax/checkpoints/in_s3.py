"""Checkpoints in an S3 bucket: orbax, which knows disks and `gs://` alone, works on this machine, and copies travel.

A step in the bucket counts once its mark is there, which is written last and removed first.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from absl import logging

from grass_jax.buckets import cache_folder, filesystem, move_folder, scheme_of
from grass_jax.report.log import write_json
from grass_jax.report.records import read_record

MARK = "whole.txt"


class CopiedCheckpoints:
    """A folder of checkpoints on this machine that is copied to a bucket, beginning with what is there.

    What an earlier session on this machine could not send is gone on from, too, unless the bucket has changed since.

    Args:
        remote: `s3://bucket/run/checkpoints`.

    Attributes:
        remote: the folder in the bucket.
        folder: on this machine.
        failing: whether the bucket lacks what the folder holds.
    """

    def __init__(self, remote: str):
        self.remote, self._files, self.failing = remote, filesystem(remote), False
        home = cache_folder() / hashlib.sha256(remote.encode()).hexdigest()[:16]
        self.folder, self._record, arriving = home / "checkpoints", home / "sent.json", home / "arriving"
        shutil.rmtree(arriving, ignore_errors=True)
        for step in (sent := steps_in_bucket(remote)):
            _fetch(remote, step, arriving)
        self._sent = {step: _version(arriving / str(step)) for step in sent}
        unsent = self._unsent()
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.name not in unsent:
                shutil.rmtree(path, ignore_errors=True)
        for step in sent:
            (arriving / str(step)).rename(self.folder / str(step))
        shutil.rmtree(arriving, ignore_errors=True)
        self._note()
        if unsent:
            self.send()

    @property
    def latest(self) -> int:
        """The newest step that has arrived in the bucket; 0 where none has."""
        return max(self._sent, default=0)

    def send(self) -> None:
        """Makes the bucket hold the steps that the folder holds; the manager calls it whenever one has been written.

        A bucket that does not answer is said once and tried again by the next call.
        """
        try:
            self._send()
        except Exception as error:  # the library's own kinds, and the network's
            if not self.failing:
                logging.warning(
                    "%s takes no checkpoint (%s): they stay in %s until it does.", self.remote, error, self.folder
                )
            self.failing = True
        else:
            if self.failing:
                logging.info("%s takes checkpoints again: all are there.", self.remote)
            self.failing = False

    def close(self) -> None:
        """Sends what is left, and removes the copies of this machine; keeps them where the bucket does not answer."""
        self.send()
        if self.failing:
            logging.warning("%s has not taken the newest checkpoints: they are in %s.", self.remote, self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # it may hold what was damaged
                self._record.unlink(missing_ok=True)
                self.folder.parent.rmdir()

    def _send(self) -> None:
        here = {int(path.name): _version(path) for path in self.folder.iterdir() if path.name.isdigit()}
        for step in sorted(step for step in here if self._sent.get(step) != here[step]):
            self._remove(step)  # one that was damaged, or what an upload that was cut short has left
            for path in (self.folder / str(step)).rglob("*"):
                if path.is_file():
                    self._files.put_file(str(path), f"{self.remote}/{path.relative_to(self.folder).as_posix()}")
            self._files.pipe_file(f"{self.remote}/{step}/{MARK}", b"All files of this step are here.\n")
            self._sent[step] = here[step]
            self._note()
        for step in sorted(set(self._sent) - set(here)):
            self._remove(step)

    def _remove(self, step: int) -> None:
        if self._files.exists(f"{self.remote}/{step}/{MARK}"):
            self._files.rm_file(f"{self.remote}/{step}/{MARK}")
        if self._files.exists(f"{self.remote}/{step}"):
            self._files.rm(f"{self.remote}/{step}", recursive=True)
        if self._sent.pop(step, None):
            self._note()

    def _note(self) -> None:
        """Remembers what the bucket holds, for the next session on this machine."""
        write_json(self._record, self._sent)

    def _unsent(self) -> list[str]:
        """Names of the steps of an earlier session that the bucket is to get; moved aside where it is not as left."""
        newest = self.latest
        left = [path.name for path in self.folder.glob("*") if path.name.isdigit() and int(path.name) > newest]
        if not left:
            return []
        known, last = read_record(self._record), max(map(int, left))
        as_left = all(known.get(str(step)) == version for step, version in self._sent.items())
        if not self._sent:  # a run that none has arrived of yet, or one that was deleted there
            as_left = not known and self._files.exists(f"{self.remote.rpartition('/')[0]}/config.json")
        if as_left:
            logging.warning("%s did not get what %s holds, up to step %d: sending it.", self.remote, self.folder, last)
            return left
        logging.warning(
            "%s has changed since an earlier session could not send its checkpoint of step %d, now in %s: going on "
            "from step %d.",
            *(self.remote, last, move_folder(self.folder, self.folder.with_name("unsent")), newest),
        )
        return []


def steps_in_bucket(remote: str) -> list[int]:
    """The steps that are whole in a bucket's folder of checkpoints, in order."""
    files = filesystem(remote)
    found = files.ls(remote, detail=False) if files.exists(remote) else []
    names = [path.rstrip("/").rpartition("/")[2] for path in found]
    return sorted(int(name) for name in names if name.isdigit() and files.exists(f"{remote}/{name}/{MARK}"))


@contextmanager
def readable(checkpoints: Path, step: int) -> Iterator[Path]:
    """Yields a folder in which orbax can read a step: the folder of the checkpoints itself unless it is in S3."""
    if scheme_of(checkpoints) != "s3":
        yield checkpoints
        return
    with tempfile.TemporaryDirectory(prefix="grass_jax_") as folder:
        _fetch(str(checkpoints), step, Path(folder))
        yield Path(folder)


def _fetch(remote: str, step: int, folder: Path) -> None:
    files = filesystem(remote)
    above = files._strip_protocol(remote)
    (folder / str(step)).mkdir(parents=True)
    for path in files.find(f"{remote}/{step}"):
        own = folder / path.removeprefix(above).lstrip("/")
        if own.name != MARK:
            own.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(own))


def _version(folder: Path) -> str:
    """What tells a step from one that is saved under its number later."""
    try:
        return hashlib.sha256((folder / "_CHECKPOINT_METADATA").read_bytes()).hexdigest()
    except OSError:
        return "damaged"
