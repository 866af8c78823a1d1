"""VICReg: the three terms and the loss against loops, their gradient, and thirty updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.methods.vicreg import vicreg, vicreg_loss, vicreg_terms

WEIGHTS = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}


def plain_terms(embeddings):
    """Algorithm 1 in loops and float64."""
    b, _, e = embeddings.shape
    first, second = np.float64(embeddings[:, 0]), np.float64(embeddings[:, 1])
    invariance = sum((first[n, j] - second[n, j]) ** 2 for n in range(b) for j in range(e)) / (b * e)
    variance = covariance = 0.0
    for z in (first, second):
        z = z - z.mean(0)
        for i in range(e):
            variance += max(0.0, 1 - np.sqrt(sum(z[:, i] ** 2) / (b - 1) + 1e-4)) / e
            for j in range(e):
                if i != j:
                    covariance += (sum(z[:, i] * z[:, j]) / (b - 1)) ** 2 / e
    return {"invariance": invariance, "variance": variance, "covariance": covariance}


def plain_loss(embeddings):
    terms = plain_terms(embeddings)
    return sum(WEIGHTS[name] * terms[name] for name in terms)


@pytest.fixture
def embeddings():
    """(7, 2, 5), channels on both sides of the hinge at a standard deviation of 1."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(7, 2, 5)) * [0.1, 0.4, 0.7, 1.5, 3] + 2
    assert (z.std(0, ddof=1) < 1).any()
    assert (z.std(0, ddof=1) > 1).any()
    return z


def test_terms_are_the_formulas(embeddings):
    with jax.enable_x64(True):
        found = vicreg_terms(jnp.asarray(embeddings))
    for name, value in plain_terms(embeddings).items():
        np.testing.assert_allclose(float(found[name]), value, rtol=1e-12, err_msg=name)
    by_numpy = sum((np.cov(embeddings[:, view], rowvar=False) ** 2).sum() for view in range(2))
    by_numpy -= (embeddings.var(0, ddof=1) ** 2).sum()
    np.testing.assert_allclose(float(found["covariance"]), by_numpy / 5, rtol=1e-12)
    assert vicreg_terms(jnp.asarray(embeddings, jnp.bfloat16))["covariance"].dtype == jnp.float32


def test_loss_and_gradient_are_the_formulas(embeddings, slopes):
    with jax.enable_x64(True):
        both = jax.jit(jax.value_and_grad(lambda z: vicreg_loss(z, **WEIGHTS)))
        loss, gradient = both(jnp.asarray(embeddings))
    np.testing.assert_allclose(float(loss), plain_loss(embeddings), rtol=1e-12)
    np.testing.assert_allclose(np.ravel(gradient), slopes(plain_loss, embeddings), rtol=1e-6, atol=1e-7)


def test_collapsed_embeddings_have_the_whole_hinge_and_a_finite_gradient():
    terms = vicreg_terms(jnp.ones((4, 2, 3)))
    assert float(terms["invariance"]) == float(terms["covariance"]) == 0
    np.testing.assert_allclose(float(terms["variance"]), 2 * (1 - 0.01), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda z: vicreg_loss(z, **WEIGHTS)))(jnp.ones((4, 2, 3)))
    assert np.isfinite(gradient).all()


def test_thirty_updates(train30, tiny_encoder):
    state, metrics = train30(vicreg(tiny_encoder, hidden=64, embedding=32), rate=3e-3)
    losses = [step["loss"] for step in metrics]
    # 37 at first, 30 at last when this was written; means of five consecutive steps differ by 1 or 2 by chance
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 3
    # without the variance term these five steps have 0.077 and 0.79; 1/sqrt(32) = 0.177 fills the sphere
    assert np.mean([step["embedding_std"] for step in metrics[-5:]]) > 0.7 / np.sqrt(32)
    assert np.mean([step["mean_cosine"] for step in metrics[-5:]]) < 0.4
    assert set(state.stats) == {"encoder", "projector"}
