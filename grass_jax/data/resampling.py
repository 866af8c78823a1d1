"""Rows of an image or a mask on a finer or coarser grid with the same upper left corner and directions.

In the pixels of one file a change of the ground sampling distance is a stretch of either axis, so no warper is needed:
colours are looked up before they are averaged (a palette's indices and a mask's ids have no mean), what is invalid
stays out of the mean, and rows come out the same whichever way they are asked for.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

STORED_ROWS = 512  # stored rows held at a time, whatever the factor

Rows = Callable[[int, int], np.ndarray]


def new_length(length: int, factor: float) -> int:
    """Length of an axis of `length` pixels on a grid whose pixels are `factor` times as long; 1 at least."""
    return max(1, round(length / factor))


def area_taps(start: int, stop: int, factor: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Which stored pixels a new pixel covers, and how much of it each of them makes up.

    Args:
        start: first new pixel.
        stop: end of the new pixels.
        factor: length of a new pixel in stored ones.
        length: length of the axis in stored pixels.

    Returns:
        (n, t) int64 indices of stored pixels, and (n, t) float32 shares that sum to 1; some are zero.
    """
    low = np.arange(start, stop)[:, None] * factor
    high = np.minimum(low + factor, length)  # the last pixel may reach over the edge by half of its length
    index = np.floor(low).astype(np.int64) + np.arange(math.ceil(factor) + 1)
    share = np.clip(np.minimum(high, index + 1) - np.maximum(low, index), 0, None)
    return np.minimum(index, length - 1), (share / share.sum(1, keepdims=True)).astype(np.float32)


def linear_taps(start: int, stop: int, factor: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The two stored pixels around the centre of a new pixel and their weights; see `area_taps`."""
    centre = (np.arange(start, stop) + 0.5) * factor - 0.5
    index = np.floor(centre)
    index, after = index.astype(np.int64), (centre - index).astype(np.float32)
    return np.clip(np.stack([index, index + 1], 1), 0, length - 1), np.stack([1 - after, after], 1)


def resample_rows(
    rows: Rows, valid: Rows | None, y0: int, y1: int, *, size: tuple[int, int], factors: tuple[float, float]
) -> np.ndarray:
    """Rows of a resampled image: means over the area of larger pixels, bilinear for smaller ones.

    Args:
        rows: rows y0 to y1 of the stored image, (y1 - y0, width, c), of integers or floats.
        valid: its valid pixels, (y1 - y0, width) bool, or values, (y1 - y0, width, c); None where all are. Others, and
            floats that are not finite, have no part in the means.
        y0: first new row.
        y1: end of the new rows.
        size: height and width of the stored image in pixels.
        factors: height and width of a new pixel in stored ones.

    Returns:
        (y1 - y0, new width, c) of the same dtype, integers rounded; 0, or NaN in floats, where nothing is valid.
    """
    pieces = []
    for top, bottom, mean in _means(y0, y1, size, factors):
        stored = rows(top, bottom)
        good = None if valid is None else valid(top, bottom).reshape(*stored.shape[:2], -1)
        if stored.dtype.kind == "f":
            good = np.isfinite(stored) if good is None else good & np.isfinite(stored)
        if good is None:
            means = mean(stored)
        else:
            share, nothing = mean(good), np.nan if stored.dtype.kind == "f" else 0
            means = np.where(share > 1e-6, mean(np.where(good, stored, 0)) / np.maximum(share, 1e-6), nothing)
        if stored.dtype.kind == "u":
            means = np.clip(np.rint(means), 0, np.iinfo(stored.dtype).max)
        pieces.append(means.astype(stored.dtype))
    return np.concatenate(pieces)


def resample_valid(valid: Rows, y0: int, y1: int, *, size: tuple[int, int], factors: tuple[float, float]) -> np.ndarray:
    """Where at least half of the weight of a pixel, or of a value, of `resample_rows` is valid; bool, see `valid`."""
    shares = [mean(valid(top, bottom)) for top, bottom, mean in _means(y0, y1, size, factors)]
    return np.concatenate(shares) > 0.5 - 1e-5


def majority_rows(rows: Rows, y0: int, y1: int, *, size: tuple[int, int], factors: tuple[float, float]) -> np.ndarray:
    """Rows of a resampled mask: the id with the largest area in a larger pixel, the nearest one's in a smaller.

    Args:
        rows: rows y0 to y1 of the stored mask, (y1 - y0, width) uint8; every id counts alike.
        y0: first new row.
        y1: end of the new rows.
        size: height and width of the stored mask in pixels.
        factors: height and width of a new pixel in stored ones.

    Returns:
        (y1 - y0, new width) uint8; the lowest id where several have the same area.
    """
    width = new_length(size[1], factors[1])
    if max(factors) <= 1:
        y, x = (
            np.minimum(((np.arange(*bounds) + 0.5) * factor).astype(np.int64), length - 1)
            for bounds, factor, length in zip([(y0, y1), (0, width)], factors, size, strict=True)
        )
        return rows(int(y[0]), int(y[-1]) + 1)[np.ix_(y - y[0], x)]
    taps_x = area_taps(0, width, factors[1], size[1])
    pieces = []
    for first, last in _pieces(y0, y1, factors[0]):
        index, share = area_taps(first, last, factors[0], size[0])
        top, bottom = int(index.min()), int(index.max()) + 1
        band, taps_y = rows(top, bottom), (index - top, share)
        largest = np.zeros((last - first, width), np.float32)
        chosen = np.zeros((last - first, width), np.uint8)
        for label in np.unique(band):
            area = _weighted(_weighted(band == label, taps_y, 0), taps_x, 1)
            wins = area > largest + 1e-5  # equal areas differ by less, in the rounding of their sums
            largest[wins], chosen[wins] = area[wins], label
        pieces.append(chosen)
    return np.concatenate(pieces)


def _means(y0: int, y1: int, size, factors) -> Iterator[tuple[int, int, Callable[[np.ndarray], np.ndarray]]]:
    """For pieces of some new rows: the stored rows that they need, and a function from those to their means."""
    taps = [area_taps if factor > 1 else linear_taps for factor in factors]
    taps_x = taps[1](0, new_length(size[1], factors[1]), factors[1], size[1])
    for first, last in _pieces(y0, y1, factors[0]):
        index, share = taps[0](first, last, factors[0], size[0])
        top, bottom = int(index.min()), int(index.max()) + 1
        taps_y = index - top, share
        yield top, bottom, lambda band, taps_y=taps_y: _weighted(_weighted(band, taps_y, 0), taps_x, 1)


def _pieces(y0: int, y1: int, factor: float) -> Iterator[tuple[int, int]]:
    step = max(1, int(STORED_ROWS / max(factor, 1)))
    for y in range(y0, y1, step):
        yield y, min(y + step, y1)


def _weighted(array: np.ndarray, taps: tuple[np.ndarray, np.ndarray], axis: int) -> np.ndarray:
    """Weighted sums of the entries of one axis, one tap at a time: nothing as large as all taps is ever held."""
    index, share = taps
    shape = [1] * array.ndim
    shape[axis] = len(index)
    return sum(np.take(array, index[:, tap], axis) * share[:, tap].reshape(shape) for tap in range(index.shape[1]))  # pyright: ignore[reportReturnType]
