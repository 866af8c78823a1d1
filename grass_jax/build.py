"""From the sections of a config to encoder, loss, schedule, optimiser and the state before the first step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grass_jax.augment import Augmentation, Geometry, two_views
from grass_jax.methods import Method
from grass_jax.methods.micro_batches import MicroBatched
from grass_jax.methods.registry import make_method
from grass_jax.models import build_encoder
from grass_jax.models.original_init import original_init
from grass_jax.optim import decay_mask, larc, original_schedule, warmup_cosine, warmup_poly
from grass_jax.state import TrainState, create_state
from grass_jax.steps import Augment


def build_method(config: Any, total_steps: int, *, micro_batches: int | None = None) -> Method:
    """Makes encoder, heads and loss of a config.

    Args:
        config: of pretraining.
        total_steps: length of the run.
        micro_batches: parts in which the encoder sees a batch; those of the config where None.
    """
    encoder: Any = build_encoder(**config.model)
    parts = config.micro_batches if micro_batches is None else micro_batches
    encoder = MicroBatched(encoder, parts) if parts > 1 else encoder
    return make_method(encoder, config.method, total_steps=total_steps)


def build_augment(config: Any, augmentation: Augmentation) -> Augment:
    """Makes the function from tiles to views, in the encoder's dtype, and their geometry."""
    dtype = jnp.dtype(config.model.dtype)

    def augment(key: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, Geometry]:
        views, geometry = two_views(key, batch["image"], augmentation, geometry=True)
        return views.astype(dtype), geometry  # as the first convolution would: half the memory, and cheaper crops

    return augment


def build_schedule(config: Any, ends: list[int]) -> optax.Schedule:
    """Makes the learning-rate schedule over all phases, or one per phase; `ends` are the phases' last steps."""

    def one(length: int) -> optax.Schedule:
        if config.schedule.name == "poly":
            return warmup_poly(
                length, peak=config.schedule.peak, warmup=config.schedule.warmup, power=config.schedule.power
            )
        if config.schedule.name == "original":
            return original_schedule(length)
        return warmup_cosine(
            length, peak=config.schedule.peak, warmup=config.schedule.warmup, final=config.schedule.final
        )

    if not config.schedule.get("restart"):
        return one(ends[-1])
    return optax.join_schedules([one(int(length)) for length in np.diff([0, *ends])], ends[:-1])


def build_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Makes the optimiser of a config; all of them spare batch norm from weight decay."""
    options = config.optimizer
    mask = partial(decay_mask, decay_bias=options.decay_bias)
    if options.name == "larc":
        return larc(
            schedule,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            decay_mask=mask,
            trust_coefficient=options.trust_coefficient,
            eps=options.eps,
        )
    if options.name == "adamw":
        return optax.adamw(schedule, b1=options.momentum, eps=options.eps, weight_decay=options.weight_decay, mask=mask)
    return optax.chain(
        optax.add_decayed_weights(options.weight_decay, mask=mask), optax.sgd(schedule, momentum=options.momentum)
    )


def initial_state(config: Any, key: jax.Array, ends: list[int]) -> partial[TrainState]:
    """Makes `create_state` of a run: its arguments are the key, the method and the optimiser.

    Args:
        config: of a pretraining run, its bands settled.
        key: of the initial parameters.
        ends: last step of each phase, counted over the run.
    """
    return partial(
        create_state,
        key,
        build_method(config, ends[-1]),
        build_optimizer(config, build_schedule(config, ends)),
        size=config.augment.size,
        bands=len(config.bands.numbers),
        reinitialise=original_init if config.model.init == "original" else None,
    )
