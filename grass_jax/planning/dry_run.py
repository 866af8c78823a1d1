"""What a run will need on the machine it is on, without running it: `python main.py --config=... --dry_run`.

The steps are compiled for real, so that memory and arithmetic are the compiler's numbers, and a few of them are run on
real batches, so that the time is this machine's. Nothing is written into the workdir; tiles are prepared where they
are not yet, as the run would do.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from grass_jax import pretrain, sharding
from grass_jax.buckets import place
from grass_jax.checkpoints.reading import kept_steps
from grass_jax.config import ConfigError
from grass_jax.initial import follow_encoder
from grass_jax.planning.chips import chip_of
from grass_jax.planning.program_cost import roofline
from grass_jax.planning.step_cost import Compiled, compile_batch, largest_batch, other_batch_size
from grass_jax.report.environment import environment
from grass_jax.schemas import check
from grass_jax.segment import finetune
from grass_jax.state import TrainState
from grass_jax.train import Task

TIMED = 2  # steps that are timed, after one that is not


def run(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Says what a run of pretraining or fine-tuning will need on this machine.

    Args:
        config: as for `pretrain.run` or `finetune.run`.
        workdir: folder of the run; it is looked at, and nothing is written.

    Returns:
        What was printed, as numbers.

    Raises:
        ConfigError: a key or value that cannot be run, or a task without steps.
    """
    if config.get("task") not in PREPARE:
        raise ConfigError(f"--dry_run is for the tasks {' and '.join(PREPARE)}, not {config.task}: leave it out.")
    if jax.process_count() > 1:
        raise ConfigError("--dry_run is for one process: benchmarks.plan says what several hosts need.")
    check(config)
    workdir, mesh = place(workdir), sharding.make_mesh()
    config = follow_encoder(config, workdir)
    task = PREPARE[config.task](config, workdir, mesh)
    state, memory = jax.eval_shape(task.init), device_memory(mesh)
    rows = next(task.batches(0, 1))
    tile = {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in rows.items()}
    steps = list(dict.fromkeys(phase.step for phase in task.phases))  # phases may share one
    compiled = [compile_batch(step, mesh, state, tile, task.batch_size) for step in steps]
    seconds = [_time(one, task, mesh) if one.program and one.memory_bytes <= memory else None for one in compiled]
    # a compiler that refuses a step does not always say how much it needs
    largest = max(range(len(steps)), key=lambda i: compiled[i].memory_bytes or math.inf)
    unit = mesh.size * config.get("micro_batches", 1)
    other = compile_batch(steps[largest], mesh, state, tile, other_batch_size(task.batch_size, unit))
    chip = chip_of(mesh.devices.flat[0])
    phases = {}
    for phase in task.phases:
        one = compiled[steps.index(phase.step)]
        phases[phase.name] = {
            "steps": phase.end - phase.begin,
            "compile_seconds": one.seconds,
            "memory_bytes": one.memory_bytes,
            "fits": one.program is not None and one.memory_bytes <= memory,
            "step_seconds": seconds[steps.index(phase.step)],
            **(one.cost._asdict() if one.cost else {}),
            "least_seconds": roofline(one.cost, chip, config.model.dtype)._asdict() if one.cost and chip else None,
        }
    found = {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        "checkpoint_bytes": sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "batch_size": task.batch_size,
        "steps_per_epoch": task.steps_per_epoch,
        "steps": task.phases[-1].end,
        "done": _done(workdir),
        "phases": phases,
        "largest_batch": largest_batch(_point(compiled[largest]), _point(other), memory, unit),
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "device_memory": memory,
    }
    print("\n".join(_lines(found)), flush=True)
    return found


def device_memory(mesh: Mesh) -> float:
    """Bytes that a program may use on each device: what the runtime says, else what the chip or the machine has."""
    device = next(d for d in mesh.devices.flat if d.process_index == jax.process_index())
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return float(limit)
    chip = chip_of(device)
    return chip.memory if chip else (environment()["memory_bytes"] or math.inf) / jax.local_device_count()


def _pretraining(config: Any, workdir: Path, mesh: Mesh) -> Task:
    """What `pretrain.run` would hand to the loop, without its pictures and probes."""
    source, batch_size, _, ends = pretrain.prepared(config, mesh)
    config.probe.every_epochs, config.log.figure_tiles = 0.0, 0
    return pretrain.pretraining_task(
        config, source, jax.random.key(config.seed), batch_size=batch_size, ends=ends, workdir=workdir
    )


def _segmentation(config: Any, workdir: Path, mesh: Mesh) -> Task:
    """What `finetune.run` would hand to the loop, without its validation."""
    del workdir
    if config.head.name == "linear":
        raise ConfigError("--dry_run: a linear head is fitted at once, without steps that could be planned.")
    _, _, _, source, batch_size, network = finetune.prepared(config, mesh)
    key = jax.random.key(config.seed)
    return finetune.segmentation_task(config, source, network, key, None, batch_size=batch_size)


PREPARE = {"pretrain": _pretraining, "segment": _segmentation}


def _time(compiled: Compiled, task: Task, mesh: Mesh) -> float:
    """Seconds of a step on real batches, which are read beforehand: the mean of a few after the first."""
    state: TrainState = jax.device_put(task.init(), sharding.replicated(mesh))
    batches: Iterator[dict[str, np.ndarray]] = task.batches(0, min(1 + TIMED, task.phases[-1].end))
    placed = [sharding.global_batch(rows, mesh) for rows in batches]
    key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
    began, program = time.monotonic(), compiled.program
    assert program is not None
    for i, batch in enumerate(placed):
        state, metrics = program(state, batch, key)
        jax.block_until_ready((state, metrics))
        if i == 0 and len(placed) > 1:
            began = time.monotonic()
    return (time.monotonic() - began) / max(1, len(placed) - 1)


def _point(compiled: Compiled) -> tuple[int, float]:
    return compiled.batch_size, compiled.memory_bytes


def _done(workdir: Path) -> int:
    try:
        return kept_steps(workdir)[-1]
    except FileNotFoundError:
        return 0


def _lines(found: dict[str, Any]) -> list[str]:
    """What a person reads."""
    phases, batch, gib = found["phases"], found["batch_size"], 2**30
    memory = f"{found['device_memory'] / gib:.1f} GiB" if math.isfinite(found["device_memory"]) else "unknown"
    lines = [
        f"{found['devices']} x {found['device']}, {memory} each",
        f"{found['parameters']:,} parameters; a checkpoint is at most {found['checkpoint_bytes'] / 1e6:,.0f} MB",
        f"{found['steps']:,} steps of {batch} tiles, {found['steps_per_epoch']:,} an epoch"
        + (f"; {found['done']:,} of them are done" if found["done"] else ""),
    ]
    for name, phase in phases.items():
        lines.append(f"{name}: {phase['steps']:,} steps, compiled in {phase['compile_seconds']:.0f} s")
        lines.append(
            f"  memory a device     {phase['memory_bytes'] / gib:.2f} GiB" + ("" if phase["fits"] else ": too much")
        )
        if "flops" in phase:
            lines.append(f"  arithmetic a step   {phase['flops'] * found['devices'] / 1e12:.3f} TFLOP")
            if phase["unknown_loops"]:
                lines[-1] += " or more: the compiler does not know how often a loop turns"
            sent = sum(phase["moved"].values())
            lines += [f"  sent by a device    {sent / 1e6:.1f} MB a step"] if sent else []
        if phase["least_seconds"]:
            bound = max(phase["least_seconds"], key=phase["least_seconds"].get)
            lines.append(f"  at the least        {1e3 * phase['least_seconds'][bound]:.1f} ms a step, bound by {bound}")
        if phase["step_seconds"] is not None:
            rate = batch / phase["step_seconds"]
            lines.append(f"  timed               {1e3 * phase['step_seconds']:.1f} ms a step, {rate:,.0f} tiles/s")
    if all(phase["step_seconds"] is not None for phase in phases.values()):
        total = sum(phase["steps"] * phase["step_seconds"] for phase in phases.values())
        lines.append(f"all steps: {duration(total)} as timed, without reading tiles, probes and checkpoints")
    if all(phase["least_seconds"] for phase in phases.values()):
        least = sum(phase["steps"] * max(phase["least_seconds"].values()) for phase in phases.values())
        lines.append(f"all steps: {duration(least)} at the least")
    if found["largest_batch"]:
        lines.append(f"largest batch that fits: about {found['largest_batch']} tiles, estimated from two batch sizes")
    return lines


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 5 min, 3.2 h or 4.5 days."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
