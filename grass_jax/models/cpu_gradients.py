"""The operations of a ResNet whose gradients XLA computes slowly on CPU, with gradients that are quick there.

The values are those of the plain operations, the gradients are so up to rounding, and on every other platform the
programs are the plain ones. `python -m benchmarks.variants` measures what they are worth.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

WINDOW = [(i, j) for i in range(3) for j in range(3)]  # of the pooling


def on_cpu(quick: Callable, plain: Callable, *arrays: jax.Array) -> jax.Array:
    """Compiles `quick` for CPU and `plain` for all other platforms; both are functions of the arrays."""
    return jax.lax.platform_dependent(*arrays, cpu=quick, default=plain)


@jax.custom_vjp
def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies the channels of (n, h, w, c) by (c, d), as a 1x1 convolution does; returns (n, h, w, d)."""
    return jnp.einsum("nhwc,cd->nhwd", x, kernel)


def _pointwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return pointwise(x, kernel), (x, kernel)


def _pointwise_backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept

    def plain(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jnp.einsum("nhwc,nhwd->cd", x, dy)

    # one sum over n * h * w, and not three
    return jnp.einsum("nhwd,cd->nhwc", dy, kernel), on_cpu(_product, plain, x, dy)


def _product(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Sums x (..., c) times dy (..., d) over all positions: (c, d)."""
    return jnp.dot(x.reshape(-1, x.shape[-1]).T, dy.reshape(-1, dy.shape[-1]))


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Convolves with padding of `dilation * (k // 2)` on every side.

    Args:
        x: (n, h, w, c).
        kernel: (k, k, c, d), k odd.
        stride: of the result's positions.
        dilation: distance of the kernel's taps.

    Returns:
        (n, ceil(h / stride), ceil(w / stride), d).
    """
    return _convolution(x, kernel, stride, dilation)


def _convolution(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    pad = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _convolve_forward(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, stride, dilation), (x, kernel)


def _convolve_backward(
    stride: int, dilation: int, kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    plainly = partial(_convolution, stride=stride, dilation=dilation)
    (dx,) = jax.vjp(lambda x: plainly(x, kernel), x)[1](dy)

    def plain(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: plainly(x, kernel), kernel)[1](dy)[0]

    size, (h, w) = kernel.shape[0], dy.shape[1:3]

    def quick(x: jax.Array, dy: jax.Array) -> jax.Array:
        """A product for each row of the kernel, with what its columns meet side by side.

        For the stem and for maps of 56x56 it takes about half the time of XLA's convolution, for smaller maps as long;
        but in a loop, as micro-batches run in, that convolution takes twenty times longer.
        """
        pad, taps = dilation * (size // 2), range(0, dilation * size, dilation)
        padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        columns = jnp.concatenate([padded[:, :, j : j + stride * (w - 1) + 1 : stride] for j in taps], -1)
        rows = [_product(columns[:, i : i + stride * (h - 1) + 1 : stride], dy) for i in taps]
        return jnp.stack(rows).reshape(kernel.shape)

    return dx, on_cpu(quick, plain, x, dy)


convolve.defvjp(_convolve_forward, _convolve_backward)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of windows of 3x3 with stride 2 and padding of one on every side.

    Args:
        x: (n, h, w, c).

    Returns:
        (n, ceil(h / 2), ceil(w / 2), c). Of equal maxima the first one gets the gradient.
    """
    return _maximum(x)


def _maximum(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return max_pool(x), x


def _max_pool_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    def plain(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(_maximum, x)[1](dy)[0]

    return (on_cpu(_to_the_chosen, plain, x, dy),)


def _to_the_chosen(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Adds the gradient of each window (n, h', w', c) to the place of its first maximum in x (n, h, w, c)."""
    (height, width), (h, w) = x.shape[1:3], dy.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    # Which place it is, and not whether its value equals the maximum: the compiler may compute x anew for each of the
    # two, rounded differently, and the gradient would be lost.
    best, chosen = jnp.full(dy.shape, -jnp.inf, x.dtype), jnp.zeros(dy.shape, jnp.int32)
    for place, (i, j) in enumerate(WINDOW):
        value = padded[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2]
        better = value > best
        best, chosen = jnp.where(better, value, best), jnp.where(better, place, chosen)
    dx, zero = jnp.zeros(padded.shape, dy.dtype), jnp.zeros((), dy.dtype)
    for place, (i, j) in enumerate(WINDOW):
        ends = ((0, 0, 0), (i, height + 3 - i - 2 * h, 1), (j, width + 3 - j - 2 * w, 1), (0, 0, 0))
        dx += jax.lax.pad(jnp.where(chosen == place, dy, 0), zero, ends)
    return dx[:, 1:-1, 1:-1]


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
