"""What training carries from step to step: arrays, nothing else."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from grass_jax.bands import Bands, normalise, unit_range
from grass_jax.checkpoints.reading import restore_part
from grass_jax.checkpoints.resume import run_config
from grass_jax.methods import Method
from grass_jax.models import ResNet, build_encoder


class TrainState(flax.struct.PyTreeNode):
    """The whole state of a run.

    Attributes:
        step: updates done so far, int32 scalar.
        params: trained parameters.
        stats: batch-norm statistics.
        opt_state: of the optimiser.
        extra: arrays of the method: moving averages, queues, prototypes.
    """

    step: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    extra: Any


def create_state(
    key: jax.Array,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    size: int,
    bands: int = 3,
    reinitialise: Callable[[jax.Array, Any], Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> TrainState:
    """Makes the state before the first step.

    Args:
        key: for the initial parameters.
        method: e.g. `methods.simclr.simclr(...)`.
        optimizer: any optax transformation.
        size: view size s in pixels.
        bands: channels c of a view.
        reinitialise: (key, params) -> params, e.g. `models.original_init`; None keeps the modules' own initialisers.
        encoder: `params` and `batch_stats` to start from; None leaves the encoder random.

    Returns:
        The state, on the default device.
    """

    @jax.jit
    def init(key: jax.Array, encoder: Mapping[str, Any] | None) -> TrainState:
        params, stats, extra = method.init(key, jnp.zeros((2, 2, size, size, bands)))
        if reinitialise is not None:
            params = reinitialise(key, params)
        if encoder is not None:
            params = {**params, "encoder": encoder["params"]}
            stats = {**stats, "encoder": encoder["batch_stats"]}
        if isinstance(extra, dict):  # a moving average begins as what it follows
            extra = {name: params.get(name, arrays) for name, arrays in extra.items()}
        return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), extra)

    return init(key, encoder)


class Encoder(NamedTuple):
    """A pretrained encoder: call it on images as they come, or use its parts.

    Attributes:
        module: the Flax module; `module.apply(variables, normalised_images, train=False)`.
        variables: `params` and `batch_stats`.
        bands: of the images that it reads, with their normalisation.
    """

    module: ResNet
    variables: dict[str, Any]
    bands: Bands

    def __repr__(self) -> str:
        return f"Encoder({type(self.module).__name__} of {len(self.bands)} bands)"  # not all of its numbers

    def __call__(self, images: jax.typing.ArrayLike) -> jax.Array:
        """Encodes images (n, s, s, c) as stored to features (n, h, w, d); see `bands.unit_range` for floats."""
        views = normalise(unit_range(jnp.asarray(images), self.bands), self.bands)
        return self.module.apply(self.variables, views, train=False)  # pyright: ignore[reportReturnType]


def load_encoder(workdir: str | Path, step: int | None = None) -> Encoder:
    """Loads the encoder of a pretraining run, onto one device.

    Args:
        workdir: folder of the run.
        step: of a checkpoint that was kept, such as the end of a phase; None takes the newest.

    Returns:
        The encoder with its weights and its normalisation.

    Raises:
        FileNotFoundError: there is no run, or no checkpoint of that step.
    """
    config = run_config(workdir, task="pretrain")
    module, bands = build_encoder(**config["model"]), Bands(**config["bands"])
    shapes = variable_shapes(module, len(bands))
    wanted = {"params": {"encoder": shapes["params"]}, "stats": {"encoder": shapes["batch_stats"]}}
    restored = restore_part(workdir, wanted, step)
    variables = {"params": restored["params"]["encoder"], "batch_stats": restored["stats"]["encoder"]}
    return Encoder(module, variables, bands)


def variable_shapes(module: nn.Module, bands: int) -> Any:
    """Shapes and dtypes of a network's `params` and `batch_stats` for images of so many bands."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 64, 64, bands)), train=False))
