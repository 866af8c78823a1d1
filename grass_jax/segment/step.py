"""The fine-tuning step: a pure function of (state, batch, key), like the steps of pretraining."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from grass_jax.data.labels import IGNORE
from grass_jax.losses import cross_entropy
from grass_jax.state import TrainState

AugmentPairs = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def segment_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    augment: AugmentPairs,
    class_weights: tuple[float, ...] | None = None,
    train_encoder: bool = True,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Does one optimiser update of a segmentation network on labelled tiles.

    Args:
        state: before the step.
        batch: `image` (b, t, t, c) as stored and `mask` (b, t, t) uint8 class ids, with IGNORE where there is no label.
        key: of this step, e.g. `jax.random.fold_in(key, step)`.
        module: a `models.segmentation.Segmenter`.
        optimizer: as given to `create_segmentation_state`.
        augment: (key, images, masks) -> views (b, s, s, c) normalised, masks (b, s, s).
        class_weights: of the cross-entropy, one per class; None weighs them equally.
        train_encoder: False leaves the encoder's parameters and statistics as they are.

    Returns:
        The state after the step, and scalars: `loss`, `gradient_norm` and `pixel_accuracy` of the batch.
    """
    augment_key, dropout_key = jax.random.split(key)
    views, masks = augment(augment_key, batch["image"], batch["mask"])

    def objective(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        logits, updated = module.apply(
            {"params": params, "batch_stats": state.stats},
            views,
            train=True,
            train_encoder=train_encoder,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        return cross_entropy(logits, masks, class_weights), (updated.get("batch_stats", state.stats), logits)

    (loss, (stats, logits)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    labelled = masks != IGNORE
    right = jnp.sum((logits.argmax(-1) == masks) & labelled) / jnp.maximum(labelled.sum(), 1)
    state = state.replace(step=state.step + 1, params=params, stats=stats, opt_state=opt_state)
    return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradients), "pixel_accuracy": right}


def create_segmentation_state(
    key: jax.Array,
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    size: int,
    bands: int = 3,
    encoder: dict[str, Any] | None = None,
) -> TrainState:
    """Makes the state before the first step.

    Args:
        key: for the initial parameters.
        module: a `models.segmentation.Segmenter`.
        optimizer: any optax transformation.
        size: view size s in pixels.
        bands: channels c of a view.
        encoder: `params` and `batch_stats` of a pretrained encoder; None leaves it random.

    Returns:
        The state, on the default device.
    """

    @jax.jit
    def init(key: jax.Array, encoder: dict[str, Any] | None) -> TrainState:
        variables: Any = module.init(key, jnp.zeros((1, size, size, bands)), train=False)
        params, stats = dict(variables["params"]), dict(variables["batch_stats"])
        if encoder is not None:
            params["encoder"], stats["encoder"] = encoder["params"], encoder["batch_stats"]
        return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), ())

    return init(key, encoder)
