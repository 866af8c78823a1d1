"""GLCNet: styles, regions and loss against loops, and thirty updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.augment import Geometry
from grass_jax.losses import info_nce
from grass_jax.methods.glcnet import glcnet, glcnet_loss, region_means, style
from grass_jax.methods.places import shared_regions


def unit(x):
    return x / max(np.linalg.norm(x), 1e-12)


def plain_info_nce(embeddings, temperature, valid=None):
    """NT-Xent over pairs (n, 2, e), the mean over views of -log(positive / (positive + negatives)), of exponentials."""
    valid = np.ones(len(embeddings), bool) if valid is None else valid
    losses = []
    for k, v in np.ndindex(embeddings.shape[:2]):
        if not valid[k]:
            continue
        z = unit(embeddings[k, v])
        positive = np.exp(z @ unit(embeddings[k, 1 - v]) / temperature)
        negatives = sum(
            np.exp(z @ unit(embeddings[n, w]) / temperature)
            for n, w in np.ndindex(embeddings.shape[:2])
            if n != k and valid[n]
        )
        losses.append(-np.log(positive / (positive + negatives)))
    return np.mean(losses) if losses else 0.0


def test_style():
    features = np.random.default_rng(0).normal(size=(3, 2, 4, 5, 6))
    features[..., 2] = 0
    with jax.enable_x64(True):
        found = np.asarray(style(jnp.asarray(features)))
        gradient = jax.grad(lambda x: style(x).sum())(jnp.asarray(features))
    assert found.shape == (3, 2, 12)
    for k, v, c in np.ndindex(3, 2, 6):
        values = features[k, v, ..., c].ravel()
        mean = sum(values) / 20
        np.testing.assert_allclose(found[k, v, c], mean, atol=1e-12)
        variance = sum((value - mean) ** 2 for value in values) / 20
        np.testing.assert_allclose(found[k, v, 6 + c], np.sqrt(variance + 1e-5), atol=1e-12)
    assert np.isfinite(gradient).all()
    assert style(jnp.zeros((1, 2, 2, 2, 3), jnp.bfloat16)).dtype == jnp.float32


def test_regions_are_means_over_what_both_views_see():
    """Features that are a picture of the tile: both views of a region have the mean of its pixels."""
    height, width, grid = 8, 8, 2
    tile = np.random.default_rng(0).random((32, 32, 3))
    # pixels of the tile are whole cells: boxes of 8, of 16 and of 32 tile pixels in 8 cells
    boxes = np.array([[[0, 0, 16, 16], [8, 0, 24, 16]], [[16, 8, 32, 24], [16, 16, 24, 24]], [[0, 0, 32, 32]] * 2,
                      [[0, 0, 8, 8], [16, 16, 24, 24]], [[0, 0, 16, 16], [12, 4, 28, 20]]])  # fmt: skip
    flips = np.array([[False, False], [True, False], [False, True], [True, False], [False, False]])
    features = np.zeros((5, 2, height, width, 3))
    for k, v in np.ndindex(5, 2):
        y0, x0, y1, x1 = boxes[k, v]
        part = tile[y0:y1, x0:x1]
        cells = part.reshape(height, (y1 - y0) // height, width, (x1 - x0) // width, 3).mean((1, 3))
        features[k, v] = cells[:, ::-1] if flips[k, v] else cells
    places = shared_regions(Geometry(jnp.asarray(boxes), jnp.asarray(flips)), grid)
    with jax.enable_x64(True):
        means, counts = region_means(jnp.asarray(features), *places)
    means, counts = np.asarray(means), np.asarray(counts)
    assert (means.shape, counts.shape) == ((5, 2, 4, 3), (5, 4))
    # the last but one shares nothing; the last has regions of 2 x 6 tile pixels, cells of 2 x 2: 1 x 3 cells
    np.testing.assert_array_equal(counts, [[True] * 4, [True] * 4, [True] * 4, [False] * 4, [True] * 4])
    for k in (0, 1, 2, 4):
        y0, x0 = boxes[k, :, :2].max(0)
        y1, x1 = boxes[k, :, 2:].min(0)
        ys, xs = np.linspace(y0, y1, grid + 1).astype(int), np.linspace(x0, x1, grid + 1).astype(int)
        for i, j in np.ndindex(grid, grid):
            wanted = tile[ys[i] : ys[i + 1], xs[j] : xs[j + 1]].mean((0, 1))
            for v in range(2):
                np.testing.assert_allclose(means[k, v, i * grid + j], wanted, atol=1e-6)
    np.testing.assert_array_equal(means[3], np.zeros((2, 4, 3)))


def test_regions_smaller_than_a_cell_do_not_count():
    boxes = np.array(
        [[[0, 0, 32, 32], [0, 0, 32, 32]], [[0, 0, 32, 32], [18, 0, 50, 32]], [[0, 0, 32, 32], [4, 4, 8, 8]]]
    )
    places = shared_regions(Geometry(jnp.asarray(boxes), jnp.zeros((3, 2), bool)), 2)
    _, counts = region_means(jnp.zeros((3, 2, 4, 4, 1)), *places)
    # cells of 8 pixels; shared are 32 x 32, 14 x 32 and 4 x 4 pixels
    np.testing.assert_array_equal(counts, [[True] * 4, [False] * 4, [False] * 4])


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss(temperature):
    rng = np.random.default_rng(0)
    styles, regions = rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 2, 4, 5))
    counts = rng.random((3, 4)) < 0.7
    assert 0 < counts.sum() < 12
    with jax.enable_x64(True):
        found = glcnet_loss(
            *(jnp.asarray(a) for a in (styles, regions, counts)), temperature=temperature, global_weight=0.3
        )
    pairs = np.stack([regions[k, :, r] for k, r in np.ndindex(3, 4)])
    wanted = plain_info_nce(styles, temperature), plain_info_nce(pairs, temperature, counts.reshape(-1))
    np.testing.assert_allclose(found, [0.3 * wanted[0] + 0.7 * wanted[1], *wanted], rtol=1e-10)


@pytest.mark.parametrize("present", [0, 1, 2, 4])
def test_info_nce_of_the_valid_pairs_is_that_of_these_alone(present):
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(4, 2, 5))
    valid = np.array([1, 3, 0, 2]) < present
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(info_nce)(
            jnp.asarray(embeddings), temperature=0.2, valid=jnp.asarray(valid)
        )
        whole = info_nce(jnp.asarray(embeddings), temperature=0.2)
    np.testing.assert_allclose(value, plain_info_nce(embeddings, 0.2, valid), rtol=1e-10, atol=1e-12)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[~valid] == 0).all()
    if present == 4:
        np.testing.assert_allclose(value, whole, rtol=1e-12)
    if present > 1:
        assert (np.abs(gradient[valid]).max((1, 2)) > 0).all()


def test_zero_embeddings_stay_finite():
    def loss(styles, regions):
        return glcnet_loss(styles, regions, jnp.ones((3, 4), bool), temperature=0.5, global_weight=0.5)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(jnp.zeros((3, 2, 5)), jnp.zeros((3, 2, 4, 5)))
    np.testing.assert_allclose(value, 0.5 * np.log(5) + 0.5 * np.log(23), rtol=1e-6)  # all alike: 1 of 5, 1 of 23
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_thirty_updates(train30, tiny_encoder):
    state, metrics = train30(glcnet(tiny_encoder, temperature=0.2, embedding=32))
    assert state.params.keys() == {"encoder", "head", "local_head"}
    losses = [step["loss"] for step in metrics]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    last = {name: np.mean([step[name] for step in metrics[-5:]]) for name in metrics[-1]}
    assert last["embedding_std"] > 0.3 / np.sqrt(32)  # 1/sqrt(32) fills the sphere
    assert last["mean_cosine"] < 0.7
    assert last["matched"] > 0.9  # of crops of 0.4 of the area and more
    # both halves learn
    for part in (lambda s: s["global_loss"], lambda s: 2 * s["loss"] - s["global_loss"]):
        values = [part(step) for step in metrics]
        assert np.mean(values[-5:]) < np.mean(values[:5]) - 0.1
