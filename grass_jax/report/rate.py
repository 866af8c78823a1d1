"""How fast a session steps, without the compilation at the start of each phase."""

import time
from collections import deque
from collections.abc import Callable


class Rate:
    """Measures steps per second of the current phase.

    The first step of a phase holds its compilation and is left out: measuring begins when it ends. Phases have step
    functions of their own, so that the speed of the last one says little about the next.

    Args:
        clock: Returns the time in seconds.
        window: Number of latest calls that `recent` looks at.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, window: int = 20):
        self._clock = clock
        self._phase: str | None = None
        self._first = (0, 0.0)
        self._marks: deque[tuple[int, float]] = deque(maxlen=window + 1)

    def mark(self, step: int, phase: str) -> None:
        """Notes that a step has ended.

        Args:
            step: Updates done.
            phase: Name of the phase that the step belongs to.
        """
        now = (step, self._clock())
        if phase != self._phase:
            self._phase, self._first = phase, now
            self._marks.clear()
        self._marks.append(now)

    def leave_out(self, seconds: float) -> None:
        """Says that this much time since the last step went into other work: `average` counts it, `recent` does not."""
        self._marks = deque([(step, when + seconds) for step, when in self._marks], maxlen=self._marks.maxlen)

    @property
    def recent(self) -> float | None:
        """Steps per second over the latest calls; None until two steps of the phase have ended."""
        return _speed(self._marks[0], self._marks[-1]) if self._marks else None

    @property
    def average(self) -> float | None:
        """Steps per second since the first step of the phase in this session; None until two steps have ended."""
        return _speed(self._first, self._marks[-1]) if self._marks else None


def _speed(begin: tuple[int, float], end: tuple[int, float]) -> float | None:
    steps, seconds = end[0] - begin[0], end[1] - begin[1]
    return steps / seconds if steps > 0 and seconds > 0 else None
