"""Pictures of the guidance at the end of every phase: the same few tiles, their maps, boxes and guided views."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from grass_jax import sharding, steps
from grass_jax.augment import Augmentation
from grass_jax.bands import denormalise
from grass_jax.data.faults import readable
from grass_jax.data.source import TileSource
from grass_jax.guidance import GuidanceSettings, guide
from grass_jax.methods import Method
from grass_jax.report import figures
from grass_jax.report.log import read_metrics
from grass_jax.sampling import crop_boxes
from grass_jax.state import TrainState
from grass_jax.train import Phase

FIGURE_BATCH = 64  # tiles whose contrastive loss guides the pictures; a few of them are drawn


def guidance_picture(workdir: Path, phase: str) -> Path:
    """Where the picture of a phase's end is."""
    return workdir / "figures" / f"guidance_{phase}.png"


def guidance_pictures(
    config: Any,
    source: TileSource,
    method: Method,
    augment: Callable,
    hp: GuidanceSettings,
    augmentation: Augmentation,
    workdir: Path,
) -> Callable[[Phase, int, TrainState], dict[str, float]]:
    """Makes the hook that draws what the guidance would do to the same few tiles at the end of every phase."""
    drawn = min(config.log.figure_tiles, len(source))
    # twice as many as are shown: the next ones take the places of those that cannot be read
    order = np.random.default_rng(config.seed).permutation(len(source))[: 2 * FIGURE_BATCH]

    @jax.jit
    def explain(state: TrainState, images: jax.Array) -> tuple[jax.Array, ...]:
        key = jax.random.key(config.seed)
        views, geometry = augment(key, {"image": images})
        guidance, _ = guide(
            state, views, method=method, hp=hp, geometry=geometry, key=jax.random.fold_in(key, steps.PLACING)
        )
        guided = crop_boxes(views, guidance.boxes)
        first = (views, guided)
        shown = [denormalise(images[:drawn, 0].astype(jnp.float32), augmentation.bands) for images in first]
        return *shown, guidance.maps[:drawn, 0], guidance.boxes[:drawn, 0], guidance.fallback[:drawn, 0]

    def draw(phase: Phase, step: int, state: TrainState) -> dict[str, float]:
        if drawn == 0 or jax.process_index() != 0:
            return {}
        # this process alone draws: on one device, with its copy of the state
        own = sharding.own_copy(state)
        images = [tile["image"] for _, tile in islice(readable(source, order), FIGURE_BATCH)]
        if not images:
            logging.warning("There are no pictures of %s: none of their tiles can be read.", phase.name)
            return {}
        views, guided, maps, boxes, fallback = jax.device_get(explain(own, np.stack(images)))
        try:
            figures.guidance(
                guidance_picture(workdir, phase.name),
                views,
                maps,
                boxes,
                guided,
                title=f"Guidance after {phase.name}: {step} steps",
                fallback=fallback,
                threshold=hp.threshold,
            )
            figures.curves(workdir / "figures" / "curves.png", read_metrics(workdir))
        except OSError as error:  # a full disk must not cost the checkpoint that follows
            logging.warning("The figures of %s could not be written: %s", phase.name, error)
        return {}

    return draw
