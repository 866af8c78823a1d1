"""Every setting of the guidance against a computation of its own: NumPy, Pillow, finite differences."""

import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from grass_jax import guidance_pictures as pictures
from grass_jax.guidance import Guidance, GuidanceSettings, guide
from grass_jax.losses import info_nce
from grass_jax.methods.simclr import simclr
from grass_jax.models.resnet import BasicBlock, ResNet
from grass_jax.sampling import salient_boxes
from grass_jax.state import create_state
from tests.data.test_faults import GREY, Records, in_memory

TILES, SIZE, STRIDE = 8, 32, 8
ENCODER = ResNet((1, 1, 1, 1), BasicBlock, width=4, output_stride=STRIDE)
METHOD = simclr(ENCODER, embedding=16, temperature=0.5)
WHOLE = [0, 0, SIZE, SIZE]

ask = jax.jit(partial(guide, method=METHOD), static_argnames="hp")
boxes_of = jax.jit(partial(salient_boxes, size=SIZE))
stages_of = jax.jit(
    lambda variables, views: ENCODER.apply(
        variables, views.reshape(-1, *views.shape[2:]), train=True, stages=True, mutable=["batch_stats"]
    )
)


def state_of(seed: int):
    """A network with biases, as after training: the loss knows no scale, so that without them every map sums to 0."""
    rng, start = np.random.default_rng(seed), create_state(jax.random.key(seed), METHOD, optax.sgd(0.1), size=SIZE)
    noisy = jax.tree.map(lambda a: a + rng.normal(size=a.shape).astype(np.float32) if a.ndim == 1 else a, start.params)
    return start.replace(params=noisy)


@pytest.fixture(scope="module")
def state():
    return state_of(0)


@pytest.fixture(scope="module")
def views():
    """Noise in blocks, and every other tile flat: maps of both signs, and of one."""
    rng = np.random.default_rng(0)
    views = rng.normal(size=(TILES, 2, SIZE // 8, SIZE // 8, 3)).repeat(8, 2).repeat(8, 3)
    views = views + rng.normal(size=(TILES, 2, 1, 1, 3))
    views[::2] = views[::2, :, :1, :1]
    return jnp.asarray(views, jnp.float32)


@pytest.fixture(scope="module")
def plain(state, views):
    """The guidance without any control, and its statistics."""
    guidance, stats = ask(state, views, hp=GuidanceSettings())
    assert 0 < guidance.fallback.sum() < guidance.fallback.size
    assert (guidance.boxes != jnp.array(WHOLE)).any(-1).mean() > 0.3
    return guidance, stats


@pytest.fixture(scope="module")
def noise():
    """Two tiles in which no two values tie: gradients that finite differences can follow, in float64."""
    return np.random.default_rng(1).normal(size=(2, 2, SIZE, SIZE, 3))


def features_of(state, views, stage: int) -> tuple[np.ndarray, dict]:
    """What a stage of the encoder gives, (b, 2, h, w, d), and the statistics after one pass, from the module itself."""
    stages, updated = stages_of({"params": state.params["encoder"], "batch_stats": state.stats["encoder"]}, views)
    features = np.asarray(stages[stage - 1], np.float64)
    return features.reshape(-1, 2, *features.shape[1:]), {"encoder": updated["batch_stats"]}


def in_float64(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def pillow_resize(image: np.ndarray, size: int) -> np.ndarray:
    """Pillow's antialiased bilinear resize of one channel (h, w), in float32."""
    resized = Image.fromarray(np.asarray(image, np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def same_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def close_trees(one, other):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, other)


def test_random_boxes_have_the_guided_ones_sizes_and_other_places(state, views, plain):
    hp, guided = GuidanceSettings(boxes="random"), np.asarray(plain[0].boxes)
    found, stats = ask(state, views, hp=hp, key=jax.random.key(3))
    boxes = np.asarray(found.boxes)
    np.testing.assert_array_equal(boxes[..., 2:] - boxes[..., :2], guided[..., 2:] - guided[..., :2])
    assert boxes.min() >= 0
    assert boxes.max() <= SIZE
    movable = (guided != WHOLE).any(-1)
    assert (boxes != guided).any(-1)[movable].mean() > 0.7
    np.testing.assert_allclose(found.maps, plain[0].maps, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(found.fallback, plain[0].fallback)
    again, other = (ask(state, views, hp=hp, key=jax.random.key(seed))[0].boxes for seed in (3, 4))
    np.testing.assert_array_equal(again, boxes)
    assert (np.asarray(other) != boxes).any()
    close_trees(stats, plain[1])


def test_random_boxes_need_a_key(state, views):
    with pytest.raises(ValueError, match="need a key") as error:
        jax.eval_shape(partial(guide, method=METHOD, hp=GuidanceSettings(boxes="random")), state, views)
    assert str(error.value) == "Random boxes need a key: give guide() one."


def test_activation_is_the_mean_over_channels(state, views, plain):
    found, stats = ask(state, views, hp=GuidanceSettings(source="activation"))
    features, expected_stats = features_of(state, views, 4)
    np.testing.assert_allclose(found.maps, features.mean(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.boxes, boxes_of(found.maps))
    assert not found.fallback.any()
    np.testing.assert_allclose(found.loss, plain[0].loss, rtol=1e-5)
    close_trees(stats, expected_stats)


def loss_by_hand(params, stats, views):
    """The module itself, means, two dense layers and the loss."""
    variables = {"params": params["encoder"], "batch_stats": stats["encoder"]}
    rows = views.reshape(-1, *views.shape[2:])
    features, _ = ENCODER.apply(variables, rows, train=True, mutable=["batch_stats"])
    one, two = params["head"]["dense1"], params["head"]["dense2"]
    hidden = jnp.maximum(features.mean((1, 2)) @ one["kernel"] + one["bias"], 0)
    embeddings = hidden @ two["kernel"] + two["bias"]
    return info_nce(embeddings.reshape(*views.shape[:2], -1), temperature=0.5)


def test_pixels_are_the_absolute_gradient_at_the_input(state, noise):
    with jax.enable_x64(True):
        exact, few = in_float64(state), jnp.asarray(noise)
        found, _ = ask(exact, few, hp=GuidanceSettings(source="pixels"))
        loss = jax.jit(partial(loss_by_hand, exact.params, exact.stats))
        np.testing.assert_allclose(found.loss, loss(few), rtol=1e-12)
        gradient = np.asarray(jax.jit(jax.grad(loss))(few))
        for index in np.argsort(-np.abs(gradient), axis=None)[[0, 10, 100, 1000]]:
            change = np.zeros(few.size)
            change[index] = 1e-5
            change = change.reshape(few.shape)
            slope = (float(loss(few + change)) - float(loss(few - change))) / 2e-5
            np.testing.assert_allclose(gradient.flat[index], slope, rtol=1e-3)
    fine, maps = np.abs(gradient).mean(-1), np.asarray(found.maps)
    assert maps.shape == (2, 2, SIZE // STRIDE, SIZE // STRIDE)
    for tile, view in np.ndindex(2, 2):
        # Pillow computes in float32
        expected = pillow_resize(fine[tile, view] / fine.max(), SIZE // STRIDE)
        np.testing.assert_allclose(maps[tile, view] / fine.max(), expected, rtol=1e-5)
    assert not found.fallback.any()


@pytest.mark.parametrize("stage", [2, 3])
def test_an_earlier_stages_map_by_finite_differences(state, noise, stage):
    """A channel's weight is what a constant, added to it all over one view, does to the loss, per pixel."""
    with jax.enable_x64(True):
        exact, few = in_float64(state), jnp.asarray(noise)
        found, stats = ask(exact, few, hp=GuidanceSettings(stage=stage))
        features, expected_stats = features_of(exact, few, stage)
        # the two parts of the encoder together update all of its statistics, and each once
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), stats, expected_stats)
        part, _ = jax.jit(partial(METHOD.encode, end=stage))(exact.params, exact.stats, few)
        np.testing.assert_allclose(part, features, rtol=1e-12, atol=1e-12)

        @jax.jit
        def loss(features):
            last, stats = METHOD.encode(exact.params, exact.stats, features, begin=stage)
            return METHOD.loss(exact.params, stats, last, ())[0]

        step, (b, v, h, w, d) = 1e-6, features.shape
        weights = np.empty((b, v, d))
        for tile, view, channel in np.ndindex(b, v, d):
            change = np.zeros_like(features)
            change[tile, view, ..., channel] = step
            weights[tile, view, channel] = (loss(features + change) - loss(features - change)) / (2 * step) / (h * w)
        np.testing.assert_allclose(found.loss, loss(features), rtol=1e-12)
        boxes = np.where(found.fallback[..., None], WHOLE, boxes_of(found.maps))
    expected = (features * weights[:, :, None, None]).mean(-1)
    np.testing.assert_allclose(found.maps, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(found.boxes, boxes)


def test_negated_maps_have_the_boxes_of_what_lowers_the_loss(state, views, plain):
    found, _ = ask(state, views, hp=GuidanceSettings(negate=True))
    np.testing.assert_allclose(found.maps, -plain[0].maps, rtol=1e-4, atol=1e-7)
    fallback = np.asarray(found.maps).max((2, 3)) <= 0
    assert 0 < fallback.sum() < fallback.size
    np.testing.assert_array_equal(found.fallback, fallback)
    np.testing.assert_array_equal(found.boxes, np.where(fallback[..., None], WHOLE, boxes_of(found.maps)))


def test_first_leaves_every_second_view_whole(state, views, plain):
    found, random = (
        ask(state, views, hp=GuidanceSettings(views="first", boxes=boxes), key=jax.random.key(0))[0]
        for boxes in ("guided", "random")
    )
    first, guided = np.asarray(random.boxes[:, 0]), np.asarray(plain[0].boxes[:, 0])
    np.testing.assert_array_equal(found.boxes[:, 0], guided)
    np.testing.assert_array_equal(first[:, 2:] - first[:, :2], guided[:, 2:] - guided[:, :2])
    assert (first != guided).any()
    for one in (found, random):
        np.testing.assert_array_equal(one.boxes[:, 1], np.broadcast_to(WHOLE, (TILES, 4)))
        np.testing.assert_array_equal(one.fallback, plain[0].fallback)


def test_maps_of_shrunk_views_have_boxes_in_the_full_ones(state, views):
    size = 24
    shrunk = np.empty((TILES, 2, size, size, 3), np.float32)
    for tile, view, band in np.ndindex(TILES, 2, 3):
        shrunk[tile, view, ..., band] = pillow_resize(views[tile, view, ..., band], size)
    found, stats = ask(state, views, hp=GuidanceSettings(size=size))
    same_trees(stats, state.stats)  # those of other views than the ones that train
    expected, _ = ask(state, jnp.asarray(shrunk), hp=GuidanceSettings())
    assert found.maps.shape == (TILES, 2, size // STRIDE, size // STRIDE)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    np.testing.assert_array_equal(found.boxes, np.where(found.fallback[..., None], WHOLE, boxes_of(found.maps)))
    assert found.boxes[..., 2:].max() == SIZE
    assert (np.asarray(found.boxes) != WHOLE).any()


def test_a_random_encoders_maps_know_nothing_of_the_trained_one(state, views):
    hp = GuidanceSettings(encoder="random")
    found, stats = ask(state, views, hp=hp)
    same_trees(stats, state.stats)
    moved = state_of(2)
    moved = moved.replace(stats=jax.tree.map(lambda a: a + 1, moved.stats))
    other, other_stats = ask(moved, views, hp=hp)
    same_trees(found, other)
    same_trees(other_stats, moved.stats)
    params, fresh, extra = jax.jit(METHOD.init)(jax.random.key(0), views[:2])
    untrained = state.replace(params=params, stats=fresh, extra=extra)
    expected, _ = ask(untrained, views, hp=GuidanceSettings())
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    np.testing.assert_array_equal(found.fallback, expected.fallback)
    np.testing.assert_array_equal(found.boxes, np.where(found.fallback[..., None], WHOLE, boxes_of(found.maps)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": 0.0}, "threshold must lie between 0 and 1, not 0.0"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1, not 1.0"),
        ({"sign": "abs"}, "sign must be 'fallback' or 'flip', not 'abs'"),
        ({"boxes": "both"}, "boxes must be 'guided' or 'random', not 'both'"),
        ({"source": "map"}, "source must be 'gradient' or 'activation' or 'pixels', not 'map'"),
        ({"encoder": "other"}, "encoder must be 'trained' or 'random', not 'other'"),
        ({"views": "second"}, "views must be 'both' or 'first', not 'second'"),
        ({"stage": 0}, "stage must be 1, 2, 3 or 4, not 0"),
        ({"stage": 5}, "stage must be 1, 2, 3 or 4, not 5"),
        ({"size": -1}, "size must be at least 0, not -1"),
        ({"stage": 3, "source": "pixels"}, "stage must be 4 with the source 'pixels', not 3"),
        (
            {"negate": True, "source": "pixels"},
            "negate needs the source 'gradient': a map of 'pixels' has no sign to turn",
        ),
        (
            {"negate": True, "source": "activation"},
            "negate needs the source 'gradient': a map of 'activation' has no sign to turn",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(settings, words):
    with pytest.raises(ValueError, match=rf"^guidance {re.escape(words)}\.$") as error:
        GuidanceSettings(**settings)
    assert str(error.value) == f"guidance {words}."


def test_a_picture_takes_the_next_tile_in_the_place_of_one_that_cannot_be_read(monkeypatch, tmp_path):
    order, drawn = np.random.default_rng(5).permutation(64).tolist(), []
    monkeypatch.setattr(pictures, "FIGURE_BATCH", 4)
    monkeypatch.setattr(pictures, "crop_boxes", lambda views, boxes: views)
    monkeypatch.setattr(pictures.figures, "guidance", lambda path, views, *_, **__: drawn.append(views[:, 0, 0, 0]))
    monkeypatch.setattr(pictures.figures, "curves", lambda *_: None)

    def whole(state, views, **_):
        del state
        pairs = views.shape[:2]
        return Guidance(jnp.zeros((*pairs, 4), jnp.int32), jnp.zeros((*pairs, 2, 2)), jnp.zeros(pairs, bool), 0.0), {}

    monkeypatch.setattr(pictures, "guide", whole)
    config = SimpleNamespace(seed=5, log=SimpleNamespace(figure_tiles=3))
    augmentation = SimpleNamespace(bands=replace(GREY, mean=(0.0,), std=(1 / 64,)))

    def draw(bad):
        source = in_memory(Records(bad))
        hook = pictures.guidance_pictures(
            config,
            source,
            METHOD,
            lambda key, batch: (jnp.stack([batch["image"]] * 2, 1), None),
            GuidanceSettings(),
            augmentation,
            tmp_path,
        )
        assert hook(SimpleNamespace(name="gs"), 7, {}) == {}

    draw(())
    draw(order[1:2])
    draw(range(64))  # no picture, and the run goes on to its checkpoint
    np.testing.assert_array_equal(64 * np.array(drawn), [order[:3], [order[0], *order[2:4]]])
