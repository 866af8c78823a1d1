"""The one line that says where a run stands."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

from grass_jax.report.rate import Rate


class Unfailing:
    """A stream where a write that fails costs nothing: the disk of a log fills up, and the reader of a pipe goes."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Passes on what can be passed on."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str) -> None:
    """Writes a line to standard error, if it can be written."""
    print(text, file=Unfailing(sys.stderr), flush=True)


def counter(iterable: Any = None, **options: Any) -> tqdm:
    """Makes a line that counts pieces of work of any kind; in a file, where every state stays, it shows rarely.

    Args:
        iterable: what to count; None counts by `update`.
        **options: tqdm's `desc`, `total`, `unit`, `unit_scale`, `disable`.
    """
    pause = 0.5 if sys.stderr.isatty() else 30
    options = {"mininterval": pause, "file": Unfailing(sys.stderr), "dynamic_ncols": True} | options
    return tqdm(iterable, **options)


class Progress:
    """Shows phase, epoch, loss, images per second and the time left over the whole run.

    On a terminal it is a bar that is drawn over; elsewhere (a file, a notebook, a scheduler's log) a plain line now and
    then. The time left is what remains of all phases at the speed of the current one in this session.

    Args:
        total_steps: Steps of the whole run, all phases together.
        start_step: Steps done before this session.
        images_per_step: Tiles in a global batch.
        enabled: False shows nothing (every process but the first); the rates are measured all the same.
        stream: Where to write; standard error by default.
        every_seconds: Time between two plain lines.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        images_per_step: int,
        enabled: bool = True,
        stream: TextIO | None = None,
        every_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._step, self._images = total_steps, start_step, images_per_step
        self._enabled, self._stream = enabled, Unfailing(stream or sys.stderr)
        self._every, self._clock = every_seconds, clock
        self._rate = Rate(clock)
        self._phase, self._line, self._shown_at, self._shown_step = "", "", clock(), -1
        self._bar: tqdm | None = None
        self._cleared: list[tuple[logging.Handler, logging.Filter]] = []
        if enabled and self._stream.isatty():
            self._open_bar()

    def update(self, step: int, *, phase: str, epoch: int, epochs: int, loss: float | None = None) -> None:
        """Says that a step has ended.

        Args:
            step: Updates done in the whole run.
            phase: Name of the phase.
            epoch: Epoch of the step in its phase, from 1.
            epochs: Epochs of the phase.
            loss: The latest loss that is known; None while there is none.
        """
        self._rate.mark(step, phase)
        advance, self._step = step - self._step, step
        if not self._enabled:
            return
        where = f"{phase} epoch {epoch}/{epochs}"
        numbers = [f"loss {loss:.4f}"] if loss is not None else []
        if self.images_per_second is not None:
            digits = 1 if self.images_per_second < 100 else 0
            numbers.append(f"{self.images_per_second:.{digits}f} images/s")
        if self.seconds_left is not None:
            numbers.append(f"{tqdm.format_interval(self.seconds_left)} left")
        if self._bar is not None:
            self._bar.set_description_str(where, refresh=False)
            self._bar.set_postfix_str(", ".join(numbers), refresh=False)
            self._bar.update(advance)
            return
        self._line = ", ".join([where, f"step {step}/{self._total}", *numbers])
        # A new phase shows at once that it has compiled; after that time decides, however short or long an epoch is.
        if phase != self._phase or step >= self._total or self._clock() - self._shown_at >= self._every:
            self._show_line()
        self._phase = phase

    @property
    def images_per_second(self) -> float | None:
        """Tiles per second over the latest steps; None until two steps of the phase have ended."""
        return None if self._rate.recent is None else self._rate.recent * self._images

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end of the run at this session's speed; None until two steps of the phase have ended."""
        return None if self._rate.average is None else (self._total - self._step) / self._rate.average

    def leave_out(self, seconds: float) -> None:
        """Keeps time that went into other work, such as a probe, out of `images_per_second`."""
        self._rate.leave_out(seconds)

    def close(self) -> None:
        """Leaves the last state standing and ends the line; a second call does nothing."""
        for handler, clear in self._cleared:
            handler.removeFilter(clear)
        self._cleared = []
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._line and self._shown_step != self._step:
            self._show_line()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _open_bar(self) -> None:
        self._bar = tqdm(
            total=self._total,
            initial=self._step,
            desc="starting",
            file=self._stream,
            miniters=1,  # decide by time at every step: steps may become slower
            mininterval=0.2,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )
        for handler in logging.getLogger().handlers:
            clear = _ClearLine(self._bar)
            handler.addFilter(clear)
            self._cleared.append((handler, clear))

    def _show_line(self) -> None:
        print(self._line, file=self._stream, flush=True)
        self._shown_at, self._shown_step = self._clock(), self._step


class _ClearLine(logging.Filter):
    """Wipes the bar before a log record is written; the next step draws it again on the line below."""

    def __init__(self, bar: tqdm):
        super().__init__()
        self._bar = bar

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass."""
        self._bar.clear()
        return True
