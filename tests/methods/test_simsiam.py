"""SimSiam: the loss against a loop, where its gradient flows, and thirty updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.methods.simsiam import simsiam, simsiam_loss
from grass_jax.state import create_state


def plain_loss(predictions, projections):
    """Equations 1 and 2, D(p1, z2) / 2 + D(p2, z1) / 2, in float64."""
    total = 0.0
    for p, z in zip(np.float64(predictions), np.float64(projections), strict=True):
        for view in range(2):
            total -= p[view] @ z[1 - view] / np.linalg.norm(p[view]) / np.linalg.norm(z[1 - view]) / 2
    return total / len(predictions)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 2, 7)), 3 * rng.normal(size=(5, 2, 7)) + 0.5


def test_loss_is_the_formula(arrays):
    with jax.enable_x64(True):
        np.testing.assert_allclose(float(simsiam_loss(*map(jnp.asarray, arrays))), plain_loss(*arrays), rtol=1e-12)


def test_the_gradient_is_the_formulas_and_none_enters_the_projections(arrays, slopes):
    predictions, projections = arrays
    with jax.enable_x64(True):
        of_predictions, of_projections = jax.grad(simsiam_loss, (0, 1))(*map(jnp.asarray, arrays))
    assert not of_projections.any()
    found = slopes(lambda p: plain_loss(p, projections), predictions)
    np.testing.assert_allclose(np.ravel(of_predictions), found, atol=1e-8)


def test_zero_vectors_stay_finite():
    zeros = jnp.zeros((3, 2, 4))
    loss, gradient = jax.value_and_grad(simsiam_loss)(zeros, zeros)
    assert float(loss) == 0
    assert np.isfinite(gradient).all()


@pytest.fixture(scope="module")
def tiny_simsiam(tiny_encoder):
    # a predictor without a bottleneck: one of 16 channels learns too little in thirty updates
    return simsiam(tiny_encoder, hidden=64, embedding=32, bottleneck=64)


def test_the_gradient_at_the_features_takes_the_other_side_as_given(tiny_simsiam, slopes):
    """Against the loss's slope where only the predictions move, the network written out in NumPy."""
    state = create_state(jax.random.key(0), tiny_simsiam, optax.adam(1e-3), size=32)
    features = np.random.default_rng(1).normal(size=(6, 2, 1, 1, 64))
    params = jax.tree.map(np.float64, {name: state.params[name] for name in ("projector", "predictor")})

    def normed(x):
        return (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)

    def project(x):
        p = params["projector"]
        for layer in (1, 2):
            x = normed(x @ p[f"dense{layer}"]["kernel"]) * p[f"bn{layer}"]["scale"] + p[f"bn{layer}"]["bias"]
            x = np.maximum(x, 0)
        return normed(x @ p["dense3"]["kernel"])

    def predict(x):
        p = params["predictor"]
        x = np.maximum(normed(x @ p["dense1"]["kernel"]) * p["bn1"]["scale"] + p["bn1"]["bias"], 0)
        return x @ p["dense2"]["kernel"] + p["dense2"]["bias"]

    given = project(features[:, :, 0, 0])

    def plain(features):
        return plain_loss(predict(project(features[:, :, 0, 0])), given)

    with jax.enable_x64(True):
        wide = jax.tree.map(jnp.asarray, {**params, "encoder": {}})
        both = jax.jit(jax.value_and_grad(lambda f: tiny_simsiam.loss(wide, state.stats, f, ())[0]))
        value, gradient = both(jnp.asarray(features))
    np.testing.assert_allclose(float(value), plain(features), rtol=1e-6)
    places = [(0, 0, 0, 0, 3), (2, 1, 0, 0, 40), (5, 0, 0, 0, 63)]
    found = slopes(plain, features, places)
    np.testing.assert_allclose([gradient[place] for place in places], found, rtol=1e-3, atol=1e-6)


def test_thirty_updates(train30, tiny_simsiam):
    state, metrics = train30(tiny_simsiam, rate=3e-3)
    losses = [step["loss"] for step in metrics]
    # 0 where predictions know nothing of the other view; -0.01 at first, -0.36 at last when this was written
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    # without the stop-gradient these five steps have 0.12 and 0.52; 1/sqrt(32) = 0.177 fills the sphere
    assert np.mean([step["embedding_std"] for step in metrics[-5:]]) > 0.85 / np.sqrt(32)
    assert np.mean([step["mean_cosine"] for step in metrics[-5:]]) < 0.2
    assert set(state.stats) == {"encoder", "projector", "predictor"}
    assert set(state.stats["projector"]) == {"bn1", "bn2", "bn3"}
    assert set(state.params["projector"]) == {"dense1", "bn1", "dense2", "bn2", "dense3"}
