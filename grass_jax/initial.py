"""Where the encoder of a run comes from, and what of it the run takes over."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from absl import logging

from grass_jax.bands import RGB, Bands, choose_bands
from grass_jax.buckets import existing, place, scheme_of
from grass_jax.checkpoints.reading import kept_steps
from grass_jax.checkpoints.resume import run_config
from grass_jax.checkpoints.saving import ResumeError
from grass_jax.config import ConfigError
from grass_jax.interop.open_weights import read_description
from grass_jax.interop.read_encoder import read_encoder
from grass_jax.models import build_encoder
from grass_jax.sharding import read_by_first
from grass_jax.state import load_encoder, variable_shapes


def follow_encoder(config: Any, workdir: Path) -> Any:
    """Takes over from a pretraining run, or its exported encoder, what belongs to it: name and width, and the bands.

    Args:
        config: checked.
        workdir: of the run; one that goes on remembers what it took over.

    Returns:
        A copy.

    Raises:
        ConfigError: `init` is neither empty, nor a run, nor a weights file.
    """
    config = config.copy_and_resolve_references()
    found = read_by_first(partial(_followed, config, workdir))  # also without `init`: another process may be given one
    if not config.init:
        return config
    config.init = str(place(config.init, absolute=True))
    begun, step, is_run = found
    if not begun:
        return config
    config.init_step = config.init_step or step
    for key in ("name", "width"):
        if config.model[key] != begun["model"][key]:
            logging.info("config.model.%s is %s, that of config.init.", key, begun["model"][key])
        config.model[key] = begun["model"][key]
    taken, given = _tuples(begun["bands"]), _tuples({key: value for key, value in config.bands.items() if value})
    other = [key for key in given if given[key] != taken[key]]
    if other and is_run:
        raise ConfigError(
            f"config.bands.{other[0]} is {given[other[0]]} and that of config.init {taken[other[0]]}: leave it empty."
        )
    if "numbers" not in other:  # a file's encoder is adapted to other bands, which are measured
        config.bands.update(taken | given)
    return config


def _followed(config: Any, workdir: Path) -> tuple[dict[str, Any], int, bool]:
    """What the run, or the exported encoder, in `config.init` began with; the step to take; and whether it is there."""
    if not config.init:
        return {}, 0, False
    goes_on = _has_begun(workdir)
    try:
        init = place(config.init, absolute=True) if goes_on else existing(config.init)
        if init.is_file():
            if scheme_of(init):
                raise FileNotFoundError(f"{init} is a file in a bucket: copy it to this machine and give its path.")
            return read_description(init), 0, False
        if goes_on:
            begun = run_config(workdir, task=config.task)
            return begun, begun["init_step"], init.is_dir()
        if init.is_dir():
            begun = run_config(init, task="pretrain")
            return begun, config.init_step or kept_steps(init)[-1], True
        raise FileNotFoundError(f"there is no {init}: give the workdir of a pretraining run, or a weights file.")
    except FileNotFoundError as error:
        if goes_on:
            raise ResumeError(f"{error} Or give another --workdir.") from error
        raise ConfigError(f"config.init: {error}") from error


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, as JSON and command lines give them, as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _has_begun(workdir: Path) -> bool:
    try:
        return bool(kept_steps(workdir))
    except FileNotFoundError:
        return False


def settle_bands(config: Any, measured: Bands) -> Bands:
    """Fills in what the section `bands` of a config leaves open, from what has been measured of the data.

    Args:
        config: of the run; its section becomes that of the returned bands.
        measured: of the data set.

    Raises:
        ConfigError: the section does not fit the data.
    """
    if config.init and config.bands.dtype not in ("", measured.dtype):
        raise ConfigError(
            f"The encoder of config.init reads {config.bands.dtype} and the images of config.data hold "
            f"{measured.dtype}: give images of its kind, or another config.init."
        )
    try:
        bands = choose_bands(config.bands, measured)
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error
    config.bands.update(bands.asdict())
    if bands != RGB:
        colours = f"red, green, blue {_listed(bands.rgb)}" if bands.rgb else "no colours (config.bands.rgb names them)"
        scale = "" if bands.dtype == "uint8" else f"; {_listed(bands.low)} become 0 and {_listed(bands.high)} 1"
        logging.info(
            "Bands: %s of %s, %s%s; means %s, deviations %s.",
            *(_listed(bands.numbers), bands.dtype, colours, scale, _listed(bands.mean), _listed(bands.std)),
        )
    return bands


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers)


def initial_encoder(config: Any) -> dict[str, Any] | None:
    """Reads `params` and `batch_stats` of the encoder that `config.init` names; None for random weights.

    Args:
        config: of the run, its encoder followed and its bands settled.

    Raises:
        ConfigError: they cannot be read.
    """
    if not config.init:
        return None
    try:
        if place(config.init).is_dir():
            return load_encoder(config.init, config.init_step or None).variables
        bands = Bands(**config.bands.to_dict())
        own = read_description(config.init).get("bands", {})
        if tuple(own.get("numbers", ())) == bands.numbers:
            bands = replace(bands, rgb=())  # its channels are these bands, in whatever order the colours are
        shapes = variable_shapes(build_encoder(**config.model), len(bands))
        return read_encoder(config.init, shapes, bands=bands, prefix=config.init_prefix, ignore=config.init_ignore)
    except (OSError, ValueError) as error:
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
    if not data["path"] or (data["name"], config.data.name) != ("image_folder", "segmentation_folder"):
        return 0  # a published data set trains on its own training part
    folder = _resolved(data["path"])
    images = images_folder(config.data)
    own = [(images / name).relative_to(folder).as_posix() for name in names if (images / name).is_relative_to(folder)]
    seen = [name for name in own if not data.get("exclude") or not re.search(data["exclude"], name)]
    if seen:
        logging.warning(
            "The encoder was pretrained on %d of the %d test images (%s, ...): choose them by a pattern, "
            "--config.data.test=PATTERN, and pretrain with --config.data.exclude=PATTERN.",
            *(len(seen), len(names), seen[0]),
        )
    return len(seen)


def images_folder(data: Mapping[str, Any] | Any) -> Path:
    """Where the images of a labelled folder are; `data` is the section of a config."""
    return _resolved(data["path"]) / Path(data["images"]).expanduser()


def _resolved(path: str) -> Path:
    return place(path) if scheme_of(path) else Path(path).expanduser().resolve()
