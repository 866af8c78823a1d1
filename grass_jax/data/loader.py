"""Batches of tiles: a function of the seed and the step, sharded by process, read ahead by grain."""

import contextlib
import copy
import functools
import threading
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import logging

from grass_jax.config import ConfigError
from grass_jax.data.faults import IN_A_ROW, DataError, Fault, Replaced, UnreadableTileError, substitutes
from grass_jax.data.order import epoch_order, find_overlaps
from grass_jax.data.source import TileSource
from grass_jax.data.workers import cores, in_processes, surviving

MOST_THREADS = 8  # that read, where nobody says how many


def steps_per_epoch(source: TileSource, batch_size: int) -> int:
    """Full global batches in one epoch; 0 where the batch is larger than the data."""
    return len(source) // batch_size


def check_batch_size(batch_size: int, *, devices: int, parts: int = 1) -> None:
    """Raises ConfigError where the devices cannot share a batch, or a part of it: `parts` are micro-batches."""
    if batch_size % (devices * parts):
        of = f"{parts} micro-batches on each of the {devices} devices" if parts > 1 else f"the {devices} devices"
        raise ConfigError(f"config.batch_size must be a multiple of {of}, not {batch_size}.")


def fitting_batch_size(batch_size: int, *, tiles: int, devices: int, parts: int = 1) -> int:
    """Cuts a batch that is larger than the data, to a number of tiles that the devices can share, part by part.

    Raises:
        ConfigError: what is left has fewer than two tiles.
    """
    unit = devices * parts
    cut = min(batch_size, tiles // unit * unit)
    if cut < 2:
        of = f"{parts} micro-batches on {devices} devices" if parts > 1 else f"{devices} devices"
        raise ConfigError(f"{tiles} tiles are too few for {of}: add images or labels, or lower config.data.stride.")
    if cut < batch_size:
        logging.warning("config.batch_size is %d but there are %d tiles: using %d.", batch_size, tiles, cut)
    return cut


class BatchSource:
    """Random access to one process's rows of the batches of steps `start` to `stop`."""

    def __init__(
        self, source: TileSource, *, batch_size: int, seed: int, start: int, stop: int, rows: slice, negatives: bool
    ):
        self.source = source
        self.batch_size, self.seed, self.start, self.stop, self.rows = batch_size, seed, start, stop, rows
        self.overlaps = find_overlaps(source.positions if negatives else source.positions[:0], source.tile_size)
        self.__setstate__(self.__dict__)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._order = functools.lru_cache(maxsize=2)(self._make_order)
        self._lock = threading.Lock()
        self._unreadable: set[int] = set()

    def _make_order(self, epoch: int) -> tuple[np.ndarray, int]:
        return epoch_order(self.seed, epoch, tiles=len(self.source), batch_size=self.batch_size, overlaps=self.overlaps)

    def order(self, epoch: int) -> tuple[np.ndarray, int]:
        """Order of an epoch and its number of overlapping pairs that share a batch."""
        with self._lock:  # several reading threads enter a new epoch at once
            return self._order(epoch)

    def __len__(self) -> int:
        return self.stop - self.start

    def starting_at(self, step: int) -> "BatchSource":
        """The same batches from a later step on."""
        rest = copy.copy(self)
        rest.start = step
        return rest

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], tuple[Fault, ...]]:
        """The rows of a batch, and those of its tiles that could not be read and have another in their place.

        Raises:
            DataError: for one row, `IN_A_ROW` other tiles could not be read either.
        """
        epoch, step = divmod(self.start + int(index), steps_per_epoch(self.source, self.batch_size))
        order, faults, own = self.order(epoch)[0], [], range(self.rows.start, self.rows.stop)
        tiles, numbers = zip(*(self._read(order, step, row, faults) for row in own), strict=True)
        rows = {name: np.stack([tile[name] for tile in tiles]) for name in tiles[0]}
        return rows | {"index": np.array(numbers, np.int32)}, tuple(faults)

    def _read(self, order: np.ndarray, step: int, row: int, faults: list[Fault]) -> tuple[dict[str, np.ndarray], int]:
        """A tile or its substitute, and its number."""
        tile, cause = int(order[step, row]), ""
        for number in (tile, *substitutes(order, step, row)):
            # one that was given up once is tried once in every later epoch: nobody waits for it again
            pauses = () if number in self._unreadable else self.source.pauses
            try:
                found = self.source.read(number, pauses)
            except UnreadableTileError as error:
                self._unreadable.add(number)
                cause = error.cause
                if number == tile:
                    faults.append(Fault(tile, cause))
                continue
            self._unreadable.discard(number)
            return found, number
        raise DataError(
            f"{self.source.describe(tile)} and {IN_A_ROW} others in its place cannot be read ({cause}): bring "
            f"their disk back, or delete {self.source.name} to have it prepared again."
        )


def batches(
    source: TileSource,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int | None = None,
    negatives: bool = True,
    log_overlaps: bool = True,
    replaced: Replaced | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the global batches of steps `start` to `stop` - 1.

    A batch depends on `seed` and its step alone, so a run resumes by its `start`, on any number of processes. A tile
    that cannot be read gives its place to one of a later batch. A worker process that dies is started again.

    Args:
        source: tiles to draw from.
        batch_size: tiles of a global batch.
        seed: the run's seed.
        start: first step, counted from the beginning of the run.
        stop: step to end before.
        process_index: number of this process.
        process_count: number of processes.
        workers: worker processes that read and decode; 0 reads in threads of this process.
        threads: reading threads per process, each with one batch in memory; up to 8, by the cores, where None.
        negatives: the tiles of a batch may be negatives of one another, so overlapping ones are kept apart.
        log_overlaps: the tiles are negatives, so the log says how many overlapping ones could not be kept apart.
        replaced: counts the rows whose tile could not be read; None counts them for this call alone.

    Returns:
        an iterator of `image` (batch_size // process_count, t, t, c) as stored, `index` (rows,) int32 and, where the
        data set has masks, `mask` (rows, t, t) uint8. It raises DataError where too many tiles cannot be read, or the
        workers die again and again.

    Raises:
        ValueError: if the batch cannot be shared by the processes, or is larger than the data.
    """
    if batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} must divide by the number of processes, {process_count}.")
    if not 0 < batch_size <= len(source):
        raise ValueError(f"batch_size {batch_size} must be between 1 and the number of tiles, {len(source)}.")
    size = batch_size // process_count
    rows = slice(process_index * size, (process_index + 1) * size)
    steps = BatchSource(
        source, batch_size=batch_size, seed=seed, start=start, stop=stop, rows=rows, negatives=negatives
    )
    if log_overlaps and start < stop:
        _log_overlaps(steps, process_index)
    threads = min(MOST_THREADS, cores()) if threads is None else threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))

    def open_at(step: int) -> grain.IterDataset:
        data = grain.MapDataset.source(steps.starting_at(step)).to_iter_dataset(options)
        return in_processes(data, workers) if workers else data

    return _counted(surviving(open_at, start), steps, Replaced() if replaced is None else replaced)


def _counted(read: Iterator, steps: BatchSource, replaced: Replaced) -> Iterator[dict[str, np.ndarray]]:
    rows, length = steps.rows.stop - steps.rows.start, steps_per_epoch(steps.source, steps.batch_size)
    with contextlib.closing(read):  # pyright: ignore[reportArgumentType]
        for batch, faults in read:
            names = [steps.source.describe(tile) for tile, _ in faults]
            replaced.add(faults, names, rows=rows, steps_per_epoch=length, where=steps.source.name)
            yield batch


def process_batches(source: TileSource, start: int, stop: int, **options: Any) -> Iterator[dict[str, np.ndarray]]:
    """The rows of `batches` that belong to this process of the job, images and masks alone."""
    rows = batches(
        source,
        start=start,
        stop=stop,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **options,
    )
    return ({name: value for name, value in batch.items() if name != "index"} for batch in rows)


def _log_overlaps(steps: BatchSource, process_index: int) -> None:
    epoch = steps.start // steps_per_epoch(steps.source, steps.batch_size)
    pairs = steps.order(epoch)[1]
    if pairs and process_index == 0:
        logging.warning(
            "%d pairs of overlapping tiles share a batch in epoch %d and count as negatives of each other: use a "
            "smaller batch or a larger stride; at the default stride, images whose sides are multiples of tile_size "
            "have none.",
            pairs,
            epoch,
        )
