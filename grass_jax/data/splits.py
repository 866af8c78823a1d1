"""Which files and blocks train, validate and test: by file, by group or by block, never by random tile."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """How a labelled folder is divided.

    Attributes:
        by: `file` or `group` (whole files; files that show the same ground stay together) or `block` (parts of scenes).
        test: what is kept for testing: a pattern of file names, or a share of the groups (of the blocks) below 1;
            a share may be given as text, "0.2". Empty or 0: nothing.
        validation: likewise, of what `test` leaves.
        block: side of a block in pixels, for `block`; the last of a row takes in what is left at the edge.
        guard: width in pixels of the band of test and validation blocks along other parts that is not scored.
        seed: seed of the shares.
    """

    by: str = "group"
    test: str | float = ""
    validation: str | float = ""
    block: int = 1024
    guard: int = 0
    seed: int = 0

    def __post_init__(self):
        if self.by not in ("file", "group", "block"):
            raise ValueError(f"split must be 'file', 'group' or 'block', not {self.by!r}.")
        if self.block < 1 or self.guard < 0:
            raise ValueError(f"block must be at least 1 and guard 0, not {self.block} and {self.guard}.")
        for name in ("test", "validation"):
            wanted = _share_or_pattern(getattr(self, name), name)
            if self.by == "block" and isinstance(wanted, str) and wanted:
                raise ValueError(f"{name} must be a share such as 0.2 with split 'block', not {wanted!r}.")


def group_of(files: Sequence[str], group: str | Sequence[str]) -> list[str]:
    """The group of every file.

    Args:
        files: names relative to the images' folder.
        group: a pattern whose first bracket (or whole match) names the group; or the path of a CSV with a heading whose
            first column is a file's name (with or without folder and suffix) and the second its group; or several CSVs;
            `folder=table.csv` counts the table's names from that folder and keeps its groups apart. Empty: every file
            is its own group.

    Returns:
        one name per file.

    Raises:
        ValueError: if a file has no group, or two.
        FileNotFoundError: if a CSV does not exist.
    """
    tables = [group] if isinstance(group, str) else list(group)
    if not any(tables):
        return list(files)
    if not all(table.lower().endswith(".csv") for table in tables):
        if len(tables) > 1:
            raise ValueError("The groups must be one pattern or paths that end with .csv.")
        return [_group_by_pattern(file, tables[0]) for file in files]
    known: dict[str, set[str]] = {}
    for table in tables:
        for name, its in _read_groups(table):
            known.setdefault(name, set()).add(its)
    return [_group_by_table(file, known, tables) for file in files]


def _group_by_pattern(file: str, pattern: str) -> str:
    found = re.search(pattern, file)
    name = (found.group(1) if found.re.groups else found.group()) if found else None
    if not name:
        raise ValueError(f"The group pattern {pattern!r} finds no group in the name {file}: widen it.")
    return name


def _read_groups(table: str) -> list[tuple[str, str]]:
    folder, _, path = ("", "", table) if Path(table).expanduser().exists() else table.rpartition("=")
    prefix = folder.strip("/") + "/" if folder else ""
    if Path(path).expanduser().exists() and not Path(path).expanduser().is_file():
        raise ValueError(f"{path} is no file: give a CSV whose lines are name,group.")
    try:
        with Path(path).expanduser().open(newline="", encoding="utf-8-sig") as text:
            rows = [row for row in csv.reader(text) if row][1:]
    except (UnicodeError, csv.Error) as error:
        raise ValueError(
            f"{path} is no CSV in UTF-8 ({error}): export it anew, with name,group on every line."
        ) from None
    short = next((row for row in rows if len(row) < 2 or not row[1].strip()), None)
    if short is not None:
        raise ValueError(
            f"{path} has a line without a group, {','.join(short)[:100]!r}: write name,group on every line."
        )
    return [(prefix + row[0].strip(), prefix + row[1].strip()) for row in rows]


def _group_by_table(file: str, known: dict[str, set[str]], tables: Sequence[str]) -> str:
    bare = file.rpartition(".")[0]
    for name in (file, bare, file.rpartition("/")[2], bare.rpartition("/")[2]):
        if name in known:
            if len(known[name]) > 1:
                raise ValueError(
                    f"{file} is in the groups {' and '.join(sorted(known[name]))[:200]}: write its folder in the CSV, "
                    "or give the CSV as folder=table.csv."
                )
            return next(iter(known[name]))
    raise ValueError(f"{file} has no group in {', '.join(tables)}: add a line for it (the first line is a heading).")


def assign_parts(files: Sequence[str], units: Sequence[str], split: Split) -> list[str]:
    """The part of every file; files of one unit stay together.

    Args:
        files: names relative to the images' folder, each once.
        units: what must not be divided: the group of every file, or itself, merged where footprints overlap.
        split: settings, with `by` `file` or `group`.

    Returns:
        `train`, `validation` or `test` for every file; the same for a seed and names, in any order of the files.

    Raises:
        ValueError: if a pattern divides a unit or matches no file, or nothing is left to train on.
    """
    left, parts = sorted(set(units)), dict.fromkeys(units, "train")
    words = dict(zip(left, _words(split.seed, len(left)), strict=True))
    for part in ("test", "validation"):
        wanted = _share_or_pattern(getattr(split, part), part)
        if not wanted:
            continue
        rest = [i for i, unit in enumerate(units) if parts[unit] == "train"]
        if isinstance(wanted, str):
            chosen = _units_by_pattern(wanted, part, files, units, rest)
        else:
            order = sorted({units[i] for i in rest}, key=lambda unit: (words[unit], unit))
            chosen = set(order[: max(1, int(wanted * len(order) + 0.5))])
        parts.update(dict.fromkeys(chosen, part))
    if "train" not in parts.values():
        raise ValueError(
            f"test {split.test!r} and validation {split.validation!r} leave none of the {len(left)} groups "
            "to train on: narrow them, or make the groups smaller."
        )
    return [parts[unit] for unit in units]


def _units_by_pattern(pattern: str, part: str, files, units, rest: list[int]) -> set[str]:
    inside = {i for i in rest if re.search(pattern, files[i])}
    if not inside:
        raise ValueError(f"The pattern {pattern!r} of {part} matches none of the {len(rest)} files: correct it.")
    member = {units[i]: files[i] for i in inside}
    for i in rest:
        if i not in inside and units[i] in member:
            raise ValueError(
                f"{member[units[i]]} and {files[i]} show the same ground or are one group, and the pattern {pattern!r} "
                f"of {part} divides them: widen the pattern, or leave one of them out."
            )
    return set(member)


def _share_or_pattern(wanted: str | float, name: str) -> str | float:
    """A share as a number, a pattern as it is; a command line gives both as text."""
    if isinstance(wanted, str) and re.fullmatch(r"0?\.\d+|0", wanted):
        wanted = float(wanted)
    if not isinstance(wanted, str) and not 0 <= wanted < 1:
        raise ValueError(f"{name} must be a pattern of file names or a share from 0 to below 1, not {wanted!r}.")
    return wanted


def _words(seed: int, count: int) -> list[int]:
    # Raw words, because NumPy promises the bits of a bit generator but not those of permutation().
    return np.random.Philox(np.random.SeedSequence([seed, 0x5B117])).random_raw(count).tolist() if count else []


class Blocks(NamedTuple):
    """The blocks of one scene; the last of a row or column takes in what is left at the edge.

    Attributes:
        height: of the scene in pixels.
        width: of the scene in pixels.
        side: side of a block in pixels.
        parts: (rows, columns) uint8 numbers in `PARTS`.
    """

    height: int
    width: int
    side: int
    parts: np.ndarray

    def all_of(self, part: str, y0, x0, y1, x1) -> np.ndarray:
        """Whether boxes lie wholly in blocks of a part; arrays of corners (half-open, pixels) broadcast."""
        other = np.pad(self.parts != PARTS.index(part), ((1, 0), (1, 0))).astype(np.int64).cumsum(0).cumsum(1)
        rows, columns = self.parts.shape
        top, bottom = (np.minimum(np.asarray(y) // self.side, rows - 1) for y in (y0, np.asarray(y1) - 1))
        left, right = (np.minimum(np.asarray(x) // self.side, columns - 1) for x in (x0, np.asarray(x1) - 1))
        # The number of foreign blocks that a box touches, from sums over upper left corners.
        return (other[bottom + 1, right + 1] - other[top, right + 1] - other[bottom + 1, left] + other[top, left]) == 0

    def rows(self, part: str, y0: int, y1: int, guard: int) -> np.ndarray:
        """Which pixels of rows y0 to y1 - 1 belong to a part and are more than `guard` pixels from any other.

        Returns:
            (y1 - y0, width) bool.
        """
        top, bottom, rows = self._windows(y0, y1, guard, self.height)
        left, right, columns = self._windows(0, self.width, guard, self.width)
        inside = self.all_of(part, top[:, None], left, bottom[:, None], right)
        return inside.repeat(columns, axis=1).repeat(rows, axis=0)

    def _windows(self, start: int, stop: int, guard: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows of `guard` pixels to both sides of pixels along an axis, one for each run that touches like blocks.

        Returns:
            first pixel of each window, the pixel after its last, and how many pixels have one like it.
        """
        at = np.arange(start, stop)
        low, high = np.maximum(at - guard, 0), np.minimum(at + guard + 1, length)
        blocks = np.stack([low // self.side, (high - 1) // self.side])
        new = np.flatnonzero((np.diff(blocks, prepend=-1) != 0).any(axis=0))
        return low[new], high[new], np.diff(new, append=len(at))


def assign_blocks(files: Sequence[str], sizes: Sequence[tuple[int, int]], split: Split) -> list[Blocks]:
    """Divide every scene in blocks and give each a part.

    Args:
        files: names of the scenes, each once.
        sizes: height and width of every scene in pixels.
        split: settings, with `by` `block` and shares.

    Returns:
        the blocks of every scene; the same for a seed, names and sizes, in any order of the files.

    Raises:
        ValueError: if nothing is left to train on.
    """
    shapes = [tuple(max(1, length // split.block) for length in size) for size in sizes]
    order = sorted(range(len(files)), key=lambda i: files[i])
    counts = [shapes[i][0] * shapes[i][1] for i in order]
    total = sum(counts)
    ranks = np.argsort(np.argsort(np.array(_words(split.seed, total), np.uint64), kind="stable"))
    parts = np.zeros(total, np.uint8)
    taken = 0
    for part in ("test", "validation"):
        share = float(_share_or_pattern(getattr(split, part), part) or 0)
        count = max(1, int(share * (total - taken) + 0.5)) if share else 0
        parts[(ranks >= taken) & (ranks < taken + count)] = PARTS.index(part)
        taken += count
    if taken >= total:
        raise ValueError(f"block {split.block} makes only {total} block(s): use smaller blocks or shares.")
    by_file = dict(zip(order, np.split(parts, np.cumsum(counts)[:-1]), strict=True))
    return [Blocks(*sizes[i], split.block, by_file[i].reshape(shapes[i])) for i in range(len(files))]
