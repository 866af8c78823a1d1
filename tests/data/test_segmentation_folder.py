import contextlib
import json
import logging

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely
from PIL import Image
from rasterio.crs import CRS

from grass_jax.data.builders.segmentation_folder import SegmentationFolder
from grass_jax.data.labelled import open_labelled
from grass_jax.data.labels import IGNORE, Labels
from grass_jax.data.layout import Layout
from grass_jax.data.scenes import open_scenes
from grass_jax.data.splits import Split

TILE = 16
LABELS = Labels(("field", "house", "road"))


def coded(number, height, width):
    """A picture whose every pixel says where it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(y, number)], -1).astype(np.uint8)


def ids(number, height, width):
    """A mask whose ids depend on the place; the upper left is ignored."""
    y, x = np.mgrid[:height, :width]
    mask = ((y // 3 + x // 5 + number) % 3).astype(np.uint8)
    mask[:4, :6] = IGNORE
    return mask


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        bands = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
        here = rasterio.Affine(0.5, 0, 500000, 0, -0.5, 4000000)
        profile = {"count": len(bands), "height": pixels.shape[0], "width": pixels.shape[1]}
        profile |= {"crs": CRS.from_epsg(32633), "transform": here, "dtype": pixels.dtype} | options
        with rasterio.open(path, "w", driver="GTiff", **profile) as raster:
            raster.write(bands)
    else:
        Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "town"


@pytest.fixture
def opened(folder, tmp_path):
    def prepared(**options):
        options = {"labels": LABELS, "tile_size": TILE, "data_dir": tmp_path / "tfds"} | options
        return open_labelled("segmentation_folder", path=folder, **options)

    return prepared


@pytest.fixture
def generations(monkeypatch):
    count = []
    generate = SegmentationFolder._generate_examples
    monkeypatch.setattr(SegmentationFolder, "_generate_examples", lambda self: (count.append(1), generate(self))[1])
    return count


def pair(folder, name, number, height, width, *, mask=None, suffix=".png"):
    save(folder / "images" / name, coded(number, height, width))
    save((folder / "masks" / name).with_suffix(suffix), ids(number, height, width) if mask is None else mask)


def test_tiles_of_image_and_mask_equal_plain_slices_in_a_stable_order(folder, opened):
    sizes = {"a/one.png": (40, 50), "b.tif": (16, 70), "c.jpg": (33, 20)}
    for number, (name, size) in enumerate(sizes.items()):
        pair(folder, name, number, *size, suffix=".tif" if number == 0 else ".png")
    source = opened(stride=12).train
    expected = []
    for number, (name, (h, w)) in enumerate(sizes.items()):
        ys, xs = (sorted({*range(0, n - TILE + 1, 12), n - TILE}) for n in (h, w))
        expected += [(number, name, y, x) for y in ys for x in xs]
    assert [(source.files[file], y, x) for file, y, x in source.positions.tolist()] == [e[1:] for e in expected]
    assert source.class_names == LABELS.classes
    for i, (number, name, y, x) in enumerate(expected):
        tile = source[i]
        np.testing.assert_array_equal(tile["mask"], ids(number, *sizes[name])[y : y + TILE, x : x + TILE])
        if not name.endswith("jpg"):
            np.testing.assert_array_equal(tile["image"], coded(number, *sizes[name])[y : y + TILE, x : x + TILE])
    some = source.subset([5, 0])
    assert some.positions.tolist() == [source.positions[5].tolist(), source.positions[0].tolist()]
    np.testing.assert_array_equal(some.subset([1])[0]["mask"], source[0]["mask"])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_any_bands_of_any_depth(folder, opened, dtype):
    rng = np.random.default_rng(0)
    images = (rng.random((3, 32, 48, 6)) * 255).astype(dtype)
    images[2, :, 30:] = 0  # nodata: two of six tiles, and a fraction of two more
    for i, image in enumerate(images):
        away = rasterio.Affine(0.5, 0, 500000 + 1000 * i, 0, -0.5, 4000000)
        save(folder / "images" / f"{i}.tif", np.maximum(image, 1) if i < 2 else image, nodata=0, transform=away)
        save(folder / "masks" / f"{i}.png", ids(i, 32, 48))
    images[:2] = np.maximum(images[:2], 1)
    labelled = opened(numbers=(6, 2, 1), split=Split(by="file", test="^0"))
    source = labelled.train
    found = [(source.files[file], y, x) for file, y, x in source.positions.tolist()]
    assert found == [("1.tif", y, x) for y in (0, 16) for x in (0, 16, 32)] + [
        ("2.tif", y, x) for y in (0, 16) for x in (0, 16)
    ]
    chosen = images[..., [5, 1, 0]]
    shown = np.where(chosen == 0, np.nan, chosen) if dtype == "float32" else chosen
    for i, (name, y, x) in enumerate(found):
        tile, box = source[i], (int(name[0]), slice(y, y + TILE), slice(x, x + TILE))
        assert tile["image"].dtype == dtype
        np.testing.assert_array_equal(tile["image"], shown[box])
        expected = ids(int(name[0]), 32, 48)
        if name == "2.tif":
            expected[(chosen[2] == 0).all(-1)] = IGNORE
        np.testing.assert_array_equal(tile["mask"], expected[box[1:]])
    assert labelled.bands == source.bands
    assert (labelled.bands.numbers, labelled.bands.dtype) == ((6, 2, 1), dtype)
    layout = Layout(labelled.bands.numbers, labelled.bands.dtype)
    for scene in (*labelled.test, *open_scenes(folder, labels=LABELS, layout=layout)):
        with scene.open() as read:
            np.testing.assert_array_equal(read.rows(3, 32), shown[int(scene.name[0]), 3:])
            assert (read.values is None) == (dtype == "float32")
            if read.values is not None:
                np.testing.assert_array_equal(read.values(3, 32), chosen[int(scene.name[0]), 3:] != 0)
            assert read.valid is not None
            np.testing.assert_array_equal(read.valid(0, 32), (chosen[int(scene.name[0])] != 0).any(-1))
    with (
        pytest.raises(
            ValueError, match=r"No image in .* 6 bands of \w+ and 3 of uint8 are wanted: give images with the"
        )
        if dtype != "uint8"
        else (contextlib.nullcontext())
    ):
        open_scenes(folder, labels=LABELS)


def test_an_image_of_another_layout_is_left_out(folder, opened, caplog):
    for name, count in (("a", 4), ("b", 3), ("c", 4)):
        save(folder / "images" / f"{name}.tif", np.full((20, 20, count), 9, np.uint16))
        save(folder / "masks" / f"{name}.png", ids(0, 20, 20))
    assert opened().train.files == ("a.tif", "c.tif")
    assert "b.tif (it has 3 bands of uint16 and 4 of uint16 are wanted: choose config.bands.numbers" in caplog.text
    assert opened(numbers=(1, 2, 3)).train.files == ("a.tif", "b.tif", "c.tif")
    scenes = open_scenes(folder, labels=LABELS, layout=Layout((1, 2, 3, 4), "uint16"))
    assert [scene.name for scene in scenes] == ["a.tif", "c.tif"]
    assert "config.bands.numbers" not in caplog.text.rpartition("Skipped")[2], "a network's bands are not to be chosen"
    words = "4 bands of uint16 and 5 of uint16 are wanted: give images with the network's bands."
    with pytest.raises(ValueError, match=words):
        open_scenes(folder, labels=LABELS, layout=Layout((1, 2, 3, 4, 5), "uint16"))
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="the first because the file is empty: add others"):
        open_scenes(folder, labels=LABELS)


def test_kinds_of_images_and_nodata_without_a_tag_are_pointed_out(folder, opened, caplog):
    rng = np.random.default_rng(0)
    for i, count in enumerate((2, 2, 5, 2)):
        images = rng.integers(1000, 3000, (32, 32, count)).astype(np.uint16)
        images[:10, :5, 1] = 65535  # nodata by the tag of two files only
        away = rasterio.Affine(0.5, 0, 500000 + 1000 * i, 0, -0.5, 4000000)
        save(folder / "images" / f"{i}.tif", images, transform=away, nodata=65535 if i < 2 else None)
        save(folder / "masks" / f"{i}.png", ids(i, 32, 32))
    bands = opened().bands
    assert "1 of 4 files have 5 bands, of which 2 are read" in caplog.text
    assert f"band 2 is 65535 in {100 / (16 * 256 - 100):.0%} of its pixels and 1" in caplog.text
    assert "gdal_edit.py -a_nodata 65535 FILE" in caplog.text
    assert bands.high[0] < 3000
    assert bands.high[1] == 65535
    (folder / "images" / "2.tif").unlink()
    (folder / "images" / "3.tif").unlink()
    caplog.clear()
    bands = opened().bands
    assert bands.high[1] < 3000, "nodata of one band alone"
    assert "untagged" not in caplog.text
    assert "of several kinds" not in caplog.text


def test_ignored_rectangles_nodata_and_unlabelled_tiles_are_left_out(folder, opened):
    pair(folder, "a.png", 0, 48, 48)
    dark = coded(1, 48, 48) + np.uint8(1)
    dark[10:14, 40:] = 0
    save(folder / "images" / "b.tif", dark, nodata=0)
    save(folder / "masks" / "b.png", ids(1, 48, 48))
    labelled = opened(ignored=[("a", 0, 0, 16, 20), ("^b", 30, 31, -1, None)])
    wanted = {"a.png": ids(0, 48, 48), "b.tif": ids(1, 48, 48)}
    wanted["a.png"][0:16, 0:20] = IGNORE
    wanted["b.tif"][30:, 31:] = IGNORE
    wanted["b.tif"][10:14, 40:] = IGNORE
    source = labelled.train
    found = [(source.files[f], y, x) for f, y, x in source.positions.tolist()]
    assert len(found) == 16
    assert not {("a.png", 0, 0), ("b.tif", 32, 32)} & set(found)
    assert len(source.records) == 16, "what has no label takes no place"
    for i, (name, y, x) in enumerate(found):
        np.testing.assert_array_equal(source[i]["mask"], wanted[name][y : y + TILE, x : x + TILE])
    for scene in open_scenes(folder, labels=LABELS, ignored=[("a", 0, 0, 16, 20), ("^b", 30, 31, -1, None)]):
        with scene.open() as opened_scene:
            np.testing.assert_array_equal(opened_scene.mask(0, 48), wanted[scene.name])
            np.testing.assert_array_equal(opened_scene.mask(11, 33), wanted[scene.name][11:33])
    for rectangle, problem in [
        (("nowhere", 0, 0, 1, 1), "matches no image"),
        (("a", 5, 0, 5, 1), "is empty"),
    ]:
        with pytest.raises(ValueError, match=problem):
            opened(ignored=[rectangle])


@pytest.mark.parametrize(
    ("ignored", "problem"),
    [
        (("a", 0, 0, 16, 20), r"'a' is no ignored rectangle"),
        ([0, 0, 16, 20], r"0 is no ignored rectangle"),
        ([("a", 0, 0, 16)], r"\('a', 0, 0, 16\) is no ignored rectangle"),
        ([(0, 0, 16, 20, "a")], r"'a'\) is no ignored rectangle"),
        ([("a", 0, 0, 16.0, 20)], r"16\.0, 20\) is no ignored rectangle"),
        ([("a", 0, 0, "16", 20)], r"'16', 20\) is no ignored rectangle"),
        ([("a", 0, 0, 16, 20), ("part(", 0, 0, 16, 20)], r"'part\(', .* no valid pattern \(missing \), unterminated"),
        ([("a", -2, 0, 16, 20)], "corner below -1"),
        ([("a", 0, 0, 16, -3)], "corner below -1"),
        ([("a", 5, 0, 5, 1)], "is empty"),
        ([("a", 0, 9, None, 8)], "is empty"),
        ([("a", None, -1, 0, 8)], "is empty"),
    ],
)
def test_slips_in_rectangles_are_answered_with_how_they_are_written(folder, opened, ignored, problem):
    pair(folder, "a.png", 0, 20, 20)
    way = r"write \(pattern, y0, x0, y1, x1\) in whole pixels, -1 or None to the edge\.$"
    for read in (opened, lambda **options: open_scenes(folder, labels=LABELS, **options)):
        with pytest.raises(ValueError, match=f"{problem}.*{way}"):
            read(ignored=ignored)
    for given in ([["a", 0, np.int64(0), -1, 12]], (("a", None, -1, None, 12),)):
        (scene,) = open_scenes(folder, labels=LABELS, ignored=given)
        with scene.open() as found:
            expected = ids(0, 20, 20)
            expected[:, :12] = IGNORE
            np.testing.assert_array_equal(found.mask(0, 20), expected)


def test_jpeg_masks_are_one_error_for_the_folder(folder, opened, tmp_path):
    pair(folder, "a.png", 0, 20, 20, suffix=".jpg")
    pair(folder, "b.jpg", 1, 20, 20, suffix=".JPEG")
    save(folder / "images" / "alone.png", coded(3, 20, 20))
    for read in (opened, lambda: open_scenes(folder, labels=LABELS)):
        with pytest.raises(ValueError, match=r"masks are JPEG, whose lossy .* convert them to PNG") as caught:
            read()
        assert "tile_size" not in str(caught.value)
    assert not (tmp_path / "tfds").exists()
    (folder / "masks" / "a.jpg").unlink()
    pair(folder, "a.png", 0, 20, 20)
    assert [scene.name for scene in open_scenes(folder, labels=LABELS)] == ["a.png"]


def test_images_without_a_mask_and_broken_files_are_skipped_and_named(folder, opened, caplog):
    pair(folder, "good.png", 0, 20, 20)
    pair(folder, "broken_image.png", 1, 20, 20)
    pair(folder, "broken_mask.png", 1, 300, 300, mask=np.random.default_rng(0).integers(0, 3, (300, 300), np.uint8))
    pair(folder, "lossy.png", 2, 20, 20, suffix=".jpg")
    save(folder / "images" / "alone.png", coded(3, 20, 20))
    pair(folder, "small.png", 4, 20, 10)
    pair(folder, "bare.png", 4, 20, 20, mask=np.full((20, 20), IGNORE, np.uint8))
    for path in (folder / "images" / "broken_image.png", folder / "masks" / "broken_mask.png"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for fresh in (True, False):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="absl"):
            source = opened().train
        assert {source.files[file] for file in source.positions[:, 0]} == {"good.png"}
        skipped, barren = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "Skipped 4 image file(s)" in skipped, fresh
        assert "alone.png (there is no mask alone.*" in skipped
        assert "broken_image.png (it is broken" in skipped
        assert "broken_mask.png (its mask broken_mask.png is broken" in skipped
        assert "lossy.png (its mask lossy.jpg cannot be used: JPEG" in skipped
        assert "2 image file(s)" in barren
        assert "small.png (smaller than a tile)" in barren
        assert "bare.png (no pixel is labelled)" in barren
    names = [scene.name for scene in open_scenes(folder, labels=LABELS)]
    assert names == ["bare.png", "good.png", "small.png"], "a scene smaller than a tile can be scored"


def test_labels_that_do_not_fit_are_errors_and_nothing_is_taken_for_finished(folder, opened, tmp_path):
    with pytest.raises(FileNotFoundError, match="images"):
        opened()
    save(folder / "images" / "a.png", coded(0, 20, 20))
    with pytest.raises(FileNotFoundError, match=r"There is no .*masks: set masks to the folder"):
        opened()
    (folder / "masks").mkdir()
    with pytest.raises(ValueError, match="None of the 1 images"):
        opened()
    strange = ids(0, 20, 20)
    strange[7, 7:10] = 9
    save(folder / "masks" / "a.png", strange)
    for read in (opened, lambda: open_scenes(folder, labels=LABELS)):
        with pytest.raises(ValueError, match=r"mask .*a\.png holds the id 9 \(3 pixels\)"):
            read()
    save(folder / "masks" / "a.png", ids(0, 21, 20))
    with pytest.raises(ValueError, match=r"mask .*a\.png has 20x21 pixels and its image a\.png 20x20"):
        opened()
    save(folder / "masks" / "a.png", ids(0, 20, 20))
    save(folder / "masks" / "a.tif", ids(0, 20, 20))
    with pytest.raises(ValueError, match=r"a\.png has the masks a\.png and a\.tif"):
        opened()
    (folder / "masks" / "a.tif").unlink()
    save(folder / "images" / "a.jpg", coded(0, 20, 20))
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png have the same mask"):
        opened()
    (folder / "images" / "a.jpg").unlink()
    with pytest.raises(ValueError, match="No tile of 16x16 pixels"):
        opened(labels=Labels(LABELS.classes, ignore=(0, 1, 2, 255)))
    assert not list((tmp_path / "tfds").glob("segmentation_folder/*/*")), "nothing may be taken for finished"
    assert len(opened().train) == 4


def test_a_corrected_mask_is_told_apart(folder, opened):
    pair(folder, "a.png", 0, 40, 40)
    first = opened().train.digests()
    mask = ids(0, 40, 40)
    mask[20, 20] = (mask[20, 20] + 1) % 3
    pair(folder, "a.png", 0, 40, 40, mask=mask)
    (folder / "masks" / "a.png").touch()
    other = opened().train.digests()
    assert other["tiles_digest"] == first["tiles_digest"]
    assert other["pixels_digest"] != first["pixels_digest"]


def test_prepared_once_and_again_when_something_changes(folder, opened, generations, caplog):
    pair(folder, "a.png", 0, 40, 40)
    opened()
    opened()
    assert len(generations) == 1
    for number, options in enumerate(
        [
            {"labels": Labels(LABELS.classes, values=(2, 1, 0))},
            {"ignored": [("a", 0, 0, 1, 1)]},
            {"stride": 8},
        ]
    ):
        for _ in range(2):
            opened(**options)
        assert len(generations) == number + 2
    opened(labels=Labels(LABELS.classes, colours=("#000000", "#FFFFFF", "#FF0000")))
    assert len(generations) == 4, "colours for pictures change no tile"
    with caplog.at_level(logging.INFO, logger="absl"):
        opened()
        assert "has changed since" not in caplog.text, "other settings are no outdated state"
        save(folder / "masks" / "a.png", np.roll(ids(0, 40, 40), 1))
        opened()
        assert "has changed since" in caplog.text
    assert len(generations) == 5


def test_polygons_of_one_file_for_all_or_of_one_for_each(folder, opened, tmp_path):
    for number, name in enumerate(("a.tif", "b.tif")):
        here = rasterio.Affine(0.5, 0, 500000 + 20 * number, 0, -0.5, 4000000)
        save(folder / "images" / name, coded(number, 40, 40), transform=here)
    # In pixels of a: rows 4 to 12, columns 6 to 50, so ten columns of b as well.
    box = shapely.box(500003, 4000000 - 6, 500025, 4000000 - 2)
    data = [np.array(["house"], object)]
    options = {"geometry_type": "Polygon", "crs": "EPSG:32633"}
    pyogrio.raw.write(folder / "town.gpkg", shapely.to_wkb(np.array([box])), data, ["kind"], **options)
    expected = {"a.tif": np.full((40, 40), IGNORE, np.uint8), "b.tif": np.full((40, 40), IGNORE, np.uint8)}
    expected["a.tif"][4:12, 6:40] = expected["b.tif"][4:12, :10] = 1

    labelled = opened(masks="town.gpkg", attribute="kind")
    source = labelled.train
    found = [(source.files[f], y, x) for f, y, x in source.positions.tolist()]
    assert found == [("a.tif", 0, 0), ("a.tif", 0, 16), ("a.tif", 0, 24), ("b.tif", 0, 0)]
    for i, (name, y, x) in enumerate(found):
        np.testing.assert_array_equal(source[i]["mask"], expected[name][y : y + TILE, x : x + TILE])
    with pytest.raises(ValueError, match="no field 'class'"):
        opened(masks="town.gpkg", attribute="class")

    (folder / "masks").mkdir()
    (folder / "town.gpkg").rename(folder / "masks" / "b.gpkg")
    source = opened(attribute="kind").train
    assert source.files == ("b.tif",)
    np.testing.assert_array_equal(source[0]["mask"], expected["b.tif"][:TILE, :TILE])

    pair(folder, "c.png", 0, 20, 20)
    (folder / "masks" / "c.png").unlink()
    (folder / "masks" / "b.gpkg").rename(folder / "masks" / "c.gpkg")
    with pytest.raises(ValueError, match=r"c\.png has no georeference"):
        opened(attribute="kind")


def test_images_and_masks_of_several_resolutions_become_one(folder, opened):
    coarse = np.repeat(np.repeat(ids(0, 20, 20), 2, 0), 2, 1)
    save(folder / "images" / "fine.tif", np.repeat(np.repeat(coded(0, 20, 20), 2, 0), 2, 1))
    save(folder / "masks" / "fine.png", coarse)  # without a georeference of its own
    away = rasterio.Affine(1.0, 0, 600000, 0, -1.0, 4000000)
    save(folder / "images" / "plain.tif", coded(0, 20, 20), transform=away)
    save(folder / "masks" / "plain.tif", ids(0, 20, 20), transform=away)
    source = opened(gsd=1.0).train
    assert source.positions.tolist() == [[f, y, x] for f in (0, 1) for y in (0, 4) for x in (0, 4)]
    for i, (_, y, x) in enumerate(source.positions.tolist()):
        np.testing.assert_array_equal(source[i]["image"], coded(0, 20, 20)[y : y + TILE, x : x + TILE])
        np.testing.assert_array_equal(source[i]["mask"], ids(0, 20, 20)[y : y + TILE, x : x + TILE])


def test_a_json_beside_a_mask_and_masks_inside_the_images_are_no_pairs(folder, opened):
    pair(folder, "a.png", 0, 20, 20)
    (folder / "masks" / "a.json").write_text(json.dumps({"by": "hand"}))
    assert opened().train.files == ("a.png",)
    (folder / "masks").rename(folder / "images" / "masks")
    labelled = opened(images="images", masks="images/masks")
    assert labelled.train.files == ("a.png",)
