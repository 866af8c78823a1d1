"""The config files: every preset can be run, and `reference` is the original."""

from importlib import import_module

import pytest
from ml_collections import ConfigDict

from configs import evaluate, gs, predict, segment, warmup
from grass_jax.config import ConfigError
from grass_jax.methods.registry import NAMES
from grass_jax.schemas import check


@pytest.mark.parametrize("preset", gs.PRESETS)
@pytest.mark.parametrize("file", [gs, warmup])
def test_every_preset_passes_the_check(file, preset, tmp_path):
    config = file.get_config(preset)
    if config.data.name != "sample":
        config.data.path = str(tmp_path)
    if config.probe.data.name == "segmentation_folder":
        config.probe.data.path = str(tmp_path)
    check(config)
    assert config.preset == preset
    assert isinstance(config, ConfigDict)


@pytest.mark.parametrize("preset", [name for name in gs.PRESETS if name != "reference"])
@pytest.mark.parametrize("method", [name for name in NAMES if name != "simclr"])
def test_every_preset_of_every_method_passes_the_check(method, preset, tmp_path):
    file = import_module(f"configs.baselines.{method}")
    config = file.get_config(preset)
    if config.data.name != "sample":
        config.data.path = str(tmp_path)
    if config.probe.data.name == "segmentation_folder":
        config.probe.data.path = str(tmp_path)
    check(config)
    config.phases = ("warmup", "gs")
    check(config)
    assert config.method.name == method
    with pytest.raises(ValueError, match=r"sample, folder, .*, not 'reference'"):
        file.get_config("reference")


@pytest.mark.parametrize(("method", "follows"), [("byol", True), ("pixpro", True), ("moco_v2", False)])
def test_a_method_whose_schedule_follows_the_length_does_not_branch(method, follows):
    config = import_module(f"configs.baselines.{method}").get_config()
    config.branch, config.schedule.restart = "runs/trunk", True
    if not follows:
        return check(config)
    with pytest.raises(ConfigError, match=rf"^config\.branch: the moving average of {method} follows the length"):
        check(config)


def test_the_original_initialisation_is_simclrs():
    config = import_module("configs.baselines.byol").get_config()
    config.model.init = "original"
    with pytest.raises(ConfigError, match=r"^config\.model\.init 'original' .* byol takes 'torchvision'\.$"):
        check(config)


@pytest.mark.parametrize(("file", "preset"), [(f, p) for f in (segment, evaluate) for p in f.PRESETS])
def test_every_preset_of_segmentation_passes_the_check(file, preset, tmp_path):
    config = file.get_config(preset)
    if config.data.name != "sample":
        config.data.path = str(tmp_path)
        if preset.startswith("folder"):
            config.data.classes = ("town", "country")
    check(config)
    assert config.preset == preset


@pytest.mark.parametrize("file", [segment, evaluate, predict])
def test_an_unknown_preset_of_segmentation_names_the_known_ones(file):
    with pytest.raises(ValueError, match=r"sample.*, not 'huge'"):
        file.get_config("huge")


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"sample, folder, dubai, .*, potsdam, .*, reference, not 'huge'"):
        gs.get_config("huge")


def test_reference_is_the_originals_configuration():
    """Values of the released code, GeoX-Lab/GraSS at 53a0a5e, written out once more."""
    config = gs.get_config("reference")
    flat = {
        "batch_size": 256,
        "method.name": "simclr",
        "method.temperature": 0.5,
        "phases": ("gs",),
        "gs.epochs": 350,
        "gs.step": "gs_step",
        "augment.size": 224,
        "augment.area": (0.08, 1.0),
        "augment.aspect": (3 / 4, 4 / 3),
        "augment.flip": 0.5,
        "augment.jitter": 0.8,
        "augment.brightness": 0.8,
        "augment.contrast": 0.8,
        "augment.saturation": 0.8,
        "augment.hue": 0.2,
        "augment.greyscale": 0.2,
        "augment.blur": 0.5,
        "augment.blur_sigma": (0.1, 2.0),
        "bands.mean": (0.485, 0.456, 0.406),
        "bands.std": (0.229, 0.224, 0.225),
        "model.name": "resnet50",
        "model.width": 64,
        "model.output_stride": 32,
        "model.dtype": "float32",
        "model.init": "original",
        "method.hidden": 0,
        "method.embedding": 128,
        "method.relu": False,
        "guidance.threshold": 0.5,
        "guidance.sign": "flip",
        "optimizer.name": "larc",
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 1e-6,
        "optimizer.decay_bias": True,
        "optimizer.trust_coefficient": 1e-3,
        "optimizer.eps": 1e-8,
        "schedule.name": "original",
    }
    for key, value in flat.items():
        node = config
        for part in key.split("."):
            node = node[part]
        assert node == value, key
