"""Where an encoder starts from: a file of ImageNet's kind, an exported encoder, another run, or random weights."""

import json

import jax
import numpy as np
import pytest
import rasterio
import safetensors.numpy
from affine import Affine

from configs import export
from grass_jax import initial, pretrain
from grass_jax.bands import RGB
from grass_jax.checkpoints.resume import run_config
from grass_jax.config import ConfigError
from grass_jax.interop import export as exporting
from grass_jax.interop.names import encoder_tensors
from grass_jax.models import build_encoder
from grass_jax.segment import finetune
from grass_jax.state import load_encoder

ONE_EPOCH = {"warmup.epochs": 1, "gs.epochs": 1}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A file as torchvision's and timm's: a ResNet-18 (of width 4) with its classifier and counters."""
    module = build_encoder("resnet18", width=4)
    variables = jax.jit(lambda key: module.init(key, np.zeros((1, 32, 32, 3), np.float32), train=False))(
        jax.random.key(7)
    )
    tensors = encoder_tensors(variables)
    tensors |= {"fc.weight": np.ones((1000, 32), np.float32), "fc.bias": np.ones(1000, np.float32)}
    tensors["bn1.num_batches_tracked"] = np.array(1, np.int64)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    safetensors.numpy.save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return path, tensors


@pytest.fixture
def started(monkeypatch):
    """Stops a task before its first step; returns what runs it and gives the state that it would begin with."""

    def start(task, config, workdir):
        states = []
        monkeypatch.setattr(task, "train", lambda task, *args, **options: states.append(task.init()) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            task.run(config, workdir)
        monkeypatch.undo()
        return states[0]

    return start


@pytest.fixture(scope="module")
def infrared(tmp_path_factory):
    """Four scenes of four bands."""
    folder, rng = tmp_path_factory.mktemp("infrared"), np.random.default_rng(0)
    for number in range(4):
        profile = {"driver": "GTiff", "height": 96, "width": 96, "count": 4, "dtype": "uint8", "crs": "EPSG:32633"}
        profile |= {
            "transform": Affine(0.6, 0, 5000 + 1000 * number, 0, -0.6, 9000),
            "photometric": "RGB",
            "alpha": "NO",
        }
        with rasterio.open(folder / f"{number}.tif", "w", **profile) as raster:
            raster.write(rng.integers(0, 255, (4, 12, 12), np.uint8).repeat(8, 1).repeat(8, 2))
    return folder


def test_the_same_command_runs_from_imagenet_and_from_random_weights(tiny, imagenet, tmp_path):
    path, _ = imagenet
    for name, init in (("random", ""), ("imagenet", str(path))):
        summary = pretrain.run(tiny(**ONE_EPOCH, init=init), tmp_path / name)
        assert summary["steps"] == 6
        assert np.isfinite(summary["phases"]["gs"]["ends"]["loss"])
    config = json.loads((tmp_path / "imagenet" / "config.json").read_text())["config"]
    assert config["init"] == str(path)
    assert config["bands"]["mean"] == list(RGB.mean)  # by which the file's network was trained
    assert pretrain.run(tiny(**ONE_EPOCH, init=str(path)), tmp_path / "imagenet") is None  # it has ended


def test_every_number_of_the_file_is_in_the_first_state(tiny, tiny_segment, imagenet, started, tmp_path):
    path, tensors = imagenet
    for task, config in ((pretrain, tiny(init=str(path))), (finetune, tiny_segment(init=str(path)))):
        state = started(task, config, tmp_path / task.__name__)
        params, stats = state.params["encoder"], state.stats["encoder"]
        kernel = np.asarray(params["layer2_0"]["downsample_0"]["kernel"])
        np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), tensors["layer2.0.downsample.0.weight"])
        np.testing.assert_array_equal(stats["bn1"]["var"], tensors["bn1.running_var"])


def test_a_fourth_band_takes_the_mean_of_red_green_and_blue(tiny, imagenet, infrared, started, tmp_path, caplog):
    path, tensors = imagenet
    config = tiny(**{"init": str(path), "data.path": str(infrared)})
    with caplog.at_level("INFO", logger="absl"):
        state = started(pretrain, config, tmp_path)
    old, new = tensors["conv1.weight"], np.asarray(state.params["encoder"]["conv1"]["kernel"]).transpose(3, 2, 0, 1)
    np.testing.assert_allclose(new[:, :3], old * 3 / 4, rtol=1e-6)
    np.testing.assert_allclose(new[:, 3], old.mean(1) * 3 / 4, rtol=1e-5, atol=1e-8)
    (line,) = (record.message for record in caplog.records if "first convolution" in record.message)
    assert "4" in line


def test_an_exported_encoder_brings_its_bands(tiny, infrared, started, tmp_path):
    pretrain.run(tiny(**ONE_EPOCH, **{"data.path": str(infrared)}), tmp_path / "run")
    config = export.get_config()
    config.update({"model": str(tmp_path / "run"), "output": str(tmp_path / "encoder.safetensors")})
    exporting.run(config, tmp_path)
    changes = {"init": str(tmp_path / "encoder.safetensors"), "data.path": str(infrared), "model.width": 8}
    for init in ("encoder.safetensors", "run"):
        workdir = tmp_path / f"from {init}"
        state = started(pretrain, tiny(**changes | {"init": str(tmp_path / init)}), workdir)
        before = load_encoder(tmp_path / "run").variables
        jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], before["params"])
        jax.tree.map(np.testing.assert_array_equal, state.stats["encoder"], before["batch_stats"])
        resolved = json.loads((workdir / "config.json").read_text())["config"]
        begun = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
        assert resolved["bands"] == begun["bands"]
        assert resolved["model"]["width"] == 4
    changes |= {"init": str(tmp_path / "run"), "bands.numbers": (1, 2, 3)}
    with pytest.raises(
        ConfigError, match=r"config\.bands\.numbers is \(1, 2, 3\) and that of config\.init \(1, 2, 3, 4"
    ):
        pretrain.run(tiny(**changes), tmp_path / "other")


def test_the_first_process_says_what_an_encoder_brings(tiny, tmp_path, monkeypatch):
    """Another host may see a shared folder as it was before, and take another step of the run."""
    begun = {"model": {"name": "resnet18", "width": 4}, "bands": RGB.asdict()}
    first = [begun, 12, True]
    monkeypatch.setattr(initial, "read_by_first", lambda _: first)
    monkeypatch.setattr(initial, "kept_steps", lambda _: [10])
    config = initial.follow_encoder(tiny(**{"init": str(tmp_path / "run"), "model.width": 8}), tmp_path / "new")
    assert (config.init_step, config.model.width, config.bands.mean) == (12, 4, RGB.mean)
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(initial, "read_by_first", lambda read: asked.append(read) or read())
    assert initial.follow_encoder(tiny(), tmp_path / "new").init == ""
    assert len(asked) == 1  # where only this process was started without `init`, too


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.width": 8}, r"config\.init: .*of another shape.*set config\.model to the file's network"),
        ({"init_ignore": ""}, r"config\.init: .*2 unknown \(fc\.bias, fc\.weight\).*config\.init_ignore"),
        ({"init": "/no/such/file.pth"}, r"config\.init: there is no /no/such/file\.pth: give"),
        ({"bands.rgb": (1, 2, 4)}, r"config\.bands\.rgb must be three different ones of the bands"),
        ({"bands.numbers": (1, 5)}, r"No image that was looked at has all of the bands \(1, 5\)"),
        ({"bands.mean": (0.5,)}, r"config\.bands\.mean must have a number for each of the 3 bands"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tiny, imagenet, tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        pretrain.run(tiny(**{"init": str(imagenet[0])} | change), tmp_path)
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "name", "resnet7"),
        ("model", "width", "64"),
        ("model", "width", 10**9),
        ("bands", "std", ["x", 1.0, 1.0]),
        ("bands", "numbers", ["a", 1]),
        ("bands", "colour", 1),
    ],
)
def test_a_record_that_says_what_no_run_has_is_damaged(tmp_path, section, key, value):
    model = {"name": "resnet18", "width": 8, "output_stride": 32, "dtype": "float32"}
    config = {"task": "pretrain", "model": model, "bands": RGB.asdict()}
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    assert run_config(tmp_path, task="pretrain")["model"] == model
    config[section][key] = value
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    with pytest.raises(FileNotFoundError, match=r"config\.json is damaged \(.*\): restore it from a copy") as error:
        run_config(tmp_path, task="pretrain")
    assert "\n" not in str(error.value)
