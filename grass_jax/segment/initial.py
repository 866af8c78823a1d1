"""Where the encoder of a fine-tuning run comes from, and what of it the run remembers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from grass_jax.checkpoint import ResumeError, kept_steps, run_config
from grass_jax.config import ConfigError
from grass_jax.interop.torchvision import read_encoder
from grass_jax.models import build_encoder
from grass_jax.state import load_encoder


def follow_encoder(config: Any, workdir: Path | None) -> Any:
    """Takes over from a pretraining run what belongs to its encoder: name, width, and the bands' normalisation.

    Args:
        config: checked.
        workdir: of the run that goes on, which remembers what it took over; None for a new run.

    Returns:
        A copy.

    Raises:
        ConfigError: `init` is neither empty, nor a run, nor a weights file.
    """
    config = config.copy_and_resolve_references()
    if not config.init:
        return config
    config.init = str(Path(config.init).expanduser().absolute())
    if Path(config.init).suffix == ".safetensors":
        return config
    if workdir is not None:
        try:
            begun = run_config(workdir, task="segment")
        except FileNotFoundError as error:
            raise ResumeError(f"{error} Or give another --workdir.") from error
        config.init_step = config.init_step or begun["init_step"]
    else:
        try:
            begun = run_config(config.init, task="pretrain")
            config.init_step = config.init_step or kept_steps(config.init)[-1]
        except FileNotFoundError as error:
            raise ConfigError(f"config.init: {error}") from error
    for key in ("name", "width"):
        config.model[key] = begun["model"][key]
    for key in ("mean", "std"):
        config.augment[key] = tuple(begun["augment"][key])
    return config


def initial_encoder(config: Any) -> dict[str, Any] | None:
    """Reads `params` and `batch_stats` of the encoder that `config.init` names; None for random weights.

    Raises:
        ConfigError: they cannot be read.
    """
    if not config.init:
        return None
    try:
        if Path(config.init).suffix == ".safetensors":
            module = build_encoder(**config.model)
            shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
            return read_encoder(Path(config.init).expanduser(), shapes)
        return load_encoder(config.init, config.init_step or None).variables
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"config.init: {error}") from error


def seen_in_pretraining(config: Any, names: Sequence[str]) -> int:
    """Counts the test images that the encoder was pretrained on, and warns where there are some.

    Args:
        config: of the fine-tuning run.
        names: of the test images, relative to the images' folder.

    Returns:
        Their number; 0 where the pretraining run cannot tell.
    """
    try:
        data = run_config(config.init, task="pretrain")["data"] if config.init else {"path": ""}
    except FileNotFoundError:  # a weights file, or a run that has been deleted since
        return 0
    if not data["path"] or not config.data.path:
        return 0
    folder = Path(data["path"]).expanduser().resolve()
    images = Path(config.data.path).expanduser().resolve() / Path(config.data.images).expanduser()
    own = [(images / name).relative_to(folder).as_posix() for name in names if (images / name).is_relative_to(folder)]
    seen = [name for name in own if not data.get("exclude") or not re.search(data["exclude"], name)]
    if seen:
        logging.warning(
            "The encoder was pretrained on %d of the %d test images (%s, ...): set config.data.exclude there.",
            *(len(seen), len(names), seen[0]),
        )
    return len(seen)
