import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp

from grass_jax.bands import Bands, picture, unit_range
from grass_jax.data.builders import tiling
from grass_jax.data.builders.image_folder import ImageFolder
from grass_jax.data.source import open_tiles

TILE = 16


def coded(number, height, width):
    """A picture whose every pixel says where it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(y, number)], -1).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower().startswith(".tif"):
        height, width, count = pixels.shape
        here = rasterio.Affine(0.5, 0, 500000, 0, -0.5, 4000000)
        profile = {"count": count, "height": height, "width": width, "dtype": pixels.dtype, "crs": "EPSG:32633"}
        with rasterio.open(path, "w", driver="GTiff", transform=here, **profile | options) as raster:
            raster.write(pixels.transpose(2, 0, 1))
    else:
        Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "my images"


@pytest.fixture
def tiles(folder, tmp_path):
    def prepared(**options):
        return open_tiles("image_folder", path=folder, data_dir=tmp_path / "tfds", **{"tile_size": TILE} | options)

    return prepared


@pytest.fixture
def generations(monkeypatch):
    count = []
    generate = ImageFolder._generate_examples
    monkeypatch.setattr(ImageFolder, "_generate_examples", lambda self: (count.append(1), generate(self))[1])
    return count


def test_tiles_equal_plain_slices_in_a_stable_order(folder, tiles):
    pictures = {"a/b/one.PNG": (40, 50), "a/two.tiff": (16, 70), "Zebra.Tif": (33, 33), "last.png": (16, 16)}
    for number, (name, size) in enumerate(pictures.items()):
        save(folder / name, coded(number, *size))
    (folder / "notes.txt").write_text("no image")
    save(folder / ".hidden" / "x.png", coded(9, 20, 20))
    save(folder / ".hidden.png", coded(9, 20, 20))
    (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)

    source = tiles(stride=12)
    expected = []
    for name in sorted(pictures):
        h, w = pictures[name]
        ys, xs = (sorted({*range(0, n - TILE + 1, 12), n - TILE}) for n in (h, w))
        expected += [(name, y, x) for y in ys for x in xs]
    assert [(source.files[file], y, x) for file, y, x in source.positions.tolist()] == expected
    assert len(source) == len(expected)
    for i, (name, y, x) in enumerate(expected):
        whole = coded(list(pictures).index(name), *pictures[name])
        np.testing.assert_array_equal(source[i]["image"], whole[y : y + TILE, x : x + TILE])
        record = source.records[i]
        assert (record["file"].decode(), record["y"], record["x"]) == (name, y, x)
    assert set(source[0]) == {"image"}


def stored(dtype, count, height=40, width=50):
    rng = np.random.default_rng(count)
    pixels = rng.gamma(3, 1, (height, width, count)) * {"uint8": 20, "uint16": 700, "float32": 0.1}[dtype] - 0.1
    return pixels.clip(0 if dtype != "float32" else None, 255 if dtype == "uint8" else None).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("count", [1, 3, 5, 16])
def test_any_bands_of_any_depth_as_stored_and_measured(folder, tiles, dtype, count):
    pixels = stored(dtype, count)
    save(folder / "a.tif", pixels)
    save(folder / "sub" / "b.tif", pixels[::-1])
    source = tiles()
    assert source.files == ("a.tif", "sub/b.tif")
    cut = []
    for i, (file, y, x) in enumerate(source.positions.tolist()):
        cut.append((pixels, pixels[::-1])[file][y : y + TILE, x : x + TILE])
        tile = pickle.loads(pickle.dumps(source))[i]["image"]
        assert tile.dtype == dtype
        np.testing.assert_array_equal(tile, cut[-1])
    values = np.concatenate(cut).reshape(-1, count).astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5), axis=0)
    if dtype == "uint8":
        low, high = 0 * low, 0 * high + 255
    scaled = ((values - low) / (high - low)).clip(0, 1)
    assert isinstance(source.bands, Bands)
    assert (source.bands.numbers, source.bands.dtype) == (tuple(range(1, count + 1)), dtype)
    assert source.bands.rgb == ((1, 2, 3) if count == 3 and dtype != "float32" else ())
    for name, expected in (("low", low), ("high", high), ("mean", scaled.mean(0)), ("std", scaled.std(0))):
        np.testing.assert_allclose(getattr(source.bands, name), expected, rtol=1e-9, atol=1e-12, err_msg=name)
    assert tiles().bands == source.bands, "as written"


def test_chosen_bands_are_another_data_set(folder, tiles, generations, caplog):
    pixels = stored("uint16", 5)
    save(folder / "a.tif", pixels)
    assert tiles().bands.numbers == (1, 2, 3, 4, 5)
    source = tiles(numbers=(4, 1))
    np.testing.assert_array_equal(source[0]["image"], pixels[:TILE, :TILE, [3, 0]])
    assert source.bands.numbers == (4, 1)
    assert tiles(numbers=[1, 4]).bands.numbers == (1, 4)
    assert len(generations) == 3
    with caplog.at_level(logging.INFO, logger="absl"):
        tiles()
    assert len(generations) == 3
    assert "has changed since" not in caplog.text
    with pytest.raises(ValueError, match=r"has all of the bands \(1, 6\): choose config\.bands\.numbers of"):
        tiles(numbers=(1, 6))
    save(folder / "a.tif", stored("uint8", 17))
    with pytest.raises(ValueError, match=r"17 bands, and at most 16 can be read: choose them with config\.bands"):
        tiles()
    assert tiles(numbers=(17,)).bands.numbers == (17,)
    words = r"^The sample has red, green and blue of 8 bits and the network reads bands 1, 2: give a folder\.$"
    with pytest.raises(ValueError, match=words):
        open_tiles("sample", numbers=(1, 2))


def test_files_of_another_layout_are_skipped_and_told_what_to_do(folder, tiles, caplog):
    for name, dtype, count in (("a", "uint8", 4), ("b", "uint8", 3), ("c", "uint8", 4), ("d", "uint16", 4)):
        save(folder / f"{name}.tif", stored(dtype, count))
    assert tiles().files == ("a.tif", "c.tif")
    assert (
        "b.tif (it has 3 bands of uint8 and 4 of uint8 are wanted: choose config.bands.numbers that all images have, "
        "such as (1, 2, 3))"
    ) in caplog.text
    assert "d.tif (it has 4 bands of uint16 and 4 of uint8 are wanted: convert it to 8 bits)" in caplog.text
    assert tiles(numbers=(1, 2, 3)).files == ("a.tif", "b.tif", "c.tif")


def test_files_whose_bands_are_read_in_part_are_counted(folder, tiles, caplog):
    for i in range(5):
        save(folder / f"radar{i}.tif", stored("uint16", 1))
    for i in range(3):
        save(folder / f"optical{i}.tif", stored("uint16", 13))
    save(folder / "short.tif", stored("uint16", 2, height=8))  # skipped
    for fresh in (True, False):
        caplog.clear()
        assert len(tiles().files) == 8
        assert caplog.text.count("of several kinds: 3 of 8 files have 13 bands, of which 1 is read.") == 1, fresh
    for path in folder.glob("radar*"):
        path.unlink()
    for i in range(2):
        save(folder / f"colour{i}.tif", stored("uint16", 4))
    caplog.clear()
    assert len(tiles(numbers=(4, 1)).files) == 5
    words = "3 of 5 files have 13 bands, of which 2 are read", "2 of 5 files have 4 bands, of which 2 are read"
    assert all(word in caplog.text for word in words)
    for path in folder.glob("colour*"):
        path.unlink()
    caplog.clear()
    with caplog.at_level("INFO", logger="absl"):
        assert len(tiles(numbers=(4, 1)).files) == 3
    assert "of several kinds" not in caplog.text
    assert f"Bands of the images of {folder} that are not read: 11." in caplog.text


def test_files_that_name_other_colours_are_skipped(folder, tiles, caplog):
    kinds = {"a": "blue green red", "b": "red green blue", "c": "blue green red", "d": "gray undefined undefined"}
    for name, colours in kinds.items():
        save(folder / f"{name}.tif", stored("uint16", 4))
        with rasterio.open(folder / f"{name}.tif", "r+") as raster:
            raster.colorinterp = [ColorInterp[colour] for colour in [*colours.split(), "undefined"]]
    source = tiles()
    assert source.files == ("a.tif", "c.tif", "d.tif")
    assert source.bands.rgb == (3, 2, 1)
    assert "b.tif (its red, green and blue are bands 1, 2, 3 and those of most images bands 3, 2, 1: " in caplog.text
    assert tiles(numbers=(4, 1)).files == ("a.tif", "b.tif", "c.tif", "d.tif"), "no colours, no contradiction"


def test_every_band_is_measured_without_its_own_nodata(folder, tiles):
    rng = np.random.default_rng(0)
    for dtype, nodata in (("uint8", 255), ("uint16", 65535), ("float32", -9999), ("float32", None)):
        pixels = stored(dtype, 3, 3 * TILE, 3 * TILE) + np.array(1, dtype)
        good = rng.random(pixels.shape) < 0.7
        pixels[~good] = np.nan if nodata is None else nodata
        good &= pixels != (nodata or -1)
        save(folder / "a.tif", pixels, nodata=nodata, photometric="MINISBLACK")
        source = tiles()
        assert len(source) == 9
        tile = source[0]["image"]
        wanted = np.where(good, pixels, np.nan) if dtype == "float32" else np.where(good.any(-1)[..., None], pixels, 0)
        np.testing.assert_array_equal(tile, wanted[:TILE, :TILE])
        assert np.isfinite(unit_range(jnp.asarray(tile), source.bands)).all()
        for band in range(3):
            values = pixels[good[..., band], band].astype(np.float64)
            low, high = (0, 255) if dtype == "uint8" else np.percentile(values, (0.5, 99.5))
            scaled = ((values - low) / (high - low)).clip(0, 1)
            found = [getattr(source.bands, name)[band] for name in ("low", "high", "mean", "std")]
            np.testing.assert_allclose(found, (low, high, scaled.mean(), scaled.std()), rtol=1e-9)


def test_nodata_without_a_tag_is_pointed_out(folder, tiles, caplog):
    decibels = np.random.default_rng(0).normal(-12, 3, (4 * TILE, 4 * TILE, 2)).astype(np.float32)
    decibels[: TILE // 2, :, 1] = -9999
    save(folder / "a.tif", decibels)
    for fresh in (True, False):
        caplog.clear()
        assert len(tiles()) == 16
        (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert f"The images of {folder} seem to hold a nodata value that is not tagged" in warning, fresh
        assert "tag it with gdal_edit.py -a_nodata -9999 FILE:\n  band 2 is -9999 in 12% of its pixels" in warning
        others = decibels[TILE // 2 :, :, 1]
        assert f"and {others.min():.9g} to {others.max():.9g} in the others" in warning
        assert "band 1" not in warning
    save(folder / "a.tif", decibels, nodata=-9999)
    caplog.clear()
    assert tiles().bands.low[1] > -30
    assert "nodata value that is not" not in caplog.text


def test_grey_pictures_among_coloured_ones_are_repeated(folder, tiles, caplog):
    grey = coded(1, 20, 20)[..., 0]
    for name in "ab":
        save(folder / f"{name}.png", grey)
    assert tiles()[0]["image"].shape == (TILE, TILE, 1)
    save(folder / "c.png", coded(3, 20, 20))
    source = tiles()
    assert source.files == ("a.png", "b.png", "c.png")
    np.testing.assert_array_equal(source[0]["image"], np.stack([grey[:TILE, :TILE]] * 3, -1))
    assert source.bands.rgb == (1, 2, 3)
    assert "2 of 3 files have 1 band, which is read three times" in caplog.text


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("uint16", 65535), ("float32", -9999), ("float32", None)])
def test_tiles_that_are_mostly_nodata_are_dropped_and_counted(folder, tiles, caplog, dtype, nodata):
    height, width = 3 * TILE, 4 * TILE
    pixels = stored(dtype, 4, height, width) + np.array(1, dtype)
    valid = np.ones((height, width), bool)
    valid[:, : TILE + TILE // 2 + 1] = False  # one column of tiles, and a little more than half of the next
    valid[TILE : TILE + 8, 2 * TILE : 3 * TILE] = False  # half of a tile, which stays
    pixels[~valid] = np.nan if nodata is None else nodata
    save(folder / "a.tif", pixels, nodata=nodata, photometric="MINISBLACK")
    save(folder / "b.tif", pixels[: 2 * TILE, : 2 * TILE], nodata=nodata, photometric="MINISBLACK")
    for fresh in (True, False):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="absl"):
            source = tiles()
        assert caplog.text.count("Left out 10 tile(s)") == 1, fresh
        assert "b.tif (nearly all of it is nodata)" in caplog.text
        assert source.positions.tolist() == [[0, y, x] for y in (0, 16, 32) for x in (32, 48)]
        assert len(source.records) == 6
    for i, (_, y, x) in enumerate(source.positions.tolist()):
        box = slice(y, y + TILE), slice(x, x + TILE)
        tile, nothing = source[i]["image"], np.nan if dtype == "float32" else 0
        np.testing.assert_array_equal(tile, np.where(valid[box][..., None], pixels[box], nothing))
        unit = np.asarray(unit_range(jnp.asarray(tile), source.bands))
        assert not unit[~valid[box]].any(), "the darkest"
        assert not picture(tile, source.bands)[~valid[box]].any()
    counted = pixels[:, 2 * TILE :][valid[:, 2 * TILE :]].astype(np.float64)
    low, high = (0, 255) if dtype == "uint8" else np.percentile(counted, (0.5, 99.5), axis=0)
    np.testing.assert_allclose(source.bands.mean, ((counted - low) / (high - low)).clip(0, 1).mean(0))
    (folder / "a.tif").unlink()
    with pytest.raises(ValueError, match=r"^More than half of every tile of 16x16 .* is nodata: set a smaller .*\.$"):
        tiles()


def test_unusable_files_are_skipped_and_named(folder, tiles, caplog):
    save(folder / "good.png", coded(1, 20, 20))
    save(folder / "small.png", coded(1, 40, TILE - 1))
    (folder / "empty.jpg").touch()
    (folder / "text.tif").write_text("no raster")
    noisy = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    for name in ("half.png", "half.jpg", "half.tif"):
        save(folder / name, noisy)
        (folder / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    for fresh in (True, False):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="absl"):
            source = tiles()
        assert source.files == ("good.png",)
        assert len(source) == 4
        (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert "Skipped 7 image file(s)" in warning, fresh
        for name in ("small.png (15x40", "empty.jpg (the file is empty", "text.tif", "dangling.png"):
            assert name in warning
        for name in ("half.png", "half.jpg", "half.tif"):
            assert f"{name} (it is broken" in warning


def test_many_unusable_files_are_counted(folder, tiles, caplog):
    save(folder / "good.png", coded(1, 20, 20))
    for i in range(103):
        (folder / f"empty{i:03}.png").touch()
    tiles()
    assert "Skipped 103" in caplog.text
    assert "empty099.png" in caplog.text
    assert "empty100.png" not in caplog.text
    assert "and 3 more" in caplog.text


def test_folders_without_a_usable_image_are_errors(folder, tiles, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        tiles()
    folder.mkdir()
    with pytest.raises(ValueError, match="no image in"):
        tiles()
    save(folder / "small.png", coded(1, 8, 8))
    with pytest.raises(ValueError, match=r"can be used.*too small.*smaller tile_size"):
        tiles()
    with pytest.raises(ValueError, match=r"leaves out all 1 images"):
        tiles(exclude="small")
    assert not list((tmp_path / "tfds").glob("image_folder/*/*")), "nothing may be taken for finished"
    with pytest.raises(NotADirectoryError, match="is a file"):
        open_tiles("image_folder", path=folder / "small.png")
    with pytest.raises(ValueError, match="needs a path"):
        open_tiles("image_folder")
    with pytest.raises(ValueError, match="use sample or image_folder"):
        open_tiles("folder")


def test_files_kept_for_testing_are_left_out(folder, tiles):
    for number, name in enumerate(("a/part001.png", "a/part007.png", "b/part002.png")):
        save(folder / name, coded(number, 32, 32))
    assert tiles(exclude=r"part00[789]").files == ("a/part001.png", "b/part002.png")
    assert tiles(exclude="^a/").files == ("b/part002.png",)
    assert len(tiles().files) == 3


def test_prepared_once_and_again_when_something_changes(folder, tiles, generations, caplog):
    save(folder / "a.png", coded(1, 40, 40))
    save(folder / "sub" / "b.png", coded(2, 20, 20))
    first = tiles()
    assert len(generations) == 1
    np.testing.assert_array_equal(tiles().positions, first.positions)
    assert len(generations) == 1

    assert len(tiles(stride=8)) > len(first)
    tiles(tile_size=10)
    assert len(generations) == 3
    tiles()
    assert len(generations) == 3, "the earlier tiling is still there"
    assert "has changed since" not in caplog.text, "another tiling is not an outdated one"

    status = (folder / "a.png").stat()
    save(folder / "a.png", coded(3, 40, 40))
    os.utime(folder / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with caplog.at_level(logging.INFO, logger="absl"):
        assert tiles()[0]["image"][0, 0, 2] == 3
    assert len(generations) == 4
    assert "has changed since" in caplog.text
    (Path(first.name) / "metadata.json").write_text("{")  # torn; it is no part of what is read
    assert len(tiles()) == len(first)

    (folder / "a.png").rename(folder / "c.png")
    assert tiles().files == ("c.png", "sub/b.png")
    (folder / "c.png").unlink()
    assert tiles().files == ("sub/b.png",)
    assert len(generations) == 6


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_other_pixels_under_the_same_names_and_sizes_are_told_apart(folder, tiles, tmp_path, monkeypatch, dtype):
    pixels = stored(dtype, 3)
    save(folder / "a.tif", pixels)
    first = tiles()
    os.utime(folder / "a.tif", ns=(1, 1))
    monkeypatch.setattr(tiling, "cores", lambda: 1)
    save_png = Image.Image.save  # another library compresses otherwise
    monkeypatch.setattr(Image.Image, "save", lambda self, *rest, **_: save_png(self, *rest, compress_level=9))
    again = tiles()
    assert again.name != first.name
    assert again.digests() == first.digests()
    assert again.subset([0]).digests()["pixels_digest"] == first.digests()["pixels_digest"]
    pixels[-1, -1, 1] += 1
    save(folder / "a.tif", pixels)
    other = tiles()
    assert other.name not in (first.name, again.name)
    assert other.digests()["tiles_digest"] == first.digests()["tiles_digest"]
    assert other.digests()["pixels_digest"] != first.digests()["pixels_digest"]


def test_tiles_that_were_prepared_before_pixels_were_hashed_are_told_apart_by_their_places(folder, tiles, generations):
    save(folder / "a.png", coded(1, 40, 40))
    first = tiles()
    notes = Path(first.name) / "metadata.json"
    notes.write_text(
        json.dumps({name: note for name, note in json.loads(notes.read_text()).items() if name != "pixels"})
    )
    places = first.digests()
    del places["pixels_digest"]
    assert tiles().digests() == places
    assert len(generations) == 1


def test_an_interrupted_preparation_is_not_taken_for_finished(folder, tiles, monkeypatch, tmp_path):
    save(folder / "a.png", coded(1, 40, 40))
    save(folder / "b.png", coded(2, 40, 40))
    generate = ImageFolder._generate_examples

    def interrupted(self):
        yield next(iter(generate(self)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiles()
    (home,) = (tmp_path / "tfds" / "image_folder").glob("my_images-*")
    (home / "incomplete.KILLED_1.2.0").mkdir()  # what a killed process leaves
    assert len(tiles()) == 18
    assert [path.name for path in home.iterdir()] == ["1.2.0"]


def test_two_processes_at_once_prepare_once(folder, tmp_path):
    for i in range(6):
        save(folder / f"{i}.png", coded(i, 64, 64))
    code = f"""
        from absl import logging
        from grass_jax.data.source import open_tiles
        logging.set_verbosity("info")
        source = open_tiles("image_folder", path={str(folder)!r}, tile_size=16, data_dir={str(tmp_path / "tfds")!r})
        print(len(source), source[95]["image"][0, 0].tolist())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert [out for out, _ in outputs] == ["96 [48, 48, 5]\n"] * 2
    assert sum("Preparing " in err for _, err in outputs) == 1


def test_the_bands_that_are_read_anyway_make_no_other_data_set(folder, tiles):
    for i in range(2):
        save(folder / f"{i}.tif", stored("uint16", 4))
    assert tiles(numbers=(1, 2, 3, 4)).name == tiles().name != tiles(numbers=(1, 2, 3)).name
