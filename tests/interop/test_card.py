"""The model card beside an export: what it says and what it leaves out."""

import json
import logging

import pytest


@pytest.mark.parametrize(
    ("name", "stride", "timms", "mmsegmentations"),
    [
        ("resnet18", 32, "in_chans=3)", "in_channels=3,\n    init_cfg"),
        ("resnet18", 16, "in_chans=3)", "in_channels=3,\n    init_cfg"),
        ("resnet50", 16, "in_chans=3, output_stride=16)", "strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), contract_dil"),
        ("resnet50", 8, "in_chans=3, output_stride=8)", "strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dil"),
    ],
)
def test_the_output_stride_on_the_cards_of_other_libraries(
    tmp_path, make_run, name, stride, timms, mmsegmentations, run
):
    workdir, _ = make_run(name=name, width=64, stride=stride)
    run(workdir, tmp_path / "folder", format="timm")
    run(workdir, tmp_path / "e.pth", format="mmsegmentation")
    cards = [(tmp_path / path).read_text() for path in ("folder/README.md", "e.md")]
    for card, words in zip(cards, (timms, mmsegmentations), strict=True):
        assert words in card
        assert (f"The run computed features at output stride {stride}" in card) == (stride != 32)
        assert ("above computes them at 32" in card) == (name == "resnet18" and stride != 32)


def test_the_card_says_what_there_is(tmp_path, make_run, run, four):
    workdir, _ = make_run("segment", bands=four)
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


def test_the_card_says_what_there_is_not(tmp_path, make_run, run):
    workdir, _ = make_run(summary=False)
    run(workdir, tmp_path / "e.safetensors")
    card = (tmp_path / "e.md").read_text()
    assert "Licence of the data: not stated" in card
    assert "## Metrics\n\nNone were recorded." in card


def test_the_card_has_the_numbers_of_the_weights_alone(tmp_path, make_run, run):
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


def test_the_card_has_no_numbers_of_the_machine(tmp_path, make_run, run):
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


def test_a_narrow_encoder_is_told(tmp_path, make_run, caplog, run):
    workdir, _ = make_run()
    with caplog.at_level(logging.INFO, "absl"):
        run(workdir, tmp_path / "e.safetensors")
    assert any("width 8" in record.getMessage() for record in caplog.records)
    assert "build only width 64 by name" in (tmp_path / "e.md").read_text()
