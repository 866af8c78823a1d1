"""A network of seconds for every method: thirty updates, and two GS steps."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from grass_jax.augment import Augmentation, two_views
from grass_jax.models.resnet import BasicBlock, ResNet
from grass_jax.sharding import global_batch, make_mesh
from grass_jax.state import create_state
from grass_jax.steps import compile_step, gs_step, warmup_step

TILES, SIZE = 16, 32


@pytest.fixture(scope="session")
def tiny_encoder():
    """A ResNet of one block a stage, which compiles in half the time of a ResNet-18; 4x4 features at views of 32."""
    return ResNet(blocks=(1, 1, 1, 1), block=BasicBlock, width=8, output_stride=8)


@pytest.fixture(scope="session")
def tiles():
    """Sixteen 48x48 tiles, each of rectangles in colours of its own."""
    rng = np.random.default_rng(3)
    images = np.empty((TILES, 48, 48, 3), np.uint8)
    for image in images:
        image[:] = rng.integers(0, 256, 3)
        for _ in range(6):
            y, x, height, width = *rng.integers(0, 40, 2), *rng.integers(8, 24, 2)
            image[y : y + height, x : x + width] = rng.integers(0, 256, 3)
    return images


def _augment(key, batch):
    mild = Augmentation(size=SIZE, area=(0.4, 1.0), jitter=0.5, greyscale=0.0, blur=0.0)
    return two_views(key, batch["image"], mild, geometry=True)


@pytest.fixture(scope="session")
def slopes():
    """Central differences of a plain function: `slopes(plain, array)` -> one for each number, or each of `places`."""

    def find(plain, array, places=None):
        found, step = [], 1e-5
        for place in np.ndindex(array.shape) if places is None else places:
            change = np.zeros(array.shape)
            change[place] = step
            found.append((plain(array + change) - plain(array - change)) / (2 * step))
        return np.array(found)

    return find


@pytest.fixture(scope="session")
def run_steps(tiles):
    """Runs steps of a method on one device: `run_steps(method, step, count)` -> states, metrics (one dict a step)."""
    mesh = make_mesh(jax.devices()[:1])

    def run(method, step, count, *, rate=1e-3):
        optimizer = optax.adam(rate)
        compiled = compile_step(partial(step, method=method, optimizer=optimizer, augment=_augment), mesh)
        state = create_state(jax.random.key(0), method, optimizer, size=SIZE)
        batch = global_batch({"image": tiles}, mesh)
        found = []
        for i in range(count):
            state, metrics = compiled(state, batch, jax.random.fold_in(jax.random.key(1), i))
            found.append({name: float(value) for name, value in metrics.items()})
        return state, found

    return run


@pytest.fixture(scope="session")
def train30(run_steps):
    """Thirty updates of a method: the last state, and the metrics of every step."""
    return lambda method, **options: run_steps(method, warmup_step, 30, **options)


@pytest.fixture(scope="session")
def gs2(run_steps):
    """Two GS steps of a method: the last state, and the metrics of both."""
    return lambda method, **options: run_steps(method, gs_step, 2, **options)
