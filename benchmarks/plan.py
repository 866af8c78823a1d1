"""What a Cloud TPU slice would need for the steps of a config, from the real TPU compiler, before anybody rents one.

    python -m benchmarks.plan --topology=v5e:4x4 --config=configs/gs.py:folder_full
    python -m benchmarks.plan --slices=v5e:2x4,4x4,4x8,8x8 --tiles_per_chip=32 --md=plan.md --json=plan.json

Needs no TPU and no data, but libtpu: pip install '.[tpu]'. A ResNet-50 step takes the compiler minutes on a few
cores. Memory, arithmetic and bytes are the compiler's; the time is a roofline: no step can be faster, real ones are
slower. `--slices` compares slices at the same tiles a chip (weak scaling) and at the config's batch (strong scaling).
"""

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # the chips are described, not there
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud's machine what it is
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import config_flags

from grass_jax.bands import RGB, Bands
from grass_jax.config import ConfigError
from grass_jax.data.source import TileSource
from grass_jax.initial import settle_bands
from grass_jax.planning.chips import Chip, chip_of
from grass_jax.planning.program_cost import roofline
from grass_jax.planning.step_cost import Compiled, compile_batch, largest_batch, other_batch_size
from grass_jax.pretrain import pretraining_task
from grass_jax.schemas import check
from grass_jax.sharding import make_mesh

CONFIG = config_flags.DEFINE_config_file("config", "configs/gs.py:folder_full", "Config file, of pretraining.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Slice, as VERSION:CHIPS: v5e:4x4, v6e:8x8, v4:2x2x2.")
SLICES = flags.DEFINE_list("slices", [], "Slices to compare, of one version: v5e:2x4,4x4,8x8.")
TILES_PER_CHIP = flags.DEFINE_integer("tiles_per_chip", 32, "Tiles of each chip in the weak scaling of --slices.")
SCALING = flags.DEFINE_enum("scaling", "both", ["both", "weak", "strong"], "What --slices compares.")
LARGEST = flags.DEFINE_boolean("largest", True, "Also find the largest batch that fits (more compiles).")
JSON = flags.DEFINE_string("json", "", "Also write the numbers here.")
MARKDOWN = flags.DEFINE_string("md", "", "Also write the table here.")
DOUBLINGS = 3  # compiles that confirm the largest batch, at the most


class Steps:
    """The warm-up and the GS step of a config, without data.

    Args:
        config: of pretraining; its phases are replaced by one of each step.
        batch_size: tiles of the global batch, which some schedules depend on.
    """

    def __init__(self, config: Any, batch_size: int):
        config = config.copy_and_resolve_references()
        config.batch_size, config.init, config.branch = batch_size, "", ""
        config.data.update({"name": "sample", "path": "", "exclude": "", "split": "train"})
        config.probe.every_epochs, config.log.figure_tiles = 0.0, 0
        check(config)
        names = {config[name].step: name for name in config.phases}
        config.phases = tuple(names.values())
        numbers = tuple(config.bands.numbers) or RGB.numbers
        measured = RGB if numbers == RGB.numbers else _any_bands(numbers, config.bands.dtype or "uint8")
        bands = settle_bands(config, measured)
        size = config.data.tile_size
        nothing = TileSource("nothing", (), (), np.zeros((batch_size, 3), np.int32), size, bands=bands)
        ends = [100 * (i + 1) for i in range(len(names))]  # any length: only a schedule reads it
        task = pretraining_task(
            config, nothing, jax.random.key(0), batch_size=batch_size, ends=ends, workdir=Path(os.devnull)
        )
        self.by_name: dict[str, Callable] = {kind: phase.step for kind, phase in zip(names, task.phases, strict=True)}
        self.state = jax.eval_shape(task.init)
        self.tile = {"image": jax.ShapeDtypeStruct((size, size, len(bands)), np.dtype(bands.dtype))}
        self.dtype, self.micro_batches = config.model.dtype, config.get("micro_batches", 1)

    def compile(self, name: str, mesh: Mesh, batch_size: int) -> Compiled:
        """Compiles the step of that name."""
        return compile_batch(self.by_name[name], mesh, self.state, self.tile, batch_size)


def _any_bands(numbers: tuple[int, ...], dtype: str) -> Bands:
    c = len(numbers)
    zeros, ones = (0.0,) * c, (1.0,) * c
    return Bands(numbers, dtype, zeros, ones, zeros, ones, ())


def devices_of(topology: str) -> Sequence[Any]:
    """The devices of a slice that is only described.

    Raises:
        ConfigError: there is no such slice.
    """
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition(": ")[2].splitlines()[0].rstrip(".")
        raise ConfigError(f"--topology must be a slice such as v5e:4x4, not {topology}: {reason}.") from error


def plan_slice(config: Any, topology: str, batch_size: int) -> list[dict[str, Any]]:
    """Compiles both steps for one slice; a row of numbers for each."""
    devices = devices_of(topology)
    mesh, chip = make_mesh(devices), chip_of(devices[0])
    if chip is None:
        raise ConfigError(f"--topology: {devices[0].device_kind} is not in grass_jax/planning/chips.py.")
    if chip.name == "TPU v4" and len(devices) == 2 * math.prod(map(int, topology.split(":")[1].split("x"))):
        chip = Chip(f"half of {chip.name}", *(value / 2 for value in chip[1:]))  # a described v4 is two cores
    steps = Steps(config, batch_size)
    rows = []
    for name in steps.by_name:
        one = steps.compile(name, mesh, batch_size)
        _say(f"{topology}, {batch_size} tiles: {name} compiled in {one.seconds:.0f} s")
        rows.append(_row(topology, mesh.size, name, one, chip, steps.dtype))
    if LARGEST.value:
        largest = max(rows, key=lambda row: row["memory_bytes"])
        largest["largest_batch"], largest["confirmed"] = _largest(
            lambda size: steps.compile(largest["step"], mesh, size),
            batch_size,
            largest["memory_bytes"],
            chip.memory,
            mesh.size * steps.micro_batches,
        )
    return rows


def _row(topology: str, chips: int, name: str, one: Compiled, chip: Chip, dtype: str) -> dict[str, Any]:
    row = {"slice": topology, "chips": chips, "tiles": one.batch_size, "step": name, "memory_bytes": one.memory_bytes}
    row |= {"fits": one.cost is not None, "compile_seconds": round(one.seconds, 1)}
    if one.cost is not None:
        least = roofline(one.cost, chip, dtype)
        row |= {"flops": one.cost.flops, "high_flops": one.cost.high, "exact_flops": one.cost.exact}
        row |= {"traffic_bytes": one.cost.traffic, "sent_bytes": one.cost.moved, "collectives": one.cost.collectives}
        row |= {"unknown_loops": one.cost.unknown_loops, "least_seconds": least._asdict()}
    return row


def _largest(
    compile_size: Callable[[int], Compiled], batch_size: int, used: float, memory: float, unit: int
) -> tuple[int, bool]:
    """The largest batch that compiles: estimated from two, then tried, a little smaller each time it does not fit."""
    other = compile_size(other_batch_size(batch_size, unit))
    guess = largest_batch((batch_size, used), (other.batch_size, other.memory_bytes), memory, unit)
    for _ in range(DOUBLINGS):
        _say(f"trying {guess} tiles")
        if guess < 2 or compile_size(guess).cost is not None:
            return guess, guess >= 2
        guess = int(0.95 * guess) // unit * unit
    return guess, False


def scalings(config: Any, slices: Sequence[str], tiles_per_chip: int) -> list[dict[str, Any]]:
    """Compiles both steps for every slice, at as many tiles a chip and at the config's batch where it can be shared."""
    rows = []
    for topology in slices:
        chips = len(devices_of(topology))
        sizes = {"weak": tiles_per_chip * chips, "strong": config.batch_size}
        wanted = [kind for kind in sizes if SCALING.value in ("both", kind) and sizes[kind] % chips == 0]
        for size in dict.fromkeys(sizes[kind] for kind in wanted):  # one compile where both are the same
            found = plan_slice(config, topology, size)
            rows += [{"scaling": kind, **row} for kind in wanted if sizes[kind] == size for row in found]
            _write(rows)  # hours of compiling are not lost
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table of Markdown, weak scaling first; numbers are of one chip and one step."""
    head = ("slice (chips)", "tiles", "step", "GiB", "TFLOP", "MB sent", "collectives")
    head += ("arithmetic ms", "memory ms", "links ms", "GS / warm-up")
    lines: list[str] = []
    for kind in ("weak", "strong", None):
        chosen = [row for row in rows if row.get("scaling") == kind]
        if not chosen:
            continue
        if kind:
            lines += ["", f"{kind.capitalize()} scaling", ""]
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(_cells(row, chosen)) + " |" for row in chosen]
    for row in rows:
        if "largest_batch" in row:
            sure = "confirmed by compiling it" if row["confirmed"] else "estimated"
            lines += ["", f"Largest batch on {row['slice']}: {row['largest_batch']} tiles, {sure}."]
    if any(row.get("unknown_loops") for row in rows):
        lines += [
            "",
            "TFLOP and MB are lower bounds: the compiler does not know how often some loops turn.",
        ]
    return "\n".join(lines).strip() + "\n"


def _cells(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    name = {"warmup_step": "warm-up", "gs_step": "GS"}.get(row["step"], row["step"])
    start = [f"{row['slice']} ({row['chips']})", str(row["tiles"]), name, f"{row['memory_bytes'] / 2**30:.2f}"]
    if not row["fits"]:
        return [*start, "does not fit", *[""] * 6]
    sent, least = row["sent_bytes"], row["least_seconds"]
    kinds = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in sorted(sent.items(), key=lambda item: -item[1]))
    same = {key: row[key] for key in ("slice", "tiles")}
    base = next((r for r in rows if r["step"] == "warmup_step" and r.items() >= same.items() and r["fits"]), None)
    ratio = ""
    if base is not None and base is not row:
        times = max(least.values()) / max(base["least_seconds"].values())
        ratio = f"{row['flops'] / base['flops']:.3f} FLOP, {times:.3f} time"
    numbers = [f"{row['flops'] / 1e12:.3f}", kinds or "0", str(sum(row["collectives"].values()))]
    return [*start, *numbers, *(f"{1e3 * seconds:.2f}" for seconds in least.values()), ratio]


def _write(rows: list[dict[str, Any]]) -> None:
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(rows, indent=2))
    if MARKDOWN.value:
        Path(MARKDOWN.value).write_text(table(rows))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(_: list[str]) -> None:
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("The TPU compiler is missing: pip install '.[tpu]' (no TPU is needed).")
    config = CONFIG.value
    try:
        if config.task != "pretrain":
            raise ConfigError(f"--config must be one of pretraining, not of the task {config.task}.")
        if SLICES.value:
            version = SLICES.value[0].partition(":")[0]
            slices = [name if ":" in name else f"{version}:{name}" for name in SLICES.value]
            rows = scalings(config, slices, TILES_PER_CHIP.value)
        else:
            rows = plan_slice(config, TOPOLOGY.value, config.batch_size)
    except (ConfigError, ValueError) as error:
        sys.exit(f"grass_jax: {error}")
    _write(rows)
    print(table(rows))


if __name__ == "__main__":
    app.run(main)
