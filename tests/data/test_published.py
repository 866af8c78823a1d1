"""Archives that these tests write, in the layout and the colours in which the owners publish theirs."""

import errno
import io
import json
import logging
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tensorflow_datasets as tfds
from PIL import Image

from grass_jax import pretrain
from grass_jax.config import ConfigError
from grass_jax.data import archives, published
from grass_jax.data.budget import read_labels
from grass_jax.data.builders.published import BUILDERS, Potsdam
from grass_jax.data.labels import IGNORE
from grass_jax.data.published import DATASETS, instructions
from grass_jax.data.published_scenes import open_published
from grass_jax.data.published_sets import published_labelled, published_tiles
from grass_jax.data.source import positions_of
from grass_jax.data.splits import Split
from grass_jax.data.tiles import tile_positions
from grass_jax.segment import finetune

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "benchmark_tiles"
COLOURS = {0: (255, 255, 255), 1: (0, 0, 255), 2: (0, 255, 255), 3: (0, 255, 0), 4: (255, 255, 0), 5: (255, 0, 0)}
TILES = {"train": ("2_10", "4_12", "6_7"), "test": ("2_13", "7_13")}
AREAS = {"train": ("1", "11"), "test": ("2", "20")}
SIZE = (64, 80)


def image(seed, bands=3, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, bands), np.uint8)


def ids(seed, size=SIZE):
    """Classes in runs, and a frame that does not count."""
    truth = np.random.default_rng(seed).integers(0, 6, (size[0] // 8, size[1] // 8)).repeat(8, 0).repeat(8, 1)
    truth[:2] = IGNORE
    return truth.astype(np.uint8)


def coloured(truth):
    pixels = np.zeros((*truth.shape, 3), np.uint8)
    for class_id, colour in COLOURS.items():
        pixels[truth == class_id] = colour
    return pixels


def tif(pixels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.MemoryFile() as file:
            shape = {"count": pixels.shape[2], "height": pixels.shape[0], "width": pixels.shape[1]}
            with file.open(driver="GTiff", dtype="uint8", photometric="RGB", **shape) as raster:
                raster.write(pixels.transpose(2, 0, 1))
            return file.read()


def png(pixels):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "png")
    return target.getvalue()


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def potsdam(*, bands=("RGB", "RGBIR"), labels=("all",), tiles=(*TILES["train"], *TILES["test"])):
    """The archives of Potsdam: by name their members."""
    seeds = {tile: i for i, tile in enumerate((*TILES["train"], *TILES["test"]))}
    found = {}
    for kind, archive, count in (("RGB", "2_Ortho_RGB", 3), ("RGBIR", "4_Ortho_RGBIR", 4)):
        if kind in bands:
            found[f"{archive}.zip"] = {
                f"{archive}/top_potsdam_{tile}_{kind}.tif": tif(image(seeds[tile], 4)[..., :count]) for tile in tiles
            }
    for kind in labels:
        given = [tile for tile in tiles if kind != "for_participants" or tile in TILES["train"]]
        for ending, boundary in (("", 0), ("_noBoundary", 8)):
            name = f"5_Labels_{kind}{ending}" if kind == "all" or not ending else f"5_Labels_{kind}_no_Boundary"
            found[f"{name}.zip"] = {}
            for tile in given:
                truth = ids(seeds[tile])
                truth[:boundary] = IGNORE
                found[f"{name}.zip"][f"top_potsdam_{tile}_label{ending}.tif"] = tif(coloured(truth))
    return found


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def store(folder, found, form="zips"):
    if form in ("zips", "unpacked"):
        for archive, members in found.items():
            if form == "zips":
                write(folder / archive, zipped(members))
                continue
            for name, content in members.items():
                write(folder / archive.removesuffix(".zip") / name, content)
    else:
        way = zipfile.ZIP_STORED if form == "nested" else zipfile.ZIP_DEFLATED
        inside = {f"Potsdam/{archive}": zipped(members) for archive, members in found.items()}
        write(folder / "Potsdam (1).zip", zipped(inside | {"Potsdam/1_DSM.zip": b"not looked at"}, way))


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    """Data sets with fewer scenes; everything else is as it is, the check that all are there too."""
    scenes = {
        "potsdam": {part: {"": tuple(f"top_potsdam_{tile}" for tile in tiles)} for part, tiles in TILES.items()},
        "vaihingen": {part: {"": tuple(f"top_mosaic_09cm_area{a}" for a in areas)} for part, areas in AREAS.items()},
        "loveda": {"train": {"urban": 2, "rural": 3}, "val": {"urban": 1, "rural": 2}},
    }
    whole = dict(DATASETS)
    for name, splits in scenes.items():
        monkeypatch.setitem(published.DATASETS, name, DATASETS[name]._replace(splits=splits))
    return whole


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "Bilder für Ägypten"


@pytest.fixture
def labelled(folder, tmp_path):
    def opened(name="potsdam", **options):
        return published_labelled(name, folder, **{"tile_size": 32, "data_dir": tmp_path / "tfds"} | options)

    return opened


@pytest.fixture
def tiles(folder, tmp_path):
    def opened(name="potsdam", **options):
        return published_tiles(name, folder, **{"tile_size": 32, "data_dir": tmp_path / "tfds"} | options)

    return opened


def check_tiles(source, expected):
    """Compare all tiles with plain slices of images and masks by name of scene."""
    places = [(name, y, x) for name, (whole, _) in expected.items() for y, x in corners(whole.shape[:2])]
    assert [(source.files[f], y, x) for f, y, x in source.positions.tolist()] == places
    for i, (name, y, x) in enumerate(places):
        tile = source[i]
        np.testing.assert_array_equal(tile["image"], expected[name][0][y : y + 32, x : x + 32])
        if expected[name][1] is None:
            assert "mask" not in tile
        else:
            np.testing.assert_array_equal(tile["mask"], expected[name][1][y : y + 32, x : x + 32])


def corners(size):
    return [(y, x) for y in sorted({*range(0, size[0] - 31, 32), size[0] - 32}) for x in (0, 32, size[1] - 32)]


def potsdam_truth(part, channels=(0, 1, 2)):
    seeds = {tile: i for i, tile in enumerate((*TILES["train"], *TILES["test"]))}
    return {f"top_potsdam_{t}": (image(seeds[t], 4)[..., list(channels)], ids(seeds[t])) for t in TILES[part]}


def check_scenes(scenes, expected):
    assert [scene.name for scene in scenes] == list(expected)
    assert [scene.group for scene in scenes] == list(expected)
    for scene in scenes:
        with pickle.loads(pickle.dumps(scene.open))() as opened:
            pixels, truth = expected[scene.name]
            assert (opened.height, opened.width) == truth.shape
            np.testing.assert_array_equal(opened.rows(0, opened.height), pixels)
            np.testing.assert_array_equal(opened.mask(0, opened.height), truth)
            np.testing.assert_array_equal(opened.mask(5, 9), truth[5:9])


def test_facts_of_the_data_sets(fewer):
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
        assert fewer[name].labels.rgb().tolist() == [list(colour) for colour in COLOURS.values()]
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


@pytest.mark.parametrize("form", ["zips", "unpacked", "nested", "nested and compressed"])
def test_potsdam_from_archives_of_any_form(folder, labelled, tiles, tmp_path, form, caplog):
    store(folder, potsdam(bands=("RGB",)), form)
    result = labelled()
    check_tiles(result.train, potsdam_truth("train"))
    check_scenes(result.test, potsdam_truth("test"))
    assert result.validation == ()
    assert result.classes == DATASETS["potsdam"].labels.classes
    assert result.train.class_names == result.classes
    assert result.train_groups == tuple(result.train.files[file] for file in result.train.positions[:, 0])
    assert (result.bands.numbers, result.bands.rgb, result.bands.dtype) == ((1, 2, 3), (1, 2, 3), "uint8")
    pixels = np.concatenate([pixels.reshape(-1, 3) for pixels, _ in potsdam_truth("train").values()])
    np.testing.assert_allclose(result.bands.mean, pixels.mean(0) / 255, atol=0.02)
    check_tiles(tiles(masks="full", split="test"), potsdam_truth("test"))
    with caplog.at_level(logging.INFO):
        labelled()
    assert "Preparing" not in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("unpacked-")]


def test_eroded_masks_and_validation(folder, labelled):
    store(folder, potsdam(bands=("RGB",)))
    result = labelled(masks="eroded", split=Split(by="file", validation="_4_12$"))
    expected = {part: potsdam_truth(part) for part in ("train", "test")}
    for its in expected.values():
        for _, truth in its.values():
            truth[:8] = IGNORE
    validation = {"top_potsdam_4_12": expected["train"].pop("top_potsdam_4_12")}
    check_scenes(result.validation, validation)
    check_scenes(result.test, expected["test"])
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
def test_bands_of_potsdam(folder, labelled, there, numbers, channels):
    store(folder, potsdam(bands=there))
    result = labelled(numbers=numbers)
    check_tiles(result.train, potsdam_truth("train", channels))
    check_scenes(result.test, potsdam_truth("test", channels))
    assert result.bands.numbers == tuple(channel + 1 for channel in channels)
    assert result.bands.rgb == ((1, 2, 3) if {0, 1, 2} <= set(channels) else ())


def test_rgb_comes_from_its_own_archive_where_both_are_there(folder, labelled):
    found = potsdam()
    found["4_Ortho_RGBIR.zip"] = dict.fromkeys(found["4_Ortho_RGBIR.zip"], b"not opened")
    store(folder, found)
    check_tiles(labelled().train, potsdam_truth("train"))


def test_what_an_image_calls_nodata_does_not_count(folder, labelled, tmp_path):
    found = potsdam(bands=("RGB",))
    pixels, truth = potsdam_truth("train")["top_potsdam_6_7"]
    pixels = np.maximum(pixels, 1)
    pixels[40:50, 10:20] = 0
    shape = {"count": 3, "height": SIZE[0], "width": SIZE[1], "transform": rasterio.Affine(0.05, 0, 9, 0, -0.05, 9)}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", dtype="uint8", nodata=0, **shape) as raster:
        raster.write(pixels.transpose(2, 0, 1))
    found["2_Ortho_RGB.zip"]["2_Ortho_RGB/top_potsdam_6_7_RGB.tif"] = (tmp_path / "a.tif").read_bytes()
    store(folder, found)
    truth[40:50, 10:20] = IGNORE
    check_tiles(labelled().train, potsdam_truth("train") | {"top_potsdam_6_7": (pixels, truth)})


def test_near_infrared_of_an_archive_that_is_not_there(folder, labelled):
    store(folder, potsdam(bands=("RGB",)))
    with pytest.raises(FileNotFoundError, match=r"its images are not in .*4_Ortho_RGBIR\.zip"):
        labelled(numbers=(1, 2, 3, 4))
    for numbers in ((5,), (0,), (1, 1)):
        with pytest.raises(ValueError, match="potsdam has the bands 1 to 4"):
            labelled(numbers=numbers)


def test_labels_off_their_colours(folder, labelled, caplog):
    """4_12 was compressed with loss, 6_7 has another yellow for cars, and magenta is none of the classes."""
    found = potsdam(bands=("RGB",))
    truth = {name: truth for name, (_, truth) in potsdam_truth("train").items()}
    off = coloured(truth["top_potsdam_4_12"]).astype(int)
    off += np.random.default_rng(9).integers(-100, 101, off.shape)
    off = np.clip(off, 0, 255).astype(np.uint8)
    assert len(np.unique(off.reshape(-1, 3), axis=0)) > 1000
    off[20:22, 30:33] = (200, 20, 130)
    truth["top_potsdam_4_12"][20:22, 30:33] = IGNORE
    found["5_Labels_all.zip"]["top_potsdam_4_12_label.tif"] = tif(off)
    cars = coloured(truth["top_potsdam_6_7"])
    cars[truth["top_potsdam_6_7"] == 4] = (252, 255, 0)
    assert (cars == (252, 255, 0)).all(-1).any()
    found["5_Labels_all.zip"]["top_potsdam_6_7_label.tif"] = tif(cars)
    store(folder, found)
    with caplog.at_level(logging.WARNING):
        source = labelled().train
    check_tiles(source, {name: (pixels, truth[name]) for name, (pixels, _) in potsdam_truth("train").items()})
    warned = [record.getMessage() for record in caplog.records if "magenta" in record.getMessage()]
    assert len(warned) == 1
    assert "top_potsdam_4_12_label.tif: 6 pixels are magenta" in warned[0]


def test_labels_of_the_participants_alone(folder, labelled, tiles, caplog):
    store(folder, potsdam(bands=("RGB",), labels=("for_participants",)))
    with caplog.at_level(logging.INFO):
        result = labelled()
    check_tiles(result.train, potsdam_truth("train"))
    assert result.test == ()
    assert "No masks of the part test of potsdam in" in caplog.text
    assert "5_Labels_all.zip" in caplog.text
    with pytest.raises(ValueError, match="no split 'test': use train"):
        tiles(masks="full", split="test")
    # Images alone need no labels at all.
    for part in ("train", "test"):
        check_tiles(tiles(split=part), {name: (pixels, None) for name, (pixels, _) in potsdam_truth(part).items()})
    store(folder, potsdam(bands=(), labels=("all",)))
    check_scenes(labelled().test, potsdam_truth("test"))


def test_pretraining_needs_images_of_the_training_part_alone(folder, tiles):
    store(folder, potsdam(bands=("RGB",), labels=(), tiles=TILES["train"]))
    source = tiles()
    check_tiles(source, {name: (pixels, None) for name, (pixels, _) in potsdam_truth("train").items()})
    assert source.class_names == ()
    assert pickle.loads(pickle.dumps(source))[0].keys() == {"image"}


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_data_set_that_is_not_there(folder, labelled, tiles, name):
    facts = DATASETS[name]
    for there in (False, True):
        if there:
            folder.mkdir()
        for opened in (labelled, tiles):
            with pytest.raises(FileNotFoundError) as error:
                opened(name)
            for part in (facts.title, facts.owner, facts.licence, str(folder), *facts.images[0].archives["train"]):
                assert part in str(error.value)
            masks = facts.masks["full"].archives["train"][0]
            assert (masks in str(error.value)) == (opened is labelled or masks in facts.images[0].archives["train"])
    with pytest.raises(ValueError, match="needs a path"):
        published_labelled(name, None)


def test_labels_that_are_not_there(folder, labelled):
    store(folder, potsdam(bands=("RGB",), labels=()))
    with pytest.raises(FileNotFoundError, match=r"its masks are not in .* get 2_Ortho.* and 5_Labels_all\.zip"):
        labelled()
    with pytest.raises(FileNotFoundError, match=r"get 2_Ortho.* and 5_Labels_all_noBoundary\.zip"):
        labelled(masks="eroded")


def test_of_many_missing_tiles_the_first_are_named(folder, tiles, monkeypatch):
    splits = {"train": {"": tuple(f"top_potsdam_2_{i}" for i in range(10, 20))}, "test": {"": ("top_potsdam_2_20",)}}
    monkeypatch.setitem(published.DATASETS, "potsdam", DATASETS["potsdam"]._replace(splits=splits))
    store(folder, {"2_Ortho_RGB.zip": {f"top_potsdam_2_{i}_RGB.tif": tif(image(i)) for i in (10, 12, 20)}})
    with pytest.raises(ValueError, match=r"^8 of the 10 images .* \(top_potsdam_2_11, .*2_16 and 3 more\): they"):
        tiles()


@pytest.mark.parametrize(
    ("archive", "part", "tile", "kind"),
    [("2_Ortho_RGB.zip", "train", "4_12", "images"), ("5_Labels_all.zip", "test", "7_13", "masks")],
)
def test_tiles_that_are_missing_are_named(folder, labelled, tmp_path, archive, part, tile, kind):
    found = potsdam()  # a tile of the other archive of images would not be of one kind with the rest
    name = next(name for name in found[archive] if f"_{tile}_" in name)
    content = found[archive].pop(name)
    store(folder, found)
    total = len(TILES[part])
    with pytest.raises(
        ValueError, match=f"^1 of the {total} {kind} of the part {part} of potsdam are missing"
    ) as error:
        labelled()
    assert f"(top_potsdam_{tile}): they belong to {archive}" in str(error.value)
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))
    write(folder / "by hand" / Path(name).name, content)
    check_scenes(labelled().test, potsdam_truth("test"))


def test_a_truncated_archive_is_named_where_it_is_needed(folder, labelled, caplog):
    store(folder, potsdam())
    for name in ("4_Ortho_RGBIR.zip", "2_Ortho_RGB.zip"):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        if name.startswith("4"):
            with caplog.at_level(logging.WARNING):
                assert len(labelled().train)
            assert re.search(r"4_Ortho_RGBIR\.zip cannot be read .* Nothing of it is needed now", caplog.text)
            with pytest.raises(FileNotFoundError, match=r"^The archive .*4_Ortho_RGBIR\.zip cannot be read"):
                labelled(numbers=(4,))
        else:
            with pytest.raises(FileNotFoundError) as error:
                labelled()
            assert str(error.value).startswith(f"The archive {path} cannot be read")
            path.write_bytes(content)


def test_a_damaged_member_stops_the_preparation_and_nothing_is_taken_for_whole(folder, labelled, tmp_path):
    store(folder, potsdam(bands=("RGB",)))
    path = folder / "2_Ortho_RGB.zip"
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("2_Ortho_RGB/top_potsdam_6_7_RGB.tif")
    damaged = bytearray(content)
    damaged[info.header_offset + info.compress_size // 2] ^= 255
    path.write_bytes(bytes(damaged))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2_Ortho_RGB\.zip/2_Ortho_RGB/top_potsdam_6_7_RGB\.tif in .*download"):
            labelled()
        assert not list((tmp_path / "tfds").rglob("dataset_info.json"))
    path.write_bytes(content)
    check_tiles(labelled().train, potsdam_truth("train"))


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        (tif(coloured(ids(0, (64, 72)))), "has 72x64 pixels and its image .*has|has 72x64 pixels and its image"),
        (b"II*\0 and no more", "cannot be used"),
        (tif(coloured(ids(0)))[:5000], "cannot be used"),
        (tif(ids(0)[..., None].repeat(3, -1) % 6), "none of its pixels has the colour of a class"),
        (b"", "cannot be used"),
    ],
)
@pytest.mark.parametrize("form", ["zips", "unpacked"])
def test_masks_that_do_not_fit(folder, labelled, tmp_path, label, problem, form):
    found = potsdam(bands=("RGB",))
    found["5_Labels_all.zip"]["top_potsdam_4_12_label.tif"] = label
    store(folder, found, form)
    with pytest.raises(ValueError, match=problem) as error:
        labelled()
    assert "top_potsdam_4_12_label.tif" in str(error.value)
    assert "again" in str(error.value)
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))


def test_a_full_disk_is_no_reason_to_leave_a_tile_out(folder, labelled, tmp_path, monkeypatch):
    store(folder, potsdam(bands=("RGB",)))
    copy, calls = archives.shutil.copyfileobj, []

    def full(source, target, length):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target, length)

    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises((OSError, ValueError), match=r"no space left|No space left"):
        labelled()
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))
    check_tiles(labelled().train, potsdam_truth("train"))


def test_another_state_of_the_archives_is_another_data_set(folder, labelled, caplog):
    store(folder, potsdam(bands=("RGB",)))
    before = labelled().train
    found = potsdam(bands=("RGB",))
    truth = ids(77)
    found["5_Labels_all.zip"]["top_potsdam_2_10_label.tif"] = tif(coloured(truth))
    store(folder, found)
    with caplog.at_level(logging.INFO):
        after = labelled().train
        assert caplog.text.count("has changed since; earlier tiles may be deleted") == 1
        caplog.clear()
        labelled(masks="eroded")
        assert "has changed since" not in caplog.text, "other masks are no earlier state of these"
    assert after.name != before.name
    np.testing.assert_array_equal(after[0]["mask"], truth[:32, :32])
    np.testing.assert_array_equal(before[0]["mask"], ids(0)[:32, :32])
    assert (
        len({labelled(**way).train.name for way in ({}, {"masks": "eroded"}, {"numbers": (2,)}, {"stride": 16})}) == 4
    )


def vaihingen():
    named = {"train": AREAS["train"], "all": (*AREAS["train"], *AREAS["test"])}

    def files(kind, start="", end="", boundary=0):
        found = {}
        for i, area in enumerate(named["all"]):
            if area in named[kind]:
                truth = ids(i, (72, 80))
                truth[:boundary] = IGNORE
                pixels = image(i, size=(72, 80)) if boundary < 0 else coloured(truth)
                found[f"{start}top_mosaic_09cm_area{area}{end}.tif"] = tif(pixels)
        return found

    base = "ISPRS_semantic_labeling_Vaihingen"
    return {
        f"{base}.zip": files("all", "top/", boundary=-1)
        | files("train", "gts_for_participants/")
        | {"dsm/dsm_09cm_matching_area1.tif": b"no"},
        f"{base}_ground_truth_COMPLETE.zip": files("all"),
        f"{base}_ground_truth_eroded_COMPLETE.zip": files("all", end="_noBoundary", boundary=8),
    }


def vaihingen_truth(part, boundary=0):
    names = (*AREAS["train"], *AREAS["test"])
    expected = {}
    for i, area in enumerate(names):
        if area in AREAS[part]:
            truth = ids(i, (72, 80))
            truth[:boundary] = IGNORE
            expected[f"top_mosaic_09cm_area{area}"] = (image(i, size=(72, 80)), truth)
    return expected


@pytest.mark.parametrize("form", ["zips", "nested", "unpacked", "unpacked into one"])
def test_vaihingen_whose_images_and_masks_have_the_same_names(folder, labelled, form):
    found = vaihingen()
    if form == "unpacked into one":
        for members in found.values():
            for name, content in members.items():
                write(folder / name, content)
    elif form == "nested":
        write(folder / "Vaihingen.zip", zipped({name: zipped(members) for name, members in found.items()}, 0))
    else:
        store(folder, found, form)
    for masks, boundary in (("full", 0), ("eroded", 8)):
        result = labelled("vaihingen", masks=masks)
        check_tiles(result.train, vaihingen_truth("train", boundary))
        check_scenes(result.test, vaihingen_truth("test", boundary))
        assert (result.bands.numbers, result.bands.rgb) == ((1, 2, 3), ())


def test_vaihingen_with_the_masks_of_the_participants(folder, labelled):
    found = vaihingen()
    base = "ISPRS_semantic_labeling_Vaihingen"
    store(folder, {f"{base}.zip": found[f"{base}.zip"]})
    result = labelled("vaihingen")
    check_tiles(result.train, vaihingen_truth("train"))
    assert result.test == ()


LOVEDA = {"Train/Urban": (1366, 1367), "Train/Rural": (0, 9, 10), "Val/Urban": (3514,), "Val/Rural": (2522, 2523)}


def loveda_mask(number):
    return np.random.default_rng(number).integers(0, 8, (64, 80)).astype(np.uint8)


def loveda(empty=None):
    found = {"Train.zip": {}, "Val.zip": {}, "Test.zip": {"Test/Urban/images_png/5167.png": png(image(5167))}}
    for place, numbers in LOVEDA.items():
        for number in numbers:
            its = found[place.partition("/")[0] + ".zip"]
            its[f"{place}/images_png/{number}.png"] = png(image(number))
            mask = loveda_mask(number)
            if number == empty:
                mask[:32, :32] = 0
            its[f"{place}/masks_png/{number}.png"] = png(mask)
    return found


def loveda_truth(*places):
    masks = {n: loveda_mask(n) for place in places for n in LOVEDA[place]}
    return {
        f"{place}/{n}": (image(n), np.where(masks[n] == 0, IGNORE, masks[n] - 1).astype(np.uint8))
        for place in places
        for n in LOVEDA[place]
    }


@pytest.mark.parametrize("form", ["zips", "unpacked"])
@pytest.mark.parametrize("region", ["urban", "rural", "all", ""])
def test_regions_of_loveda(folder, labelled, tiles, form, region):
    store(folder, loveda(), form)
    result = labelled("loveda", region=region)
    regions = [region.title()] if region in ("urban", "rural") else ["Urban", "Rural"]
    check_tiles(result.train, loveda_truth(*(f"Train/{each}" for each in regions)))
    check_scenes(result.test, loveda_truth(*(f"Val/{each}" for each in regions)))
    val = loveda_truth(*(f"Val/{each}" for each in regions))
    check_tiles(tiles("loveda", region=region, masks="full", split="val"), val)
    assert result.classes == DATASETS["loveda"].labels.classes


def test_loveda_without_a_part_of_it(folder, labelled, tiles, caplog):
    found = loveda()
    store(folder, {"Train.zip": found["Train.zip"]})
    with caplog.at_level(logging.INFO):
        result = labelled("loveda")
    assert result.test == ()
    assert "No images of the part val of loveda" in caplog.text
    (folder / "Train.zip").unlink()
    store(folder, {"Val.zip": found["Val.zip"]})
    with pytest.raises(FileNotFoundError, match=r"its images are not in .* get Train\.zip and Val\.zip from Zenodo"):
        labelled("loveda")
    del found["Train.zip"]["Train/Rural/images_png/9.png"]
    store(folder, found)
    with pytest.raises(
        ValueError, match=r"^1 of the 5 images of the part train .*\(Train/Rural/9\).* belong to Train\.zip"
    ):
        labelled("loveda")
    with pytest.raises(ValueError, match=r"1 of the 5 images of the part train of loveda are missing in [^()]*: they"):
        tiles("loveda")
    assert len(labelled("loveda", region="urban").test) == 1
    for wrong in ({"region": "suburban"}, {"masks": "eroded"}, {"masks": "none"}, {"numbers": (4,)}):
        with pytest.raises(ValueError, match="loveda"):
            labelled("loveda", **wrong)
    with pytest.raises(ValueError, match="potsdam has no region 'urban': leave it out"):
        labelled("potsdam", region="urban")
    with pytest.raises(ValueError, match="no published data set 'atlantis'"):
        labelled("atlantis")


@pytest.mark.parametrize("empty", [0, 2522])
def test_tiles_without_a_label_are_left_out_of_their_split_alone(folder, tiles, empty):
    store(folder, loveda(empty=empty))
    for part, rural in (("train", (0, 9, 10)), ("val", (2522, 2523))):
        source = tiles("loveda", masks="full", split=part, region="rural")
        places = [(f"{part.title()}/Rural/{n}", y, x) for n in rural for y, x in corners((64, 80))]
        kept = [place for place in places if place != (f"{part.title()}/Rural/{empty}", 0, 0)]
        assert [(source.files[f], y, x) for f, y, x in source.positions.tolist()] == kept
        for i, (name, y, x) in enumerate(kept):
            number = int(name.rpartition("/")[2])
            np.testing.assert_array_equal(source[i]["image"], image(number)[y : y + 32, x : x + 32])


def test_an_id_that_loveda_does_not_have(folder, labelled):
    found = loveda()
    wrong = loveda_mask(9)
    wrong[0, 0] = 8
    found["Train.zip"]["Train/Rural/masks_png/9.png"] = png(wrong)
    store(folder, found)
    with pytest.raises(ValueError, match=r"masks_png/9\.png in .* cannot be used: .* the id 8 .*; get it again"):
        labelled("loveda")


@pytest.mark.parametrize("name", list(DATASETS))
def test_builders_by_the_way_of_tfds(folder, tmp_path, name, monkeypatch):
    for config in BUILDERS[name].BUILDER_CONFIGS:
        monkeypatch.setattr(config, "tile_size", 32)
        monkeypatch.setattr(config, "stride", 32)
    store(folder, {"potsdam": potsdam, "vaihingen": vaihingen, "loveda": loveda}[name]())
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
        "potsdam": potsdam_truth("test"),
        "vaihingen": vaihingen_truth("test"),
        "loveda": loveda_truth("Val/Urban"),
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


@pytest.mark.skipif(not REAL.is_dir(), reason="the published tiles are not here")
def test_published_tiles_in_archives_as_published(folder, labelled, monkeypatch):
    """Real tiles under the names of whole ones; the two of Potsdam are parts of 2_10 and 2_13."""
    splits = {"train": {"": ("top_potsdam_2_10",)}, "test": {"": ("top_potsdam_2_13",)}}
    monkeypatch.setitem(published.DATASETS, "potsdam", DATASETS["potsdam"]._replace(splits=splits))
    rural = {"train": {"rural": 2}, "val": {"rural": 1}}
    monkeypatch.setitem(published.DATASETS, "loveda", DATASETS["loveda"]._replace(splits=rural))
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
    store(folder, found)
    result = labelled(numbers=(1, 2, 3, 4), tile_size=256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        raster = rasterio.open(REAL / "images" / "top_potsdam_2_10_RGBIR__36.tif")
    with raster:
        np.testing.assert_array_equal(result.train[0]["image"], raster.read().transpose(1, 2, 0))
    pixels = np.asarray(Image.open(REAL / "masks" / "top_potsdam_2_10_RGBIR__36.tif"))
    expected = np.full(pixels.shape[:2], IGNORE)
    for class_id, colour in COLOURS.items():
        expected[(pixels == colour).all(-1)] = class_id
    np.testing.assert_array_equal(result.train[0]["mask"], expected)
    assert [scene.name for scene in result.test] == ["top_potsdam_2_13"]
    rural = labelled("loveda", tile_size=1024)
    mask = np.asarray(Image.open(REAL / "masks" / "loveda_train_rural_0.png")).astype(int)
    np.testing.assert_array_equal(rural.train[0]["mask"], np.where(mask == 0, IGNORE, mask - 1))
    np.testing.assert_array_equal(rural.train[0]["image"], Image.open(REAL / "images" / "loveda_train_rural_0.png"))
    with rural.test[0].open() as scene:
        assert (scene.height, scene.width) == (1024, 1024)


def test_a_scene_without_a_mask_has_no_labels(folder):
    store(folder, potsdam(bands=("RGB",), labels=()))
    from grass_jax.data.published import layout_of_published
    from grass_jax.data.published_scenes import find_published

    scene = find_published("potsdam", folder, masks="none")["train"][0]
    assert scene.mask is None
    with open_published(scene, DATASETS["potsdam"].labels, layout_of_published("potsdam")) as opened:
        assert (opened.mask(0, 64) == IGNORE).all()
        np.testing.assert_array_equal(opened.rows(0, 64), image(0, 4)[..., :3])


def test_the_jobs_take_the_archives(folder, tiny, tiny_segment, tmp_path, caplog):
    """Four bands of Potsdam through the commands of pretraining and fine-tuning, and the test tiles scored."""
    store(folder, potsdam(bands=("RGBIR",)))
    data = {"data.name": "potsdam", "data.path": str(folder), "data.data_dir": str(tmp_path / "tfds")}
    data |= {"data.tile_size": 32, "data.stride": 16, "bands.numbers": (1, 2, 3, 4)}
    pretrain.run(tiny(**data, **{"warmup.epochs": 1, "gs.epochs": 1}), tmp_path / "pretrained")
    changes = {"init": str(tmp_path / "pretrained"), "data.masks": "eroded", "finetune.steps": 2, "data.group": ""}
    changes |= {"data.classes": (), "data.test": "", "augment.size": 32, "evaluate.without": ("clutter",)}
    summary = finetune.run(tiny_segment(**data | changes), tmp_path / "finetuned")
    assert summary["test"]["scenes"] == len(TILES["test"])
    assert list(summary["test"]["iou"]) == list(DATASETS["potsdam"].labels.classes)
    resolved = json.loads((tmp_path / "finetuned" / "config.json").read_text())
    assert resolved["config"]["bands"]["numbers"] == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="classes of potsdam are its own"):
        finetune.run(tiny_segment(**data, **{"data.masks": "full"}), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"get Train\.zip"):
        pretrain.run(tiny(**data | {"data.name": "loveda/urban", "bands.numbers": ()}), tmp_path / "other")
