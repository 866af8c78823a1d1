"""A whole comparison, killed in the middle and resumed: the same lines and the same tables."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from grass_jax.checkpoints.saving import ResumeError
from grass_jax.comparison import run as comparison
from grass_jax.comparison.results import Results
from grass_jax.config import ConfigError
from grass_jax.report.comparison import read_results
from grass_jax.state import load_encoder
from grass_jax.train import DivergedError


def home(workdir: Path, name: str) -> Path:
    """The folder of an arm's run of seed 0."""
    (found,) = [path for path in (workdir / "seed0").iterdir() if path.name.rpartition("-")[0] == name]
    return found


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def ended(tiny_compare, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("comparison")
    return workdir, comparison.run(tiny_compare(), workdir)


def numbers(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "date", "commit")} for row in read_results(path)]


def test_every_arm_has_its_lines(ended):
    workdir, table = ended
    rows = numbers(workdir / "results.jsonl")
    assert [(r["arm"], r["budget"], r["list"]) for r in rows] == [
        (arm, budget, number)
        for arm in ("random", "simclr_compute", "gs", "gs_random")
        for budget, number in (("4", 0), ("4", 1), ("all", 0))
    ]
    for row in rows:
        assert 0 <= row["miou"] <= 1
        assert {scene["group"] for scene in row["scenes"].values()} == {"south"}
        assert np.sum([scene["matrix"] for scene in row["scenes"].values()]) == 2 * 96 * 128
    spent = {r["arm"]: (r["updates"], r["compute"]) for r in rows}
    ratio = next(iter(json.loads((workdir / "costs.json").read_text()).values()))
    trunk = spent["gs"][0] * 2 // 3  # two epochs of three
    assert spent["random"] == (0, 0.0)
    assert spent["gs"] == spent["gs_random"]
    assert spent["gs"][1] == pytest.approx(trunk + (spent["gs"][0] - trunk) * ratio, abs=0.06)
    assert spent["simclr_compute"][1] == pytest.approx(spent["gs"][1], abs=0.51)  # whole updates
    assert "SimCLR, equal compute" in table
    report = workdir / "report" / "causal"
    assert table == (report / "tables.md").read_text()
    assert {path.name for path in report.iterdir()} == {
        *("tables.md", "tables.tex", "budget.png", "compute.png", "predictions.png"),
    }


def test_branches_share_the_warm_up_and_part_afterwards(ended):
    trunk = json.loads((home(ended[0], "warmup") / "summary.json").read_text())["steps"]
    encoders = {name: load_encoder(home(ended[0], name), trunk).variables for name in ("warmup", "gs", "gs_random")}
    jax.tree.map(np.testing.assert_array_equal, encoders["warmup"], encoders["gs"])
    jax.tree.map(np.testing.assert_array_equal, encoders["warmup"], encoders["gs_random"])
    last = [load_encoder(home(ended[0], name)).variables["params"]["conv1"]["kernel"] for name in ("gs", "gs_random")]
    assert np.abs(last[0] - last[1]).max() > 0


def test_it_is_killed_and_goes_on(ended, tiny_compare, tmp_path, monkeypatch):
    workdir, table = ended
    shutil.copy(workdir / "costs.json", tmp_path)  # what the machine measured first
    added = []
    add = Results.add

    def killed_at_the_second(self, rows):
        added.append(1)
        if len(added) == 3:
            raise Killed
        add(self, rows)

    monkeypatch.setattr(Results, "add", killed_at_the_second)
    with pytest.raises(Killed):
        comparison.run(tiny_compare(), tmp_path)
    assert 0 < len(numbers(tmp_path / "results.jsonl")) < len(numbers(workdir / "results.jsonl"))
    assert comparison.run(tiny_compare(), tmp_path) == table
    assert numbers(tmp_path / "results.jsonl") == numbers(workdir / "results.jsonl")


def test_what_is_there_is_not_done_again(ended, tiny_compare, monkeypatch):
    workdir, table = ended
    monkeypatch.setattr(comparison.pretrain, "run", None)
    monkeypatch.setattr(comparison, "probe_lists", None)
    assert comparison.run(tiny_compare(), workdir) == table


def test_fine_tuning_and_missing_weights(ended, tiny_compare):
    workdir, _ = ended
    config = tiny_compare(only=("gs", "imagenet"), **{"finetune.budgets": ("8",), "finetune.lists": 1})
    table = comparison.run(config, workdir)
    (row,) = [row for row in numbers(workdir / "results.jsonl") if row["evaluation"] == "finetune"]
    assert (row["arm"], row["budget"], row["crops"]) == ("gs", "8", 8)
    assert np.sum([scene["matrix"] for scene in row["scenes"].values()]) == 2 * 96 * 128
    lines = [line for line in table.splitlines() if line.startswith("| ImageNet")]
    assert lines
    assert all("not measured" in line for line in lines)


def test_test_images_are_not_pretrained_on(tiny_compare, tmp_path):
    config = tiny_compare(**{"pretrain.data.exclude": "south_1"})
    with pytest.raises(ConfigError, match=r"^1 of the 2 test images would be pretrained on \(south_0\.png, "):
        comparison.run(config, tmp_path)


def test_an_arm_that_diverges_does_not_end_the_others(ended, tiny_compare, tmp_path, monkeypatch):
    measure = comparison._Comparison.measure

    def diverging(self, name, arm, seed):
        if name == "simclr_compute":
            raise DivergedError("The loss of step 3 is nan.")
        measure(self, name, arm, seed)

    monkeypatch.setattr(comparison._Comparison, "measure", diverging)
    table = comparison.run(tiny_compare(only=("random", "simclr_compute")), tmp_path)
    assert "random encoder" in table
    assert {row["arm"] for row in numbers(tmp_path / "results.jsonl")} == {"random"}


def test_a_weights_file_that_is_not_there_is_named_first(tiny_compare, tmp_path):
    with pytest.raises(ConfigError, match=r"^config\.weights must be a file of weights or empty, not '~/no\.pth'\.$"):
        comparison.run(tiny_compare(weights="~/no.pth"), tmp_path)


def test_a_workdir_that_is_a_file_is_refused_before_any_work(tiny_compare, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^--workdir=.*file cannot be written to \(Not a directory\): give a folder"):
        comparison.run(tiny_compare(), tmp_path / "file")


def test_without_test_scenes_it_is_refused(tiny_compare, tmp_path):
    with pytest.raises(ConfigError, match=r"^config\.data\.test chooses no scene, .*\.$"):
        comparison.run(tiny_compare(**{"data.test": ""}), tmp_path)


@pytest.fixture
def alone(tiny_compare, tmp_path):
    """Makes the part of a comparison that works on one arm, without its data: `alone(**changes)`."""

    def alone(**changes):
        found = object.__new__(comparison._Comparison)
        found.config, found.workdir, found.digest = tiny_compare(**changes), tmp_path, "d"
        found.results = Results(tmp_path / "results.jsonl")
        return found

    return alone


def test_what_was_measured_before_the_pixels_were_known_counts_and_other_tiles_do_not(tiny_compare, tmp_path):
    def comparing(**digests):
        labelled: Any = SimpleNamespace(train=SimpleNamespace(digests=lambda: digests))
        return comparison._Comparison(tiny_compare(), tmp_path, labelled, {}, Results(tmp_path / "results.jsonl"))

    measuring = comparing(tiles_digest="a")
    wanted = measuring._missing("probe", "gs", 0)
    assert wanted
    lines = [{"arm": "gs", "seed": 0, "budget": budget, "list": number} for budget, number in wanted]
    measuring.results.add(line | measuring._key("probe", "gs") for line in lines)
    assert not comparing(tiles_digest="a", pixels_digest="b")._missing("probe", "gs", 0)
    assert comparing(tiles_digest="c", pixels_digest="b")._missing("probe", "gs", 0) == wanted


def test_a_changed_mask_is_said_before_any_work(tiny_compare, labelled_folder, tmp_path, monkeypatch):
    """Also by a comparison that began before the pixels were noted, from its next start on."""
    monkeypatch.setattr(comparison._Comparison, "measure", lambda *_: None)
    monkeypatch.setattr(comparison._Comparison, "report", lambda _: "tables")
    shutil.copytree(labelled_folder, tmp_path / "data")
    config, record = tiny_compare(**{"data.path": str(tmp_path / "data")}), tmp_path / "config.json"
    record.write_text("{}")
    for _ in range(2):
        assert comparison.run(config, tmp_path) == "tables"
    begun = record.read_text()
    path = tmp_path / "data" / "masks" / "north_0.png"
    mask = np.array(Image.open(path))
    mask[:8, :8] = (mask[:8, :8] + 1) % 3
    Image.fromarray(mask).save(path)
    with pytest.raises(ResumeError, match=r"^An image or mask of .*/data, .*, has changed since the work in .* began"):
        comparison.run(config, tmp_path)
    assert record.read_text() == begun


def test_hosts_measure_the_same_also_where_one_does_not_know_the_pixels(tiny_compare, tmp_path, monkeypatch):
    class Agreed(Exception):
        pass

    def agreed(config, data):
        raise Agreed(data)

    monkeypatch.setattr(comparison, "agree_on_data", agreed)
    with pytest.raises(Agreed, match=r"tiles_digest.*pixels_digest"):
        comparison.run(tiny_compare(), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_purity_that_was_not_measured_is_said_and_left_out(alone, monkeypatch, caplog):
    measuring, spent = alone(), {"updates": 3, "compute": 3.0}
    own, arm = SimpleNamespace(model=SimpleNamespace(name="resnet18")), measuring.config.arms.gs
    monkeypatch.setattr(comparison._Comparison, "_missing", lambda self, part, *_: ["gs"] if part == "purity" else [])
    monkeypatch.setattr(comparison._Comparison, "_pretrain", lambda *_: (own, dict(spent)))
    home = measuring._home("gs", 0)
    home.mkdir(parents=True)
    for text in (None, "{", '{"warmup": {}}'):  # a full disk, a kill, a full disk at the end of the last phase
        if text:
            (home / "purity.json").write_text(text)
        measuring.measure("gs", arm, 0)
    assert measuring.results.rows == []
    assert caplog.text.count("no purity was measured") == 3
    gain = {"mean": 0.1, "low": 0.0, "high": 0.2}
    purity = {"gs": {"boxes": {"guided": {"mixed": {"majority": gain}}}}}
    (home / "purity.json").write_text(json.dumps(purity))
    measuring.measure("gs", arm, 0)
    (row,) = measuring.results.rows
    assert (row["evaluation"], row["phase"], row["purity"], row["updates"]) == ("purity", "gs", gain, 3)


def test_a_run_keeps_the_length_that_it_began_with(alone, monkeypatch):
    """Costs that are measured once more must not make an ended run of equal compute shorter, which would refuse it."""
    lengths, data = [], {"tiles": 48, "batch_size": 8}

    def run(own, home):
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.json").write_text(json.dumps({"config": own.to_dict(), "data": data}))
        if own.phases[-1] == "simclr":
            lengths.append(own.simclr.epochs)

    monkeypatch.setattr(comparison.pretrain, "run", run)
    measuring = alone(**{"pretrain.gs.epochs": 4.0})
    name, arm = "simclr_compute", measuring.config.arms.simclr_compute
    for seed, cost in ((0, 1.5), (0, 1.25), (0, 2.0), (1, 1.25)):
        measuring.costs = SimpleNamespace(of=lambda own, phase, cost=cost: cost if phase == "gs" else 1.0)
        _, spent = measuring._pretrain(name, arm, seed, measuring._home(name, seed))
    assert lengths == [6.0, 6.0, 6.0, 5.0]
    assert spent == {"updates": 6 * (2 + 5), "compute": 6.0 * (2 + 5)}  # with the trunk


def test_scores_of_a_fine_tuning_run_that_are_damaged_are_one_sentence(alone, monkeypatch):
    scores = {"miou": 0.5, "overall_accuracy": 0.6, "iou": {"grass": 0.5}, "areas": {"miou": 0.4}}
    whole = {"summary.json": {"labelled_crops": 8, "test": scores}, "confusion.json": {"classes": [], "scenes": {}}}
    measuring, row, damaged = alone(), {"arm": "gs", "seed": 0}, {}

    def run(own, folder):
        folder.mkdir(exist_ok=True)
        for name, content in whole.items():
            (folder / name).write_text(damaged.get(name, json.dumps(content)))

    monkeypatch.setattr(comparison.finetune, "run", run)
    for name, text in (("summary.json", "{"), ("confusion.json", "null"), ("confusion.json", "")):
        damaged = {name: text}
        with pytest.raises(ResumeError, match=r"^The scores in .*finetune_8_0-\w+ are damaged: delete its summary"):
            measuring._finetune(row, "8", 0, "", measuring.workdir)
    damaged = {}
    measuring._finetune(row, "8", 0, "", measuring.workdir)
    assert [(r["crops"], r["miou"], r["area_miou"]) for r in measuring.results.rows] == [(8, 0.5, 0.4)]
