"""What the benchmarks time: the steps of a config of this repository, on tiles of random numbers."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from grass_jax import steps
from grass_jax.augment import Augmentation
from grass_jax.build import build_augment, build_method, build_optimizer, build_schedule
from grass_jax.guidance import GuidanceSettings
from grass_jax.methods import Method
from grass_jax.methods.registry import NAMES
from grass_jax.models import ENCODERS
from grass_jax.sharding import global_batch, make_mesh, replicated
from grass_jax.state import TrainState, create_state

LENGTH = 1000  # steps of the run that schedules are made for: it changes no time


class Job(NamedTuple):
    """A method, an optimiser and an augmentation on a mesh.

    Attributes:
        mesh: the devices.
        method: encoder, head and loss.
        optimizer: of the update.
        augment: (key, batch) -> views and their geometry.
        hp: the choices of the guidance.
        size: side of a view, pixels.
        tile: side of a tile, pixels.
    """

    mesh: Mesh
    method: Method
    optimizer: optax.GradientTransformation
    augment: Callable
    hp: GuidanceSettings
    size: int
    tile: int

    def step(self, kind: str) -> Callable:
        """The uncompiled step `warm-up`, `GS`, or `GS half`, whose guidance sees views at half resolution."""
        settings = {"method": self.method, "optimizer": self.optimizer, "augment": self.augment}
        if kind == "warm-up":
            return partial(steps.warmup_step, **settings)
        guidance = {"GS": self.hp, "GS half": replace(self.hp, size=self.size // 2)}
        return partial(steps.gs_step, hp=guidance[kind], **settings)

    def lowered(self, kind: str, tiles: int) -> jax.stages.Lowered:
        """A step traced anew for a number of tiles, ready to be compiled: no cache of this process knows it."""
        step = steps.compile_step(self.step(kind), self.mesh)
        batch = {"image": jax.ShapeDtypeStruct((tiles, self.tile, self.tile, 3), jnp.uint8)}
        return step.lower(jax.eval_shape(self._new_state), batch, jax.eval_shape(lambda: jax.random.key(0)))

    def _new_state(self) -> TrainState:
        return create_state(jax.random.key(0), self.method, self.optimizer, size=self.size)

    def state(self) -> TrainState:
        """A random network's, on all devices."""
        return jax.device_put(self._new_state(), replicated(self.mesh))

    def batch(self, tiles: int) -> dict[str, jax.Array]:
        """Tiles of random numbers, split over the devices."""
        images = np.random.default_rng(0).integers(0, 256, (tiles, self.tile, self.tile, 3), np.uint8)
        return global_batch({"image": images}, self.mesh)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says which job is timed; `None` means that the device decides."""
    parser.add_argument("--method", default="simclr", choices=NAMES, help="as its config has it, full size")
    parser.add_argument("--model", default="resnet50", choices=ENCODERS)
    parser.add_argument("--width", type=int, default=64, help="channels of the stem")
    parser.add_argument("--output_stride", type=int, default=32, choices=[8, 16, 32])
    parser.add_argument("--size", type=int, default=224, help="view size in pixels")
    parser.add_argument("--tile", type=int, default=0, help="tile size in pixels; 0: 8/7 of the view size")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on CPU, else bfloat16")
    parser.add_argument("--micro_batches", type=int, default=1, help="parts of the batch in memory one at a time")


def make_job(options: argparse.Namespace, devices: Sequence[Any] | None = None) -> Job:
    """Puts together the job of the options; `devices` are all by default."""
    name = "configs.gs" if options.method == "simclr" else f"configs.baselines.{options.method}"
    config = import_module(name).get_config("folder_full")
    config.model.update(name=options.model, width=options.width, output_stride=options.output_stride)
    config.model.dtype = options.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    config.micro_batches = options.micro_batches
    config.augment.size = options.size
    return Job(
        mesh=make_mesh(devices),
        method=build_method(config, LENGTH),
        optimizer=build_optimizer(config, build_schedule(config, [LENGTH])),
        augment=build_augment(config, Augmentation(**config.augment)),
        hp=GuidanceSettings(**config.guidance),
        size=options.size,
        tile=options.tile or options.size * 8 // 7,
    )
