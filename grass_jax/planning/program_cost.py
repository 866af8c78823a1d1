"""What one run of a compiled program costs: arithmetic, memory, and bytes between chips; and the least time for it."""

from typing import NamedTuple

import jax

from grass_jax.planning.chips import Chip
from grass_jax.planning.compiled_text import count


class Cost(NamedTuple):
    """Of one device and one run.

    Attributes:
        flops: of convolutions and matrix products, two for a multiplication and an addition.
        high: of these, the FLOPs of products of float32 with `Precision.HIGH`.
        exact: of these, the FLOPs of products of float32 that are to keep float32's precision (`Precision.HIGHEST`).
        memory_bytes: in use at the peak: arguments, temporaries and results, less the results that lie in arguments.
        traffic: bytes read from and written to memory.
        moved: bytes that the device sends, by kind of collective, each as a ring of the devices would do it.
        collectives: how many of them the device takes part in, by kind.
        unknown_loops: loops with products or collectives whose number of turns the compiler does not know; their body
            is counted once.
    """

    flops: float
    high: float
    exact: float
    memory_bytes: int
    traffic: float
    moved: dict[str, int]
    collectives: dict[str, int]
    unknown_loops: int


class Roofline(NamedTuple):
    """Seconds that each resource needs at the least; the largest is the bound of the time."""

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The bound, when all three overlap perfectly."""
        return max(self)

    @property
    def bound(self) -> str:
        """The resource that it is bound by."""
        return self._fields[self.index(self.seconds)]


def cost_of(compiled: jax.stages.Compiled) -> Cost:
    """Counts what a compiled program costs on each of its devices.

    Args:
        compiled: from `jax.jit(f).lower(...).compile()`, for this machine or for a topology.
    """
    counts = count(compiled.as_text() or "")
    return Cost(
        flops=counts.flops,
        high=counts.high,
        exact=counts.exact,
        memory_bytes=memory_of(compiled),
        traffic=counts.traffic,
        moved=counts.sent,
        collectives=counts.collectives,
        unknown_loops=counts.unknown_loops,
    )


def memory_of(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled program has in use at its peak on each device, without reading its text."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes


def roofline(cost: Cost, chip: Chip, dtype: str) -> Roofline:
    """The least time that a program can take on a chip.

    Args:
        cost: from `cost_of`.
        chip: from `chips.chip_of`.
        dtype: of the matrix products without a precision of their own: bfloat16 or float32.
    """
    peak = chip.bfloat16 if dtype == "bfloat16" else chip.float32
    compute = (cost.flops - cost.high - cost.exact) / peak + cost.high / chip.high + cost.exact / chip.exact
    return Roofline(compute, cost.traffic / chip.bandwidth, sum(cost.moved.values()) / chip.link)
