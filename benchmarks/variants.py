"""Other ways to compute the same warm-up step, timed in turns with the way it is computed: what is worth its code.

    python -m benchmarks.variants                   ResNet-50, 16 views of 224 on 2 CPU cores, about ten minutes
    python -m benchmarks.variants --tiles=128       a large GPU; --only=1x1,pooling for those variants alone

Each variant changes one thing; one that changes nothing on this kind of device is not timed. A ratio is the median,
over rounds in which all of them ran, of a variant's time over that of the step as it is. Memory is the compiler's:
arguments, temporaries and results of the program.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
from flax.linen.dtypes import promote_dtype

from benchmarks.job import Job, add_options, make_job
from benchmarks.timing import interleaved, milliseconds, quartiles, spread, table
from grass_jax.models import ENCODERS, cpu_gradients, resnet
from grass_jax.planning.compiled_text import parse
from grass_jax.planning.program_cost import memory_of
from grass_jax.sharding import replicated, split_by_tile

AS_IT_IS = "as it is"


class AsConvolution(resnet.Conv):
    """A convolution that stays one where its kernel is 1x1; larger kernels have their own gradients as ever."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves (n, h, w, c) to (n, ceil(h / stride), ceil(w / stride), channels)."""
        if self.kernel > 1:
            return super().__call__(x)
        kernel = self.param("kernel", resnet.kaiming_fan_out, (1, 1, x.shape[-1], self.channels))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=layout)


def rematerialised() -> Any:
    """Every residual block is run forward again in the backward pass."""
    encoders = {name: partial(f.func, f.args[0], nn.remat(f.args[1])) for name, f in ENCODERS.items()}
    return mock.patch.dict(ENCODERS, encoders)


def pooling_as_on_cpu() -> Any:
    """The pooling's gradient goes to the place of the maximum on every platform; the other gradients stay theirs."""
    by_platform = cpu_gradients.on_cpu

    def chosen(quick: Callable, plain: Callable, *arrays: jax.Array) -> jax.Array:
        ours = quick is cpu_gradients._to_the_chosen
        return quick(*arrays) if ours else by_platform(quick, plain, *arrays)

    return mock.patch.object(cpu_gradients, "on_cpu", chosen)


CHANGES: dict[str, Callable[[], Any]] = {
    "1x1 convolutions as convolutions": lambda: mock.patch.object(resnet, "Conv", AsConvolution),
    "variance as the mean of squared deviations": lambda: mock.patch.object(
        nn, "BatchNorm", partial(nn.BatchNorm, use_fast_variance=False)
    ),
    "residual blocks rematerialised": rematerialised,
    "gradients as XLA writes them on CPU": lambda: mock.patch.object(
        cpu_gradients, "on_cpu", lambda quick, plain, *arrays: plain(*arrays)
    ),
    "pooling's gradient as on CPU": pooling_as_on_cpu,
    "state not donated": nullcontext,
}
PARTS = (2, 4)


def compiled_step(job: Job, tiles: int, *, donate: bool = True) -> jax.stages.Compiled:
    """Compiles the warm-up step, with or without giving the old state's memory to the new one."""
    whole = replicated(job.mesh)
    step = jax.jit(
        job.step("warm-up"),
        in_shardings=(whole, split_by_tile(job.mesh), whole),
        out_shardings=whole,
        donate_argnums=0 if donate else (),
    )
    return step.lower(job.state(), job.batch(tiles), jax.random.key(0)).compile()


def contents(program: jax.stages.Compiled) -> tuple[Counter[str], int]:
    """How often a program does what, and its memory: two that differ in neither are taken for one."""
    computations, _ = parse(program.as_text() or "")
    return Counter(line.opcode for body in computations.values() for line in body.values()), memory_of(program)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; returns what `--json` writes."""
    job = make_job(options)
    options.tiles = options.tiles or 8
    programs = {AS_IT_IS: compiled_step(job, options.tiles)}

    def asked(name: str) -> bool:
        return any(word in name for word in options.only.split(","))

    for name, change in filter(lambda item: asked(item[0]), CHANGES.items()):
        with change():
            programs[name] = compiled_step(make_job(options), options.tiles, donate=name != "state not donated")
    for parts in filter(lambda parts: asked(f"{parts} micro-batches"), PARTS):
        of_parts = make_job(argparse.Namespace(**vars(options) | {"micro_batches": parts}))
        programs[f"{parts} micro-batches"] = compiled_step(of_parts, options.tiles)
    base = contents(programs[AS_IT_IS])
    same = [name for name, program in programs.items() if name != AS_IT_IS and contents(program) == base]
    programs = {name: program for name, program in programs.items() if name not in same}
    batch, key = job.batch(options.tiles), jax.device_put(jax.random.key(0), replicated(job.mesh))

    def runner(program: jax.stages.Compiled) -> Callable[[], Any]:
        held = {"state": job.state()}

        def call() -> Any:
            held["state"], metrics = program(held["state"], batch, key)
            return held["state"], metrics

        return call

    seconds = interleaved({name: runner(program) for name, program in programs.items()}, rounds=options.rounds)
    return {
        "options": vars(options) | {"json": None},
        "device": {"kind": jax.devices()[0].device_kind, "count": job.mesh.size, "jax": jax.__version__},
        "variants": {
            name: {
                "seconds": quartiles(values),
                "ratio": quartiles(values / seconds[AS_IT_IS]),
                "memory_bytes": memory_of(programs[name]),
            }
            for name, values in seconds.items()
        },
        "same": same,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--tiles", type=int, default=0, help="tiles in a batch, two views of each; 0: 8")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds over all variants")
    parser.add_argument("--only", default="", help="variants with one of these words in their names, with commas")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args(arguments)
    found = measure(options)
    rows = [
        [name, milliseconds(v["seconds"]), spread(v["ratio"], digits=3), f"{v['memory_bytes'] / 2**30:.2f}"]
        for name, v in found["variants"].items()
    ]
    rows += [[name, "the same program", "", ""] for name in found["same"]]
    device = found["device"]
    print(f"{options.model}, {2 * options.tiles} views of {options.size}, on {device['count']} x {device['kind']}")
    print(table(["warm-up step", "ms (quartiles)", f"/ {AS_IT_IS}", "compiled GiB"], rows))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
