"""A train step compiled without data or state: what it costs, and the largest batch that fits."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from grass_jax.planning.program_cost import Cost, cost_of
from grass_jax.steps import compile_step

HEADROOM = 0.97  # of a device's memory: the rest is the runtime's, and pieces too small to use


class Compiled(NamedTuple):
    """A step for one batch size.

    Attributes:
        batch_size: tiles of a global batch.
        memory_bytes: in use on each device; of a step that does not fit what the compiler says it needs, 0 where it
            does not say.
        cost: of one run, of each device; None where the compiler finds that it does not fit.
        program: to be called with state, batch and key, all of them placed; None where it does not fit.
        seconds: time that the compiler took.
    """

    batch_size: int
    memory_bytes: float
    cost: Cost | None
    program: jax.stages.Compiled | None
    seconds: float


def compile_batch(step: Callable, mesh: Mesh, state: Any, tile: Mapping[str, Any], batch_size: int) -> Compiled:
    """Compiles a step for a batch that does not exist.

    Args:
        step: (state, batch, key) -> (state, metrics), as for `steps.compile_step`.
        mesh: over devices of this machine or of a topology.
        state: shapes and dtypes, from `jax.eval_shape`.
        tile: one tile, {name: anything with shape and dtype}.
        batch_size: tiles of the global batch.
    """
    rows = {name: jax.ShapeDtypeStruct((batch_size, *one.shape), one.dtype) for name, one in tile.items()}
    began = time.monotonic()
    lowered = compile_step(step, mesh).lower(state, rows, jax.eval_shape(lambda: jax.random.key(0)))
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(batch_size, _needed(str(error)), None, None, time.monotonic() - began)
    cost = cost_of(program)
    return Compiled(batch_size, cost.memory_bytes, cost, program, time.monotonic() - began)


def _needed(message: str) -> float:
    """Bytes in a message such as "Used 20.51G of 15.75G hbm"; 0 without them."""
    used = re.search(r"Used ([\d.]+)([KMGT]) of", message)
    return float(used[1]) * 1024 ** ("KMGT".index(used[2]) + 1) if used else 0.0


def other_batch_size(batch_size: int, unit: int) -> int:
    """A second batch size to measure with: about half of the first, a multiple of `unit`, of at least two tiles."""
    half = batch_size // 2 // unit * unit
    return half if half >= 2 else 2 * batch_size


def largest_batch(first: tuple[int, float], second: tuple[int, float], memory: float, unit: int) -> int:
    """Estimates the largest batch that fits, from the memory of two: it grows about linearly.

    Args:
        first: batch size and bytes in use on each device.
        second: the same of another batch size.
        memory: bytes of a device.
        unit: batches are multiples of this.

    Returns:
        Tiles of a global batch; 0 where not even one multiple fits, or the two do not grow.
    """
    (b0, m0), (b1, m1) = first, second
    slope = (m1 - m0) / (b1 - b0)
    if slope <= 0:
        return 0
    return max(0, int((HEADROOM * memory - (m0 - slope * b0)) / slope) // unit * unit)
