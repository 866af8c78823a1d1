"""Trained networks out of their runs: the files, and what is refused."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from configs import export as export_config
from grass_jax import pretrain
from grass_jax.config import ConfigError
from grass_jax.interop import export
from grass_jax.interop.names import encoder_tensors
from grass_jax.interop.open_weights import open_weights
from grass_jax.interop.read_encoder import read_encoder
from grass_jax.state import load_encoder


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 32), ("resnet50", 16)])
def test_an_encoder_comes_back_bit_for_bit(tmp_path, make_run, name, stride, run, four):
    workdir, variables = make_run(name=name, width=64 if name == "resnet18" else 16, stride=stride, bands=four)
    done = run(workdir, tmp_path / "out" / "encoder.safetensors")
    assert done["step"] == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["encoder.md", "encoder.safetensors"]
    like = jax.eval_shape(lambda: variables)
    again = read_encoder(done["output"], like, bands=four)
    jax.tree.map(np.testing.assert_array_equal, again, dict(variables))


def test_what_a_file_says_of_itself(tmp_path, make_run, run, four):
    workdir, _ = make_run(bands=four)
    run(workdir, tmp_path / "encoder.safetensors")
    with safetensors.safe_open(tmp_path / "encoder.safetensors", "numpy") as file:
        said = file.metadata()
    config = json.loads((workdir / "config.json").read_text())["config"]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert said.pop("grass_jax")
    assert said == {
        "format": "pt",
        "method": "instance discrimination (SimCLR, ID warm-up), then gradient guided sampling (GraSS)",
        "encoder": "resnet18",
        "width": "8",
        "output_stride": "32",
        "bands": "[1, 2, 3, 5]",
        "rgb": "[3, 2, 1]",
        "dtype": "uint16",
        "low": "[10.0, 10.0, 10.0, 10.0]",
        "high": "[4000.0, 3000.0, 2000.0, 5000.0]",
        "mean": "[0.4, 0.3, 0.2, 0.5]",
        "std": "[0.1, 0.2, 0.1, 0.2]",
        "step": "4",
        "phase": "gs",
        "data": "image_folder potsdam",
        "tiles": "16",
        "config_sha256": digest,
    }


def test_mmsegmentations_checkpoint(tmp_path, make_run, run):
    workdir, variables = make_run()
    run(workdir, tmp_path / "encoder.pth", format="mmsegmentation")
    expected = {f"state_dict.backbone.{name}": value for name, value in encoder_tensors(variables).items()}
    with open_weights(tmp_path / "encoder.pth") as (tensors, _):
        assert tensors.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(tensors[name].read(), value)
    card = (tmp_path / "encoder.md").read_text()
    assert "type='ResNet', depth=18, in_channels=3, stem_channels=8, base_channels=8" in card
    assert "prefix='backbone.'" in card


def test_timms_folder(tmp_path, make_run, run, four):
    workdir, variables = make_run(width=64, bands=four)
    run(workdir, tmp_path / "folder", format="timm")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert (config["architecture"], config["num_features"], config["num_classes"]) == ("resnet18", 512, 0)
    assert config["pretrained_cfg"]["input_size"] == [4, 224, 224]
    assert config["model_args"] == {"in_chans": 4}
    read = safetensors.numpy.load_file(tmp_path / "folder" / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read, encoder_tensors(variables))
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"")
    run(workdir, tmp_path / "folder", format="timm")  # over an earlier export
    assert safetensors.numpy.load_file(tmp_path / "folder" / "model.safetensors").keys() == read.keys()
    (tmp_path / "empty").mkdir()
    run(workdir, tmp_path / "empty", format="timm")


FOREIGN = {
    "config.json of a run": {"folder/config.json": '{"config": {"task": "pretrain"}}', "folder/summary.json": "{}"},
    "config.json of text": {"folder/config.json": "architecture"},
    "other files": {"folder/notes.txt": "mine"},
    "model alone": {"folder/model.safetensors": "mine"},
    "another's card": {
        "folder/config.json": '{"architecture": "resnet18"}',
        "folder/README.md": "# ResNet-18\n\nMine.",
    },
}


@pytest.mark.parametrize("found", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_of_other_things_is_left_as_it_is(tmp_path, make_run, found, run):
    workdir, _ = make_run(width=64)
    (tmp_path / "folder").mkdir()
    for name, text in found.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(
        ConfigError, match=r"^config\.output: the (folder|card) [^\n]*: give (a new one|another name)\.$"
    ):
        run(workdir, tmp_path / "folder", format="timm")
    assert {f"folder/{path.name}": path.read_text() for path in (tmp_path / "folder").iterdir()} == found


def test_a_run_is_never_replaced(tmp_path, make_run, run):
    workdir, _ = make_run(width=64)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    for folder in (workdir, workdir / "checkpoints"):
        with pytest.raises(ConfigError, match="holds other files than an earlier export"):
            run(workdir, folder, format="timm")
    run(workdir, workdir / "config.safetensors")  # beside it
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"# Notes\n",
        b"\xff\xfe",
        b"# ResNet-18 is fine\n\nTrained with love.",
        b"\n" * 9,
        b"Trained with grass_jax",
    ],
)
def test_notes_beside_the_weights_are_not_replaced_by_a_card(tmp_path, make_run, text, run):
    workdir, _ = make_run()
    (tmp_path / "notes.md").write_bytes(text)
    with pytest.raises(ConfigError, match=r"config\.output: the card would replace .*notes\.md, which is none: give"):
        run(workdir, tmp_path / "notes.safetensors")
    assert (tmp_path / "notes.md").read_bytes() == text
    assert not (tmp_path / "notes.safetensors").exists()


def test_a_fine_tuned_network_has_torchvisions_names(tmp_path, make_run, run):
    workdir, variables = make_run("segment", stride=16)
    run(workdir, tmp_path / "network.safetensors")
    read = safetensors.numpy.load_file(tmp_path / "network.safetensors")
    decoder = {name for name in read if not name.startswith("backbone.")}
    norm = ("weight", "bias", "running_mean", "running_var")
    convs = {f"aspp.convs.{i}": (0, 1) for i in range(4)} | {"aspp.convs.4": (1, 2), "aspp.project": (0, 1)}
    convs |= dict.fromkeys(("low_level", "refine1", "refine2"), (0, 1))
    expected = {f"{name}.{conv}.weight" for name, (conv, _) in convs.items()}
    expected |= {f"{name}.{bn}.{leaf}" for name, (_, bn) in convs.items() for leaf in norm}
    assert decoder == expected | {"classifier.weight", "classifier.bias"}
    params, stats = (variables[kind]["decoder"] for kind in ("params", "batch_stats"))
    for branch, name in enumerate(("point", "atrous1", "atrous2", "atrous3")):
        kernel, weight = params["aspp"][name]["conv"]["kernel"], read[f"aspp.convs.{branch}.0.weight"]
        np.testing.assert_array_equal(weight[3, 5], kernel[:, :, 5, 3])
    np.testing.assert_array_equal(
        read["aspp.convs.4.1.weight"][3, 5], params["aspp"]["pool"]["conv"]["kernel"][:, :, 5, 3]
    )
    np.testing.assert_array_equal(read["refine2.1.running_var"], stats["refine2"]["bn"]["var"])
    np.testing.assert_array_equal(read["classifier.weight"][:, :, 0, 0], params["classifier"]["conv"]["kernel"].T)
    encoder = {kind: variables[kind]["encoder"] for kind in ("params", "batch_stats")}
    again = read_encoder(tmp_path / "network.safetensors", jax.eval_shape(lambda: encoder), prefix="backbone")
    jax.tree.map(np.testing.assert_array_equal, again, encoder)
    run(workdir, tmp_path / "encoder.safetensors", part="encoder")
    alone = safetensors.numpy.load_file(tmp_path / "encoder.safetensors")
    assert {f"backbone.{name}" for name in alone} == read.keys() - decoder


def test_the_step_that_counts(tmp_path, make_run, run):
    workdir, variables = make_run("segment", steps=(2, 4))
    (workdir / "summary.json").write_text(json.dumps({"chosen_step": 2, "test": {"miou": 0.5}}))
    bias = variables["params"]["encoder"]["bn1"]["bias"]
    for step, factor in ((0, 0.5), (4, 1.0)):
        run(workdir, tmp_path / "e.safetensors", model_step=step, part="encoder")
        np.testing.assert_array_equal(
            safetensors.numpy.load_file(tmp_path / "e.safetensors")["bn1.bias"], factor * bias
        )
        assert ("are those of step 2, not of these weights" in (tmp_path / "e.md").read_text()) == (step == 4)


def test_the_phase_of_a_step(tmp_path, make_run, run):
    workdir, _ = make_run(steps=(2, 4))
    run(workdir, tmp_path / "e.safetensors", model_step=2)
    assert "instance discrimination (SimCLR, ID warm-up). Exported" in (tmp_path / "e.md").read_text()
    assert "after step 2 (phase warmup)" in (tmp_path / "e.md").read_text()
    run(workdir, tmp_path / "e.safetensors")
    assert "after step 4 (phase gs)" in (tmp_path / "e.md").read_text()


def test_without_an_output_the_files_go_to_the_workdir(tmp_path, make_run, run):
    workdir, _ = make_run()
    done = run(workdir, "")
    assert done["output"] == str(tmp_path / "exported" / "encoder.safetensors")
    assert done["card"] == str(tmp_path / "exported" / "encoder.md")


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("segment", {"format": "timm"}, "timm builds encoders alone.*config.part=encoder"),
        ("segment", {"format": "mmsegmentation"}, "depthwise separable.*config.part=encoder"),
        ("pretrain", {"format": "timm", "output": "folder"}, "encoders of width 64 and this one has 8"),
        ("pretrain", {"output": "e.pth"}, r"must be a \.safetensors file"),
        ("pretrain", {"output": "e"}, r"must be a \.safetensors file"),
        ("pretrain", {"format": "mmsegmentation"}, r"must be a \.pth file"),
        ("pretrain", {"output": "folder.safetensors"}, r"must be a \.safetensors file"),
        ("pretrain", {"output": "file/e.safetensors"}, "config.output: .* cannot be written"),
        ("pretrain", {"model_step": 3}, "config.model: .* no checkpoint of step 3"),
        ("pretrain", {"model": "/nowhere"}, "config.model: /nowhere holds no run"),
        ("pretrain", {"model": ""}, "config.model must be the folder of a run"),
        ("pretrain", {"format": "keras"}, "config.format must be 'torchvision', 'timm' or 'mmsegmentation'"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, make_run, monkeypatch, task, changes, words, run):
    workdir, _ = make_run(task)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.rglob("*"))
    changes = {"output": "e.safetensors"} | changes
    with pytest.raises(ConfigError, match=words):
        run(workdir, **changes)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_whose_record_is_damaged_is_one_sentence(tmp_path, make_run, run):
    workdir, _ = make_run("segment")
    config, output = workdir / "config.json", tmp_path / "e.safetensors"
    whole = config.read_text()
    for text in ("", "{", "null", "[]"):
        config.write_text(text)
        with pytest.raises(ConfigError, match=r"^config\.model: .*/run holds no run: give the --workdir of a"):
            run(workdir, output)
    for key in ("config", "data", "labels", "environment"):
        for value in (None, {}):
            config.write_text(json.dumps(json.loads(whole) | {key: value}))
            with pytest.raises(ConfigError, match=r"^config\.model: .*/run(/config\.json is damaged \(| holds no run)"):
                run(workdir, output)
    config.write_text(whole)
    for text in ("", "{", "null", "{}"):
        (workdir / "summary.json").write_text(text)
        with pytest.raises(ConfigError, match=r"^config\.model: .*/summary\.json is damaged: name a step, or start"):
            run(workdir, output)
    assert not output.exists()
    assert run(workdir, output, model_step=4)["step"] == 4
    assert "None were recorded." in output.with_suffix(".md").read_text()


def test_an_older_export_stays_until_all_of_the_new_one_is_there(tmp_path, make_run, monkeypatch, run):
    workdir, _ = make_run()
    output = tmp_path / "e.safetensors"
    run(workdir, output)
    before = {path: path.read_bytes() for path in (output, tmp_path / "e.md")}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_write_safetensors", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        run(workdir, output, licence="another")
    assert {path: path.read_bytes() for path in tmp_path.glob("*e.*") if path.is_file()} == before


def test_a_real_run_is_exported(tiny, tmp_path, run):
    config = tiny(**{"gs.epochs": 1, "warmup.epochs": 1})
    pretrain.run(config, tmp_path / "run")
    done = run(tmp_path / "run", tmp_path / "e.safetensors")
    assert done["step"] == 6
    loaded = load_encoder(tmp_path / "run")
    again = read_encoder(done["output"], jax.eval_shape(lambda: loaded.variables), bands=loaded.bands)
    jax.tree.map(np.testing.assert_array_equal, again, dict(loaded.variables))
    card = (tmp_path / "e.md").read_text()
    assert "| gs.loss | " in card
    assert f"image_folder {Path(config.data.path).name}, 30 tiles of 48 pixels." in card
    assert str(Path(config.data.path).parent) not in card


def test_an_unknown_preset_names_the_known_one():
    with pytest.raises(ValueError, match="the preset weights, not 'huge'"):
        export_config.get_config("huge")
