"""What the bands of a data set hold, measured on an evenly thinned sample of the pixels of all its tiles."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from grass_jax.bands import Bands
from grass_jax.data.layout import Layout

MOST_PIXELS = 1 << 20  # 64 MB of 16 float bands
ACROSS = 16  # pixels that are taken along a side of a tile
PERCENTILES = (0.5, 99.5)
FREQUENT, DIFFERENT = 0.01, 16  # what is said to look like nodata: see `_outlier`


class Outlier(NamedTuple):
    """A frequent value far from all others of its band, as nodata without a tag is.

    Attributes:
        number: of the band, from 1.
        value: the value.
        share: of the band's pixels that have it.
        low: where the others begin.
        high: where the others end.
    """

    number: int
    value: float
    share: float
    low: float
    high: float


class PixelSample:
    """Pixels on a grid of every tile, every 2nd, 4th, ... of these where they become too many; nothing is random.

    Args:
        layout: of the tiles.
        most: pixels that are kept at most, or one of every tile.
    """

    def __init__(self, layout: Layout, most: int = MOST_PIXELS):
        self.layout, self.most = layout, most
        self._every, self._kept, self._size = 1, [], 0

    def add(self, tile: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Take a tile's pixels.

        Args:
            tile: (t, t, c) as stored; values that are not finite have no part in their band.
            valid: (t, t) or (t, t, c) bool, which pixels or values count; None where all do.
        """
        step = -(-tile.shape[0] // ACROSS)
        grid = slice(step // 2, None, step), slice(step // 2, None, step)
        pixels = tile[grid].reshape(-1, tile.shape[-1])
        good = np.isfinite(pixels)
        if valid is not None:
            good &= valid[grid].reshape(len(pixels), -1)
        some = good.any(axis=1)
        self._keep([(pixels[some], good[some])], self._every)
        while self._size > self.most and self._every < ACROSS**2:
            self._every *= 2
            kept, self._kept, self._size = self._kept, [], 0
            self._keep(kept, 2)

    def _keep(self, parts: Sequence[tuple[np.ndarray, np.ndarray]], every: int) -> None:
        # Copies, as a view would keep all of the array in memory.
        self._kept += [(pixels[::every].copy(), good[::every].copy()) for pixels, good in parts]
        self._size += sum(-(-len(pixels) // every) for pixels, _ in parts)

    def bands(self) -> Bands:
        """The bands of the layout with what was measured, each on its own values.

        Returns:
            `low` and `high` are 0 and 255 for 8 bits and the percentiles 0.5 and 99.5 of the values otherwise, the
            smallest and the largest value where these are equal, and 1 apart (or the value itself, if that is larger)
            where those are equal too. `mean` and `std` are those of the values scaled to [0, 1] by them and clipped;
            the `std` of a constant band is 1. A band without a value counts as one of zeros.
        """
        numbers, dtype, rgb = self.layout
        measured = [_measure(values if len(values) else np.zeros(1), dtype) for values in self._values()]
        low, high, mean, std = zip(*measured, strict=True)
        return Bands(numbers, dtype, low, high, mean, std, rgb)

    def outliers(self) -> list[Outlier]:
        """The bands that seem to hold nodata without a tag; none of 8 bits, whose 0 and 255 are mostly colours."""
        if self.layout.dtype == "uint8":
            return []
        found = zip(self.layout.numbers, map(_outlier, self._values()), strict=True)
        return [Outlier(number, *outlier) for number, outlier in found if outlier]

    def _values(self) -> Iterator[np.ndarray]:
        """The values (n,) of one band after the other that count, float64."""
        for channel in range(len(self.layout.numbers)):
            parts = [pixels[good[:, channel], channel] for pixels, good in self._kept]
            yield np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def _outlier(values: np.ndarray) -> tuple[float, float, float, float] | None:
    """The value, share and the others' range of an `Outlier` in a band's values (n,).

    That is the smallest or the largest value if more than 1 % of the pixels have it and the gap to the next one is
    more than a quarter of the range, from percentile 0.5 to 99.5, of all others. What a sensor cuts off at the end of
    its range has others just below, and so has the end of a scale: only a handful of levels could lie so far apart.
    """
    for value in (values.min(), values.max()) if len(values) else ():
        others = values[values != value]
        if not len(others) or len(values) - len(others) <= FREQUENT * len(values):
            continue
        low, high = np.percentile(others, PERCENTILES)
        if np.abs(others - value).min() > (high - low) / 4 and len(np.unique(others)) >= DIFFERENT:
            return float(value), 1 - len(others) / len(values), float(others.min()), float(others.max())
    return None


def _measure(values: np.ndarray, dtype: str) -> tuple[float, float, float, float]:
    """What becomes 0 and 1, and mean and standard deviation between these, of a band's values (n,)."""
    low, high = (0.0, 255.0) if dtype == "uint8" else map(float, np.percentile(values, PERCENTILES))
    if not _apart(low, high):
        low, high = float(values.min()), float(values.max())
    if not _apart(low, high):
        high = low + max(1.0, abs(low))
    scaled = np.clip((values - low) / (high - low), 0, 1)
    std = float(scaled.std())
    return low, high, float(scaled.mean()), std if std > 1e-6 else 1.0


def _apart(low: float, high: float) -> bool:
    """Whether two values differ by more than the rounding of float32, in which they are used."""
    return high - low > max(1e-6 * max(abs(low), abs(high)), 1e-30)
