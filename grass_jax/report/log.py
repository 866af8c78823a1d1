"""The record of a run: metrics.jsonl, TensorBoard events, and the JSON files beside them."""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from grass_jax.buckets import answering, place, scheme_of
from grass_jax.report.appended import AppendedFile, Uploads
from grass_jax.report.atomic import DiskFullError, replacing

METRICS_FILE = "metrics.jsonl"
EVENTS = "grass_jax"  # before the path of an event file: TensorBoard's writer asks us to open it then


class MetricsLog:
    """Writes one line per logged step to `<workdir>/metrics.jsonl`, and the same numbers to TensorBoard.

    A step is the number of updates done. Opening the log removes what stands there beyond `start_step`, and a line
    torn by a kill: those steps are done again after the checkpoint of `start_step`, so that each step stands once.

    Nothing that fails here ends a run: what a full disk does not take waits in memory. For a run in a bucket, the files
    lie on this machine and are sent every minute, by `flush` and in the end.

    Args:
        workdir: Folder of the run, on this machine or in a bucket.
        start_step: Step of the checkpoint that the run continues from; 0 for a new run.
        tensorboard: Whether to write event files under `<workdir>/tensorboard`.
        enabled: False writes nothing (every process but the first).
    """

    def __init__(
        self, workdir: str | os.PathLike, start_step: int = 0, *, tensorboard: bool = True, enabled: bool = True
    ):
        self._lines = self._events = self._uploads = self._copies = None
        if not enabled:
            return
        folder = place(workdir)
        begin = b""
        try:
            _forget_after(folder / METRICS_FILE, start_step)
        except DiskFullError as error:  # a step that stands twice is read once, and a torn line must end
            logging.warning("%s", error)
            begin = b"\n"
        if scheme_of(workdir):
            self._copies, lines = Path(tempfile.mkdtemp(prefix="grass_jax_log_")), folder / METRICS_FILE
            folder = self._copies
            with answering(lines):
                if lines.exists():
                    (folder / METRICS_FILE).write_bytes(lines.read_bytes())
            self._uploads = Uploads(folder, os.fspath(workdir))
        self._lines = AppendedFile(folder / METRICS_FILE)
        self._lines.write(begin)
        if tensorboard:
            from tensorboardX import SummaryWriter  # imports whatever framework it finds: only where it is used
            from tensorboardX.record_writer import register_writer_factory

            register_writer_factory(EVENTS, _EventFiles)
            self._events = SummaryWriter(
                f"{EVENTS}:{folder / 'tensorboard'}",
                purge_step=start_step + 1,  # TensorBoard drops what earlier files say from this step on
                flush_secs=10,
                # The library names files by the second: a quick restart would overwrite the earlier one.
                filename_suffix=f".{time.time_ns()}",
            )

    def write(
        self,
        step: int,
        *,
        epoch: float,
        phase: str,
        **metrics: Any,
    ) -> None:
        """Appends a record of one step and flushes it; several records of a step are read as one.

        Args:
            step: Updates done.
            epoch: Epoch of the step.
            phase: Name of the phase.
            **metrics: Numbers (Python, NumPy or jax scalars) such as `loss`, `learning_rate` and `images_per_second`;
                None where one is not known. What is not finite is written as null and kept out of TensorBoard.
        """
        if self._lines is None:
            return
        numbers = {name: _finite(value) for name, value in metrics.items()}
        record = {"step": int(step), "epoch": _plain(epoch), "phase": phase, **numbers}
        self._lines.write((json.dumps(record, allow_nan=False) + "\n").encode())
        self._lines.flush()
        if self._events is not None:
            for name, value in numbers.items():
                if value is not None:
                    self._events.add_scalar(name, value, int(step))

    def flush(self) -> None:
        """Sends the log of a run in a bucket; before a checkpoint, so that no line up to it can be lost."""
        if self._uploads is not None:
            self._uploads.send()

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        for resource in (self._lines, self._events):
            if resource is not None:
                resource.close()
        if self._uploads is not None and self._copies is not None:
            if self._uploads.close():
                shutil.rmtree(self._copies, ignore_errors=True)
            else:
                logging.warning("What the bucket did not take of the log is in %s.", self._copies)
        self._lines = self._events = self._uploads = None

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _EventFiles:
    """Opens TensorBoard's files; its own would end the writing thread on a full disk, which training then waits for."""

    @staticmethod
    def directory_check(path: str) -> None:
        """The folder is made with the first file."""

    @staticmethod
    def open(path: str) -> AppendedFile:
        return AppendedFile(Path(path.removeprefix(f"{EVENTS}:")))


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the records of `<workdir>/metrics.jsonl`.

    Args:
        workdir: Folder of a run.

    Returns:
        One dict per logged step in the order of the steps, null as None; empty when nothing has been logged.

    Raises:
        BucketError: it is in a bucket that does not answer; an OSError, too.
    """
    path = place(workdir) / METRICS_FILE
    with answering(path):
        if not path.exists():
            return []
        with path.open("rb") as lines:
            return _each_step_once(_records(lines))


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file that is whole whenever it is read.

    Args:
        path: File to write.
        content: Mappings (also ConfigDict), sequences, arrays, numbers, text, paths. A number that is not finite
            becomes null.

    Raises:
        DiskFullError: there is no room for it.
        BucketError: it is in a bucket that does not take it; an OSError, too.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _forget_after(path: Path, start_step: int) -> None:
    """Rewrites the file without the steps after `start_step` and without damaged lines."""
    with answering(path):
        before = path.read_bytes() if path.exists() else b""
    records = _each_step_once(_records(before.splitlines()))
    kept = [record for record in records if record["step"] <= start_step]
    after = "".join(json.dumps(record) + "\n" for record in kept).encode()
    if after != before:
        with replacing(path) as temporary:
            temporary.write_bytes(after)
        logging.info(
            "%s: continuing after step %d, %d later records removed.", path, start_step, len(records) - len(kept)
        )


def _records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # torn by a kill: not JSON, or half of a character
            continue
        if isinstance(record, dict) and type(record.get("step")) is int and _is_line(record):
            yield record


def _is_line(record: dict[str, Any]) -> bool:
    """Whether a record holds what `MetricsLog.write` writes: the name of a phase, and numbers or null."""
    numbers = (value for name, value in record.items() if name != "phase")
    return isinstance(record.get("phase"), str) and all(v is None or type(v) in (int, float) for v in numbers)


def _each_step_once(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    by_step: dict[int, dict[str, Any]] = {}
    for record in records:
        by_step[record["step"]] = by_step.get(record["step"], {}) | record
    return [by_step[step] for step in sorted(by_step)]


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Turns a tree of anything that a config or a summary holds into what JSON knows."""
    if isinstance(value, np.generic) or (hasattr(value, "dtype") and hasattr(value, "tolist")):
        value = np.asarray(value).tolist()
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return _finite(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value
