"""DenseCL: matching and loss against loops, the key network and its queues against NumPy, and sixty updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.losses import queue_info_nce
from grass_jax.methods.densecl import densecl, matched_keys
from grass_jax.methods.skeleton import cells
from grass_jax.state import create_state
from grass_jax.steps import warmup_step

QUEUE, E = 40, 32


def unit(x):
    x = np.float64(x)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def plain_matched_keys(features, key_features, dense_keys):
    """For every cell the key of the other view's cell with the largest cosine."""
    b, _, n, _ = features.shape
    found = np.empty((b, 2, n, dense_keys.shape[-1]))
    for k, view, i in np.ndindex(b, 2, n):
        cosines = [unit(features[k, view, i]) @ unit(other) for other in key_features[k, 1 - view]]
        found[k, view, i] = dense_keys[k, 1 - view, int(np.argmax(cosines))]
    return found


def plain_queue_loss(queries, keys, queue, temperature):
    """-log softmax of the positive among itself and the queue, one query at a time, averaged."""
    losses = []
    for index in np.ndindex(queries.shape[:-1]):
        query = unit(queries[index])
        logits = np.array([query @ unit(keys[index]), *(query @ negative for negative in queue)])
        exponentials = np.exp(logits / temperature)
        losses.append(-np.log(exponentials[0] / exponentials.sum()))
    return np.mean(losses)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 2, 6, 9)), rng.normal(size=(3, 2, 6, 9)), rng.normal(size=(3, 2, 6, 5))


def test_cells_are_matched_by_the_cosine_of_features(arrays):
    features, key_features, dense_keys = arrays
    key_features *= np.random.default_rng(1).uniform(0.1, 10, (3, 2, 6, 1))  # the inner product would choose others
    expected = plain_matched_keys(features, key_features, dense_keys)
    with jax.enable_x64(True):
        found = matched_keys(*map(jnp.asarray, (features, key_features, dense_keys)))
    np.testing.assert_array_equal(found, expected)
    assert matched_keys(*map(jnp.asarray, arrays)).dtype == jnp.float32


def test_the_same_view_in_another_order_is_undone(arrays):
    features, _, dense_keys = arrays
    order = np.random.default_rng(2).permutation(6)
    found = matched_keys(*map(jnp.asarray, (features, features[:, ::-1, order], dense_keys[:, ::-1, order])))
    np.testing.assert_allclose(found, dense_keys, rtol=1e-6)


def test_zero_features_stay_finite(arrays):
    zeros = jnp.zeros((3, 2, 6, 9))
    found = matched_keys(zeros, zeros, jnp.asarray(arrays[2]))
    np.testing.assert_allclose(found, np.broadcast_to(arrays[2][:, ::-1, :1], found.shape), rtol=1e-6)


def test_the_cells_loss_is_the_formula(arrays):
    rng = np.random.default_rng(3)
    queries, keys, queue = rng.normal(size=(3, 2, 6, 5)), arrays[2], unit(rng.normal(size=(11, 5)))
    with jax.enable_x64(True):
        loss = queue_info_nce(*map(jnp.asarray, (queries, keys, queue)), temperature=0.2)
    np.testing.assert_allclose(float(loss), plain_queue_loss(queries, keys, queue, 0.2), rtol=1e-12)


@pytest.fixture(scope="module")
def tiny_densecl(tiny_encoder):
    return densecl(tiny_encoder, queue=QUEUE, embedding=E, momentum=0.9, dense_weight=0.3)


@pytest.fixture(scope="module")
def start(tiny_densecl):
    return create_state(jax.random.key(0), tiny_densecl, optax.adam(1e-3), size=32)


@pytest.fixture(scope="module")
def batch(tiny_densecl, tiny_encoder, start):
    """A state whose key network is another, a batch of four tiles, its targets, and the key network's features."""
    other = create_state(jax.random.key(1), tiny_densecl, optax.adam(1e-3), size=32)
    state = start.replace(extra=other.extra)
    views = np.random.default_rng(0).normal(size=(4, 2, 32, 32, 3)).astype(np.float32)
    variables = {"params": other.params["encoder"], "batch_stats": other.stats["encoder"]}
    features, _ = tiny_encoder.apply(variables, views.reshape(8, 32, 32, 3), train=True, mutable=["batch_stats"])
    features = np.float64(features).reshape(4, 2, 16, -1)
    return state, views, tiny_densecl.targets(state, jnp.asarray(views), None), features


def plain_head(params, x):
    first, second = (jax.tree.map(np.float64, params[name]) for name in ("dense1", "dense2"))
    return np.maximum(x @ first["kernel"] + first["bias"], 0) @ second["kernel"] + second["bias"]


def test_the_start(start):
    jax.tree.map(np.testing.assert_array_equal, {n: start.extra[n] for n in start.params}, start.params)
    queues = np.stack([start.extra["queue"], start.extra["dense_queue"]])
    assert queues.shape == (2, QUEUE, E)
    np.testing.assert_allclose(np.linalg.norm(queues, axis=-1), 1, rtol=1e-5)
    assert np.abs(queues[0] - queues[1]).max() > 0.1
    head, dense_head = (np.asarray(start.params[name]["dense1"]["kernel"]) for name in ("head", "dense_head"))
    assert np.abs(head - dense_head).max() > 0.1


def test_targets_are_the_key_networks_in_train_mode(batch):
    state, _, targets, features = batch
    expected = unit(plain_head(state.extra["head"], features.mean(2)))
    np.testing.assert_allclose(targets["keys"], expected, atol=1e-5)
    expected = plain_head(state.extra["dense_head"], features)
    np.testing.assert_allclose(targets["dense_keys"], expected, atol=1e-4)
    np.testing.assert_allclose(targets["features"], features, rtol=1e-6)
    for name in ("queue", "dense_queue"):
        np.testing.assert_array_equal(targets[name], state.extra[name])


def test_the_methods_loss_is_the_weighted_sum(tiny_densecl, batch):
    state, views, targets, key_features = batch
    features, stats = tiny_densecl.encode(state.params, state.stats, jnp.asarray(views))
    loss, (_, metrics) = tiny_densecl.loss(state.params, stats, features, targets)
    flat = np.float64(features).reshape(4, 2, 16, -1)
    embeddings, dense = plain_head(state.params["head"], flat.mean(2)), plain_head(state.params["dense_head"], flat)
    dense_keys = np.float64(targets["dense_keys"])
    of_views = plain_queue_loss(embeddings, np.float64(targets["keys"])[:, ::-1], state.extra["queue"], 0.2)
    positives = plain_matched_keys(flat, key_features, dense_keys)
    of_cells = plain_queue_loss(dense, positives, state.extra["dense_queue"], 0.2)
    np.testing.assert_allclose(float(metrics["loss_global"]), of_views, rtol=1e-4)
    np.testing.assert_allclose(float(metrics["loss_dense"]), of_cells, rtol=1e-4)
    np.testing.assert_allclose(float(loss), 0.7 * of_views + 0.3 * of_cells, rtol=1e-4)


def test_no_gradient_enters_the_targets_and_none_comes_from_matching(tiny_densecl, batch):
    state, views, targets, _ = batch
    features, stats = tiny_densecl.encode(state.params, state.stats, jnp.asarray(views))

    def loss(features, targets):
        return tiny_densecl.loss(state.params, stats, features, targets)[0]

    of_features, of_targets = jax.grad(loss, (0, 1))(features, targets)
    assert all(not leaf.any() for leaf in jax.tree.leaves(of_targets))
    # with the positives held fast, found as what they are among all keys, the gradient is the same
    matched = matched_keys(cells(features), targets["features"], targets["dense_keys"])
    fixed = {**targets, "features": cells(features)[:, ::-1], "dense_keys": matched[:, ::-1]}
    np.testing.assert_array_equal(jax.grad(loss)(features, fixed), of_features)
    assert (np.abs(of_features).max((2, 3, 4)) > 0).all()  # in both views


def test_an_update_moves_the_average_and_the_queues(tiny_densecl, start):
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda p: p + rng.normal(size=p.shape).astype(np.float32), start.params)
    keys, dense = rng.normal(size=(6, 2, E)).astype(np.float32), rng.normal(size=(6, 2, 16, E)).astype(np.float32)
    extra = tiny_densecl.after(start.extra, params, {"keys": jnp.asarray(keys), "dense_keys": jnp.asarray(dense)})
    assert extra.keys() == start.extra.keys()
    network = {name: start.extra[name] for name in params}
    expected = jax.tree.map(lambda old, new: 0.9 * np.float64(old) + 0.1 * np.float64(new), network, params)
    network = {name: extra[name] for name in params}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), network, expected)
    for name, new in (("queue", keys), ("dense_queue", unit(dense.mean(2)))):
        queue = [*(new[k, view] for k in range(6) for view in range(2)), *start.extra[name][: QUEUE - 12]]
        np.testing.assert_allclose(extra[name], np.stack(queue), rtol=1e-5, atol=1e-6)


def test_sixty_updates(run_steps, tiny_encoder):
    """Sixty and not thirty: the keys begin nearly alike, and spread as slowly as the moving average moves."""
    method = densecl(tiny_encoder, queue=32, embedding=E, momentum=0.99)
    _, metrics = run_steps(method, warmup_step, 60)
    # from the second step the queues hold keys: log 33 where all are alike
    losses = {name: np.array([step[name] for step in metrics]) for name in ("loss", "loss_global", "loss_dense")}
    assert losses["loss"][-5:].mean() < losses["loss"][1:6].mean() - 0.6
    assert losses["loss_dense"][-5:].mean() < np.log(33) / 3
    # by little, for the queue holds every tile twice, as negatives of itself
    assert losses["loss_global"][-20:].mean() < losses["loss_global"][1:21].mean() - 0.06
    assert np.mean([step["embedding_std"] for step in metrics[-5:]]) > 0.4 / np.sqrt(E)  # 1/sqrt(32) fills the sphere
    assert np.mean([step["mean_cosine"] for step in metrics[-5:]]) < 0.75
