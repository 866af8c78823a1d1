"""Stopping in good order: a signal ends the step and saves, and all processes do so after the same step.

Spot machines, Slurm and Kubernetes send SIGTERM some time before they kill, Ctrl-C sends SIGINT, and a terminal that
closes, or an ssh connection that breaks, sends SIGHUP. JAX has a pre-emption service of its own; it swallows every
later SIGTERM, knows no Ctrl-C and cannot speak while a step compiles, so the flag goes round here.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from grass_jax.sharding import sum_over_processes

# EX_TEMPFAIL of sysexits.h, "try again later", which a scheduler can be told to restart; a shell's code for Ctrl-C
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGHUP: 75}
ENDING = (signal.SIGTERM, signal.SIGHUP)  # of processes without a handler, with 128 + its number as exit code
APART = 1.0  # seconds: launchers pass on a signal that the whole process group has got, and that is one signal
TOGETHER = 5.0  # seconds between two questions to the other processes; spot machines give 30 or more
AHEAD = 50  # steps to the next question at the most: they may become slower before it, as where a disk does


class Stopped(Exception):
    """A run has saved and stopped because a signal asked for it.

    Attributes:
        step: updates done and saved.
        code: for the program to exit with.
    """

    def __init__(self, step: int, signum: int):
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}, which is saved; the same command goes on."
        )
        self.step, self.code = step, EXIT_CODES[signal.Signals(signum)]


class Signals:
    """While entered, notes the first signal; another SIGTERM or SIGINT ends the program as ever.

    What was started with `nohup` goes on ignoring SIGHUP. A thread says at once what will happen, since Python's own
    handlers wait while a step compiles. Outside the main thread, as in some notebooks, nothing is changed.

    Args:
        what: names what is finished first, for the message.

    Attributes:
        received: number of the first signal; None while there is none.
    """

    def __init__(self, what: str = "this step"):
        self._what, self.received = what, None
        self._first: float | None = None  # when it was heard
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        # noted before it is announced, here and at the end: what is announced must not be lost
        noted = [s for s in EXIT_CODES if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
        self._before = {signum: signal.signal(signum, self._note) for signum in noted}
        self._stop_listening = _listen(self._speak)
        return self

    def __exit__(self, *_) -> None:
        if not self._before:
            return
        self._stop_listening()
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # pyright: ignore[reportArgumentType]
        self._before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = signum, now
        elif now - self._at >= APART and signum == signal.SIGINT:
            raise KeyboardInterrupt

    def _speak(self, number: int) -> None:
        if number not in EXIT_CODES:
            return
        name, now = signal.Signals(number).name, time.monotonic()
        if self._first is None:
            self._first = now
            logging.warning("%s: saving after %s and stopping; a second one stops at once.", name, self._what)
        elif now - self._first >= APART and number == signal.SIGTERM:
            os._exit(128 + number)  # the main thread may be in a compiler that never looks up


def end_as_others_do() -> None:
    """Lets SIGTERM and SIGHUP end the first process of a container at once, as they end any other process.

    The kernel keeps signals without a handler from it. `Signals` answers them while it is entered.
    """
    if os.getpid() != 1:
        return
    for signum in ENDING:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, lambda *_: None)
    _listen(lambda number: os._exit(128 + number) if number in ENDING else None)


def _listen(heard: Callable[[int], None]) -> Callable[[], None]:
    """Calls a function with the number of each signal that has a handler, in a thread, until the one returned ends it.

    The main thread's own handlers wait while it is in a compiler.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def listen() -> None:
        while numbers := os.read(reading, 16):
            for number in numbers:
                heard(number)
        os.close(reading)

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()

    def end() -> None:
        signal.set_wakeup_fd(before)
        os.close(writing)  # the listener reads the end
        listener.join()

    return end


class Verdict(NamedTuple):
    """What is to be done after a step: save the state, and stop (the signal's number; 0 goes on)."""

    save: bool
    stop: int


class Watch:
    """Says after each step, alike on all processes, whether to save because of the time or to stop.

    One process decides after every step. Several ask each other now and then, after steps that process 0 chooses by
    its clock: the question waits for all of them.

    Args:
        signals: entered.
        save_after: seconds between two checkpoints; 0 leaves them to others.
        start: updates done before the first step.
        clock: tells the time in seconds; process 0's counts.
    """

    def __init__(
        self, signals: Signals, *, save_after: float, start: int = 0, clock: Callable[[], float] = time.monotonic
    ):
        self._signals, self._save_after, self._clock = signals, save_after, clock
        self._saved_at = self._asked_at = clock()
        self._asked, self._next = start, start + 1

    def after(self, step: int, *, last: bool = False) -> Verdict:
        """Decides after `step` updates; the last step of a run asks in any case."""
        now, signum = self._clock(), self._signals.received or 0
        due = self._save_after > 0 and now - self._saved_at >= self._save_after
        if jax.process_count() == 1:
            return Verdict(due, signum)
        if step < self._next and not last:
            return Verdict(False, 0)
        pace = (now - self._asked_at) / max(1, step - self._asked)
        ahead = int(np.clip(TOGETHER / max(pace, 1e-3), 1, AHEAD))
        first = jax.process_index() == 0
        mine = [due and first, ahead * first, *(signum == number for number in EXIT_CODES)]
        due, ahead, *counts = sum_over_processes(np.array(mine, np.int64)).tolist()
        self._asked, self._asked_at, self._next = step, now, step + ahead
        stop = next((int(number) for number, count in zip(EXIT_CODES, counts, strict=True) if count), 0)
        return Verdict(bool(due), stop)

    def saved(self) -> None:
        """Says that the state has been saved: the time until the next one begins."""
        self._saved_at = self._clock()
