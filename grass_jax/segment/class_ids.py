"""Class ids of whole scenes, by one head of a network or by several at once."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from grass_jax.data.faults import DataError
from grass_jax.data.labelled import LabelledScene, OpenedScene
from grass_jax.data.rasters import reason
from grass_jax.segment.model import Forward
from grass_jax.segment.windows import PANEL, sliding

PAUSE = 5.0  # seconds until a scene that could not be read is tried once more: a network disk comes back


def predict_scenes(
    forward: Forward,
    scenes: Sequence[LabelledScene],
    *,
    window: int,
    overlap: float,
    batch_size: int,
    heads: int = 1,
    panel: int = PANEL,
) -> Iterator[tuple[int, OpenedScene, np.ndarray]]:
    """Predicts scenes one after the other.

    Args:
        forward: as for `evaluate_heads`.
        scenes: to be opened one by one.
        window: side of a window, pixels.
        overlap: share of a window that it has in common with the next one.
        batch_size: windows at once; rounded up to a multiple of the devices.
        heads: number of predictions that the logits hold.
        panel: as for `sliding`, pixels.

    Yields:
        number, open scene and (heads, h, w) uint8 class ids of each.

    Raises:
        DataError: a scene cannot be read, now or when its labels are asked for.
    """
    devices = len(jax.local_devices())
    opened: dict[int, OpenedScene] = {}
    with contextlib.ExitStack() as everything:
        stacks: dict[int, contextlib.ExitStack] = {}

        def opening() -> Iterator[OpenedScene]:
            for i, scene in enumerate(scenes):
                stacks[i] = everything.enter_context(contextlib.ExitStack())
                opened[i] = _opened(scene, stacks[i])
                yield opened[i]

        current, predictions = -1, np.zeros((heads, 0, 0), np.uint8)
        options: dict[str, Any] = {"window": window, "overlap": overlap, "panel": panel}
        for strip in sliding(forward, opening(), batch_size=-(-batch_size // devices) * devices, **options):
            if strip.scene != current:
                if current >= 0:
                    yield current, opened.pop(current), predictions
                    stacks.pop(current).close()
                current = strip.scene
                predictions = np.zeros((heads, opened[current].height, opened[current].width), np.uint8)
            columns = slice(strip.x0, strip.x0 + strip.logits.shape[1])
            for y, row in enumerate(strip.logits, strip.y0):
                predictions[:, y, columns] = _largest(row, heads)
        if current >= 0:
            yield current, opened.pop(current), predictions


def _opened(scene: LabelledScene, stack: contextlib.ExitStack) -> OpenedScene:
    """The scene, open as long as the stack; what goes wrong twice when it is read is a DataError that names it."""
    current: OpenedScene | None = None

    def read(part: Callable[[OpenedScene], Any], again: bool = False) -> Any:
        nonlocal current
        try:
            if current is None or again:  # a handle that failed once may do so for ever
                current = stack.enter_context(scene.open())
            return part(current)
        except MemoryError:
            raise
        except Exception as error:  # decoders answer a broken file with anything
            why = f"{scene.name} cannot be read ({reason(error)}): mend it or bring its disk back."
            if again:
                raise DataError(why) from error
        logging.warning("%s Trying once more.", why)
        time.sleep(PAUSE)
        return read(part, again=True)

    return read(lambda opened: opened)._replace(
        rows=lambda y0, y1: read(lambda opened: opened.rows(y0, y1)),
        mask=lambda y0, y1: read(lambda opened: opened.mask(y0, y1)),
    )


def _largest(logits: np.ndarray, heads: int) -> np.ndarray:
    """Class ids (heads, w) uint8 of logits (w, heads k): the first of the largest, as of `argmax`.

    Class by class over whole rows of pixels: `argmax` over an axis of a few numbers takes four times longer.
    """
    by_class = np.ascontiguousarray(logits.T).reshape(heads, -1, len(logits)).swapaxes(0, 1)
    largest, ids = by_class[0], np.zeros((heads, len(logits)), np.uint8)
    for number, its in enumerate(by_class[1:], 1):
        ids[its > largest] = number
        largest = np.maximum(largest, its)
    return ids
