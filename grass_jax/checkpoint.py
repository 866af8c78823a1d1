"""Checkpoints: what is kept, what is refused, and how a run resumes.

The rules: a checkpoint is the whole `TrainState` under the number of updates done. The latest few and the end of every
phase are kept. Only a finite state is saved, so that the newest checkpoint is always one to go on from. Batches and
keys are functions of the step, so there is nothing else to store.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep_policy

from grass_jax.config import UNITS, differing, phase_length


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
        policies: list[Any] = [keep_policy.LatestN(keep), keep_policy.CustomSteps(list(keep_steps))]
        if best is not None:
            policies.append(
                keep_policy.BestN(get_metric_fn=lambda m: m[best], n=1, keep_checkpoints_without_metrics=False)
            )
        self._best = best
        self._manager = ocp.CheckpointManager(
            Path(workdir).absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep_policy.AnyPreservationPolicy(policies),
                best_fn=None if best is None else lambda m: m[best],  # without it the numbers are not written
                enable_async_checkpointing=True,
            ),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint; None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, numbers: dict[str, float] | None = None) -> None:
        """Saves the state after `step` updates; returns when it has been copied, before it has been written."""
        scored = {self._best: numbers[self._best]} if self._best and numbers and self._best in numbers else None
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics=scored)

    def best_step(self) -> int | None:
        """Step of the kept checkpoint with the highest number, the later of equals; None where none has one."""
        if self._best is None:
            return None
        scored = [(self._manager.metrics(step), step) for step in self._manager.all_steps()]
        return max([(m[self._best], step) for m, step in scored if m], default=(0, None))[1]

    def restore(self, state: Any, sharding: Sharding, step: int | None = None) -> Any:
        """Reads a checkpoint.

        Args:
            state: a state of the same structure, shapes and dtypes (arrays or `jax.eval_shape`'s).
            sharding: where the arrays go.
            step: of the checkpoint; None takes the newest.

        Returns:
            The state, on the devices of the sharding.
        """
        template = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), state)
        return self._manager.restore(step or self.latest, args=ocp.args.StandardRestore(template))

    def wait(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written, and ends the writing."""
        self.wait()
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Says whether every number of a tree of arrays is finite; one boolean."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all()


TASK_WORDS = {"pretrain": "pretraining", "segment": "fine-tuning", "compare": "comparison"}


def run_config(workdir: str | Path, *, task: str) -> dict[str, Any]:
    """Reads the resolved configuration of a run.

    Args:
        workdir: folder of the run.
        task: what the run must be: `pretrain` or `segment`.

    Returns:
        The configuration as nested dicts.

    Raises:
        FileNotFoundError: there is no such run.
    """
    path = Path(workdir).expanduser().absolute() / "config.json"
    config = json.loads(path.read_text()).get("config") if path.exists() else None
    if config is None:  # other libraries name a file so, too
        raise FileNotFoundError(f"{path.parent} holds no {TASK_WORDS[task]} run: give the --workdir of one.")
    found = config.get("task", "pretrain")
    if found != task:
        raise FileNotFoundError(
            f"{path.parent} holds a {TASK_WORDS.get(found, found)} run: give the --workdir of a {TASK_WORDS[task]} run."
        )
    if "bands" not in config:
        raise FileNotFoundError(
            f"{path.parent} is of an earlier version of grass_jax, which did not record its bands: train it again."
        )
    return config


def kept_steps(workdir: str | Path) -> list[int]:
    """Steps of the checkpoints that a run has kept, in order.

    Raises:
        FileNotFoundError: there is none.
    """
    checkpoints = Path(workdir).expanduser().absolute() / "checkpoints"
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
        FileNotFoundError: there is no checkpoint of that step.
    """
    checkpoints, steps = Path(workdir).expanduser().absolute() / "checkpoints", kept_steps(workdir)
    if step not in (None, *steps):
        raise FileNotFoundError(f"{checkpoints.parent} has no checkpoint of step {step}: it has {steps}.")
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one_device), wanted)
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(
            checkpoints / str(step or steps[-1]) / "default",
            args=ocp.args.PyTreeRestore(
                item=wanted, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)
            ),
        )


class ResumeError(ValueError):
    """The working directory holds a run that this configuration cannot continue."""


# may differ between the sessions of one run: what does not enter the numbers
FREE_KEYS = (
    *("name", "preset", "log.", "checkpoint.", "probe.", "compilation_cache", "branch"),
    *("data.workers", "data.path", "data.data_dir"),
)


def refuse_other_trunk(trunk: str | Path, config: dict[str, Any], data: dict[str, Any], *, steps_per_epoch: int) -> int:
    """Compares the configuration of a run that branches off with that of the run which it goes on from.

    Args:
        trunk: folder of the run to go on from; it has ended.
        config: the resolved configuration, as nested dicts: what comes after the trunk's phases may be new, and the
            guidance where none of them used it.
        data: as for `refuse_other_run`.
        steps_per_epoch: full batches in the data.

    Returns:
        The step at which the trunk ended.

    Raises:
        ResumeError: it is no such run, or it is another one than this run would have begun with.
    """
    try:
        old, kept = run_config(trunk, task="pretrain"), kept_steps(trunk)
    except FileNotFoundError as error:
        raise ResumeError(f"config.branch: {error}") from error
    begun = json.loads((Path(trunk).expanduser() / "config.json").read_text())["data"]
    phases, wanted = list(old["phases"]), list(config["phases"])
    if wanted[: len(phases)] != phases or wanted == phases:
        raise ResumeError(
            f"config.branch is {trunk}, whose phases are {', '.join(phases)}: config.phases must be these and more."
        )
    end = sum(phase_length(old[name], steps_per_epoch) for name in phases)
    guided = any(old[name]["step"] == "gs_step" for name in phases)
    free = (*FREE_KEYS, "phases", "branch", *(f"{name}." for name in wanted[len(phases) :]))
    free += () if guided else ("guidance.",)
    free += ("schedule.restart",) if len(phases) == 1 else ()  # to one phase both values are the same
    refused = [key for key in differing(old, config) if not key.startswith(free)]
    if differing(begun, data):
        refused.append("data")
    if refused:
        raise ResumeError(f"config.branch is {trunk}, a run with other settings ({', '.join(refused)}): give the same.")
    if end not in kept:
        raise ResumeError(f"config.branch is {trunk}, which has not reached its step {end}: let it end first.")
    return end


def refuse_other_run(
    workdir: str | Path, config: dict[str, Any], data: dict[str, Any], *, steps_per_epoch: int, done: int
) -> None:
    """Compares the configuration with the one that the run in this folder began with.

    Args:
        workdir: folder of the run; without a checkpoint (`done` of 0) everything goes.
        config: the resolved configuration, as nested dicts.
        data: what else the numbers depend on: tiles, batch size after cutting, a digest of where the tiles come from.
        steps_per_epoch: full batches in them.
        done: updates in the newest checkpoint.

    Raises:
        ResumeError: a key differs that may not; a phase may only become longer, and only the last one once it has
            ended.
    """
    path = Path(workdir) / "config.json"
    if done == 0:
        return
    if not path.exists():
        raise ResumeError(f"{workdir} has checkpoints but no config.json to compare with: give another --workdir.")
    begun = json.loads(path.read_text())
    refused, end = [], 0
    old_phases = begun["config"]["phases"]
    for key in differing(begun["config"], config):
        if not key.startswith(FREE_KEYS) and key not in [f"{name}.{unit}" for name in old_phases for unit in UNITS]:
            refused.append(key)
    for name in old_phases:
        old = begun["config"][name]
        length = phase_length(old, steps_per_epoch)
        end += length
        change = phase_length(config.get(name, old), steps_per_epoch) - length
        ended = done >= end and name != old_phases[-1]
        if change < 0 or (change > 0 and ended):
            refused.append(f"{name}.{'steps' if 'steps' in old else 'epochs'}")
    measured = all(key.startswith("bands.") for key in refused)  # the data's, where the configuration leaves them open
    if refused and not (measured and differing(begun["data"], data)):
        why = ", as after a change of the images" if measured else ""
        raise ResumeError(
            f"{workdir} holds a run of {done} steps with another configuration ({', '.join(refused)}{why}): give the "
            f"old values (they are in {path}) or another --workdir."
        )
    if differing(begun["data"], data):
        raise ResumeError(
            f"{workdir} holds a run on {begun['data']['tiles']} tiles in batches of {begun['data']['batch_size']}, now "
            f"there are {data['tiles']} in batches of {data['batch_size']}, or other tiles: restore the data or give "
            "another --workdir."
        )
