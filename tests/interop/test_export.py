"""Trained networks out of their runs: the files, the card, and the card's own code where PyTorch is installed."""

import hashlib
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from configs import export as export_config
from grass_jax import pretrain
from grass_jax.bands import RGB, Bands, normalise, unit_range
from grass_jax.checkpoint import Checkpoints
from grass_jax.config import ConfigError
from grass_jax.interop import export
from grass_jax.interop.names import encoder_tensors
from grass_jax.interop.open_weights import open_weights, read_description
from grass_jax.interop.read_encoder import read_encoder
from grass_jax.interop.torch_write import write_torch
from grass_jax.models import build_encoder, build_segmenter
from grass_jax.state import TrainState, load_encoder, variable_shapes

FOUR = Bands(
    (1, 2, 3, 5),
    "uint16",
    (10.0,) * 4,
    (4000.0, 3000.0, 2000.0, 5000.0),
    (0.4, 0.3, 0.2, 0.5),
    (0.1, 0.2, 0.1, 0.2),
    (3, 2, 1),
)
HEAD = {"name": "deeplabv3plus", "channels": 8, "dropout": 0.1}
CLASSES = ["grass", "stone", "water"]


@pytest.fixture
def make_run(tmp_path, random_variables):
    """Writes the folder of a run as training leaves it: config.json, summary.json and a checkpoint."""

    def make(task="pretrain", *, name="resnet18", width=8, stride=32, bands=RGB, head=HEAD, steps=(4,), summary=True):
        model = {"name": name, "width": width, "output_stride": stride, "dtype": "float32"}
        config = {
            "task": task,
            "bands": bands.asdict(),
            "model": model,
            "data": {"name": "image_folder", "path": "/home/somebody/secret/potsdam", "tile_size": 256, "gsd": 0.0},
            "augment": {"size": 224, "area": (0.08, 1.0), "hue": 0.1},
            "optimizer": {"name": "larc", "momentum": 0.9},
            "batch_size": 8,
            "init": "/home/somebody/secret/first",
            "init_step": 7,
            "log": {"every": 10},
        }
        if task == "pretrain":
            config |= {"phases": ("warmup", "gs"), "warmup": {"step": "warmup_step", "epochs": 1}}
            config |= {"gs": {"step": "gs_step", "epochs": 1}}
            network, numbers = build_encoder(**model), {"steps": 4, "phases": {"warmup": {"ends": {"loss": 3.25}}}}
        else:
            config |= {"phases": ("finetune",), "finetune": {"steps": 4}, "head": head}
            network = build_segmenter(model, head, len(CLASSES))
            numbers = {"chosen_step": steps[-1], "test": {"miou": 0.625, "iou": {"grass": 0.5}, "absent": []}}
        variables = random_variables(variable_shapes(network, len(bands)))
        params, stats = variables["params"], variables["batch_stats"]
        if task == "pretrain":
            params, stats = {"encoder": params, "head": {"bias": np.ones(3, np.float32)}}, {"encoder": stats}
        workdir = tmp_path / "run"
        with Checkpoints(workdir, keep=9) as checkpoints:
            for step in steps:
                state = TrainState(np.int32(step), jax.tree.map(lambda a, n=step: a * n / 4, params), stats, (), ())
                checkpoints.save(step, jax.tree.map(jnp.asarray, state))
        record = {"config": config, "data": {"tiles": 16, "batch_size": 8}}
        record |= {"environment": {"versions": {"jax": "0.10.1", "grain": None}}}
        if task == "segment":
            record["labels"] = {"classes": CLASSES, "colours": [[0, 0, 0]] * 3}
        (workdir / "config.json").write_text(json.dumps(record))
        if summary:
            (workdir / "summary.json").write_text(json.dumps(numbers))
        return workdir, variables

    return make


def run(workdir, output, **changes):
    config = export_config.get_config()
    config.update({"model": str(workdir), "output": str(output), **changes})
    return export.run(config, workdir.parent / "exported")


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 32), ("resnet50", 16)])
def test_an_encoder_comes_back_bit_for_bit(tmp_path, make_run, name, stride):
    workdir, variables = make_run(name=name, width=64 if name == "resnet18" else 16, stride=stride, bands=FOUR)
    done = run(workdir, tmp_path / "out" / "encoder.safetensors")
    assert done["step"] == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["encoder.md", "encoder.safetensors"]
    like = jax.eval_shape(lambda: variables)
    again = read_encoder(done["output"], like, bands=FOUR)
    jax.tree.map(np.testing.assert_array_equal, again, dict(variables))


def test_what_a_file_says_of_itself(tmp_path, make_run):
    workdir, _ = make_run(bands=FOUR)
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


def test_mmsegmentations_checkpoint(tmp_path, make_run):
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


DESCRIBED = {"model": {"name": "resnet18", "width": 8}, "bands": FOUR.asdict()}


@pytest.mark.parametrize(("format", "suffix"), [("torchvision", "safetensors"), ("mmsegmentation", "pth")])
def test_what_a_file_says_is_read(tmp_path, make_run, format, suffix):
    workdir, _ = make_run(bands=FOUR)
    run(workdir, tmp_path / f"e.{suffix}", format=format)
    assert read_description(tmp_path / f"e.{suffix}") == DESCRIBED


GOOD = {"grass_jax": "1", "encoder": "resnet18", "width": "8", "bands": "[1, 2, 3, 5]", "rgb": "[3, 2, 1]"}
GOOD |= {"dtype": "uint16", "low": "[10, 10.0, 10, 10]", "high": "[4000.0, 3000, 2000, 5000]"}
GOOD |= {"mean": "[0.4, 0.3, 0.2, 0.5]", "std": "[0.1, 0.2, 0.1, 0.2]"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"encoder": None}, "'encoder'"),
        ({"encoder": "resnet99\x1b[31m"}, r"the encoder 'resnet99\x1b[31m' is not known"),
        *(
            ({"width": width}, "")
            for width in ("8.0", "true", "null", "[8]", '"8"', "-8", "0", "6", "9" * 5000, "8000")
        ),
        *(({key: "5"}, "numbers belong") for key in ("bands", "rgb", "low", "mean")),
        ({"rgb": '"x"'}, "whole numbers belong"),
        ({"bands": "[[1], 2, 3, 5]"}, "whole numbers belong"),
        ({"bands": "[true, 2, 3, 5]"}, "whole numbers belong"),
        ({"mean": '["a", 0.3, 0.2, 0.5]'}, "numbers belong"),
        ({"mean": "[0.1]"}, "bands.mean must have a number for each"),
        ({"std": "[0, 0, 0, 0]"}, "bands.std above 0"),
        ({"std": "[NaN, 1, 1, 1]"}, "bands.std must be finite"),
        ({"high": "[1" + "0" * 400 + ", 1, 1, 1]"}, "too large"),
        ({"dtype": "complex64"}, "bands.dtype must be"),
        ({"rgb": "[" * 100_000}, "recursion"),
        ({"rgb": "["}, "Expecting"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_that_says_what_cannot_be_is_told(tmp_path, caplog, change, words, suffix):
    said = {key: value for key, value in (GOOD | change).items() if value is not None}
    weights, path = {"a": np.zeros(1, np.float32)}, tmp_path / f"e.{suffix}"
    if suffix == "pth":
        write_torch(path, {"meta": said, "state_dict": weights})
    else:
        safetensors.numpy.save_file(weights, path, said)
    with caplog.at_level(logging.WARNING, "absl"):
        read = read_description(path)
    if words is None:
        assert read == DESCRIBED
        assert not caplog.records
    else:
        assert read == {}
        (message,) = (record.getMessage() for record in caplog.records)
        assert "says of its encoder what cannot be" in message
        assert words in message
        assert message.isprintable()


def test_other_files_say_nothing(tmp_path, caplog):
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, tmp_path / "a.safetensors", {"format": "pt"})
    write_torch(tmp_path / "a.pth", {"meta": 3, "a": np.zeros(1, np.float32)})
    (tmp_path / "a.txt").write_text("no weights")
    for name in ("a.safetensors", "a.pth", "a.txt", "none"):
        assert read_description(tmp_path / name) == {}
    assert not caplog.records


def test_timms_folder(tmp_path, make_run):
    workdir, variables = make_run(width=64, bands=FOUR)
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


@pytest.mark.parametrize(
    ("name", "stride", "timms", "mmsegmentations"),
    [
        ("resnet18", 32, "in_chans=3)", "in_channels=3,\n    init_cfg"),
        ("resnet18", 16, "in_chans=3)", "in_channels=3,\n    init_cfg"),
        ("resnet50", 16, "in_chans=3, output_stride=16)", "strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), contract_dil"),
        ("resnet50", 8, "in_chans=3, output_stride=8)", "strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dil"),
    ],
)
def test_the_output_stride_on_the_cards_of_other_libraries(tmp_path, make_run, name, stride, timms, mmsegmentations):
    workdir, _ = make_run(name=name, width=64, stride=stride)
    run(workdir, tmp_path / "folder", format="timm")
    run(workdir, tmp_path / "e.pth", format="mmsegmentation")
    cards = [(tmp_path / path).read_text() for path in ("folder/README.md", "e.md")]
    for card, words in zip(cards, (timms, mmsegmentations), strict=True):
        assert words in card
        assert (f"The run computed features at output stride {stride}" in card) == (stride != 32)
        assert ("above computes them at 32" in card) == (name == "resnet18" and stride != 32)


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
def test_a_folder_of_other_things_is_left_as_it_is(tmp_path, make_run, found):
    workdir, _ = make_run(width=64)
    (tmp_path / "folder").mkdir()
    for name, text in found.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(
        ConfigError, match=r"^config\.output: the (folder|card) [^\n]*: give (a new one|another name)\.$"
    ):
        run(workdir, tmp_path / "folder", format="timm")
    assert {f"folder/{path.name}": path.read_text() for path in (tmp_path / "folder").iterdir()} == found


def test_a_run_is_never_replaced(tmp_path, make_run):
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
def test_notes_beside_the_weights_are_not_replaced_by_a_card(tmp_path, make_run, text):
    workdir, _ = make_run()
    (tmp_path / "notes.md").write_bytes(text)
    with pytest.raises(ConfigError, match=r"config\.output: the card would replace .*notes\.md, which is none: give"):
        run(workdir, tmp_path / "notes.safetensors")
    assert (tmp_path / "notes.md").read_bytes() == text
    assert not (tmp_path / "notes.safetensors").exists()


def test_a_fine_tuned_network_has_torchvisions_names(tmp_path, make_run):
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


def test_the_step_that_counts(tmp_path, make_run):
    workdir, variables = make_run("segment", steps=(2, 4))
    (workdir / "summary.json").write_text(json.dumps({"chosen_step": 2, "test": {"miou": 0.5}}))
    bias = variables["params"]["encoder"]["bn1"]["bias"]
    for step, factor in ((0, 0.5), (4, 1.0)):
        run(workdir, tmp_path / "e.safetensors", model_step=step, part="encoder")
        np.testing.assert_array_equal(
            safetensors.numpy.load_file(tmp_path / "e.safetensors")["bn1.bias"], factor * bias
        )
        assert ("are those of step 2, not of these weights" in (tmp_path / "e.md").read_text()) == (step == 4)


def test_the_phase_of_a_step(tmp_path, make_run):
    workdir, _ = make_run(steps=(2, 4))
    run(workdir, tmp_path / "e.safetensors", model_step=2)
    assert "instance discrimination (SimCLR, ID warm-up). Exported" in (tmp_path / "e.md").read_text()
    assert "after step 2 (phase warmup)" in (tmp_path / "e.md").read_text()
    run(workdir, tmp_path / "e.safetensors")
    assert "after step 4 (phase gs)" in (tmp_path / "e.md").read_text()


def test_the_card_says_what_there_is(tmp_path, make_run):
    workdir, _ = make_run("segment", bands=FOUR)
    run(workdir, tmp_path / "n.safetensors", licence="CC BY 4.0", data="Four towns | from the air.")
    card = (tmp_path / "n.md").read_text()
    for words in (
        "# ResNet-18 with a deeplabv3plus head",
        "| classes | grass, stone, water |",
        "| 3 red | 10 | 2000 | 0.2 | 0.1 |",
        "| 5 | 10 | 5000 | 0.5 | 0.2 |",
        "Four towns | from the air.",
        "image_folder potsdam, 16 tiles of 256 pixels.",
        "Licence of the data: CC BY 4.0.",
        "| begun from | first, step 7 |",
        "| augment | size 224; area 0.08, 1; hue 0.1 |",
        "| optimizer | name larc; momentum 0.9 |",
        "| finetune | steps 4 |",
        "| batch_size | 8 |",
        "| miou | 0.625 |",
        "| iou.grass | 0.5 |",
        "jax 0.10.1; exported by grass_jax",
        'load_file("n.safetensors")',
    ):
        assert words in card
    assert "secret" not in card
    assert "grain" not in card


def test_the_card_says_what_there_is_not(tmp_path, make_run):
    workdir, _ = make_run(summary=False)
    run(workdir, tmp_path / "e.safetensors")
    card = (tmp_path / "e.md").read_text()
    assert "Licence of the data: not stated" in card
    assert "## Metrics\n\nNone were recorded." in card


def test_the_card_has_the_numbers_of_the_weights_alone(tmp_path, make_run):
    workdir, _ = make_run("segment")
    areas = {"miou": 0.25, "area_miou": {"secret_town.tif": 0.125}}
    test = {"miou": 0.5, "mean_f1": 0.6, "overall_accuracy": 0.7, "kappa": 0.8, "iou": {"grass": 0.9}, "areas": areas}
    (workdir / "summary.json").write_text(json.dumps({"chosen_step": 4, "test": test}))
    run(workdir, tmp_path / "n.safetensors")
    card = (tmp_path / "n.md").read_text()
    for words in (
        "miou | 0.5",
        "mean_f1 | 0.6",
        "overall_accuracy | 0.7",
        "kappa | 0.8",
        "iou.grass | 0.9",
        "areas.miou",
    ):
        assert f"| {words}" in card
    assert "area_miou" not in card
    assert "secret_town" not in card


def test_the_card_has_no_numbers_of_the_machine(tmp_path, make_run):
    workdir, _ = make_run()
    ends = {"learning_rate": 0.1, "images_per_second": 9.5, "loss": 3.25, "embedding_std": 0.06}
    probe = {"after gs": {"probe_miou": 0.375}}
    (workdir / "summary.json").write_text(json.dumps({"steps": 4, "phases": {"gs": {"ends": ends}}, "probe": probe}))
    run(workdir, tmp_path / "e.safetensors")
    card = (tmp_path / "e.md").read_text()
    for words in ("| gs.loss | 3.25 |", "| gs.embedding_std | 0.06 |", "| probe.after gs.probe_miou | 0.375 |"):
        assert words in card
    assert "images_per_second" not in card
    assert "gs.learning_rate" not in card


def test_a_narrow_encoder_is_told(tmp_path, make_run, caplog):
    workdir, _ = make_run()
    with caplog.at_level(logging.INFO, "absl"):
        run(workdir, tmp_path / "e.safetensors")
    assert any("width 8" in record.getMessage() for record in caplog.records)
    assert "build only width 64 by name" in (tmp_path / "e.md").read_text()


def test_without_an_output_the_files_go_to_the_workdir(tmp_path, make_run):
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
def test_what_cannot_be_done_is_said(tmp_path, make_run, monkeypatch, task, changes, words):
    workdir, _ = make_run(task)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.rglob("*"))
    changes = {"output": "e.safetensors"} | changes
    with pytest.raises(ConfigError, match=words):
        run(workdir, **changes)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_older_export_stays_until_all_of_the_new_one_is_there(tmp_path, make_run, monkeypatch):
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


def blocks_of(card):
    return [part.split("```")[0] for part in card.read_text().split("```python\n")[1:]]


def run_blocks(card, monkeypatch, packages=("torchvision",)):
    """Runs the code of a card, in its folder, but for blocks of packages that are not installed."""
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.chdir(card.parent)
    spaces = []
    for block in blocks_of(card):
        space = {}
        exec(block, space)
        spaces.append(space)
    return spaces


@pytest.mark.parametrize("head", ["deeplabv3plus", "fcn", "linear"])
@pytest.mark.parametrize(
    ("name", "width", "stride", "bands"),
    [("resnet18", 64, 16, FOUR), ("resnet50", 64, 16, RGB), ("resnet18", 8, 8, RGB), ("resnet50", 8, 32, FOUR)],
)
def test_the_cards_network_gives_the_same_logits(tmp_path, make_run, monkeypatch, name, width, stride, bands, head):
    torch = pytest.importorskip("torch")
    settings = {"name": head, "channels": 24, "dropout": 0.1}
    workdir, variables = make_run("segment", name=name, width=width, stride=stride, bands=bands, head=settings)
    run(workdir, tmp_path / "n.safetensors")
    images = np.random.default_rng(2).integers(0, 255, (2, 96, 80, len(bands))).astype(bands.dtype)
    module = build_segmenter({"name": name, "width": width, "output_stride": stride}, settings, len(CLASSES))
    views = normalise(unit_range(jnp.asarray(images), bands), bands)
    expected = np.asarray(jax.jit(lambda x: module.apply(variables, x, train=False))(views))
    prepare, network = run_blocks(tmp_path / "n.md", monkeypatch)
    with torch.no_grad():
        logits = network["network"](prepare["prepare"](torch.from_numpy(np.moveaxis(images, -1, 1).astype(np.int32))))
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(np.moveaxis(logits.numpy(), 1, -1) / scale, expected / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "width", "stride", "bands"),
    [("resnet18", 64, 32, FOUR), ("resnet50", 64, 16, RGB), ("resnet18", 8, 8, RGB), ("resnet50", 8, 32, FOUR)],
)
def test_the_cards_encoders_give_the_same_features(tmp_path, make_run, monkeypatch, name, width, stride, bands):
    torch = pytest.importorskip("torch")
    workdir, variables = make_run(name=name, width=width, stride=stride, bands=bands)
    run(workdir, tmp_path / "e.safetensors")
    images = np.random.default_rng(2).normal(size=(2, 96, 80, len(bands))).astype(np.float32)
    views = torch.from_numpy(np.moveaxis(images, -1, 1).copy())

    def features(stride):
        module = build_encoder(name, width=width, output_stride=stride)
        stages = jax.jit(lambda x: module.apply(variables, x, train=False, stages=True))(images)
        return [np.moveaxis(stage, -1, 1) for stage in stages]

    def close(found, expected):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found.detach().numpy() / scale, expected / scale, rtol=0, atol=1e-4)

    spaces = run_blocks(tmp_path / "e.md", monkeypatch, ("torchvision", "segmentation_models_pytorch"))
    seen = 0
    for encoder in [space["encoder"].eval() for space in spaces if "encoder" in space]:
        found = encoder(views)
        if isinstance(found, list):
            for own, expected in zip(found, features(stride), strict=True):
                close(own, expected)
        else:
            close(found, features(32)[-1].mean((2, 3)))
        seen += 1
    assert seen == (width == 64) + (width != 64 or stride != 32)
    for network in [space["network"].encoder.eval() for space in spaces if "network" in space]:
        np.testing.assert_array_equal(network.conv1.weight.detach(), encoder_tensors(variables)["conv1.weight"])
    assert ("smp" in "".join(blocks_of(tmp_path / "e.md"))) == (width == 64)


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 32), ("resnet50", 16), ("resnet50", 8)])
def test_timm_loads_the_folder(tmp_path, make_run, monkeypatch, name, stride):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    workdir, variables = make_run(name=name, width=64, stride=stride, bands=FOUR)
    run(workdir, tmp_path / "folder", format="timm")
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(2).normal(size=(2, 64, 64, 4)).astype(np.float32)
    features = build_encoder(name, output_stride=stride).apply(variables, images, train=False)
    expected = np.asarray(features).mean((1, 2))
    space = {}
    exec(blocks_of(tmp_path / "folder" / "README.md")[-1], space)
    encoders = [space["encoder"]]
    if stride == 32:
        encoders += [timm.create_model("local-dir:folder", pretrained=True, num_classes=0)]
    scale = np.abs(expected).max()
    for encoder in encoders:
        with torch.no_grad():
            found = encoder.eval()(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-4)


def test_pytorch_loads_mmsegmentations_checkpoint(tmp_path, make_run):
    torch = pytest.importorskip("torch")
    workdir, variables = make_run()
    run(workdir, tmp_path / "e.pth", format="mmsegmentation")
    read = torch.load(tmp_path / "e.pth", weights_only=True)
    assert read["meta"]["encoder"] == "resnet18"
    for name, value in encoder_tensors(variables).items():
        np.testing.assert_array_equal(read["state_dict"][f"backbone.{name}"].numpy(), value)


def test_a_real_run_is_exported(tiny, tmp_path):
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
