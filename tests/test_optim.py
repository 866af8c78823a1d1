"""LARC and the schedules against the original's vectors and plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.optim import decay_mask, larc, original_schedule, warmup_cosine


@pytest.mark.parametrize("as_function", [False, True])
def test_larc_is_the_originals(vectors, as_function):
    z = vectors("larc")
    names = [str(name) for name in z["names"]]
    mask = {name: bool(decay) for name, decay in zip(names, z["weight_decay"], strict=True)}
    optimizer = larc(
        lambda count: jnp.asarray(z["lr"])[count],
        momentum=float(z["momentum"]),
        weight_decay=float(z["weight_decay"].max()),
        decay_mask=(lambda params: mask) if as_function else mask,
        trust_coefficient=float(z["trust"]),
        eps=float(z["eps"]),
    )
    with jax.enable_x64(True):
        params = {name: jnp.asarray(z[f"init/{name}"], jnp.float64) for name in names}
        state = optimizer.init(params)
        for t in range(3):
            gradients = {name: jnp.asarray(z[f"grad{t}/{name}"], jnp.float64) for name in names}
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            for name in names:
                expected, moved = z[f"param{t}/{name}"], np.asarray(params[name])
                np.testing.assert_allclose(moved, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
                buffer, expected = np.asarray(state[1].trace[name]), z[f"buf{t}/{name}"]
                np.testing.assert_allclose(buffer, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_larc_takes_a_plain_step_for_a_zero_tensor_and_needs_params():
    optimizer = larc(0.5, weight_decay=0.1)
    params, gradients = {"b": jnp.zeros(3)}, {"b": jnp.array([1.0, 2.0, 3.0])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["b"], [-0.5, -1.0, -1.5])
    with pytest.raises(ValueError, match="pass params"):
        optimizer.update(gradients, optimizer.init(params))


def test_decay_spares_batch_norm():
    params = {
        "encoder": {"conv1": {"kernel": 0}, "bn1": {"scale": 0, "bias": 0}},
        "head": {"dense1": {"kernel": 0, "bias": 0}},
    }
    assert decay_mask(params) == {
        "encoder": {"conv1": {"kernel": True}, "bn1": {"scale": False, "bias": False}},
        "head": {"dense1": {"kernel": True, "bias": True}},
    }
    assert not decay_mask(params, decay_bias=False)["head"]["dense1"]["bias"]


@pytest.mark.parametrize("x64", [False, True])
def test_original_schedule_is_the_originals(vectors, x64):
    expected = vectors("lr")["lr_350x10"]
    with jax.enable_x64(x64):
        actual = np.asarray(original_schedule(3500)(jnp.arange(3500)))
    assert np.abs(actual - expected).max() <= (1e-14 if x64 else 1e-6) * expected.max()


def test_warmup_cosine_rises_and_falls():
    schedule = warmup_cosine(100, peak=2.0, warmup=0.1, final=0.01)
    rates = np.array([float(schedule(step)) for step in range(101)])
    np.testing.assert_allclose(rates[:11], 0.2 + (2 - 0.2) * np.arange(11) / 10, rtol=1e-6)
    cosine = 0.02 + (2 - 0.02) * 0.5 * (1 + np.cos(np.pi * np.arange(91) / 90))
    np.testing.assert_allclose(rates[10:], cosine, rtol=1e-5)


def test_warmup_poly_is_deeplabs_schedule():
    from grass_jax.optim import warmup_poly

    schedule = warmup_poly(100, peak=0.01, warmup=0.1, power=0.9)
    steps = np.arange(100)
    expected = np.where(steps < 10, 0.001 + 0.009 * steps / 10, 0.01 * (1 - np.maximum(steps - 10, 0) / 90) ** 0.9)
    np.testing.assert_allclose([float(schedule(s)) for s in steps], expected, rtol=1e-5)
    np.testing.assert_allclose([float(warmup_poly(4, peak=1.0, power=1.0)(s)) for s in range(4)], [1, 0.75, 0.5, 0.25])
