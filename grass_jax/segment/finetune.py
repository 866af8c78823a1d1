"""The segmentation task: an encoder, some labelled crops, and in the end the figures of the test scenes."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from grass_jax import sharding
from grass_jax.augment.pairs import PairAugmentation, augment_pairs
from grass_jax.build import build_optimizer, build_schedule
from grass_jax.checkpoint import Checkpoints, refuse_other_run
from grass_jax.config import ConfigError
from grass_jax.data.budget import write_labels
from grass_jax.data.labelled import LabelledSet
from grass_jax.data.loader import batches, fitting_batch_size, steps_per_epoch
from grass_jax.data.source import TileSource
from grass_jax.interop.torchvision import read_encoder
from grass_jax.models import build_encoder, build_segmenter
from grass_jax.optim import scale_encoder
from grass_jax.report import maps
from grass_jax.report.environment import environment
from grass_jax.report.log import write_json
from grass_jax.report.summary import finish
from grass_jax.schemas import check
from grass_jax.segment.evaluate import Evaluation, evaluate
from grass_jax.segment.labelled_data import choose, open_data
from grass_jax.segment.model import make_forward
from grass_jax.segment.probe import fit_probe
from grass_jax.segment.step import create_segmentation_state, segment_step
from grass_jax.state import TrainState, load_encoder, run_config
from grass_jax.train import Hook, Phase, Task, train

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
        ResumeError: the folder holds another run.
        DivergedError: a number stopped being finite.
    """
    check(config)
    began, first = time.monotonic(), jax.process_index() == 0
    workdir = Path(workdir).expanduser()
    config = follow_encoder(config)
    labelled = open_data(config.data)
    chosen = choose(labelled, config.labels, config.labels_seed)
    source = labelled.train.subset(chosen)
    mesh = sharding.make_mesh()
    batch_size = fitting_batch_size(config.batch_size, tiles=len(source), devices=mesh.size)
    validated = bool(config.validate_every and labelled.validation and len(source) >= FEW)
    if config.validate_every and labelled.validation and not validated:
        logging.info(
            "%d labelled crops are fewer than %d: the last iterate counts, nothing is chosen.", len(source), FEW
        )
    linear = config.head.name == "linear"
    end = 1 if linear else sum(config[name].steps for name in config.phases)
    data = {"tiles": len(source), "batch_size": batch_size, "tiles_digest": source.digest()}
    best = VALIDATION if validated and not linear else None
    with Checkpoints(workdir, keep=config.checkpoint.keep, keep_steps=(end,), best=best) as checkpoints:
        done = checkpoints.latest or 0
        plain = config.to_dict()
        refuse_other_run(workdir, plain, data, steps_per_epoch=steps_per_epoch(source, batch_size), done=done)
        if done >= end and (workdir / "summary.json").exists():
            logging.info("%s: this run has ended after %d steps; another --workdir starts a new one.", workdir, done)
            return None
        if first:
            (workdir / "summary.json").unlink(missing_ok=True)  # of a shorter run that this one continues
            labels = {"classes": labelled.classes, "colours": labelled.colours}
            resolved = {"config": plain, "data": data, "labels": labels, "environment": environment()}
            write_json(workdir / "config.json", resolved)
            write_labels(workdir / "labels.txt", labelled.train, chosen)
        task = segmentation_task(config, labelled, source, batch_size=batch_size, validated=validated)
        logging.info(
            "%s: %d labelled crops of %d, %s from %s, on %d %s.",
            *(workdir, len(source), len(labelled.train), config.head.name, config.init or "random weights"),
            *(mesh.size, jax.devices()[0].device_kind),
        )
        if linear and done < end:
            checkpoints.save(end, fit_linear_head(config, task.init(), source, len(labelled.classes)))
        elif done < end:
            train(
                task,
                checkpoints,
                workdir,
                mesh,
                key=jax.random.split(jax.random.key(config.seed))[1],
                log_every=config.log.every,
                checkpoint_every=config.checkpoint.every_steps,
                tensorboard=config.log.tensorboard,
            )
        checkpoints.wait()
        counted = checkpoints.best_step() or end
        state = checkpoints.restore(jax.eval_shape(task.init), sharding.replicated(mesh), counted)
    evaluation = None
    if labelled.test:
        evaluation = score(config, labelled, sharding.own_copy(state), labelled.test, title="testing")
    if not first:
        return None
    found: dict[str, Any] = {"labelled_crops": len(source), "init": config.init or "random", "chosen_step": counted}
    if evaluation is not None:
        draw_evaluation(workdir / "figures", evaluation, labelled.classes, labelled.colours)
        found["test"] = evaluation.scores
        log_scores("test", evaluation.scores)
    else:
        logging.warning("config.data.test chooses no scene, so nothing was scored.")
    return finish(workdir, steps=end, tiles=len(source), seconds=time.monotonic() - began, more=found)


def follow_encoder(config: Any) -> Any:
    """Takes over from a pretraining run what belongs to its encoder: name, width, and the bands' normalisation.

    Raises:
        ConfigError: `init` is neither empty, nor a run, nor a weights file.
    """
    config = config.copy_and_resolve_references()
    if not config.init or Path(config.init).suffix == ".safetensors":
        return config
    try:
        begun = run_config(config.init, task="pretrain")
    except FileNotFoundError as error:
        raise ConfigError(f"config.init: {error}") from error
    config.init = str(Path(config.init).expanduser().absolute())
    for key in ("name", "width"):
        config.model[key] = begun["model"][key]
    for key in ("mean", "std"):
        config.augment[key] = tuple(begun["augment"][key])
    return config


def initial_encoder(config: Any) -> dict[str, Any] | None:
    """Reads `params` and `batch_stats` of the encoder that `config.init` names; None for random weights.

    Raises:
        ConfigError: they cannot be read.
    """
    if not config.init:
        return None
    try:
        if Path(config.init).suffix == ".safetensors":
            module = build_encoder(**config.model)
            shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
            return read_encoder(Path(config.init).expanduser(), shapes)
        return load_encoder(config.init, config.init_step or None).variables
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"config.init: {error}") from error


def segmentation_task(
    config: Any, labelled: LabelledSet, source: TileSource, *, batch_size: int, validated: bool
) -> Task:
    """Puts together what the loop runs.

    Args:
        config: checked, its encoder followed.
        labelled: the data set.
        source: the tiles whose labels may be used.
        batch_size: tiles of a global batch.
        validated: score the validation scenes every so many steps.

    Returns:
        The task.
    """
    augmentation = PairAugmentation(**config.augment)
    module = build_segmenter(config.model, config.head, len(labelled.classes))
    ends = np.cumsum([config[name].steps for name in config.phases]).tolist()
    schedule = build_schedule(config, ends)
    optimizer = optax.chain(build_optimizer(config, schedule), scale_encoder(config.encoder_rate))
    step = partial(
        segment_step,
        module=module,
        optimizer=optimizer,
        augment=partial(_augment, augmentation=augmentation),
        class_weights=tuple(config.loss.class_weights) or None,
        train_encoder=config.encoder_rate > 0,
    )
    encoder = initial_encoder(config)

    def batches_of(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        rows = batches(
            source,
            batch_size=batch_size,
            seed=config.seed,
            start=start,
            stop=stop,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=config.data.workers,
        )
        return ({"image": batch["image"], "mask": batch["mask"]} for batch in rows)

    def validate(phase: Phase, step: int, state: TrainState) -> dict[str, float]:
        found = score(config, labelled, sharding.own_copy(state), labelled.validation, pictures=0)
        return {VALIDATION: found.scores["miou"]}

    return Task(
        init=lambda: create_segmentation_state(
            jax.random.split(jax.random.key(config.seed))[0], module, optimizer, size=augmentation.size, encoder=encoder
        ),
        phases=tuple(
            Phase(name, step, begin, end) for name, begin, end in zip(config.phases, [0, *ends], ends, strict=False)
        ),
        batches=batches_of,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch(source, batch_size),
        schedule=np.asarray(jax.vmap(schedule)(np.arange(ends[-1]))),
        watch=lambda phase, step, metrics: None,
        hooks=(Hook(validate, every=config.validate_every, saves=True),) if validated else (),
    )


def _augment(key: jax.Array, images: jax.Array, masks: jax.Array, *, augmentation: PairAugmentation) -> Any:
    return augment_pairs(key, images, masks, augmentation)


def fit_linear_head(config: Any, state: TrainState, source: TileSource, classes: int) -> TrainState:
    """Fits the linear head on the frozen features of the labelled tiles; no loop, no learning rate."""
    module = build_encoder(**config.model)
    variables = {"params": state.params["encoder"], "batch_stats": state.stats["encoder"]}
    mean, std = config.augment.mean, config.augment.std
    encode = make_forward(module, mean, std, sharding.make_mesh(jax.local_devices()[:1]))(variables)
    head = fit_probe(encode, (source[i] for i in range(len(source))), classes, l2=config.l2)
    return state.replace(step=state.step + 1, params={**state.params, "decoder": head})


def score(
    config: Any, labelled: LabelledSet, state: TrainState, scenes: Any, *, pictures: int | None = None, title: str = ""
) -> Evaluation:
    """Scores this process's copy of a state on whole scenes."""
    module = build_segmenter(config.model, config.head, len(labelled.classes))
    forward = make_forward(module, config.augment.mean, config.augment.std, sharding.local_mesh())
    settings = config.evaluate
    return evaluate(
        forward({"params": state.params, "batch_stats": state.stats}),
        scenes,
        labelled.classes,
        window=settings.window or config.data.tile_size,
        overlap=settings.overlap,
        batch_size=settings.batch_size,
        boundary=settings.boundary,
        without=settings.without,
        pictures=settings.figure_scenes if pictures is None else pictures,
        title=title,
    )


def draw_evaluation(folder: Path, evaluation: Evaluation, classes: tuple[str, ...], colours: np.ndarray) -> None:
    """Draws the panels and the confusion matrix of a scored network."""
    try:
        maps.confusion(folder / "confusion.png", evaluation.matrix, classes)
        if evaluation.pictures:
            names, images, truths, predictions = zip(*evaluation.pictures, strict=True)
            path = folder / "predictions.png"
            maps.panels(path, images, truths, predictions, classes, colours, "Test scenes", names=names)
    except OSError as error:  # a full disk must not cost the figures
        logging.warning("The pictures of the test could not be written: %s", error)


def log_scores(part: str, found: dict[str, Any]) -> None:
    """Says the figures in a few lines."""
    areas = found["areas"]
    logging.info(
        "%s, %d scenes: mIoU %s (mean over %d areas %s), mean F1 %s, overall accuracy %s, kappa %s.",
        *(part, found["scenes"], _text(found["miou"]), areas["areas"], _text(areas["miou"]), _text(found["mean_f1"])),
        *(_text(found["overall_accuracy"]), _text(found["kappa"])),
    )
    logging.info("%s, IoU: %s.", part, ", ".join(f"{name} {_text(v)}" for name, v in found["iou"].items()))
    for name, value in found["miou_without"].items():
        logging.info("%s, mIoU without %s: %s.", part, name, _text(value))
    if "boundary" in found:
        boundary = found["boundary"]
        logging.info("%s, boundary F1 at %d pixels: %s.", part, boundary["tolerance"], _text(boundary["mean"]))
    if found["absent"]:
        logging.info(
            "%s: left out because neither truth nor prediction has them: %s.", part, ", ".join(found["absent"])
        )


def _text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
