"""Reading checkpoints, in whole or in part, and what is said of one that does not hold what was saved."""

import gc
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from grass_jax.buckets import place, scheme_of
from grass_jax.checkpoints import fingerprint
from grass_jax.checkpoints.in_s3 import readable, steps_in_bucket


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


def checked(folder: Path, read: Callable[[], Any]) -> tuple[Any, str]:
    """Reads a checkpoint and compares it with the fingerprints that were stored with it.

    Args:
        folder: of the step.
        read: makes the tree of arrays.

    Returns:
        The tree, and an empty text; or None, and what is wrong in a few words.
    """
    spoken, hook = logging.getLogger("asyncio"), sys.unraisablehook
    spoken.disabled, sys.unraisablehook = True, lambda _: None  # orbax's other readers, which are given up, say much
    try:
        saved = _saved_fingerprints(folder)
        tree = read()
        wrong = fingerprint.differing(tree, saved)
        if not wrong:
            return tree, ""
        why = f"{wrong[0]}{f' and {len(wrong) - 1} more' if wrong[1:] else ''} is not what was saved"
    except Exception as error:  # damage shows as anything: KeyError, ValueError, plain Exception
        why = cause(error)
        error.__traceback__ = None
        time.sleep(0.5)  # reads on their way end, and find nobody who waits for them
    finally:
        gc.collect()
        spoken.disabled, sys.unraisablehook = False, hook
    return None, why


def _saved_fingerprints(folder: Path) -> dict[str, int]:
    """What was stored with a checkpoint; empty for one of an earlier version."""
    metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    return (metadata.get("custom_metadata") or {}).get("fingerprints", {})


def cause(error: BaseException) -> str:
    """What an error of orbax or tensorstore says, in one short line and without its specifications."""
    text = " ".join(str(error.__cause__ or error).split()).partition(" [")[0].partition(" See full")[0].rstrip(" .:")
    text = text if len(text) <= 240 else f"{text[:120]} ... {text[-110:]}"
    return text or type(error).__name__
