"""What a step costs, in warm-up steps of the comparison's own method: measured once, in pairs, and remembered."""

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from grass_jax import sharding
from grass_jax.data.loader import fitting_batch_size, process_batches
from grass_jax.initial import settle_bands
from grass_jax.pretrain import open_source, pretraining_task
from grass_jax.report.log import write_json
from grass_jax.steps import compile_step

PAIRS = 7


class Costs:
    """Step times as multiples of that of the first step asked for; kept in `costs.json`, so that a resumed comparison
    goes on with the numbers it began with.

    Args:
        workdir: folder of the comparison.
        base: configuration of the pretraining run whose first phase's step costs 1.
    """

    def __init__(self, workdir: Path, base: Any):
        self._path, self._base = workdir / "costs.json", base
        self._known: dict[str, float] = json.loads(self._path.read_text()) if self._path.exists() else {}

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
            self._known[key] = sharding.same_everywhere(self._measure(config, phase))
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
        source = open_source(config.data, config.bands.numbers)
        settle_bands(config, source.bands)
        mesh = sharding.make_mesh()
        size = fitting_batch_size(config.batch_size, tiles=len(source), devices=mesh.size, parts=config.micro_batches)
        task = pretraining_task(
            config, source, jax.random.key(0), batch_size=size, ends=[len(source) // size], workdir=Path()
        )
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
    step, method = config[phase].step, config.method.name
    if step != "gs_step":
        return f"{method} {step}"
    changed = [f"{key}={config.guidance[key]}" for key in ("source", "encoder", "stage", "size")]
    return " ".join([method, step, *changed])
