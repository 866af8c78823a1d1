"""The pretraining task: from a config to phases of compiled steps on real batches, with pictures at the end of each."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from grass_jax import sharding, steps
from grass_jax.augment import Augmentation
from grass_jax.bands import Bands
from grass_jax.buckets import open_workdir, place
from grass_jax.build import build_augment, build_method, build_schedule, initial_state
from grass_jax.checkpoints.reading import kept_steps
from grass_jax.checkpoints.resume import agree_on_data, refuse_other_run, refuse_other_trunk
from grass_jax.checkpoints.saving import Checkpoints
from grass_jax.config import ConfigError, phase_length
from grass_jax.data.faults import Replaced
from grass_jax.data.loader import check_batch_size, fitting_batch_size, process_batches, steps_per_epoch
from grass_jax.data.published.facts import PUBLISHED
from grass_jax.data.published.sets import published_tiles
from grass_jax.data.remote import local_folder
from grass_jax.data.source import TileSource, open_tiles
from grass_jax.data_rules import refuse_masks
from grass_jax.guidance import GuidanceSettings
from grass_jax.guidance_pictures import guidance_pictures
from grass_jax.initial import follow_encoder, initial_encoder, settle_bands
from grass_jax.methods.registry import CONTRASTED
from grass_jax.report import figures
from grass_jax.report.environment import environment
from grass_jax.report.log import read_metrics, write_json
from grass_jax.report.records import read_record
from grass_jax.report.summary import finish
from grass_jax.schemas import check
from grass_jax.segment.watch import watch_afterwards, watched, watching_hooks
from grass_jax.train import DivergedError, Hook, Phase, Task, counting, phases_of, train


def run(config: Any, workdir: str | Path) -> dict[str, Any] | None:
    """Pretrains an encoder as the config says, from the start or from where the run in `workdir` stands.

    Args:
        config: a ConfigDict of `configs/gs.py` or like it.
        workdir: folder of the run.

    Returns:
        The content of `summary.json`; None when the run had ended before.

    Raises:
        ConfigError: a key or value that cannot be run.
        ResumeError: the folder holds another run, or no checkpoint that can be read.
        DivergedError: a number stopped being finite.
        SaveError: the last state cannot be saved.
        Stopped: a signal came; the state is saved.
    """
    check(config)
    began = time.monotonic()
    workdir, first = open_workdir(workdir), jax.process_index() == 0
    config, mesh = follow_encoder(config, workdir), sharding.make_mesh()
    if config.branch:
        config.branch = str(place(config.branch, absolute=True))
    source, batch_size, length, ends = prepared(config, mesh)
    last_steps = dict(zip(config.phases, ends, strict=True))
    start = "initial encoder" if config.init else "random encoder"
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    data = {"tiles": len(source), "batch_size": batch_size, **source.digests()}
    with Checkpoints(workdir, keep=config.checkpoint.keep, keep_steps=tuple(ends)) as checkpoints:
        plain = config.to_dict()
        data = agree_on_data(plain, data)
        refuse_other_run(workdir, plain, data, steps_per_epoch=length, done=checkpoints.latest or 0)
        init = initial_state(config, init_key, ends)
        done, state = checkpoints.go_on(init, sharding.replicated(mesh))
        trunk = _trunk(config, workdir, plain, data, steps_per_epoch=length, done=done)
        make_task = partial(
            pretraining_task, config, source, init_key, batch_size=batch_size, ends=ends, workdir=workdir
        )
        record = {"config": plain, "data": data, "environment": environment()}
        ended = done >= ends[-1]
        if ended:
            logging.info(
                "%s: this run has ended after %d steps; more epochs or another --workdir go on.", workdir, done
            )
        else:
            if first:
                (workdir / "summary.json").unlink(missing_ok=True)  # of a shorter run that this one continues
                write_json(workdir / "config.json", record)
            task = make_task(encoder=None if done else initial_encoder(config))
            logging.info(
                "%s: %d tiles, %d steps an epoch of %d tiles, %d steps in %s from %s, on %d %s.",
                *(workdir, len(source), length, batch_size, ends[-1], " and ".join(config.phases)),
                *(config.branch or config.init or "random weights", mesh.size, jax.devices()[0].device_kind),
            )
            if trunk and not done:
                with Checkpoints(config.branch) as before:
                    done, state = trunk, before.restore(jax.eval_shape(init), sharding.replicated(mesh), trunk)
                checkpoints.save_surely(trunk, state)
            with _saying_what_to_change(checkpoints, workdir):
                train(
                    task,
                    checkpoints,
                    workdir,
                    mesh,
                    key=run_key,
                    log_every=config.log.every,
                    checkpoint_every=max(1, round(config.checkpoint.every_epochs * length)),
                    checkpoint_minutes=config.checkpoint.every_minutes,
                    tensorboard=config.log.tensorboard,
                    start=done,
                    begun=state,
                )
        wanted = {name: step for name, step in ({"random": 0} | last_steps).items() if step > trunk or not trunk}
        late = watch_afterwards(config, wanted, make_task, checkpoints, workdir, mesh)
        if late and first:
            write_json(workdir / "config.json", record)  # a probe may have been switched on since
    # an ended run may have been killed just before its summary was written
    if not first or (ended and not late and read_record(workdir / "summary.json")):
        return None
    summary = finish(
        workdir,
        steps=ends[-1],
        tiles=len(source),
        seconds=None if ended else time.monotonic() - began,
        more=watched(workdir, last_steps, start=start),
    )
    return None if ended else summary


def _trunk(
    config: Any, workdir: Path, plain: dict[str, Any], data: dict[str, Any], *, steps_per_epoch: int, done: int
) -> int:
    """The step at which the run that this one branches off from has ended; 0 where it is no branch."""
    if not config.branch:
        return 0
    if done:  # its first checkpoint is the trunk's last one, kept for good: the trunk may be gone
        return sharding.read_by_first(lambda: kept_steps(workdir)[0])
    return refuse_other_trunk(config.branch, plain, data, steps_per_epoch=steps_per_epoch)


@contextmanager
def _saying_what_to_change(checkpoints: Checkpoints, workdir: Path) -> Iterator[None]:
    """Draws the curves of a training that diverges, and says where it stands and what to change."""
    try:
        yield
    except DivergedError as error:
        checkpoints.wait()
        if jax.process_index() == 0:
            try:
                figures.curves(workdir / "figures" / "curves.png", read_metrics(workdir))
            except OSError as full:  # must not hide why the run has stopped
                logging.warning("The curves could not be drawn: %s", full)
        raise DivergedError(
            f"{error} The run has stopped; its last good checkpoint is step {checkpoints.latest or 0}. Lower "
            "the learning rate (config.schedule.peak with the cosine schedule) and start again in another "
            "--workdir."
        ) from None


def prepared(config: Any, mesh: Mesh) -> tuple[TileSource, int, int, list[int]]:
    """Opens what a run trains on; every process must call it.

    Args:
        config: checked and its encoder followed; its section `bands` is settled here.
        mesh: the devices.

    Returns:
        The tiles, how many of them a global batch has, full batches in them, and the last step of each phase.

    Raises:
        ConfigError: the data cannot be had as it is described, or the devices cannot share a batch.
    """
    options: dict[str, int] = {"devices": mesh.size, "parts": config.micro_batches}
    check_batch_size(config.batch_size, **options)
    source = sharding.in_all(lambda: open_source(config.data, config.bands.numbers))
    settle_bands(config, source.bands)
    batch_size = fitting_batch_size(config.batch_size, tiles=len(source), **options)
    length = steps_per_epoch(source, batch_size)
    ends = np.cumsum([phase_length(config[name], length) for name in config.phases]).tolist()
    return source, batch_size, length, ends


def open_source(data: Any, numbers: Sequence[int] = ()) -> TileSource:
    """Opens, and on first use prepares, the tiles of a config's `data` section.

    Args:
        data: the section.
        numbers: of the bands, from 1; empty takes all.

    Raises:
        ConfigError: the data cannot be had as it is described.
    """
    name, _, region = data.name.partition("/")
    tiling = {"tile_size": data.tile_size, "stride": data.stride or None, "data_dir": data.data_dir or None}
    try:
        path = local_folder(data.path, data.data_dir) or None
        if path is not None and path != data.path and data.name == "image_folder":
            refuse_masks(path, data.path)  # in a bucket they are seen once they are here
        if data.name in PUBLISHED:
            return published_tiles(name, path, region=region, numbers=numbers, **tiling)
        return open_tiles(name, path=path, exclude=data.exclude, split=data.split, numbers=numbers, **tiling)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def pretraining_task(
    config: Any,
    source: TileSource,
    init_key: jax.Array,
    *,
    batch_size: int,
    ends: list[int],
    workdir: Path,
    encoder: dict[str, Any] | None = None,
) -> Task:
    """Puts together what the loop runs.

    Args:
        config: checked, its encoder followed and its bands settled.
        source: the tiles.
        init_key: of the initial parameters.
        batch_size: tiles of a global batch.
        ends: last step of each phase, counted over the run.
        workdir: where pictures go.
        encoder: from `initial_encoder`; None starts from random weights.

    Returns:
        The task.
    """
    augmentation = Augmentation(**config.augment, bands=Bands(**config.bands.to_dict()))
    random = initial_state(config, init_key, ends)
    _, method, optimizer = random.args
    schedule, hp = build_schedule(config, ends), GuidanceSettings(**config.guidance)
    augment = build_augment(config, augmentation)
    shared = {"method": method, "optimizer": optimizer, "augment": augment}
    step_functions = {
        "warmup_step": partial(steps.warmup_step, **shared),
        "gs_step": partial(steps.gs_step, hp=hp, **shared),
    }
    looked_at = build_method(config, ends[-1], micro_batches=1)  # a few tiles, of any number
    pictures = guidance_pictures(config, source, looked_at, augment, hp, augmentation, workdir)
    length, replaced = steps_per_epoch(source, batch_size), Replaced()
    return Task(
        init=partial(random, encoder=encoder),
        phases=phases_of(config.phases, [step_functions[config[name].step] for name in config.phases], ends),
        batches=partial(
            process_batches,
            source,
            batch_size=batch_size,
            seed=config.seed,
            workers=config.data.workers,
            replaced=replaced,
            log_overlaps=config.method.name in CONTRASTED,
        ),
        batch_size=batch_size,
        steps_per_epoch=length,
        schedule=np.asarray(jax.vmap(schedule)(np.arange(ends[-1]))),
        watch=fallback_watch(length),
        hooks=(
            counting(replaced),
            Hook(pictures),
            *watching_hooks(config, looked_at, random, augmentation, hp, workdir, length),
        ),
    )


def fallback_watch(steps_per_epoch: int) -> Callable[[Phase, int, dict[str, float]], None]:
    """Warns once per phase when most views of an epoch have a map without a positive value."""
    shares: list[float] = []
    warned: set[str] = set()

    def watch(phase: Phase, step: int, metrics: dict[str, float]) -> None:
        if "fallback" not in metrics:
            return
        shares.append(metrics["fallback"])
        if (step - phase.begin) % steps_per_epoch:
            return
        share = np.mean(shares)
        shares.clear()
        if share > 0.5 and phase.name not in warned:
            warned.add(phase.name)
            logging.warning(
                "%.0f %% of the views fall back to the whole view because their map has no positive value: "
                "the phase %s is mostly plain instance discrimination.",
                100 * share,
                phase.name,
            )

    return watch
