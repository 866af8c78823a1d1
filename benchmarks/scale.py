"""How a step scales over devices: the same batch on more of them (strong), and a batch that grows with them (weak).

    python -m benchmarks.scale                1, 2, 4 and 8 of this machine's GPUs or TPU cores
    python -m benchmarks.scale --virtual      virtual devices on CPU, ResNet-18 of width 16: ten minutes on 2 cores

Each number of devices has a process of its own. Virtual devices share the cores of one machine, so nothing gets faster
with more of them: there the efficiency is the views a second against those of one device, which shows the price of
dividing the work (smaller pieces, copies, waiting), and more than 100 % where one device leaves cores idle. It says
nothing of an interconnect; the bytes do, which are counted in the compiled program and do not depend on the machine.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.timing import milliseconds, quartiles, table
from grass_jax.data.workers import cores

# where nothing else is said: what a laptop does in seconds, and what fills an accelerator
SIZES = {
    "cpu": {"model": "resnet18", "width": 16, "size": 64, "tiles": 32, "tiles_per_device": 4},
    "accelerator": {"model": "resnet50", "width": 64, "size": 224, "tiles": 256, "tiles_per_device": 32},
}


def environment(devices: int) -> dict[str, str]:
    """The environment of a process with so many virtual devices."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def real_devices() -> int:
    """Counts the accelerators of this machine, in a process that gives them back."""
    count = "import jax; print(0 if jax.default_backend() == 'cpu' else jax.device_count())"
    done = subprocess.run([sys.executable, "-c", count], check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times the step on the first `options.worker` devices of this process."""
    import jax

    from benchmarks.job import make_job
    from benchmarks.step import time_steps
    from grass_jax.planning.program_cost import cost_of

    devices = options.worker
    for name, value in SIZES["cpu" if jax.default_backend() == "cpu" else "accelerator"].items():
        setattr(options, name, getattr(options, name) or value)
    job = make_job(options, jax.devices()[:devices])
    calls = 1 if jax.default_backend() == "cpu" else 5
    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "options": vars(options)}
    for mode, tiles in (("strong", options.tiles), ("weak", devices * options.tiles_per_device)):
        if found.get("strong", {}).get("tiles") == tiles:  # one and the same
            found[mode] = found["strong"]
            continue
        compiled = job.lowered(options.step, tiles).compile()
        run = time_steps(job, {options.step: compiled}, tiles, rounds=options.rounds, calls=calls)
        cost = cost_of(compiled)
        found[mode] = {
            "devices": devices,
            "tiles": tiles,
            "seconds": quartiles(run["seconds"][options.step]),
            "sent_bytes": cost.moved,
            "memory_bytes": cost.memory_bytes,
        }
    return found


def compared(runs: list[dict[str, Any]], *, virtual: bool) -> list[dict[str, Any]]:
    """Adds views per second and efficiency to what one mode measured on rising numbers of devices.

    Args:
        runs: of `measure`, the first of which is what the others are held against.
        virtual: whether the devices share one machine's cores.
    """
    rows = []
    for run in runs:
        rate = 2 * run["tiles"] / run["seconds"]["median"]
        first = rows[0] if rows else run | {"views_per_second": rate}
        more = 1 if virtual else run["devices"] / first["devices"]
        rows.append(run | {"views_per_second": rate, "efficiency": rate / first["views_per_second"] / more})
    return rows


def written(rows: list[dict[str, Any]]) -> str:
    """One mode as a table."""
    header = ["devices", "tiles", "ms (quartiles)", "views/s", "efficiency %", "memory MiB", "sent MiB", "of which"]

    def mib(size: float) -> str:
        return f"{size / 2**20:,.2f}"

    cells = []
    for row in rows:
        sent = row["sent_bytes"]
        kinds = ", ".join(f"{kind} {mib(size)}" for kind, size in sorted(sent.items())) or "none"
        numbers = [milliseconds(row["seconds"]), f"{row['views_per_second']:,.1f}", f"{100 * row['efficiency']:.0f}"]
        memory = [mib(row["memory_bytes"]), mib(sum(sent.values())), kinds]
        cells.append([str(row["devices"]), str(row["tiles"]), *numbers, *memory])
    return table(header, cells)


def run_worker(options: argparse.Namespace, devices: int, *, virtual: bool) -> dict[str, Any]:
    """Measures in a process of its own."""
    own = ("devices", "virtual", "json", "worker")  # what the worker need not know
    asked = {name: value for name, value in vars(options).items() if name not in own and value is not None}
    command = [sys.executable, "-m", "benchmarks.scale", f"--worker={devices}"]
    command += [f"--{name}={value}" for name, value in asked.items()]
    where = environment(devices) if virtual else None
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=where)
    if done.returncode:
        sys.exit(f"The run on {devices} devices has failed: its message stands above.")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="simclr", help="as its config has it, full size")
    for name, meaning in (
        ("model", "resnet18, resnet34, resnet50 or resnet101"),
        ("width", "channels of the stem"),
        ("size", "view size in pixels"),
        ("tiles", "of the whole batch where it stays the same (strong)"),
        ("tiles_per_device", "where the batch grows (weak)"),
    ):
        kind = str if name == "model" else int
        default = ", ".join(f"{sizes[name]} on {where}" for where, sizes in SIZES.items())
        parser.add_argument(f"--{name}", type=kind, help=f"{meaning}; default: {default}")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on CPU, else bfloat16")
    parser.add_argument("--step", default="GS", choices=["warm-up", "GS"])
    parser.add_argument("--devices", default="1,2,4,8", help="numbers of devices, the first is the yardstick")
    parser.add_argument("--virtual", action="store_true", help="virtual CPU devices even where there are accelerators")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # of the process that measures so many devices
    options = parser.parse_args(arguments)
    if options.worker:
        for name, value in {"output_stride": 32, "tile": 0, "micro_batches": 1}.items():
            setattr(options, name, value)
        print(json.dumps(measure(options)))
        return
    real = 0 if options.virtual else real_devices()
    virtual = real < 2
    numbers = [int(number) for number in options.devices.split(",")]
    runs = [run_worker(options, n, virtual=virtual) for n in numbers if virtual or n <= real]
    found = {mode: compared([run[mode] for run in runs], virtual=virtual) for mode in ("strong", "weak")}
    print(f"{options.step} step on {'virtual devices: ' if virtual else ''}{runs[0]['device']}")
    if virtual:
        print(f"They share {cores()} cores: 100 % is one device's views a second, and less is what dividing costs.")
    for mode, what in (("strong", "the same batch on more devices"), ("weak", "as many tiles on each")):
        print(f"\n{mode.capitalize()} scaling, {what}; memory and bytes sent are of one device and one step.\n")
        print(written(found[mode]))
    if options.json:
        options.json.write_text(json.dumps({"virtual": virtual, "device": runs[0]["device"], **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
