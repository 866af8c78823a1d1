"""The loss attention map against the original's vectors and a plain computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.losses import info_nce
from grass_jax.sampling.attention import loss_attention_map

CASES = ["lam_v8_c64_h7", "lam_v16_c128_h4_t01", "lam_v8_c64_h8_relu"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("averaged", [False, True])
def test_maps_are_the_originals(vectors, case, averaged):
    z = vectors(case)
    features = jnp.asarray(z["features"].transpose(0, 2, 3, 1))
    gradients = (
        z["grad_pooled"] / np.prod(features.shape[1:3]) if averaged else z["grad_features"].transpose(0, 2, 3, 1)
    )
    raw = loss_attention_map(features, jnp.asarray(gradients))
    assert np.abs(raw - z["lam_raw"]).max() <= 1e-5 * np.abs(z["lam_raw"]).max()
    np.testing.assert_allclose(raw / raw.max((1, 2), keepdims=True), z["lam_norm"], atol=5e-5)


@pytest.mark.parametrize("case", CASES)
def test_maps_follow_from_the_loss(vectors, case):
    """From features to map through our own head and loss: the whole chain of the guidance."""
    z = vectors(case)
    features = jnp.asarray(z["features"].transpose(0, 2, 3, 1))

    def loss(features):
        hidden = features.mean((1, 2)) @ z["W1"].T + z["b1"]
        hidden = jax.nn.relu(hidden) if bool(z["relu_between"]) else hidden
        rows = hidden @ z["W2"].T + z["b2"]
        return info_nce(jnp.stack(jnp.split(rows, 2), 1), temperature=float(z["temperature"]))

    value, gradients = jax.value_and_grad(loss)(features)
    np.testing.assert_allclose(float(value), float(z["loss"]), rtol=2e-6)
    maps = loss_attention_map(features, gradients)
    assert np.abs(maps - z["lam_raw"]).max() <= 1e-5 * np.abs(z["lam_raw"]).max()


def test_leading_axes_and_low_precision():
    rng = np.random.default_rng(0)
    features, gradients = rng.normal(size=(3, 2, 4, 5, 8)), rng.normal(size=(3, 2, 8))
    expected = (features * gradients[:, :, None, None]).mean(-1)
    np.testing.assert_allclose(loss_attention_map(jnp.asarray(features), jnp.asarray(gradients)), expected, atol=1e-6)
    assert loss_attention_map(jnp.asarray(features, jnp.bfloat16), jnp.asarray(gradients)).dtype == jnp.float32


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="fit neither"):
        loss_attention_map(jnp.zeros((2, 4, 4, 8)), jnp.zeros((2, 4)))
