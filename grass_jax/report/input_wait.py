"""Whether the devices wait for tiles: what says that more reading processes would make a run faster."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from absl import logging

Batch = TypeVar("Batch")
NOTICEABLE = 0.1  # of the time from batch to batch; a shorter wait is no wait
OFTEN = 0.5  # share of late batches, twice in a row, with which a run says what to change


class InputWait:
    """Counts the batches that came late: the devices had done everything and waited.

    Args:
        idle: whether the devices have nothing more to do.
        clock: returns the time in seconds.
        advise: says once, in the log, what to change where many batches are late.
    """

    def __init__(self, idle: Callable[[], bool], *, clock: Callable[[], float] = time.monotonic, advise: bool = True):
        self._idle, self._clock, self._advise = idle, clock, advise
        self._late = self._count = 0
        self._often = False

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Passes batches on and counts them, but for the first, whose readers start."""
        batches, before = iter(batches), None
        while True:
            asked = self._clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            now = self._clock()
            if before is not None:
                self._count += 1
                self._late += self._idle() and now - asked > NOTICEABLE * (now - before)
            before = now
            yield batch

    def share(self) -> float | None:
        """Share of late batches since the last call, 0 to 1; None if there were none."""
        share = self._late / self._count if self._count else None
        self._late = self._count = 0
        often = share is not None and share > OFTEN
        if self._advise and often and self._often:
            self._advise = False
            logging.warning(
                "The devices had to wait for the tiles of %.0f %% of the last steps: more reading processes "
                "(config.data.workers) may make the run faster, if there are CPU cores for them.",
                100 * (share or 0),
            )
        self._often = often
        return share
