import os
from collections import Counter

import numpy as np
import pytest

from grass_jax.data.budget import choose_labels, read_labels, write_labels
from grass_jax.data.source import TileSource

GROUPS = ["a"] * 40 + ["b"] * 3 + ["c"] * 17 + ["d"]


@pytest.mark.parametrize("seed", range(4))
def test_budgets_are_nested_and_even(seed):
    whole = choose_labels(GROUPS, 0, seed)
    assert sorted(whole) == list(range(len(GROUPS)))
    sizes = Counter(GROUPS)
    for count in (1, 2, 4, 5, 10, 25, len(GROUPS)):
        chosen = choose_labels(GROUPS, count, seed)
        np.testing.assert_array_equal(chosen, whole[:count])
        taken = Counter(GROUPS[i] for i in chosen)
        rounds = max(taken.values())  # a group that is not used up lacks at most one tile
        assert all(taken[group] >= min(size, rounds - 1) for group, size in sizes.items())


def test_draws_differ_by_seed_and_inside_groups():
    first = {seed: choose_labels(GROUPS, 4, seed) for seed in range(8)}
    assert len({tuple(chosen) for chosen in first.values()}) == 8
    assert all({GROUPS[i] for i in chosen} == {"a", "b", "c", "d"} for chosen in first.values())
    assert len({GROUPS[chosen[0]] for chosen in first.values()}) > 1, "no group always comes first"
    assert len({next(i for i in chosen if GROUPS[i] == "a") for chosen in first.values()}) > 4


def test_the_draw_stays_what_it_is():
    """Written down once: another NumPy or platform must not change which labels a published figure used."""
    assert choose_labels(["x", "y", "x", "y", "z", "x"], 0, 1).tolist() == [4, 2, 1, 5, 3, 0]


def test_shares_and_mistakes():
    assert len(choose_labels(GROUPS, 0.1, 0)) == 6
    assert len(choose_labels(GROUPS, 0.001, 0)) == 1
    assert len(choose_labels(GROUPS, 10.0, 0)) == 10
    for labels, problem in [
        (62, "budget of 62 is larger than the 61 .* use 'all', or"),
        (-1, "not -1"),
        (1.5, "not 1.5"),
        (1.0, "may mean one tile or all: write 1 or 'all'"),
    ]:
        with pytest.raises(ValueError, match=problem):
            choose_labels(GROUPS, labels, 0)


@pytest.fixture
def source():
    positions = np.array([(f, y, x) for f in range(2) for y in (0, 8) for x in (0, 8, 11)], np.int32)
    return TileSource("test", None, ("a b/ü.png", "tab\tname\udcff.png"), positions, 8)


def test_a_list_names_the_same_tiles_again(source, tmp_path):
    chosen = [7, 0, 11, 4]
    path = tmp_path / "run" / "labels.txt"
    write_labels(path, source, chosen)
    assert path.read_bytes().split(b"\n")[1] == "a b/ü.png\t0\t0".encode()
    assert read_labels(path, source).tolist() == chosen
    part = source.subset([11, 7, 4, 3, 0])
    assert read_labels(path, part).tolist() == [1, 4, 0, 2]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a b/ü.png\t0\t5", "no labelled training tile"),
        ("other.png\t0\t0", "no labelled training tile"),
        ("a b/ü.png 0 0", "no labelled training tile"),
        ("a b/ü.png\t0\t0", "twice"),
    ],
)
def test_a_line_that_is_no_tile_is_named(source, tmp_path, line, problem):
    path = tmp_path / "labels.txt"
    path.write_text(f"a b/ü.png\t0\t0\n\n{line}\n")
    with pytest.raises(ValueError, match=f"Line 3 of .*{problem}"):
        read_labels(path, source)
    path.write_text("\n")
    with pytest.raises(ValueError, match="names no tile"):
        read_labels(path, source)


def test_a_long_line_is_cut_and_a_pipe_is_not_waited_for(source, tmp_path):
    (tmp_path / "labels.txt").write_text("x" * 1_000_000)
    with pytest.raises(ValueError, match=r"Line 1 of .*, 'x{100}', is no labelled training tile") as error:
        read_labels(tmp_path / "labels.txt", source)
    assert len(str(error.value)) < 500 + len(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match=f"^The list {path} is no file: give one with a line"):
            read_labels(path, source)
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "none", source)
