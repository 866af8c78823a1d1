"""Checkpoints in an S3 bucket: orbax, which knows disks and `gs://` alone, works on this machine, and copies travel.

A step in the bucket counts once its mark is there, which is written last and removed first.
"""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from absl import logging

from grass_jax.buckets import cache_folder, filesystem, scheme_of

MARK = "whole.txt"


class CopiedCheckpoints:
    """A folder of checkpoints on this machine that is copied to a bucket, beginning with what is there.

    Args:
        remote: `s3://bucket/run/checkpoints`.
        patience: seconds for which `close` tries again where the bucket does not answer.
        pause: seconds between two tries.

    Attributes:
        remote: the folder in the bucket.
        folder: on this machine; what an earlier session left in it is replaced.
        failing: whether the bucket lacks what the folder holds.
    """

    def __init__(self, remote: str, *, patience: float = 300.0, pause: float = 10.0):
        self.remote, self._files, self._patience, self._pause = remote, filesystem(remote), patience, pause
        self.folder = cache_folder() / hashlib.sha256(remote.encode()).hexdigest()[:16] / "checkpoints"
        self.failing, sent = False, steps_in_bucket(remote)
        self._keep_unsent(sent[-1] if sent else 0)
        self.folder.mkdir(parents=True)
        for step in sent:
            _fetch(remote, step, self.folder)
        self._sent = {step: self._version(step) for step in sent}

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
        began = time.monotonic()
        self.send()
        while self.failing and time.monotonic() - began < self._patience:
            time.sleep(self._pause)
            self.send()
        if self.failing:
            logging.warning("%s has not taken the newest checkpoints: they are in %s.", self.remote, self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # it may hold what was damaged
                self.folder.parent.rmdir()

    def _send(self) -> None:
        here = {int(path.name): self._version(int(path.name)) for path in self.folder.iterdir() if path.name.isdigit()}
        for step in sorted(step for step in here if self._sent.get(step) != here[step]):
            self._remove(step)  # one that was damaged, or what an upload that was cut short has left
            for path in (self.folder / str(step)).rglob("*"):
                if path.is_file():
                    self._files.put_file(str(path), f"{self.remote}/{path.relative_to(self.folder).as_posix()}")
            self._files.pipe_file(f"{self.remote}/{step}/{MARK}", b"All files of this step are here.\n")
            self._sent[step] = here[step]
        for step in sorted(set(self._sent) - set(here)):
            self._remove(step)

    def _remove(self, step: int) -> None:
        self._sent.pop(step, None)
        if self._files.exists(f"{self.remote}/{step}/{MARK}"):
            self._files.rm_file(f"{self.remote}/{step}/{MARK}")
        if self._files.exists(f"{self.remote}/{step}"):
            self._files.rm(f"{self.remote}/{step}", recursive=True)

    def _version(self, step: int) -> bytes:
        """What tells a step from one that is saved under its number later."""
        try:
            return (self.folder / str(step) / "_CHECKPOINT_METADATA").read_bytes()
        except OSError:
            return b""

    def _keep_unsent(self, newest: int) -> None:
        left = [int(path.name) for path in self.folder.glob("*") if path.name.isdigit()]
        if max(left, default=0) > newest:
            unsent = self.folder.with_name("unsent")
            shutil.rmtree(unsent, ignore_errors=True)
            self.folder.rename(unsent)
            logging.warning(
                "An earlier session could not send its checkpoint of step %d, now in %s: going on from step %d of %s.",
                *(max(left), unsent, newest, self.remote),
            )
        shutil.rmtree(self.folder, ignore_errors=True)


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
    for path in files.find(f"{remote}/{step}"):
        own = folder / path.removeprefix(above).lstrip("/")
        if own.name != MARK:
            own.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(own))
