"""The segmentation task: an encoder, some labelled crops, and in the end the figures of the test scenes."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from grass_jax import sharding
from grass_jax.augment.pairs import PairAugmentation, augment_pairs
from grass_jax.bands import Bands
from grass_jax.buckets import open_workdir
from grass_jax.build import build_optimizer, build_schedule
from grass_jax.checkpoints.resume import agree_on_data, refuse_other_run
from grass_jax.checkpoints.saving import Checkpoints
from grass_jax.config import ConfigError
from grass_jax.data.budget import write_labels
from grass_jax.data.faults import DataError, Replaced, readable
from grass_jax.data.labelled import LabelledSet
from grass_jax.data.loader import check_batch_size, fitting_batch_size, process_batches, steps_per_epoch
from grass_jax.data.source import TileSource
from grass_jax.initial import follow_encoder, initial_encoder, seen_in_pretraining, settle_bands
from grass_jax.models import build_encoder, build_segmenter
from grass_jax.optim import scale_encoder
from grass_jax.report.environment import environment
from grass_jax.report.log import write_json
from grass_jax.report.records import read_record
from grass_jax.report.summary import finish
from grass_jax.schemas import check
from grass_jax.segment.evaluate import check_class_names, draw_evaluation, evaluate, log_scores, write_confusion
from grass_jax.segment.labelled_data import choose, hold_out, open_data, tile_scenes
from grass_jax.segment.model import make_forward
from grass_jax.segment.probe import fit_probe
from grass_jax.segment.step import create_segmentation_state, segment_step
from grass_jax.state import TrainState
from grass_jax.train import DivergedError, Hook, Phase, Task, counting, phases_of, train

FEW = 100  # labelled crops below which nothing is chosen by validation
VALIDATION = "validation_miou"


def run(config: Any, workdir: str | Path) -> dict[str, Any] | None:
    """Fine-tunes a segmentation network as the config says, and scores it once on the test scenes.

    Args:
        config: a ConfigDict of `configs/segment.py` or like it.
        workdir: folder of the run; it is resumed where it stands.

    Returns:
        The content of `summary.json`; None when the run had ended before, and on processes other than the first.

    Raises:
        ConfigError: a key or value that cannot be run.
        ResumeError: the folder holds another run, or no checkpoint that can be read.
        DivergedError: a number stopped being finite.
        SaveError: the last state cannot be saved.
        Stopped: a signal came; the state is saved.
    """
    check(config)
    began, first = time.monotonic(), jax.process_index() == 0
    workdir, linear = open_workdir(workdir), config.head.name == "linear"
    config, mesh = follow_encoder(config, workdir), sharding.make_mesh()
    labelled, chosen, held, source, batch_size, network = prepared(config, mesh)
    end = 1 if linear else sum(config[name].steps for name in config.phases)
    data = {"tiles": len(source), "batch_size": batch_size, **source.digests()}
    best = VALIDATION if len(held) else None
    with Checkpoints(workdir, keep=config.checkpoint.keep, keep_steps=(end,), best=best) as checkpoints:
        plain, length = config.to_dict(), steps_per_epoch(source, batch_size)
        data = agree_on_data(plain, data)
        refuse_other_run(workdir, plain, data, steps_per_epoch=length, done=checkpoints.latest or 0)
        init_key, run_key = jax.random.split(jax.random.key(config.seed))
        bands = Bands(**config.bands.to_dict())
        forward = make_forward(network, bands, sharding.local_mesh())
        shared, scenes = {"classes": labelled.classes, "bands": bands, **scoring(config)}, tile_scenes(labelled, held)

        def validate(phase: Phase, step: int, state: TrainState) -> dict[str, float]:
            del phase, step
            try:
                return {VALIDATION: evaluate(forward(variables_of(state)), scenes, **shared).scores["miou"]}
            except ConfigError as error:  # each of these crops has a labelled pixel
                raise DataError("None of the crops to validate on can be read: bring their disk back.") from error

        parts, validation = (config, source, network, init_key), validate if len(held) else None
        make_task = partial(segmentation_task, *parts, batch_size=batch_size, validate=validation)
        done, state = checkpoints.go_on(make_task(None).init, sharding.replicated(mesh))
        if done >= end and sharding.read_by_first(lambda: bool(read_record(workdir / "summary.json"))):
            logging.info("%s: this run has ended after %d steps; another --workdir starts a new one.", workdir, done)
            return None
        task = make_task(None if done else initial_encoder(config))
        if first:
            (workdir / "summary.json").unlink(missing_ok=True)  # of a shorter run that this one continues
            labels = {"classes": labelled.classes, "colours": labelled.colours}
            resolved = {"config": plain, "data": data, "labels": labels, "environment": environment()}
            write_json(workdir / "config.json", resolved)
            write_labels(workdir / "labels.txt", labelled.train, chosen)
            if len(held):
                write_labels(workdir / "validation.txt", labelled.train, held)
        logging.info(
            "%s: %d labelled crops of %d, %s from %s, on %d %s.",
            *(workdir, len(chosen), len(labelled.train), config.head.name, config.init or "random weights"),
            *(mesh.size, jax.devices()[0].device_kind),
        )
        seen = seen_in_pretraining(config, [scene.name for scene in labelled.test])
        if linear and not done:
            state = fit_linear_head(config, task.init(), source, len(labelled.classes))
            checkpoints.save_surely(end, jax.device_put(state, sharding.replicated(mesh)))
        elif done < end:
            try:
                train(
                    task,
                    checkpoints,
                    workdir,
                    mesh,
                    key=run_key,
                    log_every=config.log.every,
                    checkpoint_every=config.checkpoint.every_steps,
                    checkpoint_minutes=config.checkpoint.every_minutes,
                    tensorboard=config.log.tensorboard,
                    start=done,
                    begun=state,
                )
            except DivergedError as error:
                advice = "Lower config.schedule.peak and start again in another --workdir."
                raise DivergedError(f"{error} {advice}") from None
        checkpoints.wait()
        counted = checkpoints.best_step() or end
        state = checkpoints.restore(jax.eval_shape(task.init), sharding.replicated(mesh), counted)
    found: dict[str, Any] = {
        "labelled_crops": len(chosen),
        "validation_crops": len(held),
        "init": config.init or "random",
        "init_step": config.init_step,
        "chosen_step": counted,
    }
    if labelled.test:
        found["test_scenes_seen_in_pretraining"] = seen
        found["test"] = _score(config, forward(variables_of(state)), labelled, workdir, **shared)
    seconds = time.monotonic() - began
    return finish(workdir, steps=end, tiles=len(source), seconds=seconds, more=found) if first else None


def _score(config: Any, network: Callable, labelled: LabelledSet, workdir: Path, **shared: Any) -> dict[str, Any]:
    """Scores the test scenes; the first process draws and logs what was found."""
    more = {name: config.evaluate[name] for name in ("boundary", "without")}
    pictures = config.evaluate.figure_scenes
    found = evaluate(network, labelled.test, **shared, **more, pictures=pictures, title="testing")
    if jax.process_index() == 0:
        write_confusion(workdir, found, labelled.classes)
        draw_evaluation(workdir / "figures", found, labelled.classes, labelled.colours, title="Test scenes")
        log_scores("test", found.scores)
    return found.scores


class Prepared(NamedTuple):
    """What a fine-tuning run works on.

    Attributes:
        labelled: the data set.
        chosen: tiles of `labelled.train` whose labels are used.
        held: those of them that do not train but validate; may be empty.
        source: the others.
        batch_size: tiles of a global batch; all of them for a linear head.
        network: the module.
    """

    labelled: LabelledSet
    chosen: np.ndarray
    held: np.ndarray
    source: TileSource
    batch_size: int
    network: nn.Module


def prepared(config: Any, mesh: Mesh) -> Prepared:
    """Opens what a run works on; every process must call it.

    Args:
        config: checked and its encoder followed; its section `bands` is settled here.
        mesh: the devices.

    Raises:
        ConfigError: the data cannot be had as it is described, or the devices cannot share a batch.
    """
    linear = config.head.name == "linear"
    if not linear:
        check_batch_size(config.batch_size, devices=mesh.size)
    labelled = sharding.in_all(lambda: open_data(config.data, numbers=config.bands.numbers))
    settle_bands(config, labelled.bands)
    if not labelled.test:
        logging.warning("No scene is kept for testing, nothing will be scored: --config.data.test=PATTERN keeps some.")
    check_class_names(config.evaluate.without, labelled.classes)
    chosen = choose(labelled, config.labels, config.labels_seed)
    training, held = chosen, chosen[:0]
    if config.validate_every and not linear:
        if len(chosen) >= FEW:
            training, held = hold_out(labelled, chosen, config.validation_share, config.labels_seed)
        if not len(held):
            few = f"below {FEW}" if len(chosen) < FEW else "of one group"
            logging.info("The %d labelled crops are %s: the last iterate counts, nothing is chosen.", len(chosen), few)
    source = labelled.train.subset(training)
    batch_size = len(source) if linear else fitting_batch_size(config.batch_size, tiles=len(source), devices=mesh.size)
    network = build_segmenter(config.model, config.head, len(labelled.classes))
    return Prepared(labelled, chosen, held, source, batch_size, network)


def segmentation_task(
    config: Any,
    source: TileSource,
    network: nn.Module,
    init_key: jax.Array,
    encoder: dict[str, Any] | None,
    *,
    batch_size: int,
    validate: Callable[[Phase, int, TrainState], dict[str, float]] | None = None,
) -> Task:
    """Puts together what the loop runs.

    Args:
        config: checked, its encoder followed and its bands settled.
        source: the tiles to train on.
        network: the module.
        init_key: of the initial parameters.
        encoder: from `initial_encoder`.
        batch_size: tiles of a global batch.
        validate: the hook that scores what was held out, to choose a checkpoint; None chooses the last.

    Returns:
        The task.
    """
    augmentation = PairAugmentation(**config.augment, bands=Bands(**config.bands.to_dict()))
    ends = np.cumsum([config[name].steps for name in config.phases]).tolist()
    schedule = build_schedule(config, ends)
    optimizer = optax.chain(build_optimizer(config, schedule), scale_encoder(config.encoder_rate))
    step = partial(
        segment_step,
        module=network,
        optimizer=optimizer,
        augment=partial(augment_pairs, augmentation=augmentation),
        class_weights=tuple(config.loss.class_weights) or None,
        train_encoder=config.encoder_rate > 0,
    )
    replaced = Replaced()
    return Task(
        init=partial(
            create_segmentation_state,
            init_key,
            network,
            optimizer,
            size=augmentation.size,
            bands=len(augmentation.bands),
            encoder=encoder,
        ),
        phases=phases_of(config.phases, [step] * len(ends), ends),
        batches=partial(
            process_batches,
            source,
            batch_size=batch_size,
            seed=config.seed,
            workers=config.data.workers,
            negatives=False,
            replaced=replaced,
        ),
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch(source, batch_size),
        schedule=np.asarray(jax.vmap(schedule)(np.arange(ends[-1]))),
        hooks=(
            counting(replaced),
            *((Hook(validate, every=config.validate_every, saves=True),) if validate else ()),
        ),
    )


def scoring(config: Any) -> dict[str, Any]:
    """Window, overlap and batch size of `evaluate`, as the config has them."""
    settings = config.evaluate
    window = settings.window or config.data.tile_size
    return {"window": window, "overlap": settings.overlap, "batch_size": settings.batch_size}


def variables_of(state: TrainState) -> dict[str, Any]:
    """This process's copy of parameters and statistics, as `apply` takes them."""
    return sharding.own_copy({"params": state.params, "batch_stats": state.stats})


def fit_linear_head(config: Any, state: TrainState, source: TileSource, classes: int) -> TrainState:
    """Fits the linear head on the frozen features of the labelled tiles; no loop, no learning rate."""
    mesh, bands = sharding.local_mesh(), Bands(**config.bands.to_dict())
    variables = {"params": state.params["encoder"], "batch_stats": state.stats["encoder"]}
    tiles = (tile for _, tile in readable(source, range(len(source))))
    encode = make_forward(build_encoder(**config.model), bands, mesh)
    head = fit_probe(encode(variables), tiles, classes, l2=config.l2, devices=mesh.size)
    return state.replace(step=state.step + 1, params={**state.params, "decoder": head})
