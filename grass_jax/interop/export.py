"""The task that takes a trained network out of its run, for other libraries, with a model card."""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from grass_jax.buckets import on_this_machine
from grass_jax.config import ConfigError
from grass_jax.interop.card import Export, is_card, write_card
from grass_jax.interop.names import encoder_tensors, network_tensors, part_of
from grass_jax.interop.torch_write import write_torch
from grass_jax.interop.trained import Trained, describe, open_trained
from grass_jax.report.atomic import replacing
from grass_jax.report.records import read_record
from grass_jax.schemas import check

SUFFIXES = {"torchvision": ".safetensors", "timm": "", "mmsegmentation": ".pth"}
TORCHVISION_WIDTH = 64


def run(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Writes a trained network's weights under the names of another library, and a card beside them.

    Args:
        config: a ConfigDict of `configs/export.py`.
        workdir: where the files go when `config.output` is empty.

    Returns:
        `output` and `card`, their paths, and the `step` behind the weights.

    Raises:
        ConfigError: a key or value that cannot be run, or files that are no export's would be replaced.
    """
    check(config)
    if not config.model:
        raise ConfigError("config.model must be the folder of a run: --config.model=runs/gs_sample.")
    try:
        trained = open_trained(config.model, config.model_step)
    except FileNotFoundError as error:
        raise ConfigError(f"config.model: {error}") from error
    part = "network" if trained.classes and config.part != "encoder" else "encoder"
    _refuse_format(config.format, part, trained)
    output = _output(config, on_this_machine(workdir, "--workdir of an export") / f"{part}{SUFFIXES[config.format]}")
    if part == "network":
        tensors = network_tensors(trained.variables)
    else:
        tensors = encoder_tensors(part_of(trained.variables, "encoder") if trained.classes else trained.variables)
    if trained.config["model"]["width"] != TORCHVISION_WIDTH:
        logging.info(
            "The encoder has width %d, and torchvision, timm and segmentation_models_pytorch build only 64 by name: "
            "the card holds the lines that build it.",
            trained.config["model"]["width"],
        )
    export = Export(trained, part, config.format, output, licence=config.licence, data=config.data)
    files = _files(export, tensors)
    if jax.process_index() == 0:
        _refuse_foreign(export)
        _write(files)
        logging.info("%s of step %d: %s, described in %s.", part.capitalize(), trained.step, output, export.card)
    return {"output": str(output), "card": str(export.card), "step": trained.step}


def _refuse_format(format: str, part: str, trained: Trained) -> None:
    """Raises ConfigError where the other library has no such network."""
    if part == "network" and format != "torchvision":
        why = {
            "timm": "timm builds encoders alone",
            "mmsegmentation": "mmsegmentation's DeepLabV3+ is another network, with depthwise separable convolutions",
        }
        raise ConfigError(
            f"config.format={format} holds no whole network, because {why[format]}: set config.part=encoder, or "
            "config.format=torchvision."
        )
    width = trained.config["model"]["width"]
    if format == "timm" and width != TORCHVISION_WIDTH:
        raise ConfigError(
            f"config.format=timm holds encoders of width {TORCHVISION_WIDTH} and this one has {width}: set "
            "config.format=torchvision, whose card holds a definition for any width."
        )


def _output(config: Any, default: Path) -> Path:
    """The file or folder to write.

    Raises:
        ConfigError: it does not fit the format.
    """
    output, suffix = on_this_machine(config.output or default, "config.output"), SUFFIXES[config.format]
    if output.suffix in (".safetensors", ".pth") and output.suffix != suffix:
        fits = False
    else:
        fits = (output.suffix == suffix and not output.is_dir()) if suffix else not output.is_file()
    if not fits:
        kind = f"a {suffix} file" if suffix else "a folder"
        raise ConfigError(f"config.output must be {kind} for config.format={config.format}, not {output}.")
    return output


def _refuse_foreign(export: Export) -> None:
    """Raises ConfigError where something that no export has written would be replaced."""
    folder, card = export.output, export.card
    if export.format == "timm" and folder.exists() and not _is_timms(folder):
        raise ConfigError(
            f"config.output: the folder {folder} holds other files than an earlier export: give a new one."
        )
    if card.exists() and not is_card(card):
        raise ConfigError(f"config.output: the card would replace {card}, which is none: give another name.")


def _is_timms(folder: Path) -> bool:
    """Whether a folder is empty or an earlier export, whose `config.json` names an architecture; a run's does not."""
    try:
        if all(path.name.startswith(".") for path in folder.iterdir()):
            return True
    except OSError:
        return False
    return "architecture" in read_record(folder / "config.json")


def _files(export: Export, tensors: Mapping[str, np.ndarray]) -> dict[Path, Callable[[Path], None]]:
    """What is to be written: by path, functions that write to a path."""
    described = describe(export.trained)
    files: dict[Path, Callable[[Path], None]] = {export.card: partial(write_card, export)}
    match export.format:
        case "torchvision":
            files[export.output] = partial(_write_safetensors, tensors, described)
        case "mmsegmentation":
            state = {f"backbone.{name}": value for name, value in tensors.items()}
            files[export.output] = partial(write_torch, content={"meta": described, "state_dict": state})
        case "timm":
            files[export.output / "config.json"] = partial(_write_json, _timm_config(export.trained, tensors))
            files[export.output / "model.safetensors"] = partial(_write_safetensors, tensors, described)
    return files


def _timm_config(trained: Trained, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The `config.json` from which timm builds the model."""
    bands, name = trained.bands, trained.config["model"]["name"]
    width = max(value.shape[0] for value in tensors.values())
    size = trained.config["augment"]["size"]
    pretrained = {
        "input_size": [len(bands), size, size],
        "mean": list(bands.mean),
        "std": list(bands.std),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "pool_size": [-(-size // 32)] * 2,
        "num_classes": 0,
        "first_conv": "conv1",
        "classifier": "fc",
    }
    config = {"architecture": name, "num_classes": 0, "num_features": width, "pretrained_cfg": pretrained}
    return config if len(bands) == 3 else config | {"model_args": {"in_chans": len(bands)}}


def _write(files: Mapping[Path, Callable[[Path], None]]) -> None:
    """Writes all files, and only then puts them in place of older ones.

    Raises:
        ConfigError: one of them cannot be written.
    """
    try:
        with ExitStack() as stack:
            for path, write in files.items():
                write(stack.enter_context(replacing(path)))
    except OSError as error:
        raise ConfigError(
            f"config.output: {error.filename or path} cannot be written ({error.strerror or error}): give another."
        ) from error


def _write_safetensors(tensors: Mapping[str, np.ndarray], described: Mapping[str, str], path: Path) -> None:
    import safetensors.numpy

    # the library's own writing reports a full disk in a type of its own
    path.write_bytes(safetensors.numpy.save(dict(tensors), metadata=dict(described)))


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
