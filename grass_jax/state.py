"""What training carries from step to step: arrays, nothing else."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from grass_jax.methods import Method


class TrainState(flax.struct.PyTreeNode):
    """The whole state of a run.

    Attributes:
        step: updates done so far, int32 scalar.
        params: trained parameters.
        stats: batch-norm statistics.
        opt_state: of the optimiser.
        extra: arrays of the method: moving averages, queues, prototypes.
    """

    step: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    extra: Any


def create_state(
    key: jax.Array,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    size: int,
    bands: int = 3,
    reinitialise: Callable[[jax.Array, Any], Any] | None = None,
) -> TrainState:
    """Makes the state before the first step.

    Args:
        key: for the initial parameters.
        method: e.g. `methods.simclr.simclr(...)`.
        optimizer: any optax transformation.
        size: view size s in pixels.
        bands: channels c of a view.
        reinitialise: (key, params) -> params, e.g. `models.original_init`; None keeps the modules' own initialisers.

    Returns:
        The state, on the default device.
    """

    @jax.jit
    def init(key: jax.Array) -> TrainState:
        params, stats, extra = method.init(key, jnp.zeros((2, 2, size, size, bands)))
        if reinitialise is not None:
            params = reinitialise(key, params)
        return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), extra)

    return init(key)
