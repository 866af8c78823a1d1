"""Run a network over scenes of any size in overlapping windows, and blend what it says into strips without seams."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from grass_jax.data.tiles import axis_positions

PANEL = 16384  # columns; with 512 rows of 7 classes this is 235 MB
FLOOR = 1e-3  # of the weight at the rim of a window: small, but what only one window sees has to count


class Strip(NamedTuple):
    """Finished rows of a scene: number of the scene, upper left corner in pixels, blended logits (rows, width, k)."""

    scene: int
    y0: int
    x0: int
    logits: np.ndarray


def blend_weight(window: int) -> np.ndarray:
    """Weight of a window's pixels along one axis; the weight of a pixel is the product of those of its row and column.

    A raised cosine on a small floor: a network knows least about what lies at the rim of its window, and a weight that
    vanishes smoothly there leaves no seam.

    Args:
        window: side of the window in pixels.

    Returns:
        (t,) float32, positive and symmetric, largest in the middle.
    """
    angle = np.pi * (np.arange(window) + 0.5) / window
    return (FLOOR + (1 - FLOOR) * np.sin(angle) ** 2).astype(np.float32)


def sliding(
    forward: Callable[[np.ndarray], Any],
    scenes: Iterable[Any],
    *,
    window: int,
    overlap: float = 0.5,
    batch_size: int = 8,
    panel: int = PANEL,
    broken: Callable[[int, Exception], None] | None = None,
) -> Iterator[Strip]:
    """Logits of whole scenes: windows blended by `blend_weight`, given out in strips as soon as they are final.

    Windows stream through batches of one size, over the ends of rows and scenes; only the last batch is filled up. The
    next batch is handed to the device before the result of the last one is waited for. Host memory holds one row of
    windows of one panel. A scene of one window gives exactly what `forward` gives; a smaller one is padded by
    reflection.

    Args:
        forward: (n, t, t, c) -> logits (n, t, t, k), an array that may still be on its way.
        scenes: each with `height`, `width`, `rows(y0, y1)` -> (y1 - y0, width, c) and, where it has one,
            `valid(y0, y1)` -> (y1 - y0, width) bool: windows without a valid pixel are not computed, and the logits of
            what is not valid mean nothing. A scene is read until the next one is asked for, its strips come later.
        window: side t of a window in pixels.
        overlap: share of a window that the next one covers again, 0 <= overlap < 1.
        batch_size: windows a batch.
        panel: columns that are worked on at once; wider scenes are cut. A window over a cut is computed on both sides,
            so the cut does not show.
        broken: called with the number of a scene and the reason when its rows cannot be read; the scene ends there and
            the next one goes on. None raises the error.

    Yields:
        the strips of each panel from top to bottom, panels from left to right, scenes in order.

    Raises:
        ValueError: if `overlap`, `window`, `batch_size` or `panel` is out of range.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be at least 0 and below 1, not {overlap}.")
    if min(window, batch_size, panel) < 1:
        raise ValueError(f"window, batch_size and panel must be at least 1, not {window}, {batch_size} and {panel}.")
    stride = max(1, round(window * (1 - overlap)))
    steps = _all_steps(scenes, window=window, stride=stride, panel=panel, broken=broken)
    ahead: tuple[list[_Step], Any] | None = None
    for waiting, tiles in _batches(steps, batch_size):
        logits = () if tiles is None else forward(tiles)
        if ahead is not None:
            yield from _blend(*ahead)
        ahead = waiting, logits
    if ahead is not None:
        yield from _blend(*ahead)


class _Step(NamedTuple):
    """A window of a panel by its row and column of windows; column -1 says that the row of windows is complete."""

    panel: "_Panel"
    row: int
    column: int


class _Panel:
    """Columns x0 to x1 of a scene: where its windows lie, and the rows that they still add to."""

    def __init__(self, scene: int, size: tuple[int, int], x0: int, x1: int, window: int, stride: int):
        self.scene, self.height, self.x0, self.x1 = scene, size[0], x0, x1
        height, width = (max(length, window) for length in size)
        self.ys, self.y_shares = _axis(height, window, stride)
        xs, x_shares = _axis(width, window, stride)
        near = (xs < x1) & (xs + window > x0)
        self.xs, self.x_shares = xs[near], x_shares[near]
        self._rows = np.zeros((0, 0, 0), np.float32)

    def add(self, row: int, column: int, logits: np.ndarray) -> None:
        """Adds the share of one window's logits (t, t, k)."""
        size, left = len(logits), self.xs[column] - self.x0
        if not self._rows.size:
            self._rows = np.zeros((size, self.x1 - self.x0, logits.shape[-1]), np.float32)
        inside = slice(max(0, -left), min(size, self.x1 - self.x0 - left))
        share = self.y_shares[row, :, None, None] * self.x_shares[column, inside, None]
        self._rows[:, left + inside.start : left + inside.stop] += share * logits[:, inside]

    def finish(self, row: int) -> Strip:
        """Takes out the rows that no later window touches, and moves up what lies below them."""
        size, y0 = len(self._rows), self.ys[row]
        done = self.ys[row + 1] - y0 if row + 1 < len(self.ys) else size
        strip = Strip(self.scene, int(y0), self.x0, self._rows[: min(done, self.height - y0)].copy())
        for y in range(0, size - done, done):  # in blocks, or NumPy would make a copy of the whole for safety
            block = min(done, size - done - y)
            self._rows[y : y + block] = self._rows[y + done : y + done + block]
        self._rows[size - done :] = 0
        return strip


def _axis(length: int, window: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts (n,) of the windows along an axis, and the shares (n, t) of each in the pixels that it covers."""
    starts = axis_positions(length, window, stride)
    weight, total = blend_weight(window).astype(np.float64), np.zeros(length)
    for start in starts:
        total[start : start + window] += weight
    # Shares rather than weights to divide by in the end: where one window is alone its share is exactly 1.
    return starts, np.stack([weight / total[start : start + window] for start in starts]).astype(np.float32)


def _all_steps(scenes: Iterable[Any], *, window: int, stride: int, panel: int, broken) -> Iterator[tuple[_Step, Any]]:
    for number, scene in enumerate(scenes):
        try:
            for x0 in range(0, scene.width, panel):
                x1 = min(x0 + panel, scene.width)
                yield from _steps(scene, _Panel(number, (scene.height, scene.width), x0, x1, window, stride), window)
        except MemoryError:
            raise
        except Exception as error:  # decoders answer a broken file with anything
            if broken is None:
                raise
            broken(number, error)


def _steps(scene: Any, panel: _Panel, window: int) -> Iterator[tuple[_Step, np.ndarray | None]]:
    """The windows of a panel with their pixels, and after each row of windows a step without pixels."""
    columns = slice(panel.xs[0], panel.xs[-1] + window)
    pixels = _window_rows(scene.rows, scene.height, columns, panel.ys, window)
    valid = getattr(scene, "valid", None)
    masks = _window_rows(valid, scene.height, columns, panel.ys, window) if valid is not None else None
    for row, image in enumerate(pixels):
        mask = next(masks) if masks is not None else None
        for column, x in enumerate(panel.xs - panel.xs[0]):
            here = (slice(None), slice(x, x + window))
            # The first window is always computed: it says how many classes there are.
            if mask is None or (row, column) == (0, 0) or mask[here].any():
                yield _Step(panel, row, column), image[here]
        yield _Step(panel, row, -1), None


def _window_rows(
    read: Callable[[int, int], np.ndarray], height: int, columns: slice, ys: np.ndarray, window: int
) -> Iterator[np.ndarray]:
    """The pixels under each row of windows, (t, columns, ...); every row of the scene is read once."""
    top, kept = ys[0], None
    for y in ys:
        begin = y if kept is None else top + len(kept)
        new = read(int(begin), int(min(y + window, height)))[:, columns]
        kept = new if kept is None else np.concatenate([kept[y - top :], new])
        top = y
        missing = [(0, window - len(kept)), (0, columns.stop - columns.start - kept.shape[1])]
        if max(missing) > (0, 0):
            yield np.pad(kept, missing + [(0, 0)] * (kept.ndim - 2), mode="reflect")
        else:
            yield kept


def _batches(
    steps: Iterator[tuple[_Step, np.ndarray | None]], batch_size: int
) -> Iterator[tuple[list[_Step], np.ndarray | None]]:
    waiting, tiles = [], []
    for step, tile in steps:
        waiting.append(step)
        if tile is not None:
            tiles.append(tile)
        if len(tiles) == batch_size:
            yield waiting, np.stack(tiles)
            waiting, tiles = [], []
    if tiles:
        tiles += [np.zeros_like(tiles[0])] * (batch_size - len(tiles))
    if waiting:
        yield waiting, np.stack(tiles) if tiles else None


def _blend(steps: list[_Step], logits: Any) -> Iterator[Strip]:
    windows = iter(np.asarray(logits, np.float32))
    for panel, row, column in steps:
        if column < 0:
            yield panel.finish(row)
        else:
            panel.add(row, column, next(windows))
