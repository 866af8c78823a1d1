"""The published data sets with labels, and the jobs that take them."""

import json
import logging
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from grass_jax import pretrain
from grass_jax.config import ConfigError
from grass_jax.data.labels import IGNORE
from grass_jax.data.published import facts
from grass_jax.data.published.facts import DATASETS
from grass_jax.data.splits import Split
from grass_jax.segment import finetune

REAL = Path(__file__).parents[4] / "shared" / "data" / "benchmark_tiles"
pytestmark = pytest.mark.usefixtures("fewer")


@pytest.mark.parametrize("form", ["zips", "unpacked", "nested", "nested and compressed"])
def test_potsdam_from_archives_of_any_form(made, folder, labelled, tiles, tmp_path, form, caplog):
    made.store(folder, made.potsdam(bands=("RGB",)), form)
    result = labelled()
    made.check_tiles(result.train, made.potsdam_truth("train"))
    made.check_scenes(result.test, made.potsdam_truth("test"))
    assert result.validation == ()
    assert result.classes == DATASETS["potsdam"].labels.classes
    assert result.train.class_names == result.classes
    assert result.train_groups == tuple(result.train.files[file] for file in result.train.positions[:, 0])
    assert (result.bands.numbers, result.bands.rgb, result.bands.dtype) == ((1, 2, 3), (1, 2, 3), "uint8")
    pixels = np.concatenate([pixels.reshape(-1, 3) for pixels, _ in made.potsdam_truth("train").values()])
    np.testing.assert_allclose(result.bands.mean, pixels.mean(0) / 255, atol=0.02)
    made.check_tiles(tiles(masks="full", split="test"), made.potsdam_truth("test"))
    with caplog.at_level(logging.INFO):
        labelled()
    assert "Preparing" not in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("unpacked-")]


def test_each_split_has_a_digest_of_its_own_pixels(made, folder, tiles):
    made.store(folder, made.potsdam(bands=("RGB",)))
    digests = [
        tiles(masks=masks, split=split).digests()["pixels_digest"]
        for masks in ("full", "none")
        for split in ("train", "test")
    ]
    assert len(set(digests)) == 4


def test_eroded_masks_and_validation(made, folder, labelled):
    made.store(folder, made.potsdam(bands=("RGB",)))
    result = labelled(masks="eroded", split=Split(by="file", validation="_4_12$"))
    expected = {part: made.potsdam_truth(part) for part in ("train", "test")}
    for its in expected.values():
        for _, truth in its.values():
            truth[:8] = IGNORE
    validation = {"top_potsdam_4_12": expected["train"].pop("top_potsdam_4_12")}
    made.check_scenes(result.validation, validation)
    made.check_scenes(result.test, expected["test"])
    train = result.train
    assert train.files == ("top_potsdam_2_10", "top_potsdam_4_12", "top_potsdam_6_7")
    assert set(train.positions[:, 0].tolist()) == {0, 2}
    np.testing.assert_array_equal(train[0]["mask"], expected["train"]["top_potsdam_2_10"][1][:32, :32])
    assert labelled(split=Split(validation=0.4)).train_groups != train.files
    with pytest.raises(ValueError, match="published test part"):
        labelled(split=Split(test="2_10"))
    with pytest.raises(ValueError, match="published test part"):
        labelled(split=Split(by="block", validation=0.2))


@pytest.mark.parametrize(
    ("there", "numbers", "channels"),
    [
        (("RGB", "RGBIR"), (), (0, 1, 2)),
        (("RGBIR",), (), (0, 1, 2)),
        (("RGB", "RGBIR"), (1, 2, 3, 4), (0, 1, 2, 3)),
        (("RGBIR",), (4, 1), (3, 0)),
        (("RGB",), (3, 1), (2, 0)),
    ],
)
def test_bands_of_potsdam(made, folder, labelled, there, numbers, channels):
    made.store(folder, made.potsdam(bands=there))
    result = labelled(numbers=numbers)
    made.check_tiles(result.train, made.potsdam_truth("train", channels))
    made.check_scenes(result.test, made.potsdam_truth("test", channels))
    assert result.bands.numbers == tuple(channel + 1 for channel in channels)
    assert result.bands.rgb == ((1, 2, 3) if {0, 1, 2} <= set(channels) else ())


def test_rgb_comes_from_its_own_archive_where_both_are_there(made, folder, labelled):
    found = made.potsdam()
    found["4_Ortho_RGBIR.zip"] = dict.fromkeys(found["4_Ortho_RGBIR.zip"], b"not opened")
    made.store(folder, found)
    made.check_tiles(labelled().train, made.potsdam_truth("train"))


def test_what_an_image_calls_nodata_does_not_count(made, folder, labelled, tmp_path):
    found = made.potsdam(bands=("RGB",))
    pixels, truth = made.potsdam_truth("train")["top_potsdam_6_7"]
    pixels = np.maximum(pixels, 1)
    pixels[40:50, 10:20] = 0
    shape = {
        "count": 3,
        "height": made.SIZE[0],
        "width": made.SIZE[1],
        "transform": rasterio.Affine(0.05, 0, 9, 0, -0.05, 9),
    }
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", dtype="uint8", nodata=0, **shape) as raster:
        raster.write(pixels.transpose(2, 0, 1))
    found["2_Ortho_RGB.zip"]["2_Ortho_RGB/top_potsdam_6_7_RGB.tif"] = (tmp_path / "a.tif").read_bytes()
    made.store(folder, found)
    truth[40:50, 10:20] = IGNORE
    made.check_tiles(labelled().train, made.potsdam_truth("train") | {"top_potsdam_6_7": (pixels, truth)})


def test_labels_off_their_colours(made, folder, labelled, caplog):
    """4_12 was compressed with loss, 6_7 has another yellow for cars, and magenta is none of the classes."""
    found = made.potsdam(bands=("RGB",))
    truth = {name: truth for name, (_, truth) in made.potsdam_truth("train").items()}
    off = made.coloured(truth["top_potsdam_4_12"]).astype(int)
    off += np.random.default_rng(9).integers(-100, 101, off.shape)
    off = np.clip(off, 0, 255).astype(np.uint8)
    assert len(np.unique(off.reshape(-1, 3), axis=0)) > 1000
    off[20:22, 30:33] = (200, 20, 130)
    truth["top_potsdam_4_12"][20:22, 30:33] = IGNORE
    found["5_Labels_all.zip"]["top_potsdam_4_12_label.tif"] = made.tif(off)
    cars = made.coloured(truth["top_potsdam_6_7"])
    cars[truth["top_potsdam_6_7"] == 4] = (252, 255, 0)
    assert (cars == (252, 255, 0)).all(-1).any()
    found["5_Labels_all.zip"]["top_potsdam_6_7_label.tif"] = made.tif(cars)
    made.store(folder, found)
    with caplog.at_level(logging.WARNING):
        source = labelled().train
    made.check_tiles(source, {name: (pixels, truth[name]) for name, (pixels, _) in made.potsdam_truth("train").items()})
    warned = [record.getMessage() for record in caplog.records if "magenta" in record.getMessage()]
    assert len(warned) == 1
    assert "top_potsdam_4_12_label.tif: 6 pixels are magenta" in warned[0]


def test_labels_of_the_participants_alone(made, folder, labelled, tiles, caplog):
    made.store(folder, made.potsdam(bands=("RGB",), labels=("for_participants",)))
    with caplog.at_level(logging.INFO):
        result = labelled()
    made.check_tiles(result.train, made.potsdam_truth("train"))
    assert result.test == ()
    assert "No masks of the part test of potsdam in" in caplog.text
    assert "5_Labels_all.zip" in caplog.text
    with pytest.raises(ValueError, match="no split 'test': use train"):
        tiles(masks="full", split="test")
    # Images alone need no labels at all.
    for part in ("train", "test"):
        made.check_tiles(
            tiles(split=part), {name: (pixels, None) for name, (pixels, _) in made.potsdam_truth(part).items()}
        )
    made.store(folder, made.potsdam(bands=(), labels=("all",)))
    made.check_scenes(labelled().test, made.potsdam_truth("test"))


def test_pretraining_needs_images_of_the_training_part_alone(made, folder, tiles):
    made.store(folder, made.potsdam(bands=("RGB",), labels=(), tiles=made.TILES["train"]))
    source = tiles()
    made.check_tiles(source, {name: (pixels, None) for name, (pixels, _) in made.potsdam_truth("train").items()})
    assert source.class_names == ()
    assert pickle.loads(pickle.dumps(source))[0].keys() == {"image"}


def test_another_state_of_the_archives_is_another_data_set(made, folder, labelled, caplog):
    made.store(folder, made.potsdam(bands=("RGB",)))
    before = labelled().train
    found = made.potsdam(bands=("RGB",))
    truth = made.ids(77)
    found["5_Labels_all.zip"]["top_potsdam_2_10_label.tif"] = made.tif(made.coloured(truth))
    made.store(folder, found)
    with caplog.at_level(logging.INFO):
        after = labelled().train
        assert caplog.text.count("has changed since; earlier tiles may be deleted") == 1
        caplog.clear()
        labelled(masks="eroded")
        assert "has changed since" not in caplog.text, "other masks are no earlier state of these"
    assert after.name != before.name
    np.testing.assert_array_equal(after[0]["mask"], truth[:32, :32])
    np.testing.assert_array_equal(before[0]["mask"], made.ids(0)[:32, :32])
    assert (
        len({labelled(**way).train.name for way in ({}, {"masks": "eroded"}, {"numbers": (2,)}, {"stride": 16})}) == 4
    )


@pytest.mark.parametrize("form", ["zips", "nested", "unpacked", "unpacked into one"])
def test_vaihingen_whose_images_and_masks_have_the_same_names(made, folder, labelled, form):
    found = made.vaihingen()
    if form == "unpacked into one":
        for members in found.values():
            for name, content in members.items():
                made.write(folder / name, content)
    elif form == "nested":
        made.write(
            folder / "Vaihingen.zip", made.zipped({name: made.zipped(members) for name, members in found.items()}, 0)
        )
    else:
        made.store(folder, found, form)
    for masks, boundary in (("full", 0), ("eroded", 8)):
        result = labelled("vaihingen", masks=masks)
        made.check_tiles(result.train, made.vaihingen_truth("train", boundary))
        made.check_scenes(result.test, made.vaihingen_truth("test", boundary))
        assert (result.bands.numbers, result.bands.rgb) == ((1, 2, 3), ())


@pytest.mark.parametrize("above", ["Vaihingen_top_and_gts", "ground_truth", "gts/x"])
def test_images_of_vaihingen_are_no_masks_whatever_lies_above_them(made, folder, labelled, above):
    for archive, members in made.vaihingen().items():
        for name, content in members.items():
            place = (
                "z_full" if "COMPLETE" in archive else above
            )  # sorted after the images, and without masks by its name
            made.write(folder / place / ("gts" if "COMPLETE" in archive else "") / name, content)
    for masks, boundary in (("full", 0), ("eroded", 8)):
        result = labelled("vaihingen", masks=masks)
        made.check_tiles(result.train, made.vaihingen_truth("train", boundary))
        made.check_scenes(result.test, made.vaihingen_truth("test", boundary))


def test_eroded_masks_of_vaihingen_for_participants(made, folder, labelled):
    found = made.vaihingen()
    base = "ISPRS_semantic_labeling_Vaihingen"
    eroded = found[f"{base}_ground_truth_eroded_COMPLETE.zip"]
    areas = tuple(f"area{area}_noBoundary.tif" for area in made.AREAS["train"])
    made.store(folder, {f"{base}.zip": found[f"{base}.zip"]})
    for name in (name for name in eroded if name.endswith(areas)):
        made.write(
            folder / "ISPRS_semantic_labeing_Vaihingen_ground_truth_eroded_for_participants" / name, eroded[name]
        )
    result = labelled("vaihingen", masks="eroded")
    made.check_tiles(result.train, made.vaihingen_truth("train", 8))
    assert result.test == ()


def test_vaihingen_with_the_masks_of_the_participants(made, folder, labelled):
    found = made.vaihingen()
    base = "ISPRS_semantic_labeling_Vaihingen"
    made.store(folder, {f"{base}.zip": found[f"{base}.zip"]})
    result = labelled("vaihingen")
    made.check_tiles(result.train, made.vaihingen_truth("train"))
    assert result.test == ()


@pytest.mark.parametrize("form", ["zips", "unpacked"])
@pytest.mark.parametrize("region", ["urban", "rural", "all", ""])
def test_regions_of_loveda(made, folder, labelled, tiles, form, region):
    made.store(folder, made.loveda(), form)
    result = labelled("loveda", region=region)
    regions = [region.title()] if region in ("urban", "rural") else ["Urban", "Rural"]
    made.check_tiles(result.train, made.loveda_truth(*(f"Train/{each}" for each in regions)))
    made.check_scenes(result.test, made.loveda_truth(*(f"Val/{each}" for each in regions)))
    val = made.loveda_truth(*(f"Val/{each}" for each in regions))
    made.check_tiles(tiles("loveda", region=region, masks="full", split="val"), val)
    assert result.classes == DATASETS["loveda"].labels.classes


@pytest.mark.parametrize("empty", [0, 2522])
def test_tiles_without_a_label_are_left_out_of_their_split_alone(made, folder, tiles, empty):
    made.store(folder, made.loveda(empty=empty))
    for part, rural in (("train", (0, 9, 10)), ("val", (2522, 2523))):
        source = tiles("loveda", masks="full", split=part, region="rural")
        places = [(f"{part.title()}/Rural/{n}", y, x) for n in rural for y, x in made.corners((64, 80))]
        kept = [place for place in places if place != (f"{part.title()}/Rural/{empty}", 0, 0)]
        assert [(source.files[f], y, x) for f, y, x in source.positions.tolist()] == kept
        for i, (name, y, x) in enumerate(kept):
            number = int(name.rpartition("/")[2])
            np.testing.assert_array_equal(source[i]["image"], made.image(number)[y : y + 32, x : x + 32])


@pytest.mark.skipif(not REAL.is_dir(), reason="the published tiles are not here")
def test_published_tiles_in_archives_as_published(made, folder, labelled, monkeypatch):
    """Real tiles under the names of whole ones; the two of Potsdam are parts of 2_10 and 2_13."""
    splits = {"train": {"": ("top_potsdam_2_10",)}, "test": {"": ("top_potsdam_2_13",)}}
    monkeypatch.setitem(facts.DATASETS, "potsdam", DATASETS["potsdam"]._replace(splits=splits))
    rural = {"train": {"rural": 2}, "val": {"rural": 1}}
    monkeypatch.setitem(facts.DATASETS, "loveda", DATASETS["loveda"]._replace(splits=rural))
    found = {"4_Ortho_RGBIR.zip": {}, "5_Labels_all.zip": {}, "Train.zip": {}, "Val.zip": {}}
    for tile, number in (("2_10", 36), ("2_13", 26)):
        name = f"top_potsdam_{tile}"
        for kind, archive, ending in (("images", "4_Ortho_RGBIR.zip", "RGBIR"), ("masks", "5_Labels_all.zip", "label")):
            content = (REAL / kind / f"{name}_RGBIR__{number}.tif").read_bytes()
            found[archive][f"{name}_{ending}.tif"] = content
    for part, i in (("Train", 0), ("Train", 1), ("Val", 2)):
        for kind in ("images", "masks"):
            content = (REAL / kind / f"loveda_train_rural_{i}.png").read_bytes()
            found[f"{part}.zip"][f"{part}/Rural/{kind}_png/{i}.png"] = content
    made.store(folder, found)
    result = labelled(numbers=(1, 2, 3, 4), tile_size=256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        raster = rasterio.open(REAL / "images" / "top_potsdam_2_10_RGBIR__36.tif")
    with raster:
        np.testing.assert_array_equal(result.train[0]["image"], raster.read().transpose(1, 2, 0))
    pixels = np.asarray(Image.open(REAL / "masks" / "top_potsdam_2_10_RGBIR__36.tif"))
    expected = np.full(pixels.shape[:2], IGNORE)
    for class_id, colour in made.COLOURS.items():
        expected[(pixels == colour).all(-1)] = class_id
    np.testing.assert_array_equal(result.train[0]["mask"], expected)
    assert [scene.name for scene in result.test] == ["top_potsdam_2_13"]
    rural = labelled("loveda", tile_size=1024)
    mask = np.asarray(Image.open(REAL / "masks" / "loveda_train_rural_0.png")).astype(int)
    np.testing.assert_array_equal(rural.train[0]["mask"], np.where(mask == 0, IGNORE, mask - 1))
    np.testing.assert_array_equal(rural.train[0]["image"], Image.open(REAL / "images" / "loveda_train_rural_0.png"))
    with rural.test[0].open() as scene:
        assert (scene.height, scene.width) == (1024, 1024)


def test_the_jobs_take_the_archives(made, folder, tiny, tiny_segment, tmp_path, caplog):
    """Four bands of Potsdam through the commands of pretraining and fine-tuning, and the test tiles scored."""
    made.store(folder, made.potsdam(bands=("RGBIR",)))
    data = {"data.name": "potsdam", "data.path": str(folder), "data.data_dir": str(tmp_path / "tfds")}
    data |= {"data.tile_size": 32, "data.stride": 16, "bands.numbers": (1, 2, 3, 4)}
    pretrain.run(tiny(**data, **{"warmup.epochs": 1, "gs.epochs": 1}), tmp_path / "pretrained")
    changes = {"init": str(tmp_path / "pretrained"), "data.masks": "eroded", "finetune.steps": 2, "data.group": ""}
    changes |= {"data.classes": (), "data.test": "", "augment.size": 32, "evaluate.without": ("clutter",)}
    summary = finetune.run(tiny_segment(**data | changes), tmp_path / "finetuned")
    assert summary["test"]["scenes"] == len(made.TILES["test"])
    assert list(summary["test"]["iou"]) == list(DATASETS["potsdam"].labels.classes)
    resolved = json.loads((tmp_path / "finetuned" / "config.json").read_text())
    assert resolved["config"]["bands"]["numbers"] == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="classes of potsdam are its own"):
        finetune.run(tiny_segment(**data, **{"data.masks": "full"}), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"get Train\.zip"):
        pretrain.run(tiny(**data | {"data.name": "loveda/urban", "bands.numbers": ()}), tmp_path / "other")
