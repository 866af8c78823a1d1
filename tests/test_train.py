"""The loop: what it does in which order around a checkpoint."""

import jax
import numpy as np

from grass_jax import train as loop
from grass_jax.report.log import MetricsLog, read_metrics
from grass_jax.sharding import make_mesh
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


def test_what_the_hooks_of_a_step_say_is_sent_before_its_checkpoint(tmp_path, monkeypatch):
    """A run that is killed after it goes on from there, and does not call them again."""
    sent = []
    monkeypatch.setattr(loop, "compile_step", lambda step, mesh: step)
    monkeypatch.setattr(MetricsLog, "flush", lambda self: sent.__setitem__(slice(None), read_metrics(tmp_path)))
    checkpoints = Noted(sent)
    task = Task(
        init=lambda: {"weights": np.zeros(2, np.float32)},  # pyright: ignore[reportArgumentType]
        phases=(Phase("gs", lambda state, batch, key: (state, {"loss": 1.0, "gradient_norm": 1.0}), 0, 4),),  # pyright: ignore[reportArgumentType]
        batches=lambda start, stop: iter([{}] * (stop - start)),
        batch_size=8,
        steps_per_epoch=4,
        schedule=np.ones(4),
        hooks=(Hook(lambda phase, step, state: {"seen": float(step)}, every=2),),
    )
    settings = {"log_every": 1, "checkpoint_every": 2, "checkpoint_minutes": 0, "tensorboard": False}
    train(task, checkpoints, tmp_path, make_mesh(), key=jax.random.key(0), **settings)  # pyright: ignore[reportArgumentType]
    assert checkpoints.found == {2: [2], 4: [2, 4]}
