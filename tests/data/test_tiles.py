import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grass_jax.data.tiles import overlapping_pairs, tile_positions

SIZES = st.integers(1, 40)


@given(height=SIZES, width=SIZES, tile_size=st.integers(1, 12), stride=st.integers(1, 12))
def test_tiles_lie_inside_and_cover_the_scene(height, width, tile_size, stride):
    corners = tile_positions(height, width, tile_size, stride)
    covered = np.zeros((height, width), bool)
    for y, x in corners:
        assert 0 <= y <= height - tile_size
        assert 0 <= x <= width - tile_size
        covered[y : y + tile_size, x : x + tile_size] = True
    assert len({(y, x) for y, x in corners.tolist()}) == len(corners)
    assert corners.tolist() == sorted(corners.tolist())
    if min(height, width) < tile_size:
        assert not len(corners)
    elif stride <= tile_size:
        assert covered.all()


def test_edge_tiles_are_aligned_to_the_edge():
    expected = [[0, 0], [0, 4], [0, 6], [3, 0], [3, 4], [3, 6]]
    np.testing.assert_array_equal(tile_positions(7, 10, 4, 4), expected)


@pytest.mark.parametrize(("tile_size", "stride"), [(0, 1), (4, 0), (4, -1)])
def test_impossible_tilings_are_refused(tile_size, stride):
    with pytest.raises(ValueError, match="at least 1"):
        tile_positions(8, 8, tile_size, stride)


@settings(max_examples=60)
@given(
    corners=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 30)), max_size=30),
    tile_size=st.integers(1, 12),
)
def test_overlapping_pairs_equal_the_plain_double_loop(corners, tile_size):
    expected = []
    for i, (file_i, y_i, x_i) in enumerate(corners):
        for j, (file_j, y_j, x_j) in enumerate(corners):
            if i < j and file_i == file_j and abs(y_i - y_j) < tile_size and abs(x_i - x_j) < tile_size:
                expected.append([i, j])
    found = overlapping_pairs(np.array(corners, np.int32).reshape(-1, 3), tile_size)
    assert found.tolist() == expected
