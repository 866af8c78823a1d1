import itertools
import os
import re
import tracemalloc

import numpy as np
import pytest

from grass_jax.data.splits import PARTS, Blocks, Split, assign_blocks, assign_parts, group_of

FILES = [f"area{a}/part{p}.tif" for a in range(5) for p in range(4)]
AREAS = [file.partition("/")[0] for file in FILES]


def test_groups_by_pattern():
    assert group_of(FILES, "") == FILES
    assert group_of(FILES, r"area(\d)") == [file[4] for file in FILES]
    assert group_of(FILES, r"^area\d") == AREAS
    with pytest.raises(ValueError, match=r"finds no group in the name area0/part0\.tif"):
        group_of(FILES, r"area([1-4])")


def test_groups_by_tables(tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("tile,group\npart0,a\narea1/part1,b\narea1/part2.png,c\n\n")
    assert group_of(["x/part0.jpg", "area1/part1.png", "area1/part2.png"], str(table)) == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"area2/part1\.png has no group in .*groups\.csv: add a line"):
        group_of(["area1/part1.png", "area2/part1.png"], str(table))
    table.write_text("tile,group\npart0,a\npart1\n")
    with pytest.raises(ValueError, match="line without a group, 'part1'"):
        group_of(["part0.png"], str(table))
    with pytest.raises(FileNotFoundError):
        group_of(["part0.png"], str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="one pattern or paths"):
        group_of(["part0.png"], (str(table), "part"))


def test_names_that_repeat_in_two_tables_need_their_folder(tmp_path):
    for folder, rows in (("train", "1,0\n2,0\n"), ("val", "1,1\n3,0\n")):
        (tmp_path / f"{folder}.csv").write_text("tile,group\n" + rows)
    files = ["train/1.jpg", "train/2.jpg", "val/1.jpg", "val/3.jpg"]
    with pytest.raises(ValueError, match=r"train/1\.jpg is in the groups 0 and 1"):
        group_of(files, [str(tmp_path / "train.csv"), str(tmp_path / "val.csv")])
    groups = group_of(files, [f"train={tmp_path}/train.csv", f"val={tmp_path}/val.csv"])
    assert groups == ["train/0", "train/0", "val/1", "val/0"]
    strange = tmp_path / "a=b.csv"
    strange.write_text("tile,group\n1,7\n")
    assert group_of(["1.png"], str(strange)) == ["7"]


@pytest.mark.parametrize("by", ["file", "group"])
def test_shares_are_of_whole_groups_and_depend_on_names_and_seed_alone(by):
    units = AREAS if by == "group" else FILES
    split = Split(by=by, test=0.4, validation="0.34")
    parts = assign_parts(FILES, units, split)
    count = len(set(units))
    by_unit = {part: {unit for unit, its in zip(units, parts, strict=True) if its == part} for part in PARTS}
    assert not any(a & b for a, b in itertools.combinations(by_unit.values(), 2))
    tests = round(0.4 * count)
    assert len(by_unit["test"]) == tests
    assert len(by_unit["validation"]) == round(0.34 * (count - tests))

    backwards = assign_parts(FILES[::-1], units[::-1], split)
    assert backwards[::-1] == parts
    assert len({tuple(assign_parts(FILES, units, Split(by=by, test=0.4, seed=seed))) for seed in range(5)}) > 1


def test_a_small_share_takes_one_group_and_none_takes_none():
    assert (
        len({a for a, p in zip(AREAS, assign_parts(FILES, AREAS, Split(test=0.01)), strict=True) if p == "test"}) == 1
    )
    assert set(assign_parts(FILES, AREAS, Split())) == {"train"}
    assert set(assign_parts(FILES, AREAS, Split(test="0", validation=0.0))) == {"train"}


def test_the_shares_stay_what_they_are():
    """Written down once: another NumPy or platform must not move files between training and test."""
    parts = assign_parts("abcdefgh", "abcdefgh", Split(by="file", test=0.25, validation=0.2, seed=3))
    assert [name for name, part in zip("abcdefgh", parts, strict=True) if part == "test"] == ["b", "c"]
    assert [name for name, part in zip("abcdefgh", parts, strict=True) if part == "validation"] == ["h"]


def test_patterns():
    parts = assign_parts(FILES, FILES, Split(by="file", test="part3", validation=r"^area0/"))
    for file, part in zip(FILES, parts, strict=True):
        assert part == ("test" if "part3" in file else "validation" if file.startswith("area0") else "train")
    with pytest.raises(ValueError, match=r"area0/part3\.tif and area0/part0\.tif .* divides them"):
        assign_parts(FILES, AREAS, Split(test="part3"))
    with pytest.raises(ValueError, match=r"of test matches none of the 20 files"):
        assign_parts(FILES, AREAS, Split(test="nowhere"))
    with pytest.raises(ValueError, match=r"leave none of the 5 groups"):
        assign_parts(FILES, AREAS, Split(test="area[0-3]", validation=0.5))
    with pytest.raises(ValueError, match=r"of validation matches none of the 4 files"):
        assign_parts(FILES, AREAS, Split(test="area[0-3]", validation="area0"))


def test_settings_that_make_no_sense():
    for options, problem in [
        ({"by": "tile"}, "must be 'file', 'group' or 'block'"),
        ({"test": 1.0}, "share from 0 to below 1"),
        ({"validation": -0.1}, r"^validation must"),
        ({"by": "block", "test": "part3"}, "must be a share such as"),
        ({"block": 0}, "at least 1"),
        ({"guard": -1}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=problem):
            Split(**options)


SIZES = [(70, 130), (64, 64), (200, 97), (20, 90)]
NAMES = ["d.tif", "a.tif", "c.tif", "b.tif"]


def parts_of_pixels(blocks: Blocks) -> np.ndarray:
    """Part of every pixel, painted block by block; the last block of a row reaches to the edge."""
    painted = np.full((blocks.height, blocks.width), 255)
    rows, columns = blocks.parts.shape
    for r, c in itertools.product(range(rows), range(columns)):
        bottom = blocks.height if r == rows - 1 else (r + 1) * blocks.side
        right = blocks.width if c == columns - 1 else (c + 1) * blocks.side
        painted[r * blocks.side : bottom, c * blocks.side : right] = blocks.parts[r, c]
    return painted


def test_blocks_are_shared_out_over_all_scenes():
    split = Split(by="block", test=0.3, validation=0.2, block=32)
    blocks = assign_blocks(NAMES, SIZES, split)
    assert [scene.parts.shape for scene in blocks] == [(2, 4), (2, 2), (6, 3), (1, 2)]
    counts = np.bincount(np.concatenate([scene.parts.ravel() for scene in blocks]), minlength=3)
    total = 8 + 4 + 18 + 2
    assert counts.tolist() == [total - 10 - 4, 4, 10]  # train, validation (of what is left), test
    order = [2, 0, 3, 1]
    again = assign_blocks([NAMES[i] for i in order], [SIZES[i] for i in order], split)
    for i, scene in zip(order, again, strict=True):
        np.testing.assert_array_equal(scene.parts, blocks[i].parts)
    with pytest.raises(ValueError, match=r"makes only 1 block\(s\)"):
        assign_blocks(["a"], [(40, 40)], Split(by="block", test=0.3, block=32))


@pytest.mark.parametrize("guard", [0, 1, 5, 40])
def test_guard_bands_equal_a_search_of_every_neighbourhood(guard):
    blocks = assign_blocks(NAMES, SIZES, Split(by="block", test=0.3, validation=0.2, block=32))
    for scene in blocks[:2]:
        painted = parts_of_pixels(scene)
        for part, number in zip(PARTS, range(3), strict=True):
            expected = np.zeros(painted.shape, bool)
            for y, x in itertools.product(range(scene.height), range(scene.width)):
                around = painted[max(0, y - guard) : y + guard + 1, max(0, x - guard) : x + guard + 1]
                expected[y, x] = (around == number).all()
            found = np.concatenate([scene.rows(part, y, y1, guard) for y, y1 in ((0, 7), (7, 50), (50, scene.height))])
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(6))
def test_rows_equal_the_plain_rule_for_any_size_guard_and_strip(seed):
    rng = np.random.default_rng(seed)
    height, width, side = rng.integers(1, 60), rng.integers(1, 60), rng.integers(1, 25)
    shape = max(1, height // side), max(1, width // side)
    scene = Blocks(int(height), int(width), int(side), (rng.random(shape) < 0.2).astype(np.uint8) * 2)
    painted = parts_of_pixels(scene)
    for guard in (0, 1, int(side), 100):
        y0 = int(rng.integers(0, height))
        y1 = int(rng.integers(y0, height + 1))
        for number in (0, 2):
            found = scene.rows(PARTS[number], y0, y1, guard)
            # A pixel counts where the nearest one of another part is further away than the guard, by the larger of
            # the distances along the axes.
            others = np.argwhere(painted != number)
            expected = np.ones((y1 - y0, width), bool)
            for y, x in np.ndindex(expected.shape):
                expected[y, x] = not (np.abs(others - (y0 + y, x)).max(axis=1) <= guard).any()
            assert found.dtype == bool
            np.testing.assert_array_equal(found, expected)


def test_a_large_scene_takes_little_more_than_its_answer():
    parts = np.random.default_rng(0).integers(0, 3, (40, 40)).astype(np.uint8)
    scene = Blocks(4000, 4000, 100, parts)
    tracemalloc.start()
    try:
        found = scene.rows("test", 0, 4000, 8)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * found.nbytes
    assert found.nbytes == 4000 * 4000


def test_boxes_inside_blocks_equal_a_look_at_every_pixel():
    rng = np.random.default_rng(0)
    scene = assign_blocks(NAMES, SIZES, Split(by="block", test=0.3, block=32))[2]
    painted = parts_of_pixels(scene)
    y0, x0 = rng.integers(0, 180, 400), rng.integers(0, 80, 400)
    y1, x1 = y0 + rng.integers(1, 20, 400), x0 + rng.integers(1, 17, 400)
    for number, part in enumerate(PARTS[::2]):
        expected = [(painted[a:b, c:d] == 2 * number).all() for a, b, c, d in zip(y0, y1, x0, x1, strict=True)]
        assert 0 < sum(expected) < 400
        np.testing.assert_array_equal(scene.all_of(part, y0, x0, y1, x1), expected)


def test_no_word_of_a_share_is_taken_for_a_pattern():
    files = ["a0.5b.png", "c.png", "d.png", "e.png"]
    parts = assign_parts(files, files, Split(by="file", test="0.5"))
    assert parts.count("test") == 2
    assert re.search("0.5", files[0])
    assert assign_parts(files, files, Split(by="file", test=r"0\.5")) == ["test", "train", "train", "train"]


@pytest.mark.parametrize(
    "content",
    ["file,group\na.png,x\n".encode("utf-16"), b"file,group\na.png,\xc3\n", b"file,group\na.png," + b"x" * 200_000],
)
def test_a_table_that_is_no_csv_is_named(tmp_path, content):
    (tmp_path / "groups.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"groups\.csv is no CSV in UTF-8 \(.*\): export it anew"):
        group_of(["a.png"], str(tmp_path / "groups.csv"))


def test_a_table_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "groups.csv")
    with pytest.raises(ValueError, match=r"groups\.csv is no file: give a CSV"):
        group_of(["a.png"], str(tmp_path / "groups.csv"))
