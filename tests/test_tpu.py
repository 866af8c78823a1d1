"""The GS step compiles with the real TPU compiler, on a machine without a TPU."""

import importlib.util
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from grass_jax.augment import Augmentation, two_views
from grass_jax.cost import roofline
from grass_jax.hardware import chip_of
from grass_jax.methods.simclr import simclr
from grass_jax.models import build_encoder
from grass_jax.optim import decay_mask, larc
from grass_jax.sharding import make_mesh
from grass_jax.state import create_state
from grass_jax.step_cost import compile_batch
from grass_jax.steps import gs_step


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'grass_jax[tpu]'")
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
    views_per_chip = 256 // 8 * 2 * 224 * 224 * 3 * 2
    assert cost.largest < views_per_chip
    assert sum(cost.moved.values()) < 2**30
    assert not re.search(r"callback|host_?compute|infeed|outfeed", compiled.program.as_text() or "", re.IGNORECASE)
