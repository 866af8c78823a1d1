"""How long a run waits for its tiles: what says whether more reading processes would make it faster."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from absl import logging

Batch = TypeVar("Batch")
MUCH = 0.1  # share of the time above which a run says what to change


class InputWait:
    """The share of the time in which the next batch was not ready.

    Args:
        clock: returns the time in seconds.
        advise: says once, in the log, what to change where the share is large.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, advise: bool = True):
        self._clock, self._advise = clock, advise
        self._waited, self._since = 0.0, clock()

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Passes batches on and adds up the seconds until each is there, but for the first, whose readers start."""
        batches = iter(batches)
        first = True
        while True:
            asked = self._clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if not first:
                self._waited += self._clock() - asked
            first = False
            yield batch

    def share(self) -> float:
        """Share of the time since the last call (or the beginning), 0 to 1, in which batches were waited for."""
        now = self._clock()
        elapsed, waited = now - self._since, self._waited
        self._since, self._waited = now, 0.0
        share = waited / elapsed if elapsed > 0 else 0.0
        if self._advise and share > MUCH:
            self._advise = False
            logging.warning(
                "%.0f %% of the time of the last steps went into waiting for tiles: more reading processes "
                "(config.data.workers) make the run faster, if there are CPU cores for them.",
                100 * share,
            )
        return share
