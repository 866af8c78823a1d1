"""A whole comparison, killed in the middle and resumed: the same lines and the same tables."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

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


def test_without_test_scenes_it_is_refused(tiny_compare, tmp_path):
    with pytest.raises(ConfigError, match=r"^config\.data\.test chooses no scene, .*\.$"):
        comparison.run(tiny_compare(**{"data.test": ""}), tmp_path)
