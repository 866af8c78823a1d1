"""How a run went, in one JSON file and one picture."""

from pathlib import Path
from typing import Any

import numpy as np

from grass_jax.report import figures
from grass_jax.report.log import read_metrics, write_json


def finish(
    workdir: Path, *, steps: int, tiles: int, seconds: float | None = None, more: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Draws the curves and writes `summary.json` with what `more` adds; returns its content."""
    records = read_metrics(workdir)
    if records:
        figures.curves(workdir / "figures" / "curves.png", records)
    summary = summarise(records, seconds=seconds, steps=steps, tiles=tiles) | (more or {})
    write_json(workdir / "summary.json", summary)
    return summary


def summarise(records: list[dict[str, Any]], *, seconds: float | None, steps: int, tiles: int) -> dict[str, Any]:
    """Sums a run up: for each phase the mean metrics of its first and its last tenth.

    Args:
        records: lines of the log.
        seconds: wall-clock time of this session; None where it is not known.
        steps: of the whole run.
        tiles: in the data.

    Returns:
        What `summary.json` holds.
    """
    phases = {}
    for name in dict.fromkeys(record["phase"] for record in records if "loss" in record):
        own = [record for record in records if record["phase"] == name and "loss" in record]
        tenth = max(1, len(own) // 10)
        phases[name] = {"begins": _means(own[:tenth]), "ends": _means(own[-tenth:])}
    replaced = int(sum(record.get("replaced") or 0 for record in records))  # tiles that could not be read
    return {
        "steps": steps,
        "tiles": tiles,
        "replaced_tiles": replaced,
        "seconds_of_last_session": seconds and round(seconds, 1),
        "phases": phases,
    }


def _means(records: list[dict[str, Any]]) -> dict[str, float]:
    names = dict.fromkeys(n for record in records for n in record if n not in ("step", "epoch", "phase", "replaced"))
    values = {name: [r[name] for r in records if r.get(name) is not None] for name in names}
    return {name: float(np.mean(numbers)) for name, numbers in values.items() if numbers}
