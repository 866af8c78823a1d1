"""Processes that read: they end with the run, and the run outlives them."""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
from absl import flags, logging

from grass_jax.data.faults import DataError
from grass_jax.stopping import EXIT_CODES

DEATHS = 3  # in a row, without a batch in between, before the run stops
BUFFER = 2  # batches that each process keeps ready


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(data: grain.IterDataset, workers: int) -> grain.IterDataset:
    """Reads a data set in processes of their own, which end when this one does, however it ends."""
    if not flags.FLAGS.is_parsed():  # grain passes the flags on to its workers; a notebook or test has none
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=BUFFER)
    return data.mp_prefetch(options, worker_init_fn=_begin)


def _begin(index: int, count: int) -> None:
    del index, count
    for signum in EXIT_CODES:  # they reach every process of a terminal, a Slurm step or a container: the run decides
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A run that is killed cannot tell its workers to stop: they would wait for ever, and keep their memory.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def surviving(open_at: Callable[[int], grain.IterDataset], start: int) -> Iterator[Any]:
    """The elements of a data set from a step on, opened again at the step where its processes die.

    Args:
        open_at: step -> the data set from that step on.
        start: first step.

    Returns:
        an iterator that ends its threads and processes as soon as it is used up or let go.

    Raises:
        DataError: processes have died `DEATHS` times without an element in between.
    """
    step, deaths = start, 0
    while True:
        iterator = iter(open_at(step))
        try:
            for element in iterator:
                step, deaths = step + 1, 0
                yield element
            return
        except RuntimeError as error:
            death = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
            if death is None:
                raise
            deaths += 1
            how = _in_words(int(death[1]))
            if deaths == DEATHS:
                raise DataError(
                    f"A reading process has ended ({how}) {DEATHS} times without giving a batch: lower "
                    "config.data.workers, as memory (in a container also /dev/shm) may be short."
                ) from error
            logging.warning("A reading process has ended (%s): reading starts again where it stopped.", how)
        finally:
            iterator.close()


def _in_words(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"
