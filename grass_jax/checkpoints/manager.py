"""Orbax's manager of a folder of checkpoints: which of them stay, and what it is not to do."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep_policy


class Manager(ocp.CheckpointManager):
    """Orbax's, which neither falls over a damaged number nor asks other processes about a pre-emption.

    Args:
        folder: of the checkpoints.
        keep: how many of the latest checkpoints stay.
        keep_steps: steps whose checkpoints stay for good.
        best: name of a number, given with a state, whose highest value keeps its checkpoint, too.
        after_writing: called from another thread whenever a checkpoint has been written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        keep_steps: tuple[int, ...],
        best: str | None,
        after_writing: Callable[[], None] | None = None,
    ):
        policies: list[Any] = [keep_policy.LatestN(keep), keep_policy.CustomSteps(list(keep_steps))]
        if best is not None:
            policies.append(
                keep_policy.BestN(get_metric_fn=lambda m: m[best], n=1, keep_checkpoints_without_metrics=False)
            )
        self._after_writing = after_writing
        super().__init__(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep_policy.AnyPreservationPolicy(policies),
                best_fn=None if best is None else lambda m: m[best],  # without it the numbers are not written
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(timeout_secs=600),
            ),
        )

    def metrics(self, step: int) -> Any:
        """Numbers of a checkpoint; None where there are none, or damaged ones."""
        try:
            return super().metrics(step)
        except ValueError:
            return None

    def _load_checkpoint_infos(self, skip_metadata_read: bool = False) -> list[Any]:
        """What is known of all checkpoints, without their times where the record of one is damaged."""
        try:
            return super()._load_checkpoint_infos(skip_metadata_read)
        except ValueError:
            known = super()._load_checkpoint_infos(skip_metadata_read=True)
            return [dataclasses.replace(info, metrics=self.metrics(info.step)) for info in known]

    def _finalize_checkpoint(self, step: int) -> None:
        """Calls `after_writing`; orbax's own callback comes before a checkpoint has its name."""
        super()._finalize_checkpoint(step)
        if self._after_writing is not None:
            self._after_writing()

    def reached_preemption(self, step: int) -> bool:
        """Never: stopping.py says so; asked from a background thread it would mix up the steps."""
        del step
        return False
