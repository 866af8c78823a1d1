"""What pretraining is worth while it goes on: linear probes and the purity of the guided boxes, on labelled tiles."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from grass_jax.augment import Augmentation, two_views, view_masks
from grass_jax.bands import Bands
from grass_jax.checkpoints.reading import kept_steps
from grass_jax.checkpoints.saving import Checkpoints, ResumeError
from grass_jax.config import ConfigError
from grass_jax.data.faults import readable
from grass_jax.data.labelled import LabelledSet
from grass_jax.guidance import GuidanceSettings, guide
from grass_jax.guidance_pictures import guidance_picture
from grass_jax.initial import initial_encoder
from grass_jax.methods import Method
from grass_jax.models import build_encoder, build_segmenter
from grass_jax.report import maps
from grass_jax.report.log import MetricsLog, read_metrics, write_json
from grass_jax.report.records import read_record
from grass_jax.sampling import salient_boxes
from grass_jax.segment.evaluate import evaluate
from grass_jax.segment.labelled_data import choose, open_data
from grass_jax.segment.model import make_forward
from grass_jax.segment.probe import fit_probe
from grass_jax.segment.purity import Purity, box_purity, join, summarise_purity
from grass_jax.sharding import in_all, local_mesh, own_copy, read_by_first, replicated
from grass_jax.state import TrainState
from grass_jax.steps import PLACING
from grass_jax.train import Hook, Phase, Task, run_hooks

PURITY_BATCH = 64  # tiles whose contrastive loss guides the boxes that are measured
PURITY_FILE = "purity.json"
BOXES = ("guided", "random encoder", "another view's box", "activation alone")  # the first and its controls


def watching_hooks(
    config: Any,
    method: Method,
    init: Callable[[], TrainState],
    augmentation: Augmentation,
    hp: GuidanceSettings,
    workdir: Path,
    steps_per_epoch: int,
) -> tuple[Hook, ...]:
    """Makes the hooks that `config.probe` asks for; none where it is off.

    Args:
        config: of a pretraining run, checked.
        method: supplies encoder and loss.
        init: makes the state before the first step: the random encoder of the controls.
        augmentation: of the views whose boxes are measured.
        hp: choices of the guidance.
        workdir: folder of the run.
        steps_per_epoch: turns epochs into steps.

    Raises:
        ConfigError: the labelled data cannot be had as it is described.
    """
    if not config.probe.every_epochs:
        return ()
    labelled = open_data(config.probe.data, "probe.data", numbers=config.bands.numbers)
    if labelled.bands.dtype != config.bands.dtype:
        raise ConfigError(
            f"The images of config.probe.data hold {labelled.bands.dtype} and those of config.data "
            f"{config.bands.dtype}: they must be of one kind."
        )
    if not labelled.validation:
        raise ConfigError(
            "config.probe.data.validation must choose scenes for the probe to be scored on, such as 0.2: the test part "
            "stays closed until the end."
        )
    every = max(1, round(config.probe.every_epochs * steps_per_epoch))
    hooks = [Hook(probing(config, labelled), every=every, at_start=True)]
    if config.probe.purity_tiles:
        hooks.append(Hook(purity_watch(config, labelled, method, init, augmentation, hp, workdir), at_start=True))
    return tuple(hooks)


def probing(config: Any, labelled: LabelledSet) -> Callable[[Phase, int, TrainState], dict[str, float]]:
    """Makes the hook that fits a linear head on frozen features and scores it on the whole scenes of validation."""
    settings = config.probe
    chosen = choose(labelled, settings.labels, settings.labels_seed, key="probe.labels")
    mesh, k = local_mesh(), len(labelled.classes)
    bands = Bands(**config.bands.to_dict())
    encode = make_forward(build_encoder(**config.model), bands, mesh)
    network = make_forward(build_segmenter(config.model, {"name": "linear"}, k), bands, mesh)

    def probe(phase: Phase, step: int, state: TrainState) -> dict[str, float]:
        del phase, step
        own = own_copy(state)
        encoder = {"params": own.params["encoder"], "batch_stats": own.stats["encoder"]}
        tiles = (tile for _, tile in readable(labelled.train, chosen))
        head = fit_probe(encode(encoder), tiles, k, l2=settings.l2, devices=mesh.size)
        variables = {
            "params": {"encoder": encoder["params"], "decoder": head},
            "batch_stats": {"encoder": encoder["batch_stats"]},
        }
        found = evaluate(
            network(variables),
            labelled.validation,
            labelled.classes,
            window=settings.window or config.probe.data.tile_size,
            overlap=settings.overlap,
            batch_size=settings.batch_size,
        ).scores
        return {"probe_miou": found["miou"], "probe_accuracy": found["overall_accuracy"]}

    return probe


def purity_watch(
    config: Any,
    labelled: LabelledSet,
    method: Method,
    init: Callable[[], TrainState],
    augmentation: Augmentation,
    hp: GuidanceSettings,
    workdir: Path,
) -> Callable[[Phase, int, TrainState], dict[str, float]]:
    """Makes the hook that measures which classes the guided boxes hold; see `purity`."""
    hp = replace(hp, boxes="guided")  # also where random ones train: they are what the guided are compared with
    k, batch = len(labelled.classes), min(PURITY_BATCH, config.probe.purity_tiles, len(labelled.train))
    order = np.random.default_rng(config.seed).permutation(len(labelled.train))
    count = min(config.probe.purity_tiles, len(order)) // batch * batch
    random = cache(lambda: init().replace(opt_state=()))

    @jax.jit
    def all_boxes(
        state: TrainState, random: TrainState, key: jax.Array, images: jax.Array, masks: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        views, geometry = two_views(key, images, augmentation, geometry=True)
        ask = partial(guide, views=views, method=method, hp=hp, geometry=geometry, key=jax.random.fold_in(key, PLACING))
        guided, by_random = (ask(s)[0].boxes for s in (state, random))
        activation = method.encode(state.params, state.stats, views)[0].mean(-1)
        by_activation = salient_boxes(activation, size=augmentation.size, threshold=hp.threshold)
        followed = view_masks(masks, geometry, augmentation.size)
        return followed, (guided, by_random, jnp.roll(guided, -1, axis=0), by_activation)  # in the order of BOXES

    def measure(phase: Phase, step: int, state: TrainState) -> dict[str, float]:
        if jax.process_index() != 0:
            return {}
        own = own_copy(state.replace(opt_state=()))
        parts: dict[str, list[Purity]] = {}
        groups: list[str] = []
        # the next tile takes the place of one that cannot be read, but not all of them are tried where the disk is gone
        drawn = islice(readable(labelled.train, order[: 2 * count]), count)
        for number, found in enumerate(iter(lambda: list(islice(drawn, batch)), [])):
            groups += [labelled.train_groups[i] for i, _ in found]
            # the first two keys that split from the seed's are those of the initial parameters and of the run
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 2), number)
            images, masks = (np.stack([tile[kind] for _, tile in found]) for kind in ("image", "mask"))
            masks, boxes = jax.device_get(all_boxes(own, random(), key, images, masks))
            masks = masks.reshape(-1, augmentation.size, augmentation.size)
            for name, its in zip(BOXES, boxes, strict=True):
                rng = np.random.default_rng([config.seed, number])
                parts.setdefault(name, []).append(box_purity(masks, its.reshape(-1, 4), k, rng))
        if not groups:
            return {}
        summary = summarise_purity({n: join(p) for n, p in parts.items()}, groups, labelled.classes)
        name = phase.name if step else "random"
        try:
            write_json(workdir / PURITY_FILE, read_purity(workdir) | {name: summary})
            maps.purity(workdir / "figures" / f"purity_{name}.png", summary)
        except OSError as error:  # a full disk must not cost the checkpoint that follows
            logging.warning("The purity could not be written: %s", error)
        mean = summary["boxes"][BOXES[0]]["mixed"]["majority"]["mean"]
        return {} if mean is None else {"purity_mixed": mean}

    return measure


def read_purity(workdir: Path) -> dict[str, Any]:
    """Reads what has been measured of a run's purity: by phase, and `random` for the encoder before it."""
    return read_record(workdir / PURITY_FILE, "what it lacks is measured again by the same command after the end")


def unwatched(
    workdir: Path, steps: dict[str, int], *, probe: bool = True, purity: bool = False, pictures: bool = False
) -> dict[str, int]:
    """Keeps of named steps, `random`, 0, and the ends of phases, those that something is missing of.

    Args:
        workdir: folder of the run.
        steps: by name.
        probe, purity, pictures: whether a missing one counts.
    """
    probed = {record["step"] for record in read_metrics(workdir) if record.get("probe_miou") is not None}
    pure = read_purity(workdir) if purity else steps
    drawn = {name for name in steps if name == "random" or not pictures or guidance_picture(workdir, name).exists()}
    seen = {name for name, step in steps.items() if not probe or step in probed} & pure.keys() & drawn
    return {name: step for name, step in steps.items() if name not in seen}


def watch_afterwards(
    config: Any,
    steps: dict[str, int],
    make_task: Callable[..., Task],
    checkpoints: Checkpoints,
    workdir: Path,
    mesh: Mesh,
) -> bool:
    """Makes what is missing of probes, purity and pictures, on the checkpoints that an ended run has kept.

    A probe was switched on since, or what it needs could not be read or written, or a signal came at that step. What
    cannot be made is only said: the run has ended, and its summary must not wait for it.

    Args:
        config: of the run.
        steps: `random`, 0, and the ends of phases, by name.
        make_task: (encoder=...) -> the task of the run.
        checkpoints: of the run.
        workdir: folder of the run.
        mesh: the devices.

    Returns:
        Whether something was missing that can be made.
    """
    probe, pictures = config.probe.every_epochs > 0, config.log.figure_tiles > 0
    purity = probe and config.probe.purity_tiles > 0

    def look() -> list[dict[str, int]]:
        missing = unwatched(workdir, steps, probe=probe, purity=purity, pictures=pictures)
        kept = {0, *kept_steps(workdir)}
        return [{name: step for name, step in missing.items() if (step in kept) is there} for there in (True, False)]

    late, gone = read_by_first(look)
    for name, step in gone.items():
        logging.warning("%s is not measured any more: its checkpoint, %d, was not kept.", name, step)
    if not late:
        return False
    named = ", ".join(f"{name} (step {step})" for name, step in late.items())
    logging.info("Of %s a probe, the purity or a picture is missing: making it.", named)
    try:
        encoder = initial_encoder(config) if "random" in late else None
        task = in_all(lambda: make_task(encoder=encoder))
        _watch(task, late, checkpoints, workdir, mesh)
    except ConfigError as error:
        logging.warning("What is missing of %s cannot be made: %s", named, error)
        return False
    return True


def _watch(task: Task, steps: dict[str, int], checkpoints: Checkpoints, workdir: Path, mesh: Mesh) -> None:
    """Runs hooks on kept checkpoints."""
    done = checkpoints.latest or 0
    with MetricsLog(workdir, done, tensorboard=False, enabled=jax.process_index() == 0) as log:
        for name, step in steps.items():
            phase = next((phase for phase in task.phases if phase.name == name), task.phases[0])
            try:
                state = checkpoints.restore(jax.eval_shape(task.init), replicated(mesh), step) if step else task.init()
            except ResumeError as error:
                logging.warning("%s is not measured: %s", name, error)
                continue
            hooks = [hook for hook in task.hooks if (hook.can_wait if step else hook.at_start)]
            run_hooks(hooks, phase, step, jax.device_put(state, replicated(mesh)), task, log)


def watched(workdir: Path, phases: dict[str, int], *, start: str = "random encoder") -> dict[str, Any]:
    """Draws the probe's curve, says what was found in a small table, and returns it for `summary.json`.

    Args:
        workdir: folder of the run.
        phases: last step of every phase by name.
        start: what the encoder was before the first step.
    """
    records = [record for record in read_metrics(workdir) if record.get("probe_miou") is not None]
    if not records:
        return {}
    curve = [{"step": r["step"], "phase": r["phase"] if r["step"] else start, "miou": r["probe_miou"]} for r in records]
    maps.probe_curve(workdir / "figures" / "probe.png", curve)
    at = {record["step"]: record for record in records}
    rows = {"random": 0} | phases
    table = {
        name: {key: at[step].get(key) for key in ("probe_miou", "probe_accuracy", "purity_mixed")}
        for name, step in rows.items()
        if step in at
    }
    logging.info("Linear probe on frozen features     mIoU   accuracy   purity gain on mixed views")
    for name, numbers in table.items():
        label = start if name == "random" else f"after {name}"
        text = [f"{v:9.4f}" if v is not None else "        -" for v in numbers.values()]
        logging.info("  %-29s %s  %s   %s", label, *text)
    logging.info(
        "This shows that the pipeline works, not what GS training gains: that takes equal updates, equal compute and "
        "random boxes: configs/compare.py."
    )
    return {"probe": table, "purity": read_purity(workdir)}
