"""The loop: what it does in which order around a checkpoint."""

import contextlib
import os
import signal

import jax
import numpy as np
import pytest

from grass_jax import train as loop
from grass_jax.data.faults import DataError
from grass_jax.report.log import MetricsLog, read_metrics
from grass_jax.sharding import make_mesh
from grass_jax.stopping import Stopped
from grass_jax.train import Hook, Phase, Task, train


class Noted:
    """Stands for `Checkpoints`: notes which hooks' numbers had been sent when a state was saved."""

    def __init__(self, sent):
        self.found, self._sent = {}, sent

    def save(self, step, *_):
        self.found[step] = [line["step"] for line in self._sent if "seen" in line]

    save_surely = save

    def poll(self):
        """Nothing is being written."""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Runs four steps of nothing with hooks; returns the checkpoints and what they were given."""
    monkeypatch.setattr(loop, "compile_step", lambda step, mesh: step)

    def run(*hooks, step=lambda state, batch, key: (state, {"loss": 1.0, "gradient_norm": 1.0})):
        sent = []
        monkeypatch.setattr(MetricsLog, "flush", lambda self: sent.__setitem__(slice(None), read_metrics(tmp_path)))
        checkpoints = Noted(sent)
        task = Task(
            init=lambda: {"weights": np.zeros(2, np.float32)},  # pyright: ignore[reportArgumentType]
            phases=(Phase("gs", step, 0, 4),),
            batches=lambda start, stop: iter([{}] * (stop - start)),
            batch_size=8,
            steps_per_epoch=4,
            schedule=np.ones(4),
            hooks=hooks,
        )
        settings = {"log_every": 1, "checkpoint_every": 2, "checkpoint_minutes": 0, "tensorboard": False}
        with contextlib.suppress(Stopped):
            train(task, checkpoints, tmp_path, make_mesh(), key=jax.random.key(0), **settings)  # pyright: ignore[reportArgumentType]
        return checkpoints

    return run


def test_what_the_hooks_of_a_step_say_is_sent_before_its_checkpoint(trained):
    """A run that is killed after it goes on from there, and does not call them again."""
    hook = Hook(lambda phase, step, state: {"seen": float(step)}, every=2)
    assert trained(hook).found == {2: [2], 4: [2, 4]}


def test_a_hook_whose_data_cannot_be_read_ends_no_training(trained, caplog):
    def look(phase, step, state):
        if step == 2:
            raise DataError("disk gone.")
        return {"seen": float(step)}

    assert trained(Hook(look, every=1)).found == {2: [1], 4: [1, 3, 4]}
    assert "After step 2 nothing is measured: disk gone." in caplog.text


def test_before_the_last_checkpoint_only_what_it_needs_is_measured(trained):
    called = []

    def step(state, batch, key):
        if len(called) == 3:  # the second step
            os.kill(os.getpid(), signal.SIGTERM)
        return state, {"loss": 1.0, "gradient_norm": 1.0}

    def noting(name):
        return lambda phase, step, state: called.append((name, step)) or {"seen": 1.0}

    probe, validation = Hook(noting("probe"), every=1), Hook(noting("validation"), every=1, saves=True)
    checkpoints = trained(probe, validation, Hook(noting("replaced"), with_saves=True), step=step)
    assert called == [*((name, 1) for name in ("probe", "validation", "replaced")), ("validation", 2), ("replaced", 2)]
    assert checkpoints.found == {1: [1], 2: [1, 2]}


def test_the_metrics_of_a_step_are_read_when_the_next_one_is_on_its_way(trained):
    """Reading them waits for the device, which must have something to do by then."""
    done = []

    class Metric:
        def __init__(self, step):
            self.step = step

        def __array__(self, dtype=None, copy=None):
            done.append(("read", self.step))
            return np.ones((), dtype)

    def step(state, batch, key):
        number = sum(what == "run" for what, _ in done) + 1
        done.append(("run", number))
        return state, {"loss": Metric(number), "gradient_norm": 1.0}

    trained(step=step)  # with a checkpoint after the second step
    until = [("run", 1), ("run", 2), ("read", 1), ("read", 2)]
    assert done == [*until, *((what, number + 2) for what, number in until)]
