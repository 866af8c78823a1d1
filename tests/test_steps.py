"""The train step against the original's: three steps of its own step function on a small trunk."""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grass_jax.guidance import GuidanceSettings, guide
from grass_jax.methods.simclr import simclr
from grass_jax.models.heads import ProjectionHead
from grass_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from grass_jax.optim import decay_mask, larc, original_schedule
from grass_jax.sampling.crop import crop_boxes
from grass_jax.state import create_state
from grass_jax.steps import update

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def flax_name(name: str) -> tuple[str, ...]:
    """('encoder', 'layer1_0', 'conv1', 'kernel') for 'layer1.0.conv1.weight', and so on."""
    *layer, leaf = name.split(".")
    if layer[0] == "heads":
        return ("head", f"dense{int(layer[1]) + 1}", "kernel" if leaf == "weight" else "bias")
    leaf = {"running_mean": "mean", "running_var": "var"}.get(leaf, leaf)
    if leaf == "weight":
        leaf = "kernel" if layer[-1].startswith("conv") or layer[-2:] == ["downsample", "0"] else "scale"
    if layer[0].startswith("layer"):
        layer = ["_".join(layer[:2]), "_".join(layer[2:])]
    return ("encoder", *layer, leaf)


def flax_array(array: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, (out, in) to (in, out)."""
    return {4: lambda a: a.transpose(2, 3, 1, 0), 2: lambda a: a.T}.get(array.ndim, lambda a: a)(array)


def torch_array(array: np.ndarray) -> np.ndarray:
    return {4: lambda a: a.transpose(3, 2, 0, 1), 2: lambda a: a.T}.get(array.ndim, lambda a: a)(np.asarray(array))


def get(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def put(tree, path, value):
    get(tree, path[:-1])[path[-1]] = value


def uniform(name: str, fan_name: str, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    return (np.random.RandomState(seed).uniform(-1, 1, shape) / np.sqrt(fan_in)).astype(np.float32)


def initial_state(names, method, optimizer, dtype):
    state = create_state(jax.random.key(0), method, optimizer, size=96)
    params = jax.tree.map(np.asarray, state.params)
    for name in names:
        leaf = get(params, flax_name(name))
        if flax_name(name)[-1] == "kernel":
            value = uniform(name, name, torch_array(leaf).shape, int(np.prod(torch_array(leaf).shape[1:])))
            put(params, flax_name(name), flax_array(value))
        elif flax_name(name)[0] == "head":
            weight = torch_array(get(params, (*flax_name(name)[:-1], "kernel")))
            put(params, flax_name(name), uniform(name, name, leaf.shape, weight.shape[1]))
    cast = partial(jax.tree.map, lambda a: jnp.asarray(a, dtype))
    params = cast(params)
    return state.replace(params=params, stats=cast(state.stats), opt_state=optimizer.init(params))


def run_three_steps(z, dtype, sign="flip"):
    """Runs guide, crop and update on the stored views; yields what each step computed beside the state after it."""
    names = [str(name) for name in z["names"]]
    encoder = ResNet(tuple(int(n) for n in z["layers"]), Bottleneck)
    head = ProjectionHead(relu=False)
    simclr_method = simclr(encoder, relu=False, temperature=float(z["temperature"]))

    def loss_and_embeddings(params, stats, features, targets):
        loss, (stats, metrics) = simclr_method.loss(params, stats, features, targets)
        embeddings = head.apply({"params": params["head"]}, features.mean((-3, -2)))
        return loss, (stats, metrics | {"embeddings": embeddings})

    method = simclr_method._replace(loss=loss_and_embeddings)
    # its state is the gradient as it came
    keep = optax.GradientTransformation(lambda params: params, lambda gradients, *_: (gradients, gradients))
    optimizer = optax.chain(keep, larc(original_schedule(int(z["total_steps"])), decay_mask=decay_mask))
    state = initial_state(names, method, optimizer, dtype)

    # float64 convolutions are plain loops: they are worth the optimisation that conftest.py turns off
    @partial(
        jax.jit, compiler_options={"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    )
    def step(state, views):
        guidance, stats = guide(state, views, method=method, hp=GuidanceSettings(sign=sign))
        guided = crop_boxes(views, guidance.boxes)
        after, metrics = update(state.replace(stats=stats), guided, method=method, optimizer=optimizer)
        return after, metrics, guidance, guided

    for images in z["images_u8_nchw"]:
        views = (images.transpose(0, 2, 3, 1) / np.float32(255) - MEAN) / STD
        views = jnp.asarray(views.reshape(2, -1, *views.shape[1:]).swapaxes(0, 1), dtype)
        before = state
        state, *computed = step(state, views)
        yield before, state, *computed


def in_batch_order(array):
    """(b, 2, ...) to the original's rows: all first views, then all second views."""
    return np.asarray(array).swapaxes(0, 1).reshape(-1, *array.shape[2:])


def test_views_of_a_tile_are_rows_of_the_original_batch(vectors):
    order = vectors("collate")["order"]
    tiles = len(order) // 2
    np.testing.assert_array_equal(in_batch_order(10 * np.arange(tiles)[:, None] + np.arange(2)), order)


@pytest.fixture(scope="module")
def float64_run(vectors):
    with jax.enable_x64(True):
        return list(run_three_steps(vectors("step_mini_96"), jnp.float64))


def test_three_steps_in_float64_are_the_originals(vectors, float64_run):
    z = vectors("step_mini_96")
    names = [str(name) for name in z["names"]]
    stored64 = partial(np.testing.assert_allclose, rtol=1e-9)
    stored32 = partial(np.testing.assert_allclose, rtol=2e-7)
    for t, (before, after, metrics, guidance, guided) in enumerate(float64_run):
        stored64(float(guidance.loss), z["loss_before_f64run"][t])
        stored64(float(metrics["loss"]), z["loss_after_f64run"][t])
        np.testing.assert_array_equal(in_batch_order(guidance.boxes), z["box_f64run"][t])
        stored32(in_batch_order(guidance.maps), z["lam_norm_f64run"][t], atol=2e-7)
        stored64(in_batch_order(guided).sum((1, 2, 3)), z["crop_sum_per_view_f64run"][t])
        stored32(in_batch_order(metrics["embeddings"]), z["emb_after_f64run"][t], atol=1e-8)
        for k, name in enumerate(names):
            param = np.asarray(get(after.params, flax_name(name)))
            gradient = np.asarray(get(after.opt_state[0], flax_name(name)))
            change = param - np.asarray(get(before.params, flax_name(name)))
            stored64(np.linalg.norm(param.ravel()), z["param_l2_f64run"][t, k], atol=1e-12)
            stored64(param.sum(), z["param_sum_f64run"][t, k], atol=1e-9)
            stored64(np.linalg.norm(gradient.ravel()), z["grad_l2_f64run"][t, k])
            stored64(np.linalg.norm(change.ravel()), z["update_l2_f64run"][t, k], atol=1e-12)


def test_the_steps_learning_rates_are_the_originals(vectors):
    z = vectors("step_mini_96")
    with jax.enable_x64(True):
        rates = original_schedule(int(z["total_steps"]))(np.arange(3))
    np.testing.assert_allclose(rates, z["lr"], rtol=1e-12)


def test_first_values_and_running_statistics_are_the_originals(vectors, float64_run):
    z = vectors("step_mini_96")
    firsts = [key.removesuffix("_f64run") for key in z.files if key.startswith("first16/") and key.endswith("_f64run")]
    assert len(firsts) == 13
    for t, (_, after, *_rest) in enumerate(float64_run):
        for first in firsts:
            path = flax_name(first.removeprefix("first16/"))
            array = torch_array(get(after.stats if path[-1] in ("mean", "var") else after.params, path))
            if path[-1] == "var":
                # torch's running variance is unbiased: n / (n - 1) times the biased one, over the rows and pixels seen
                n = {"bn1": 16 * 48 * 48, "bn3": 16 * 3 * 3}[path[-2]]
                kept = 0.9 ** (2 * (t + 1))
                array = kept + (array - kept) * n / (n - 1)
            np.testing.assert_allclose(array.ravel()[:16], z[f"{first}_f64run"][t], rtol=2e-7, atol=1e-9)


def test_three_steps_in_float32_pick_the_originals_boxes(vectors):
    z = vectors("step_mini_96")
    # rounding grows from step to step: the original's own float32 and float64 maps differ by 2e-2 at the third
    for t, (_, _, metrics, guidance, *_) in enumerate(run_three_steps(z, jnp.float32)):
        np.testing.assert_array_equal(in_batch_order(guidance.boxes), z["box"][t])
        np.testing.assert_allclose(float(guidance.loss), z["loss_before"][t], rtol=5e-5)
        np.testing.assert_allclose(float(metrics["loss"]), z["loss_after"][t], rtol=5e-5)


def test_bfloat16_steps_are_the_float32_steps_with_less_precision():
    views = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 32, 32, 3)), jnp.float32)
    found = {}
    for dtype in (None, jnp.bfloat16):
        encoder = ResNet((1, 1, 1, 1), BasicBlock, width=8, output_stride=8, dtype=dtype)
        method = simclr(encoder, embedding=16, temperature=0.5)
        optimizer = larc(0.5, decay_mask=decay_mask)
        state = create_state(jax.random.key(0), method, optimizer, size=32)

        @jax.jit
        def step(state, views, method=method, optimizer=optimizer):
            guidance, _ = guide(state, views, method=method, hp=GuidanceSettings())
            return guidance, *update(state, views, method=method, optimizer=optimizer)

        found[dtype] = step(state, views)
    (exact, _, metrics), (rounded, after, low_metrics) = found[None], found[jnp.bfloat16]
    assert rounded.maps.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((after.params, after.stats))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(low_metrics["loss"], metrics["loss"], rtol=5e-3)
    np.testing.assert_allclose(low_metrics["gradient_norm"], metrics["gradient_norm"], rtol=0.1)
    assert np.corrcoef(np.ravel(rounded.maps), np.ravel(exact.maps))[0, 1] > 0.98
    assert not np.array_equal(rounded.maps, exact.maps)


def test_the_names_that_others_import():
    from grass_jax import losses, optim, sampling, state, steps

    for module, names in {
        losses: "info_nce",
        sampling: "loss_attention_map salient_boxes crop_boxes",
        optim: "larc original_schedule",
        steps: "update guide warmup_step gs_step compile_step",
        state: "create_state load_encoder",
    }.items():
        assert all(callable(getattr(module, name)) for name in names.split())
