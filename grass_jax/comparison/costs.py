"""What a step costs, in warm-up steps of the comparison's own method: measured once, in pairs, and remembered."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from grass_jax import sharding
from grass_jax.config import flatten
from grass_jax.data.loader import process_batches
from grass_jax.pretrain import prepared, pretraining_task
from grass_jax.report.log import write_json
from grass_jax.report.records import read_record
from grass_jax.steps import compile_step

PAIRS = 7
# what decides the time of a step beside its method, and of a guided one, too
SETTINGS = ("model.name", "model.width", "model.output_stride", "model.dtype")
SETTINGS += ("batch_size", "micro_batches", "augment.size")
GUIDED = ("guidance.source", "guidance.encoder", "guidance.stage", "guidance.size")


class Costs:
    """Step times as multiples of that of the first step asked for; kept in `costs.json`, so that a resumed comparison
    goes on with the numbers it began with.

    Args:
        workdir: folder of the comparison.
        base: configuration of the pretraining run whose first phase's step costs 1.
    """

    def __init__(self, workdir: Path, base: Any):
        self._path, self._base = workdir / "costs.json", base
        found = sharding.read_by_first(lambda: read_record(self._path, "what steps cost is measured once more"))
        self._known: dict[str, float] = {k: v for k, v in found.items() if type(v) in (int, float) and v > 0}

    def of(self, config: Any, phase: str) -> float:
        """Median over pairs of a step's time over the base step's, run in turn.

        Args:
            config: of the pretraining run.
            phase: whose step it is.
        """
        key = _words(config, phase)
        if key == _words(self._base, self._base.phases[0]):
            return 1.0
        if key not in self._known:
            logging.info("Measuring what a step costs: %s.", key)
            measured = self._measure(config, phase)
            self._known[key] = sharding.read_by_first(lambda: measured)  # every process has a time of its own
            if jax.process_index() == 0:
                write_json(self._path, self._known)
        return self._known[key]

    def _measure(self, config: Any, phase: str) -> float:
        runs = [_Step(self._base, self._base.phases[0]), _Step(config, phase)]
        times = np.array([[run.seconds() for run in runs] for _ in range(PAIRS + 1)])[1:]  # the first one compiles
        return float(np.median(times[:, 1] / times[:, 0]))


class _Step:
    """A compiled step with a state and a batch of its own."""

    def __init__(self, config: Any, phase: str):
        config = config.copy_and_resolve_references()
        config.phases, config[phase].epochs, config.branch = (phase,), 1, ""
        config.probe.every_epochs, config.log.figure_tiles = 0.0, 0
        mesh = sharding.make_mesh()
        source, size, _, ends = prepared(config, mesh)
        task = pretraining_task(config, source, jax.random.key(0), batch_size=size, ends=ends, workdir=Path())
        rows = next(iter(process_batches(source, 0, 1, batch_size=size, seed=0, workers=0)))
        self._batch, self._step = sharding.global_batch(rows, mesh), compile_step(task.phases[0].step, mesh)
        self._state, self._key = jax.device_put(task.init(), sharding.replicated(mesh)), jax.random.key(1)

    def seconds(self) -> float:
        start = time.perf_counter()
        self._state, metrics = self._step(self._state, self._batch, self._key)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - start


def _words(config: Any, phase: str) -> str:
    """What decides the time of a step, in one line."""
    plain, step = flatten(config), config[phase].step
    keys = SETTINGS + GUIDED if step == "gs_step" else SETTINGS
    return " ".join([config.method.name, step, *(f"{key}={plain[key]}" for key in keys)])
