"""The GS step compiles with the real TPU compiler, on a machine without a TPU."""

import collections
import importlib.util
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from grass_jax.augment import Augmentation, two_views
from grass_jax.methods.simclr import simclr
from grass_jax.models import build_encoder
from grass_jax.optim import decay_mask, larc
from grass_jax.sharding import make_mesh
from grass_jax.state import create_state
from grass_jax.steps import compile_step, gs_step

COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "u8": 1, "s8": 1, "u16": 2, "s16": 2}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'grass_jax[tpu]'")
def test_gs_step_compiles_for_eight_chips():
    topology = topologies.get_topology_desc("v5e:2x4", "tpu")
    mesh = make_mesh(topology.devices)
    encoder = build_encoder("resnet50", dtype="bfloat16")
    method = simclr(encoder, temperature=0.5)
    optimizer, augmentation = larc(1.2, decay_mask=decay_mask), Augmentation(size=224)
    step = compile_step(
        partial(
            gs_step,
            method=method,
            optimizer=optimizer,
            augment=lambda key, batch: two_views(key, batch["image"], augmentation),
        ),
        mesh,
    )
    state = jax.eval_shape(lambda: create_state(jax.random.key(0), method, optimizer, size=224))
    batch = {"image": jax.ShapeDtypeStruct((256, 256, 256, 3), jnp.uint8)}
    compiled = step.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))).compile()

    text, memory = compiled.as_text(), compiled.memory_analysis()
    moved: dict[str, list[int]] = collections.defaultdict(list)
    for shapes, kind in COLLECTIVE.findall(text):
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size = BYTES.get(dtype, 8)
            for dim in filter(None, dims.split(",")):
                size *= int(dim)
            moved[kind].append(size)
    in_use = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    in_use -= memory.alias_size_in_bytes
    print(f"\nmemory per chip: {in_use / 2**30:.2f} GiB of 16 (temporary {memory.temp_size_in_bytes / 2**30:.2f})")
    for kind, sizes in moved.items():
        print(f"{kind}: {len(sizes)} arrays, {sum(sizes) / 2**20:.1f} MiB, the largest {max(sizes) / 2**20:.2f} MiB")
    assert in_use < 16 * 2**30
    views_per_chip = 256 // 8 * 2 * 224 * 224 * 3 * 2
    assert max(size for sizes in moved.values() for size in sizes) < views_per_chip
    assert sum(map(sum, moved.values())) < 2**30
    assert not re.search(r"callback|host_?compute|infeed|outfeed", text, re.IGNORECASE)
