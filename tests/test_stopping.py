"""Stopping and saving by the clock: signals, and what several processes decide together."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from grass_jax import stopping
from grass_jax.stopping import EXIT_CODES, Signals, Stopped, Verdict, Watch

ROOT = Path(__file__).parents[1]


class Noted:
    """Stands for entered `Signals`."""

    received: int | None = None


def test_the_codes_are_the_documented_ones():
    assert EXIT_CODES == {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGHUP: 75}
    stopped = Stopped(7, signal.SIGTERM)
    assert stopped.code == 75
    assert str(stopped) == "stopped by SIGTERM after step 7, which is saved; the same command goes on."


@pytest.mark.parametrize("signum", list(EXIT_CODES))
def test_the_first_signal_is_noted_and_the_handlers_come_back(signum, caplog):
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signum)
        while signals.received is None:
            pass
        assert signals.received == signum
        os.kill(os.getpid(), signum)  # what a launcher passes on a moment later is the same signal
    assert {number: signal.getsignal(number) for number in EXIT_CODES} == before
    assert signal.set_wakeup_fd(-1) == -1
    (record,) = caplog.records
    name = signal.Signals(signum).name
    assert record.getMessage() == f"{name}: saving after this step and stopping; a second one stops at once."


def test_a_second_interrupt_is_the_old_one(monkeypatch):
    monkeypatch.setattr(stopping, "APART", 0.0)

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.1)  # so that the handler has run

    with Signals() as signals:
        interrupt()
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_a_thread_of_a_notebook_changes_nothing():
    found: list[Any] = []

    def job():
        with Signals() as signals:
            found.extend([signals.received, signal.getsignal(signal.SIGTERM)])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert found == [None, before]


def test_both_signals_are_answered_while_the_main_thread_never_looks_up():
    """As in a compiler: half an hour of hashing in C, in which no Python handler can run."""
    code = """
import hashlib
from grass_jax import stopping
stopping.APART = 0.0
with stopping.Signals():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)
"""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "ready\n"  # pyright: ignore[reportOptionalMemberAccess]
        process.send_signal(signal.SIGTERM)
        assert "SIGTERM: saving after this step" in process.stderr.readline()  # pyright: ignore[reportOptionalMemberAccess]
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("signum", stopping.ENDING)
def test_the_first_process_of_a_container_ends_outside_a_training_as_others_do(signum):
    """The kernel ends it by no signal itself; after a training, while no Python handler can run."""
    code = """
import hashlib, os
from grass_jax import stopping
os.getpid = lambda: 1
stopping.end_as_others_do()
with stopping.Signals():
    pass
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"  # pyright: ignore[reportOptionalMemberAccess]
        process.send_signal(signum)
        assert process.wait(60) == 128 + signum


def test_steps_that_become_slower_do_not_put_off_the_question(together):
    """A thousand steps of a millisecond, then of two seconds: the second process's signal is heard after fifty."""

    def job(process, _, signals):
        now = [0.0]
        watch = Watch(signals, save_after=0, clock=lambda: now[0])
        for step in range(1, 2000):
            now[0] += 0.001 if step <= 1000 else 2.0
            signals.received = signal.SIGTERM if process == 1 and step >= 1010 else None
            if watch.after(step).stop:
                return step
        return None

    found = together(job, clocks=[0.0] * 3, signals=[Noted(), Noted(), Noted()])
    assert found[0] == found[1] == found[2]
    assert 1010 <= found[0] <= 1060


def test_one_process_saves_by_its_clock_and_stops_at_once():
    now, signals = [0.0], Noted()
    watch = Watch(signals, save_after=60, clock=lambda: now[0])  # pyright: ignore[reportArgumentType]
    verdicts = []
    for step in range(1, 8):
        now[0] += 25
        verdicts.append(watch.after(step))
        if verdicts[-1].save:
            watch.saved()
    assert [verdict.save for verdict in verdicts] == [False, False, True, False, False, True, False]
    signals.received = signal.SIGTERM
    assert watch.after(8) == Verdict(False, signal.SIGTERM)
    never = Watch(Noted(), save_after=0, clock=lambda: now[0])  # pyright: ignore[reportArgumentType]
    now[0] += 1e9
    assert never.after(1) == Verdict(False, 0)


@pytest.fixture
def together(monkeypatch):
    """Runs a function on three processes that this one plays: (process, clock, signals) -> result; returns a list."""

    def run(job, clocks, signals):
        barrier, mine = threading.Barrier(3, timeout=60), [np.zeros(0)] * 3
        number = threading.local()

        def add_up(counts):
            mine[number.value] = counts
            barrier.wait()
            total = np.sum(mine, axis=0)
            barrier.wait()
            return total

        monkeypatch.setattr(jax, "process_count", lambda: 3)
        monkeypatch.setattr(jax, "process_index", lambda: number.value)
        monkeypatch.setattr(stopping, "sum_over_processes", add_up)
        results: list[Any] = [None] * 3

        def play(process):
            number.value = process
            results[process] = job(process, clocks[process], signals[process])

        threads = [threading.Thread(target=play, args=(process,)) for process in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return run


def test_all_processes_save_and_stop_after_the_same_steps(together):
    """Process 0's clock counts and says two steps to a question; the third gets the signal between two of them."""

    def job(process, pace, signals):
        now = [0.0]
        watch = Watch(signals, save_after=20, start=100, clock=lambda: now[0])
        verdicts = []
        for step in range(101, 200):
            now[0] += pace
            if process == 2 and step == 134:
                signals.received = signal.SIGTERM
            verdicts.append((step, *watch.after(step)))
            if verdicts[-1][1]:
                watch.saved()
            if verdicts[-1][2]:
                return verdicts
        return verdicts

    results = together(job, clocks=[2.0, 900.0, 0.1], signals=[Noted(), Noted(), Noted()])
    assert results[0] == results[1] == results[2]
    assert results[0][-1] == (135, False, signal.SIGTERM)
    assert [step for step, save, _ in results[0] if save] == [111, 121, 131]


def test_a_signal_after_the_last_question_is_found_at_the_end(together):
    def job(process, pace, signals):
        watch = Watch(signals, save_after=0, clock=lambda: pace)
        found = [watch.after(step).stop for step in (1, 2, 3)]
        signals.received = signal.SIGINT if process == 1 else None
        return found, watch.after(3, last=True).stop

    results = together(job, clocks=[0.0] * 3, signals=[Noted(), Noted(), Noted()])
    assert results == [([0, 0, 0], signal.SIGINT)] * 3
