"""The GS step with the guidance's settings: places inside the boxes, and eight devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.augment import Augmentation, two_views
from grass_jax.guidance import GuidanceSettings, guide
from grass_jax.methods.simclr import simclr
from grass_jax.models.resnet import BasicBlock, ResNet
from grass_jax.sharding import global_batch, make_mesh
from grass_jax.state import create_state
from grass_jax.steps import PLACING, compile_step, gs_step

TILES, SIZE = 8, 32
METHOD = simclr(ResNet((1, 1, 1, 1), BasicBlock, width=4, output_stride=8), embedding=16, temperature=0.5)

ask = jax.jit(partial(guide, method=METHOD), static_argnames="hp")


@pytest.fixture
def state():
    return create_state(jax.random.key(1), METHOD, optax.sgd(0.1), size=SIZE)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return {"image": rng.integers(0, 256, (TILES, 5, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)}


def augment(key, batch):
    return two_views(key, batch["image"], Augmentation(SIZE, area=(0.3, 1.0), blur=0.0), geometry=True)


def test_a_method_that_wants_places_gets_those_inside_the_boxes(state, batch):
    def loss(params, stats, features, geometry):
        value, (stats, metrics) = METHOD.loss(params, stats, features, ())
        return value + geometry.boxes.sum(), (stats, metrics | {"places": geometry.boxes, "flips": geometry.flips})

    spy = METHOD._replace(targets=lambda state, views, geometry: geometry, loss=loss)
    key = jax.random.key(5)
    step = jax.jit(partial(gs_step, method=spy, optimizer=optax.sgd(0.1), augment=augment))
    _, metrics = step(state, batch, key)
    views, geometry = jax.jit(augment)(key, batch)
    guidance, _ = ask(state, views, hp=GuidanceSettings(), key=jax.random.fold_in(key, PLACING))
    # the guidance looks at the views as they come
    np.testing.assert_allclose(metrics["loss_before"], guidance.loss + geometry.boxes.sum(), rtol=1e-6)
    assert geometry.flips.any()
    assert not geometry.flips.all()
    np.testing.assert_array_equal(metrics["flips"], geometry.flips)
    for tile, view in np.ndindex(TILES, 2):
        y0, x0, y1, x1 = np.asarray(geometry.boxes[tile, view], np.float64)
        top, left, bottom, right = np.asarray(guidance.boxes[tile, view]) / SIZE
        if geometry.flips[tile, view]:  # the view's left edge is the right one of its place
            left, right = 1 - right, 1 - left
        height, width = y1 - y0, x1 - x0
        place = (y0 + top * height, x0 + left * width, y0 + bottom * height, x0 + right * width)
        np.testing.assert_allclose(metrics["places"][tile, view], place, rtol=1e-5, atol=1e-4)
    assert (np.asarray(guidance.boxes[..., 2:] - guidance.boxes[..., :2]) < SIZE).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"boxes": "random", "views": "first"},
        {"source": "pixels", "size": 24, "threshold": 0.7},
        {"encoder": "random", "stage": 3, "negate": True},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_eight_devices_take_a_step(state, batch, settings):
    mesh, optimizer = make_mesh(), optax.sgd(0.1)
    assert mesh.size == 8
    parts = {"method": METHOD, "optimizer": optimizer, "augment": augment, "hp": GuidanceSettings(**settings)}
    step = compile_step(partial(gs_step, **parts), mesh)
    key = jax.random.key(0)
    views, _ = jax.jit(augment)(key, batch)
    alone, _ = ask(state, views, hp=parts["hp"], key=jax.random.fold_in(key, PLACING))
    after, metrics = step(state, global_batch(batch, mesh), key)  # takes the state with it
    assert int(after.step) == 1
    assert np.isfinite([float(value) for value in metrics.values()]).all()
    np.testing.assert_allclose(metrics["loss_before"], alone.loss, rtol=1e-4)
    extent = np.asarray(alone.boxes[..., 2:] - alone.boxes[..., :2])
    np.testing.assert_allclose(metrics["box_area"], extent.prod(-1).mean() / SIZE**2, rtol=0.02)


def test_views_in_the_encoders_dtype_change_no_number(batch):
    encoder = ResNet((1, 1, 1, 1), BasicBlock, width=4, output_stride=8, dtype=jnp.bfloat16)
    method = simclr(encoder, embedding=16, temperature=0.5)

    def halved(key, batch):
        views, geometry = augment(key, batch)
        return views.astype(jnp.bfloat16), geometry

    ends = []
    for views in (augment, halved):
        state = create_state(jax.random.key(1), method, optax.sgd(0.1), size=SIZE)
        step = jax.jit(partial(gs_step, method=method, optimizer=optax.sgd(0.1), augment=views))
        ends.append(step(state, batch, jax.random.key(5)))
    jax.tree.map(np.testing.assert_array_equal, *ends)
