"""Gradients that are written otherwise on CPU are those of the plain operations, and other platforms keep those."""

import re
from collections import Counter
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.models import cpu_gradients
from grass_jax.models.cpu_gradients import convolve, max_pool, pointwise


def slope(kernel: np.ndarray, x: np.ndarray, dy: np.ndarray, stride: int, dilation: int) -> np.ndarray:
    """The gradient of a convolution's weights, one tap at a time."""
    pad = dilation * (len(kernel) // 2)
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    (h, w), found = dy.shape[1:3], np.zeros(kernel.shape)
    for i, j in np.ndindex(kernel.shape[:2]):
        y, z = i * dilation, j * dilation
        met = padded[:, y : y + stride * (h - 1) + 1 : stride, z : z + stride * (w - 1) + 1 : stride]
        found[i, j] = np.einsum("nhwc,nhwd->cd", met, dy)
    return found


@pytest.mark.parametrize(
    ("side", "size", "stride", "dilation"),
    [((9, 14), 7, 2, 1), ((64, 61), 3, 1, 2), ((130, 121), 3, 2, 1), ((8, 8), 3, 1, 1)],
)
def test_the_weights_gradient_of_a_convolution_is_the_sum_over_its_taps(side, size, stride, dilation):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, *side, 3)), rng.standard_normal((size, size, 3, 4))
    with jax.enable_x64():
        y, back = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, dilation), x, kernel)
        dy = rng.standard_normal(y.shape)
        dx, found = back(dy)
        (plain,) = jax.vjp(lambda x: cpu_gradients._convolution(x, kernel, stride, dilation), x)[1](dy)
    assert y.shape[1:3] == tuple(-(-s // stride) for s in side)
    np.testing.assert_allclose(found, slope(kernel, x, dy, stride, dilation), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(dx, plain)


def test_a_pointwise_product_and_its_gradients():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 5, 4, 3)), rng.standard_normal((3, 6))
    with jax.enable_x64():
        y, back = jax.vjp(pointwise, x, kernel)
        dy = rng.standard_normal(y.shape)
        dx, found = back(dy)
    np.testing.assert_allclose(y, x @ kernel, rtol=1e-12)
    np.testing.assert_allclose(dx, dy @ kernel.T, rtol=1e-12)
    np.testing.assert_allclose(found, x.reshape(-1, 3).T @ dy.reshape(-1, 6), rtol=1e-12)


@pytest.mark.parametrize("side", [(8, 8), (7, 10)])
def test_the_gradient_of_a_maximum_goes_to_the_first_place_that_holds_it(side):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, *side, 3)).astype(np.float64)  # many ties
    with jax.enable_x64():
        y, back = jax.vjp(max_pool, x)
        dy = rng.standard_normal(y.shape)
        y, dx = np.asarray(y), np.asarray(back(dy)[0])
    expected = np.zeros_like(x)
    for n, i, j, c in np.ndindex(y.shape):
        places = [(2 * i + a, 2 * j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        places = [place for place in places if 0 <= place[0] < side[0] and 0 <= place[1] < side[1]]
        best = max(places, key=lambda place: x[n, *place, c])  # the first of equal ones
        assert y[n, i, j, c] == x[n, *best, c]
        expected[n, *best, c] += dy[n, i, j, c]
    np.testing.assert_allclose(dx, expected, rtol=1e-12, atol=1e-12)


def test_the_gradient_through_a_norm_a_relu_and_the_pooling_is_the_plain_one():
    norm = nn.BatchNorm(use_running_average=False)
    x = jax.random.normal(jax.random.key(0), (4, 64, 64, 16))
    variables = norm.init(jax.random.key(0), x)

    def pooled(bias, pool):
        y, _ = norm.apply(
            {"params": variables["params"] | {"bias": bias}, "batch_stats": variables["batch_stats"]},
            *(x,),
            mutable=["batch_stats"],
        )
        return jnp.sum(pool(nn.relu(y)) * jnp.arange(1.0, 17))

    bias = jnp.full(16, 3.0)
    found, plain = (jax.jit(jax.grad(partial(pooled, pool=pool)))(bias) for pool in (max_pool, cpu_gradients._maximum))
    np.testing.assert_allclose(found, plain, rtol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_other_platforms_have_the_programs_of_the_plain_operations(platform, monkeypatch):
    x, kernel, one = jnp.ones((1, 128, 128, 3)), jnp.ones((7, 7, 3, 8)), jnp.ones((8, 8))

    def all_three(x, kernel, one):
        return jnp.sum(pointwise(max_pool(convolve(x, kernel, 2, 1)), one))

    def operations() -> Counter[str]:
        traced = jax.jit(jax.grad(lambda *a: all_three(*a), argnums=(1, 2))).trace(x, kernel, one)
        found = Counter(re.findall(r"stablehlo\.(\w+)", traced.lower(lowering_platforms=(platform,)).as_text()))
        return Counter({name: n for name, n in found.items() if name not in ("case", "constant", "return")})

    own = operations()
    monkeypatch.setattr(cpu_gradients, "on_cpu", lambda quick, plain, *arrays: plain(*arrays))
    plain = operations()
    assert plain["select_and_scatter"] == 1
    assert (own == plain) == (platform != "cpu")
    assert own["convolution"] == plain["convolution"] - (platform == "cpu")
