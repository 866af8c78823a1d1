"""Barlow Twins: cross-correlation and loss against loops, their gradient, and thirty updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.methods.barlow_twins import barlow_twins, barlow_twins_loss, cross_correlation


def plain_correlation(embeddings):
    """Equation 2 on channels whose mean over the batch is taken off, in float64; the 1e-5 is that of a batch norm."""
    b, _, e = embeddings.shape
    z = np.float64(embeddings) - np.float64(embeddings).mean(0)
    c = np.zeros((e, e))
    for i in range(e):
        for j in range(e):
            first, second = z[:, 0, i], z[:, 1, j]
            c[i, j] = sum(first * second) / np.sqrt(sum(first**2) + 1e-5 * b) / np.sqrt(sum(second**2) + 1e-5 * b)
    return c


def plain_loss(embeddings, redundancy):
    """Equation 1."""
    c = plain_correlation(embeddings)
    total = 0.0
    for i in range(len(c)):
        for j in range(len(c)):
            total += (1 - c[i, i]) ** 2 if i == j else redundancy * c[i, j] ** 2
    return total


@pytest.fixture
def embeddings():
    """(9, 2, 5): the second views are noisy copies of the first, on scales and offsets of their own."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(9, 5))
    return np.stack([first, 3 * first + rng.normal(size=(9, 5)) + 2], 1)


def test_correlation_is_the_formula(embeddings):
    with jax.enable_x64(True):
        found = cross_correlation(jnp.asarray(embeddings))
    np.testing.assert_allclose(found, plain_correlation(embeddings), rtol=1e-12)
    by_numpy = np.corrcoef(embeddings[:, 0], embeddings[:, 1], rowvar=False)[:5, 5:]
    np.testing.assert_allclose(found, by_numpy, atol=1e-4)
    assert cross_correlation(jnp.asarray(embeddings, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("redundancy", [0.0, 5e-3, 1.0])
def test_loss_and_gradient_are_the_formulas(embeddings, redundancy, slopes):
    with jax.enable_x64(True):
        both = jax.jit(jax.value_and_grad(lambda z: barlow_twins_loss(z, redundancy=redundancy)))
        loss, gradient = both(jnp.asarray(embeddings))
    np.testing.assert_allclose(float(loss), plain_loss(embeddings, redundancy), rtol=1e-12)
    found = slopes(lambda z: plain_loss(z, redundancy), embeddings)
    np.testing.assert_allclose(np.ravel(gradient), found, atol=1e-8)


def test_equal_views_of_unrelated_channels_have_no_loss():
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    loss = barlow_twins_loss(jnp.stack([signs, signs], 1), redundancy=1.0)
    np.testing.assert_allclose(float(loss), 0, atol=1e-9)


def test_constant_channels_stay_finite():
    both = jax.jit(jax.value_and_grad(lambda z: barlow_twins_loss(z, redundancy=5e-3)))
    loss, gradient = both(jnp.zeros((4, 2, 3)))
    assert float(loss) == 3
    assert np.isfinite(gradient).all()


def test_thirty_updates(train30, tiny_encoder):
    state, metrics = train30(barlow_twins(tiny_encoder, hidden=64, embedding=32), rate=3e-3)
    losses = [step["loss"] for step in metrics]
    # 32, one for every channel, where the views do not agree at all; 27 at first, 8 at last when this was written
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 8
    assert np.mean([step["embedding_std"] for step in metrics[-5:]]) > 0.7 / np.sqrt(32)  # 1/sqrt(32) fills the sphere
    assert np.mean([step["mean_cosine"] for step in metrics[-5:]]) < 0.4
    diagonal = [step["diagonal"] for step in metrics]
    assert np.mean(diagonal[-5:]) > np.mean(diagonal[:5]) + 0.2
    assert 0 < metrics[-1]["off_diagonal"] < 1
    assert set(state.stats) == {"encoder", "projector"}
