"""BYOL: the loss against a loop, the target network against NumPy, and thirty updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.methods.byol import byol, byol_loss
from grass_jax.state import create_state
from grass_jax.steps import warmup_step


def plain_loss(predictions, projections):
    """Equation 2, |q/|q| - z/|z||^2, for each view's prediction of the other one, in float64."""
    b = len(predictions)
    total = 0.0
    for k in range(b):
        for view in range(2):
            q, z = np.float64(predictions[k, view]), np.float64(projections[k, 1 - view])
            total += np.sum((q / np.linalg.norm(q) - z / np.linalg.norm(z)) ** 2)
    return total / b


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 2, 7)), 3 * rng.normal(size=(5, 2, 7)) + 0.5


def test_loss_is_the_formula(arrays):
    with jax.enable_x64(True):
        np.testing.assert_allclose(float(byol_loss(*map(jnp.asarray, arrays))), plain_loss(*arrays), rtol=1e-12)
    loss = byol_loss(*(jnp.asarray(a, jnp.bfloat16) for a in arrays))
    assert loss.dtype == jnp.float32


def test_the_gradient_is_the_formulas_and_none_enters_the_targets(arrays, slopes):
    predictions, projections = arrays
    with jax.enable_x64(True):
        of_predictions, of_projections = jax.grad(byol_loss, (0, 1))(*map(jnp.asarray, arrays))
    assert not of_projections.any()
    found = slopes(lambda q: plain_loss(q, projections), predictions)
    np.testing.assert_allclose(np.ravel(of_predictions), found, atol=1e-8)


def test_zero_vectors_stay_finite():
    zeros = jnp.zeros((3, 2, 4))
    loss, gradient = jax.value_and_grad(byol_loss)(zeros, zeros)
    assert float(loss) == 4
    assert np.isfinite(gradient).all()


@pytest.fixture(scope="module")
def tiny_byol(tiny_encoder):
    return byol(tiny_encoder, total_steps=30, hidden=64, embedding=32, momentum=0.9)


@pytest.fixture(scope="module")
def start(tiny_byol):
    return create_state(jax.random.key(0), tiny_byol, optax.adam(3e-3), size=32)


def test_the_target_network_starts_as_the_online_one_and_follows_it(run_steps, tiny_byol, start):
    online = {name: start.params[name] for name in ("encoder", "projector")}
    jax.tree.map(np.testing.assert_array_equal, start.extra, online)
    state, _ = run_steps(tiny_byol, warmup_step, 1, rate=3e-3)  # from the same start
    online = {name: state.params[name] for name in online}
    expected = jax.tree.map(lambda old, new: 0.9 * np.float64(old) + 0.1 * np.float64(new), start.extra, online)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.extra, expected)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start.extra, state.extra)
    assert min(jax.tree.leaves(moved)) > 1e-4


def test_the_targets_are_the_target_networks_in_train_mode(tiny_byol, start):
    other = create_state(jax.random.key(1), tiny_byol, optax.adam(3e-3), size=32)
    views = jax.random.normal(jax.random.key(2), (4, 2, 32, 32, 3))
    targets = jax.jit(lambda state: tiny_byol.targets(state, views, None))
    found, momentum = targets(start.replace(extra=other.extra, step=jnp.int32(12)))
    np.testing.assert_allclose(float(momentum), 1 - 0.1 * (np.cos(np.pi * 12 / 30) + 1) / 2, rtol=1e-6)
    # of the other network alone: neither the online parameters nor any running statistics have a say
    expected, _ = targets(other.replace(stats=jax.tree.map(lambda x: x + 1, other.stats)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - targets(start)[0]).max() > 0.1


def test_with_given_weights_the_target_network_begins_with_them_too(tiny_byol, start):
    given = jax.tree.map(lambda x: x + 1, {"params": start.params["encoder"], "batch_stats": start.stats["encoder"]})
    state = create_state(jax.random.key(0), tiny_byol, optax.adam(3e-3), size=32, encoder=given)
    for encoder in (state.params["encoder"], state.extra["encoder"]):
        jax.tree.map(np.testing.assert_array_equal, encoder, given["params"])
    jax.tree.map(np.testing.assert_array_equal, state.extra["projector"], start.extra["projector"])


def test_thirty_updates(train30, tiny_byol):
    _, metrics = train30(tiny_byol, rate=3e-3)
    losses = [step["loss"] for step in metrics]
    # 4 where predictions know nothing of the targets; 3.6 at first, 2 at last when this was written
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
    assert np.mean([step["embedding_std"] for step in metrics[-5:]]) > 0.6 / np.sqrt(32)  # 1/sqrt(32) fills the sphere
    assert np.mean([step["mean_cosine"] for step in metrics[-5:]]) < 0.5
    assert metrics[0]["momentum"] == pytest.approx(0.9)
    assert metrics[-1]["momentum"] > 0.999 > metrics[-5]["momentum"]
