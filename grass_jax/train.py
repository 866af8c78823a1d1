"""The only training loop: it knows steps, batches and hooks, and no loss."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from grass_jax.checkpoints.fingerprint import inspect
from grass_jax.checkpoints.saving import Checkpoints
from grass_jax.data.faults import DataError, Replaced
from grass_jax.report.input_wait import InputWait
from grass_jax.report.log import MetricsLog
from grass_jax.report.progress import Progress
from grass_jax.sharding import global_batch, replicated
from grass_jax.state import TrainState
from grass_jax.steps import compile_step
from grass_jax.stopping import Signals, Stopped, Watch


class Phase(NamedTuple):
    """A stretch of training with one step function: updates `begin` to `end` (not included) of the run."""

    name: str
    step: Callable[[TrainState, dict[str, jax.Array], jax.Array], tuple[TrainState, dict[str, jax.Array]]]
    begin: int
    end: int


class Hook(NamedTuple):
    """Something that looks at the state between two updates: a probe, a validation, a picture.

    Attributes:
        run: (phase, step, state) -> numbers for the log; `step` updates have been done. Every process calls it, and a
            DataError is raised in all of them.
        every: steps between two calls; 0 calls it at the ends of phases alone, which always count. After the step that
            a signal ends only hooks with `saves` or `with_saves` are called. The others need nothing but a state, so
            that they can be run on the checkpoints of a run that has ended, too.
        at_start: also before the first step of the run, with the first phase and step 0.
        saves: each call is followed by a checkpoint with its numbers.
        with_saves: also before every checkpoint.
    """

    run: Callable[[Phase, int, TrainState], dict[str, float]]
    every: int = 0
    at_start: bool = False
    saves: bool = False
    with_saves: bool = False

    def due(self, phase: Phase, step: int) -> bool:
        """Says whether the hook runs after this step."""
        return step == phase.end or (self.every > 0 and step % self.every == 0)

    @property
    def can_wait(self) -> bool:
        """Says whether it can be run after the end of the run instead."""
        return not (self.saves or self.with_saves)


class Task(NamedTuple):
    """What the loop runs.

    Attributes:
        init: makes the state before the first step.
        phases: in order, without gaps.
        batches: (start, stop) -> this process's rows of the batches of these steps, {name: array}.
        batch_size: tiles of a global batch.
        steps_per_epoch: full batches in the data.
        schedule: learning rate of every step, for the log; on the host, so that logging asks no device.
        watch: (phase, step, metrics) sees the numbers of every step; None where nobody does.
        hooks: in the order in which they run, each before the checkpoint of its step.
    """

    init: Callable[[], TrainState]
    phases: tuple[Phase, ...]
    batches: Callable[[int, int], Iterator[dict[str, np.ndarray]]]
    batch_size: int
    steps_per_epoch: int
    schedule: np.ndarray
    watch: Callable[[Phase, int, dict[str, float]], None] | None = None
    hooks: tuple[Hook, ...] = ()


class DivergedError(RuntimeError):
    """The loss, the gradient or the state is not finite."""


def train(
    task: Task,
    checkpoints: Checkpoints,
    workdir: str | Path,
    mesh: Mesh,
    *,
    key: jax.Array,
    log_every: int,
    checkpoint_every: int,
    checkpoint_minutes: float,
    tensorboard: bool,
    start: int = 0,
    begun: TrainState | None = None,
) -> TrainState:
    """Runs the phases from a checkpoint, or from the start, to the end.

    SIGTERM and Ctrl-C end it after the current step, which is saved. Metrics are fetched one step late, so that the
    device always has the next step to do.

    Args:
        task: what to run.
        checkpoints: where states are saved.
        workdir: where the log goes.
        mesh: the devices.
        key: of the run; step i uses `fold_in(key, i)`.
        log_every: steps between two lines of the log.
        checkpoint_every: steps between two checkpoints; the end of a phase always gets one.
        checkpoint_minutes: from the last checkpoint to the next one at the latest; 0 leaves it to the steps.
        tensorboard: write event files, too.
        start: updates done.
        begun: the state after them, replicated over the mesh, e.g. from `Checkpoints.go_on`; it must not be used
            again. None makes the one before the first step.

    Returns:
        The final state.

    Raises:
        DivergedError: a number is not finite; the newest checkpoint is the last good state.
        SaveError: the last state cannot be saved.
        Stopped: a signal came; the state is saved.
    """
    first, end = jax.process_index() == 0, task.phases[-1].end
    with (
        Signals("this step" if jax.process_count() == 1 else "one of the next steps") as signals,
        MetricsLog(workdir, start, tensorboard=tensorboard, enabled=first) as log,
        Progress(end, start_step=start, images_per_step=task.batch_size, enabled=first) as progress,
    ):
        if begun is not None:
            logging.info("Resuming after step %d of %d.", start, end)
        state = jax.device_put(task.init(), replicated(mesh)) if begun is None else begun
        watch = Watch(signals, save_after=60 * checkpoint_minutes, start=start)
        report = _Report(task, log, progress, log_every)
        if not start:
            run_hooks([hook for hook in task.hooks if hook.at_start], task.phases[0], 0, state, task, log)
        for phase in task.phases:
            if start >= phase.end:
                continue
            step = compile_step(phase.step, mesh)
            begin = max(start, phase.begin)
            for i, batch in enumerate(report.wait.over(task.batches(begin, phase.end)), begin):
                state, metrics = step(state, global_batch(batch, mesh), jax.random.fold_in(key, i))
                report.late(phase, i + 1, metrics)
                checkpoints.poll()
                verdict = watch.after(i + 1)
                due = [hook for hook in task.hooks if hook.due(phase, i + 1)]
                save = i + 1 == phase.end or (i + 1) % checkpoint_every == 0 or any(hook.saves for hook in due)
                save = save or verdict.save or verdict.stop > 0
                due += [hook for hook in task.hooks if save and hook.with_saves and hook not in due]
                if due or save:
                    report.flush()
                    log.flush()
                    since = time.monotonic()
                    finite, saved = inspect(state)
                    if not finite:
                        raise DivergedError(f"The state after step {i + 1} is not finite.")
                    # who has sent a signal may wait half a minute: only what the checkpoint needs comes before it
                    due = [hook for hook in due if not (verdict.stop and hook.can_wait)]
                    numbers = run_hooks(due, phase, i + 1, state, task, log)
                    if save:
                        log.flush()  # what the hooks have added
                        surely = verdict.stop or i + 1 == end
                        (checkpoints.save_surely if surely else checkpoints.save)(i + 1, state, numbers, saved)
                        watch.saved()
                    progress.leave_out(time.monotonic() - since)
                if verdict.stop:
                    raise Stopped(i + 1, verdict.stop)
        if stop := watch.after(end, last=True).stop:  # while the last state was being saved
            raise Stopped(end, stop)
    return state


def run_hooks(
    hooks: Sequence[Hook], phase: Phase, step: int, state: TrainState, task: Task, log: MetricsLog
) -> dict[str, float]:
    """Runs hooks on the state after `step` updates, logs their numbers and returns them.

    A hook whose data cannot be read gives none: what looks at a training does not end it. It raises in every process.
    """
    numbers: dict[str, float] = {}
    for hook in hooks:
        try:
            numbers |= hook.run(phase, step, state)
        except DataError as error:
            logging.warning("After step %d nothing is measured: %s", step, error)
    if numbers:
        log.write(step, epoch=step / task.steps_per_epoch, phase=phase.name, **numbers)
    return numbers


def counting(replaced: Replaced) -> Hook:
    """Puts what could not be read into the log before every checkpoint, so that a resumed run counts nothing twice."""
    return Hook(lambda phase, step, state: replaced.since_last(), with_saves=True)


def phases_of(names: Sequence[str], steps: Sequence[Callable], ends: Sequence[int]) -> tuple[Phase, ...]:
    """Makes phases that follow one another, from their names, step functions and last steps."""
    return tuple(map(Phase, names, steps, [0, *ends[:-1]], ends))


class _Report:
    """Fetches the metrics of a step when the next one is on its way, and passes them on."""

    def __init__(self, task: Task, log: MetricsLog, progress: Progress, every: int):
        self._task, self._log, self._progress, self._every = task, log, progress, every
        self.wait = InputWait(self._idle, advise=jax.process_index() == 0)
        self._waiting: tuple[Phase, int, dict[str, jax.Array]] | None = None

    def _idle(self) -> bool:
        loss = None if self._waiting is None else self._waiting[2]["loss"]
        return not isinstance(loss, jax.Array) or loss.is_ready()  # pyright: ignore[reportAttributeAccessIssue]

    def late(self, phase: Phase, step: int, metrics: dict[str, jax.Array]) -> None:
        self.flush()
        self._waiting = (phase, step, metrics)

    def flush(self) -> None:
        if self._waiting is None:
            return
        phase, step, on_device = self._waiting
        self._waiting = None
        metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
        done, length = step - phase.begin, self._task.steps_per_epoch
        epoch, epochs = -(-done // length), -(-(phase.end - phase.begin) // length)
        self._progress.update(step, phase=phase.name, epoch=epoch, epochs=epochs, loss=metrics["loss"])
        if step % self._every == 0 or step in (1, phase.end):
            self._log.write(
                step,
                epoch=step / length,
                phase=phase.name,
                learning_rate=self._task.schedule[step - 1],
                images_per_second=self._progress.images_per_second,
                input_wait=self.wait.share(),
                **metrics,
            )
        if not np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all():
            raise DivergedError(
                f"The loss of step {step} is {metrics['loss']:g} and its gradient norm {metrics['gradient_norm']:g}."
            )
        if self._task.watch is not None:
            self._task.watch(phase, step, metrics)
