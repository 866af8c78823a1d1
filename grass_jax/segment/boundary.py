"""Boundary F1: how well the outlines of the classes are found, up to a tolerance."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from grass_jax.data.labels import IGNORE
from grass_jax.segment.metrics import check_ids


def boundary_counts(truth: np.ndarray, prediction: np.ndarray, classes: int, tolerance: float) -> np.ndarray:
    """Counts for each class the boundary pixels of a scene, and those that the other side has near by.

    A boundary pixel of a class belongs to it and has a neighbour (up, down, left, right) of another class. Ignored
    pixels make no boundary, and nor does the edge of the scene; what is predicted on ignored pixels does not exist.

    Args:
        truth: (h, w) ids with IGNORE.
        prediction: (h, w) ids.
        classes: their number k.
        tolerance: greatest Euclidean distance between two boundary pixels that match, pixels.

    Returns:
        (k, 4) int64: boundary pixels of the prediction, how many of them match, boundary pixels of the truth, how many
        of them match. Add them up over scenes.

    Raises:
        ValueError: an id is no class, or the shapes differ.

    Source: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013.
    """
    check_ids(truth, prediction, classes)
    prediction = np.where(truth == IGNORE, IGNORE, prediction)
    found, wanted = (np.where(_edges(ids), ids, IGNORE) for ids in (prediction, truth))
    counts = np.zeros((classes, 4), np.int64)
    for c in range(classes):
        sides = found == c, wanted == c
        for column, (mine, other) in ((0, sides), (2, sides[::-1])):
            counts[c, column : column + 2] = mine.sum(), _near(mine, other, tolerance)
    return counts


def boundary_f1(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Turns boundary counts, added up over scenes, into an F1 for each class.

    Args:
        counts: (k, 4) from `boundary_counts`.
        classes: their k names.

    Returns:
        "f1": {class: harmonic mean of precision and recall of its boundary pixels}, "mean": over the classes that have
        one, "absent": names of those without a boundary in truth and prediction (None, left out of the mean). A class
        with a boundary on one side only has 0.
    """
    f1: dict[str, float | None] = {}
    for name, (found, right, wanted, recalled) in zip(classes, np.asarray(counts).tolist(), strict=True):
        precision, recall = right / max(found, 1), recalled / max(wanted, 1)
        if found + wanted == 0:
            f1[name] = None
        else:
            f1[name] = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    present = [value for value in f1.values() if value is not None]
    return {
        "mean": float(np.mean(present)) if present else None,
        "f1": f1,
        "absent": [name for name, value in f1.items() if value is None],
    }


def _edges(ids: np.ndarray) -> np.ndarray:
    """(h, w) bool: pixels with a neighbour of another class."""
    edges = np.zeros(ids.shape, bool)
    for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = (ids[here] != ids[there]) & (ids[here] != IGNORE) & (ids[there] != IGNORE)
        edges[here] |= differ
        edges[there] |= differ
    return edges


def _near(mine: np.ndarray, other: np.ndarray, tolerance: float) -> int:
    """Number of pixels of `mine` with one of `other` within the tolerance."""
    # Outlines are few pixels: looking at the disc around each is many times quicker than a distance transform.
    reach = int(tolerance)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    square = dy**2 + dx**2
    nearest_first = np.argsort(square, kind="stable")[: np.count_nonzero(square <= tolerance**2)]
    framed = np.pad(other, reach)
    places = np.flatnonzero(np.pad(mine, reach))
    pixels = len(places)
    for step in (dy * framed.shape[1] + dx)[nearest_first]:
        places = places[~framed.reshape(-1)[places + step]]  # who has found one looks no further
    return pixels - len(places)
