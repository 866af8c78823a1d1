"""Files that grow while a run goes on, and that neither a full disk nor a bucket that does not answer stops."""

import threading
from collections import deque
from contextlib import suppress
from io import FileIO
from pathlib import Path

from absl import logging

from grass_jax.buckets import filesystem
from grass_jax.report.atomic import FULL

MOST_WAITING = 100_000  # records in memory while the disk is full; the oldest go first then


class AppendedFile:
    """A file to append to, which is opened when there is something to write; no call raises.

    What cannot be written waits in memory and is written when there is room again, or the disk is back, from the byte
    on at which that ended: no record is torn. The first failure and the recovery are said, and what was lost.

    Args:
        path: of the file, on this machine; its folder is made when it is missing.
        most_waiting: records that are kept while nothing can be written.
    """

    def __init__(self, path: Path, most_waiting: int = MOST_WAITING):
        self._path, self._most = path, most_waiting
        self._file: FileIO | None = None
        self._record = bytearray()
        self._waiting: deque[bytes] = deque()  # the first one from the byte on that comes next
        self._begun = False  # whether a part of the first one has been written
        self._failing = False
        self._lost = 0

    def write(self, data: bytes) -> None:
        """Adds to the record that the next `flush` ends."""
        self._record += data

    def flush(self) -> None:
        """Ends a record and writes what can be written."""
        if self._record:
            self._waiting.append(bytes(self._record))
            self._record.clear()
        try:
            self._write_waiting()
        except OSError as error:
            if error.errno not in FULL and self._file is not None:  # after a remount only a new handle works
                with suppress(OSError):
                    self._file.close()
                self._file = None
            if not self._failing:
                logging.warning(
                    "%s cannot be written (%s): what comes is kept in memory and written when that has changed.",
                    *(self._path, error.strerror or error),
                )
            self._failing = True
            while len(self._waiting) > self._most:
                del self._waiting[1 if self._begun else 0]
                self._lost += 1
        else:
            if self._failing:
                logging.info("%s is written again%s.", self._path, self._words_of_loss(" but for "))
            self._failing, self._lost = False, 0

    def close(self) -> None:
        """Writes what can be written and closes the file; a second call does nothing."""
        self.flush()
        if self._waiting:
            self._lost += len(self._waiting)
            self._waiting.clear()
            logging.warning("%s could not be written to the end%s.", self._path, self._words_of_loss(": it lacks "))
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:  # a network's disk may notice only now
                logging.warning("%s may lack its end: %s.", self._path, error)
            self._file = None

    def _write_waiting(self) -> None:
        while self._waiting:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = _opened(self._path)
            record = self._waiting[0]
            written = self._file.write(record)
            if written < len(record):  # the next try says why
                self._waiting[0], self._begun = record[written:], True
            else:
                self._waiting.popleft()
                self._begun = False

    def _words_of_loss(self, before: str) -> str:
        return f"{before}{self._lost} record{'s' * (self._lost != 1)}" if self._lost else ""


def _opened(path: Path) -> FileIO:
    return path.open("ab", buffering=0)  # a write that does not fit says how much did


class Uploads:
    """Keeps a folder of a bucket like one of this machine whose files grow; no call raises.

    Args:
        folder: on this machine.
        remote: `gs://...` or `s3://...`.
        every: seconds between two looks for what has grown.
    """

    def __init__(self, folder: Path, remote: str, every: float = 60.0):
        self._folder, self._remote = folder, remote.rstrip("/")
        self._sizes: dict[Path, int] = {path: path.stat().st_size for path in self._files()}
        self._failing, self._lock, self._ended = False, threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(every,), daemon=True)
        self._thread.start()

    def send(self) -> None:
        """Uploads the files that have grown."""
        with self._lock:
            try:
                for path in self._files():
                    content = path.read_bytes()
                    if self._sizes.get(path) != len(content):
                        name = path.relative_to(self._folder).as_posix()
                        filesystem(self._remote).pipe_file(f"{self._remote}/{name}", content)
                        self._sizes[path] = len(content)
            except Exception as error:  # every library has errors of its own
                if not self._failing:
                    logging.warning("%s takes no log (%s): it is sent when it does again.", self._remote, error)
                self._failing = True
            else:
                if self._failing:
                    logging.info("%s takes the log again.", self._remote)
                self._failing = False

    def close(self) -> bool:
        """Sends what is left and ends; says whether everything has arrived."""
        self._ended.set()
        self._thread.join()
        self.send()
        return not self._failing

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.rglob("*") if path.is_file())

    def _run(self, every: float) -> None:
        while not self._ended.wait(every):
            self.send()
