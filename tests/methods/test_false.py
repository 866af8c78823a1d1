"""FALSE: false negatives and loss against loops, and thirty updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.losses import info_nce
from grass_jax.methods.false import false, false_loss, false_negatives


def unit(x):
    return x / max(np.linalg.norm(x), 1e-12)


def plain_false_negatives(embeddings, temperature, threshold):
    """The pair ((k, v), (l, w)) of the batch whose exponential is nearest to that of k's positive, if k knows that."""
    b = len(embeddings)
    z = np.array([[unit(embeddings[k, v]) for v in range(2)] for k in range(b)])
    found, smallest = np.zeros((b, 2, b, 2), bool), np.inf
    for k, v, n, w in np.ndindex(b, 2, b, 2):
        if n != k:
            difference = abs(np.exp(z[k, v] @ z[n, w] / temperature) - np.exp(z[k, 0] @ z[k, 1] / temperature))
            if difference < smallest:
                smallest = difference
                found[:] = False
                found[k, v, n, w] = z[k, 0] @ z[k, 1] >= threshold
    return found


def plain_loss(embeddings, moved, temperature, confidence):
    losses = []
    for k, v in np.ndindex(embeddings.shape[:2]):
        z = unit(embeddings[k, v])
        positives = np.exp(z @ unit(embeddings[k, 1 - v]) / temperature)
        negatives = 0.0
        for n, w in np.ndindex(embeddings.shape[:2]):
            if n != k:
                s = np.exp(z @ unit(embeddings[n, w]) / temperature)
                share = confidence if moved[k, v, n, w] else 0.0
                positives, negatives = positives + share * s, negatives + (1 - share) * s
        losses.append(-np.log(positives / (positives + negatives)))
    return np.mean(losses)


def pairs(seed, likeness=3.0):
    """Embeddings (5, 2, 6) whose views of a tile resemble each other."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(5, 1, 6)) * likeness + rng.normal(size=(5, 2, 6))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("threshold", [-1.0, 0.8])
def test_false_negatives(temperature, threshold):
    moved = []
    for seed in range(12):
        embeddings = pairs(seed)
        with jax.enable_x64(True):
            found = false_negatives(jnp.asarray(embeddings), temperature=temperature, threshold=threshold)
        np.testing.assert_array_equal(found, plain_false_negatives(embeddings, temperature, threshold))
        moved.append(int(found.sum()))
    assert set(moved) == ({1} if threshold == -1.0 else {0, 1})


def test_low_temperatures_do_not_overflow():
    """At T = 0.01 exp(1 / T) is beyond float32; the pair is among the found (others are equal to 7 digits)."""
    for seed in range(6):
        found = false_negatives(jnp.asarray(pairs(seed), jnp.float32), temperature=0.01, threshold=-1.0)
        assert np.asarray(found)[plain_false_negatives(pairs(seed), 0.01, -1.0)].all()
        assert len(set(np.argwhere(found)[:, 0])) == 1  # all of one tile
        assert np.isfinite(false_loss(pairs(seed), temperature=0.01, threshold=-1.0, confidence=1.0))


@pytest.mark.parametrize("confidence", [0.0, 0.6, 1.0])
def test_loss_and_gradient(confidence, slopes):
    settings = {"temperature": 0.5, "threshold": -1.0}
    embeddings = pairs(3)
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(false_loss)(jnp.asarray(embeddings), **settings, confidence=confidence)
        plain = info_nce(jnp.asarray(embeddings), temperature=0.5)
    moved = plain_false_negatives(embeddings, **settings)
    np.testing.assert_allclose(value, plain_loss(embeddings, moved, 0.5, confidence), rtol=1e-10)
    assert value == plain if confidence == 0 else value < plain
    found = slopes(lambda e: plain_loss(e, moved, 0.5, confidence), embeddings)  # which pair it is has no gradient
    np.testing.assert_allclose(np.ravel(gradient), found, rtol=1e-5, atol=1e-9)


def test_the_order_of_the_batch_does_not_matter():
    settings = {"temperature": 0.5, "threshold": -1.0, "confidence": 1.0}
    with jax.enable_x64(True):
        for seed in range(5):
            embeddings = jnp.asarray(pairs(seed))
            value = false_loss(embeddings, **settings)
            np.testing.assert_allclose(false_loss(embeddings[::-1], **settings), value, rtol=1e-12)
            np.testing.assert_allclose(false_loss(embeddings[:, ::-1], **settings), value, rtol=1e-12)


def test_equal_and_zero_embeddings_stay_finite():
    for embeddings in (jnp.ones((4, 2, 3)), jnp.zeros((4, 2, 3))):
        settings = {"temperature": 0.5, "threshold": 0.9, "confidence": 1.0}
        value, gradient = jax.value_and_grad(false_loss)(embeddings, **settings)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        # all are as similar as the positives: those of a collapsed network all move, those of a dead one do not
        wanted = 0.0 if embeddings.any() else np.log(7)
        np.testing.assert_allclose(value, wanted, atol=1e-6)


def test_thirty_updates(train30, tiny_encoder):
    _, metrics = train30(false(tiny_encoder, temperature=0.2, embedding=32))
    losses = [step["loss"] for step in metrics]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.25  # from log(31) = 3.43: views that are all alike
    last = {name: np.mean([step[name] for step in metrics[-5:]]) for name in metrics[-1]}
    assert last["embedding_std"] > 0.4 / np.sqrt(32)  # 1/sqrt(32) fills the sphere
    assert last["mean_cosine"] < 0.8  # 0.94 at first
    assert last["positive_cosine"] > last["mean_cosine"] + 0.1
    moved = [step["false_negatives"] for step in metrics]
    assert set(moved) == {0, 1}  # the threshold is reached in some steps, not in all
    assert moved[0] == 1
