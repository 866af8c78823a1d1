"""The fine-tuning step: its numbers, a frozen encoder, and that a network learns four tiles by heart."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import log_loss

from grass_jax.augment.pairs import PairAugmentation, augment_pairs
from grass_jax.bands import RGB
from grass_jax.data.labels import IGNORE
from grass_jax.models import build_segmenter
from grass_jax.optim import scale_encoder
from grass_jax.segment.step import create_segmentation_state, segment_step

SIZE, CLASSES = 32, 3


def plain(key, images, masks):
    """No augmentation: the images, scaled."""
    return images.astype(jnp.float32) / 255 - 0.5, masks


@pytest.fixture(scope="module")
def network():
    head = {"name": "deeplabv3plus", "channels": 8, "dropout": 0.0}
    return build_segmenter({"name": "resnet18", "width": 4, "output_stride": 8}, head, CLASSES)


@pytest.fixture(scope="module")
def tiles():
    """Four tiles of patches in three colours, with some unlabelled pixels."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, CLASSES, (4, 4, 4)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    colours = np.array([[60, 90, 50], [150, 140, 120], [40, 60, 120]])
    images = np.clip(colours[masks] + rng.normal(0, 10, (4, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    masks[:, :3] = IGNORE
    return {"image": images, "mask": masks}


def test_deeplab_learns_four_tiles(network, tiles):
    optimizer = optax.adamw(1e-2)
    augmentation = PairAugmentation(size=SIZE, scale=(1.0, 1.0))
    step = jax.jit(
        partial(
            segment_step,
            module=network,
            optimizer=optimizer,
            augment=lambda key, images, masks: augment_pairs(key, images, masks, augmentation),
        )
    )
    state = create_segmentation_state(jax.random.key(0), network, optimizer, size=SIZE)
    for i in range(150):
        state, metrics = step(state, tiles, jax.random.fold_in(jax.random.key(1), i))
    variables = {"params": state.params, "batch_stats": state.stats}
    views = (tiles["image"] / np.float32(255) - np.array(RGB.mean)) / np.array(RGB.std)
    found = network.apply(variables, views.astype(np.float32), train=False).argmax(-1)
    labelled = tiles["mask"] != IGNORE
    assert (np.asarray(found) == tiles["mask"])[labelled].mean() >= 0.95
    assert float(metrics["pixel_accuracy"]) > 0.9


def test_the_loss_is_that_of_the_labelled_pixels(network, tiles):
    optimizer = optax.sgd(0.1)
    state = create_segmentation_state(jax.random.key(0), network, optimizer, size=SIZE)
    variables = {"params": state.params, "batch_stats": state.stats}
    views, masks = plain(None, tiles["image"], tiles["mask"])
    logits, _ = jax.jit(partial(network.apply, train=True, mutable=["batch_stats"]))(variables, views)
    labelled = masks != IGNORE
    shares = np.asarray(jax.nn.softmax(logits))[labelled]
    weights = np.array([1.0, 2.0, 0.5])[masks[labelled]]
    for class_weights, each in ((None, None), ((1.0, 2.0, 0.5), weights)):
        step = partial(segment_step, module=network, optimizer=optimizer, augment=plain, class_weights=class_weights)
        after, metrics = jax.jit(step)(state, tiles, jax.random.key(2))
        expected = log_loss(masks[labelled], shares, labels=range(CLASSES), sample_weight=each)
        assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)
    accuracy = (shares.argmax(-1) == masks[labelled]).mean()
    assert float(metrics["pixel_accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    assert int(after.step) == 1


def test_a_frozen_encoder_stays_as_it_is_even_with_weight_decay(network, tiles):
    optimizer = optax.chain(optax.adamw(1e-2, weight_decay=0.1), scale_encoder(0.0))
    state = create_segmentation_state(jax.random.key(0), network, optimizer, size=SIZE)
    step = partial(segment_step, module=network, optimizer=optimizer, augment=plain, train_encoder=False)
    after, _ = jax.jit(step)(state, tiles, jax.random.key(2))
    for part in ("params", "stats"):
        before, now = getattr(state, part), getattr(after, part)
        jax.tree.map(np.testing.assert_array_equal, now["encoder"], before["encoder"])
    kernel = "classifier", "conv", "kernel"
    before, now = state.params["decoder"], after.params["decoder"]
    for name in kernel:
        before, now = before[name], now[name]
    assert not np.array_equal(before, now)
    assert not np.array_equal(
        state.stats["decoder"]["low_level"]["bn"]["mean"], after.stats["decoder"]["low_level"]["bn"]["mean"]
    )


def test_the_encoder_learns_at_its_own_rate():
    updates = {"encoder": {"kernel": jnp.ones(3)}, "decoder": {"kernel": jnp.ones(3)}}
    scaled, _ = scale_encoder(0.25).update(updates, scale_encoder(0.25).init(updates), updates)
    np.testing.assert_array_equal(scaled["encoder"]["kernel"], np.full(3, 0.25))
    np.testing.assert_array_equal(scaled["decoder"]["kernel"], np.ones(3))


def test_a_pretrained_encoder_comes_in_whole(network):
    variables = jax.jit(partial(network.init, train=False))(jax.random.key(7), jnp.zeros((1, SIZE, SIZE, 3)))
    encoder = {name: variables[name]["encoder"] for name in ("params", "batch_stats")}
    optimizer = optax.sgd(0.1)
    state = create_segmentation_state(jax.random.key(0), network, optimizer, size=SIZE, encoder=encoder)
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], encoder["params"])
    other = create_segmentation_state(jax.random.key(0), network, optimizer, size=SIZE)
    jax.tree.map(np.testing.assert_array_equal, state.params["decoder"], other.params["decoder"])
