"""Places that the two views share, against loops over cells and regions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.augment import Geometry
from grass_jax.methods.places import coverage, near_cells, shared_regions
from grass_jax.methods.registry import make_method
from grass_jax.state import create_state

# boxes in tile pixels: one inside the other, overlapping, not touching, the same place with a float box
BOXES = np.array(
    [
        [[0, 0, 40, 48], [10, 12, 30, 24]],
        [[3, 5, 33, 25], [13, 0, 43, 20]],
        [[0, 0, 10, 10], [20, 30, 40, 48]],
        [[1.5, 2.25, 21.5, 30.25], [1.5, 2.25, 21.5, 30.25]],
    ],
    np.float32,
)
FLIPS = np.array([[False, True], [True, False], [True, True], [False, True]])
GEOMETRY = Geometry(jnp.asarray(BOXES), jnp.asarray(FLIPS))


def centre(box, flip, row, column, height, width):
    """Tile pixels (y, x) of the centre of a cell."""
    y0, x0, y1, x1 = box
    column = width - 1 - column if flip else column
    return np.array([y0 + (row + 0.5) / height * (y1 - y0), x0 + (column + 0.5) / width * (x1 - x0)])


@pytest.mark.parametrize("distance", [0.4, 0.7, 1.5])
def test_near_cells(distance):
    height, width = 3, 4
    found = np.asarray(near_cells(GEOMETRY, height, width, distance))
    assert found.shape == (4, 12, 12)
    for tile, i, j in np.ndindex(found.shape):
        first, second = (
            centre(BOXES[tile, view], FLIPS[tile, view], *divmod(cell, width), height, width)
            for view, cell in enumerate((i, j))
        )
        diagonal = max(np.hypot((b[2] - b[0]) / height, (b[3] - b[1]) / width) for b in BOXES[tile].astype(float))
        assert found[tile, i, j] == (np.linalg.norm(first - second) < distance * diagonal), (tile, i, j)
    assert not found[2].any()


def test_near_cells_of_one_place_are_themselves_mirrored():
    found = np.asarray(near_cells(GEOMETRY, 3, 3, 0.5))[3].reshape(3, 3, 3, 3)
    for y, x, v, u in np.ndindex(found.shape):
        assert found[y, x, v, u] == (y == v and x == 2 - u)


def test_shared_regions_lie_at_the_same_place_of_the_tile():
    grid = 3
    rows, columns = (np.asarray(edges) for edges in shared_regions(GEOMETRY, grid))
    assert rows.shape == columns.shape == (4, 2, grid, 2)
    for tile in (0, 1, 3):
        low = BOXES[tile, :, :2].max(0)
        high = BOXES[tile, :, 2:].min(0)
        for view, i in np.ndindex(2, grid):
            y0, x0, y1, x1 = BOXES[tile, view]
            wanted = [low + (high - low) * part / grid for part in (i, i + 1)]
            np.testing.assert_allclose(y0 + rows[tile, view, i] * (y1 - y0), [p[0] for p in wanted], atol=1e-4)
            shares = 1 - columns[tile, view, i][::-1] if FLIPS[tile, view] else columns[tile, view, i]
            np.testing.assert_allclose(x0 + shares * (x1 - x0), [p[1] for p in wanted], atol=1e-4)
    assert (rows[2, ..., 0] > rows[2, ..., 1]).all()


def test_coverage_is_the_mean_of_a_fine_grid():
    rng = np.random.default_rng(0)
    intervals = np.sort(rng.integers(0, 1001, (20, 2)) / 1000, axis=1)
    intervals = intervals[intervals[:, 0] < intervals[:, 1]]
    found = np.asarray(coverage(jnp.asarray(intervals, jnp.float32), 7))
    for (first, last), row in zip(intervals, found, strict=True):
        points = np.linspace(first, last, 20001)
        wanted = np.histogram(points, bins=7, range=(0, 1))[0] / len(points)
        np.testing.assert_allclose(row, wanted, atol=2e-3)
    empty = np.asarray(coverage(jnp.asarray([[0.5, 0.5], [0.7, 0.2]], jnp.float32), 7))
    np.testing.assert_array_equal(empty, np.zeros((2, 7)))


@pytest.mark.parametrize(
    "options",
    [
        {"name": "pixpro", "hidden": 16, "embedding": 8},
        {"name": "glcnet", "temperature": 0.2, "embedding": 8},
    ],
    ids=lambda options: options["name"],
)
def test_views_without_places_are_refused(tiny_encoder, options):
    method = make_method(tiny_encoder, options, total_steps=10)
    state = create_state(jax.random.key(0), method, optax.sgd(0.1), size=32)
    words = rf"^{options['name']} needs the places of the views: let augment return \(views, geometry\)\.$"
    with pytest.raises(ValueError, match=words):
        method.targets(state, jnp.zeros((2, 2, 32, 32, 3)), None)
