"""What can go wrong with the folder of the data sets, and that nothing half-made is taken for whole after it."""

import errno
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from grass_jax.data.builders.image_folder import ImageFolder
from grass_jax.data.source import open_tiles

TILE = 16


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "Bänder & Böden 影像"
    folder.mkdir()
    for number in range(2):
        y, x = np.mgrid[:40, :40]
        pixels = np.stack([y, x, np.full_like(y, number)], -1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"Süd {number} 北.png")
    return {"path": folder, "data_dir": tmp_path / "Daten für TFDS 数据", "tile_size": TILE}


def prepared(place):
    return sorted(place["data_dir"].glob("image_folder/*/[0-9]*"))


def check(place):
    source = open_tiles("image_folder", **place)
    assert source.files == ("Süd 0 北.png", "Süd 1 北.png")
    assert len(source) == 18
    for i, (file, y, x) in enumerate(source.positions.tolist()):
        assert source[i]["image"][0, 0].tolist() == [y, x, file]
    assert len(prepared(place)) == 1
    return source


def test_spaces_and_other_alphabets_in_every_name(place):
    source = check(place)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[9]["image"], source[9]["image"])
    assert str(place["data_dir"]) in source.name
    check(place)


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


# How each step on the way to the records fails; what TFDS calls when is its own affair, so several are tried.
STEPS = {
    "the lock": (os, "open"),
    "a folder": (Path, "mkdir"),
    "the records": (tfds.core.file_adapters.ArrayRecordFileAdapter, "write_examples"),
    "the notes": (tfds.core.DatasetInfo, "write_to_directory"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"There is no space left in {}: free some, or set data_dir to a folder on another disk\."),
        (errno.EACCES, r"{} cannot be written to \(Permission denied\): change its permissions, or set data_dir .*\."),
        (errno.EROFS, r"{} cannot be written to \(Read-only file system\): change its permissions, or .*\."),
    ],
)
def test_a_folder_that_does_not_take_the_records(place, monkeypatch, step, number, words):
    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], raising(OSError(number, os.strerror(number))))
        with pytest.raises(OSError, match=f"^{words.format(re.escape(str(place['data_dir'])))}$"):
            open_tiles("image_folder", **place)
    assert not prepared(place)
    check(place)


def test_a_folder_that_cannot_be_made_two_levels_above(place, monkeypatch):
    below = place | {"data_dir": place["data_dir"] / "a" / "b"}
    make = Path.mkdir

    def mkdir(self, *args, **kwargs):
        if self == place["data_dir"]:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        make(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", mkdir)
        with pytest.raises(OSError, match=f"^{re.escape(str(below['data_dir']))} cannot be written to"):
            open_tiles("image_folder", **below)
    check(below)


def test_the_writer_of_the_records_has_words_alone_for_a_full_disk(place, monkeypatch):
    """As array_record does: seen on a file system of 600 kB."""
    words = "write() failed: No space left on device; writing x.array_record; Failed to close chunk_writer"
    with monkeypatch.context() as patch:
        patch.setattr(*STEPS["the records"], raising(RuntimeError(words)))
        with pytest.raises(OSError, match=r"^There is no space left in"):
            open_tiles("image_folder", **place)
    assert not prepared(place)
    check(place)


def test_a_disk_that_fills_up_between_two_files(place, monkeypatch):
    generate = ImageFolder._generate_examples

    def filling(self):
        for i, example in enumerate(generate(self)):
            if i == 12:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield example

    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "_generate_examples", filling)
        with pytest.raises(OSError, match=r"^There is no space left in"):
            open_tiles("image_folder", **place)
    assert not prepared(place)
    check(place)


def test_a_prepared_set_is_read_where_nothing_can_be_written(place, monkeypatch):
    check(place)
    for target, name in STEPS.values():
        if target is not os:  # reading opens files as well
            monkeypatch.setattr(target, name, raising(OSError(errno.EROFS, "Read-only file system")))
    check(place)


@pytest.mark.parametrize("below", ["", "deep/down"])
def test_a_file_in_place_of_the_folder(place, below):
    place["data_dir"].write_text("a file")
    whole = place | {"data_dir": place["data_dir"] / below}
    file = re.escape(str(place["data_dir"]))
    with pytest.raises(OSError, match=f"^{file} is a file, and data sets are kept in a folder: set data_dir to one.$"):
        open_tiles("image_folder", **whole)
    assert place["data_dir"].read_text() == "a file"
    place["data_dir"].unlink()
    check(whole)


def test_other_errors_keep_their_own_words(place, monkeypatch):
    for error in (OSError(errno.EIO, "Input/output error", "scene.tif"), PermissionError(13, "no", "/elsewhere/a.tif")):
        with monkeypatch.context() as patch:
            patch.setattr(*STEPS["the records"], raising(error))
            with pytest.raises(OSError, match=re.escape(str(error.filename))) as caught:
                open_tiles("image_folder", **place)
        assert "data_dir" not in str(caught.value)
        assert not prepared(place)


def test_what_another_process_finishes_at_the_last_moment_is_read(place, monkeypatch):
    """It has no records when the builder is made, and has them when the builder is asked."""
    is_prepared = tfds.core.DatasetBuilder.is_prepared

    def late(builder):
        monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", is_prepared)
        open_tiles("image_folder", **place)
        return is_prepared(builder)

    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", late)
    check(place)
