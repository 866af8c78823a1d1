"""A segmentation network with its weights and everything that belongs to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from grass_jax.bands import Bands, normalise, unit_range
from grass_jax.buckets import place
from grass_jax.checkpoints.reading import restore_part
from grass_jax.checkpoints.resume import intact, run_config
from grass_jax.models import build_segmenter
from grass_jax.report.records import read_record
from grass_jax.sharding import replicated, split_by_tile
from grass_jax.state import variable_shapes

Forward = Callable[[np.ndarray], jax.Array]


class Segmentation(NamedTuple):
    """A trained segmentation network.

    Attributes:
        module: the Flax module; `module.apply(variables, normalised_images, train=False)`.
        variables: `params` and `batch_stats`.
        bands: of the images that it reads, with their normalisation.
        classes: names of the class ids.
        colours: (k, 3) uint8, in which the classes are shown.
        window: side of the tiles it was trained on, pixels.
        gsd: metres per pixel that its images were resampled to; None: as they were stored.
    """

    module: nn.Module
    variables: dict[str, Any]
    bands: Bands
    classes: tuple[str, ...]
    colours: np.ndarray
    window: int
    gsd: float | None

    def forward(self, mesh: Mesh) -> Forward:
        """Makes the compiled function from images (n, t, t, c) as stored to logits (n, t, t, k), for `sliding`."""
        return make_forward(self.module, self.bands, mesh)(self.variables)


def make_forward(module: nn.Module, bands: Bands, mesh: Mesh) -> Callable[[Any], Forward]:
    """Compiles a network for whole batches of images as they come.

    Args:
        module: called on normalised images with `train=False`: a `models.segmentation.Segmenter`, or an encoder.
        bands: of the images, with their normalisation.
        mesh: devices of this process, over which a batch is divided.

    Returns:
        A function that takes variables (`params` and `batch_stats`) and gives one from images (n, t, t, c) to
        logits (n, t, t, k), or features, n any multiple of the devices. Other variables compile nothing anew.
    """

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        return module.apply(variables, normalise(unit_range(images, bands), bands), train=False)  # pyright: ignore[reportReturnType]

    rows = split_by_tile(mesh)
    compiled = jax.jit(apply, in_shardings=(replicated(mesh), rows), out_shardings=rows)

    def bind(variables: Any) -> Forward:
        placed = jax.device_put(variables, replicated(mesh))
        # where other processes exist, jit takes no NumPy array to divide, even if all of the mesh is at hand
        return lambda images: compiled(placed, jax.device_put(images, rows))

    return bind


def load_segmenter(workdir: str | Path, step: int | None = None) -> Segmentation:
    """Loads the network of a fine-tuning run, onto one device.

    Args:
        workdir: folder of the run.
        step: of a checkpoint that was kept; None takes the one that counts: the chosen one of a run that chose by
            validation, else the last.

    Returns:
        The network with its weights, normalisation and classes.

    Raises:
        FileNotFoundError: there is no segmentation run, it is damaged, or it has no checkpoint of that step.
    """
    config, path = run_config(workdir, task="segment"), place(workdir) / "config.json"
    with intact(path):
        labels = read_record(path)["labels"]
        classes, colours = tuple(labels["classes"]), np.asarray(labels["colours"], np.uint8)
        module, bands = build_segmenter(config["model"], config["head"], len(classes)), Bands(**config["bands"])
        window, gsd = config["data"]["tile_size"], config["data"]["gsd"] or None
    shapes = variable_shapes(module, len(bands))
    wanted = {"params": shapes["params"], "stats": shapes["batch_stats"]}
    restored = restore_part(workdir, wanted, step or counted_step(workdir))
    variables = {"params": restored["params"], "batch_stats": restored["stats"]}
    return Segmentation(module, variables, bands, classes, colours, window, gsd)


def counted_step(workdir: str | Path) -> int | None:
    """The step of the checkpoint that a fine-tuning run has chosen, or ended with; None where it has not ended.

    Raises:
        FileNotFoundError: the run's summary does not say it.
    """
    path = place(workdir) / "summary.json"
    if not path.exists():
        return None
    step = read_record(path).get("chosen_step")
    if type(step) is not int:
        raise FileNotFoundError(f"{path} is damaged: name a step, or start the run again, which scores it once more.")
    return step
