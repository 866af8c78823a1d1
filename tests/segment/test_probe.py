"""The linear probe against scikit-learn's logistic regression, and the counts of cells against plain loops."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from grass_jax.data.labels import IGNORE
from grass_jax.segment.probe import cell_counts, fit_linear, fit_probe


@pytest.mark.parametrize(("size", "height", "width"), [(12, 3, 4), (10, 3, 4), (7, 7, 2), (8, 1, 1)])
def test_pixels_are_counted_in_the_cell_that_holds_their_centre(size, height, width):
    rng = np.random.default_rng(0)
    masks = rng.choice([0, 1, 2, IGNORE], (2, size, size)).astype(np.uint8)
    expected = np.zeros((2, height, width, 3))
    for n, y, x in np.ndindex(masks.shape):
        if masks[n, y, x] != IGNORE:
            i, j = int((y + 0.5) * height / size), int((x + 0.5) * width / size)
            expected[n, i, j, masks[n, y, x]] += 1
    np.testing.assert_array_equal(cell_counts(masks, height, width, 3), expected)


def test_the_fit_is_scikit_learns():
    """Mixed targets as weighted samples, features of very different scale, one of them dead, some cells unlabelled."""
    rng = np.random.default_rng(1)
    m, d, k, l2 = 300, 5, 3, 0.02
    features = rng.normal(size=(m, d)) * np.array([1, 10, 0.1, 3, 0]) + np.array([0, 5, -1, 0, 2])
    truth = (features @ rng.normal(size=(d, k))).argmax(1)
    counts = rng.integers(0, 4, (m, k)) + 6 * np.eye(k, dtype=int)[truth]
    counts[:20] = 0
    kernel, bias = fit_linear(features.astype(np.float32), counts.astype(np.float32), l2=l2)

    used = counts.sum(1) > 0
    scaler = StandardScaler().fit(features[used])  # gives a constant feature a scale of 1 and so the value 0
    z, c = scaler.transform(features[used]), counts[used]
    x, y, w = np.repeat(z, k, 0), np.tile(np.arange(k), len(z)), c.ravel()
    fitted = LogisticRegression(C=1 / (l2 * w.sum()), tol=1e-10, max_iter=10_000).fit(x, y, sample_weight=w)
    expected = fitted.predict_proba(scaler.transform(features))
    logits = features @ kernel.astype(np.float64) + bias
    shares = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(shares / shares.sum(1, keepdims=True), expected, atol=2e-4)
    assert not kernel[4].any()


def test_tiles_are_encoded_in_batches_of_one_shape():
    rng = np.random.default_rng(2)
    tiles = []
    for _ in range(35):
        mask = rng.integers(0, 2, (4, 4)).repeat(2, 0).repeat(2, 1).astype(np.uint8)
        tiles.append({"image": np.stack([100 + 50 * mask] * 3, -1).astype(np.uint8), "mask": mask})
    shapes = []

    def encode(images):
        shapes.append(images.shape)
        return images[:, ::2, ::2].astype(np.float32)

    head = fit_probe(encode, tiles, 2, l2=1e-3, devices=8)["classifier"]["conv"]
    assert shapes == [(32, 8, 8, 3)] * 2
    logits = np.array([[100.0] * 3, [150.0] * 3]) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    assert logits.argmax(1).tolist() == [0, 1]


def test_tiles_without_labels_are_refused():
    with pytest.raises(ValueError, match="No pixel of the tiles for the linear probe is labelled"):
        fit_linear(np.ones((4, 2), np.float32), np.zeros((4, 3), np.float32), l2=1e-3)
