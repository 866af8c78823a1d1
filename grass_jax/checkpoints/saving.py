"""Checkpoints: what is kept, what is damaged, and what happens when the disk is full.

The rules: a checkpoint is the whole `TrainState` under the number of updates done. The latest few and the end of every
phase are kept. Only a finite state is saved, so that the newest checkpoint is always one to go on from. Batches and
keys are functions of the step, so there is nothing else to store. With the state goes the fingerprint of each array;
one that does not hold what was saved is skipped for the one before it and moved aside. A save that fails costs no step.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import Sharding

from grass_jax.buckets import move_folder, of_storage, place, scheme_of
from grass_jax.checkpoints import fingerprint
from grass_jax.checkpoints.disk_space import obstacle
from grass_jax.checkpoints.in_s3 import CopiedCheckpoints
from grass_jax.checkpoints.manager import Manager
from grass_jax.checkpoints.reading import cause, checked
from grass_jax.checkpoints.together import anywhere, failing_together, refuse_other_folders, see_alike
from grass_jax.sharding import read_by_first, wait_for_all

ASIDE = "damaged_checkpoints"  # folder of the run that takes what cannot be read
HALF_WRITTEN = ".orbax-checkpoint-tmp"
# what orbax and tensorstore raise, beside the storage's own, for a disk that is full, gone or read-only
WRITE_ERRORS = (ValueError, RuntimeError)


class ResumeError(ValueError):
    """The working directory holds a run that cannot be continued, or not with this configuration."""


class SaveError(RuntimeError):
    """The last state of a run could not be saved."""


class Checkpoints:
    """The folder `<workdir>/checkpoints`, written in the background.

    Args:
        workdir: folder of the run.
        keep: how many of the latest checkpoints stay.
        keep_steps: steps whose checkpoints stay for good (the ends of the phases).
        best: name of a number, given with a state, whose highest value keeps its checkpoint, too.
    """

    def __init__(
        self, workdir: str | Path, *, keep: int = 2, keep_steps: tuple[int, ...] = (), best: str | None = None
    ):
        self._best, self._folder = best, place(workdir, absolute=True) / "checkpoints"
        self._copies = CopiedCheckpoints(str(self._folder)) if scheme_of(self._folder) == "s3" else None
        self._folder = self._folder if self._copies is None else self._copies.folder
        self._writing: int | None = None
        self._left_out = 0  # saves that failed since the last one that did not
        sent = None if self._copies is None else self._copies.send
        self._manager = Manager(self._folder, keep=keep, keep_steps=keep_steps, best=best, after_writing=sent)
        see_alike(self._manager, self._folder.parent)

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, sound or not, or just being written; None when there is none."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: Any, numbers: dict[str, float] | None = None, saved: dict[str, int] | None = None
    ) -> None:
        """Saves the state after `step` updates; returns when it has been copied, before it has been written.

        Where that fails, a warning says so and the older checkpoints stay. Every process calls it.

        Args:
            step: updates done.
            state: arrays.
            numbers: measured on it; the one that `best` names is kept with it.
            saved: the state's fingerprints, where they have been taken.
        """
        self.wait()
        scored = {self._best: numbers[self._best]} if self._best and numbers and self._best in numbers else None
        saved = fingerprint.inspect(state)[1] if saved is None else saved
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        why = "it is there already" if step in self._manager.all_steps() else obstacle(self._folder, size)
        if anywhere(bool(why)):  # asked before any of them begins: they write together
            self._failed(step, why)
            return
        args, stored = ocp.args.StandardSave(state), {"fingerprints": saved}
        try:
            with failing_together():
                self._manager.save(step, args=args, metrics=scored, custom_metadata=stored, force=True)
        except Exception as error:
            if not (isinstance(error, WRITE_ERRORS) or of_storage(error)):
                raise  # a wrong call
            self._failed(step, cause(error))
        else:
            self._writing = step

    def save_surely(
        self,
        step: int,
        state: Any,
        numbers: dict[str, float] | None = None,
        saved: dict[str, int] | None = None,
        *,
        patience: float = 300.0,
        pause: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Saves as `save` does, returns when it has been written, and tries again for a while where that fails.

        Args:
            step, state, numbers, saved: as for `save`.
            patience: seconds after the first failure.
            pause: seconds between two tries.
            clock: tells the time in seconds.
            sleep: waits for seconds.

        Raises:
            SaveError: it cannot be written.
        """
        began = None
        while True:
            if anywhere(step not in self._manager.all_steps()):
                self.save(step, state, numbers, saved)
                self.wait()
            elif self._copies is not None:
                self._copies.send()
            if not anywhere(step not in self._manager.all_steps() or bool(self._copies and self._copies.failing)):
                return
            if began is None:
                began = clock()
                logging.warning("It is the last state of this session: trying again for %g minutes.", patience / 60)
            if anywhere(clock() - began >= patience):
                folder, newest = self._folder, str(self.latest or 0)
                if self._copies is not None:
                    folder = self._copies.remote
                    newest += f" on this machine, and from step {self._copies.latest} on another"
                raise SaveError(
                    f"The state after step {step} could not be saved in {folder}: make room there, or mend the way to "
                    f"it; the same command goes on from step {newest}."
                )
            sleep(pause)

    def best_step(self) -> int | None:
        """Step of the kept checkpoint with the highest number, the later of equals; None where none has one."""
        if self._best is None:
            return None

        def scores() -> list[tuple[float, int]]:
            found = [(self._manager.metrics(step), step) for step in self._manager.all_steps()]
            return [(numbers[self._best], step) for numbers, step in found if numbers]

        return max(read_by_first(scores), default=(0, None))[1]

    def restore(self, state: Any, sharding: Sharding, step: int) -> Any:
        """Reads a checkpoint.

        Args:
            state: a state of the same structure, shapes and dtypes (arrays or `jax.eval_shape`'s).
            sharding: where the arrays go.
            step: of the checkpoint.

        Returns:
            The state, on the devices of the sharding.

        Raises:
            ResumeError: it does not hold what was saved.
        """
        restored, why = self._read(state, sharding, step)
        if why:
            folder = self._folder / str(step)
            raise ResumeError(f"{folder} cannot be read ({why}): move it away and give the same command again.")
        return restored

    def go_on(self, state: Callable[[], Any], sharding: Sharding) -> tuple[int, Any]:
        """Reads the newest checkpoint that holds what was saved; later ones are moved aside, and a warning says so.

        Call it before the first step of a session; what an earlier one left half written is removed.

        Args:
            state: makes a state of the same structure, shapes and dtypes; called where there is a checkpoint.
            sharding: where the arrays go.

        Returns:
            Its step and the state; 0 and None where no checkpoint was ever written.

        Raises:
            ConfigError: other processes have another folder.
            ResumeError: there are checkpoints and none can be read.
        """
        self._remove_half_written()
        steps, damaged = sorted(self._manager.all_steps(), reverse=True), {}
        refuse_other_folders(self._folder.parent)
        shapes = jax.eval_shape(state) if steps else None
        for step in steps:
            restored, why = self._read(shapes, sharding, step)
            if not why:
                self._move_aside(damaged, step)
                return step, restored
            damaged[step] = why
        if damaged:
            said = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
            raise ResumeError(
                f"No checkpoint in {self._folder} can be read ({said}): put a copy of it in its place, use the version "
                "of grass_jax that wrote it, or give another --workdir to start again."
            )
        return 0, None

    def poll(self) -> None:
        """Says at once how a save has ended, if one has; with several processes the next save says it."""
        if self._writing is not None and jax.process_count() == 1 and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until everything is written; a warning says what could not be. Every process calls it."""
        if self._writing is None:
            return
        step, self._writing, why = self._writing, None, ""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # from another thread: whatever it is, the state was not written
            why = cause(error)
        if anywhere(bool(why)):
            self._failed(step, why)
        elif self._left_out:
            logging.info("Saving works again: step %d is saved, %d before it are not.", step, self._left_out)
            self._left_out = 0

    def close(self) -> None:
        """Waits until everything is written, and ends the writing."""
        self.wait()
        self._close()

    def __enter__(self):
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            (self.close if kind is None else self._close)()  # after an error others may not be here to be asked
        except Exception as error:
            logging.warning("The newest checkpoint could not be saved: %s.", cause(error))

    def _close(self) -> None:
        self._manager.close()
        if self._copies is not None:
            self._copies.close()

    def _read(self, state: Any, sharding: Sharding, step: int) -> tuple[Any, str]:
        """A checkpoint's state, or why it cannot be read; all processes get the same answer."""
        template = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), state)
        args = ocp.args.StandardRestore(template)

        def read() -> Any:
            with failing_together():
                return self._manager.restore(step, args=args)

        return checked(self._folder / str(step), read, anywhere)

    def _move_aside(self, damaged: dict[int, str], sound: int) -> None:
        for step, why in damaged.items():
            aside = self._folder.parent / ASIDE / str(step)
            if jax.process_index() == 0:
                aside.parent.mkdir(exist_ok=True)
                aside = move_folder(self._folder / str(step), aside)
            logging.warning(
                "The checkpoint of step %d cannot be read (%s) and is now %s: going on from step %d.",
                *(step, why, aside, sound),
            )
        if damaged:
            wait_for_all()
            self._manager.reload()
            see_alike(self._manager, self._folder.parent)

    def _failed(self, step: int, why: str) -> None:
        with suppress(Exception):  # a failure that another process has met first
            self._manager.wait_until_finished()
        self._remove_half_written()
        with suppress(Exception):  # storage that does not answer has many errors
            self._manager.reload()  # what was to be deleted after it is still there
        if not self._left_out:
            logging.warning(
                "The checkpoint of step %d could not be saved (%s): training goes on without, and the newest is that "
                "of step %d.",
                *(step, why or "another process says why", self.latest or 0),
            )
        self._left_out += 1

    def _remove_half_written(self) -> None:
        if jax.process_index() == 0:
            with suppress(Exception):  # left for the next time
                for path in self._folder.iterdir():
                    if HALF_WRITTEN in path.name:
                        shutil.rmtree(path, ignore_errors=True)
        wait_for_all()
