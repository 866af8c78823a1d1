"""InfoNCE against a plain NumPy loop and the original's vectors; cross-entropy against a loop and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.losses import collapse_signals, cross_entropy, info_nce, normalised


def plain_info_nce(embeddings, temperature):
    """The formula, one row at a time, in float64."""
    b = len(embeddings)
    z = np.float64(embeddings).swapaxes(0, 1).reshape(2 * b, -1)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    total = 0.0
    for i in range(2 * b):
        s = z @ z[i] / temperature
        others = np.delete(s, i)
        total += np.log(np.exp(others - others.max()).sum()) + others.max() - s[(i + b) % (2 * b)]
    return total / (2 * b)


loss_and_gradient = jax.jit(
    jax.value_and_grad(lambda e, t: info_nce(e, temperature=t)),
)


@pytest.mark.parametrize("case", range(10))
def test_loss_and_gradient_are_the_originals(vectors, case):
    z = vectors("loss_cases")
    rows, temperature = z[f"c{case:02d}_emb"], float(z[f"c{case:02d}_T"])
    b = len(rows) // 2
    loss, gradient = loss_and_gradient(jnp.asarray(np.stack([rows[:b], rows[b:]], 1)), temperature)
    expected = z[f"c{case:02d}_grad"]
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(float(loss), float(z[f"c{case:02d}_loss"]), rtol=2e-6)
    error = np.asarray(gradient).swapaxes(0, 1).reshape(rows.shape) - expected
    assert np.abs(error).max() <= 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("temperature", [0.02, 0.1, 0.5])
def test_loss_is_the_formula(temperature):
    embeddings = np.random.default_rng(0).normal(size=(12, 2, 16))
    embeddings[:, 1] = embeddings[:, 0] + 0.3 * embeddings[:, 1]
    loss = info_nce(jnp.asarray(embeddings, jnp.float32), temperature=temperature)
    np.testing.assert_allclose(float(loss), plain_info_nce(embeddings, temperature), rtol=2e-5)


def test_small_losses_keep_their_precision():
    rng = np.random.default_rng(1)
    embeddings = np.eye(16)[:8, None] + 1e-2 * rng.normal(size=(8, 2, 16))
    expected = plain_info_nce(embeddings, 0.1)
    assert expected < 1e-3
    loss = info_nce(jnp.asarray(embeddings, jnp.float32), temperature=0.1)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-4)  # the input's own rounding is most of this


def test_opposite_positives_at_a_low_temperature_stay_finite():
    embeddings = jnp.ones((4, 2, 8)).at[:, 1].set(-1.0)
    loss, gradient = jax.value_and_grad(lambda e: info_nce(e, temperature=0.02))(embeddings)
    np.testing.assert_allclose(float(loss), 100 + np.log(3), rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_a_zero_embedding_has_a_finite_gradient():
    embeddings = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2, 8)), jnp.float32).at[1, 0].set(0.0)
    assert np.isfinite(jax.grad(lambda e: info_nce(e, temperature=0.5))(embeddings)).all()
    assert float(jnp.abs(normalised(embeddings)[1, 0]).max()) == 0


def test_bfloat16_embeddings_are_compared_in_float32():
    embeddings = jnp.asarray(np.random.default_rng(3).normal(size=(4, 2, 8)), jnp.bfloat16)
    loss = info_nce(embeddings, temperature=0.1)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(float(loss), plain_info_nce(np.asarray(embeddings, np.float64), 0.1), rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 4), (1, 2, 4), (4, 3, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(b, 2, e\)"):
        info_nce(jnp.zeros(shape), temperature=0.5)


def test_collapse_signals_are_plain_averages():
    embeddings = np.random.default_rng(4).normal(size=(5, 2, 6)) + 0.5
    z = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    cosines = [z[i, v] @ z[j, w] for i in range(5) for j in range(5) if i != j for v in range(2) for w in range(2)]
    signals = collapse_signals(jnp.asarray(embeddings, jnp.float32))
    np.testing.assert_allclose(float(signals["mean_cosine"]), np.mean(cosines), rtol=1e-5)
    np.testing.assert_allclose(float(signals["embedding_std"]), z.reshape(10, 6).std(0).mean(), rtol=1e-5)
    collapsed = collapse_signals(jnp.ones((5, 2, 6)))
    assert float(collapsed["embedding_std"]) < 1e-6
    assert float(collapsed["mean_cosine"]) == pytest.approx(1)


def plain_cross_entropy(logits, masks, weights):
    """One pixel at a time, in float64."""
    k = logits.shape[-1]
    total, mass = 0.0, 0.0
    for scores, label in zip(np.float64(logits).reshape(-1, k), masks.ravel(), strict=True):
        if label == 255:
            continue
        p = np.exp(scores - scores.max())
        total -= weights[label] * np.log(p[label] / p.sum())
        mass += weights[label]
    return total / mass


@pytest.fixture(scope="module")
def scores_and_masks():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(3, 6, 7, 4)).astype(np.float32) * 5
    masks = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), size=(3, 6, 7))
    masks[0] = 255  # an image without a label
    return logits, masks


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 3.0, 0.0)])
def test_cross_entropy_is_the_formula(scores_and_masks, weights):
    logits, masks = scores_and_masks
    loss = jax.jit(lambda a, b: cross_entropy(a, b, weights))(logits, masks)
    assert loss.shape == ()
    np.testing.assert_allclose(float(loss), plain_cross_entropy(logits, masks, weights or [1] * 4), rtol=1e-6)


def test_cross_entropy_is_scikit_learns_log_loss(scores_and_masks):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, masks = scores_and_masks
    labelled = masks < 255
    weights = np.array([0.5, 1.0, 2.0, 4.0])
    p = np.exp(np.float64(logits[labelled]))
    p /= p.sum(1, keepdims=True)
    for class_weights, sample_weight in ((None, None), (weights, weights[masks[labelled]])):
        expected = metrics.log_loss(masks[labelled], p, labels=range(4), sample_weight=sample_weight)
        loss = cross_entropy(jnp.asarray(logits), jnp.asarray(masks), class_weights)
        np.testing.assert_allclose(float(loss), expected, rtol=1e-6)


def test_pixels_without_a_label_take_no_gradient(scores_and_masks):
    logits, masks = scores_and_masks
    gradient = np.asarray(jax.grad(cross_entropy)(jnp.asarray(logits), jnp.asarray(masks)))
    p = np.exp(np.float64(logits))
    p /= p.sum(-1, keepdims=True)
    expected = (p - (masks[..., None] == np.arange(4))) * (masks != 255)[..., None] / (masks != 255).sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5, 1.0)])
def test_no_label_at_all_gives_zero_and_a_finite_gradient(weights):
    logits, masks = jnp.ones((2, 4, 4, 4)), jnp.full((2, 4, 4), 255, jnp.uint8)
    loss, gradient = jax.value_and_grad(lambda a: cross_entropy(a, masks, weights))(logits)
    assert float(loss) == 0
    assert not np.asarray(gradient).any()


def test_cross_entropy_keeps_large_logits_finite_and_low_precision_out(scores_and_masks):
    logits, masks = scores_and_masks
    low = jnp.asarray(logits * 200, jnp.bfloat16)
    loss = cross_entropy(low, jnp.asarray(masks))
    assert loss.dtype == jnp.float32
    high = np.asarray(low, np.float64)
    labelled = masks < 255
    # at this scale the loss is the lead of the best class over the labelled one
    lead = high[labelled].max(-1) - high[labelled][np.arange(labelled.sum()), masks[labelled]]
    np.testing.assert_allclose(float(loss), lead.mean(), rtol=1e-3)


def test_cross_entropy_refuses_shapes_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"mask of shape \(2, 4, 4\)"):
        cross_entropy(jnp.zeros((2, 4, 4, 3)), jnp.zeros((4, 4), jnp.uint8))
    with pytest.raises(ValueError, match="3 numbers"):
        cross_entropy(jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 4, 4), jnp.uint8), [1.0, 2.0])
