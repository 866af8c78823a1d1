"""One device, eight devices and two processes do the same steps."""

import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.augment import Augmentation, two_views
from grass_jax.methods.simclr import simclr
from grass_jax.models.resnet import BasicBlock, ResNet
from grass_jax.sampling.regions import salient_boxes
from grass_jax.sharding import make_mesh
from grass_jax.state import create_state
from grass_jax.steps import compile_step, gs_step

JOB = Path(__file__).parent / "distributed_job.py"


def start(out: Path, devices: int, *cluster: str) -> subprocess.Popen:
    root = JOB.parents[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"]),
        "JAX_COMPILATION_CACHE_DIR": str(root / ".jax_cache"),
        "PYTHONPATH": str(root),
    }
    return subprocess.Popen([sys.executable, str(JOB), str(out), *cluster], env=environment)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("jobs")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    assert start(folder / "one.npz", 1).wait(600) == 0
    assert start(folder / "eight.npz", 8).wait(600) == 0
    pair = [start(folder / "two.npz", 2, coordinator, "2", str(process)) for process in range(2)]
    assert [process.wait(600) for process in pair] == [0, 0]
    return {name: dict(np.load(folder / f"{name}.npz")) for name in ("one", "eight", "two")}


@pytest.mark.parametrize(("other", "devices"), [("eight", 8), ("two", 4)])
def test_devices_and_processes_do_not_change_the_numbers(runs, other, devices):
    one, many = runs["one"], runs[other]
    assert (int(one["devices"]), int(many["devices"])) == (1, devices)
    np.testing.assert_allclose(many["float32_losses"], one["float32_losses"], rtol=1e-5)
    # boxes jump with the map: those that a change of the map in the fifth digit does not move must agree
    maps, boxes = one["float32_maps"], one["float32_boxes"]
    noise = 1e-5 * np.abs(maps).max() * np.random.default_rng(0).normal(size=(8, *maps.shape))
    moved = np.stack([salient_boxes(jnp.asarray(maps + n, jnp.float32), size=64) for n in noise]) != boxes
    robust = ~moved.any((0, -1)) & (maps.max((-2, -1)) > 0)
    assert robust.mean() > 0.8
    np.testing.assert_array_equal(many["float32_boxes"][robust], boxes[robust])
    assert (boxes != [0, 0, 64, 64]).any(-1).mean() > 0.3  # the guidance did something
    np.testing.assert_allclose(many["float64_losses"], one["float64_losses"], rtol=1e-9)
    np.testing.assert_allclose(many["float64_params"], one["float64_params"], rtol=1e-9, atol=1e-9)


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def test_a_step_on_eight_devices_moves_embeddings_and_gradients_and_no_images():
    tiles, size = 16, 64
    encoder = ResNet((1, 1, 1, 1), BasicBlock, width=4, output_stride=16)
    method = simclr(encoder, embedding=8, temperature=0.5)
    optimizer, mesh = optax.sgd(0.1), make_mesh(jax.devices()[:8])
    augmentation = Augmentation(size=size)
    settings = {"method": method, "optimizer": optimizer}
    step = compile_step(
        partial(gs_step, augment=lambda key, batch: two_views(key, batch["image"], augmentation), **settings), mesh
    )
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
