from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grass_jax.bands import Bands
from grass_jax.data import source as source_module
from grass_jax.data.faults import (
    FEW,
    IN_A_ROW,
    NAMED,
    DataError,
    Fault,
    Replaced,
    UnreadableTileError,
    readable,
    substitutes,
)
from grass_jax.data.labelled import LabelledSet
from grass_jax.data.labels import IGNORE
from grass_jax.data.loader import BatchSource, batches
from grass_jax.data.source import TileSource, open_tiles
from grass_jax.segment.labelled_data import tile_scenes

TILES, SIZE, BATCH = 64, 4, 8
GREY = Bands(numbers=(1,), low=(0.0,), high=(255.0,), mean=(0.5,), std=(0.5,), rgb=())


class Records:
    """Tile i is an image and a mask of i; those of `bad` fail, the first `healing` reads of each tile, too."""

    def __init__(self, bad=(), healing=0, error=OSError):
        self.bad, self.healing, self.error, self.reads = dict.fromkeys(bad), healing, error, []

    def __getitem__(self, index):
        self.reads.append(index)
        if index in self.bad and self.bad[index] is not None:
            return self.bad[index]
        if index in self.bad or self.reads.count(index) <= self.healing:
            raise self.error("disk gone")
        return tile_of(index)


def tile_of(number, shape=(SIZE, SIZE), dtype=np.uint8):
    return {"image": np.full((*shape, 1), number, dtype), "mask": np.full(shape, number, dtype)}


def in_memory(records, pauses=()):
    positions = np.column_stack([np.arange(TILES) // 16, np.arange(TILES) % 16 * SIZE, np.zeros(TILES)])
    files = ("a.tif", "b.tif", "c.tif", "d.tif")
    return TileSource("/data/x", records, files, positions.astype(np.int32), SIZE, ("x",), bands=GREY, pauses=pauses)


def read(records, replaced=None, **changes):
    options = {"batch_size": BATCH, "seed": 5, "start": 0, "stop": TILES // BATCH, "threads": 1} | changes
    return list(batches(in_memory(records), replaced=replaced, **options))


@pytest.fixture
def slept(monkeypatch):
    pauses = []
    monkeypatch.setattr(source_module.time, "sleep", pauses.append)
    return pauses


def test_a_record_is_tried_again_after_growing_pauses(slept):
    source = in_memory(Records(healing=2), pauses=(0.1, 1.0, 5.0))
    np.testing.assert_array_equal(source[7]["image"], tile_of(7)["image"])
    assert slept == [0.1, 1.0]
    assert TileSource.pauses == tuple(sorted(TileSource.pauses))


def test_a_record_is_given_up_after_the_last_pause(slept):
    records = Records(bad=[7])
    sentence = r"^Tile 7 \(a.tif, y=28, x=0\) of /data/x cannot be read \(disk gone\): delete"
    with pytest.raises(UnreadableTileError, match=sentence):
        in_memory(records, pauses=(0.1, 1.0))[7]
    assert (records.reads, slept) == ([7] * 3, [0.1, 1.0])
    with pytest.raises(MemoryError):  # no damage: waiting and other tiles do not help
        in_memory(Records(bad=[7], error=MemoryError), pauses=(0.1,))[7]


def test_a_file_that_comes_back_is_opened_again(tmp_path, monkeypatch):
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(tmp_path / "a.png")
    source = open_tiles("image_folder", path=tmp_path, tile_size=16, data_dir=tmp_path / "tfds")
    (record_file,) = Path(source.name).glob("*.array_record*")
    away = record_file.rename(tmp_path / "away")
    with pytest.raises(DataError, match="No such file"):
        source.read(0, ())
    monkeypatch.setattr(source_module.time, "sleep", lambda _: away.exists() and away.rename(record_file))
    assert source[0]["image"].shape == (16, 16, 3)
    assert source.read(0, ())["image"].shape == (16, 16, 3)  # the later reads are on the new handle


def test_tiles_that_can_be_read_come_with_their_numbers_and_the_others_are_named(slept, caplog):
    records = Records(bad=[3, 9, 4])
    found = list(readable(in_memory(records, pauses=(0.1, 1.0)), np.array([5, 3, 9, 0, 4])))
    assert [number for number, _ in found] == [5, 0]
    for number, tile in found:
        np.testing.assert_array_equal(tile["mask"], tile_of(number)["mask"])
    assert records.reads == [5, 3, 3, 3, 9, 0, 4, 4, 4]  # 9 follows one that was waited for in vain
    assert [text.split(" of ")[0] for text in caplog.messages] == [
        f"Tile {number} (a.tif, y={4 * number}, x=0)" for number in (3, 9, 4)
    ]
    assert all(text.endswith("/data/x cannot be read (disk gone): it is left out here.") for text in caplog.messages)


def test_no_pixel_of_a_held_out_tile_counts_that_cannot_be_read(caplog):
    groups = tuple("ab" * (TILES // 2))
    labelled = LabelledSet(("x",), np.zeros((1, 3), np.uint8), in_memory(Records([9])), groups, (), (), GREY)
    shown = []
    for scene in tile_scenes(labelled, np.array([8, 9])):
        with scene.open() as opened:
            image, mask = opened.rows(1, opened.height), opened.mask(1, opened.height)
        shown.append(
            (scene.group, image.shape, image.dtype, set(image.ravel()), mask.shape, mask.dtype, set(mask.ravel()))
        )
    uint8, shape = np.dtype(np.uint8), (SIZE - 1, SIZE)
    assert shown == [
        ("a", (*shape, 1), uint8, {8}, shape, uint8, {8}),
        ("b", (*shape, 1), uint8, {0}, shape, uint8, {IGNORE}),
    ]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        (tile_of(7, shape=(SIZE, SIZE + 1)), r"its image is uint8 \(4, 5, 1\) and not uint8 \(4, 4, 1\)"),
        (tile_of(7, dtype=np.uint16), "its image is uint16"),
        (tile_of(7) | {"mask": np.zeros((SIZE, SIZE, 3), np.uint8)}, r"its mask is uint8 \(4, 4, 3\)"),
        (tile_of(7) | {"image": b"no picture"}, "cannot identify image file"),
        ({"mask": tile_of(7)["mask"]}, "'image'"),
    ],
)
def test_a_record_of_another_form_counts_as_unreadable(record, cause):
    records = Records()
    records.bad[7] = record
    with pytest.raises(DataError, match=cause):
        in_memory(records)[7]
    replaced = Replaced()
    assert not any((batch["index"] == 7).any() for batch in read(records, replaced))
    assert replaced.total == 1


@pytest.mark.parametrize("bad", [(9,), (63, 0), (20, 21, 22)])
def test_another_tile_takes_the_place_of_one_that_cannot_be_read(bad):
    replaced = Replaced()
    order = np.stack([batch["index"] for batch in read(Records())])
    damaged = read(Records(bad), replaced)
    for step, after in enumerate(damaged):
        expected = []
        for row, tile in enumerate(order[step].tolist()):
            number, later = tile, step
            while number in bad:  # the tile of the same row in the next batch
                later = (later + 1) % len(order)
                number = order[later, row]
            expected.append(number)
        assert after["index"].tolist() == expected
        assert after["index"].dtype == np.int32
        for number, image, mask in zip(expected, after["image"], after["mask"], strict=True):
            np.testing.assert_array_equal(image, tile_of(number)["image"])
            np.testing.assert_array_equal(mask, tile_of(number)["mask"])
    assert replaced.total == len(bad)


def rows_of(records):
    steps = {"batch_size": BATCH, "seed": 5, "start": 0, "stop": 24, "rows": slice(0, BATCH), "negatives": True}
    return BatchSource(in_memory(records, pauses=(0.1, 1.0)), **steps)


def test_a_hole_of_neighbouring_tiles_is_gone_around(slept):
    hole = range(20, 32)
    rows = rows_of(Records(hole))
    found = [rows[step] for step in range(8)]
    assert sum(len(faults) for _, faults in found) == len(hole)
    assert not any(np.isin(batch["index"], hole).any() for batch, _ in found)


def test_no_tile_is_in_a_batch_twice_however_many_of_it_cannot_be_read(slept):
    order = np.stack([rows_of(Records())[step][0]["index"] for step in range(8)])
    for batch in order:
        for bad in (batch, order[:2].ravel(), order[-2:].ravel()):
            rows = rows_of(Records(bad.tolist()))
            for step in range(8):
                assert len(set(rows[step][0]["index"].tolist())) == BATCH


@pytest.mark.parametrize("count", [2, 4])
def test_the_substitute_is_the_same_on_every_process(count):
    whole = read(Records([9, 30]))
    parts = [read(Records([9, 30]), process_index=i, process_count=count) for i in range(count)]
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[step]["index"] for part in parts]), batch["index"])


def test_substitutes_are_the_tiles_of_the_same_row_in_the_next_batches():
    order = np.arange(24).reshape(8, 3)
    assert list(substitutes(order, 5, 1)) == [19, 22, 1, 4, 7]
    assert list(substitutes(order[:3], 1, 2)) == [8, 2, 6, 0, 7]  # after all batches the next rows
    assert list(substitutes(order[:2], 0, 0)) == [3, 4, 5]
    assert list(substitutes(order[:1], 0, 1)) == [2, 0]  # the only batch


def test_a_tile_that_was_given_up_is_not_waited_for_again(slept):
    records = Records([9])
    rows = rows_of(records)
    for step in range(24):
        rows[step]
    assert slept == [0.1, 1.0]
    assert records.reads.count(9) == 3 + 2  # once in each of the two later epochs
    records.bad.clear()
    assert sum(len(rows[step][1]) for step in range(8)) == 0  # and taken again when it can be read


def test_the_log_names_the_first_tiles_and_then_says_sums(caplog):
    replaced, limits = Replaced(), {"rows": 100, "steps_per_epoch": 1000, "where": "/data/x"}
    for number in [*range(8), *range(32)]:
        replaced.add((Fault(number, "torn"),), [f"Tile {number}"], **limits)
        replaced.add((), [], **limits)
    named = [f"Tile {number} cannot be read (torn): another one takes its place." for number in range(NAMED)]
    sums = [f"{n} times so far a tile could not be read and another one took its place." for n in (10, 20, 40)]
    assert [record.getMessage() for record in caplog.records] == named + sums
    assert replaced.total == 40


def test_the_count_of_a_log_adds_up():
    replaced, limits = Replaced(), {"rows": 100, "steps_per_epoch": 1000, "where": ""}
    assert replaced.since_last() == {}
    for count in (2, 1):
        replaced.add((Fault(1, ""),) * count, ["Tile 1"] * count, **limits)
    assert replaced.since_last() == {"replaced": 3.0}
    assert replaced.since_last() == {}
    replaced.add((Fault(1, ""),), ["Tile 1"], **limits)
    assert replaced.since_last() == {"replaced": 1.0}


def test_many_unreadable_tiles_of_an_epoch_end_the_run():
    fault = ((Fault(3, "torn"),), ["Tile 3 of x"])
    replaced, limits = Replaced(), {"rows": 10, "steps_per_epoch": 100, "where": "/data/x"}
    for step in range(1000):  # 1 % of the rows
        replaced.add(*(fault if step % 10 == 0 else ((), [])), **limits)
    replaced.add(*fault, **limits)
    last = r"the last: Tile 3 of x; torn"
    with pytest.raises(DataError, match=rf"^11 of the last 1000 tiles could not be read \({last}\): .* delete /data/x"):
        replaced.add(*fault, **limits)
    few, limits = Replaced(), {"rows": 8, "steps_per_epoch": 5, "where": ""}  # 1 % of 40 is less than a tile
    for _ in range(FEW):
        few.add(*fault, **limits)
    with pytest.raises(DataError):
        few.add(*fault, **limits)


def test_several_unreadable_tiles_in_a_row_end_the_run():
    sentence = rf"^Tile \d+ .* and {IN_A_ROW} others in its place cannot be read \(disk gone\): bring"
    with pytest.raises(DataError, match=sentence):
        read(Records(bad=range(TILES)))
