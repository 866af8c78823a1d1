"""The arms of a comparison: what each of them trains, as the configuration of a pretraining run of its own."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from grass_jax.checkpoints.resume import ADDED, FREE_KEYS
from grass_jax.config import ConfigError, flatten
from grass_jax.schemas import check

LONG = 1e9  # epochs between two probes: at the ends of phases alone
REFERENCES = ("trunk", "equal_updates", "equal_compute", "against")  # keys of an arm that name another one


def in_order(config: Any) -> dict[str, Any]:
    """All arms by name, in their order: a ConfigDict's own is the alphabet."""
    return {name: config.arms[name] for name in sorted(config.arms, key=lambda name: config.arms[name].place)}


def chosen_arms(config: Any) -> dict[str, Any]:
    """Names and sections of the arms to run, in order: those of `groups`, or those that `only` names.

    Raises:
        ConfigError: a name or a group that is none, or an arm without the one that it branches from.
    """
    known = list(in_order(config))
    groups = {arm.group for arm in config.arms.values()}
    for name in config.only:
        if name not in known:
            raise ConfigError(f"config.only must name arms, {', '.join(known)}, not {name!r}.")
    for name in config.groups:
        if name not in groups:
            raise ConfigError(f"config.groups must name groups, {', '.join(sorted(groups))}, not {name!r}.")
    for name in config.only:
        if config.arms[name].group not in config.groups:
            raise ConfigError(
                f"config.only names {name}, which is of the group {config.arms[name].group!r}: name that in "
                "config.groups, too."
            )
    arms = {name: config.arms[name] for name in known if config.arms[name].group in config.groups}
    arms = {name: arm for name, arm in arms.items() if not config.only or name in config.only}
    named = {"base": config.base}
    for name, arm in arms.items():
        named |= {f"arms.{name}.{key}": arm[key] for key in REFERENCES if arm[key]}
    for key, name in named.items():
        if name not in known:
            raise ConfigError(f"config.{key} must name an arm, {', '.join(known)}, not {name!r}.")
    if not arms:
        raise ConfigError("config.groups and config.only choose no arm: leave config.only empty or name some.")
    return arms


def pretraining_of(config: Any, name: str, seed: int, *, ratio: float = 1.0, trunk: str = "") -> Any:
    """Returns the configuration of the run that pretrains an arm.

    Args:
        config: of the comparison.
        name: of the arm.
        seed: of the run.
        ratio: by which its last phase is longer than that of the arm whose compute it has.
        trunk: workdir of the run that it branches from.

    Raises:
        ConfigError: the arm's changes cannot be run.
    """
    arm, own = config.arms[name], config.pretrain.copy_and_resolve_references()
    changes = arm.changes.to_dict()
    if "method" in changes:
        own.method = ConfigDict(changes.pop("method"))  # another method has other options
    try:
        own.update(changes)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config.arms.{name}.changes does not fit config.pretrain: {error}") from error
    own.seed, own.branch, own.init = seed, trunk, ""
    if arm.weights and config.weights:
        own.init = str(Path(config.weights).expanduser())
    own.phases = tuple(arm.phases) or ("warmup",)  # an arm without phases is only looked at
    own.name, own.preset = "compare", f"{config.preset}_{name}"
    if arm.equal_updates:
        wanted = sum(config.pretrain[phase].epochs for phase in config.arms[arm.equal_updates].phases)
        own[own.phases[-1]].epochs = wanted - sum(own[phase].epochs for phase in own.phases[:-1])
    if arm.equal_compute:
        own[own.phases[-1]].epochs = config.pretrain[config.arms[arm.equal_compute].phases[-1]].epochs * ratio
    if own.data.name != "sample":
        own.data.path = own.data.path or _images(config)
    own.probe.update({"every_epochs": LONG if config.purity else 0.0})
    if config.purity:
        own.probe.data.update({"path": config.data.path, "tile_size": own.data.tile_size, "stride": own.data.stride})
        own.probe.data.data_dir = own.probe.data.data_dir or config.data.data_dir
    own.data.data_dir = own.data.data_dir or config.data.data_dir
    own.compilation_cache = config.compilation_cache
    try:
        check(own)
    except ConfigError as error:
        raise ConfigError(f"config.arms.{name}: {str(error).replace('config.', 'config.pretrain.', 1)}") from error
    return own


def segmentation_of(config: Any, seed: int, budget: str, number: int, *, init: str) -> Any:
    """Returns the configuration of the fine-tuning run on one list of labels.

    Args:
        config: of the comparison.
        seed: of the run.
        budget: labelled crops.
        number: of the list.
        init: workdir of the pretraining run, a weights file, or empty for random weights.

    Raises:
        ConfigError: it cannot be run.
    """
    own = config.segment.copy_and_resolve_references()
    own.data = ConfigDict({**config.data.to_dict(), "workers": own.data.workers})
    own.bands = config.pretrain.bands.copy_and_resolve_references()
    own.update({"seed": seed, "init": init, "labels": budget, "labels_seed": number})
    for key in ("name", "width"):
        own.model[key] = config.pretrain.model[key]
    own.name, own.preset, own.compilation_cache = "compare", config.preset, config.compilation_cache
    try:
        check(own)
    except ConfigError as error:
        raise ConfigError(str(error).replace("config.", "config.segment.", 1)) from error
    return own


def training_hash(config: Any, name: str) -> str:
    """Twelve hexadecimal digits that are equal where two arms' encoders are trained alike, up to the seed.

    Left out is what enters no number (paths, logs), and what only the machine decides: the ratio of equal compute.

    Args:
        config: of the comparison.
        name: of the arm.
    """
    arm = config.arms[name]
    parts: dict[str, Any] = {"equal_compute": arm.equal_compute, "trained": bool(arm.phases)}
    if arm.weights:
        content = Path(config.weights).expanduser().read_bytes() if config.weights else b""
        parts["weights"] = hashlib.sha256(content).hexdigest()
    for role, part in {"arm": name, "trunk": arm.trunk}.items():
        if part:
            plain = flatten(pretraining_of(config, part, 0))
            parts[role] = {k: v for k, v in _of_numbers(plain).items() if k != "init"}
    return _hash(parts)


def config_hash(config: Any, name: str, evaluation: str, digest: str) -> str:
    """Twelve hexadecimal digits that are equal where two lines measure the same thing, up to seed and list.

    Args:
        config: of the comparison.
        name: of the arm.
        evaluation: `probe`, `finetune` or `purity`.
        digest: of the labelled tiles.
    """
    data = {key: value for key, value in config.data.to_dict().items() if key not in ("path", "data_dir")}
    if evaluation == "probe":
        settings = {key: config.probe[key] for key in ("l2", "window", "overlap")}
    elif evaluation == "finetune":
        plain = flatten(segmentation_of(config, 0, "all", 0, init=""))
        settings = _of_numbers(plain)
    else:
        settings = config.pretrain.probe.purity_tiles
    return _hash([training_hash(config, name), digest, data, evaluation, settings])


def _of_numbers(plain: dict[str, Any]) -> dict[str, Any]:
    """The keys that enter the numbers; one that came later and changes none is as if it were not there."""
    return {k: v for k, v in plain.items() if not k.startswith(FREE_KEYS) and ADDED.get(k, ...) != v}


def _hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).hexdigest()[:12]


def _images(config: Any) -> str:
    """The folder of the images that belong to the labelled data, or its archives."""
    if config.pretrain.data.name == "image_folder":
        return str(Path(config.data.path) / config.data.images)
    return config.data.path
