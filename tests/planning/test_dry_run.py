"""What a run will need is said before it begins, and nothing of the run is begun."""

import jax
import jax.numpy as jnp
import pytest

from configs import evaluate
from grass_jax import pretrain
from grass_jax.config import ConfigError
from grass_jax.models import build_encoder
from grass_jax.planning import dry_run
from grass_jax.planning.program_cost import cost_of
from grass_jax.planning.step_cost import compile_batch, largest_batch, other_batch_size
from grass_jax.sharding import make_mesh
from grass_jax.state import load_encoder


def flops_of_encoding(views):
    """Counts the products of one forward pass of the encoder of `tiny`."""
    encoder = build_encoder("resnet18", width=4, output_stride=8)
    variables = encoder.init(jax.random.key(0), views, train=True)
    forward = jax.jit(lambda variables, views: encoder.apply(variables, views, train=True, mutable=["batch_stats"]))
    return cost_of(forward.lower(variables, views).compile()).flops


def test_pretraining_is_planned_and_nothing_is_written(tiny, tmp_path, capsys):
    workdir = tmp_path / "run"
    found = dry_run.run(tiny(), workdir)
    assert not workdir.exists()
    assert (found["steps"], found["steps_per_epoch"], found["done"]) == (12, 3, 0)
    assert {name: phase["steps"] for name, phase in found["phases"].items()} == {"warmup": 6, "gs": 6}
    warmup, gs = found["phases"]["warmup"], found["phases"]["gs"]
    # the guidance is one more forward of a device's two views, and a head, a loss and maps that are small beside it
    assert 1 < (gs["flops"] - warmup["flops"]) / flops_of_encoding(jnp.ones((2, 32, 32, 3))) < 1.05
    assert gs["memory_bytes"] > found["checkpoint_bytes"]
    assert warmup["step_seconds"] > 0
    assert warmup["least_seconds"] is None  # a CPU is in no table
    shown = capsys.readouterr().out
    assert "12 steps of 8 tiles, 3 an epoch" in shown
    assert "estimated from two batch sizes" in shown


def test_parameters_checkpoint_and_steps_done_are_those_of_the_run(tiny, tmp_path):
    config = tiny(phases=("warmup",), **{"warmup.epochs": 1})
    pretrain.run(config, tmp_path)
    found = dry_run.run(config, tmp_path)
    encoder = load_encoder(tmp_path).variables
    weights, statistics = (sum(leaf.size for leaf in jax.tree.leaves(encoder[name])) for name in encoder)
    head = 32 * 32 + 32 + 32 * 16 + 16  # two layers with biases on the 32 features of this encoder
    assert found["parameters"] == weights + head
    # float32: parameters, Adam's two moments and the statistics, and a few counters of steps
    assert 0 < found["checkpoint_bytes"] - 4 * (3 * found["parameters"] + statistics) < 50
    assert found["done"] == found["steps"] == 3


def test_fine_tuning_is_planned(tiny_segment, tmp_path):
    found = dry_run.run(tiny_segment(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert found["phases"]["finetune"]["steps"] == found["steps"] == 6


def test_a_task_without_steps_is_refused(tiny_segment, tmp_path):
    with pytest.raises(ConfigError, match=r"^--dry_run: a linear head is fitted at once"):
        dry_run.run(tiny_segment(**{"head.name": "linear"}), tmp_path)
    with pytest.raises(ConfigError, match=r"^--dry_run is for the tasks pretrain and segment, not evaluate: leave it"):
        dry_run.run(evaluate.get_config(), tmp_path)


def test_a_step_that_does_not_fit_is_told_from_one_that_is_wrong(monkeypatch):
    class Program:
        def __init__(self, message):
            self.message = message

        def lower(self, *_):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.message)

    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G."
    arguments = (None, make_mesh(), None, {"image": jnp.zeros((4, 4, 3))}, 8)
    monkeypatch.setattr("grass_jax.planning.step_cost.compile_step", lambda step, mesh: Program(message))
    found = compile_batch(*arguments)
    assert (found.cost, found.program, found.memory_bytes) == (None, None, 20.5 * 2**30)
    monkeypatch.setattr(
        "grass_jax.planning.step_cost.compile_step", lambda step, mesh: Program("INTERNAL: something else")
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        compile_batch(*arguments)


def test_the_largest_batch_follows_from_two():
    # 100 bytes and 10 a tile, in 97 % of 1000 bytes: 87 tiles
    assert largest_batch((8, 180), (16, 260), 1000, unit=1) == 87
    assert largest_batch((16, 260), (8, 180), 1000, unit=8) == 80
    assert largest_batch((8, 180), (16, 260), 90, unit=1) == 0
    assert largest_batch((8, 180), (16, 180), 1000, unit=1) == 0  # memory that does not grow says nothing


def test_the_second_batch_is_smaller_where_it_can_be():
    assert other_batch_size(256, 8) == 128
    assert other_batch_size(24, 8) == 8
    assert other_batch_size(8, 8) == 16
    assert other_batch_size(2, 1) == 4
