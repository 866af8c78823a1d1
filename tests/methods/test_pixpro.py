"""PixPro: propagation and loss against loops, the moving average against NumPy, and thirty updates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.augment import Geometry
from grass_jax.methods.pixpro import pixpro, pixpro_loss, propagate
from grass_jax.state import create_state
from grass_jax.steps import update


@pytest.fixture(scope="module")
def tiny_pixpro(tiny_encoder):
    return pixpro(tiny_encoder, hidden=128, embedding=32, total_steps=30)


def unit(x):
    return x / np.linalg.norm(x)


def plain_propagation(x, g, gamma):
    y = np.zeros(x.shape)
    for k, v, i, j in np.ndindex(*x.shape[:3], x.shape[2]):
        y[k, v, i] += max(unit(x[k, v, i]) @ unit(x[k, v, j]), 0) ** gamma * unit(g[k, v, j])
    return y


def plain_loss(y, x, positives):
    tiles = []
    for k in range(len(y)):
        pairs = [
            -(unit(y[k, 0, i]) @ unit(x[k, 1, j])) - unit(y[k, 1, j]) @ unit(x[k, 0, i])
            for i, j in np.argwhere(positives[k])
        ]
        if pairs:
            tiles.append(np.mean(pairs))
    return np.mean(tiles) if tiles else 0.0


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    x, g, targets = rng.normal(size=(3, 3, 2, 6, 5))
    positives = rng.random((3, 6, 6)) < 0.3
    positives[1] = False  # views that do not overlap
    return x, g, targets, positives


@pytest.mark.parametrize("gamma", [1.0, 2.0, 2.5])
def test_propagation(arrays, gamma):
    x, g, _, _ = arrays
    with jax.enable_x64(True):
        found = propagate(jnp.asarray(x), jnp.asarray(g), gamma=gamma)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, plain_propagation(x, g, gamma), rtol=1e-10, atol=1e-12)


def test_loss(arrays):
    x, _, targets, positives = arrays
    with jax.enable_x64(True):
        found = pixpro_loss(jnp.asarray(x), jnp.asarray(targets), jnp.asarray(positives))
    np.testing.assert_allclose(found, plain_loss(x, targets, positives), rtol=1e-10)
    np.testing.assert_allclose(pixpro_loss(x, x, np.broadcast_to(np.eye(6, dtype=bool), (3, 6, 6))),
                               plain_loss(x, x, np.stack([np.eye(6)] * 3)), rtol=1e-5)  # fmt: skip


def test_gradient(arrays, slopes):
    x, g, targets, positives = arrays

    def loss(x, g, targets):
        return pixpro_loss(propagate(x, g, gamma=2.0), targets, jnp.asarray(positives))

    with jax.enable_x64(True):
        of_x, of_g, of_targets = jax.grad(loss, (0, 1, 2))(*(jnp.asarray(a) for a in (x, g, targets)))
    places = [(0, 0, 2, 1), (0, 1, 4, 3), (2, 1, 0, 0)]
    for array, gradient, plain in (
        (x, of_x, lambda x: plain_loss(plain_propagation(x, g, 2.0), targets, positives)),
        (g, of_g, lambda g: plain_loss(plain_propagation(x, g, 2.0), targets, positives)),
    ):
        found = slopes(plain, array, places)
        np.testing.assert_allclose([gradient[place] for place in places], found, rtol=1e-5, atol=1e-9)
        assert (np.asarray(gradient[1]) == 0).all()  # the tile without pairs
        assert np.abs(gradient[0][0]).max() > 0  # both views get a gradient
        assert np.abs(gradient[0][1]).max() > 0
    np.testing.assert_array_equal(of_targets, np.zeros_like(targets))


def test_zeros_and_views_that_never_overlap_stay_finite(arrays):
    x, g, targets, positives = arrays

    def loss(x, g, positives):
        return pixpro_loss(propagate(x, g, gamma=2.0), targets, positives)

    for case in ((np.zeros_like(x), g, positives), (x, g, np.zeros_like(positives))):
        value, gradients = jax.value_and_grad(loss, (0, 1))(*(jnp.asarray(a) for a in case))
        assert value == 0
        for gradient in gradients:
            assert np.isfinite(gradient).all()
            assert case[2].any() or (gradient == 0).all()


def test_the_moving_average_after_updates(tiny_pixpro):
    """Momentum rises from 0.99 to 1 on half a cosine over the run, and the average follows the updated parameters."""
    optimizer = optax.sgd(0.1)
    state = create_state(jax.random.key(0), tiny_pixpro, optimizer, size=32)
    assert state.extra.keys() == {"encoder", "head"}
    jax.tree.map(np.testing.assert_array_equal, state.extra, {name: state.params[name] for name in state.extra})
    views = jax.random.normal(jax.random.key(1), (2, 2, 32, 32, 3))
    boxes = jnp.array([[[0, 0, 40, 40], [8, 8, 48, 48]]] * 2, jnp.int32)
    geometry = Geometry(boxes, jnp.zeros((2, 2), bool))
    # after 12 of 30 steps
    state = state.replace(step=jnp.asarray(12, jnp.int32))
    step = jax.jit(partial(update, method=tiny_pixpro, optimizer=optimizer))
    after, metrics = step(state, views, geometry=geometry)
    momentum = 1 - 0.01 * (np.cos(np.pi * 12 / 30) + 1) / 2
    assert metrics["overlapping"] == 1

    def check(old, new, found):
        wanted = momentum * np.asarray(old, np.float64) + (1 - momentum) * np.asarray(new, np.float64)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)

    new = {name: after.params[name] for name in state.extra}
    jax.tree.map(check, state.extra, new, after.extra)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.extra, state.extra)
    assert max(jax.tree.leaves(moved["encoder"])) > 0
    assert after.extra.keys() == state.extra.keys()
    assert after.params.keys() == {"encoder", "head", "transform"}


def test_thirty_updates(train30, tiny_pixpro):
    _, metrics = train30(tiny_pixpro)
    losses = [step["loss"] for step in metrics]
    assert np.isfinite(losses).all()
    # from 2 to -2, agreement; that of a random network with its average is nearly 0
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    last = {name: np.mean([step[name] for step in metrics[-5:]]) for name in metrics[-1]}
    # cells of one tile, and neighbours, are among them. With a gradient to the targets, which makes all cells alike, it
    # is 0.04 and 0.95 after as many steps; without, 0.09 and 0.77, falling again after 60
    assert last["embedding_std"] > 0.35 / np.sqrt(32)  # 1/sqrt(32) fills the sphere
    assert last["mean_cosine"] < 0.85
    assert last["overlapping"] > 0.9  # of crops of 0.4 of the area and more
