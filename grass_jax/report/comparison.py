"""What result lines say of arms: means, paired differences with bootstrap intervals, and the verdict. NumPy, host."""

import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PAPER_GAIN = 0.0157  # mean gain in mIoU over SimCLR that the paper reports
# A line with the same values of these is an exact repeat; of the encoder of each phase there is a purity line.
KEY = ("data", "arm", "seed", "evaluation", "budget", "list", "phase")
Row = Mapping[str, Any]  # a line of results.jsonl


class Difference(NamedTuple):
    """Difference in mIoU of two arms, as a fraction.

    Attributes:
        mean: over seeds and lists.
        low: lower end of the 95 % interval; None with fewer than two blocks.
        high: upper end of it.
        seeds: how many.
        lists: how many.
        blocks: how many.
        pairs: (seed, list, difference) of every seed and list.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    lists: int
    blocks: int
    pairs: tuple[tuple[int, int, float], ...]


class Mean(NamedTuple):
    """Mean mIoU of an arm, as a fraction; the fields are those of `Difference`.

    Attributes:
        deviation: plain standard deviation (n - 1) over the seeds of their means over the lists; None of one seed.
    """

    mean: float
    low: float | None
    high: float | None
    deviation: float | None
    seeds: int
    lists: int
    blocks: int


class _Grid(NamedTuple):
    seeds: list[int]
    lists: list[int]
    parts: list[np.ndarray]  # of each arm, (b, s, l, 2, k): right pixels and union of truth and prediction, by class

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.seeds), len(self.lists), len(self.parts[0])


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a file of result lines; a last line torn by a kill is left out.

    Args:
        path: results.jsonl.

    Returns:
        The lines, in the order of the file.

    Raises:
        ValueError: another line is damaged.
    """
    rows, torn = [], 0
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        if torn:
            raise ValueError(f"Line {torn} of {os.fspath(path)} is not a whole result: remove that line.")
        try:
            rows.append(json.loads(line))
        except ValueError:  # not JSON, or half of a character
            torn = number
    return rows


def latest(rows: Iterable[Row]) -> list[Row]:
    """Keeps the last of lines with the same data, arm, seed, evaluation, budget, list and, of purity lines, phase."""
    return list({tuple(row.get(name) for name in KEY): row for row in rows}.values())


def paired_difference(
    rows: Iterable[Row],
    arm: str,
    other: str,
    *,
    evaluation: str,
    budget: str,
    blocks: str = "scene",
    resamples: int = 2000,
    seed: int = 0,
) -> Difference | None:
    """Difference in mIoU of `arm` minus `other`, with a 95 % percentile bootstrap interval.

    Only seeds and lists that both arms have count, and of these a full grid: the lists are those of the seed with the
    most of them, and the seeds are those that have all of these lists.

    The mIoU is that of the confusion matrix pooled over the scenes, as in `segment.metrics.scores`. A resample draws
    seeds, lists and blocks with replacement, independently of each other and the same ones for both arms, pools the
    matrices of the drawn blocks, and averages the differences over the drawn seeds and lists.

    Args:
        rows: result lines of one data set.
        arm: name.
        other: name.
        evaluation: "probe" or "finetune".
        budget: name of the label budget.
        blocks: what is drawn, "scene" or "group" (all scenes of an area at once).
        resamples: draws of the bootstrap.
        seed: of the draws.

    Returns:
        The difference; None where the arms have no line in common.

    Raises:
        ValueError: the lines were scored on different scenes, or `blocks` is neither.
    """
    grid = _grid(rows, (arm, other), evaluation, budget, blocks)
    if grid is None:
        return None
    point, low, high = _bootstrap(grid, resamples, seed)
    cells = ((s, n, float(point[i, j])) for i, s in enumerate(grid.seeds) for j, n in enumerate(grid.lists))
    return Difference(float(point.mean()), low, high, *grid.sizes, tuple(cells))


def mean_and_interval(
    rows: Iterable[Row],
    arm: str,
    evaluation: str,
    budget: str,
    *,
    area: bool = False,
    blocks: str = "scene",
    resamples: int = 2000,
    seed: int = 0,
) -> Mean | None:
    """Mean mIoU of one arm, with the grid and the bootstrap of `paired_difference`.

    Args:
        rows: result lines of one data set.
        arm: name.
        evaluation: "probe" or "finetune".
        budget: name of the label budget.
        area: the area-balanced mIoU in place of that of all pixels: the mean over the groups of scenes, which are
            then the blocks, as in `segment.metrics.area_scores`.
        blocks: as for `paired_difference`.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Returns:
        The mean; None where the arm has no line.

    Raises:
        ValueError: as for `paired_difference`.
    """
    grid = _grid(rows, (arm,), evaluation, budget, "group" if area else blocks)
    if grid is None:
        return None
    point, low, high = _bootstrap(grid, resamples, seed, area=area)
    deviation = float(point.mean(1).std(ddof=1)) if len(point) > 1 else None
    return Mean(float(point.mean()), low, high, deviation, *grid.sizes)


def verdict(primary: Difference | None, control: Difference | None) -> str:
    """Says what the primary endpoint says of the paper's claim, in one sentence.

    Args:
        primary: GS minus SimCLR at equal compute.
        control: GS minus GS with random boxes.

    Returns:
        A sentence that begins with "supports", "random boxes explain it", "against 1.57 points", "inconclusive" or
        "not measured".
    """
    if primary is None:
        return "not measured."
    if primary.low is None or primary.high is None:
        return "inconclusive: there is no interval with fewer than two blocks of test scenes."
    if primary.low > 0:
        if control is None or control.low is None:
            return "not measured: GS is better than SimCLR at equal compute, but random boxes were not tried."
        if control.low > 0:
            return "supports: GS is better than SimCLR at equal compute and than random boxes."
        return "random boxes explain it: GS is better than SimCLR at equal compute, but not than random boxes."
    if primary.high < 0:
        return "against 1.57 points: GS is worse than SimCLR at equal compute."
    if primary.high < PAPER_GAIN:
        return "against 1.57 points: the interval of GS minus SimCLR at equal compute ends below that gain."
    return f"inconclusive: the half-width of the interval is {50 * (primary.high - primary.low):.2f} points."


def _grid(rows: Iterable[Row], arms: Sequence[str], evaluation: str, budget: str, blocks: str) -> _Grid | None:
    if blocks not in ("scene", "group"):
        raise ValueError(f"The blocks of a bootstrap are 'scene' or 'group', not {blocks!r}.")
    found = {
        (row["arm"], row["seed"], row["list"]): row
        for row in rows
        if row["evaluation"] == evaluation and row["budget"] == budget and row["arm"] in arms
    }
    common = set.intersection(*({cell[1:] for cell in found if cell[0] == arm} for arm in arms))
    if not common:
        return None
    lists_of = {seed: {n for s, n in common if s == seed} for seed in sorted({s for s, _ in common})}
    lists = sorted(max(lists_of.values(), key=len))
    seeds = [seed for seed, own in lists_of.items() if own.issuperset(lists)]
    names = sorted(found[arms[0], seeds[0], lists[0]]["scenes"])

    def parts(row: Row) -> np.ndarray:
        if sorted(row["scenes"]) != names:
            raise ValueError(
                f"The {evaluation} lines at {budget} crops of {' and '.join(arms)} were scored on different test "
                "scenes: compare lines of one split."
            )
        return _parts([row["scenes"][name] for name in names], names if blocks == "scene" else None)

    return _Grid(
        seeds,
        lists,
        [np.stack([np.stack([parts(found[arm, s, n]) for n in lists], 1) for s in seeds], 1) for arm in arms],
    )


def _parts(scenes: Sequence[Row], blocks: Sequence[str] | None) -> np.ndarray:
    """(b, 2, k) of the blocks (None: the groups), sorted by name; an IoU needs no more, and both parts just add up."""
    matrices = np.array([scene["matrix"] for scene in scenes], np.float64)
    right = np.diagonal(matrices, axis1=1, axis2=2)
    union = matrices.sum(1) + matrices.sum(2) - right
    names, block = np.unique(blocks or [scene["group"] for scene in scenes], return_inverse=True)
    parts = np.zeros((len(names), 2, right.shape[1]))
    np.add.at(parts, block, np.stack([right, union], 1))
    return parts


def _bootstrap(
    grid: _Grid, resamples: int, seed: int, *, area: bool = False
) -> tuple[np.ndarray, float | None, float | None]:
    """Value of every seed and list, (s, l), and the interval of their mean."""

    def values(counts: np.ndarray) -> np.ndarray:  # (r, b) -> (r, s, l)
        first, *others = (_pooled_miou(counts, parts, area) for parts in grid.parts)
        return first - others[0] if others else first

    seeds, lists, blocks = grid.sizes
    point = values(np.ones((1, blocks)))[0]
    if blocks < 2:
        return point, None, None
    of_seed, of_list, of_block = _draws(grid.sizes, resamples, seed)
    means = np.einsum("rsl,rs,rl->r", values(of_block), of_seed / seeds, of_list / lists)
    low, high = np.nanpercentile(means, (2.5, 97.5))  # a resample may hold no labelled pixel at all
    return point, float(low), float(high)


@functools.lru_cache(maxsize=8)
def _draws(sizes: tuple[int, ...], resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """For each size n, (r, n): how often each of n things is drawn when n are drawn with replacement."""
    rng = np.random.default_rng(seed)
    return tuple(rng.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64) for n in sizes)


def _pooled_miou(counts: np.ndarray, parts: np.ndarray, area: bool) -> np.ndarray:
    """mIoU of (r, b) times each block: (b, s, l, 2, k) -> (r, s, l); with `area` the mean of the blocks' own mIoU."""
    if not area:
        return _miou(np.tensordot(counts, parts, 1))
    each = _miou(parts)
    defined = np.tensordot(counts, np.isfinite(each).astype(np.float64), 1)
    return np.where(defined > 0, np.tensordot(counts, np.nan_to_num(each), 1) / np.maximum(defined, 1), np.nan)


def _miou(parts: np.ndarray) -> np.ndarray:
    """Mean over the classes, (..., 2, k) -> (...), without those that neither truth nor prediction has."""
    right, union = parts[..., 0, :], parts[..., 1, :]
    present = (union > 0).sum(-1)
    return np.where(present > 0, (right / np.maximum(union, 1)).sum(-1) / np.maximum(present, 1), np.nan)
