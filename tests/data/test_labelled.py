import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS

from grass_jax.data.builders import sample
from grass_jax.data.labelled import open_labelled
from grass_jax.data.labels import IGNORE, Labels
from grass_jax.data.landscape import CLASS_NAMES, landscape
from grass_jax.data.loader import batches
from grass_jax.data.scenes import open_scenes
from grass_jax.data.splits import Split

DATA = Path(__file__).parents[2].parent / "shared" / "data"
LABELS = Labels(("field", "house"), colours=("#00FF00", "#FF0000"))
HEIGHT, WIDTH = 64, 96


def content(number):
    rng = np.random.default_rng(number)
    return rng.integers(1, 256, (HEIGHT, WIDTH, 3), np.uint8), rng.integers(0, 2, (HEIGHT, WIDTH), np.uint8)


NAMES = [f"area{a}/part{p}" for a in range(3) for p in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six georeferenced scenes of three areas; the second part of area 0 overlaps the first part of area 2."""
    folder = tmp_path_factory.mktemp("labelled")
    for number, name in enumerate(NAMES):
        image, mask = content(number)
        east = {"area0/part1": 8000, "area2/part0": 8090}.get(name, 1000 * number)
        profile = {"height": HEIGHT, "width": WIDTH, "count": 3, "dtype": "uint8", "crs": CRS.from_epsg(32633)}
        for kind in ("images", "masks"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        here = rasterio.Affine(1, 0, 400000 + east, 0, -1, 4000000)
        with rasterio.open(folder / "images" / f"{name}.tif", "w", driver="GTiff", transform=here, **profile) as raster:
            raster.write(image.transpose(2, 0, 1))
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def opened(folder, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")

    def prepared(path=folder, **options):
        options = {"labels": LABELS, "tile_size": 16, "data_dir": data_dir} | options
        return open_labelled("segmentation_folder", path=path, **options)

    return prepared


def files_of(labelled):
    trained = {labelled.train.files[file] for file in labelled.train.positions[:, 0]}
    return [sorted(trained), [s.name for s in labelled.validation], [s.name for s in labelled.test]]


def tif(*names):
    return [f"{name}.tif" for name in names]


def test_files_that_show_the_same_ground_stay_together(opened, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        labelled = opened(group=r"area\d", split=Split(test="area1"))
    assert files_of(labelled) == [tif(*NAMES[:2], *NAMES[4:]), [], tif(*NAMES[2:4])]
    assert labelled.classes == ("field", "house")
    assert labelled.colours.tolist() == [[0, 255, 0], [255, 0, 0]]
    assert set(labelled.train_groups) == {"area0"}, "the overlap joins areas 0 and 2"
    assert [scene.group for scene in labelled.test] == ["area1", "area1"]
    assert len(labelled.train_groups) == len(labelled.train) == 4 * 4 * 6
    assert "1 pair(s) of files show the same ground" in caplog.text
    assert "area0/part1.tif and area2/part0.tif" in caplog.text

    for by, pattern in (("group", "area2"), ("file", "area2")):
        with pytest.raises(ValueError, match=r"area2/part0\.tif and area0/part1\.tif|area2/part\d\.tif and area0"):
            opened(group=r"area\d", split=Split(by=by, test=pattern))
    parts = opened(group=r"area\d", split=Split(by="file", test="part1$|part1.tif|area2/part0"))
    assert files_of(parts)[2] == tif("area0/part1", "area1/part1", "area2/part0", "area2/part1")


def test_scenes_with_a_world_file_alone_stay_together(opened, tmp_path):
    """As ISPRS publishes Potsdam: coordinates beside the file, and no word of their system."""
    for number, (east, north) in enumerate([(366000, 5807000), (366080, 5806980), (366000, 5806900)]):
        image, mask = content(number)
        for kind, pixels in (("images", image), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.tif")
        (tmp_path / "images" / f"{number}.tfw").write_text(f"1\n0\n0\n-1\n{east + 0.5}\n{north - 0.5}\n")
    with pytest.raises(ValueError, match=r"0\.tif and 1\.tif show the same ground"):
        opened(tmp_path, split=Split(by="file", test="^0"))
    assert files_of(opened(tmp_path, split=Split(by="file", test="[01]"))) == [["2.tif"], [], ["0.tif", "1.tif"]]
    scenes = open_scenes(tmp_path, labels=LABELS)
    assert {scene.name: scene.group for scene in scenes} == {"0.tif": "0.tif", "1.tif": "0.tif", "2.tif": "2.tif"}


def test_shares_of_files_and_groups(opened):
    labelled = opened(split=Split(by="file", test=0.4, validation=0.34, seed=1))
    trained, validated, tested = files_of(labelled)
    assert sorted([*trained, *validated, *tested]) == tif(*NAMES)
    together = {*tif("area0/part1", "area2/part0")}
    assert any(together <= {*part} for part in (trained, validated, tested))
    joined = [set(tested) - together, set(validated) - together]
    assert len(joined[0]) + bool(together & set(tested)) == 2  # of five units
    assert len(joined[1]) + bool(together & set(validated)) == 1  # of three


def test_slips_are_found_before_the_preparation(folder, tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("file,group\n" + "".join(f"{name},{'abxcdx'[i]}\n" for i, name in enumerate(NAMES)))
    place = {"path": folder, "labels": LABELS, "data_dir": tmp_path / "tfds"}
    for options, problem in [
        ({"split": Split(test="nowhere")}, "matches none"),
        ({"group": "town"}, "finds no group"),
        (
            {"split": Split(by="block", test=0.2, block=128), "tile_size": 256},
            r"^block 128 is smaller than a tile",
        ),
        (
            {"split": Split(by="block", test=0.2, block=64), "tile_size": 16, "group": r"area\d"},
            r"^area0/part0\.tif and area0/part1\.tif are of the group area0, .* use split 'group', or [^.]*\.$",
        ),
        (
            {"split": Split(by="block", test=0.2, block=64), "tile_size": 16, "group": str(table)},
            r"^area1/part0\.tif and area2/part1\.tif are of the group x, ",
        ),
        ({"labels": None}, "needs labels"),
        ({"path": None}, "needs a path"),
    ]:
        with pytest.raises(ValueError, match=problem):
            open_labelled("segmentation_folder", **place | options)
    with pytest.raises(ValueError, match="no labelled data set 'folder'"):
        open_labelled("folder")
    assert not (tmp_path / "tfds").exists()


def test_scenes_are_read_whole_and_can_be_pickled(opened):
    labelled = opened(split=Split(by="file", test="area1/part0"), ignored=[("area1", 0, 0, 5, -1)])
    (scene,) = pickle.loads(pickle.dumps(labelled.test))
    image, mask = content(2)
    mask[:5] = IGNORE
    with scene.open() as read:
        assert (read.height, read.width) == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(read.rows(0, HEIGHT), image)
        np.testing.assert_array_equal(read.mask(0, HEIGHT), mask)
        np.testing.assert_array_equal(read.mask(3, 40), mask[3:40])
        assert read.georeference is not None
        assert read.georeference.gsd == 1


def test_blocks_share_no_pixel_and_every_scored_pixel_keeps_its_distance(opened, folder, tmp_path):
    apart = tmp_path / "apart"
    for kind, suffix in (("images", ".tif"), ("masks", ".png")):
        for name in NAMES[2:]:
            path = (apart / kind / name).with_suffix(suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to((folder / kind / name).with_suffix(suffix))
    split = Split(by="block", test=0.25, validation=0.2, block=32, guard=3, seed=2)
    with pytest.raises(ValueError, match=r"area0/part1\.tif and area2/part0\.tif show the same ground"):
        opened(split=split)
    labelled = opened(apart, split=split, stride=8, group=r"(.*)\.tif")  # groups of one file are not divided
    seen = {f"{name}.tif": np.zeros((3, HEIGHT, WIDTH), bool) for name in NAMES[2:]}  # train, validation, test
    for file, y, x in labelled.train.positions.tolist():
        seen[labelled.train.files[file]][0, y : y + 16, x : x + 16] = True
    for part, scenes in ((1, labelled.validation), (2, labelled.test)):
        assert scenes
        for scene in scenes:
            with scene.open() as read:
                mask = read.mask(0, HEIGHT)
            truth = content(NAMES.index(scene.name[:-4]))[1]
            counted = mask != IGNORE
            np.testing.assert_array_equal(mask[counted], truth[counted])
            seen[scene.name][part] = counted
    total = sum(pixels.sum(axis=(1, 2)) for pixels in seen.values())
    assert total[0] == (24 - 6 - 4) * 32 * 32, "tiles fill the training blocks"
    assert 0 < total[1] < 4 * 32 * 32
    assert 0 < total[2] < 6 * 32 * 32
    for pixels in seen.values():
        for part in (1, 2):
            for other in {0, 1, 2} - {part}:
                for y, x in np.argwhere(pixels[part]):
                    around = pixels[other, max(0, y - 3) : y + 4, max(0, x - 3) : x + 4]
                    assert not around.any(), "nearer than the guard band"


def test_training_tiles_make_batches(opened):
    labelled = opened(split=Split(by="file", test="area1"))
    (batch,) = batches(labelled.train.subset(range(50, 60)), batch_size=10, seed=0, start=0, stop=1, threads=1)
    assert sorted(batch["index"]) == list(range(10))
    for row, index in enumerate(batch["index"]):
        np.testing.assert_array_equal(batch["mask"][row], labelled.train[50 + index]["mask"])


def test_bands_are_measured_on_all_files_whatever_the_split(opened, folder):
    splits = [Split(), Split(by="file", test="area1"), Split(by="group", test="area0|area2")]
    measured = [opened(split=split, group=r"area\d").bands for split in splits]
    assert measured[0] == measured[1] == measured[2]
    pixels = np.concatenate([content(number)[0].reshape(-1, 3) for number in range(6)]) / 255
    np.testing.assert_allclose(measured[0].mean, pixels.mean(0))
    np.testing.assert_allclose(measured[0].std, pixels.std(0))


def test_nothing_left_to_train_on(opened):
    with pytest.raises(ValueError, match="No tile of 48 pixels with a label lies wholly in the training part"):
        opened(
            tile_size=48,
            stride=1000,
            split=Split(by="file", test="area1/part0"),
            ignored=[("area0", 0, 0, -1, -1), ("area1/part1", 0, 0, -1, -1), ("area2", 0, 0, -1, -1)],
        )


def test_the_sample_has_test_scenes_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "SCENE_SIZE", 192)
    monkeypatch.setattr(sample, "SCENES", {"train": range(100, 104), "val": range(900, 902)})
    labelled = open_labelled("sample", split=Split(validation=0.25), data_dir=tmp_path)
    assert labelled.classes == CLASS_NAMES
    assert labelled.colours.shape == (6, 3)
    assert labelled.bands == labelled.train.bands
    assert labelled.bands.rgb == (1, 2, 3)
    assert len(np.unique(labelled.colours, axis=0)) == 6
    assert [scene.name for scene in labelled.test] == ["scene_900", "scene_901"]
    trained, validated, _ = files_of(labelled)
    assert len(validated) == 1
    assert sorted([*trained, *validated]) == [f"scene_{seed}" for seed in range(100, 104)]
    assert len(labelled.train) == len(labelled.train_groups) == 12
    for i, group in enumerate(labelled.train_groups):
        assert labelled.train.files[labelled.train.positions[i, 0]] == group
    image, mask = landscape(901, 192)
    with labelled.test[1].open() as scene:
        np.testing.assert_array_equal(scene.rows(0, 192), image)
        np.testing.assert_array_equal(scene.mask(10, 30), mask[10:30])
    with pytest.raises(ValueError, match="test scenes of its own"):
        open_labelled("sample", split=Split(test=0.2), data_dir=tmp_path)
    with pytest.raises(ValueError, match="takes no path"):
        open_labelled("sample", path=tmp_path)
    with pytest.raises(ValueError, match=r"the network reads bands 3, 2: give a folder\.$"):
        open_labelled("sample", numbers=(3, 2), data_dir=tmp_path)


@pytest.mark.skipif(not (DATA / "nyc_maps").is_dir(), reason="shared/data/nyc_maps is not here")
def test_overlap_groups_of_new_york_stay_whole():
    from grass_jax.data.splits import assign_parts, group_of

    folder = DATA / "nyc_maps"
    files = sorted(path.relative_to(folder / "images").as_posix() for path in folder.glob("images/*/*.jpg"))
    groups = group_of(files, [f"{part}={folder}/groups_{part}.csv" for part in ("train", "val")])
    assert len(files) == 530
    assert len(set(groups)) == 282 + 118
    parts = assign_parts(files, groups, Split(test="^val/", validation=0.1))
    assert parts.count("test") == 130
    by_group: dict[str, set[str]] = {}
    for group, part in zip(groups, parts, strict=True):
        by_group.setdefault(group, set()).add(part)
    assert all(len(its) == 1 for its in by_group.values())
    assert sum(its == {"validation"} for its in by_group.values()) == 28
