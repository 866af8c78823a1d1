"""SwAV: assignment and loss against loops, the prototypes before and after they thaw, and sixty updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.methods.skeleton import pool
from grass_jax.methods.swav import sinkhorn, swav, swav_loss
from grass_jax.state import create_state
from grass_jax.steps import warmup_step

K, E = 32, 32


def unit(x):
    x = np.float64(x)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def plain_sinkhorn(scores, epsilon, iterations):
    """Prototypes in rows: each row to 1/k, then each column, a sample, to 1/b; at last each sample to 1."""
    q = np.exp(scores / epsilon).T
    k, b = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        for row in range(k):
            q[row] *= 1 / k / q[row].sum()
        for column in range(b):
            q[:, column] *= 1 / b / q[:, column].sum()
    return (b * q).T


def plain_loss(scores, codes, temperature):
    losses = []
    for k in range(len(scores)):
        for view in range(2):
            p = np.exp(scores[k, view] / temperature)
            losses.append(-np.sum(codes[k, 1 - view] * np.log(p / p.sum())))
    return np.mean(losses)


@pytest.fixture
def scores():
    return np.random.default_rng(0).uniform(-1, 1, (7, 2, 5))


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_is_the_formula(scores, iterations):
    with jax.enable_x64(True):
        codes = sinkhorn(jnp.asarray(scores[:, 0]), epsilon=0.05, iterations=iterations)
    np.testing.assert_allclose(codes, plain_sinkhorn(scores[:, 0], 0.05, iterations), rtol=1e-10)


def test_codes_share_out_the_batch(scores):
    codes = np.asarray(sinkhorn(jnp.asarray(scores[:, 0]), epsilon=0.5, iterations=50))
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(codes.sum(0), 7 / 5, rtol=1e-4)


def test_codes_stay_finite_at_a_small_epsilon(scores):
    codes = np.asarray(sinkhorn(jnp.asarray(scores[:, 0], jnp.float32), epsilon=0.01, iterations=3))
    with np.errstate(over="raise"):  # exp(100) is beyond float32
        expected = plain_sinkhorn(scores[:, 0], 0.01, 3)
    np.testing.assert_allclose(codes, expected, rtol=1e-3, atol=1e-6)
    same = np.asarray(sinkhorn(jnp.ones((7, 5)), epsilon=0.01, iterations=3))
    np.testing.assert_allclose(same, 1 / 5, rtol=1e-6)  # all alike: the collapse


def test_loss_is_the_formula_and_no_gradient_enters_the_codes(scores, slopes):
    codes = np.random.default_rng(1).dirichlet(np.ones(5), (7, 2))
    with jax.enable_x64(True):
        loss, (of_scores, of_codes) = jax.value_and_grad(lambda s, c: swav_loss(s, c, temperature=0.1), (0, 1))(
            jnp.asarray(scores), jnp.asarray(codes)
        )
    np.testing.assert_allclose(float(loss), plain_loss(scores, codes, 0.1), rtol=1e-12)
    assert not of_codes.any()
    np.testing.assert_allclose(np.ravel(of_scores), slopes(lambda s: plain_loss(s, codes, 0.1), scores), atol=1e-7)


@pytest.fixture(scope="module")
def tiny_swav(tiny_encoder):
    return swav(tiny_encoder, hidden=64, embedding=E, prototypes=K, epsilon=0.02, freeze_steps=2)


@pytest.fixture(scope="module")
def start(tiny_swav):
    return create_state(jax.random.key(0), tiny_swav, optax.adam(1e-3), size=32)


def plain_scores(params, features):
    """Pooled features (b, 2, d) through projector and prototypes, batch norm over all views."""
    head = jax.tree.map(np.float64, params["projector"])
    x = np.float64(features) @ head["dense1"]["kernel"]
    x = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5) * head["bn1"]["scale"] + head["bn1"]["bias"]
    embeddings = np.maximum(x, 0) @ head["dense2"]["kernel"] + head["dense2"]["bias"]
    return unit(embeddings) @ unit(np.transpose(params["prototypes"]["kernel"])).T


def test_the_methods_loss_is_the_formula(tiny_swav, start):
    features = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 4, 4, 64)), jnp.float32)
    kernel = 3 * start.params["prototypes"]["kernel"]  # its length does not count
    params = {**start.params, "prototypes": {"kernel": kernel}}
    loss, (stats, metrics) = tiny_swav.loss(params, start.stats, features, jnp.asarray(False))
    scores = plain_scores(params, pool(features))
    codes = np.stack([plain_sinkhorn(scores[:, view], 0.02, 3) for view in range(2)], 1)
    np.testing.assert_allclose(float(loss), plain_loss(scores, codes, 0.1), rtol=1e-4)
    entropy = -np.mean(np.sum(codes * np.log(np.maximum(codes, 1e-300)), -1))
    np.testing.assert_allclose(float(metrics["code_entropy"]), entropy, rtol=1e-3)
    assert np.abs(stats["projector"]["bn1"]["mean"] - start.stats["projector"]["bn1"]["mean"]).max() > 0


def test_the_gradient_is_that_of_fixed_codes(tiny_swav, start, slopes):
    """To the prototypes, one by one; frozen they get none."""
    features = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 4, 4, 64)), jnp.float32)

    def gradient(frozen):
        return jax.grad(lambda p: tiny_swav.loss(p, start.stats, features, jnp.asarray(frozen))[0])(start.params)

    frozen, thawed = gradient(True), gradient(False)
    assert not frozen["prototypes"]["kernel"].any()
    jax.tree.map(np.testing.assert_array_equal, frozen["projector"], thawed["projector"])
    scores = plain_scores(start.params, pool(features))
    codes = np.stack([plain_sinkhorn(scores[:, view], 0.02, 3) for view in range(2)], 1)

    def plain(kernel):
        return plain_loss(plain_scores({**start.params, "prototypes": {"kernel": kernel}}, pool(features)), codes, 0.1)

    kernel, places = np.float64(start.params["prototypes"]["kernel"]), [(0, 0), (3, 1), (E - 1, K - 1)]
    of_kernel = [thawed["prototypes"]["kernel"][place] for place in places]
    np.testing.assert_allclose(of_kernel, slopes(plain, kernel, places), atol=1e-4)


def test_prototypes_thaw_after_their_steps(run_steps, tiny_swav, start):
    state, _ = run_steps(tiny_swav, warmup_step, 2)  # from the same start
    np.testing.assert_array_equal(state.params["prototypes"]["kernel"], start.params["prototypes"]["kernel"])
    assert not tiny_swav.targets(state, None, None)
    assert tiny_swav.targets(start, None, None)
    state, _ = run_steps(tiny_swav, warmup_step, 3)
    moved = np.abs(state.params["prototypes"]["kernel"] - start.params["prototypes"]["kernel"])
    assert moved.max() > 1e-4


def test_sixty_updates(run_steps, tiny_encoder):
    """Sixty and not thirty: the loss falls to log k first, by predictions that doubt more, and below it by learning."""
    method = swav(tiny_encoder, hidden=64, embedding=E, prototypes=K, epsilon=0.02)
    _, metrics = run_steps(method, warmup_step, 60, rate=3e-3)
    losses = [step["loss"] for step in metrics]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
    # log k is the loss where all views are alike: to come below, predictions must tell tiles apart
    assert np.mean(losses[-20:]) < np.log(K) - 0.1
    assert np.mean([step["code_entropy"] for step in metrics[-5:]]) < 0.8 * np.log(K)
    assert np.mean([step["embedding_std"] for step in metrics[-5:]]) > 0.4 / np.sqrt(E)  # 1/sqrt(32) fills the sphere
    assert np.mean([step["mean_cosine"] for step in metrics[-5:]]) < 0.8
