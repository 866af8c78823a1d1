"""Reading checkpoints, in whole or in part, and what is said of one that does not hold what was saved."""

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from grass_jax.buckets import of_storage, place, scheme_of
from grass_jax.checkpoints import fingerprint
from grass_jax.checkpoints.in_s3 import readable, steps_in_bucket

READ_AGAIN = (5.0, 30.0)  # seconds before each further try to read what the storage has not given
# how tensorstore's errors begin where storage does not answer; damage is DATA_LOSS, NOT_FOUND, INVALID_ARGUMENT, ...
NO_ANSWER = (
    *("UNKNOWN", "ABORTED", "CANCELLED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED"),
)


class DamagedError(FileNotFoundError):
    """A checkpoint does not hold what was saved."""


def kept_steps(workdir: str | Path) -> list[int]:
    """Steps of the checkpoints that a run has kept, in order.

    Raises:
        FileNotFoundError: there is none.
    """
    checkpoints = place(workdir, absolute=True) / "checkpoints"
    if scheme_of(checkpoints) == "s3":
        steps = steps_in_bucket(str(checkpoints))
    else:
        steps = sorted(ocp.utils.checkpoint_steps(checkpoints)) if checkpoints.is_dir() else []
    if not steps:
        raise FileNotFoundError(f"{checkpoints.parent} has no checkpoint yet: let the run go on.")
    return steps


def restore_part(workdir: str | Path, wanted: Any, step: int | None = None) -> Any:
    """Reads a part of a checkpoint, onto one device.

    Args:
        workdir: folder of the run.
        wanted: the part's tree, of anything with shape and dtype.
        step: of a checkpoint that was kept; None takes the newest.

    Returns:
        The tree with arrays.

    Raises:
        FileNotFoundError: there is no checkpoint of that step, or it does not hold what was saved (`DamagedError`).
    """
    checkpoints, steps = place(workdir, absolute=True) / "checkpoints", kept_steps(workdir)
    if step not in (None, *steps):
        raise FileNotFoundError(f"{checkpoints.parent} has no checkpoint of step {step}: it has {steps}.")
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one_device), wanted)
    step = step or steps[-1]
    args = ocp.args.PyTreeRestore(
        item=wanted, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)
    )

    def read(folder: Path) -> Any:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(folder / "default", args=args)

    with readable(checkpoints, step) as above:
        restored, why = checked(above / str(step), lambda: read(above / str(step)))
    if why:
        raise DamagedError(
            f"{checkpoints / str(step)} cannot be read ({why}): give another step, of {steps}, or start the run again, "
            "which goes on from the one before."
        )
    return restored


def checked(folder: Path, read: Callable[[], Any], anywhere: Callable[[bool], bool] = bool) -> tuple[Any, str]:
    """Reads a checkpoint and compares it with the fingerprints that were stored with it.

    What cannot be read because the storage does not answer is tried again a little later: it may be sound.

    Args:
        folder: of the step.
        read: makes the tree of arrays.
        anywhere: says whether something is so in any of the processes that read it together.

    Returns:
        The tree, and an empty text; or None, and what is wrong in a few words, in all of these processes.
    """
    spoken, hook = getLogger("asyncio"), sys.unraisablehook
    spoken.disabled, sys.unraisablehook = True, lambda _: None  # orbax's other readers, which are given up, say much
    try:
        tree, why, later = _read_once(folder, read, anywhere)
        for pause in READ_AGAIN:
            if not later:
                break
            logging.warning("%s cannot be read (%s): trying again in %g s.", folder, why, pause)
            time.sleep(pause)
            tree, why, later = _read_once(folder, read, anywhere)
        return tree, why
    finally:
        gc.collect()
        spoken.disabled, sys.unraisablehook = False, hook


def _read_once(folder: Path, read: Callable[[], Any], anywhere: Callable[[bool], bool]) -> tuple[Any, str, bool]:
    """The tree, or None and what is wrong; and whether it may be read later."""
    saved, why, later = _tried(lambda: _saved_fingerprints(folder))
    if not anywhere(bool(why)):  # a process that fails alone must not leave the others in `read`, where they wait
        tree, why, later = _tried(read)
        why = why or _difference(tree, saved)
        if not anywhere(bool(why)):
            return tree, "", False
    return None, why or "another process cannot read it", anywhere(later)


def _tried(work: Callable[[], Any]) -> tuple[Any, str, bool]:
    """What some work returns; or None, why it fails, and whether that is storage which may answer later."""
    try:
        return work(), "", False
    except Exception as error:  # damage shows as anything: KeyError, ValueError, plain Exception
        gone = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        later = (of_storage(error) and not gone) or str(error).startswith(NO_ANSWER)
        error.__traceback__ = None
        time.sleep(0.5)  # reads on their way end, and find nobody who waits for them
        return None, cause(error), later


def _difference(tree: Any, saved: Mapping[str, int]) -> str:
    wrong = fingerprint.differing(tree, saved)
    return f"{wrong[0]}{f' and {len(wrong) - 1} more' if wrong[1:] else ''} is not what was saved" if wrong else ""


def _saved_fingerprints(folder: Path) -> dict[str, int]:
    """What was stored with a checkpoint; empty for one of an earlier version."""
    metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    return dict((metadata.get("custom_metadata") or {}).get("fingerprints", {}))


def cause(error: BaseException) -> str:
    """What an error of orbax or tensorstore says, in one short line and without its specifications."""
    text = " ".join(str(error.__cause__ or error).split()).partition(" [")[0].partition(" See full")[0].rstrip(" .:")
    text = text if len(text) <= 240 else f"{text[:120]} ... {text[-110:]}"
    return text or type(error).__name__
