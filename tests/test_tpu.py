"""The GS step compiles with the real TPU compiler, on a machine without a TPU, and so do the steps of a plan."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from grass_jax.augment import Augmentation, two_views
from grass_jax.methods.simclr import simclr
from grass_jax.models import build_encoder
from grass_jax.optim import decay_mask, larc
from grass_jax.planning.chips import chip_of
from grass_jax.planning.program_cost import roofline
from grass_jax.planning.step_cost import compile_batch
from grass_jax.sharding import make_mesh
from grass_jax.state import create_state
from grass_jax.steps import gs_step

ROOT = Path(__file__).parents[1]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'"
)


@pytest.mark.slow
@needs_libtpu
def test_gs_step_compiles_for_eight_chips():
    topology = topologies.get_topology_desc("v5e:2x4", "tpu")
    chip = chip_of(topology.devices[0])
    encoder = build_encoder("resnet50", dtype="bfloat16")
    method = simclr(encoder, temperature=0.5)
    optimizer, augmentation = larc(1.2, decay_mask=decay_mask), Augmentation(size=224)
    step = partial(
        gs_step,
        method=method,
        optimizer=optimizer,
        augment=lambda key, batch: two_views(key, batch["image"], augmentation),
    )
    state = jax.eval_shape(lambda: create_state(jax.random.key(0), method, optimizer, size=224))
    tile = {"image": jax.ShapeDtypeStruct((256, 256, 3), jnp.uint8)}
    compiled = compile_batch(step, make_mesh(topology.devices), state, tile, 256)

    assert compiled.cost is not None
    assert compiled.program is not None
    assert chip is not None
    cost, least = compiled.cost, roofline(compiled.cost, chip, "bfloat16")
    print(f"\n{cost}\n{least}")
    assert cost.memory_bytes < chip.memory
    assert cost.unknown_loops == 0
    # forward, backward and the guidance's forward of 64 views by a network of 4.09 billion products each
    assert 0.9 < cost.flops / (64 * 4 * 2 * 4.09e9) < 1.3
    # the gradients in bfloat16, summed over a ring, and little else: a chip's views alone would be 19 MB more to send
    gradients = 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert 0.9 < sum(cost.moved.values()) / (2 * 7 / 8 * gradients) < 1.2
    assert not re.search(r"callback|host_?compute|infeed|outfeed", compiled.program.as_text() or "", re.IGNORECASE)


def plan(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the planning program in a process of its own, with code before it."""
    code = f"import runpy, sys\n{before}\nsys.argv = ['plan', *sys.argv[1:]]\n"
    code += "runpy.run_module('benchmarks.plan', run_name='__main__')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)


@pytest.mark.slow
@needs_libtpu
def test_slices_are_planned_side_by_side(tmp_path):
    done = plan(
        *("--slices=v5e:2x2,2x4", "--tiles_per_chip=2", "--config=configs/gs.py:folder", "--config.batch_size=16"),
        *("--config.augment.size=32", "--config.model.width=4", "--config.model.output_stride=8"),
        *("--config.data.tile_size=48", "--nolargest", f"--json={tmp_path / 'plan.json'}"),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "plan.json").read_text())
    # 2x4 has 16 tiles both ways
    sizes = [(row["scaling"], row["chips"], row["tiles"]) for row in rows if row["step"] == "gs_step"]
    assert sizes == [("weak", 4, 8), ("strong", 4, 16), ("weak", 8, 16), ("strong", 8, 16)]
    flops = {(row["chips"], row["tiles"], row["step"]): row["flops"] for row in rows}
    assert 1.2 < flops[8, 16, "gs_step"] / flops[8, 16, "warmup_step"] < 1.5
    assert 0.95 < flops[8, 16, "gs_step"] / flops[4, 8, "gs_step"] < 1.05  # of each chip
    assert all(row["sent_bytes"]["all-reduce"] > 0 for row in rows)
    assert "Strong scaling" in done.stdout


def test_without_the_tpu_compiler_one_sentence_says_what_to_install():
    hidden = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "libtpu" else find_spec(name, *rest)
"""
    done = plan("--config=configs/gs.py:folder_full", before=hidden)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "The TPU compiler is missing: pip install '.[tpu]' (no TPU is needed)."


@needs_libtpu
def test_a_slice_that_does_not_exist_is_refused_in_one_sentence():
    done = plan("--topology=v9:2x2", "--config=configs/gs.py:folder_full")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("grass_jax: --topology must be a slice such as v5e:4x4, not v9:2x2: ")
