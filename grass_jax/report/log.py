"""The record of a run: metrics.jsonl, TensorBoard events, and the JSON files beside them."""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from grass_jax.report.atomic import replacing

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Writes one line per logged step to `<workdir>/metrics.jsonl`, and the same numbers to TensorBoard.

    A step is the number of updates done. Opening the log removes what stands there beyond `start_step`, and a line
    torn by a kill: those steps are done again after the checkpoint of `start_step`, so that each step stands once.

    Args:
        workdir: Folder of the run.
        start_step: Step of the checkpoint that the run continues from; 0 for a new run.
        tensorboard: Whether to write event files under `<workdir>/tensorboard`.
        enabled: False writes nothing (every process but the first).
    """

    def __init__(
        self, workdir: str | os.PathLike, start_step: int = 0, *, tensorboard: bool = True, enabled: bool = True
    ):
        self._lines = self._events = None
        if not enabled:
            return
        path = Path(workdir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        _forget_after(path, start_step)
        self._lines = path.open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter  # imports whatever framework it finds: only where it is used

            self._events = SummaryWriter(
                str(Path(workdir) / "tensorboard"),
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
        self._lines.write(json.dumps(record, allow_nan=False) + "\n")
        self._lines.flush()
        if self._events is not None:
            for name, value in numbers.items():
                if value is not None:
                    self._events.add_scalar(name, value, int(step))

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        for resource in (self._lines, self._events):
            if resource is not None:
                resource.close()
        self._lines = self._events = None

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the records of `<workdir>/metrics.jsonl`.

    Args:
        workdir: Folder of a run.

    Returns:
        One dict per logged step in the order of the steps, null as None; empty when nothing has been logged.
    """
    path = Path(workdir) / METRICS_FILE
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
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _forget_after(path: Path, start_step: int) -> None:
    """Rewrites the file without the steps after `start_step` and without damaged lines."""
    if not path.exists():
        return
    before = path.read_bytes()
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
        except ValueError:  # torn by a kill: not JSON, or half of a character
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


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
