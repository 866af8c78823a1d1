import io
import logging
import re
import sys

import pytest
from absl import logging as absl_logging

from grass_jax.report.progress import Progress, counter
from grass_jax.report.rate import Rate


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def run(progress, clock, steps, *, seconds, phase="gs", loss=0.5, epoch=1):
    for step in steps:
        clock.now += seconds
        progress.update(step, phase=phase, epoch=epoch, epochs=3, loss=loss)


def screen(text):
    """What stands on the lines of a terminal, where a carriage return goes back and what follows is written over."""
    shown = []
    for line in text.split("\n"):
        row = ""
        for part in line.split("\r"):
            row = part + row[len(part) :]
        shown.append(row.rstrip())
    return shown


def test_rate_leaves_out_the_first_step_of_every_phase(clock):
    rate = Rate(clock, window=2)
    rate.mark(11, "warmup")
    assert rate.recent is None
    assert rate.average is None
    for step, seconds in ((12, 1.0), (13, 1.0), (14, 4.0)):
        clock.now += seconds
        rate.mark(step, "warmup")
    assert rate.average == pytest.approx(3 / 6)
    assert rate.recent == pytest.approx(2 / 5)
    clock.now += 100.0  # compiles
    rate.mark(15, "gs")
    assert rate.average is None
    clock.now += 2.0
    rate.mark(16, "gs")
    assert rate.average == pytest.approx(1 / 2)


def test_time_left_counts_the_whole_run_at_the_speed_of_this_session(clock):
    progress = Progress(100, start_step=40, images_per_step=16, enabled=False, clock=clock)
    run(progress, clock, [41], seconds=60.0)
    assert progress.seconds_left is None
    assert progress.images_per_second is None
    run(progress, clock, range(42, 51), seconds=2.0)
    assert progress.seconds_left == pytest.approx(50 * 2.0)
    assert progress.images_per_second == pytest.approx(16 / 2.0)


def test_plain_lines_come_by_time(clock):
    stream = io.StringIO()
    with Progress(100, images_per_step=16, stream=stream, every_seconds=30.0, clock=clock) as progress:
        run(progress, clock, range(1, 72), seconds=1.0)
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert [int(re.search(r"step (\d+)/100", line)[1]) for line in lines] == [1, 31, 61, 71]
    assert lines[0] == "gs epoch 1/3, step 1/100, loss 0.5000"
    assert lines[1] == "gs epoch 1/3, step 31/100, loss 0.5000, 16.0 images/s, 01:09 left"


def test_plain_lines_of_a_quick_run_show_each_phase_and_the_end(clock):
    stream = io.StringIO()
    with Progress(20, images_per_step=1000, stream=stream, clock=clock) as progress:
        run(progress, clock, range(1, 11), seconds=0.1, phase="warmup", loss=None)
        run(progress, clock, range(11, 21), seconds=0.1)
    assert stream.getvalue().splitlines() == [
        "warmup epoch 1/3, step 1/20",
        "gs epoch 1/3, step 11/20, loss 0.5000",
        "gs epoch 1/3, step 20/20, loss 0.5000, 10000 images/s, 00:00 left",
    ]


def test_lines_that_cannot_be_written_cost_nothing(clock, unwritable, monkeypatch):
    monkeypatch.setattr(sys, "stderr", unwritable)
    with Progress(10, images_per_step=4, clock=clock) as progress:
        run(progress, clock, range(1, 10), seconds=60.0)
    assert progress.images_per_second == pytest.approx(4 / 60)
    assert list(counter([1, 2], desc="scenes", mininterval=0)) == [1, 2]


def test_only_the_first_process_speaks(clock):
    stream = Terminal()
    with Progress(10, images_per_step=4, enabled=False, stream=stream, clock=clock) as progress:
        run(progress, clock, range(1, 11), seconds=60.0)
    assert stream.getvalue() == ""
    assert progress.images_per_second == pytest.approx(4 / 60)


def test_a_bar_on_a_terminal_starts_where_the_run_goes_on(clock):
    stream = Terminal()
    with Progress(1000, start_step=500, images_per_step=16, stream=stream, clock=clock) as progress:
        assert "500/1000" in screen(stream.getvalue())[0]
        run(progress, clock, range(501, 601), seconds=0.5, loss=1.25, epoch=2)
    rows = screen(stream.getvalue())
    assert len(rows) == 2
    assert rows[1] == ""
    assert rows[0].startswith("gs epoch 2/3")
    assert rows[0].endswith("600/1000, loss 1.2500, 32.0 images/s, 03:20 left")


def handler_of_logging():
    return logging.StreamHandler(sys.stderr)


def handler_of_absl():
    return absl_logging.ABSLHandler(logging.Formatter("%(message)s"))


@pytest.mark.parametrize("make_handler", [handler_of_logging, handler_of_absl])
def test_log_records_do_not_break_the_bar(clock, monkeypatch, make_handler):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(absl_logging, "_warn_preinit_stderr", False)
    handler = make_handler()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])
    with Progress(10, images_per_step=4, clock=clock) as progress:
        run(progress, clock, range(1, 4), seconds=1.0)
        root.warning("a record")
        run(progress, clock, range(4, 6), seconds=1.0)
    root.warning("a record after the end")
    rows = screen(stream.getvalue())
    assert rows[0] == "a record"
    assert "5/10" in rows[1]
    assert rows[2:] == ["a record after the end", ""]
    assert not handler.filters


def test_time_in_other_work_is_left_out_of_the_latest_rate_alone(clock):
    rate = Rate(clock)
    for step in range(1, 5):
        clock.now += 2
        rate.mark(step, "gs")
    clock.now += 30  # a probe
    rate.leave_out(30)
    clock.now += 2
    rate.mark(5, "gs")
    assert rate.recent == pytest.approx(0.5)
    assert rate.average == pytest.approx(4 / 38)
