"""Tiles per second from disk to device: reading alone, decoding alone, and the whole input with threads and processes.

    python -m benchmarks.input                                     the embedded sample, tiles of 96
    python -m benchmarks.input --data.path=FOLDER --workers=0,8    one's own images, prepared on first use

What limits it is decoding: four fifths of the core time of a tile of three 8-bit bands inflate its PNG. That lets go of
Python's lock, so threads of one process share it, until Python's part (finding the record, stacking the
batch: the last fifth) fills one core; on more than about five cores processes help (`config.data.workers`), each of
which takes seconds to start and copies its batches through shared memory. `read` takes records from the system's cache
once they have been read: the speed of a disk shows with more data than memory. Other bands or depths are stored as
compressed arrays, whose inflation counts as `read`. A training step that takes longer than its tiles never waits.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from absl import logging

from grass_jax.data.loader import MOST_THREADS, fitting_batch_size, process_batches
from grass_jax.data.source import TileSource, open_tiles, pixels_of
from grass_jax.data.workers import cores
from grass_jax.sharding import global_batch, make_mesh


def per_second(work: Iterator[int], seconds: float) -> float:
    """How much is done a second: `work` gives amounts, of which the first, that starts things up, is not counted."""
    next(work)
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        done += next(work)
    return done / passed


def one_by_one(function: Callable[[int], object], count: int) -> Iterator[int]:
    """Calls a function of a tile's number for random tiles, for ever; one tile at a time."""
    rng = np.random.default_rng(0)
    while True:
        function(int(rng.integers(count)))
        yield 1


def to_device(source: TileSource, batch_size: int, *, workers: int, threads: int | None) -> Iterator[int]:
    """Reads batches as training does and puts them onto the devices."""
    mesh = make_mesh()
    options = {"batch_size": batch_size, "seed": 0, "workers": workers, "threads": threads}
    for batch in process_batches(source, 0, 10**9, **options):
        jax.block_until_ready(global_batch(batch, mesh))
        yield batch_size // jax.process_count()


def measure(source: TileSource, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Tiles per second by name, and the cores that they could use."""
    size = fitting_batch_size(options.batch_size, tiles=len(source), devices=jax.device_count())
    held = [source.records[i if source.rows is None else int(source.rows[i])] for i in range(min(256, len(source)))]
    work = {
        "read, 1 thread": (1, one_by_one(source.records.__getitem__, len(source.records))),
        "decode, 1 thread": (1, one_by_one(lambda i: pixels_of(held[i]["image"]), len(held))),
    }
    for threads in sorted({1, cores()}):
        name = f"input, {threads} thread{'s' * (threads > 1)}"
        work[name] = threads, to_device(source, size, workers=0, threads=threads)
    for workers in options.workers:
        name = f"input, {workers} worker{'s' * (workers > 1)}" if workers else "input as it is set (workers=0)"
        used = cores() if workers else min(MOST_THREADS, cores())
        work[name] = used, to_device(source, size, workers=workers, threads=None)
    rates = {}
    for name, (used, amounts) in work.items():
        rates[name] = {"tiles_per_second": per_second(amounts, options.seconds), "cores": used}
        amounts.close()  # pyright: ignore[reportAttributeAccessIssue]
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="path", default="sample", help="folder of images; the sample without")
    parser.add_argument("--data.data_dir", dest="data_dir", help="where prepared tiles lie; TFDS's place without")
    parser.add_argument("--tile_size", type=int, help="256 pixels in a folder and 96 in the sample without")
    parser.add_argument("--batch_size", type=int, default=64, help="tiles in a batch")
    parser.add_argument("--workers", default="0,1,2", help="numbers of reading processes")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    options.workers = [int(number) for number in options.workers.split(",")]
    logging.set_verbosity(logging.WARNING)
    name, path = ("sample", None) if options.path == "sample" else ("image_folder", options.path)
    source = open_tiles(name, path=path, tile_size=options.tile_size, data_dir=options.data_dir)
    rates = measure(source, options)
    t, bands = source.tile_size, source.bands
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"{len(source)} tiles of {t} x {t} x {len(bands)} {bands.dtype}, {cores()} cores, {device}")
    print(f"{'':40s} {'tiles/s':>9s} {'per core':>9s} {'MB/s':>9s}")
    megabytes = t * t * len(bands) * np.dtype(bands.dtype).itemsize / 1e6
    for what, found in rates.items():
        rate = found["tiles_per_second"]
        print(f"{what:40s} {rate:9.0f} {rate / found['cores']:9.0f} {rate * megabytes:9.1f}")
    if options.json:
        record = {"options": vars(options) | {"json": None}, "cores": cores(), "rates": rates}
        options.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
