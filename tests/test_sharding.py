"""One device, eight devices, two and four processes do the same steps."""

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import gs
from grass_jax import sharding
from grass_jax.augment import Augmentation
from grass_jax.build import build_augment
from grass_jax.methods.simclr import simclr
from grass_jax.models.resnet import BasicBlock, ResNet
from grass_jax.sharding import make_mesh
from grass_jax.state import create_state
from grass_jax.steps import compile_step, gs_step

JOB = Path(__file__).parent / "distributed_job.py"
# Processes, devices of each, and what they do. The compilation cache serves the first process of a job alone.
JOBS = {
    "one": (1, 1, "float32,float64,moco_float64"),
    "eight": (1, 8, "float64"),
    "two": (2, 2, "float32,float64,moco_float64"),
    "four": (4, 1, "float32,float64"),
}


def start(out: Path, parts: str, devices: int, *cluster: str) -> subprocess.Popen:
    root = JOB.parents[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"]),
        "JAX_COMPILATION_CACHE_DIR": str(root / ".jax_cache"),
        "PYTHONPATH": str(root),
    }
    return subprocess.Popen([sys.executable, str(JOB), str(out), parts, *cluster], env=environment)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    folder, running = tmp_path_factory.mktemp("jobs"), []
    for name, (processes, devices, parts) in JOBS.items():
        cluster = [free_address(), str(processes)] if processes > 1 else []
        for process in range(processes):
            own = [*cluster, str(process)] if cluster else []
            running.append(start(folder / f"{name}.npz", parts, devices, *own))
    assert [process.wait(1200) for process in running] == [0] * len(running)
    return {name: dict(np.load(folder / f"{name}.npz")) for name in JOBS}


@pytest.mark.parametrize("other", ["two", "four"])
def test_a_step_in_float32_has_the_loss_of_one_process(runs, other):
    np.testing.assert_allclose(runs[other]["float32_losses"], runs["one"]["float32_losses"], rtol=1e-5)
    assert runs["one"]["float32_box_areas"] < 0.9  # the guidance did something


# a box that is another shows in the loss of the guided views, and in the state
@pytest.mark.parametrize(
    ("other", "part"),
    [("eight", "float64"), ("two", "float64"), ("four", "float64"), ("two", "moco_float64")],
)
def test_three_steps_in_float64_agree(runs, other, part):
    one, many = runs["one"], runs[other]
    assert (int(one["processes"]), int(one["devices"])) == (1, 1)
    assert int(many["processes"]) == JOBS[other][0]
    assert int(many["devices"]) == JOBS[other][0] * JOBS[other][1]
    assert len(set(one[f"{part}_losses"])) == 3
    np.testing.assert_allclose(many[f"{part}_losses"], one[f"{part}_losses"], rtol=1e-9)
    np.testing.assert_allclose(many[f"{part}_box_areas"], one[f"{part}_box_areas"], rtol=1e-6)
    np.testing.assert_allclose(many[f"{part}_state"], one[f"{part}_state"], rtol=1e-9, atol=1e-9)


def test_what_the_first_process_reads_the_others_hear(monkeypatch):
    """Two processes one after the other: what the first one sends lies ready for the second."""
    sent: list[np.ndarray] = []

    def exchange(own):
        if jax.process_index() == 0:
            sent.append(own)
            return np.stack([own, np.zeros_like(own)])
        first = sent.pop(0)
        assert (own.shape, own.dtype, own.any()) == (first.shape, first.dtype, False)  # as a collective needs it
        return np.stack([first, own])

    content = {"ä": [1, None, 0.5], "empty": {}}
    assert sharding.read_by_first(lambda: content) is content  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(sharding, "_gather", exchange)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    assert sharding.read_by_first(lambda: content) == content
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert sharding.read_by_first(lambda: pytest.fail("read by the second")) == content
    assert not sent


def test_the_rows_of_a_process_are_neighbours_in_the_batch():
    """Chips are numbered across hosts, as on a TPU v5e slice: host 0 holds 0, 1, 4 and 5."""

    @dataclass(frozen=True)
    class Chip:
        id: int
        process_index: int

    chips = [Chip(number, number // 2 % 2) for number in range(8)]
    found = make_mesh(chips).devices.ravel().tolist()
    assert [chip.process_index for chip in found] == [0] * 4 + [1] * 4
    assert [chip.id for chip in found] == [0, 1, 4, 5, 2, 3, 6, 7]


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def test_a_step_on_eight_devices_moves_embeddings_and_gradients_and_no_images():
    tiles, size = 16, 64
    encoder = ResNet((1, 1, 1, 1), BasicBlock, width=4, output_stride=16)
    method = simclr(encoder, embedding=8, temperature=0.5)
    optimizer, mesh = optax.sgd(0.1), make_mesh(jax.devices()[:8])
    augment = build_augment(gs.get_config(), Augmentation(size=size))
    step = compile_step(partial(gs_step, method=method, optimizer=optimizer, augment=augment), mesh)
    state = jax.eval_shape(lambda: create_state(jax.random.key(0), method, optimizer, size=size))
    batch = {"image": jax.ShapeDtypeStruct((tiles, 72, 72, 3), jnp.uint8)}
    text = step.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))).compile().as_text()
    moved = [
        (kind, shape) for shapes, kind in COLLECTIVE.findall(text) for shape in re.findall(r"\[([\d,]*)\]", shapes)
    ]
    assert moved
    largest_parameter = max(leaf.size for leaf in jax.tree.leaves(state.params))
    for kind, shape in moved:
        dims = [int(d) for d in shape.split(",") if d]
        # no spatial extent of a view, and nothing larger than a gradient
        assert not {size, 72} & set(dims[1:]), (kind, shape)
        assert np.prod(dims, initial=1) <= largest_parameter, (kind, shape)
    assert "callback" not in text
