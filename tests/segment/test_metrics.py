"""Counts and scores against scikit-learn."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from grass_jax.data.labels import IGNORE
from grass_jax.segment import metrics
from grass_jax.segment.metrics import area_scores, confusion_matrix, make_confusion, scores
from grass_jax.sharding import make_mesh

NAMES = tuple("abcdefgh")


def drawn(seed, count, classes, right=0.6, ignored=0.1):
    """Truth with ignored pixels, and a prediction that is right for some of them."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, count, p=rng.dirichlet(np.ones(classes))).astype(np.uint8)
    prediction = np.where(rng.random(count) < right, truth, rng.integers(0, classes, count)).astype(np.uint8)
    truth[rng.random(count) < ignored] = IGNORE
    return truth, prediction


def _whole(*ids):
    return (jnp.asarray(i, jnp.int32) for i in ids)


def theirs(truth, prediction, classes):
    counts = truth != IGNORE
    return sklearn.metrics.confusion_matrix(truth[counts], prediction[counts], labels=range(classes))


@pytest.mark.parametrize("count", [0, 1, 1000, metrics.SLAB + 7])
@pytest.mark.parametrize("way", [metrics._by_scatter, metrics._by_product])
def test_both_ways_of_counting_are_scikit_learns(way, count):
    truth, prediction = drawn(0, max(count, 1), 5)
    truth, prediction = truth[:count], prediction[:count]
    found = way(jnp.asarray(truth, jnp.int32), jnp.asarray(prediction, jnp.int32), classes=5)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, theirs(truth, prediction, 5) if count else np.zeros((5, 5)))


@pytest.mark.parametrize("way", [metrics._by_scatter, metrics._by_product])
def test_counts_beyond_what_float32_holds_are_exact(way):
    pixels = jnp.zeros(2**24 + 3, jnp.int32)
    assert int(jax.jit(lambda p: way(p, p, classes=1))(pixels)[0, 0]) == 2**24 + 3


def test_images_are_counted_and_what_is_no_class_is_left_out():
    truth = jnp.asarray([[0, 1, 255], [2, 1, 0]], jnp.uint8)
    prediction = jnp.asarray([[0, 2, 1], [2, 255, 1]], jnp.uint8)
    np.testing.assert_array_equal(confusion_matrix(truth, prediction, 3), [[1, 1, 0], [0, 0, 1], [0, 0, 1]])


@pytest.mark.parametrize(("count", "way"), [(0, None), (1, None), (4096, None), (5003, None), (5003, "_by_product")])
def test_one_and_eight_devices_count_the_same(monkeypatch, count, way):
    if way:  # that of GPU and TPU
        by_product = metrics._by_product
        monkeypatch.setattr(metrics, "confusion_matrix", lambda t, p, k: by_product(*_whole(t, p), classes=k))
    truth, prediction = drawn(1, max(1, count), 7)
    truth, prediction = truth[:count], prediction[:count]
    expected = theirs(truth, prediction, 7) if count else np.zeros((7, 7))
    for devices in (1, 8):
        add = make_confusion(7, make_mesh(jax.devices()[:devices]), chunk=1021)
        found = add(truth, prediction)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected)


def test_wrong_ids_are_named_and_ignored_pixels_may_be_predicted_as_anything():
    add = make_confusion(3, make_mesh(jax.devices()[:1]), chunk=8)
    truth = np.array([[0, 255], [1, 2]], np.uint8)
    np.testing.assert_array_equal(add(truth, np.array([[0, 255], [1, 1]])), [[1, 0, 0], [0, 1, 0], [0, 1, 0]])
    with pytest.raises(ValueError, match=r"prediction holds the id 255 .* 0\.\.2"):
        add(truth, np.array([[255, 0], [1, 1]], np.uint8))
    with pytest.raises(ValueError, match="truth holds the id 3"):
        add(np.array([3], np.uint8), np.array([0], np.uint8))
    with pytest.raises(ValueError, match="same shape"):
        add(truth, truth[:1])


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_scikit_learns(seed):
    classes = 2 + seed % 6
    truth, prediction = drawn(seed, 400, classes, right=(0.0, 0.5, 0.9)[seed % 3])
    found = scores(theirs(truth, prediction, classes), NAMES[:classes])
    t, p = truth[truth != IGNORE], prediction[truth != IGNORE]
    present = np.union1d(t, p)
    each = {"labels": present, "average": None, "zero_division": 0.0}
    assert [found["iou"][NAMES[c]] for c in present] == pytest.approx(sklearn.metrics.jaccard_score(t, p, **each))
    assert [found["f1"][NAMES[c]] for c in present] == pytest.approx(sklearn.metrics.f1_score(t, p, **each))
    mean = each | {"average": "macro"}
    assert found["miou"] == pytest.approx(sklearn.metrics.jaccard_score(t, p, **mean))
    assert found["mean_f1"] == pytest.approx(sklearn.metrics.f1_score(t, p, **mean))
    assert found["overall_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(t, p))
    assert found["kappa"] == pytest.approx(sklearn.metrics.cohen_kappa_score(t, p))
    assert found["pixels"] == {NAMES[c]: int((t == c).sum()) for c in range(classes)}


def test_a_class_absent_from_both_is_left_out_and_one_that_is_only_predicted_is_not():
    truth, prediction = np.array([0, 0, 1, 1]), np.array([0, 3, 1, 1])
    found = scores(theirs(truth, prediction, 4), NAMES[:4])
    assert found["absent"] == ["c"]
    assert found["iou"] == {"a": 0.5, "b": 1.0, "c": None, "d": 0.0}
    assert found["miou"] == pytest.approx(0.5)
    assert found["f1"] == {"a": pytest.approx(2 / 3), "b": 1.0, "c": None, "d": 0.0}
    labels = {"labels": [0, 1, 3], "average": "macro"}
    assert found["miou"] == pytest.approx(sklearn.metrics.jaccard_score(truth, prediction, **labels))


def test_without_a_class_its_pixels_are_still_errors_of_the_others():
    matrix = np.array([[6, 2, 0], [0, 4, 0], [4, 0, 1]])
    found = scores(matrix, ["road", "tree", "clutter"], without=["clutter", "tree"])
    assert found["miou_without"]["clutter"] == pytest.approx((6 / 12 + 4 / 6) / 2)
    assert found["miou_without"]["tree"] == pytest.approx((6 / 12 + 1 / 5) / 2)
    assert found["miou"] == pytest.approx((6 / 12 + 4 / 6 + 1 / 5) / 3)
    with pytest.raises(ValueError, match="without 'water' needs one of the classes road, tree, clutter"):
        scores(matrix, ["road", "tree", "clutter"], without=["water"])
    with pytest.raises(ValueError, match="2 classes need a matrix"):
        scores(matrix, ["road", "tree"])


def test_nothing_counted_and_a_single_class_are_json():
    nothing = scores(np.zeros((2, 2), np.int64), NAMES[:2], without=["a"])
    assert (nothing["miou"], nothing["overall_accuracy"], nothing["kappa"]) == (None, None, None)
    assert (nothing["miou_without"], nothing["absent"]) == ({"a": None}, ["a", "b"])
    single = scores(np.array([[9, 0], [0, 0]]), NAMES[:2])
    assert (single["miou"], single["overall_accuracy"], single["kappa"]) == (1.0, 1.0, None)
    json.dumps([nothing, single], allow_nan=False)


def test_huge_counts_do_not_overflow():
    matrix = np.array([[3, 1], [1, 3]], np.int64)
    found = scores(matrix * 10**12, NAMES[:2])
    assert found["kappa"] == pytest.approx(0.5)
    assert found["pixels"] == {"a": 4 * 10**12, "b": 4 * 10**12}


def test_areas_are_averaged_whatever_their_size():
    pairs = {"small": drawn(3, 50, 3), "large": drawn(4, 5000, 3, right=0.2)}
    matrices = {area: theirs(*pair, 3) for area, pair in pairs.items()} | {"empty": np.zeros((3, 3), int)}
    found = area_scores(matrices, NAMES[:3], without=["b"])
    jaccard, kappa = [], []
    for truth, prediction in pairs.values():
        t, p = truth[truth != IGNORE], prediction[truth != IGNORE]
        jaccard.append(sklearn.metrics.jaccard_score(t, p, average=None, labels=range(3)))
        kappa.append(sklearn.metrics.cohen_kappa_score(t, p))
    assert found["areas"] == 2
    assert found["miou"] == pytest.approx(np.mean(jaccard))
    assert found["kappa"] == pytest.approx(np.mean(kappa))
    assert found["miou_without"]["b"] == pytest.approx(np.mean(np.array(jaccard)[:, [0, 2]]))
    assert found["area_miou"] == {
        "small": pytest.approx(jaccard[0].mean()),
        "large": pytest.approx(jaccard[1].mean()),
        "empty": None,
    }
    json.dumps(found, allow_nan=False)
