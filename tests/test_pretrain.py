"""The main job on a tiny folder of images: to the end, interrupted, refused, diverging."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from configs.baselines import byol
from grass_jax import build, pretrain
from grass_jax.bands import RGB
from grass_jax.build import build_schedule
from grass_jax.checkpoints.resume import refuse_other_run, refuse_other_trunk
from grass_jax.checkpoints.saving import ResumeError
from grass_jax.config import ConfigError
from grass_jax.data.loader import check_batch_size, fitting_batch_size
from grass_jax.report.atomic import DiskFullError
from grass_jax.report.log import read_metrics
from grass_jax.sharding import make_mesh
from grass_jax.state import load_encoder
from grass_jax.stopping import Stopped
from grass_jax.train import DivergedError


def arrays(workdir: Path) -> list[np.ndarray]:
    """Everything in the newest checkpoint."""
    newest = max(ocp.utils.checkpoint_steps(workdir / "checkpoints"))
    path = workdir / "checkpoints" / str(newest) / "default"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored)]


@pytest.fixture(scope="module")
def one_device():
    """The job on a single device: it is the arithmetic of one machine that must repeat bit for bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.sharding, "make_mesh", lambda devices=None: make_mesh(jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def finished(tiny, one_device, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, pretrain.run(tiny(), workdir)


def test_the_job_leaves_everything_a_person_looks_at(finished):
    workdir, summary = finished
    records = read_metrics(workdir)
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["phase"] for record in records] == ["warmup"] * 6 + ["gs"] * 6
    assert records[-1]["epoch"] == 4
    common = {
        "loss",
        "learning_rate",
        "images_per_second",
        "input_wait",
        "gradient_norm",
        "embedding_std",
        "mean_cosine",
    }
    assert common <= records[0].keys()
    assert common | {"loss_before", "box_area", "whole_boxes", "fallback"} <= records[-1].keys()
    assert summary == json.loads((workdir / "summary.json").read_text())
    assert (summary["steps"], summary["tiles"]) == (12, 30)
    assert summary["phases"]["gs"]["ends"]["loss"] == records[-1]["loss"]
    resolved = json.loads((workdir / "config.json").read_text())
    assert resolved["config"]["batch_size"] == resolved["data"]["batch_size"] == 8
    assert "jax" in json.dumps(resolved["environment"])
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [6, 10, 12]
    for name in ("guidance_warmup", "guidance_gs", "curves"):
        with Image.open(workdir / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 300


def test_a_finished_run_says_so_and_stays_as_it_is(finished, tiny, caplog):
    workdir, _ = finished
    before = arrays(workdir)
    (workdir / "summary.json").unlink()
    with caplog.at_level("INFO", logger="absl"):
        assert pretrain.run(tiny(), workdir) is None
    assert "has ended after 12 steps" in caplog.text
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 12
    for old, new in zip(before, arrays(workdir), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_picture_that_a_signal_left_out_is_drawn_after_the_end(finished, tiny, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "figures" / "guidance_warmup.png").unlink()
    (workdir / "figures" / "guidance_gs.png").write_bytes(b"stays")
    assert pretrain.run(tiny(), workdir) is None
    drawn, before = (Image.open(run / "figures" / "guidance_warmup.png") for run in (workdir, finished[0]))
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(before))
    assert (workdir / "figures" / "guidance_gs.png").read_bytes() == b"stays"
    assert read_metrics(workdir) == read_metrics(finished[0])


@pytest.mark.parametrize("stop", [1, 6, 9, 12])
def test_an_interrupted_run_ends_as_if_it_had_not_been(finished, tiny, tmp_path, monkeypatch, stop):
    config = tiny(**{"log.figure_tiles": 0})

    class Killed(BaseException):
        pass

    def kill(steps_per_epoch):
        def watch(phase, step, metrics):
            if step == stop:
                raise Killed

        return watch

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "fallback_watch", kill)
        with pytest.raises(Killed):
            pretrain.run(config, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 99, "torn')
    pretrain.run(config, tmp_path)
    for expected, actual in zip(arrays(finished[0]), arrays(tmp_path), strict=True):
        np.testing.assert_array_equal(actual, expected)
    timeless = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("images_per_second", "input_wait")}
            for line in (workdir / "metrics.jsonl").read_text().splitlines()
        ]
        for workdir in (finished[0], tmp_path)
    ]
    assert timeless[0] == timeless[1]


def test_a_run_that_a_signal_stopped_goes_on_even_from_the_checkpoint_before(
    finished, tiny, tmp_path, monkeypatch, caplog
):
    """It saves by the clock after every step; the one that the signal saved is then damaged."""

    def stopping(steps_per_epoch):
        return lambda phase, step, metrics: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None

    by_time = {"checkpoint.every_epochs": 100.0, "checkpoint.every_minutes": 1e-6}
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "fallback_watch", stopping)
        with pytest.raises(Stopped, match="after step 8, which is saved") as stop:
            pretrain.run(tiny(**by_time), tmp_path)
    assert (stop.value.step, stop.value.code) == (8, 75)
    checkpoints = tmp_path / "checkpoints"
    assert sorted(int(path.name) for path in checkpoints.iterdir()) == [6, 7, 8]
    (checkpoints / "8" / "default" / "manifest.ocdbt").unlink()
    with caplog.at_level("INFO", logger="absl"):
        pretrain.run(tiny(), tmp_path)
    assert "Resuming after step 7 of 12." in caplog.text
    assert (tmp_path / "damaged_checkpoints" / "8").is_dir()
    for expected, actual in zip(arrays(finished[0]), arrays(tmp_path), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 13))


def test_methods_without_negatives_say_nothing_of_overlapping_tiles(tiny, tmp_path):
    base, other = tiny(), byol.get_config("folder")
    other.update({key: base[key] for key in ("data", "model", "augment", "batch_size")})
    for config, logs in ((base, True), (other, False)):
        source, size, _, ends = pretrain.prepared(config, make_mesh())
        task = pretrain.pretraining_task(
            config, source, jax.random.key(0), batch_size=size, ends=ends, workdir=tmp_path
        )
        assert task.batches.keywords["log_overlaps"] is logs


def test_another_config_in_the_same_folder_is_refused(finished, tiny):
    workdir, _ = finished
    with pytest.raises(ResumeError, match=r"augment\.size, seed"):
        pretrain.run(tiny(**{"seed": 1, "augment.size": 40}), workdir)
    with pytest.raises(ResumeError, match=r"warmup\.epochs"):
        pretrain.run(tiny(**{"warmup.epochs": 3}), workdir)
    with pytest.raises(ResumeError, match=r"gs\.epochs"):
        pretrain.run(tiny(**{"gs.epochs": 1}), workdir)
    with pytest.raises(ResumeError, match=r"\(bands\.mean, as after a change of the images\): give the old"):
        pretrain.run(tiny(**{"bands.mean": (0.5, 0.5, 0.5)}), workdir)
    begun = json.loads((workdir / "config.json").read_text())
    with pytest.raises(ResumeError, match="30 tiles in batches of 8"):
        refuse_other_run(
            workdir, begun["config"], begun["data"] | {"tiles_digest": "others"}, steps_per_epoch=3, done=12
        )


def test_other_pixels_under_the_same_names_are_refused(finished, tiny, image_folder, tmp_path):
    workdir, _ = finished
    shutil.copytree(image_folder, tmp_path / "images")
    picture = next((tmp_path / "images" / "west").iterdir())
    pixels = np.array(Image.open(picture))
    pixels[0, 0] += 1
    Image.fromarray(pixels).save(picture)
    with pytest.raises(ResumeError, match=r"^An image or mask of .*, has changed since the work in .* began"):
        pretrain.run(tiny(**{"data.path": str(tmp_path / "images")}), workdir)


@pytest.mark.parametrize(
    ("config", "data"),
    [
        ({"phases": None}, {}),
        ({"phases": 3}, {}),
        ({"phases": ["warmup", "gs"]}, {}),
        ({"warmup": {}}, {}),
        ({"warmup": {"epochs": "two"}}, {}),
        ({"warmup": {"steps": None}}, {}),
        ({}, {"tiles": None}),
        ({}, {"batch_size": 0}),
    ],
)
def test_a_record_that_lacks_what_a_run_is_compared_by_is_damaged(tmp_path, config, data):
    model = {"name": "resnet18", "width": 4, "output_stride": 8, "dtype": "float32"}
    whole = {"task": "pretrain", "bands": RGB.asdict(), "model": model, "phases": ["warmup"], "warmup": {"epochs": 2}}
    record = {"config": whole | config, "data": {"tiles": 30, "batch_size": 8, "tiles_digest": "a"} | data}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(
        ResumeError, match=r"/config\.json, which the run has to be compared with, is damaged: put a copy"
    ):
        refuse_other_run(tmp_path, whole, record["data"], steps_per_epoch=3, done=3)
    with pytest.raises(
        ResumeError, match=r"^config\.branch: .*/config\.json is damaged \(.*\): restore it from a copy"
    ):
        refuse_other_trunk(tmp_path, whole, record["data"], steps_per_epoch=3)
    (tmp_path / "config.json").write_text('{"config": {}, "data": {}}')
    with pytest.raises(ResumeError, match=r"is damaged: put a copy"):
        refuse_other_run(tmp_path, whole, record["data"], steps_per_epoch=3, done=3)


def test_a_longer_training_goes_on(tiny, one_device, tmp_path, monkeypatch):
    pretrain.run(tiny(**{"gs.epochs": 1}), tmp_path)
    summary_while_training = []
    watch = pretrain.fallback_watch
    monkeypatch.setattr(
        pretrain,
        "fallback_watch",
        lambda steps: summary_while_training.append((tmp_path / "summary.json").exists()) or watch(steps),
    )
    summary = pretrain.run(tiny(**{"log.every": 2, "data.workers": 1}), tmp_path)
    assert summary_while_training == [False]  # the shorter run's would be taken for this one's after a kill
    assert summary is not None
    assert summary["steps"] == 12
    assert [record["step"] for record in read_metrics(tmp_path)] == [*range(1, 10), 10, 12]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tiny, one_device, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "build_schedule", lambda *_: lambda step: jnp.where(step < 5, 1e-3, jnp.inf))
    with pytest.raises(DivergedError, match="last good checkpoint is step 4"):
        pretrain.run(tiny(), tmp_path)
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == 4
    assert all(np.isfinite(leaf).all() for leaf in arrays(tmp_path))
    assert (tmp_path / "figures" / "curves.png").exists()


def test_a_run_that_has_diverged_says_so_on_a_full_disk(tiny, one_device, tmp_path, monkeypatch, caplog):
    def diverge(*_, **__):
        raise DivergedError("The loss of step 5 is nan.")

    def full(path, _):
        raise DiskFullError(OSError(errno.ENOSPC, "No space left on device"), path)

    monkeypatch.setattr(pretrain, "train", diverge)
    monkeypatch.setattr(pretrain.figures, "curves", full)
    with pytest.raises(DivergedError, match=r"^The loss of step 5 is nan\. The run has stopped"):
        pretrain.run(tiny(), tmp_path)
    assert "curves.png cannot be written, as its disk is full" in caplog.text


def test_a_batch_that_the_devices_cannot_share_is_refused_before_any_work(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain.sharding, "make_mesh", make_mesh)  # all devices
    with pytest.raises(ConfigError, match=f"multiple of the {jax.device_count()} devices"):
        pretrain.run(tiny(batch_size=12), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_schedule_per_phase_starts_again(tiny):
    schedule = build_schedule(tiny(**{"schedule.restart": True, "schedule.warmup": 0.0}), [6, 12])
    assert float(schedule(6)) == float(schedule(0)) == pytest.approx(1e-3)
    assert float(schedule(5)) < 2e-4
    whole = build_schedule(tiny(**{"schedule.warmup": 0.0}), [6, 12])
    assert float(whole(6)) == pytest.approx(0.5e-3, rel=1e-2)


def test_a_batch_larger_than_the_data_is_cut(caplog):
    assert fitting_batch_size(64, tiles=100, devices=8) == 64
    with caplog.at_level("WARNING", logger="absl"):
        assert fitting_batch_size(64, tiles=30, devices=4) == 28
    assert "using 28" in caplog.text
    with pytest.raises(ConfigError, match="too few"):
        fitting_batch_size(8, tiles=1, devices=1)


def test_most_views_falling_back_is_said_once(caplog):
    watch = pretrain.fallback_watch(2)
    phase = pretrain.Phase("gs", lambda *_: None, 0, 10)
    with caplog.at_level("WARNING", logger="absl"):
        for step, share in enumerate([0.25, 0.5, 1.0, 0.5, 1.0, 1.0], 1):
            watch(phase, step, {"loss": 1.0, "fallback": share})
    assert caplog.text.count("% of the views") == caplog.text.count("75 % of the views") == 1


def test_the_encoder_is_loaded_with_its_normalisation(finished):
    workdir, _ = finished
    encoder = load_encoder(workdir)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    features = encoder(images)
    assert features.shape == (2, 8, 8, 32)
    stored = {leaf.tobytes() for leaf in arrays(workdir)}
    assert all(np.asarray(leaf).tobytes() in stored for leaf in jax.tree.leaves(encoder.variables))
    normalised = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    expected = encoder.module.apply(encoder.variables, normalised.astype(np.float32), train=False)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
    after_warmup = load_encoder(workdir, step=6)
    assert not np.array_equal(
        after_warmup.variables["params"]["conv1"]["kernel"], encoder.variables["params"]["conv1"]["kernel"]
    )
    with pytest.raises(FileNotFoundError, match="no pretraining run"):
        load_encoder(workdir / "nothing")


def test_a_run_in_parts_draws_its_pictures_and_cuts_its_batch(tiny, tmp_path):
    """25 tiles in batches of 16 in two parts; pictures are made of all 25, which the parts do not divide."""
    parts = {"data.tile_size": 96, "data.stride": 8, "batch_size": 16, "micro_batches": 2}
    config = tiny(**parts, **{"warmup.epochs": 1, "gs.epochs": 1})
    summary = pretrain.run(config, tmp_path)
    assert summary is not None
    assert (summary["tiles"], summary["steps"]) == (25, 2)
    assert (tmp_path / "figures" / "guidance_gs.png").exists()
    assert fitting_batch_size(64, tiles=100, devices=2, parts=8) == 64
    assert fitting_batch_size(256, tiles=100, devices=2, parts=8) == 96
    with pytest.raises(ConfigError, match=r"multiple of 3 micro-batches on each of the 8 devices, not 32\.$"):
        check_batch_size(32, devices=8, parts=3)
