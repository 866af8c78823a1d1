"""How the loss grows with the chips: InfoNCE and its gradient alone, as the TPU compiler shares them out.

    python -m benchmarks.loss_growth --topologies=v5e:2x4,v5e:4x4,v5e:8x8,v5e:16x16

Needs no TPU, but libtpu: pip install '.[tpu]'. Every chip has 32 tiles, so that the batch grows with the slice;
the loss compares each of its views with all others, which it gathers from the other chips. Times are a roofline; the
last column holds the longer of arithmetic and memory, and the links after it, against the time of a whole step, from
`benchmarks.plan`.
"""

import argparse
import importlib.util
import math
import os
import re
import sys
from functools import partial

os.environ["JAX_PLATFORMS"] = "cpu"  # the chips are described, not there
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud's machine what it is
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks.timing import table
from grass_jax.losses import info_nce
from grass_jax.planning.chips import chip_of
from grass_jax.planning.program_cost import Roofline, cost_of, roofline
from grass_jax.sharding import make_mesh, replicated, split_by_tile

SHAPE = re.compile(r"\w+\[([\d,]+)\]")


def row_of(topology: str, tiles_per_chip: int, embedding: int, step_ms: float) -> list[str]:
    """Compiles the loss for one slice; the cells of its row."""
    mesh = make_mesh(topologies.get_topology_desc(topology, "tpu").devices)
    chip, rows, tiles = chip_of(mesh.devices.flat[0]), split_by_tile(mesh), tiles_per_chip * mesh.size
    loss = jax.jit(
        jax.value_and_grad(partial(info_nce, temperature=0.5)),
        in_shardings=rows,
        out_shardings=(replicated(mesh), rows),
    )
    compiled = loss.lower(jax.ShapeDtypeStruct((tiles, 2, embedding), jnp.float32)).compile()
    cost = cost_of(compiled)
    sizes = [math.prod(map(int, dims.split(","))) for dims in SHAPE.findall(compiled.as_text() or "")]
    cells = [f"{topology} ({mesh.size})", f"{tiles:,}", f"{cost.flops / 1e6:,.0f}", f"{4 * max(sizes) / 2**20:,.2f}"]
    cells.append(f"{sum(cost.moved.values()) / 1e6:,.1f}")
    if chip is None:
        return [*cells, *["unknown"] * 4]
    least = roofline(cost, chip, "float32")
    return [*cells, *(f"{1e6 * seconds:,.1f}" for seconds in least), f"{share_of(least, step_ms):.2f}"]


def share_of(least: Roofline, step_ms: float) -> float:
    """Percent of a step's milliseconds that the loss takes at the least: the chips wait for what the links bring."""
    return 100 * (max(least.compute, least.memory) + least.interconnect) / (step_ms / 1e3)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", default="v5e:2x4,v5e:4x4,v5e:8x8,v5e:16x16", help="slices, with commas")
    parser.add_argument("--tiles_per_chip", type=int, default=32)
    parser.add_argument("--embedding", type=int, default=128)
    parser.add_argument("--step_ms", type=float, default=16.0, help="of a whole step, in milliseconds")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("The TPU compiler is missing: pip install '.[tpu]' (no TPU is needed).")
    head = (
        "slice (chips)",
        "tiles",
        "MFLOP a chip",
        "largest array, MiB",
        "MB sent a chip",
        "compute, us",
        "memory, us",
        "links, us",
        f"% of {options.step_ms:g} ms",
    )
    sizes = (options.tiles_per_chip, options.embedding, options.step_ms)
    rows = [row_of(name, *sizes) for name in options.topologies.split(",")]
    print(table(head, rows))


if __name__ == "__main__":
    main()
