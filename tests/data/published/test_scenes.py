"""What is found of the published data sets, and what is missing, damaged or closed."""

import errno
import logging
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from grass_jax.data.labels import IGNORE
from grass_jax.data.published import facts, nested_zips
from grass_jax.data.published.facts import DATASETS, layout_of_published
from grass_jax.data.published.pixels import open_published
from grass_jax.data.published.scenes import find_published
from grass_jax.data.published.sets import published_labelled

pytestmark = pytest.mark.usefixtures("fewer")


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


@pytest.mark.parametrize(
    ("found", "options", "message"),
    [
        ({"labels": ()}, {}, r"the masks of its parts train and test are not in [^:]*: get 5_Labels_all\.zip \(also"),
        ({"labels": ()}, {"masks": "eroded"}, r"the masks of .*: get 5_Labels_all_noBoundary\.zip \(also inside"),
        (
            {"bands": ()},
            {},
            r"the images of its parts train and test are .*: get 2_Ortho_RGB\.zip \(or 4_\S+ for all .*",
        ),
        ({"bands": (), "labels": ()}, {}, r"the images and masks of its parts train and .*\) and 5_Labels_all\.zip \("),
        ({"tiles": ("2_13", "7_13")}, {}, r"the images and masks of its part train are not in"),
    ],
)
def test_what_is_absent_is_named_and_nothing_else(made, folder, labelled, found, options, message):
    made.store(folder, {"1_DSM.zip": {"a.tif": b"no"}} | made.potsdam(**{"bands": ("RGB",)} | found))
    with pytest.raises(FileNotFoundError, match=message) as error:
        labelled(**options)
    kinds = str(error.value).partition(": the ")[2]
    assert ("2_Ortho_RGB.zip" in kinds) == kinds.startswith("images")
    assert ("5_Labels" in kinds) == ("masks of" in kinds)


def test_of_many_missing_tiles_the_first_are_named(made, folder, tiles, monkeypatch):
    splits = {"train": {"": tuple(f"top_potsdam_2_{i}" for i in range(10, 20))}, "test": {"": ("top_potsdam_2_20",)}}
    monkeypatch.setitem(facts.DATASETS, "potsdam", DATASETS["potsdam"]._replace(splits=splits))
    made.store(
        folder, {"2_Ortho_RGB.zip": {f"top_potsdam_2_{i}_RGB.tif": made.tif(made.image(i)) for i in (10, 12, 20)}}
    )
    with pytest.raises(ValueError, match=r"^8 of the 10 images .* \(top_potsdam_2_11, .*2_16 and 3 more\): they"):
        tiles()


@pytest.mark.parametrize(
    ("archive", "part", "tile", "kind"),
    [("2_Ortho_RGB.zip", "train", "4_12", "images"), ("5_Labels_all.zip", "test", "7_13", "masks")],
)
def test_tiles_that_are_missing_are_named(made, folder, labelled, tmp_path, archive, part, tile, kind):
    found = made.potsdam()  # a tile of the other archive of images would not be of one kind with the rest
    name = next(name for name in found[archive] if f"_{tile}_" in name)
    content = found[archive].pop(name)
    made.store(folder, found)
    total = len(made.TILES[part])
    with pytest.raises(
        ValueError, match=f"^1 of the {total} {kind} of the part {part} of potsdam are missing"
    ) as error:
        labelled()
    assert f"(top_potsdam_{tile}): they belong to {archive}" in str(error.value)
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))
    made.write(folder / "by hand" / Path(name).name, content)
    made.check_scenes(labelled().test, made.potsdam_truth("test"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-300])


def test_a_truncated_archive_is_named_where_it_is_needed(made, folder, labelled, caplog):
    made.store(folder, made.potsdam())
    truncate(folder / "4_Ortho_RGBIR.zip")
    with caplog.at_level(logging.WARNING):
        made.check_tiles(labelled().train, made.potsdam_truth("train"))
    assert re.search(r"4_Ortho_RGBIR\.zip cannot be read .* The images are taken from 2_Ortho_RGB\.zip\.", caplog.text)
    with pytest.raises(
        ValueError, match=r"^The archive .*4_Ortho_RGBIR\.zip cannot be read .* images of the part train"
    ):
        labelled(numbers=(4,))
    truncate(folder / "2_Ortho_RGB.zip")
    with pytest.raises(
        ValueError, match=r"^The archive .*again\. The archive .*again\. Without it the images of the"
    ) as e:
        labelled()
    assert str(folder / "2_Ortho_RGB.zip") in str(e.value)


@pytest.mark.parametrize("form", ["zips", "unpacked", "nested"])
def test_what_is_taken_instead_of_a_truncated_archive_is_said(made, folder, labelled, caplog, form):
    made.store(folder, made.potsdam(bands=("RGBIR",)), form)
    for name in ("2_Ortho_RGB (1).zip", "5_Labels_all (2).zip", "1_DSM.zip", "5_Labels_all_noBoundary (1).zip"):
        made.write(folder / name, b"PK\3\4 and no more")
    with caplog.at_level(logging.WARNING):
        made.check_scenes(labelled().test, made.potsdam_truth("test"))
    warned = {
        Path(m[1]).name: m[2] for m in re.finditer(r"The archive (.*) cannot be read .*again\. (.*)", caplog.text)
    }
    images, masks = "4_Ortho_RGBIR.zip", "5_Labels_all.zip"
    if form == "unpacked":
        images, masks = (str(folder / place) for place in ("4_Ortho_RGBIR/4_Ortho_RGBIR", "5_Labels_all"))
    assert warned == {
        "2_Ortho_RGB (1).zip": f"The images are taken from {images}.",
        "5_Labels_all (2).zip": f"The masks are taken from {masks}.",
        "1_DSM.zip": "By its name nothing of it is needed now.",
        "5_Labels_all_noBoundary (1).zip": "By its name nothing of it is needed now.",
    }


@pytest.mark.parametrize("name", ["Val.zip", "VAL (1).zip", "LoveDA.zip", "old/Val.ZIP"])
def test_a_truncated_archive_of_the_test_part_is_no_empty_test_part(made, folder, labelled, caplog, name):
    found = made.loveda()
    made.store(folder, {"Train.zip": found["Train.zip"]})
    made.write(folder / name, made.zipped(found["Val.zip"])[:-50])
    made.write(folder / "Test.zip", b"no part that is wanted")
    with pytest.raises(
        ValueError, match=r"cannot be read .*the images and masks of the part val of loveda are missing"
    ) as e:
        labelled("loveda")
    assert str(e.value).startswith(f"The archive {folder / name} cannot be read")
    assert str(e.value).endswith(f"to go on without that part, move it out of {folder}.")
    (folder / name).unlink()
    with caplog.at_level(logging.INFO):
        assert labelled("loveda").test == ()
    assert re.search(r"Test\.zip cannot be read .* By its name nothing of it is needed now", caplog.text)


def test_labels_of_the_participants_beside_truncated_ones_of_all(made, folder, labelled, tiles):
    made.store(folder, made.potsdam(bands=("RGB",), labels=("all", "for_participants")))
    truncate(folder / "5_Labels_all.zip")
    with pytest.raises(ValueError, match=r"5_Labels_all\.zip cannot be read .* the masks of the part test of potsdam"):
        labelled()
    assert len(tiles(split="test")), "images alone need no labels"
    (folder / "5_Labels_all.zip").unlink()
    made.check_tiles(labelled().train, made.potsdam_truth("train"))


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ("2_Ortho_RGB.zip", r"^The archive {} cannot be opened \(Permission denied\).*the images of the part train"),
        ("5_Labels_all", r"^{} cannot be opened \(Permission denied\).* the masks of the part train of potsdam are"),
        ("", r"^{} cannot be opened \(Permission denied\).* the images and masks of the part train of potsdam are"),
        ("5_Labels_all/top_potsdam_4_12_label.tif", r"^{} in .* cannot be opened \(Permission denied\): see to it"),
        ("1_DSM.zip", ""),
        ("lost+found", ""),
    ],
)
def test_what_may_not_be_read_is_named_and_matters_where_it_is_needed(
    made, folder, labelled, forbid, caplog, closed, message
):
    found = made.potsdam(bands=("RGB",))
    made.store(folder, {"2_Ortho_RGB.zip": found["2_Ortho_RGB.zip"], "1_DSM.zip": {}})
    made.store(folder, {"5_Labels_all.zip": found["5_Labels_all.zip"], "lost+found.zip": {"a": b""}}, "unpacked")
    path = folder / closed if closed else folder
    forbid(path)
    if message:
        with pytest.raises(
            ValueError, match=message.format(closed if closed.endswith(".tif") else re.escape(str(path)))
        ):
            labelled()
        return
    with caplog.at_level(logging.WARNING):
        made.check_tiles(labelled().train, made.potsdam_truth("train"))
    assert f"{path} cannot be opened (Permission denied): see to it that you may read it. By its name" in caplog.text


def test_an_encrypted_archive_is_refused_before_anything_is_read(made, folder, labelled, caplog):
    made.store(folder, made.potsdam())
    path = folder / "2_Ortho_RGB.zip"
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for match in re.finditer(re.escape(signature), bytes(content)):
            content[match.start() + flags] |= 1
    path.write_bytes(bytes(content))
    told = f"The archive {path} is encrypted: unzip it by hand and leave the folder in its place."
    with caplog.at_level(logging.WARNING):
        made.check_tiles(labelled().train, made.potsdam_truth("train"))
    assert f"{told} The images are taken from 4_Ortho_RGBIR.zip." in caplog.text
    (folder / "4_Ortho_RGBIR.zip").unlink()
    with pytest.raises(ValueError, match="images of the part train of potsdam are missing") as error:
        labelled()
    assert str(error.value).startswith(told)
    assert "ZipInfo" not in str(error.value)


def test_a_damaged_member_stops_the_preparation_and_nothing_is_taken_for_whole(made, folder, labelled, tmp_path):
    made.store(folder, made.potsdam(bands=("RGB",)))
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
    made.check_tiles(labelled().train, made.potsdam_truth("train"))


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        (lambda made: made.tif(made.coloured(made.ids(0, (64, 72)))), "has 72x64 pixels and its image .* 80x64, in"),
        (lambda made: b"II*\0 and no more", "cannot be used: it is broken"),
        (lambda made: made.tif(made.coloured(made.ids(0)))[:5000], "cannot be used: it is broken"),
        (lambda made: made.tif(made.ids(0)[..., None].repeat(3, -1) % 6), "none of its pixels has the colour of a"),
        (lambda made: b"", "cannot be used: it is broken"),
    ],
)
@pytest.mark.parametrize("form", ["zips", "unpacked"])
def test_masks_that_do_not_fit(made, folder, labelled, tmp_path, label, problem, form):
    found = made.potsdam(bands=("RGB",))
    found["5_Labels_all.zip"]["top_potsdam_4_12_label.tif"] = label(made)
    made.store(folder, found, form)
    with pytest.raises(ValueError, match=problem) as error:
        labelled()
    assert "top_potsdam_4_12_label.tif" in str(error.value)
    assert "again" in str(error.value)
    assert not re.search(r"unpacked-|member\.|tfds", str(error.value)), "the archive is named, not the temporary copy"
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))


def test_a_full_disk_is_no_reason_to_leave_a_tile_out(made, folder, labelled, tmp_path, monkeypatch):
    made.store(folder, made.potsdam(bands=("RGB",)))
    copy, calls = nested_zips.shutil.copyfileobj, []

    def full(source, target, length):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target, length)

    monkeypatch.setattr(nested_zips.shutil, "copyfileobj", full)
    with pytest.raises((OSError, ValueError), match=r"no space left|No space left"):
        labelled()
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))
    made.check_tiles(labelled().train, made.potsdam_truth("train"))


def test_near_infrared_of_an_archive_that_is_not_there(made, folder, labelled):
    made.store(folder, made.potsdam(bands=("RGB",)))
    with pytest.raises(
        FileNotFoundError, match=r"the images of its parts train and test are not in .*: get 4_Ortho_RGBIR\.zip"
    ):
        labelled(numbers=(1, 2, 3, 4))
    for numbers in ((5,), (0,), (1, 1)):
        with pytest.raises(ValueError, match="potsdam has the bands 1 to 4"):
            labelled(numbers=numbers)


def test_a_scene_without_a_mask_has_no_labels(made, folder):
    made.store(folder, made.potsdam(bands=("RGB",), labels=()))
    scene = find_published("potsdam", folder, masks="none")["train"][0]
    assert scene.mask is None
    with open_published(scene, DATASETS["potsdam"].labels, layout_of_published("potsdam")) as opened:
        assert (opened.mask(0, 64) == IGNORE).all()
        np.testing.assert_array_equal(opened.rows(0, 64), made.image(0, 4)[..., :3])


def test_loveda_without_a_part_of_it(made, folder, labelled, tiles, caplog):
    found = made.loveda()
    made.store(folder, {"Train.zip": found["Train.zip"]})
    with caplog.at_level(logging.INFO):
        result = labelled("loveda")
    assert result.test == ()
    assert "No images and masks of the part val of loveda" in caplog.text
    (folder / "Train.zip").unlink()
    made.store(folder, {"Val.zip": found["Val.zip"]})
    with pytest.raises(
        FileNotFoundError, match=r"the images and masks of its part train are not in .* get Train\.zip from Zenodo"
    ):
        labelled("loveda")
    del found["Train.zip"]["Train/Rural/images_png/9.png"]
    made.store(folder, found)
    with pytest.raises(
        ValueError, match=r"^1 of the 3 images of the part train/rural .*\(Train/Rural/9\).* belong to Train\.zip"
    ):
        labelled("loveda")
    with pytest.raises(
        ValueError, match=r"1 of the 3 images of the part train/rural of loveda are missing in [^()]*: they"
    ):
        tiles("loveda")
    assert len(labelled("loveda", region="urban").test) == 1
    for wrong in ({"region": "suburban"}, {"masks": "eroded"}, {"masks": "none"}, {"numbers": (4,)}):
        with pytest.raises(ValueError, match="loveda"):
            labelled("loveda", **wrong)
    with pytest.raises(ValueError, match="potsdam has no region 'urban': leave it out"):
        labelled("potsdam", region="urban")
    with pytest.raises(ValueError, match="no published data set 'atlantis'"):
        labelled("atlantis")


def test_images_and_masks_of_loveda_are_the_same_and_as_many_as_published(made, folder, labelled, tiles):
    place = "Train/Urban/{}_png/{}.png"

    def stored(change):
        found = made.loveda()
        change(found["Train.zip"])
        made.store(folder, found)

    def another(its, kinds=("images", "masks")):
        for kind, content in (("images", made.image(7)), ("masks", made.loveda_mask(7))):
            if kind in kinds:
                its[place.format(kind, 7)] = made.png(content)

    def renamed(its):
        its[place.format("images", 7)] = its.pop(place.format("images", 1366))

    stored(renamed)
    names = r"\(Train/Urban/1366 has no image, Train/Urban/7 has no mask\): get Train\.zip again\.$"
    with pytest.raises(ValueError, match=rf"^The images and masks of the part train/urban of loveda in .* {names}"):
        labelled("loveda")
    assert len(labelled("loveda", region="rural").train)
    stored(lambda its: another(its, ["images"]))
    with pytest.raises(ValueError, match=r"do not have the same names \(Train/Urban/7 has no mask\)"):
        labelled("loveda")
    surplus = (
        r"of the part train/urban of loveda are in .*, and 2 are published: remove what does not belong to Train\.zip"
    )
    with pytest.raises(ValueError, match=f"^3 images {surplus}"):
        tiles("loveda")
    stored(another)
    with pytest.raises(ValueError, match=f"^3 images and 3 masks {surplus}"):
        labelled("loveda")

    def moved(its):  # as many as published in all
        another(its)
        for kind in ("images", "masks"):
            del its[f"Train/Rural/{kind}_png/9.png"]

    stored(moved)
    with pytest.raises(ValueError, match=r"^3 images and 3 masks of the part train/urban"):
        labelled("loveda")


def test_an_id_that_loveda_does_not_have(made, folder, labelled):
    found = made.loveda()
    wrong = made.loveda_mask(9)
    wrong[0, 0] = 8
    found["Train.zip"]["Train/Rural/masks_png/9.png"] = made.png(wrong)
    made.store(folder, found)
    with pytest.raises(ValueError, match=r"masks_png/9\.png in .* cannot be used: .* the id 8 .*; get it again"):
        labelled("loveda")
