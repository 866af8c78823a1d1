"""Purity: does the guided box hold fewer classes than a box of its size elsewhere in the view? NumPy, on the host."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import entr

MIXED_BELOW = 0.8  # share of a view's majority class under which the view counts as mixed


class Purity(NamedTuple):
    """What is measured of n boxes, one per view; nan where a box has no labelled pixel.

    Attributes:
        majority: (n,) share of the box's most frequent class, minus its mean over the random boxes.
        entropy: (n,) entropy of the classes in the box, nats, minus its mean over the random boxes.
        box_counts: (n, k) labelled pixels of each class in the box.
        view_counts: (n, k) the same of the whole view.
        random_classes: (n, k) share of the random boxes (those with labelled pixels) whose most frequent class is this.
    """

    majority: np.ndarray
    entropy: np.ndarray
    box_counts: np.ndarray
    view_counts: np.ndarray
    random_classes: np.ndarray


def box_purity(masks: np.ndarray, boxes: np.ndarray, classes: int, rng: np.random.Generator, draws: int = 32) -> Purity:
    """Compares the classes in each box with those in random boxes of the same height and width in the same view.

    A control is other boxes through the same function: those of a random encoder, those of another tile's view, those
    of the activation without the gradient.

    Args:
        masks: (n, s, s) ids of views; what is not in 0..classes-1 (IGNORE) does not count.
        boxes: (n, 4) (y0, x0, y1, x1), half-open, view pixels, not empty.
        classes: their number k.
        rng: draws the places of the random boxes, uniform among those inside the view.
        draws: random boxes per view; of those without a labelled pixel none counts.

    Returns:
        The measures of the n boxes.
    """
    rows = []
    for mask, (y0, x0, y1, x1) in zip(masks, np.asarray(boxes).tolist(), strict=True):
        totals = _integral(mask, classes)
        height, width = y1 - y0, x1 - x0
        top = rng.integers(0, mask.shape[0] - height + 1, draws)
        left = rng.integers(0, mask.shape[1] - width + 1, draws)
        own, view = _counts(totals, y0, x0, y1, x1), totals[-1, -1]
        random = _counts(totals, top, left, top + height, left + width)
        random = random[random.any(-1)]
        majority = entropy = np.nan
        if own.any() and len(random):
            majority = _majority(own) - _majority(random).mean()
            entropy = _entropy(own) - _entropy(random).mean()
        share = _choices(random).mean(0) if len(random) else np.full(classes, np.nan)
        rows.append((majority, entropy, own, view, share))
    return Purity(*(np.array(column) for column in zip(*rows, strict=True)))


def join(parts: Sequence[Purity]) -> Purity:
    """The measures of several batches as those of one."""
    return Purity(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def summarise_purity(
    records: Mapping[str, Purity],
    groups: Sequence[Any] | np.ndarray,
    classes: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Sums purity up, with 95 % intervals from a bootstrap over groups (views of one place are not independent).

    Args:
        records: name -> measures of 2 b boxes, those of a tile's two views one after the other. The first name is the
            guided boxes, the others are controls on the same views.
        groups: b scenes or overlap groups, one per tile.
        classes: k names.
        resamples: of the groups, with replacement.
        seed: of the resampling.

    Returns:
        For `summary.json`. "groups", "tiles"; "boxes": {name: ...} with, for each kind of boxes,
        "mixed" (views whose majority class has under 80 %) and "all": "majority" and "entropy" (nats), differences to
        the random boxes; a control also has "guided_minus_this", the same of the guided boxes minus its own;
        "selection": {class: share of the "boxes" and of the "random_boxes" with this majority class, and of the
        labelled pixels of the "views"};
        "pairs_same_class": share of tiles whose two boxes have one majority class ("boxes"), the same of the whole
        "views" and of two "random_boxes" of those sizes, and "boxes_minus_views", "boxes_minus_random".
        Every measured number is {"mean", "low", "high", "n"}: low and high are None with fewer than two groups, mean
        too where nothing was measured; n counts views (pairs: tiles).

    Raises:
        ValueError: the measures are not of two views for each tile.
    """
    for name, record in records.items():
        if len(record.majority) != 2 * len(groups):
            raise ValueError(
                f"{len(groups)} tiles have two views each: the {len(record.majority)} boxes of {name!r} do not fit."
            )
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    picks = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    guided = next(iter(records.values()))
    entries = {}
    for name, record in records.items():
        measured = {"majority": record.majority, "entropy": record.entropy}
        versus = {"majority": guided.majority - record.majority, "entropy": guided.entropy - record.entropy}
        mixed = _majority(record.view_counts) < MIXED_BELOW
        entry: dict[str, Any] = {}
        for views, keep in (("mixed", mixed), ("all", np.ones_like(mixed))):
            entry[views] = _intervals(measured, keep, np.repeat(group, 2), picks)
            if record is not guided:
                entry[views]["guided_minus_this"] = _intervals(versus, keep, np.repeat(group, 2), picks)
        entry["selection"] = _selection(record, classes)
        entry["pairs_same_class"] = _pairs(record, group, picks)
        entries[name] = entry
    return {"tiles": len(group), "groups": len(names), "boxes": entries}


def _integral(mask: np.ndarray, classes: int) -> np.ndarray:
    """(s + 1, s + 1, k): pixels of each class above and left of a corner."""
    totals = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1, classes), np.int32)
    totals[1:, 1:] = mask[..., None] == np.arange(classes)
    return totals.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)


def _counts(totals: np.ndarray, y0: Any, x0: Any, y1: Any, x1: Any) -> np.ndarray:
    return totals[y1, x1] - totals[y0, x1] - totals[y1, x0] + totals[y0, x0]


def _majority(counts: np.ndarray) -> np.ndarray:
    """Share of the most frequent class, nan where nothing was counted."""
    total = counts.sum(-1)
    return np.where(total > 0, counts.max(-1) / np.maximum(total, 1), np.nan)


def _entropy(counts: np.ndarray) -> np.ndarray:
    return entr(counts / np.maximum(counts.sum(-1, keepdims=True), 1)).sum(-1)


def _choices(counts: np.ndarray) -> np.ndarray:
    """(n, k) one-hot of the most frequent class, nan where nothing was counted."""
    rows = np.eye(counts.shape[-1])[counts.argmax(-1)]
    rows[~counts.any(-1)] = np.nan
    return rows


def _selection(record: Purity, classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    measured = record.box_counts.any(-1)
    pixels = record.view_counts[measured].sum(0)
    random = np.nansum(record.random_classes[measured], 0)
    shares = {
        "boxes": _choices(record.box_counts[measured]).sum(0) / max(1, measured.sum()),
        "random_boxes": random / max(1, random.sum()),
        "views": pixels / max(1, pixels.sum()),
    }
    return {
        name: {what: float(share[c]) if measured.any() else None for what, share in shares.items()}
        for c, name in enumerate(classes)
    }


def _pairs(record: Purity, group: np.ndarray, picks: np.ndarray) -> dict[str, Any]:
    boxes, views, random = (
        np.prod(shares.reshape(-1, 2, shares.shape[-1]), 1).sum(-1)  # chance that the two have one class
        for shares in (_choices(record.box_counts), _choices(record.view_counts), record.random_classes)
    )
    measures = {"boxes": boxes, "views": views, "random_boxes": random}
    measures |= {"boxes_minus_views": boxes - views, "boxes_minus_random": boxes - random}
    return _intervals(measures, np.isfinite(boxes), group, picks)


def _intervals(
    measures: Mapping[str, np.ndarray], keep: np.ndarray, group: np.ndarray, picks: np.ndarray
) -> dict[str, Any]:
    """Mean and 95 % bootstrap interval of each measure; every measure sees the same resampled groups."""
    return {name: _interval(values, keep & np.isfinite(values), group, picks) for name, values in measures.items()}


def _interval(values: np.ndarray, keep: np.ndarray, group: np.ndarray, picks: np.ndarray) -> dict[str, Any]:
    sums = np.bincount(group[keep], values[keep], picks.shape[1])
    counts = np.bincount(group[keep], minlength=picks.shape[1])
    mean = float(sums.sum() / counts.sum()) if counts.any() else None
    low = high = None
    if (counts > 0).sum() >= 2:
        drawn = counts[picks].sum(1)  # a resample may hold no kept view at all
        means = sums[picks].sum(1)[drawn > 0] / drawn[drawn > 0]
        low, high = (float(edge) for edge in np.percentile(means, (2.5, 97.5)))
    return {"mean": mean, "low": low, "high": high, "n": int(keep.sum())}
