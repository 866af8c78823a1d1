"""What the processes of a job do together on one folder: they fail together, too."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from grass_jax.sharding import agree, sum_over_processes, wait_for_all


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


def refuse_other_folders(workdir: Path, steps: list[int]) -> None:
    """Raises ConfigError where processes have a folder of that name each, on disks that they do not share.

    Args:
        workdir: folder of the run.
        steps: of the checkpoints that this process sees there.
    """
    if jax.process_count() == 1:
        return
    mark = workdir / "shared_by_all"
    if jax.process_index() == 0:
        mark.write_text(secrets.token_hex(8))
    wait_for_all()
    agree(f"{mark.read_text() if mark.exists() else ''} {steps}", "The folder of --workdir")
    if jax.process_index() == 0:
        mark.unlink()
