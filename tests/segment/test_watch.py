"""Probes and purity while a tiny encoder pretrains."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from grass_jax import pretrain
from grass_jax.config import ConfigError
from grass_jax.data.faults import DataError, UnreadableTileError
from grass_jax.data.source import TileSource
from grass_jax.report.log import read_metrics
from grass_jax.segment import watch
from grass_jax.segment.labelled_data import choose, open_data
from grass_jax.state import load_encoder


@pytest.fixture(scope="module")
def watched_config(tiny, labelled_folder, tmp_path_factory):
    config = tiny(**{"warmup.epochs": 1, "gs.epochs": 1, "checkpoint.every_epochs": 1.0})
    config.probe.update({"every_epochs": 0.7, "labels": "12", "batch_size": 8, "purity_tiles": 16})
    config.probe.data.update(
        {
            "path": str(labelled_folder),
            "classes": ("grass", "stone", "water"),
            "group": r"(\w+)_\d",
            "test": "south",
            "validation": "north",
            "tile_size": 48,
            "data_dir": str(tmp_path_factory.mktemp("probe_tiles")),
        }
    )
    return config


@pytest.fixture(scope="module")
def watched(watched_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("watched")
    return workdir, pretrain.run(watched_config, workdir)


def test_the_probe_has_a_curve_and_a_table(watched):
    workdir, summary = watched
    records = read_metrics(workdir)
    scored = {r["step"]: r["probe_miou"] for r in records if "probe_miou" in r}
    assert list(scored) == [0, 2, 3, 4, 6]  # every two steps, and the ends of the phases
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert list(summary["probe"]) == ["random", "warmup", "gs"]
    assert summary["probe"]["gs"]["probe_miou"] == scored[6]
    assert all(0.2 < row["probe_accuracy"] <= 1 for row in summary["probe"].values())
    assert "loss" in summary["phases"]["warmup"]["begins"]  # step 0 has none
    with Image.open(workdir / "figures" / "probe.png") as picture:
        assert min(picture.size) > 200


def test_the_purity_is_measured_at_both_ends_of_each_phase_with_its_controls(watched):
    workdir, summary = watched
    assert summary["purity"] == json.loads((workdir / "purity.json").read_text())
    assert list(summary["purity"]) == ["random", "warmup", "gs"]
    for name, found in summary["purity"].items():
        assert (found["tiles"], found["groups"]) == (16, 2)
        assert list(found["boxes"]) == ["guided", "random encoder", "another view's box", "activation alone"]
        assert found["boxes"]["guided"]["all"]["majority"]["n"] == 32
        assert (workdir / "figures" / f"purity_{name}.png").exists()
    # the random encoder's boxes are the guided ones before the first step, and others after training
    random, trained = (
        summary["purity"][name]["boxes"]["random encoder"]["all"]["guided_minus_this"] for name in ("random", "gs")
    )
    assert random["majority"]["mean"] == random["entropy"]["mean"] == 0
    assert trained["entropy"]["mean"] != 0


def test_watching_changes_no_number_of_the_training(watched, tiny, tmp_path):
    workdir, _ = watched
    pretrain.run(tiny(**{"warmup.epochs": 1, "gs.epochs": 1, "checkpoint.every_epochs": 1.0}), tmp_path)
    for expected, actual in zip(
        *(jax.tree.leaves(load_encoder(place).variables) for place in (tmp_path, workdir)), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("torn", [False, True])
def test_an_ended_run_can_still_be_summed_up(watched, watched_config, torn):
    """A summary that was not written, or torn, is made from what was measured."""
    workdir, summary = watched
    (workdir / "summary.json").unlink()
    if torn:
        (workdir / "summary.json").write_text("{")
    assert pretrain.run(watched_config, workdir) is None
    again = json.loads((workdir / "summary.json").read_text())
    assert (again["probe"], again["purity"]) == (summary["probe"], summary["purity"])


def test_a_purity_that_a_full_disk_did_not_take_is_measured_at_the_next_start(watched, watched_config, tmp_path):
    workdir, summary = shutil.copytree(watched[0], tmp_path / "run"), watched[1]
    (workdir / "purity.json").write_text(json.dumps({name: summary["purity"][name] for name in ("random", "warmup")}))
    assert pretrain.run(watched_config, workdir) is None
    again = json.loads((workdir / "summary.json").read_text())
    assert again["purity"] == summary["purity"]
    assert again["probe"]["gs"] == pytest.approx(summary["probe"]["gs"])
    assert [record["step"] for record in read_metrics(workdir) if "probe_miou" in record] == [0, 2, 3, 4, 6]


def test_what_could_not_be_measured_at_a_phase_is_measured_after_the_end(
    watched, watched_config, tmp_path, monkeypatch, caplog
):
    score, missing = watch.evaluate, iter([False, False, True])

    def failing(*args, **settings):
        if next(missing, False):
            raise DataError("north_0.png cannot be read (disk gone).")
        return score(*args, **settings)

    monkeypatch.setattr(watch, "evaluate", failing)
    summary = pretrain.run(watched_config, tmp_path)
    assert summary is not None
    assert "After step 3 nothing is measured: north_0.png cannot be read (disk gone)." in caplog.text
    for name, numbers in watched[1]["probe"].items():
        assert summary["probe"][name] == pytest.approx(numbers)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("checkpoints/3", "warmup is not measured any more: its checkpoint, 3, was not kept."),
        ("checkpoints/3/default/manifest.ocdbt", "warmup is not measured: "),
        ("images", "What is missing of warmup (step 3) cannot be made: "),
    ],
)
def test_what_cannot_be_measured_after_the_end_keeps_no_run_from_its_summary(
    watched, watched_config, tmp_path, caplog, lost, words
):
    """As where a full disk took neither the purity of a phase nor its last checkpoint."""
    workdir, summary = shutil.copytree(watched[0], tmp_path / "run"), watched[1]
    (workdir / "purity.json").write_text(json.dumps({name: summary["purity"][name] for name in ("random", "gs")}))
    (workdir / "summary.json").unlink()
    config = watched_config.copy_and_resolve_references()
    if lost == "images":
        (tmp_path / lost).mkdir()  # its disk is not there
        config.probe.data.update({"path": str(tmp_path / lost), "data_dir": str(tmp_path)})
    else:
        (shutil.rmtree if (workdir / lost).is_dir() else Path.unlink)(workdir / lost)
    assert pretrain.run(config, workdir) is None
    assert words in caplog.text
    again = json.loads((workdir / "summary.json").read_text())
    assert again["probe"] == summary["probe"]
    assert list(again["purity"]) == ["random", "gs"]


def test_tiles_that_cannot_be_read_are_left_out_of_probe_and_purity(
    watched, watched_config, tmp_path, monkeypatch, caplog
):
    workdir, purity = shutil.copytree(watched[0], tmp_path / "run"), watched[1]["purity"]
    settings = watched_config.probe
    labelled = open_data(settings.data, "probe.data")
    order = np.random.default_rng(watched_config.seed).permutation(len(labelled.train)).tolist()
    bad = {order[3], int(choose(labelled, settings.labels, settings.labels_seed)[0])}
    read, seen = TileSource.read, []

    def failing(self, index, pauses):
        if self.name == labelled.train.name:
            if index in bad:
                raise UnreadableTileError(self.describe(index), "disk gone")
            seen.append(index)
        return read(self, index, pauses)

    monkeypatch.setattr(TileSource, "read", failing)
    (workdir / "purity.json").write_text(json.dumps({name: purity[name] for name in ("random", "warmup")}))
    assert pretrain.run(watched_config, workdir) is None
    assert caplog.text.count("cannot be read (disk gone): it is left out here.") >= 2
    found = json.loads((workdir / "summary.json").read_text())
    assert found["purity"]["gs"]["tiles"] == 16  # others take their places
    assert seen[-16:] == [index for index in order if index not in bad][:16]
    assert found["probe"]["gs"]["probe_miou"] is not None


def test_what_is_missing_of_probe_and_purity_is_named(tmp_path):
    steps = {"random": 0, "warmup": 3, "gs": 6}
    lines = [{"step": step, "epoch": 0.0, "phase": "gs", "probe_miou": 0.5} for step in (0, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert watch.unwatched(tmp_path, steps) == {"warmup": 3}
    assert watch.unwatched(tmp_path, steps, purity=True) == steps
    (tmp_path / "purity.json").write_text('{"random": {}, "warmup": {}}')
    assert watch.unwatched(tmp_path, steps, purity=True) == {"warmup": 3, "gs": 6}
    (tmp_path / "purity.json").write_text('{"random": ')
    assert watch.unwatched(tmp_path, steps, purity=True) == steps
    assert watch.unwatched(tmp_path, steps, probe=False) == {}
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "guidance_gs.png").touch()
    assert watch.unwatched(tmp_path, steps, probe=False, pictures=True) == {"warmup": 3}


def test_a_probe_can_be_switched_on_after_the_run(watched, watched_config, tiny, tmp_path):
    _, summary = watched
    pretrain.run(tiny(**{"warmup.epochs": 1, "gs.epochs": 1, "checkpoint.every_epochs": 1.0}), tmp_path)
    assert "probe" not in json.loads((tmp_path / "summary.json").read_text())
    assert pretrain.run(watched_config, tmp_path) is None
    late = json.loads((tmp_path / "summary.json").read_text())
    assert late["purity"] == summary["purity"]
    for name, numbers in summary["probe"].items():
        assert late["probe"][name] == pytest.approx(numbers)
    assert [r["step"] for r in read_metrics(tmp_path) if "loss" in r] == [1, 2, 3, 4, 5, 6]


def test_a_probe_keeps_the_test_part_closed(watched_config, tmp_path):
    config = watched_config.copy_and_resolve_references()
    config.probe.data.validation = ""
    with pytest.raises(ConfigError, match=r"config\.probe\.data\.validation must choose scenes"):
        pretrain.run(config, tmp_path)
    config.probe.update({"labels": "1000", "data": {"validation": "north"}})
    with pytest.raises(ConfigError, match=r"config\.probe\.labels: .* larger than"):
        pretrain.run(config, tmp_path)


def test_without_a_probe_nothing_is_added(tiny, tmp_path):
    assert watch.watching_hooks(tiny(), None, None, None, None, tmp_path, 3) == ()
    assert watch.watched(tmp_path, {"warmup": 3}) == {}
