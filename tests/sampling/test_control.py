"""Boxes placed at random: their sizes stay, they stay inside, and every place is equally likely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.sampling import random_places

SIZE = 12
placed = jax.jit(random_places, static_argnums=2)


@pytest.mark.parametrize("shape", [(500,), (250, 2)])
def test_sizes_stay_and_boxes_stay_inside(shape):
    rng = np.random.default_rng(0)
    corners = rng.integers(0, SIZE - 1, (*shape, 2))
    boxes = np.concatenate([corners, rng.integers(corners + 1, SIZE + 1)], -1).astype(np.int32)
    boxes[0], boxes[1] = (0, 0, SIZE, SIZE), (5, 0, 6, SIZE)
    found = np.asarray(placed(jax.random.key(0), boxes, SIZE))
    assert (found.shape, found.dtype) == (boxes.shape, np.int32)
    np.testing.assert_array_equal(found[..., 2:] - found[..., :2], boxes[..., 2:] - boxes[..., :2])
    assert found.min() >= 0
    assert found.max() <= SIZE
    np.testing.assert_array_equal(found[0], boxes[0])  # there is one place only
    assert (found != boxes).any(-1).mean() > 0.7
    np.testing.assert_array_equal(found, placed(jax.random.key(0), boxes, SIZE))
    assert (found != np.asarray(placed(jax.random.key(1), boxes, SIZE))).any(-1).mean() > 0.7


@pytest.mark.parametrize("extent", [(9, 10), (1, 12), (11, 7)])
def test_every_place_is_equally_likely(extent):
    draws = 20_000
    boxes = np.tile(np.array([0, 0, *extent], np.int32), (draws, 1))
    found = np.asarray(placed(jax.random.key(3), boxes, SIZE))
    rows, columns = (SIZE - side + 1 for side in extent)
    counts = np.zeros((rows, columns))
    for y, x in found[:, :2]:
        counts[y, x] += 1
    expected = draws / counts.size
    # chi squared of n - 1 degrees of freedom: five standard deviations above its mean; rows and columns independent
    freedom = counts.size - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_draws_at_the_ends_of_their_range_stay_inside(monkeypatch):
    for draw, corner in ((0.0, 0), (np.nextafter(np.float32(1), np.float32(0)), 255 - 3)):
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype, draw=draw: jnp.full(shape, draw, dtype))
        found = random_places(jax.random.key(0), jnp.array([[7, 9, 10, 12]], jnp.int32), 255)
        np.testing.assert_array_equal(found, [[corner, corner, corner + 3, corner + 3]])
