"""Boundary counts against a search over all pairs of pixels."""

import math

import numpy as np
import pytest
import scipy.ndimage

from grass_jax.data.labels import IGNORE
from grass_jax.segment.boundary import boundary_counts, boundary_f1


def patches(seed, height=17, width=13, classes=3):
    noise = np.random.default_rng(seed).normal(size=(classes, height, width))
    return scipy.ndimage.gaussian_filter(noise, (0, 1.5, 1.5)).argmax(0).astype(np.uint8)


def plain_boundary(ids, c):
    """Boundary pixels of class c, one at a time."""
    height, width = ids.shape
    found = []
    for y, x in np.argwhere(ids == c).tolist():
        for near_y, near_x in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= near_y < height and 0 <= near_x < width
            if inside and ids[near_y, near_x] not in (c, IGNORE):
                found.append((y, x))
                break
    return found


def plain_counts(truth, prediction, classes, tolerance):
    prediction = np.where(truth == IGNORE, IGNORE, prediction)
    rows = []
    for c in range(classes):
        found, wanted = plain_boundary(prediction, c), plain_boundary(truth, c)

        def matched(points, others):
            return sum(any(math.dist(point, other) <= tolerance for other in others) for point in points)

        rows.append([len(found), matched(found, wanted), len(wanted), matched(wanted, found)])
    return np.array(rows)


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 3])
@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_a_search_over_all_pairs(seed, tolerance):
    truth, prediction = patches(seed), patches(seed + 10)
    truth[4:9, 3:7] = IGNORE
    expected = plain_counts(truth, prediction, 4, tolerance)  # the fourth class is in neither
    assert 0 < expected[:, 1].sum() < expected[:, 0].sum()
    np.testing.assert_array_equal(boundary_counts(truth, prediction, 4, tolerance), expected)


def test_a_larger_scene_is_counted_as_by_a_distance_transform():
    truth, prediction = patches(5, 120, 90, 2), patches(6, 120, 90, 2)
    found = boundary_counts(truth, prediction, 2, 4.2)
    for c in range(2):
        sides = []
        for ids in (prediction, truth):
            eroded = scipy.ndimage.binary_erosion(ids == c, border_value=1)  # with the cross of four neighbours
            sides.append((ids == c) & ~eroded)
        for column, (mine, other) in ((0, sides), (2, sides[::-1])):
            near = scipy.ndimage.distance_transform_edt(~other) <= 4.2
            assert found[c, column : column + 2].tolist() == [mine.sum(), (mine & near).sum()]


def test_ignored_pixels_and_the_edge_of_the_scene_make_no_boundary():
    truth = np.zeros((8, 8), np.uint8)
    truth[2:4] = IGNORE
    prediction = np.zeros((8, 8), np.uint8)
    prediction[3] = 1  # where nothing counts
    assert boundary_counts(truth, prediction, 2, 2).sum() == 0


def test_a_shifted_outline_is_found_within_the_tolerance_only():
    truth, prediction = np.zeros((2, 30, 30), np.uint8)
    truth[:, 10:] = 1
    prediction[:, 13:] = 1
    assert boundary_f1(boundary_counts(truth, prediction, 2, 3), ["a", "b"])["mean"] == 1.0
    assert boundary_f1(boundary_counts(truth, prediction, 2, 2.9), ["a", "b"])["mean"] == 0.0


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    found = boundary_f1(np.array([[10, 8, 20, 10], [0, 0, 0, 0], [0, 0, 5, 0]]), ["a", "b", "c"])
    assert found["f1"] == {"a": pytest.approx(2 * 0.8 * 0.5 / 1.3), "b": None, "c": 0.0}
    assert found["mean"] == pytest.approx(0.8 / 1.3 / 2)
    assert found["absent"] == ["b"]
    assert boundary_f1(np.zeros((1, 4), int), ["a"])["mean"] is None


def test_a_wrong_id_is_an_error():
    with pytest.raises(ValueError, match="prediction holds the id 7"):
        boundary_counts(np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.uint8), 3, 1)
