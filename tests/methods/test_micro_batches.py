"""Micro-batches: the plain step where the encoder has no batch norm, ghost batch norm where it has."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.guidance import GuidanceSettings
from grass_jax.methods.byol import byol
from grass_jax.methods.micro_batches import MicroBatched
from grass_jax.methods.moco_v2 import moco_v2
from grass_jax.methods.simclr import simclr
from grass_jax.models.resnet import BasicBlock, ResNet
from grass_jax.sharding import global_batch, make_mesh
from grass_jax.state import create_state
from grass_jax.steps import compile_step, gs_step, update

TILES, SIZE, PARTS = 8, 16, 4


class Plain(nn.Module):
    """An encoder without batch norm."""

    @nn.compact
    def __call__(self, x, *, train):
        del train
        for channels in (8, 12):
            x = nn.tanh(nn.Conv(channels, (3, 3), strides=2)(x))
        return x


METHODS = {
    "simclr": partial(simclr, temperature=0.3, embedding=8),
    "byol": partial(byol, total_steps=9, hidden=16, embedding=8, momentum=0.9),
    "moco_v2": partial(moco_v2, queue=32, embedding=8, momentum=0.9),
}


def ready(key, batch):
    del key
    return batch["views"]


def start(method, dtype=np.float64):
    """A state and views for it."""
    state = create_state(jax.random.key(0), method, optax.sgd(0.5), size=SIZE)
    state = jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, state)
    return state, jnp.asarray(np.random.default_rng(1).normal(size=(TILES, 2, SIZE, SIZE, 3)), dtype)


@pytest.mark.parametrize("name", METHODS)
def test_without_batch_norm_in_the_encoder_a_step_is_the_plain_one(name):
    with jax.enable_x64(True):
        after = []
        for encoder in (Plain(), MicroBatched(Plain(), PARTS)):
            method = METHODS[name](encoder)
            state, views = start(method)
            step = jax.jit(partial(gs_step, method=method, optimizer=optax.sgd(0.5), augment=ready))
            after.append(step(state, {"views": views}, jax.random.key(0)))
    (plain, metrics), (parts, metrics_of_parts) = after
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (plain.params, state.params)), strict=True)]
    assert max(moved) > 1e-3
    for expected, actual in zip(*map(jax.tree.leaves, ((plain, metrics), (parts, metrics_of_parts))), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)


def test_batch_norm_sees_each_part_alone():
    """Against encoder forwards on the parts one by one, gathered by hand under one gradient."""
    encoder = ResNet((1, 1, 1, 1), BasicBlock, width=4, output_stride=8)
    method = simclr(encoder, temperature=0.3, embedding=8)
    with jax.enable_x64(True):
        state, views = start(method)
        members = [[tile for tile in range(TILES) if tile % PARTS == part] for part in range(PARTS)]

        def objective(params):
            features, means = [None] * TILES, []
            for tiles in members:
                rows = jnp.concatenate([views[tile] for tile in tiles])
                variables = {"params": params["encoder"], "batch_stats": state.stats["encoder"]}
                out, updated = encoder.apply(variables, rows, train=True, mutable=["batch_stats"])
                for place, tile in enumerate(tiles):
                    features[tile] = out[2 * place : 2 * place + 2]
                means.append(updated["batch_stats"])
            loss, _ = method.loss(params, state.stats, jnp.stack(features), ())
            return loss, jax.tree.map(lambda *each: sum(each) / PARTS, *means)

        (loss, stats), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(state.params)
        in_parts = simclr(MicroBatched(encoder, PARTS), temperature=0.3, embedding=8)
        optimizer = optax.sgd(0.5)
        after, metrics = jax.jit(partial(update, method=in_parts, optimizer=optimizer))(state, views)
        whole, _ = jax.jit(partial(update, method=method, optimizer=optimizer))(state, views)
        ends = jax.device_get((state, loss, stats, gradients, after, whole, metrics))
    state, loss, stats, gradients, after, whole, metrics = ends
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-12)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), after.params, expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), after.stats["encoder"], stats)
    # and it is not what the whole batch's statistics give
    head = [jax.tree.leaves(s.params["head"])[0] for s in (whole, after)]
    assert np.abs(head[0] - head[1]).max() > 1e-6


def test_memory_is_that_of_a_part():
    def in_use(parts):
        encoder = ResNet((1, 1, 1, 1), BasicBlock, width=16, output_stride=8)
        method = simclr(MicroBatched(encoder, parts) if parts > 1 else encoder, temperature=0.3)
        state = jax.eval_shape(partial(create_state, jax.random.key(0), method, optax.sgd(0.5), size=64))
        views = jax.ShapeDtypeStruct((32, 2, 64, 64, 3), jnp.float32)
        compiled = jax.jit(partial(update, method=method, optimizer=optax.sgd(0.5))).lower(state, views).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert in_use(8) < in_use(1) / 3


def test_every_device_takes_its_share_of_every_part():
    encoder = ResNet((1, 1, 1, 1), BasicBlock, width=4, output_stride=8)
    method = simclr(MicroBatched(encoder, 2), temperature=0.3, embedding=8)
    step = partial(gs_step, method=method, optimizer=optax.sgd(0.5), augment=ready, hp=GuidanceSettings())
    losses = []
    for devices in (1, 4):
        mesh = make_mesh(jax.devices()[:devices])
        state, views = start(method, np.float32)
        compiled = compile_step(step, mesh)
        batch = global_batch({"views": np.asarray(views)}, mesh)
        if devices > 1:  # views stay where they are
            text = compiled.lower(state, batch, jax.random.key(0)).compile().as_text()
            assert f",{SIZE},{SIZE},3]" not in "".join(line for line in text.splitlines() if "all-gather" in line)
            assert "all-to-all" not in text
        _, metrics = compiled(state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_parts_must_divide_the_tiles():
    method = simclr(MicroBatched(Plain(), 3), temperature=0.3)
    state, views = start(method, np.float32)
    with pytest.raises(ValueError, match=r"^3 parts cannot share 8 tiles: config\.micro_batches must divide"):
        update(state, views, method=method, optimizer=optax.sgd(0.5))
