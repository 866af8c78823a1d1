"""The segmentation task on a tiny labelled folder: to the end, interrupted, from a pretraining run, scored, mapped."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import rasterio
from affine import Affine
from PIL import Image
from sklearn.metrics import accuracy_score, cohen_kappa_score, jaccard_score

from configs import evaluate as evaluate_config
from configs import predict as predict_config
from grass_jax import initial, pretrain, sharding
from grass_jax.checkpoints.saving import ResumeError
from grass_jax.config import ConfigError
from grass_jax.data.faults import UnreadableTileError
from grass_jax.data.labelled import open_labelled
from grass_jax.data.source import TileSource
from grass_jax.report.log import read_metrics
from grass_jax.segment import apply, evaluate, finetune
from grass_jax.segment.class_ids import predict_scenes
from grass_jax.segment.labelled_data import open_data
from grass_jax.segment.model import load_segmenter
from grass_jax.segment.windows import blend_weight
from grass_jax.state import load_encoder

LONG = {
    **{"finetune.steps": 120, "labels": "16", "augment.jitter": 0.0, "schedule.peak": 1e-2},
    **{"checkpoint.every_steps": 60, "model.width": 8, "head.channels": 16},
}


@pytest.fixture(scope="module")
def one_device():
    """A single device: it is the arithmetic of one machine that must repeat bit for bit."""
    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda devices=None: make_mesh(jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def finished(tiny_segment, tmp_path_factory):
    """A run on all eight devices, long enough to tell the three classes apart."""
    workdir = tmp_path_factory.mktemp("segment")
    return workdir, finetune.run(tiny_segment(**LONG), workdir)


@pytest.fixture(scope="module")
def pretrained(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    changes = {"bands.mean": (0.4, 0.4, 0.4), "warmup.epochs": 1, "gs.epochs": 1}
    pretrain.run(tiny(**changes), workdir)
    return workdir


def test_the_job_leaves_everything_a_person_looks_at(finished):
    workdir, summary = finished
    assert summary == json.loads((workdir / "summary.json").read_text())
    assert (summary["steps"], summary["labelled_crops"], summary["init"], summary["chosen_step"]) == (
        *(120, 16, "random", 120),
    )
    lines = (workdir / "labels.txt").read_text().splitlines()
    assert len(set(lines)) == 16
    assert not any(line.startswith("south") for line in lines)
    places = [line.split("_")[0] for line in lines]
    assert max(places.count(p) for p in set(places)) - min(places.count(p) for p in set(places)) <= 1
    records = read_metrics(workdir)
    assert {"loss", "pixel_accuracy", "gradient_norm", "learning_rate"} <= records[-1].keys()
    assert records[-1]["loss"] < records[0]["loss"]
    test = summary["test"]
    assert test["miou"] > 0.7
    assert test["scenes"] == 2
    assert test["areas"]["areas"] == 1  # both test scenes show one place
    assert test["areas"]["miou"] == pytest.approx(test["miou"])
    assert 0 <= test["boundary"]["mean"] <= 1
    assert sum(test["pixels"].values()) == 2 * 96 * 128
    scenes = confusion_of(workdir, test)
    assert [(name, each["group"]) for name, each in scenes.items()] == [
        ("south_0.png", "south"),
        ("south_1.png", "south"),
    ]
    for name in ("curves", "confusion", "predictions"):
        with Image.open(workdir / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 200


def confusion_of(workdir, test):
    """The scenes of `confusion.json`, after a look at whether they sum up to the test's figures."""
    content = json.loads((workdir / "confusion.json").read_text())
    assert content["classes"] == list(test["pixels"])
    total = np.sum([each["matrix"] for each in content["scenes"].values()], axis=0)
    assert total.sum(1).tolist() == list(test["pixels"].values())
    assert np.trace(total) / total.sum() == pytest.approx(test["overall_accuracy"])
    return content["scenes"]


def test_the_figures_are_those_of_a_plain_computation(finished, labelled_folder):
    """Scenes as Pillow reads them, the network window by window, blended in a loop, compared by scikit-learn."""
    workdir, summary = finished
    network = load_segmenter(workdir)
    apply_network = jax.jit(partial(network.module.apply, train=False))
    mean, std = np.array(network.bands.mean), np.array(network.bands.std)
    weight = np.outer(blend_weight(48), blend_weight(48))[..., None]
    truths, predictions = [], []
    for name in ("south_0.png", "south_1.png"):
        with (
            Image.open(labelled_folder / "images" / name) as image,
            Image.open(labelled_folder / "masks" / name) as mask,
        ):
            pixels, truth = np.asarray(image), np.asarray(mask)
        total, weights = np.zeros((96, 128, 3)), np.zeros((96, 128, 1))
        for y in (0, 36, 48):  # a stride of three quarters, and the last window at the edge
            for x in (0, 36, 72, 80):
                view = (pixels[None, y : y + 48, x : x + 48] / 255 - mean) / std
                total[y : y + 48, x : x + 48] += weight * apply_network(network.variables, view.astype(np.float32))[0]
                weights[y : y + 48, x : x + 48] += weight
        truths.append(truth.ravel())
        predictions.append((total / weights).argmax(-1).ravel())
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    test = summary["test"]
    assert test["overall_accuracy"] == pytest.approx(accuracy_score(truth, prediction), abs=1e-4)
    assert test["miou"] == pytest.approx(jaccard_score(truth, prediction, average="macro"), abs=1e-3)
    assert test["kappa"] == pytest.approx(cohen_kappa_score(truth, prediction), abs=1e-3)


def test_one_device_and_eight_give_the_same_confusion_matrix(finished, tiny_segment, monkeypatch):
    network, labelled = load_segmenter(finished[0]), open_data(tiny_segment().data)
    matrices = []
    for devices in (jax.devices(), jax.devices()[:1]):
        mesh = sharding.make_mesh(devices)
        monkeypatch.setattr(evaluate, "local_mesh", lambda mesh=mesh: mesh)
        found = evaluate.evaluate(
            network.forward(mesh), labelled.test, labelled.classes, window=48, overlap=0.5, batch_size=8
        )
        matrices.append(found.matrix)
    np.testing.assert_array_equal(*matrices)
    assert matrices[0].sum() == 2 * 96 * 128


def test_a_finished_run_says_so(finished, tiny_segment, caplog):
    with caplog.at_level("INFO", logger="absl"):
        assert finetune.run(tiny_segment(**LONG), finished[0]) is None
    assert "has ended after 120 steps" in caplog.text
    with pytest.raises(ResumeError, match="labels"):
        finetune.run(tiny_segment(**{**LONG, "labels": "8"}), finished[0])


def test_a_corrected_mask_is_another_run(finished, tiny_segment, labelled_folder, tmp_path):
    shutil.copytree(labelled_folder, tmp_path / "corrected")
    path = tmp_path / "corrected" / "masks" / "south_0.png"  # one that scores
    mask = np.array(Image.open(path))
    mask[:8, :8] = (mask[:8, :8] + 1) % 3
    Image.fromarray(mask).save(path)
    with pytest.raises(ResumeError, match=r"^An image or mask of .*, has changed since the work in .* began"):
        finetune.run(tiny_segment(**{**LONG, "data.path": str(tmp_path / "corrected")}), finished[0])


def test_an_interrupted_run_ends_as_if_it_had_not_been(one_device, tiny_segment, tmp_path, monkeypatch):
    config = tiny_segment(**{"data.test": "", "labels": "all"})
    finetune.run(config, tmp_path / "whole")

    class Killed(BaseException):
        pass

    build = finetune.segmentation_task

    def interrupted(*args, **options):
        def watch(phase, step, metrics):
            if step == 3:
                raise Killed

        return build(*args, **options)._replace(watch=watch)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "segmentation_task", interrupted)
        with pytest.raises(Killed):
            finetune.run(config, tmp_path / "killed")
    finetune.run(config, tmp_path / "killed")
    whole, killed = (load_segmenter(tmp_path / name).variables for name in ("whole", "killed"))
    jax.tree.map(np.testing.assert_array_equal, killed, whole)
    losses = [[r["loss"] for r in read_metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_the_encoder_and_its_bands_come_from_the_pretraining_run(pretrained, tiny_segment, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(finetune, "train", lambda task, *args, **options: started.append(task.init()) or 1 / 0)
    config = tiny_segment(**{"init": str(pretrained), "init_step": 3, "model.width": 8})
    with pytest.raises(ZeroDivisionError):
        finetune.run(config, tmp_path)
    resolved = json.loads((tmp_path / "config.json").read_text())["config"]
    assert (resolved["model"]["width"], resolved["bands"]["mean"]) == (4, [0.4, 0.4, 0.4])
    after_warmup = load_encoder(pretrained, 3).variables
    jax.tree.map(np.testing.assert_array_equal, started[0].params["encoder"], after_warmup["params"])
    jax.tree.map(np.testing.assert_array_equal, started[0].stats["encoder"], after_warmup["batch_stats"])
    for init, words in ((tmp_path / "none", "there is no"), (tmp_path, "holds a fine-tuning run")):
        with pytest.raises(ConfigError, match=words):
            finetune.run(tiny_segment(init=str(init)), tmp_path / "other")
    with pytest.raises(ResumeError, match=r"holds a pretraining run.*another --workdir"):
        finetune.run(tiny_segment(init=str(pretrained)), pretrained)
    with pytest.raises(ConfigError, match=r"config\.evaluate\.without must name some of grass, stone, water"):
        finetune.run(tiny_segment(**{"evaluate.without": ("clutter",)}), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"no checkpoint of step 5"):
        finetune.run(tiny_segment(**{"init": str(pretrained), "init_step": 5}), tmp_path / "other")


def test_a_linear_head_leaves_the_encoder_alone(pretrained, tiny_segment, tmp_path):
    config = tiny_segment(**{"init": str(pretrained), "head.name": "linear", "labels": "12"})
    summary = finetune.run(config, tmp_path)
    assert summary is not None
    assert summary["test"]["overall_accuracy"] > 0.5
    network, encoder = load_segmenter(tmp_path), load_encoder(pretrained)
    jax.tree.map(np.testing.assert_array_equal, network.variables["params"]["encoder"], encoder.variables["params"])
    assert network.variables["params"]["decoder"]["classifier"]["conv"]["kernel"].any()
    assert finetune.run(config, tmp_path) is None
    (tmp_path / "summary.json").write_text("{")  # it is scored once more
    with pytest.raises(FileNotFoundError, match=r"summary\.json is damaged: name a step, or start the run again"):
        load_segmenter(tmp_path)
    again = finetune.run(config, tmp_path)
    assert again is not None
    assert (again["test"], again["chosen_step"]) == (summary["test"], summary["chosen_step"])


def test_validation_chooses_from_enough_crops_on(tiny_segment, tmp_path, monkeypatch, caplog):
    """It looks at a part of the budget alone, and the best step counts; at the first one the disk is away."""
    changes = {"validate_every": 3, "labels": "18", "finetune.steps": 8, "validation_share": 0.3}
    with caplog.at_level("INFO", logger="absl"), monkeypatch.context() as patch:
        patch.setattr(finetune, "train", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finetune.run(tiny_segment(**changes), tmp_path / "few")
    assert "18 labelled crops are below 100: the last iterate counts" in caplog.text

    monkeypatch.setattr(finetune, "FEW", 18)
    scored, seen = iter([None, 0.9, 0.2]), []
    score, read = finetune.evaluate, TileSource.read

    def gone(self, index, pauses):
        raise UnreadableTileError(self.describe(index), "disk gone")

    def scripted(forward, scenes, classes, **options):
        if scenes[0].group == "south":
            return score(forward, scenes, classes, **options)
        seen.append({scene.group for scene in scenes})
        value = next(scored)
        with monkeypatch.context() as patch:
            patch.setattr(TileSource, "read", read if value else gone)
            found = score(forward, scenes, classes, **options)
        found.scores["miou"] = value
        return found

    monkeypatch.setattr(finetune, "evaluate", scripted)
    summary = finetune.run(tiny_segment(**changes), tmp_path / "many")
    assert summary is not None
    assert (summary["labelled_crops"], summary["validation_crops"], summary["tiles"]) == (18, 6, 12)
    chosen, held = ((tmp_path / "many" / f"{n}.txt").read_text().splitlines() for n in ("labels", "validation"))
    assert (len(chosen), len(held)) == (18, 6)
    assert set(held) < set(chosen)
    places = {line.split("_")[0] for line in held}
    assert len(places) == 1  # a whole group
    assert {line for line in chosen if line.split("_")[0] in places} == set(held)
    assert seen == [places] * 3
    assert summary["chosen_step"] == 6
    assert [r["validation_miou"] for r in read_metrics(tmp_path / "many") if "validation_miou" in r] == [0.9, 0.2]
    assert "After step 3 nothing is measured: None of the crops to validate on can be read" in caplog.text
    # the best and the last one; what was saved between the validations, every two steps, has gone
    assert sorted(ocp.utils.checkpoint_steps(tmp_path / "many" / "checkpoints")) == [6, 8]
    by_hand = load_segmenter(tmp_path / "many", 6).variables
    jax.tree.map(np.testing.assert_array_equal, load_segmenter(tmp_path / "many").variables, by_hand)


def test_test_images_that_the_encoder_has_seen_are_counted(tiny, labelled_folder, tiny_segment, tmp_path, caplog):
    def seen(exclude):
        config = tiny(**{"data.path": str(labelled_folder / "images"), "data.exclude": exclude}).to_dict()
        (tmp_path / "config.json").write_text(json.dumps({"config": config | {"bands": {}}}))
        return initial.seen_in_pretraining(tiny_segment(init=str(tmp_path)), ["south_0.png", "south_1.png"])

    assert seen("south") == 0
    assert not caplog.text
    with caplog.at_level("WARNING", logger="absl"):
        assert seen("south_0") == 1
    assert (
        "pretrained on 1 of the 2 test images (south_1.png, ...): choose them by a pattern, --config.data.t"
        in caplog.text
    )
    assert initial.seen_in_pretraining(tiny_segment(), ["south_0.png"]) == 0


def test_what_spoils_the_score_is_said_before_the_first_step(tiny_segment, tmp_path, monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(finetune, "seen_in_pretraining", lambda config, names: asked.append(names))
    monkeypatch.setattr(finetune, "train", lambda *args, **options: 1 / 0)
    for test, words in (("south", 0), ("", 1)):
        with pytest.raises(ZeroDivisionError):
            finetune.run(tiny_segment(**{"data.test": test}), tmp_path / f"test {test}")
        assert caplog.text.count("nothing will be scored: --config.data.test=PATTERN keeps some.") == words
    assert asked == [["south_0.png", "south_1.png"], []]


def test_a_list_of_another_run_gives_the_same_crops(finished, tiny_segment, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "train", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finetune.run(tiny_segment(labels=str(finished[0] / "labels.txt")), tmp_path)
    assert (tmp_path / "labels.txt").read_text() == (finished[0] / "labels.txt").read_text()
    for budget, words in (("1000", "larger than"), ("some", "must be 'all'"), ("1.5", "between 0 and 1")):
        with pytest.raises(ConfigError, match=words):
            finetune.run(tiny_segment(labels=budget), tmp_path / "other")


def evaluation(finished, labelled_folder, **changes):
    config = evaluate_config.get_config("folder")
    config.model = str(finished[0])
    config.data.update({"path": str(labelled_folder), "classes": ("grass", "stone", "water"), "group": r"(\w+)_\d"})
    config.evaluate.update({"batch_size": 8, "boundary": 0})
    config.compilation_cache = ""
    config.update_from_flattened_dict(changes)
    return config


def test_scenes_that_trained_the_network_and_a_run_that_has_not_ended_are_named(
    finished, labelled_folder, tmp_path, monkeypatch, caplog
):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    monkeypatch.setattr(apply, "evaluate", lambda *args, **options: 1 / 0)

    def said(folder, **changes):
        caplog.clear()
        with pytest.raises(ZeroDivisionError):
            apply.evaluate_model(evaluation((run,), folder, **changes), tmp_path / "scores")
        return caplog.text

    shutil.copytree(labelled_folder, tmp_path / "copy")
    assert "6 of these 8 scenes trained this network (east_0.png, ...): give another" in said(labelled_folder)
    assert "trained this network" not in said(tmp_path / "copy")
    (run / "summary.json").unlink()
    assert "steps: start" not in said(labelled_folder)  # it was killed while it was scored
    record = json.loads((run / "config.json").read_text())
    record["config"]["finetune"]["steps"] = 300
    (run / "config.json").write_text(json.dumps(record))
    assert f"{run} has done 120 of 300 steps: start its command again" in said(labelled_folder)
    assert "steps: start" not in said(labelled_folder, model_step=120)


def test_another_folder_is_scored_whole(finished, labelled_folder, tmp_path):
    summary = apply.evaluate_model(evaluation(finished, labelled_folder), tmp_path)
    assert summary is not None
    assert summary["test"]["scenes"] == 8
    assert sum(summary["test"]["pixels"].values()) == 8 * 96 * 128
    assert summary["test"]["areas"]["areas"] == 4
    assert (tmp_path / "figures" / "confusion.png").exists()
    assert len({each["group"] for each in confusion_of(tmp_path, summary["test"]).values()}) == 4
    other = evaluation(finished, labelled_folder, **{"data.mask_values": (0, 2, 1)})
    with pytest.raises(ConfigError, match="another model or data set"):
        apply.evaluate_model(other, tmp_path)
    with pytest.raises(ConfigError, match="The model knows the classes grass, stone, water"):
        apply.evaluate_model(evaluation(finished, labelled_folder, **{"data.classes": ("a", "b")}), tmp_path / "b")
    with pytest.raises(ConfigError, match=r"config\.model must be the folder"):
        apply.evaluate_model(evaluation(finished, labelled_folder, model=""), tmp_path / "c")


def test_a_scene_is_mapped_by_the_command(finished, labelled_folder, tmp_path):
    config = predict_config.get_config()
    changes = {"model": str(finished[0]), "input": str(labelled_folder / "images" / "south_*.png"), "batch_size": 8}
    config.update({**changes, "output": str(tmp_path / "maps"), "compilation_cache": ""})
    found = apply.predict_images(config, tmp_path)
    assert len(found["written"]) == 2
    network, labelled = load_segmenter(finished[0]), open_labelled_test(labelled_folder, tmp_path)
    forward = network.forward(sharding.local_mesh())
    for index, _, (prediction,) in predict_scenes(forward, labelled, window=48, overlap=0.5, batch_size=8):
        with Image.open(tmp_path / "maps" / f"south_{index}.tif") as found_map:
            np.testing.assert_array_equal(found_map, prediction)
    config.input = str(tmp_path / "nothing.tif")
    with pytest.raises(ConfigError, match=r"config\.input: There is no image"):
        apply.predict_images(config, tmp_path)


def open_labelled_test(folder, tmp_path):
    from grass_jax.data.labels import Labels
    from grass_jax.data.splits import Split

    labels = Labels(("grass", "stone", "water"))
    options = {"path": folder, "labels": labels, "group": r"(\w+)_\d", "tile_size": 48, "data_dir": tmp_path}
    return open_labelled("segmentation_folder", split=Split(test="south"), **options).test


def test_a_mosaic_is_mapped_the_same_in_other_windows(finished, tmp_path):
    """5 x 4 blocks of a file, four bands, a nodata border; the patches are those that the network knows."""
    rng, (height, width) = np.random.default_rng(3), (900, 1100)
    truth = rng.integers(0, 3, (9, 11)).repeat(100, 0).repeat(100, 1)
    image = np.array([[60, 90, 50], [150, 140, 120], [40, 60, 120]])[truth] + rng.normal(0, 6, (height, width, 3))
    bands = np.full((4, height, width), 200, np.uint8)
    bands[:3] = np.clip(image, 1, 255).astype(np.uint8).transpose(2, 0, 1)
    bands[:, :40] = bands[:, :, -70:] = 0
    profile = {
        **{"driver": "GTiff", "count": 4, "height": height, "width": width, "dtype": "uint8", "nodata": 0},
        **{"crs": "EPSG:26911", "transform": Affine(0.6, 0, 480_000, 0, -0.6, 3_760_000), "tiled": True},
    }
    with rasterio.open(tmp_path / "mosaic.tif", "w", **profile) as raster:
        raster.write(bands)
    maps = []
    for window in (96, 192):
        config = predict_config.get_config()
        config.update(
            {
                "model": str(finished[0]),
                "input": str(tmp_path / "mosaic.tif"),
                "window": window,
                "compilation_cache": "",
            }
        )
        config.update({"output": str(tmp_path / str(window)), "overlap": 0.25, "batch_size": 64, "quicklook": False})
        apply.predict_images(config, tmp_path)
        with rasterio.open(tmp_path / str(window) / "mosaic.tif") as raster:
            assert (raster.crs, raster.transform) == (profile["crs"], profile["transform"])
            assert (raster.count, raster.dtypes, raster.shape) == (1, ("uint8",), (height, width))
            maps.append(raster.read(1))
            valid = raster.read_masks(1) == 255
        np.testing.assert_array_equal(valid, (bands != 0).all(0))
    first, second = (found[valid] for found in maps)
    assert (first == truth[valid]).mean() > 0.9
    assert (first != second).mean() < 0.005
