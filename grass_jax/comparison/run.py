"""The comparison: arms x seeds, each pretrained, probed and fine-tuned on the same lists of labels, and one table."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from grass_jax import pretrain
from grass_jax.bands import Bands
from grass_jax.buckets import on_this_machine, open_workdir
from grass_jax.build import build_method
from grass_jax.checkpoints.resume import agree_on_data, begun_with, refuse_other_pixels
from grass_jax.checkpoints.saving import ResumeError
from grass_jax.comparison.arms import (
    chosen_arms,
    config_hash,
    in_order,
    pretraining_of,
    segmentation_of,
    training_hash,
)
from grass_jax.comparison.costs import Costs
from grass_jax.comparison.pictures import read_pictures, save_pictures
from grass_jax.comparison.results import Results, scored
from grass_jax.config import ConfigError, phase_length
from grass_jax.data.labelled import LabelledSet
from grass_jax.initial import initial_encoder, settle_bands
from grass_jax.models import build_encoder
from grass_jax.pretrain import open_source
from grass_jax.report.comparison_tables import PAIRS, write_report
from grass_jax.report.log import write_json
from grass_jax.report.records import read_record
from grass_jax.schemas import check
from grass_jax.segment import finetune
from grass_jax.segment.evaluate import scene_records
from grass_jax.segment.labelled_data import choose, open_data
from grass_jax.segment.lists import probe_lists
from grass_jax.segment.watch import read_purity
from grass_jax.sharding import read_by_first
from grass_jax.state import Encoder, create_state, load_encoder
from grass_jax.train import DivergedError

PICTURES = "pictures.npz"
PARTS = ("probe", "finetune", "purity")


def run(config: Any, workdir: str | Path) -> str | None:
    """Runs what is missing of a comparison, and writes its report.

    Every run of it lies in `<workdir>/seed<n>/<arm>-<hash of its settings>`, where it is resumed; every measurement is
    a line of the results as soon as it is made.

    Args:
        config: a ConfigDict of `configs/compare.py`.
        workdir: folder of the comparison.

    Returns:
        The tables, in Markdown; None on processes other than the first.

    Raises:
        ConfigError: a key or value that cannot be run.
        ResumeError: a run of it has begun with other settings.
    """
    check(config)
    workdir = open_workdir(on_this_machine(workdir, "--workdir of a comparison"))
    config = config.copy_and_resolve_references()
    on_this_machine(config.data.path, "config.data.path of a comparison")
    arms, first = chosen_arms(config), jax.process_index() == 0
    for name in dict.fromkeys([*(arm.trunk for arm in arms.values() if arm.trunk), *arms]):
        pretraining_of(config, name, 0)  # every fault shows before hours of work
    segmentation_of(config, 0, "all", 0, init="")
    if config.weights and not Path(config.weights).expanduser().is_file():
        raise ConfigError(f"config.weights must be a file of weights or empty, not {config.weights!r}.")
    labelled = open_data(config.data, numbers=config.pretrain.bands.numbers)
    if not labelled.test:
        raise ConfigError("config.data.test chooses no scene, and a comparison is scored on them: let it choose some.")
    lists = {key: choose(labelled, *key, key="probe.budgets") for key in _lists(config.probe) | _lists(config.finetune)}
    refuse_test_images(config, labelled)
    data = agree_on_data(config.to_dict(), labelled.train.digests())
    begun = read_by_first(lambda: read_record(workdir / "config.json").get("data"))
    if isinstance(begun, dict):  # a comparison begun with an earlier version has not noted it
        refuse_other_pixels(workdir, config.data.path, begun, data)
    if first:
        write_json(workdir / "config.json", {"config": config.to_dict(), "data": data})
    results = Results(Path(config.results).expanduser() if config.results else workdir / "results.jsonl")
    comparison = _Comparison(config, workdir, labelled, lists, results)
    for seed in config.seeds:
        for name, arm in arms.items():
            try:
                comparison.measure(name, arm, seed)
            except DivergedError as error:  # the other arms have their answer all the same
                logging.error("%s, seed %d, is not measured: %s", arm.label, seed, error)
    return comparison.report() if first else None


def refuse_test_images(config: Any, labelled: LabelledSet) -> None:
    """Raises ConfigError where an image of the test part would be pretrained on."""
    data = pretraining_of(config, config.base, 0).data
    if data.name != "image_folder":
        return  # the published sets and the sample have their own training parts
    source, folder = open_source(data, config.pretrain.bands.numbers), Path(data.path).expanduser().resolve()
    images = Path(config.data.path).expanduser().resolve() / config.data.images
    test = {images / scene.name for scene in labelled.test}
    seen = sorted(name for name in source.files if folder / name in test)
    if seen:
        raise ConfigError(
            f"{len(seen)} of the {len(test)} test images would be pretrained on ({seen[0]}, ...): name them in "
            "config.pretrain.data.exclude."
        )


class _Comparison:
    def __init__(
        self,
        config: Any,
        workdir: Path,
        labelled: LabelledSet,
        lists: dict[tuple[str, int], np.ndarray],
        results: Results,
    ):
        self.config, self.workdir, self.labelled, self.lists, self.results = config, workdir, labelled, lists, results
        self.costs = Costs(workdir, pretraining_of(config, config.base, 0))
        self.digest = labelled.train.digests()["tiles_digest"]  # what they show may be known later

    def measure(self, name: str, arm: Any, seed: int) -> None:
        """Makes the measurements of an arm and a seed that are missing."""
        if arm.weights and not self.config.weights:
            logging.info("%s is not measured: config.weights names no file.", arm.label)
            return
        wanted = {part: self._missing(part, name, seed) for part in PARTS}
        if not any(wanted.values()):
            return
        logging.info("%s, seed %d", arm.label, seed)
        home = self._home(name, seed)
        own, spent = self._pretrain(name, arm, seed, home)
        if arm.weights:
            spent |= {"compute": None}  # what ImageNet took is not known
        row = {"data": self.data, "arm": name, "label": arm.label, "seed": seed, "encoder": own.model.name, **spent}
        if wanted["probe"]:
            self._probe(row, wanted["probe"], self._encoder(own, arm, home), home)
        for budget, number in wanted["finetune"]:
            self._finetune(row, budget, number, str(home) if arm.phases else own.init, home)
        if wanted["purity"]:
            self._purity(row, arm.phases[-1], home)

    @property
    def data(self) -> str:
        """What the lines call the data set."""
        return f"{self.config.data.name} {self.config.preset}"

    def report(self) -> str:
        """Writes tables and figures of each group of arms, with all seeds that have lines; returns the tables."""
        config, texts = self.config, []
        for group in config.groups:
            known = {name: arm for name, arm in in_order(config).items() if arm.group in (group, "causal")}
            hashes = {self._key(part, name)["config_hash"] for name in known for part in PARTS}
            rows = [row for row in self.results.rows if row["config_hash"] in hashes]
            there = {row["arm"] for row in rows}
            asked = {name for name, arm in known.items() if arm.group == group and name in (config.only or known)}
            arms = {name: arm for name, arm in known.items() if name in there | asked}
            folder = self.workdir / "report" / group
            text = write_report(
                folder,
                rows,
                {name: arm.label for name, arm in arms.items()},
                self.labelled.classes,
                colours=self.labelled.colours,
                pictures=read_pictures({name: self._home(name, config.seeds[0]) / PICTURES for name in arms}),
                budget=config.report.budget,
                blocks=config.report.blocks,
                pairs=(*PAIRS, *((name, arm.against) for name, arm in arms.items() if arm.against)),
            )
            logging.info("\n%s\n\nTables and figures: %s", text, folder)
            texts.append(text)
        return "\n".join(texts)

    def _home(self, name: str, seed: int) -> Path:
        return self.workdir / f"seed{seed}" / f"{name}-{training_hash(self.config, name)}"

    def _key(self, evaluation: str, name: str) -> dict[str, Any]:
        return {"evaluation": evaluation, "config_hash": config_hash(self.config, name, evaluation, self.digest)}

    def _missing(self, evaluation: str, name: str, seed: int) -> list[Any]:
        key = self._key(evaluation, name) | {"arm": name, "seed": seed}
        if evaluation == "purity":
            phases = self.config.arms[name].phases
            asked = self.config.purity and phases and self.config.pretrain.probe.purity_tiles
            return [name] if asked and not self.results.has(phase=phases[-1], **key) else []
        lists = _lists(self.config[evaluation])
        return [(budget, n) for budget, n in lists if not self.results.has(budget=budget, list=n, **key)]

    def _pretrain(self, name: str, arm: Any, seed: int, home: Path) -> tuple[Any, dict[str, float]]:
        """Trains an arm, its trunk first; returns its configuration, its updates and what they cost."""
        trunk, spent = "", {"updates": 0, "compute": 0.0}
        if arm.trunk:
            trunk = str(self._home(arm.trunk, seed))
            _, spent = self._pretrain(arm.trunk, self.config.arms[arm.trunk], seed, Path(trunk))
        own = pretraining_of(self.config, name, seed, trunk=trunk)
        if not arm.phases:
            return own, spent
        if arm.equal_compute:
            other = pretraining_of(self.config, arm.equal_compute, seed)
            ratio = self.costs.of(other, other.phases[-1]) / self.costs.of(own, own.phases[-1])
            own = pretraining_of(self.config, name, seed, ratio=ratio, trunk=trunk)
            # of a run that has begun it is the length that counts: costs are measured anew after an update or a loss
            last = own[own.phases[-1]]
            last.epochs = read_by_first(lambda: _begun_epochs(home, own.phases[-1])) or last.epochs
        pretrain.run(own, home)
        data = read_by_first(lambda: begun_with(home)[1])
        begun = len(self.config.arms[arm.trunk].phases) if arm.trunk else 0
        for phase in arm.phases[begun:]:
            steps = phase_length(own[phase], data["tiles"] // data["batch_size"])
            cost = steps * self.costs.of(own, phase)
            spent = {"updates": spent["updates"] + steps, "compute": round(spent["compute"] + cost, 1)}
        return own, spent

    def _encoder(self, own: Any, arm: Any, home: Path) -> Encoder:
        """The trained encoder of an arm, or the one that it would begin with."""
        if arm.phases:
            return load_encoder(home)
        settle_bands(own, self.labelled.bands)
        variables, bands = initial_encoder(own), Bands(**own.bands.to_dict())
        if variables is None:
            init_key, _ = jax.random.split(jax.random.key(own.seed))  # as in pretraining
            state = create_state(
                init_key, build_method(own, 1), optax.identity(), size=own.augment.size, bands=len(bands)
            )
            variables = {"params": state.params["encoder"], "batch_stats": state.stats["encoder"]}
        return Encoder(build_encoder(**own.model), variables, bands)

    def _probe(self, row: dict[str, Any], wanted: list[tuple[str, int]], encoder: Encoder, home: Path) -> None:
        settings, began = self.config.probe, time.monotonic()
        found = probe_lists(
            encoder.module,
            encoder.variables,
            encoder.bands,
            self.labelled,
            {key: self.lists[key] for key in wanted},
            l2=settings.l2,
            window=settings.window or self.config.data.tile_size,
            overlap=settings.overlap,
            batch_size=settings.batch_size,
            pictures=self.config.report.scenes,
            title="scoring",
        )
        seconds = round((time.monotonic() - began) / len(found), 1)
        shown = (self.config.report.budget, 0)
        if shown in found and jax.process_index() == 0:
            save_pictures(home / PICTURES, found[shown])
        self.results.add(
            row
            | self._key("probe", row["arm"])
            | {"budget": budget, "list": number, "crops": len(self.lists[budget, number]), "seconds": seconds}
            | scored(evaluation.scores, scene_records(evaluation))
            for (budget, number), evaluation in found.items()
        )

    def _finetune(self, row: dict[str, Any], budget: str, number: int, init: str, home: Path) -> None:
        own = segmentation_of(self.config, row["seed"], budget, number, init=init)
        key = self._key("finetune", row["arm"])
        folder, began = home / f"finetune_{budget}_{number}-{key['config_hash']}", time.monotonic()
        finetune.run(own, folder)
        files = [folder / "summary.json", folder / "confusion.json"]
        summary, confusion = read_by_first(lambda: list(map(read_record, files)))
        try:
            measured = {"budget": budget, "list": number, "crops": summary["labelled_crops"]}
            measured |= scored(summary["test"], confusion["scenes"])
        except (KeyError, TypeError) as error:
            raise ResumeError(
                f"The scores in {folder} are damaged: delete its summary.json, and the same command scores it again."
            ) from error
        self.results.add([row | key | measured | {"seconds": round(time.monotonic() - began, 1)}])

    def _purity(self, row: dict[str, Any], phase: str, home: Path) -> None:
        found = read_by_first(lambda: read_purity(home).get(phase))
        if not found:  # as after a full disk
            logging.warning("%s: no purity was measured; the same command tries again.", home)
            return
        gain = found["boxes"]["guided"]["mixed"]["majority"]
        self.results.add([row | self._key("purity", row["arm"]) | {"phase": phase, "purity": gain}])


def _begun_epochs(home: Path, phase: str) -> float | None:
    """Epochs of a phase with which a run has begun; None where none has."""
    try:
        epochs = begun_with(home)[0][phase]["epochs"]
    except (FileNotFoundError, KeyError):
        return None
    return float(epochs)


def _lists(settings: Any) -> dict[tuple[str, int], None]:
    """Budgets and numbers of the lists, in order; all labels are one list."""
    counts = {budget: 1 if budget == "all" else settings.lists for budget in settings.budgets}
    return dict.fromkeys((budget, number) for budget, count in counts.items() for number in range(count))
