"""What the methods share, against NumPy: moving averages, queues, an encoder in parts; and every method's GS steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.methods.registry import NAMES, make_method
from grass_jax.methods.skeleton import (
    cells,
    cosine_momentum,
    enqueue,
    init_network,
    moving_average,
    pool,
    run_encoder,
    run_head,
)
from grass_jax.models.heads import MLPHead

# every method's options, beside its defaults, for a network of seconds
TINY = {
    "simclr": {"temperature": 0.2, "embedding": 32},
    "byol": {"hidden": 64, "embedding": 32, "momentum": 0.9},
    "barlow_twins": {"hidden": 64, "embedding": 32},
    "simsiam": {"hidden": 64, "embedding": 32, "bottleneck": 64},
    "vicreg": {"hidden": 64, "embedding": 32},
    "moco_v2": {"queue": 40, "embedding": 32, "momentum": 0.9},
    "densecl": {"queue": 40, "embedding": 32, "momentum": 0.9, "dense_weight": 0.3},
    "swav": {"hidden": 64, "embedding": 32, "prototypes": 32, "epsilon": 0.02, "freeze_steps": 2},
    "false": {"temperature": 0.2, "embedding": 32},
    "pixpro": {"hidden": 128, "embedding": 32},
    "glcnet": {"temperature": 0.2, "embedding": 32},
}


@pytest.mark.parametrize("name", NAMES)
def test_gs_steps(gs2, tiny_encoder, name):
    state, metrics = gs2(make_method(tiny_encoder, {"name": name, **TINY[name]}, total_steps=30))
    assert int(state.step) == 2
    assert np.isfinite([list(step.values()) for step in metrics]).all()
    assert metrics[-1]["box_area"] < 1
    assert 0 < metrics[-1].get("overlapping", 1) <= 1  # of PixPro's views


def test_moving_average():
    rng = np.random.default_rng(0)
    old, new = ({"a": rng.normal(size=(3, 4)), "b": {"c": rng.normal(size=5)}} for _ in range(2))
    target, online = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (old, new))
    found = moving_average(target, online, 0.9)
    jax.tree.map(lambda a, o, n: np.testing.assert_allclose(a, 0.9 * o + 0.1 * n, rtol=1e-5), found, old, new)
    jax.tree.map(np.testing.assert_array_equal, moving_average(target, online, 1.0), target)
    jax.tree.map(np.testing.assert_array_equal, moving_average(target, online, 0.0), online)


def test_moving_average_keeps_the_dtype():
    tree = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2, jnp.float32)}
    found = moving_average(tree, jax.tree.map(lambda x: x.astype(jnp.float32), tree), jnp.float32(0.5))
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, tree)


def test_cosine_momentum():
    for step in (0, 1, 37, 99, 100, 250):
        share = min(step, 100) / 100
        expected = 1 - (1 - 0.96) * (np.cos(np.pi * share) + 1) / 2
        np.testing.assert_allclose(float(cosine_momentum(0.96, jnp.int32(step), 100)), expected, rtol=1e-6)
    assert float(cosine_momentum(0.96, jnp.int32(0), 100)) == pytest.approx(0.96)
    assert float(cosine_momentum(0.96, jnp.int32(100), 100)) == 1
    assert np.isfinite(float(cosine_momentum(0.96, jnp.int32(0), 0)))


def test_enqueue():
    rng = np.random.default_rng(1)
    queue, keys = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(2, 2, 3)).astype(np.float32)
    expected = list(queue)
    for key in reversed(keys.reshape(4, 3)):
        expected.insert(0, key)
        expected.pop()
    np.testing.assert_array_equal(enqueue(jnp.asarray(queue), jnp.asarray(keys)), expected)
    whole = enqueue(jnp.zeros((4, 3), jnp.bfloat16), jnp.asarray(keys))
    assert whole.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(whole), keys.reshape(4, 3), rtol=1e-2)
    with pytest.raises(ValueError, match=r"A queue of 3 cannot take 4 keys a step"):
        enqueue(jnp.zeros((3, 3)), jnp.asarray(keys))


@pytest.fixture(scope="module")
def network(tiny_encoder):
    """An encoder with a head of two layers and one of one: heads, params, stats, and views that they have not seen."""
    heads = {"first": MLPHead((16, 8)), "second": MLPHead((4,))}
    views = jax.random.normal(jax.random.key(1), (3, 2, 32, 32, 3))
    params, stats = jax.jit(lambda key: init_network(tiny_encoder, heads, key, views))(jax.random.key(0))
    return heads, params, stats, views + 0.3


def test_heads_are_initialised_one_on_the_other(network):
    heads, params, stats, _ = network
    assert params.keys() == stats.keys() == {"encoder", *heads}
    kernels = [params["first"]["dense1"], params["first"]["dense2"], params["second"]["dense1"]]
    assert [layer["kernel"].shape for layer in kernels] == [(64, 16), (16, 8), (8, 4)]
    assert set(stats["first"]) == {"bn1"}
    assert stats["second"] == {}


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_an_encoder_in_two_parts_is_the_whole_one(tiny_encoder, network, cut):
    _, params, stats, views = network
    run = jax.jit(run_encoder, static_argnums=0, static_argnames=("begin", "end"))
    features, whole_stats = run(tiny_encoder, params, stats, views)
    half, after_half = run(tiny_encoder, params, stats, views, end=cut)
    assert half.shape == (3, 2, *((8, 8) if cut == 1 else (4, 4)), 8 * 2 ** (cut - 1))
    found, found_stats = run(tiny_encoder, params, after_half, half, begin=cut)
    assert features.shape == (3, 2, 4, 4, 64)
    np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(found_stats) == jax.tree.structure(whole_stats) == jax.tree.structure(stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found_stats, whole_stats)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), whole_stats["encoder"], stats["encoder"])
    assert all(jax.tree.leaves(changed))
    untouched = {f"layer{stage}_0" for stage in range(cut + 1, 5)}
    for layer in untouched:
        jax.tree.map(np.testing.assert_array_equal, after_half["encoder"][layer], stats["encoder"][layer])


def test_pool_averages_over_space_in_float32():
    features = jnp.asarray(np.random.default_rng(2).normal(size=(2, 2, 3, 4, 5)), jnp.bfloat16)
    pooled = pool(features)
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, np.float64(features).mean((2, 3)), rtol=1e-5, atol=1e-6)


def test_cells_are_listed_row_by_row():
    features = np.random.default_rng(2).normal(size=(2, 2, 3, 4, 5))
    listed = cells(jnp.asarray(features, jnp.float32))
    assert listed.shape == (2, 2, 12, 5)
    for y, x in np.ndindex(3, 4):
        np.testing.assert_array_equal(listed[:, :, 4 * y + x], np.float32(features[:, :, y, x]))


def test_a_heads_statistics_are_those_of_both_views_of_all_tiles():
    head, inputs = MLPHead((6, 3)), np.random.default_rng(3).normal(size=(5, 2, 4)).astype(np.float32)
    variables = head.init(jax.random.key(0), inputs, train=True)
    params, stats = variables["params"], variables["batch_stats"]
    outputs, updated = run_head(head, params, stats, jnp.asarray(inputs))
    hidden = np.float64(inputs).reshape(10, 4) @ np.float64(params["dense1"]["kernel"])
    np.testing.assert_allclose(updated["bn1"]["mean"], 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(updated["bn1"]["var"], 0.9 + 0.1 * hidden.var(0), rtol=1e-4)
    hidden = np.maximum((hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5), 0)
    expected = hidden @ np.float64(params["dense2"]["kernel"]) + np.float64(params["dense2"]["bias"])
    np.testing.assert_allclose(outputs.reshape(10, 3), expected, rtol=1e-4, atol=1e-5)
