"""The lines of `results.jsonl`: one a measurement, written when it is made, so that a killed comparison loses none."""

import datetime
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from grass_jax.config import ConfigError
from grass_jax.report.atomic import FULL, DiskFullError, replacing
from grass_jax.report.comparison import read_results
from grass_jax.report.environment import environment
from grass_jax.sharding import read_by_first

ALWAYS = ("config_hash", "arm", "seed", "evaluation")
KEY = (*ALWAYS, "budget", "list", "phase")


class Results:
    """The lines of a file, and those that this comparison adds.

    Args:
        path: the file; it may hold lines of other comparisons, machines and days.

    Raises:
        ConfigError: a line is damaged, and not as a kill leaves the last one.
    """

    def __init__(self, path: Path):
        self._path = path
        self.rows: list[dict[str, Any]] = read_by_first(lambda: _rows(path))
        self._done = {_key(row) for row in self.rows}
        found = environment()
        self._origin = {
            "commit": found["commit"],
            "hardware": f"{found['device_count']} x {found['device_kind']}, {found['cpu_count']} cores",
            "versions": {name: found["versions"][name] for name in ("grass_jax", "jax")},
        }

    def has(self, **key: Any) -> bool:
        """Says whether a measurement has been made; the key holds what `KEY` names, without what does not apply."""
        return _key(key) in self._done

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines, with where and when they come from; the first process writes them.

        Raises:
            DiskFullError: there is no room for them.
        """
        lines = [{**row, **self._origin, "date": datetime.date.today().isoformat()} for row in rows]
        self.rows += lines
        self._done |= {_key(line) for line in lines}
        if jax.process_index() != 0:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _mend_last_line(self._path)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise DiskFullError(error, self._path) from error


def scored(scores: Mapping[str, Any], scenes: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a line.

    Args:
        scores: of an `Evaluation`, or as `summary.json` holds them.
        scenes: from `scene_records`, or as `confusion.json` holds them.
    """
    figures = {name: scores[name] for name in ("miou", "overall_accuracy", "iou")}
    return {**figures, "area_miou": scores["areas"]["miou"], "scenes": scenes}


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = read_results(path) if path.exists() else []
    except ValueError as error:
        raise ConfigError(f"config.results: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or any(type(row.get(name)) not in (str, int) for name in ALWAYS):
            raise ConfigError(f"config.results: Line {number} of {path} is no result: remove it.")
    return rows


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)


def _mend_last_line(path: Path) -> None:
    """Ends a last line that was written whole, and drops what a kill has left of one."""
    if not path.exists() or not (content := path.read_bytes()) or content.endswith(b"\n"):
        return
    begin = content.rfind(b"\n") + 1
    try:
        json.loads(content[begin:])
        content += b"\n"
    except ValueError:
        content = content[:begin]
    with replacing(path) as temporary:
        temporary.write_bytes(content)
