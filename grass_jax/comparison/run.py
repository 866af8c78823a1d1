"""The comparison: arms x seeds, each pretrained, probed and fine-tuned on the same lists of labels, and one table."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from grass_jax import pretrain
from grass_jax.bands import Bands
from grass_jax.build import build_method
from grass_jax.comparison.arms import chosen_arms, config_hash, pretraining_of, segmentation_of
from grass_jax.comparison.costs import Costs
from grass_jax.comparison.results import Results, scored
from grass_jax.config import ConfigError, phase_length
from grass_jax.data.labelled import LabelledSet
from grass_jax.initial import initial_encoder, settle_bands
from grass_jax.models import build_encoder
from grass_jax.report.comparison_tables import write_report
from grass_jax.report.log import write_json
from grass_jax.schemas import check
from grass_jax.segment import finetune
from grass_jax.segment.evaluate import Evaluation, scene_records
from grass_jax.segment.labelled_data import choose, open_data
from grass_jax.segment.lists import probe_lists
from grass_jax.state import Encoder, create_state, load_encoder

PICTURES = "pictures.npz"
PARTS = ("probe", "finetune", "purity")


def run(config: Any, workdir: str | Path) -> str | None:
    """Runs what is missing of a comparison, and writes its report.

    Every run of it lies in `<workdir>/seed<n>/<arm>`, where it is resumed; every measurement is a line of the results
    as soon as it is made.

    Args:
        config: a ConfigDict of `configs/compare.py`.
        workdir: folder of the comparison.

    Returns:
        The tables, in Markdown; None on processes other than the first.

    Raises:
        ConfigError: a key or value that cannot be run.
        ResumeError: a run of it has begun with other settings.
        DivergedError: a number stopped being finite.
    """
    check(config)
    workdir, config = Path(workdir).expanduser(), config.copy_and_resolve_references()
    arms, first = chosen_arms(config), jax.process_index() == 0
    for name in dict.fromkeys([*(arm.trunk for arm in arms.values() if arm.trunk), *arms]):
        pretraining_of(config, name, 0)  # every fault shows before hours of work
    segmentation_of(config, 0, "all", 0, init="")
    labelled = open_data(config.data, numbers=config.pretrain.bands.numbers)
    if not labelled.test:
        raise ConfigError("config.data.test chooses no scene, and a comparison is scored on them: let it choose some.")
    lists = {key: choose(labelled, key[0], key[1]) for key in _lists(config.probe) | _lists(config.finetune)}
    if first:
        write_json(workdir / "config.json", {"config": config.to_dict()})
    results = Results(Path(config.results).expanduser() if config.results else workdir / "results.jsonl")
    comparison = _Comparison(config, workdir, labelled, lists, results)
    for seed in config.seeds:
        for name, arm in arms.items():
            comparison.measure(name, arm, seed)
    return comparison.report(arms) if first else None


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
        self.digest = labelled.train.digest()

    def measure(self, name: str, arm: Any, seed: int) -> None:
        """Makes the measurements of an arm and a seed that are missing."""
        if arm.weights and not self.config.weights:
            logging.info("%s is not measured: config.weights names no file.", arm.label)
            return
        wanted = {part: self._missing(part, name, seed) for part in PARTS}
        if not any(wanted.values()):
            return
        logging.info("%s, seed %d", arm.label, seed)
        home = self.workdir / f"seed{seed}" / name
        own, spent = self._pretrain(name, arm, seed, home)
        if arm.weights:
            spent |= {"compute": None}  # what ImageNet took is not known
        row = {"data": self.data, "arm": name, "label": arm.label, "seed": seed, "encoder": own.model.name, **spent}
        if wanted["probe"]:
            self._probe(row, wanted["probe"], self._encoder(own, arm, home), home)
        for budget, number in wanted["finetune"]:
            self._finetune(row, budget, number, str(home) if arm.phases else own.init, home)
        if wanted["purity"]:
            summary = json.loads((home / "summary.json").read_text())
            phase = arm.phases[-1]
            gain = summary["purity"][phase]["boxes"]["guided"]["mixed"]["majority"]
            self.results.add([row | self._key("purity", name) | {"phase": phase, "purity": gain}])

    @property
    def data(self) -> str:
        """What the lines call the data set."""
        return f"{self.config.data.name} {self.config.preset}"

    def report(self, arms: dict[str, Any]) -> str:
        """Writes tables and figures of all lines that belong to this comparison, and returns the tables."""
        hashes = {self._key(part, name)["config_hash"] for name in arms for part in PARTS}
        rows = [r for r in self.results.rows if r["config_hash"] in hashes and r["seed"] in self.config.seeds]
        settings = self.config.report
        text = write_report(
            self.workdir / "report",
            rows,
            {name: arm.label for name, arm in arms.items()},
            self.labelled.classes,
            colours=self.labelled.colours,
            pictures=self._pictures(arms),
            budget=settings.budget,
            blocks=settings.blocks,
        )
        logging.info("\n%s\n\nTables and figures: %s", text, self.workdir / "report")
        return text

    def _key(self, evaluation: str, name: str) -> dict[str, Any]:
        return {"evaluation": evaluation, "config_hash": config_hash(self.config, name, evaluation, self.digest)}

    def _missing(self, evaluation: str, name: str, seed: int) -> list[Any]:
        key = self._key(evaluation, name) | {"arm": name, "seed": seed}
        if evaluation == "purity":
            phases = self.config.arms[name].phases
            asked = bool(self.config.purity and phases) and not self.results.has(phase=phases[-1], **key)
            return [name] if asked else []
        lists = _lists(self.config[evaluation])
        return [(budget, n) for budget, n in lists if not self.results.has(budget=budget, list=n, **key)]

    def _pretrain(self, name: str, arm: Any, seed: int, home: Path) -> tuple[Any, dict[str, float]]:
        """Trains an arm, its trunk first; returns its configuration, its updates and what they cost."""
        trunk, spent = "", {"updates": 0, "compute": 0.0}
        if arm.trunk:
            trunk = str(self.workdir / f"seed{seed}" / arm.trunk)
            _, spent = self._pretrain(arm.trunk, self.config.arms[arm.trunk], seed, Path(trunk))
        own = pretraining_of(self.config, name, seed, trunk=trunk)
        if not arm.phases:
            return own, spent
        if arm.equal_compute:
            other = pretraining_of(self.config, arm.equal_compute, seed)
            ratio = self.costs.of(other, other.phases[-1]) / self.costs.of(own, own.phases[-1])
            own = pretraining_of(self.config, name, seed, ratio=ratio, trunk=trunk)
        pretrain.run(own, home)
        data = json.loads((home / "config.json").read_text())["data"]
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
            _save_pictures(home / PICTURES, found[shown])
        self.results.add(
            row
            | self._key("probe", row["arm"])
            | {"budget": budget, "list": number, "crops": len(self.lists[budget, number]), "seconds": seconds}
            | scored(evaluation.scores, scene_records(evaluation))
            for (budget, number), evaluation in found.items()
        )

    def _finetune(self, row: dict[str, Any], budget: str, number: int, init: str, home: Path) -> None:
        own = segmentation_of(self.config, row["seed"], budget, number, init=init)
        folder, began = home / f"finetune_{budget}_{number}", time.monotonic()
        if not (folder / "summary.json").exists():
            finetune.run(own, folder)
        summary = json.loads((folder / "summary.json").read_text())
        scenes = json.loads((folder / "confusion.json").read_text())["scenes"]
        measured = {"budget": budget, "list": number, "crops": summary["labelled_crops"]}
        measured["seconds"] = round(time.monotonic() - began, 1)
        self.results.add([row | self._key("finetune", row["arm"]) | measured | scored(summary["test"], scenes)])

    def _pictures(self, arms: dict[str, Any]) -> list[tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """Of the first seed, image, truth and every arm's prediction of some scenes."""
        found: dict[str, tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray]]] = {}
        for name in arms:
            path = self.workdir / f"seed{self.config.seeds[0]}" / name / PICTURES
            if not path.exists():
                continue
            with np.load(path) as file:
                for n, scene in enumerate(file["names"].tolist()):
                    images = (file[f"{kind}_{n}"] for kind in ("image", "truth"))
                    found.setdefault(scene, (scene, *images, {}))[3][name] = file[f"prediction_{n}"]
        return list(found.values())


def _lists(settings: Any) -> dict[tuple[str, int], None]:
    """Budgets and numbers of the lists, in order; all labels are one list."""
    return dict.fromkeys(_each_list(settings))


def _each_list(settings: Any) -> Iterator[tuple[str, int]]:
    for budget in settings.budgets:
        for number in range(1 if budget == "all" else settings.lists):
            yield budget, number


def _save_pictures(path: Path, evaluation: Evaluation) -> None:
    arrays: dict[str, Any] = {"names": np.array([picture.name for picture in evaluation.pictures])}
    for n, picture in enumerate(evaluation.pictures):
        arrays |= {f"image_{n}": picture.image, f"truth_{n}": picture.truth, f"prediction_{n}": picture.prediction}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
