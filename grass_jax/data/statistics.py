"""What the bands of a data set hold, measured on an evenly thinned sample of the pixels of all its tiles."""

import numpy as np

from grass_jax.bands import Bands
from grass_jax.data.layout import Layout

MOST_PIXELS = 1 << 20  # 64 MB of 16 float bands
ACROSS = 16  # pixels that are taken along a side of a tile
PERCENTILES = (0.5, 99.5)


class PixelSample:
    """Pixels on a grid of every tile, or of every 2nd, 4th, ... where those of all are too many; nothing is random.

    Args:
        layout: of the tiles.
        most: pixels that are kept at most.
    """

    def __init__(self, layout: Layout, most: int = MOST_PIXELS):
        self.layout, self.most = layout, most
        self._every, self._seen, self._kept, self._size = 1, 0, [], 0

    def add(self, tile: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Take a tile's pixels.

        Args:
            tile: (t, t, c) as stored.
            valid: (t, t) bool, which pixels hold an image; None where all do. Others have no part.
        """
        if self._seen % self._every == 0:
            step = -(-tile.shape[0] // ACROSS)
            grid = slice(step // 2, None, step), slice(step // 2, None, step)
            pixels = tile[grid].reshape(-1, tile.shape[-1]) if valid is None else tile[grid][valid[grid]]
            self._kept.append(pixels.copy())  # a view would keep whole rows of the scene in memory
            self._size += len(pixels)
        self._seen += 1
        while self._size > self.most and len(self._kept) > 1:
            self._kept = self._kept[::2]
            self._every *= 2
            self._size = sum(map(len, self._kept))

    def bands(self) -> Bands:
        """The bands of the layout with what was measured.

        Returns:
            `low` and `high` are 0 and 255 for 8 bits and the percentiles 0.5 and 99.5 of the values otherwise, the
            smallest and the largest value where these are equal, and 1 apart (or the value itself, if that is larger)
            where those are equal too. `mean` and `std` are those of the values scaled to [0, 1] by them and clipped;
            the `std` of a constant band is 1.
        """
        numbers, dtype, rgb = self.layout
        pixels = np.concatenate(self._kept) if self._size else np.zeros((1, len(numbers)), dtype)
        measured = [_measure(values.astype(np.float64), dtype) for values in pixels.T]
        low, high, mean, std = zip(*measured, strict=True)
        return Bands(numbers, dtype, low, high, mean, std, rgb)


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
