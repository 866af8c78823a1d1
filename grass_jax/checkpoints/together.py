"""What the processes of a job do together on one folder: they fail together, too."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from grass_jax.report.atomic import replacing
from grass_jax.sharding import agree, read_by_first, sum_over_processes

SOME_SECONDS = 5  # in which a new file is seen by every host of a shared disk
STALE_SECONDS = 90  # NFS shows other hosts a folder as it was up to 60 s ago (its mount option acdirmax)


class ElsewhereError(RuntimeError):
    """Another process has failed in what all of them do together."""


def anywhere(happened: bool) -> bool:
    """Says whether something is so on any process; every process calls it."""
    return bool(sum_over_processes(np.array([happened], np.int64))[0])


@contextmanager
def failing_together() -> Iterator[None]:
    """Lets orbax's work on a checkpoint fail in all processes where it fails in one; every process enters it.

    In there they wait for each other by JAX's `sync_global_devices`. One that fails does not come there, and its next
    question would meet the others' waiting: an abort, or a hang. So to wait is, in here, to ask whether one has failed.

    Raises:
        ElsewhereError: in the processes that have not failed themselves.
    """
    if jax.process_count() == 1:
        yield
        return
    told, wait = False, multihost_utils.sync_global_devices

    def ask(_: str = "") -> None:
        nonlocal told
        told = anywhere(False)
        if told:
            raise ElsewhereError("another process says why")

    multihost_utils.sync_global_devices = ask
    try:
        yield
        ask()
    except Exception:
        if not told:
            anywhere(True)
        raise
    finally:
        multihost_utils.sync_global_devices = wait


def refuse_other_folders(workdir: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Raises ConfigError where processes have a folder of that name each, on disks that they do not share.

    Args:
        workdir: folder of the run.
        sleep: waits for seconds.

    Raises:
        DiskFullError: there is no room for a mark; in the other processes a ConfigError.
    """
    if jax.process_count() == 1:
        return

    def put() -> str:
        mark = workdir / f"shared_by_all_{secrets.token_hex(8)}"  # of a name that no host remembers as missing
        with replacing(mark) as temporary:
            temporary.write_bytes(b"")
        return mark.name

    mark = workdir / read_by_first(put)
    try:
        for _ in range(SOME_SECONDS):
            if mark.exists():
                break
            sleep(1)
        agree(str(mark.exists()), "The folder of --workdir")
    finally:
        if jax.process_index() == 0:
            mark.unlink(missing_ok=True)


def see_alike(manager: Any, workdir: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Waits until every process sees the checkpoints that the first one sees.

    Args:
        manager: orbax's; it is told of what has come to be seen.
        workdir: folder of the run.
        sleep: waits for seconds.

    Raises:
        ConfigError: the processes have other folders.
    """
    if jax.process_count() == 1:
        return
    for seconds in range(STALE_SECONDS):
        if not anywhere(list(manager.all_steps()) != read_by_first(lambda: list(manager.all_steps()))):
            return
        if seconds == 0:
            refuse_other_folders(workdir)
            logging.info("Some hosts do not see the checkpoints in %s that others see: waiting until they do.", workdir)
        sleep(1)
        with suppress(Exception):  # storage that does not answer has many errors
            manager.reload()
    agree(str(list(manager.all_steps())), "What is seen of the checkpoints in --workdir")
