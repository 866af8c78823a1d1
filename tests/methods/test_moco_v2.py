"""MoCo v2: the loss against a loop, the key network and its queue against NumPy, and sixty updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.methods.moco_v2 import moco_v2, moco_v2_loss
from grass_jax.state import create_state
from grass_jax.steps import warmup_step

QUEUE, E = 40, 32


def unit(x):
    x = np.float64(x)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def plain_loss(embeddings, keys, queue, temperature):
    """-log softmax of the positive among itself and the queue, one view at a time, in float64."""
    b, losses = len(embeddings), []
    for k in range(b):
        for view in range(2):
            query = unit(embeddings[k, view])
            logits = np.array([query @ unit(keys[k, 1 - view]), *(query @ negative for negative in queue)])
            exponentials = np.exp(logits / temperature)
            losses.append(-np.log(exponentials[0] / exponentials.sum()))
    return np.mean(losses)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    embeddings, queue = 2 * rng.normal(size=(5, 2, 7)), unit(rng.normal(size=(11, 7)))
    return embeddings, embeddings[:, ::-1] + rng.normal(size=(5, 2, 7)), queue


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_loss_is_the_formula(arrays, temperature):
    with jax.enable_x64(True):
        loss = moco_v2_loss(*map(jnp.asarray, arrays), temperature=temperature)
    np.testing.assert_allclose(float(loss), plain_loss(*arrays, temperature), rtol=1e-12)
    assert moco_v2_loss(*(jnp.asarray(a, jnp.bfloat16) for a in arrays), temperature=0.2).dtype == jnp.float32


def test_the_gradient_is_the_formulas_and_none_enters_keys_and_queue(arrays, slopes):
    embeddings, keys, queue = arrays
    with jax.enable_x64(True):
        gradients = jax.grad(lambda *a: moco_v2_loss(*a, temperature=0.2), (0, 1, 2))(*map(jnp.asarray, arrays))
    assert not gradients[1].any()
    assert not gradients[2].any()
    found = slopes(lambda e: plain_loss(e, keys, queue, 0.2), embeddings)
    np.testing.assert_allclose(np.ravel(gradients[0]), found, atol=1e-8)


def test_zero_vectors_and_perfect_positives_stay_finite():
    zeros, queue = jnp.zeros((3, 2, 4)), jnp.eye(4)
    loss, gradient = jax.value_and_grad(lambda e: moco_v2_loss(e, zeros, queue, temperature=0.01))(zeros)
    np.testing.assert_allclose(float(loss), np.log(5), rtol=1e-6)
    assert np.isfinite(gradient).all()
    ones = jnp.ones((3, 2, 4))
    loss, gradient = jax.value_and_grad(lambda e: moco_v2_loss(e, -ones, -queue, temperature=0.01))(-ones)
    np.testing.assert_allclose(float(loss), 4 * np.exp(-50), rtol=1e-4)  # 1 - 1/2 over the temperature
    assert np.isfinite(gradient).all()


@pytest.fixture(scope="module")
def tiny_moco(tiny_encoder):
    return moco_v2(tiny_encoder, queue=QUEUE, embedding=E, momentum=0.9)


@pytest.fixture(scope="module")
def start(tiny_moco):
    return create_state(jax.random.key(0), tiny_moco, optax.adam(1e-3), size=32)


def test_the_start(start):
    jax.tree.map(np.testing.assert_array_equal, {n: start.extra[n] for n in start.params}, start.params)
    queue = np.asarray(start.extra["queue"])
    assert queue.shape == (QUEUE, E)
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-5)
    assert np.abs(queue @ queue.T - np.eye(QUEUE)).max() < 0.8  # no two alike


def test_keys_are_the_key_networks_in_train_mode(tiny_moco, tiny_encoder, start):
    other = create_state(jax.random.key(1), tiny_moco, optax.adam(1e-3), size=32)
    state = start.replace(extra=other.extra)
    views = np.random.default_rng(0).normal(size=(4, 2, 32, 32, 3)).astype(np.float32)
    targets = tiny_moco.targets(state, jnp.asarray(views), None)
    variables = {"params": other.params["encoder"], "batch_stats": other.stats["encoder"]}
    features, _ = tiny_encoder.apply(variables, views.reshape(8, 32, 32, 3), train=True, mutable=["batch_stats"])
    first, second = (jax.tree.map(np.float64, other.params["head"][name]) for name in ("dense1", "dense2"))
    hidden = np.maximum(np.float64(features).mean((1, 2)) @ first["kernel"] + first["bias"], 0)
    expected = unit(hidden @ second["kernel"] + second["bias"]).reshape(4, 2, E)
    np.testing.assert_allclose(targets["keys"], expected, atol=1e-5)
    np.testing.assert_array_equal(targets["queue"], other.extra["queue"])


def test_an_update_moves_the_average_and_the_queue(tiny_moco, start):
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda p: p + rng.normal(size=p.shape).astype(np.float32), start.params)
    keys = rng.normal(size=(6, 2, E)).astype(np.float32)
    extra = tiny_moco.after(start.extra, params, {"keys": jnp.asarray(keys), "queue": start.extra["queue"]})
    expected = jax.tree.map(
        lambda old, new: 0.9 * np.float64(old) + 0.1 * np.float64(new), {n: start.extra[n] for n in params}, params
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), {n: extra[n] for n in params}, expected
    )
    queue = [*(keys[k, view] for k in range(6) for view in range(2)), *start.extra["queue"][: QUEUE - 12]]
    np.testing.assert_array_equal(extra["queue"], np.stack(queue))


def test_the_queue_holds_the_last_batch_after_a_step(run_steps, tiny_moco, start):
    state, _ = run_steps(tiny_moco, warmup_step, 1)  # 16 tiles, from the same start
    queue = np.asarray(state.extra["queue"])
    np.testing.assert_array_equal(queue[32:], start.extra["queue"][:8])
    assert not np.isclose(queue[:32], start.extra["queue"][:32]).all(1).any()
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-5)


def test_a_queue_that_is_too_short_names_its_key(tiny_moco, start):
    targets = {"keys": jnp.zeros((QUEUE // 2 + 1, 2, E)), "queue": start.extra["queue"]}
    with pytest.raises(ValueError, match=r"raise config\.method\.queue"):
        tiny_moco.after(start.extra, start.params, targets)


def test_sixty_updates(run_steps, tiny_encoder):
    """Sixty and not thirty: the keys begin nearly alike, and spread as slowly as the moving average moves."""
    method = moco_v2(tiny_encoder, queue=32, embedding=E, momentum=0.99)
    _, metrics = run_steps(method, warmup_step, 60, rate=3e-3)
    losses = [step["loss"] for step in metrics]
    # from the second step the queue holds keys: log 33 where all are alike
    assert abs(np.mean(losses[1:6]) - np.log(33)) < 0.1
    # by little, for the queue holds every tile twice, as negatives of itself
    assert np.mean(losses[-20:]) < np.mean(losses[1:6]) - 0.06
    assert np.mean([step["embedding_std"] for step in metrics[-5:]]) > 0.4 / np.sqrt(E)  # 1/sqrt(32) fills the sphere
    assert np.mean([step["mean_cosine"] for step in metrics[-5:]]) < 0.75
