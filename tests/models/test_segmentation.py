"""Segmentation networks against SciPy's convolutions, Pillow's enlargement and parameters counted by hand."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from grass_jax.losses import cross_entropy
from grass_jax.models import build_encoder, build_segmenter
from grass_jax.models.deeplab import ASPP, DeepLabV3Plus
from grass_jax.models.heads import FCNHead, LinearHead
from grass_jax.models.resnet import BasicBlock, ResNet
from grass_jax.models.segmentation import Segmenter

MODEL = {"name": "resnet18", "width": 4, "output_stride": 16, "dtype": "float32", "init": "torchvision"}
HEADS = ("deeplabv3plus", "fcn", "linear")


def segmenter(head="deeplabv3plus", classes=3, dropout=0.0, **model):
    return build_segmenter(MODEL | model, {"name": head, "channels": 8, "dropout": dropout}, classes)


def images(n=2, size=64, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size, size, 3)).astype(np.float32)


@cache
def started(head="deeplabv3plus"):
    """A tiny network, its variables (with scales and statistics that are not 0 and 1), and a forward pass."""
    network = segmenter(head)
    variables = jax.jit(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))()
    rng = np.random.default_rng(1)
    return network, jax.tree.map(
        lambda a: np.asarray(a + 0.3 * rng.random(a.shape) * (a.ndim == 1), np.float32), variables
    )


def convolve(x, kernel, dilation=1):
    """Correlates (n, h, w, c) with (k, k, c, d), zeros around, one pair of channels at a time."""
    side = dilation * (kernel.shape[0] - 1) + 1
    spread = np.zeros((side, side, *kernel.shape[2:]))
    spread[::dilation, ::dilation] = kernel
    out = np.zeros((*x.shape[:3], kernel.shape[3]))
    for n, c, d in np.ndindex(x.shape[0], *kernel.shape[2:]):
        out[n, ..., d] += scipy.ndimage.correlate(x[n, ..., c], spread[..., c, d], mode="constant")
    return out


def layer(x, params, stats, train, dilation=1):
    x = convolve(x, params["conv"]["kernel"], dilation)
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["bn"]["mean"], stats["bn"]["var"])
    return np.maximum((x - mean) / np.sqrt(var + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"], 0)


def enlarge(x, size):
    """Pillow's bilinear filter, map by map; it only interpolates when it enlarges."""
    out = np.zeros((x.shape[0], size, size, x.shape[3]))
    for n, c in np.ndindex(x.shape[0], x.shape[3]):
        band = Image.fromarray(np.float32(x[n, ..., c])).resize((size, size), Image.Resampling.BILINEAR)
        out[n, ..., c] = np.asarray(band)
    return out


def plain_aspp(x, params, stats, rates, train):
    names = ["point", *[f"atrous{i + 1}" for i in range(len(rates))]]
    branches = [layer(x, params[name], stats[name], train, rate) for name, rate in zip(names, [1, *rates], strict=True)]
    pooled = layer(x.mean((1, 2), keepdims=True), params["pool"], stats["pool"], train)
    branches.append(np.tile(pooled, (1, *x.shape[1:3], 1)))
    return layer(np.concatenate(branches, -1), params["project"], stats["project"], train)


def start(module, *arguments):
    """Variables of a module in float64, scales and statistics moved off 0 and 1."""
    variables = module.init(jax.random.key(0), *arguments, train=True)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: np.asarray(a, np.float64) + (0.3 * rng.random(a.shape) if a.ndim == 1 else 0), variables
    )


@pytest.mark.parametrize("train", [True, False])
def test_aspp_is_its_branches_side_by_side(train):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 9, 9, 3))
        module = ASPP(4, (2, 3, 10))  # the last rate reaches beyond the map
        variables = start(module, x)
        actual = module.apply(variables, x, train=train, mutable=["batch_stats"])[0]
        expected = plain_aspp(x, variables["params"], variables["batch_stats"], (2, 3, 10), train)
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-9)


def test_deeplab_is_the_papers():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        stages = [rng.normal(size=(2, s, s, c)) for s, c in ((12, 3), (6, 4), (3, 5), (3, 6))]
        module = DeepLabV3Plus(5, channels=4, low_level=2, rates=(1, 2, 3))
        variables = start(module, stages)
        p, s = variables["params"], variables["batch_stats"]
        detail = layer(stages[0], p["low_level"], s["low_level"], False)
        x = enlarge(plain_aspp(stages[3], p["aspp"], s["aspp"], (1, 2, 3), False), 12)
        for name in ("refine1", "refine2"):
            x = layer(np.concatenate([x, detail], -1) if name == "refine1" else x, p[name], s[name], False)
        expected = x @ p["classifier"]["conv"]["kernel"] + p["classifier"]["conv"]["bias"]
        actual = module.apply(variables, stages, train=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)  # Pillow enlarges in float32


def test_fcn_is_one_convolution_and_a_classifier():
    with jax.enable_x64(True):
        stages = [np.random.default_rng(0).normal(size=(2, 6, 6, 4))]
        module = FCNHead(3, channels=5)
        variables = start(module, stages)
        p = variables["params"]
        x = layer(stages[0], p["block"], variables["batch_stats"]["block"], False)
        expected = x @ p["classifier"]["conv"]["kernel"] + p["classifier"]["conv"]["bias"]
        np.testing.assert_allclose(module.apply(variables, stages, train=False), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("size", [64, 65])
def test_linear_segmenter_is_the_encoder_a_product_and_an_enlargement(size):
    network, variables = started("linear")
    x = images(size=size)
    params = variables["params"]
    encoder = {"params": params["encoder"], "batch_stats": variables["batch_stats"]["encoder"]}
    features = build_encoder(**MODEL).apply(encoder, x, train=False)
    classifier = params["decoder"]["classifier"]["conv"]
    expected = enlarge(np.asarray(features) @ classifier["kernel"] + classifier["bias"], size)
    actual = network.apply(variables, x, train=False)
    assert actual.shape == (2, size, size, 3)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_stages_are_what_shorter_networks_give():
    x = images(size=65)
    whole = ResNet((1, 2, 1, 1), BasicBlock, width=4, output_stride=8)
    variables = whole.init(jax.random.key(0), x, train=False)
    stages = whole.apply(variables, x, train=False, stages=True)
    assert [stage.shape for stage in stages] == [(2, 17, 17, 4), (2, 9, 9, 8), (2, 9, 9, 16), (2, 9, 9, 32)]
    for count, stage in enumerate(stages, 1):
        shorter = ResNet((1, 2, 1, 1)[:count], BasicBlock, width=4, output_stride=8)
        np.testing.assert_array_equal(stage, shorter.apply(variables, x, train=False))


@pytest.mark.parametrize("head", HEADS)
def test_the_encoders_tree_is_that_of_pretraining(head):
    _, variables = started(head)
    encoder = build_encoder(**MODEL)
    alone = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    for collection in ("params", "batch_stats"):
        assert jax.tree.map(np.shape, variables[collection]["encoder"]) == jax.tree.map(np.shape, alone[collection])
    assert variables["params"].keys() == {"encoder", "decoder"}
    assert variables["batch_stats"].keys() == ({"encoder"} if head == "linear" else {"encoder", "decoder"})


def test_parameters_counted_by_hand():
    def count(head):
        return sum(leaf.size for leaf in jax.tree.leaves(started(head)[1]["params"]["decoder"]))

    d, low, width, k = 32, 48, 4, 3  # the last features, the reduced first ones, the first ones, classes
    norm = 2 * 8
    aspp = 2 * (8 * d + norm) + 3 * (9 * 8 * d + norm) + 5 * 8 * 8 + norm
    refine = 9 * (8 + low) * 8 + norm + 9 * 8 * 8 + norm
    classifier = 8 * k + k
    assert count("deeplabv3plus") == width * low + 2 * low + aspp + refine + classifier
    assert count("fcn") == 9 * d * 8 + norm + classifier
    assert count("linear") == d * k + k


@pytest.mark.parametrize(("stride", "rates"), [(32, (3, 6, 9)), (16, (6, 12, 18)), (8, (12, 24, 36))])
def test_the_output_stride_sets_the_pyramids_rates(stride, rates):
    network = segmenter(output_stride=stride)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    program = str(jax.make_jaxpr(lambda v, x: network.apply(v, x, train=False))(variables, jnp.zeros((1, 64, 64, 3))))
    for rate in rates:
        assert f"rhs_dilation=({rate}, {rate})" in program
    assert network.encoder.output_stride == stride


@pytest.mark.parametrize("head", HEADS)
def test_a_frozen_encoder_takes_no_gradient_and_keeps_its_statistics(head):
    network, variables = started(head)
    x, masks = images(4), np.random.default_rng(2).integers(0, 3, (4, 64, 64)).astype(np.uint8)

    def objective(params, train_encoder):
        logits, new = network.apply(
            variables | {"params": params}, x, train=True, train_encoder=train_encoder, mutable=["batch_stats"]
        )
        return cross_entropy(logits, masks), new["batch_stats"]

    gradients, stats = jax.jit(jax.grad(lambda p: objective(p, False), has_aux=True))(variables["params"])
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients["encoder"]))
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients["decoder"]["classifier"]))
    jax.tree.map(np.testing.assert_array_equal, stats["encoder"], variables["batch_stats"]["encoder"])
    if head != "linear":
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), stats["decoder"], variables["batch_stats"]["decoder"])
        assert all(jax.tree.leaves(moved))

    # and left to train it does both
    gradients, stats = jax.jit(jax.grad(lambda p: objective(p, None), has_aux=True))(variables["params"])
    assert np.asarray(gradients["encoder"]["conv1"]["kernel"]).any()
    assert (stats["encoder"]["bn1"]["mean"] != variables["batch_stats"]["encoder"]["bn1"]["mean"]).any()


def test_a_frozen_encoder_is_normalised_by_its_running_statistics():
    network, variables = started("fcn")
    x = images(4)
    encoder = {"params": variables["params"]["encoder"], "batch_stats": variables["batch_stats"]["encoder"]}
    features = np.asarray(build_encoder(**MODEL).apply(encoder, x, train=False), np.float64)
    decoder = variables["params"]["decoder"]
    hidden = layer(features, decoder["block"], None, True)
    expected = hidden @ decoder["classifier"]["conv"]["kernel"] + decoder["classifier"]["conv"]["bias"]
    actual = network.apply(variables, x, train=True, train_encoder=False, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(actual, enlarge(expected, 64), rtol=1e-3, atol=1e-3)


def test_dropout_acts_in_training_alone():
    network, (_, variables) = segmenter("fcn", dropout=0.5), started("fcn")
    x = images()

    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return network.apply(variables, x, train=True, train_encoder=False, mutable=["batch_stats"], rngs=rngs)[0]

    assert np.abs(np.asarray(train(0) - train(1))).max() > 1e-3
    np.testing.assert_array_equal(train(0), train(0))
    plain = started("fcn")[0].apply(variables, x, train=False)
    np.testing.assert_array_equal(network.apply(variables, x, train=False), plain)


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_keeps_parameters_and_logits_high(head):
    network = segmenter(head, dtype="bfloat16")
    logits, variables = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, train=True), jnp.zeros((2, 64, 64, 3))
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    program = str(jax.make_jaxpr(lambda v, x: network.apply(v, x, train=False))(variables, jnp.zeros((2, 64, 64, 3))))
    assert (
        len(re.findall(r":bf16\[\S+ = conv_general_dilated", program)) == program.count(" = conv_general_dilated") > 0
    )


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="'deeplabv3plus', 'fcn' or 'linear', not 'unet'"):
        build_segmenter(MODEL, {"name": "unet"}, 2)


def test_modules_take_the_sections_settings():
    network = build_segmenter(MODEL, {"name": "deeplabv3plus", "channels": 12, "dropout": 0.1}, 4)
    assert network == Segmenter(
        build_encoder(**MODEL), DeepLabV3Plus(4, channels=12, low_level=48, rates=(6, 12, 18), dropout=0.1)
    )
    assert build_segmenter(MODEL, {"name": "linear", "channels": 12, "dropout": 0.1}, 4).decoder == LinearHead(4)
