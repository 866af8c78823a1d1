import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grass_jax.data.order import epoch_order, find_overlaps
from grass_jax.data.tiles import tile_positions


def grid(scenes, side, tile_size, stride):
    corners = tile_positions(side, side, tile_size, stride)
    return np.concatenate([np.column_stack([np.full(len(corners), scene), corners]) for scene in range(scenes)])


def count_overlaps(order, positions, tile_size):
    """Overlapping pairs inside batches, by the plain double loop."""
    count = 0
    for batch in order:
        for a, b in itertools.combinations(positions[batch].tolist(), 2):
            count += a[0] == b[0] and abs(a[1] - b[1]) < tile_size and abs(a[2] - b[2]) < tile_size
    return count


@settings(max_examples=40, deadline=None)
@given(
    scenes=st.integers(1, 4),
    side=st.integers(8, 24),
    stride=st.sampled_from([2, 4, 8]),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
)
def test_every_tile_at_most_once_and_the_count_is_true(scenes, side, stride, share, seed, epoch):
    positions = grid(scenes, side, 8, stride)
    batch_size = max(1, int(share * len(positions)))
    overlaps = find_overlaps(positions, 8)
    order, left = epoch_order(seed, epoch, tiles=len(positions), batch_size=batch_size, overlaps=overlaps)
    assert order.shape == (len(positions) // batch_size, batch_size)
    assert order.dtype == np.int32
    assert len(np.unique(order)) == order.size
    assert order.min() >= 0
    assert order.max() < len(positions)
    assert left == count_overlaps(order, positions, 8)
    again, _ = epoch_order(seed, epoch, tiles=len(positions), batch_size=batch_size, overlaps=overlaps)
    np.testing.assert_array_equal(order, again)


@pytest.mark.parametrize(("scenes", "side", "batch_size"), [(8, 40, 16), (30, 24, 24), (1, 80, 20), (1, 16, 2)])
def test_overlapping_tiles_are_kept_apart_where_that_can_be_done(scenes, side, batch_size):
    positions = grid(scenes, side, 8, 4)
    overlaps = find_overlaps(positions, 8)
    for epoch in range(3):
        order, left = epoch_order(5, epoch, tiles=len(positions), batch_size=batch_size, overlaps=overlaps)
        assert left == 0
        assert count_overlaps(order, positions, 8) == 0


def test_what_cannot_be_kept_apart_is_counted():
    positions = grid(1, 16, 8, 4)  # nine tiles, at most four of them apart: batches of five must clash
    order, left = epoch_order(0, 0, tiles=9, batch_size=5, overlaps=find_overlaps(positions, 8))
    assert left == count_overlaps(order, positions, 8) > 0


def test_epochs_and_seeds_differ_and_no_tile_is_left_out_for_good():
    positions = grid(4, 41, 8, 8)  # the aligned edge tiles overlap their neighbours
    overlaps = find_overlaps(positions, 8)
    tiles = len(positions)

    def order(seed, epoch):
        return epoch_order(seed, epoch, tiles=tiles, batch_size=10, overlaps=overlaps)[0]

    assert not np.array_equal(order(0, 0), order(0, 1))
    assert not np.array_equal(order(0, 0), order(1, 0))
    epochs = 400
    seen = np.bincount(np.concatenate([order(0, epoch).ravel() for epoch in range(epochs)]), minlength=tiles)
    share = tiles // 10 * 10 / tiles
    deviation = np.sqrt(epochs * share * (1 - share))
    assert np.abs(seen - epochs * share).max() < 5 * deviation


def test_the_order_stays_the_same_between_releases():
    order, _ = epoch_order(7, 2, tiles=10, batch_size=5, overlaps=find_overlaps(grid(10, 8, 8, 8), 8))
    words = np.random.Philox(np.random.SeedSequence([7, 2])).random_raw(10).tolist()
    assert order.ravel().tolist() == sorted(range(10), key=words.__getitem__)


@pytest.mark.parametrize("batch_size", [0, 10])
def test_a_batch_larger_than_the_data_is_refused(batch_size):
    with pytest.raises(ValueError, match="between 1 and the number of tiles"):
        epoch_order(0, 0, tiles=9, batch_size=batch_size, overlaps=find_overlaps(grid(1, 16, 8, 4), 8))
