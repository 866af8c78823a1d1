"""Every setting of the guidance against a computation of its own: NumPy, Pillow, finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from grass_jax.augment import Augmentation, Geometry, two_views
from grass_jax.guidance import GuidanceSettings, guide
from grass_jax.losses import info_nce
from grass_jax.methods.simclr import simclr
from grass_jax.models.resnet import BasicBlock, ResNet
from grass_jax.sampling import salient_boxes
from grass_jax.sharding import global_batch, make_mesh
from grass_jax.state import create_state
from grass_jax.steps import PLACING, compile_step, gs_step

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
    return create_state(jax.random.key(seed), METHOD, optax.sgd(0.1), size=SIZE)


@pytest.fixture(scope="module")
def state():
    return state_of(1)


@pytest.fixture(scope="module")
def views():
    """Blocks of noise of two sizes: maps with both signs, and some without a positive value."""
    rng = np.random.default_rng(0)
    coarse, fine = (rng.normal(size=(TILES, 2, SIZE // n, SIZE // n, 3)).repeat(n, 2).repeat(n, 3) for n in (8, 2))
    return jnp.asarray(coarse + 0.5 * fine, jnp.float32)


@pytest.fixture(scope="module")
def plain(state, views):
    """The guidance without any control, and its statistics."""
    guidance, stats = ask(state, views, hp=GuidanceSettings())
    assert 0 < guidance.fallback.sum() < guidance.fallback.size
    assert (guidance.boxes != jnp.array(WHOLE)).any(-1).mean() > 0.3
    return guidance, stats


def features_of(state, views, stage: int) -> np.ndarray:
    """What a stage of the encoder gives, (b, 2, h, w, d), from the module itself."""
    stages, _ = stages_of({"params": state.params["encoder"], "batch_stats": state.stats["encoder"]}, views)
    features = np.asarray(stages[stage - 1], np.float64)
    return features.reshape(-1, 2, *features.shape[1:])


def in_float64(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def pillow_resize(image: np.ndarray, size: int) -> np.ndarray:
    """Pillow's antialiased bilinear resize of one channel (h, w), in float32."""
    resized = Image.fromarray(np.asarray(image, np.float32), mode=None).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def same_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


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
    same_trees(jax.tree.map(jnp.shape, stats), jax.tree.map(jnp.shape, plain[1]))


def test_random_boxes_need_a_key(state, views):
    with pytest.raises(ValueError, match=r"^Random boxes need a key: give guide\(\) one\.$"):
        jax.eval_shape(partial(guide, method=METHOD, hp=GuidanceSettings(boxes="random")), state, views)


@pytest.mark.parametrize("stage", [2, 4])
def test_activation_is_the_mean_over_channels(state, views, plain, stage):
    found, stats = ask(state, views, hp=GuidanceSettings(source="activation", stage=stage))
    np.testing.assert_allclose(found.maps, features_of(state, views, stage).mean(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.boxes, boxes_of(found.maps))
    assert not found.fallback.any()
    np.testing.assert_allclose(found.loss, plain[0].loss, rtol=1e-5)
    # the pass ends at the loss, whatever the stage: it updates all statistics, and each once
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), stats, plain[1])


def loss_by_hand(params, stats, views):
    """The module itself, means, two dense layers and the loss."""
    variables = {"params": params["encoder"], "batch_stats": stats["encoder"]}
    rows = views.reshape(-1, *views.shape[2:])
    features, _ = ENCODER.apply(variables, rows, train=True, mutable=["batch_stats"])
    one, two = params["head"]["dense1"], params["head"]["dense2"]
    hidden = jnp.maximum(features.mean((1, 2)) @ one["kernel"] + one["bias"], 0)
    embeddings = hidden @ two["kernel"] + two["bias"]
    return info_nce(embeddings.reshape(*views.shape[:2], -1), temperature=0.5)


def test_pixels_are_the_absolute_gradient_at_the_input(state, views):
    with jax.enable_x64(True):
        exact, few = in_float64(state), jnp.asarray(views[:4], jnp.float64)
        found, _ = ask(exact, few, hp=GuidanceSettings(source="pixels"))
        loss = jax.jit(partial(loss_by_hand, exact.params, exact.stats))
        gradient = np.asarray(jax.jit(jax.grad(loss))(few))
        for index in np.argsort(-np.abs(gradient), axis=None)[[0, 10, 100, 1000, 10000]]:
            change = np.zeros(few.size)
            change[index] = 1e-5
            change = change.reshape(few.shape)
            slope = (float(loss(few + change)) - float(loss(few - change))) / 2e-5
            np.testing.assert_allclose(gradient.flat[index], slope, rtol=1e-3)
    fine = np.abs(gradient).mean(-1)
    assert found.maps.shape == (4, 2, SIZE // STRIDE, SIZE // STRIDE)
    for tile, view in np.ndindex(4, 2):
        # Pillow computes in float32
        expected = pillow_resize(fine[tile, view] / fine.max(), SIZE // STRIDE)
        np.testing.assert_allclose(found.maps[tile, view] / fine.max(), expected, rtol=1e-5)
    assert not found.fallback.any()
    np.testing.assert_allclose(found.loss, loss(few), rtol=1e-12)


@pytest.mark.parametrize("stage", [2, 3])
def test_an_earlier_stages_map_by_finite_differences(state, views, stage):
    """A channel's weight is what a constant, added to it all over one view, does to the loss, per pixel."""
    with jax.enable_x64(True):
        exact, few = in_float64(state), jnp.asarray(views[:4], jnp.float64)
        found, _ = ask(exact, few, hp=GuidanceSettings(stage=stage))
        features = features_of(exact, few, stage)
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
    expected = (features * weights[:, :, None, None]).mean(-1)
    np.testing.assert_allclose(found.maps, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(found.boxes[~found.fallback], boxes_of(found.maps)[~found.fallback])
    np.testing.assert_allclose(found.loss, loss(features), rtol=1e-12)


def test_negated_maps_have_the_boxes_of_what_lowers_the_loss(state, views, plain):
    found, _ = ask(state, views, hp=GuidanceSettings(negate=True))
    np.testing.assert_allclose(found.maps, -plain[0].maps, rtol=1e-4, atol=1e-7)
    fallback = np.asarray(found.maps).max((2, 3)) <= 0
    assert 0 < fallback.sum() < fallback.size
    np.testing.assert_array_equal(found.fallback, fallback)
    np.testing.assert_array_equal(found.boxes, np.where(fallback[..., None], WHOLE, boxes_of(found.maps)))
    flipped, _ = ask(state, views, hp=GuidanceSettings(negate=True, sign="flip"))
    expected = np.asarray(found.maps) / np.asarray(found.maps).max((2, 3), keepdims=True)
    np.testing.assert_allclose(flipped.maps, expected, rtol=1e-3, atol=1e-5)
    assert not flipped.fallback.any()


@pytest.mark.parametrize("boxes", ["guided", "random"])
def test_first_leaves_every_second_view_whole(state, views, plain, boxes):
    found, _ = ask(state, views, hp=GuidanceSettings(views="first", boxes=boxes), key=jax.random.key(0))
    np.testing.assert_array_equal(found.boxes[:, 1], np.broadcast_to(WHOLE, (TILES, 4)))
    first, guided = np.asarray(found.boxes[:, 0]), np.asarray(plain[0].boxes[:, 0])
    np.testing.assert_array_equal(first[:, 2:] - first[:, :2], guided[:, 2:] - guided[:, :2])
    assert (boxes == "guided") == np.array_equal(first, guided)
    np.testing.assert_array_equal(found.fallback, plain[0].fallback)


@pytest.mark.parametrize("size", [16, 24])
def test_maps_of_shrunk_views_have_boxes_in_the_full_ones(state, views, size):
    shrunk = np.empty((TILES, 2, size, size, 3), np.float32)
    for tile, view, band in np.ndindex(TILES, 2, 3):
        shrunk[tile, view, ..., band] = pillow_resize(views[tile, view, ..., band], size)
    found, stats = ask(state, views, hp=GuidanceSettings(size=size))
    expected, expected_stats = ask(state, jnp.asarray(shrunk), hp=GuidanceSettings())
    assert found.maps.shape == (TILES, 2, size // STRIDE, size // STRIDE)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), stats, expected_stats)
    np.testing.assert_array_equal(
        found.boxes, np.where(found.fallback[..., None], WHOLE, boxes_of(found.maps))
    )
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
    np.testing.assert_array_equal(found.boxes, expected.boxes)


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
        ({"negate": True, "source": "pixels"}, "negate needs the source 'gradient': a map of 'pixels' has no sign to turn"),
        ({"negate": True, "source": "activation"}, "negate needs the source 'gradient': a map of 'activation' has no sign to turn"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(settings, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        GuidanceSettings(**settings)
    assert str(error.value) == f"guidance {words}."


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return {"image": rng.integers(0, 256, (TILES, 5, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)}


def augment(key, batch):
    return two_views(key, batch["image"], Augmentation(SIZE, area=(0.3, 1.0), blur=0.0), geometry=True)


def test_a_method_that_wants_places_gets_those_inside_the_boxes(state, batch):
    def loss(params, stats, features, geometry):
        value, (stats, metrics) = METHOD.loss(params, stats, features, ())
        return value + geometry.boxes.sum(), (stats, metrics | {"places": geometry.boxes, "flips": geometry.flips})

    spy = METHOD._replace(targets=lambda state, views, geometry: geometry, loss=loss, places=True)
    key = jax.random.key(5)
    step = jax.jit(partial(gs_step, method=spy, optimizer=optax.sgd(0.1), augment=augment))
    _, metrics = step(state, batch, key)
    views, geometry = jax.jit(augment)(key, batch)
    guidance, _ = ask(state, views, hp=GuidanceSettings(), key=jax.random.fold_in(key, PLACING))
    # the guidance looks at the views as they come
    np.testing.assert_allclose(metrics["loss_before"], guidance.loss + geometry.boxes.sum(), rtol=1e-6)
    assert geometry.flips.any()
    assert not geometry.flips.all()
    np.testing.assert_array_equal(metrics["flips"], geometry.flips)
    for tile, view in np.ndindex(TILES, 2):
        y0, x0, y1, x1 = np.asarray(geometry.boxes[tile, view], np.float64)
        top, left, bottom, right = np.asarray(guidance.boxes[tile, view]) / SIZE
        if geometry.flips[tile, view]:  # the view's left edge is the right one of its place
            left, right = 1 - right, 1 - left
        height, width = y1 - y0, x1 - x0
        place = (y0 + top * height, x0 + left * width, y0 + bottom * height, x0 + right * width)
        np.testing.assert_allclose(metrics["places"][tile, view], place, rtol=1e-5, atol=1e-4)
    assert (np.asarray(guidance.boxes) != WHOLE).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "activation", "boxes": "random", "views": "first"},
        {"source": "pixels", "size": 24, "threshold": 0.7},
        {"encoder": "random", "stage": 3, "negate": True},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_the_step_compiles_for_eight_devices(batch, settings):
    mesh, optimizer = make_mesh(), optax.sgd(0.1)
    assert mesh.size == 8
    parts = {"method": METHOD, "optimizer": optimizer, "augment": augment, "hp": GuidanceSettings(**settings)}
    step = compile_step(partial(gs_step, **parts), mesh)
    key = jax.random.key(0)
    after, metrics = step(state_of(1), global_batch(batch, mesh), key)
    assert int(after.step) == 1
    assert np.isfinite([float(value) for value in metrics.values()]).all()
    views, geometry = jax.jit(augment)(key, batch)
    alone, _ = ask(state_of(1), views, hp=parts["hp"], key=jax.random.fold_in(key, PLACING))
    np.testing.assert_allclose(metrics["loss_before"], alone.loss, rtol=1e-4)
    extent = np.asarray(alone.boxes[..., 2:] - alone.boxes[..., :2])
    np.testing.assert_allclose(metrics["box_area"], extent.prod(-1).mean() / SIZE**2, rtol=0.02)
    assert isinstance(geometry, Geometry)
