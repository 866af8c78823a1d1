"""What is known of the published data sets, and their builders."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from grass_jax.data.budget import read_labels
from grass_jax.data.builders.published import BUILDERS, Potsdam
from grass_jax.data.labels import IGNORE
from grass_jax.data.published.facts import DATASETS, PUBLISHED, instructions
from grass_jax.data.source import positions_of
from grass_jax.data.tiles import tile_positions

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("fewer")


def test_facts_of_the_data_sets(made, fewer):
    facts = fewer["potsdam"]
    train, test = (facts.splits[part][""] for part in ("train", "test"))
    assert (len(train), len(test), len({*train, *test})) == (24, 14, 38)
    assert {"top_potsdam_2_12", "top_potsdam_6_7", "top_potsdam_7_12"} <= set(train)
    assert {"top_potsdam_2_13", "top_potsdam_4_15", "top_potsdam_7_13"} <= set(test)
    # The patches of the laboratory's earlier work, from sizes alone.
    assert len(tile_positions(6000, 6000, 256, 256)) == 576
    for part, count in ((train, 13_824), (test, 8_064)):
        assert len(positions_of([(name, 6000, 6000) for name in part], 256, 256)) == count
    areas = {
        part: {int(name.rpartition("area")[2]) for name in its[""]} for part, its in fewer["vaihingen"].splits.items()
    }
    assert areas["train"] == {1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37}
    assert areas["test"] == {2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38}
    assert fewer["loveda"].splits == {"train": {"urban": 1156, "rural": 1366}, "val": {"urban": 677, "rural": 992}}
    for name in ("potsdam", "vaihingen"):
        assert fewer[name].labels.classes == (
            "impervious surface",
            "building",
            "low vegetation",
            "tree",
            "car",
            "clutter",
        )
        assert fewer[name].labels.rgb().tolist() == [list(colour) for colour in made.COLOURS.values()]
    loveda = fewer["loveda"].labels
    assert loveda.classes == ("background", "building", "road", "water", "barren", "forest", "agriculture")
    assert loveda.known == {0: IGNORE} | {i + 1: i for i in range(7)}
    assert loveda.rgb().tolist() == [
        *([255, 255, 255], [255, 0, 0], [255, 255, 0], [0, 0, 255], [159, 129, 183], [0, 255, 0], [255, 195, 128])
    ]


def test_the_138_labelled_patches(fewer):
    lines = (ROOT / "configs" / "potsdam_138.txt").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 138
    train = fewer["potsdam"].splits["train"][""]

    class Grid:
        files = train
        positions = positions_of([(name, 6000, 6000) for name in train], 256, 256)

    chosen = read_labels(ROOT / "configs" / "potsdam_138.txt", Grid)
    assert len(set(chosen.tolist())) == 138
    names = ROOT.parent / "shared" / "data" / "potsdam_split" / "finetune_1pct_patches.txt"
    if names.exists():
        numbers = [re.fullmatch(r"(top_potsdam_\d+_\d+)_RGBIR__(\d+)\.tif", line) for line in names.read_text().split()]
        found = [(train[f], i % 576 + 1) for i in chosen.tolist() for f in (Grid.positions[i, 0],)]
        assert found == [(match[1], int(match[2])) for match in numbers]


@pytest.mark.parametrize("name", list(DATASETS))
def test_builders_by_the_way_of_tfds(made, folder, tmp_path, name, monkeypatch):
    for config in BUILDERS[name].BUILDER_CONFIGS:
        monkeypatch.setattr(config, "tile_size", 32)
        monkeypatch.setattr(config, "stride", 32)
    made.store(folder, getattr(made, name)())
    kinds = {"potsdam": ["rgb", "rgbir", "rgb_256"], "vaihingen": ["irrg"], "loveda": ["urban", "rural", "all"]}[name]
    assert [config.name for config in BUILDERS[name].BUILDER_CONFIGS] == kinds
    builder = tfds.builder(f"{name}/{kinds[0]}", data_dir=tmp_path / "tfds", file_format="array_record")
    assert isinstance(builder, BUILDERS[name])
    with pytest.raises(AssertionError, match=re.escape(DATASETS[name].images[0].archives["train"][0])):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "nowhere"))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    facts = DATASETS[name]
    assert set(builder.info.splits) == set(facts.splits)
    assert builder.info.metadata["class_names"] == list(facts.labels.classes)
    assert builder.info.metadata["palette"] == [f"#{r:02X}{g:02X}{b:02X}" for r, g, b in facts.labels.rgb().tolist()]
    assert facts.licence in (builder.info.metadata["licence"], builder.info.redistribution_info.license)
    again = tfds.builder(f"{name}/{kinds[0]}", data_dir=tmp_path / "tfds", file_format="array_record")
    split = list(facts.splits)[1]
    decoders = {part: tfds.decode.SkipDecoding() for part in ("image", "mask")}
    first = again.as_data_source(split=split, decoders=decoders)[0]
    truth = {
        "potsdam": made.potsdam_truth("test"),
        "vaihingen": made.vaihingen_truth("test"),
        "loveda": made.loveda_truth("Val/Urban"),
    }[name]
    pixels, mask = next(iter(truth.values()))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(first["image"]))), pixels[:32, :32])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(first["mask"]))), mask[:32, :32])


def test_tiles_of_the_named_configurations():
    configs = {name: {c.name: c for c in builder.BUILDER_CONFIGS} for name, builder in BUILDERS.items()}
    patches = configs["potsdam"]["rgb_256"]
    assert (patches.tile_size, patches.stride, patches.numbers, patches.masks) == (256, 256, (), "full")
    assert configs["potsdam"]["rgbir"].numbers == (1, 2, 3, 4)
    assert {region: config.region for region, config in configs["loveda"].items()} == {
        region: region for region in ("urban", "rural", "all")
    }
    assert instructions("potsdam", "that directory") == Potsdam.MANUAL_DOWNLOAD_INSTRUCTIONS


def test_names_in_configurations():
    assert PUBLISHED == ("potsdam", "vaihingen", "loveda/urban", "loveda/rural", "loveda/all")
    assert {name.partition("/")[0] for name in PUBLISHED} == set(DATASETS) == set(BUILDERS)


def test_archives_of_vaihingen(fewer):
    base = "ISPRS_semantic_labeling_Vaihingen"
    assert fewer["vaihingen"].masks["eroded"].archives == {
        "train": (f"{base}_ground_truth_eroded_COMPLETE.zip", f"{base}_ground_truth_eroded_for_participants.zip"),
        "test": (f"{base}_ground_truth_eroded_COMPLETE.zip",),
    }
    assert fewer["vaihingen"].masks["full"].archives == {
        "train": (f"{base}_ground_truth_COMPLETE.zip", f"{base}.zip"),
        "test": (f"{base}_ground_truth_COMPLETE.zip",),
    }
