"""The ResNet against a forward pass written in NumPy from torchvision's description, and against known sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.models import build_encoder
from grass_jax.models.heads import ProjectionHead
from grass_jax.models.original_init import original_init
from grass_jax.models.resnet import BasicBlock, Bottleneck, ResNet


def convolve(x, kernel, stride=1, dilation=1):
    """Sums shifted copies: (n, h, w, c) with (k, k, c, d)."""
    k = kernel.shape[0]
    pad = dilation * (k // 2)
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    reach = dilation * (k - 1)
    rows, columns = (x.shape[1] - reach - 1) // stride + 1, (x.shape[2] - reach - 1) // stride + 1
    out = 0
    for i in range(k):
        for j in range(k):
            y0, x0 = i * dilation, j * dilation
            part = x[:, y0 : y0 + (rows - 1) * stride + 1 : stride, x0 : x0 + (columns - 1) * stride + 1 : stride]
            out = out + part @ kernel[i, j]
    return out


def normalise(x, params, stats, train):
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def relu(x):
    return np.maximum(x, 0)


def plain_resnet(params, stats, x, *, blocks, bottleneck, output_stride, train):
    """torchvision's ResNet: `replace_stride_with_dilation` set for the stages beyond the output stride."""
    x = relu(normalise(convolve(x, params["conv1"]["kernel"], 2), params["bn1"], stats["bn1"], train))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    size = (x.shape[1] + 1) // 2
    x = np.max(
        [padded[:, i : i + 2 * size : 2, j : j + 2 * size : 2][:, :size, :size] for i in range(3) for j in range(3)], 0
    )
    dilation, stride_so_far = 1, 4
    for stage, count in enumerate(blocks):
        previous, stride = dilation, 1 if stage == 0 else 2
        if stride == 2 and stride_so_far >= output_stride:
            dilation, stride = dilation * 2, 1
        stride_so_far *= stride
        for block in range(count):
            p, s = params[f"layer{stage + 1}_{block}"], stats[f"layer{stage + 1}_{block}"]
            here, spread = (stride, previous) if block == 0 else (1, dilation)
            plan = (
                [(1, 1), (here, spread), (1, 1)] if bottleneck else [(here, spread), (1, dilation if block else spread)]
            )
            y = x
            for i, (step, gap) in enumerate(plan, 1):
                y = convolve(y, p[f"conv{i}"]["kernel"], step, gap)
                y = normalise(y, p[f"bn{i}"], s[f"bn{i}"], train)
                y = relu(y) if i < len(plan) else y
            if "downsample_0" in p:
                x = convolve(x, p["downsample_0"]["kernel"], here)
                x = normalise(x, p["downsample_1"], s["downsample_1"], train)
            x = relu(x + y)
    return x


@pytest.mark.parametrize(
    ("block", "blocks", "output_stride", "train"),
    [
        (BasicBlock, (1, 2, 1, 1), 32, True),
        (BasicBlock, (1, 1, 2, 2), 16, False),
        (Bottleneck, (1, 1, 2, 2), 8, True),
    ],
)
def test_forward_is_torchvisions(block, blocks, output_stride, train):
    model = ResNet(blocks, block, width=4, output_stride=output_stride)
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(3, 65, 65, 3))  # an odd size shows wrong padding
        variables = jax.tree.map(lambda a: np.asarray(a, np.float64), model.init(jax.random.key(0), x, train=True))
        rng = np.random.default_rng(1)  # statistics and scales that are not 0 and 1
        variables = jax.tree.map(lambda a: a + 0.3 * rng.random(a.shape) if a.ndim == 1 else a, variables)
        actual = model.apply(variables, x, train=train, mutable=["batch_stats"])[0]
        expected = plain_resnet(
            variables["params"],
            variables["batch_stats"],
            x,
            blocks=blocks,
            bottleneck=block is Bottleneck,
            output_stride=output_stride,
            train=train,
        )
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "count"),
    # torchvision's parameter counts without the classifier
    [("resnet18", 11176512), ("resnet34", 21284672), ("resnet50", 23508032), ("resnet101", 42500160)],
)
def test_parameter_counts_are_torchvisions(name, count):
    encoder = build_encoder(name)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


def test_original_head_has_the_originals_parameter_count():
    head = ProjectionHead(relu=False)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.zeros((1, 2048))))
    assert 23508032 + sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 27966656


@pytest.mark.parametrize(("stride", "size"), [(32, 2), (16, 4), (8, 8)])
def test_output_stride_sets_the_maps_size(stride, size):
    encoder = build_encoder("resnet50", width=4, output_stride=stride)
    features = jax.eval_shape(
        lambda x: encoder.init_with_output(jax.random.key(0), x, train=False)[0], jnp.zeros((1, 64, 64, 3))
    )
    assert features.shape == (1, size, size, 128)


def test_unknown_output_stride_is_refused():
    with pytest.raises(ValueError, match="8, 16 or 32"):
        build_encoder("resnet18", output_stride=4).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)


def test_bfloat16_computes_low_and_keeps_parameters_high():
    encoder = build_encoder("resnet18", width=4, dtype="bfloat16")
    features, variables = jax.eval_shape(
        lambda x: encoder.init_with_output(jax.random.key(0), x, train=True), jnp.zeros((2, 64, 64, 3))
    )
    assert features.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_head_is_two_dense_layers():
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(4, 2, 6)).astype(np.float32)
    for relu_between in (True, False):
        head = ProjectionHead(embedding=3, hidden=5, relu=relu_between)
        variables = head.init(jax.random.key(1), pooled)
        dense1, dense2 = variables["params"]["dense1"], variables["params"]["dense2"]
        hidden = pooled @ np.asarray(dense1["kernel"]) + np.asarray(dense1["bias"])
        hidden = relu(hidden) if relu_between else hidden
        expected = hidden @ np.asarray(dense2["kernel"]) + np.asarray(dense2["bias"])
        np.testing.assert_allclose(head.apply(variables, pooled), expected, rtol=1e-5, atol=1e-6)


def test_original_init_draws_torchs_default_and_repeats_the_head():
    params = {
        "encoder": {
            "conv1": {"kernel": jnp.zeros((3, 3, 20, 30))},
            "bn1": {"scale": jnp.ones(30), "bias": jnp.zeros(30)},
        },
        "head": {
            "dense1": {"kernel": jnp.zeros((40, 40)), "bias": jnp.zeros(40)},
            "dense2": {"kernel": jnp.zeros((40, 8)), "bias": jnp.zeros(8)},
        },
    }
    drawn = original_init(jax.random.key(0), params)
    kernel, bound = np.asarray(drawn["encoder"]["conv1"]["kernel"]), 1 / np.sqrt(180)
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)
    assert np.abs(drawn["head"]["dense1"]["bias"]).max() <= 1 / np.sqrt(40)
    np.testing.assert_array_equal(drawn["encoder"]["bn1"]["scale"], 1)
    # torch's (out, in): weight2 = weight1[:8], bias2 = weight1[8, :8]
    weight1 = np.asarray(drawn["head"]["dense1"]["kernel"]).T
    np.testing.assert_array_equal(np.asarray(drawn["head"]["dense2"]["kernel"]).T, weight1[:8])
    np.testing.assert_array_equal(drawn["head"]["dense2"]["bias"], weight1[8, :8])
