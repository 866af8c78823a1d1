import logging
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import rasterio
from PIL import Image

from grass_jax.data.builders.image_folder import ImageFolder
from grass_jax.data.source import open_tiles

TILE = 16


def coded(number, height, width):
    """A picture whose every pixel says where it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(y, number)], -1).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower().startswith(".tif"):
        profile = {"count": 3, "height": pixels.shape[0], "width": pixels.shape[1], "dtype": "uint8"}
        here = rasterio.Affine(0.5, 0, 500000, 0, -0.5, 4000000)
        with rasterio.open(path, "w", driver="GTiff", transform=here, crs="EPSG:32633", **profile) as raster:
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

    (folder / "a.png").rename(folder / "c.png")
    assert tiles().files == ("c.png", "sub/b.png")
    (folder / "c.png").unlink()
    assert tiles().files == ("sub/b.png",)
    assert len(generations) == 6


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
    (home / "incomplete.KILLED_1.0.0").mkdir()  # what a killed process leaves
    assert len(tiles()) == 18
    assert [path.name for path in home.iterdir()] == ["1.0.0"]


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
