"""Timing in turns, and tables of what was timed."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


def interleaved(functions: Mapping[str, Callable[[], Any]], *, rounds: int, calls: int = 1) -> dict[str, np.ndarray]:
    """Times functions in turns, so that whatever else the machine does meets all of them.

    Every round runs each function and begins with another one, since what ran before can matter (heat, caches). A
    first round, in which things are compiled and memory is found, is not counted.

    Args:
        functions: by name; each returns arrays, which are waited for.
        rounds: counted rounds.
        calls: of a function before its result is waited for; on an accelerator the next call is then handed over while
            the one before runs, as in training.

    Returns:
        Seconds of one call, (rounds,) by name; entry i of all of them was measured in the same round.
    """
    times = {name: np.zeros(rounds + 1) for name in functions}
    names = list(functions)
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            result = None
            for _ in range(calls):
                result = functions[name]()
            jax.block_until_ready(result)
            times[name][turn] = (time.perf_counter() - start) / calls
    return {name: values[1:] for name, values in times.items()}


def quartiles(values: np.ndarray) -> dict[str, float]:
    """The median of measured values, and the quartiles, between which the middle half of them lies."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes cells as Markdown, padded so that it reads well in a terminal; all columns but the first are numbers."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def written(cells: Sequence[str]) -> str:
        first, *numbers = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in numbers)]
        return f"| {' | '.join(padded)} |"

    ruler = "|".join(("-" * (width + 2)) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths))
    return "\n".join([written(lines[0]), f"|{ruler}|", *map(written, lines[1:])])


def milliseconds(seconds: Mapping[str, float]) -> str:
    """Median and quartiles of seconds in milliseconds: `123.4 (120.1 to 130.2)`."""
    return spread({name: 1000 * seconds[name] for name in ("median", "low", "high")}, digits=1)


def spread(found: Mapping[str, float], *, digits: int) -> str:
    """Median and quartiles as text: `1.234 (1.201 to 1.302)`."""
    median, low, high = (f"{found[name]:,.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"
