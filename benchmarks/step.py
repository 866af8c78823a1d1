"""What a step costs: time, memory, arithmetic and compilation of warm-up and GS training, and where the time goes.

    python -m benchmarks.step                      ResNet-50 on views of 224: 16 views on 2 CPU cores, five minutes;
                                                   on an accelerator up to 256 tiles, what its memory holds
    python -m benchmarks.step --half               and GS training with guidance at half the resolution
    python -m benchmarks.step --method=byol        a method whose target network is a second forward

Steps are timed in turns, one of each a round, so that whatever else the machine does meets all of them; a ratio is the
median over the rounds, with its quartiles. The parts are programs of their own, timed in turns likewise, and need not
add up to the step; what no program does alone is a difference of two, and marked. Arithmetic is counted in the compiled
program, two operations for a multiplication and an addition, and held against the peak of the chip's data sheet.
Compiling is timed in processes of its own, from the Python function to the program: without a cache, and out of it;
each step has a cache of its own, since on a GPU it also keeps what was found for parts that steps have in common.
Without `--tiles` an accelerator compiles one step more, to find out what fits.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from benchmarks.job import Job, add_options, make_job
from benchmarks.parts import MAPS_TO_CROPS, time_parts
from benchmarks.timing import interleaved, milliseconds, quartiles, spread, table
from grass_jax.planning.chips import chip_of
from grass_jax.planning.program_cost import cost_of, memory_of
from grass_jax.sharding import replicated

CPU_TILES, MOST_TILES = 8, 256
ROOM = 0.95  # of the memory: what lies there beside the step


def in_a_process(arguments: Sequence[str], cache: str = "") -> float:
    """Runs this program in a process of its own that ends with a number, with the compiler's work kept in a folder."""
    own = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} if cache else {}
    command = [sys.executable, "-m", "benchmarks.step", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | own)
    if done.returncode:
        sys.exit(f"{' '.join(command)} has failed: its message stands above.")
    return float(done.stdout.splitlines()[-1])


def compile_seconds(arguments: Sequence[str], caches: Mapping[str, str], tiles: int) -> dict[str, dict[str, float]]:
    """Times the compilation of each step twice: into its empty cache and out of it."""
    found: dict[str, dict[str, float]] = {}
    for kind, cache in caches.items():
        own = [*arguments, f"--tiles={tiles}", f"--only={kind}"]
        found[kind] = {how: in_a_process(own, cache) for how in ("cold", "cached")}
    return found


@contextmanager
def kept_in(cache: str) -> Iterator[None]:
    """What is compiled inside is looked for in a folder, and kept there."""
    settings = {"jax_compilation_cache_dir": cache, "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        reset_cache()  # JAX opens one folder, and keeps to it
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()


def largest_that_fits(fits: Callable[[int], bool], *, most: int, devices: int) -> int:
    """Halves the number of tiles until it fits, or until each device has one; always a multiple of the devices."""
    tiles = max(devices, most // devices * devices)
    while tiles > devices and not fits(tiles):
        tiles = max(devices, tiles // 2 // devices * devices)
    return tiles


def default_tiles(job: Job) -> int:
    """A few tiles on CPU; on an accelerator as many as the compiled GS step has memory for."""
    device = job.mesh.devices.flat[0]
    if device.platform == "cpu":
        return largest_that_fits(lambda tiles: True, most=CPU_TILES, devices=job.mesh.size)
    chip = chip_of(device)
    room = (device.memory_stats() or {}).get("bytes_limit") or (chip.memory if chip else np.inf)

    def fits(tiles: int) -> bool:
        try:
            return memory_of(job.lowered("GS", tiles).compile()) <= ROOM * room
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return False

    return largest_that_fits(fits, most=MOST_TILES, devices=job.mesh.size)


def alone(options: argparse.Namespace) -> float:
    """The seconds that one step takes to compile; with `--only=tiles` how many tiles fit."""
    job = make_job(options, jax.devices()[: options.devices or None])
    if options.only == "tiles":
        return default_tiles(job)
    start = time.perf_counter()
    job.lowered(options.only, options.tiles).compile()
    return time.perf_counter() - start


def peak_of(job: Job, options: argparse.Namespace) -> float | None:
    """Operations a second that one device can do at best; None where nobody knows."""
    if options.peak:
        return 1e12 * options.peak
    chip = chip_of(job.mesh.devices.flat[0])
    if chip is None:
        return None
    return chip.bfloat16 if options.dtype == "bfloat16" else chip.float32


def time_steps(
    job: Job, built: Mapping[str, jax.stages.Compiled], tiles: int, *, rounds: int, calls: int
) -> dict[str, Any]:
    """Runs the steps in turns on one state.

    Returns:
        Seconds (rounds,) by step under `seconds`, and under `peaks` the most memory that the device had in use since
        the program began, read after the first run of each; None where it does not tell.
    """
    current: dict[str, Any] = {"state": job.state()}
    batch, key = job.batch(tiles), jax.device_put(jax.random.key(0), replicated(job.mesh))

    def runner(compiled: jax.stages.Compiled) -> Callable[[], Any]:
        def call() -> Any:
            current["state"], current["metrics"] = compiled(current["state"], batch, key)
            return current

        return call

    runners = {kind: runner(compiled) for kind, compiled in built.items()}
    peaks = {}
    for kind, run in runners.items():
        jax.block_until_ready(run())
        peaks[kind] = (job.mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use")
    seconds = interleaved(runners, rounds=rounds, calls=calls)
    loss = float(current["metrics"]["loss"])
    if not np.isfinite(loss):
        raise FloatingPointError(f"The loss is {loss}: what was timed is no training.")
    return {"seconds": seconds, "peaks": peaks}


def measure(options: argparse.Namespace, arguments: Sequence[str], home: str) -> dict[str, Any]:
    """Runs everything, with the compiler's work in a folder; returns what `--json` writes."""
    kinds = ["warm-up", *(["GS half"] if options.half else []), "GS"]  # the one that needs most memory at the end
    caches = {kind: os.path.join(home, kind.replace(" ", "_")) for kind in kinds}
    # before this process takes the device
    options.tiles = options.tiles or int(in_a_process([*arguments, "--only=tiles"]))
    took = compile_seconds(arguments, caches, options.tiles)
    job = make_job(options, jax.devices()[: options.devices or None])
    device, devices = job.mesh.devices.flat[0], job.mesh.size
    options.dtype = options.dtype or ("float32" if device.platform == "cpu" else "bfloat16")
    options.calls = options.calls or (1 if device.platform == "cpu" else 5)
    built = {}
    for kind, cache in caches.items():
        with kept_in(cache):
            built[kind] = job.lowered(kind, options.tiles).compile()
    peak = peak_of(job, options)
    run = time_steps(job, built, options.tiles, rounds=options.pairs, calls=options.calls)
    steps, seconds = {}, run["seconds"]
    for kind in ("warm-up", "GS", "GS half"):
        if kind not in built:
            continue
        cost, step = cost_of(built[kind]), quartiles(seconds[kind])
        steps[kind] = {
            "seconds": step,
            "views_per_second": 2 * options.tiles / step["median"],
            "flops_per_device": cost.flops,
            "share_of_peak": cost.flops / step["median"] / peak if peak else None,
            "compiled_memory_bytes": cost.memory_bytes,
            "peak_memory_bytes": run["peaks"][kind],
            "compile_seconds": took[kind],
        }
    parts = {}
    if not options.no_parts:
        with kept_in(caches["GS"]):  # which has found for a GPU what is quickest for most of them
            parts = time_parts(job, options.tiles, rounds=options.repeats, calls=options.calls)
    return {
        "options": vars(options) | {"json": None},
        "device": {"kind": device.device_kind, "count": devices, "peak_flops": peak, "jax": jax.__version__},
        "steps": steps,
        "ratios": {
            f"{kind} / warm-up": quartiles(seconds[kind] / seconds["warm-up"]) for kind in steps if kind != "warm-up"
        },
        "parts": parts,
    }


def written(found: dict[str, Any]) -> str:
    """The numbers as a heading and three tables."""
    options, device, steps = found["options"], found["device"], found["steps"]
    head = f"{options['method']}, {options['model']}"
    head += f" of width {options['width']}" if options["width"] != 64 else ""
    head += f" in {options['micro_batches']} parts" if options["micro_batches"] > 1 else ""
    head += f", {2 * options['tiles']} views of {options['size']}, {options['dtype']}"
    head += f", on {device['count']} x {device['kind']}, jax {device['jax']}"

    def known(value: float | None, unit: float, form: str = ",.1f") -> str:
        return "unknown" if value is None else format(value / unit, form)

    columns = {
        "ms (quartiles)": lambda s: milliseconds(s["seconds"]),
        "views/s": lambda s: f"{s['views_per_second']:,.1f}",
        "GFLOP a device": lambda s: f"{s['flops_per_device'] / 1e9:,.4g}",
        "% of peak": lambda s: known(s["share_of_peak"], 0.01),
        "compiled GiB": lambda s: f"{s['compiled_memory_bytes'] / 2**30:,.2f}",
        "peak GiB so far": lambda s: known(s["peak_memory_bytes"], 2**30, ",.2f"),
        "compile s cold": lambda s: f"{s['compile_seconds']['cold']:,.1f}",
        "cached": lambda s: f"{s['compile_seconds']['cached']:,.1f}",
    }
    blocks = [head, table(["step", *columns], [[kind, *(f(s) for f in columns.values())] for kind, s in steps.items()])]
    ratios = [[name, spread(ratio, digits=3)] for name, ratio in found["ratios"].items()]
    blocks.append(table(["ratio", f"median of {options['pairs']} pairs (quartiles)"], ratios))
    if found["parts"]:
        whole = steps["GS"]["seconds"]["median"]
        rows = [
            [
                name + (" (difference)" if part["difference"] else ""),
                milliseconds(part),
                "" if name == MAPS_TO_CROPS else f"{100 * part['median'] / whole:,.1f}",  # maps of its own
            ]
            for name, part in found["parts"].items()
        ]
        blocks.append(table(["part", "ms (quartiles)", "% of the GS step"], rows))
    return "\n\n".join(blocks)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--tiles", type=int, default=0, help="tiles in a batch, two views of each; 0: what fits")
    parser.add_argument("--devices", type=int, default=0, help="how many; 0: all")
    parser.add_argument("--half", action="store_true", help="also GS training with guidance at half the resolution")
    parser.add_argument("--peak", type=float, default=0, metavar="TFLOPS", help="of one device, instead of the table's")
    parser.add_argument("--pairs", type=int, default=8, help="timed rounds of the steps")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of the parts")
    parser.add_argument("--calls", type=int, default=0, help="steps between two waits; 0: 1 on CPU, else 5")
    parser.add_argument("--no_parts", action="store_true", help="time no parts")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # what a process of its own finds out: a step, or `tiles`
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if options.only:
        print(alone(options))
        return
    with TemporaryDirectory() as home:
        found = measure(options, arguments, home)
    print(written(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
