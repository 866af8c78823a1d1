"""Purity against plain loops over pixels, places and pairs."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from grass_jax.data.labels import IGNORE
from grass_jax.segment.purity import Purity, box_purity, join, summarise_purity


def patches(seed, size, classes=3):
    noise = np.random.default_rng(seed).normal(size=(classes, size, size))
    return scipy.ndimage.gaussian_filter(noise, (0, 2, 2)).argmax(0).astype(np.uint8)


def plain_share_and_entropy(pixels):
    counts = Counter(value for value in pixels if value != IGNORE)
    total = sum(counts.values())
    if not total:
        return math.nan, math.nan
    shares = [count / total for count in counts.values()]
    return max(shares), -sum(share * math.log(share) for share in shares)


def test_purity_is_the_difference_to_boxes_everywhere_in_the_view():
    """Many random boxes average to what all places together have: the mean is uniform and reaches every place."""
    masks = np.stack([patches(seed, 9) for seed in range(3)])
    masks[1, :5, :] = IGNORE
    boxes = np.array([[0, 0, 4, 3], [3, 2, 8, 7], [2, 1, 3, 9]])
    found = box_purity(masks, boxes, 3, np.random.default_rng(0), draws=20_000)
    for i, (mask, (y0, x0, y1, x1)) in enumerate(zip(masks, boxes.tolist(), strict=True)):
        height, width = y1 - y0, x1 - x0
        places = [
            mask[y : y + height, x : x + width].ravel().tolist()
            for y in range(9 - height + 1)
            for x in range(9 - width + 1)
        ]
        everywhere = np.array([plain_share_and_entropy(pixels) for pixels in places])
        own = plain_share_and_entropy(mask[y0:y1, x0:x1].ravel().tolist())
        spread = np.nanstd(everywhere, 0) / math.sqrt(20_000)
        expected = own - np.nanmean(everywhere, 0)
        assert abs(found.majority[i] - expected[0]) < 5 * spread[0] + 1e-12
        assert abs(found.entropy[i] - expected[1]) < 5 * spread[1] + 1e-12
        np.testing.assert_array_equal(found.box_counts[i], [(mask[y0:y1, x0:x1] == c).sum() for c in range(3)])
        np.testing.assert_array_equal(found.view_counts[i], [(mask == c).sum() for c in range(3)])
        labelled = [pixels for pixels in places if set(pixels) != {IGNORE}]
        most = [max(range(3), key=pixels.count) for pixels in labelled]
        shares = [most.count(c) / len(most) for c in range(3)]
        np.testing.assert_allclose(found.random_classes[i], shares, atol=0.02)


def test_a_whole_view_differs_from_nothing_and_no_label_is_nan():
    masks = np.stack([patches(0, 8), np.full((8, 8), IGNORE, np.uint8), patches(1, 8)])
    masks[2, :, :4] = IGNORE
    boxes = np.array([[0, 0, 8, 8], [1, 1, 5, 5], [0, 0, 4, 4]])
    found = box_purity(masks, boxes, 3, np.random.default_rng(0))
    assert (found.majority[0], found.entropy[0]) == (0.0, 0.0)
    assert np.isnan(found.majority[1:]).all()
    assert np.isnan(found.entropy[1:]).all()
    np.testing.assert_array_equal(found.box_counts[1:], 0)


def test_a_box_inside_one_class_is_purer():
    mask = np.repeat(np.array([0, 1], np.uint8), 16)[:, None].repeat(32, 1)
    found = box_purity(np.stack([mask, mask]), np.array([[0, 0, 8, 8], [12, 0, 20, 8]]), 2, np.random.default_rng(1))
    assert found.majority[0] > 0 > found.entropy[0]
    assert found.majority[1] < 0 < found.entropy[1]  # across the border: as mixed as can be


def made(seed, tiles, classes=3):
    """Measures of random boxes of masks of which some are almost of one class."""
    masks = np.stack([patches(100 * seed + i, 12, classes) for i in range(2 * tiles)])
    masks[::3, :, 1:] = 1
    masks[4] = IGNORE
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 7, (2 * tiles, 2))
    return box_purity(masks, np.hstack([corners, corners + rng.integers(2, 6, corners.shape)]), classes, rng)


def test_summary_against_plain_loops():
    tiles, names = 30, ["a", "b", "c"]
    groups = [f"scene{i % 7 if i % 2 else 0}" for i in range(tiles)]
    record = made(0, tiles)
    summary = summarise_purity({"guided": record}, groups, names)
    assert (summary["tiles"], summary["groups"]) == (tiles, len(set(groups)))
    entry = summary["boxes"]["guided"]
    mixed = [i for i, counts in enumerate(record.view_counts.tolist()) if max(counts) < 0.8 * sum(counts)]
    assert 0 < len(mixed) < 2 * tiles - 5
    for measure in ("majority", "entropy"):
        values = getattr(record, measure)
        for views, chosen in (("mixed", mixed), ("all", range(2 * tiles))):
            values_kept = [values[i] for i in chosen if not math.isnan(values[i])]
            assert entry[views][measure]["mean"] == pytest.approx(np.mean(values_kept))
            assert entry[views][measure]["n"] == len(values_kept)
    measured = [i for i in range(2 * tiles) if sum(record.box_counts[i])]
    most = [int(np.argmax(record.box_counts[i])) for i in measured]
    pixels = np.sum([record.view_counts[i] for i in measured], 0)
    for c, name in enumerate(names):
        random = np.mean([record.random_classes[i][c] for i in measured])
        assert entry["selection"][name] == {
            "boxes": pytest.approx(most.count(c) / len(most)),
            "random_boxes": pytest.approx(random),
            "views": pytest.approx(pixels[c] / pixels.sum()),
        }
    same = {"boxes": [], "views": [], "random_boxes": []}
    for first in range(0, 2 * tiles, 2):
        pair = [first, first + 1]
        if not all(record.box_counts[i].any() for i in pair):
            continue
        same["boxes"].append(len({int(np.argmax(record.box_counts[i])) for i in pair}) == 1)
        same["views"].append(len({int(np.argmax(record.view_counts[i])) for i in pair}) == 1)
        same["random_boxes"].append(sum(record.random_classes[first] * record.random_classes[first + 1]))
    pairs = entry["pairs_same_class"]
    for what, values in same.items():
        assert pairs[what]["mean"] == pytest.approx(np.mean(values))
        assert pairs[what]["n"] == len(values) == tiles - 1
    assert pairs["boxes_minus_views"]["mean"] == pytest.approx(np.mean(same["boxes"]) - np.mean(same["views"]))
    assert pairs["boxes_minus_random"]["mean"] == pytest.approx(np.mean(same["boxes"]) - np.mean(same["random_boxes"]))
    json.dumps(summary, allow_nan=False)


def test_intervals_resample_groups_as_scipy_does():
    tiles, rng = 60, np.random.default_rng(5)
    groups = rng.integers(0, 12, tiles)
    values = np.repeat(rng.normal(size=12)[groups], 2) + 0.1 * rng.normal(size=2 * tiles)
    counts = np.tile([3, 2], (2 * tiles, 1))
    record = Purity(values, -values, counts, counts, counts / 5)
    found = summarise_purity({"guided": record}, groups, ["a", "b"], resamples=4000)["boxes"]["guided"]["mixed"]
    sums = np.array([values[np.repeat(groups, 2) == g].sum() for g in range(12)])
    sizes = np.array([2 * (groups == g).sum() for g in range(12)])
    theirs = scipy.stats.bootstrap(
        (sums, sizes), lambda s, n, axis=-1: s.sum(axis) / n.sum(axis), paired=True, method="percentile",
        n_resamples=4000, rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = theirs.confidence_interval
    assert [found["majority"]["low"], found["majority"]["high"]] == pytest.approx([low, high], abs=0.1 * (high - low))
    assert [found["entropy"]["low"], found["entropy"]["high"]] == pytest.approx([-high, -low], abs=0.1 * (high - low))
    alone = (values.std() / math.sqrt(len(values))) * 2 * 1.96
    assert high - low > 2 * alone  # views of one place are not independent


def test_controls_are_compared_on_the_same_views():
    guided, control = made(0, 20), made(0, 20)
    control = control._replace(majority=control.majority - 0.25, entropy=control.entropy + np.arange(40) % 2)
    summary = summarise_purity({"guided": guided, "random encoder": control}, np.arange(20), ["a", "b", "c"])
    assert "guided_minus_this" not in summary["boxes"]["guided"]["all"]
    difference = summary["boxes"]["random encoder"]["all"]["guided_minus_this"]
    assert difference["majority"] == {
        "mean": pytest.approx(0.25),
        "low": pytest.approx(0.25),
        "high": pytest.approx(0.25),
        "n": int(np.isfinite(guided.majority).sum()),
    }
    assert difference["entropy"]["low"] < difference["entropy"]["mean"] < difference["entropy"]["high"]


def test_few_groups_and_nothing_measured():
    record = made(1, 4)
    summary = summarise_purity({"guided": record}, ["one"] * 4, ["a", "b", "c"])
    assert summary["boxes"]["guided"]["all"]["majority"]["mean"] is not None
    assert summary["boxes"]["guided"]["all"]["majority"]["low"] is None
    empty = box_purity(np.full((4, 8, 8), IGNORE, np.uint8), np.tile([0, 0, 4, 4], (4, 1)), 3, np.random.default_rng(0))
    entry = summarise_purity({"guided": empty}, [0, 1], ["a", "b", "c"])["boxes"]["guided"]
    assert entry["all"]["entropy"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert entry["selection"]["a"] == {"boxes": None, "random_boxes": None, "views": None}
    assert entry["pairs_same_class"]["boxes"]["mean"] is None
    with pytest.raises(ValueError, match="3 tiles have two views each: the 4 boxes of 'guided'"):
        summarise_purity({"guided": empty}, [0, 1, 2], ["a", "b", "c"])


def test_batches_are_joined():
    parts = [made(0, 4), made(2, 3)]
    whole = join(parts)
    assert [len(column) for column in whole] == [14] * 5
    np.testing.assert_array_equal(whole.box_counts[8:], parts[1].box_counts)
