"""What a configuration may hold: every key with its rule, checked before any work."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from grass_jax.augment.views import RULES as AUGMENTATION_RULES


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key."""


class Rule(NamedTuple):
    """What the value of a key must be, in words that follow "must be" and as a function that says whether it holds."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def whole(least: int, note: str = "") -> Rule:
    """An integer of at least `least`; `note` says what a special value means."""
    return Rule(f"a whole number of at least {least}{note}", lambda v: _is_whole(v) and v >= least)


def number(words: str, holds: Callable[[float], bool]) -> Rule:
    """A finite number, whole or not, for which `holds`."""
    return Rule(f"a number {words}", lambda v: _is_number(v) and holds(v))


def one_of(*choices: str | int) -> Rule:
    """One of two or more values of one type."""
    words = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
    return Rule(words, lambda v: type(v) is type(choices[0]) and v in choices)


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


TEXT = Rule("text", lambda v: isinstance(v, str))
PATTERN = Rule("a pattern (a regular expression)", _is_pattern)
YES_OR_NO = Rule("True or False", lambda v: isinstance(v, bool))
POSITIVE = number("above 0", lambda v: v > 0)
NOT_NEGATIVE = number("of at least 0", lambda v: v >= 0)
BELOW_ONE = number("of at least 0 and below 1", lambda v: 0 <= v < 1)

RULES: dict[str, Rule] = {
    "name": TEXT,
    "preset": TEXT,
    "seed": whole(0),
    "batch_size": whole(2),
    "data.name": one_of("sample", "image_folder"),
    "data.path": TEXT,
    "data.exclude": PATTERN,
    "data.split": one_of("train", "val"),
    "data.tile_size": whole(32),
    "data.stride": whole(0, " (0: the tile size)"),
    "data.data_dir": TEXT,
    "data.workers": whole(0),
    **{f"augment.{name}": Rule(*rule) for name, rule in AUGMENTATION_RULES.items()},
    "augment.size": whole(32),
    "model.name": one_of("resnet18", "resnet34", "resnet50", "resnet101"),
    "model.width": Rule("a multiple of 4 of at least 4", lambda v: _is_whole(v) and v >= 4 and v % 4 == 0),
    "model.output_stride": one_of(8, 16, 32),
    "model.dtype": one_of("float32", "bfloat16"),
    "model.init": one_of("torchvision", "original"),
    "head.hidden": whole(0, " (0: the width of the features)"),
    "head.embedding": whole(2),
    "head.relu": YES_OR_NO,
    "temperature": number("of at least 0.01", lambda v: v >= 0.01),
    "guidance.threshold": number("between 0 and 1", lambda v: 0 < v < 1),
    "guidance.sign": one_of("fallback", "flip"),
    "optimizer.name": one_of("larc", "sgd", "adamw"),
    "optimizer.momentum": BELOW_ONE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.decay_bias": YES_OR_NO,
    "optimizer.trust_coefficient": POSITIVE,
    "optimizer.eps": POSITIVE,
    "schedule.name": one_of("cosine", "original"),
    "schedule.peak": POSITIVE,
    "schedule.warmup": BELOW_ONE,
    "schedule.final": NOT_NEGATIVE,
    "schedule.restart": YES_OR_NO,
    "phases": Rule(
        "one or more different names of phases",
        lambda v: isinstance(v, tuple | list) and all(isinstance(p, str) for p in v) and 0 < len(v) == len(set(v)),
    ),
    "checkpoint.every_epochs": POSITIVE,
    "checkpoint.keep": whole(1),
    "log.every": whole(1),
    "log.tensorboard": YES_OR_NO,
    "log.figure_tiles": whole(0),
    "compilation_cache": TEXT,
}
PHASE_RULES = {"step": one_of("warmup_step", "gs_step"), "epochs": whole(1)}


def check(config: Mapping[str, Any] | Any) -> None:
    """Checks a configuration: no key unknown, none missing, every value allowed.

    Args:
        config: A ConfigDict or nested mapping; `RULES` lists its keys, and every name in `phases` has a section.

    Raises:
        ConfigError: at the first fault, naming the key, what it must be, and what it is.
    """
    values = flatten(config)
    rules = RULES | {f"{name}.{key}": rule for name in _phase_sections(config) for key, rule in PHASE_RULES.items()}
    for key in values:
        if key not in rules:
            if any(known.startswith(f"{key}.") for known in rules):
                raise ConfigError(f"config.{key} is a section of keys and must not be {values[key]!r}.")
            raise ConfigError(f"config.{key} is not a key of the configuration{_guess(key, rules)}")
    for key, rule in rules.items():
        if key not in values:
            raise ConfigError(f"config.{key} is missing: it must be {rule.words}.")
        if not rule.holds(values[key]):
            raise ConfigError(f"config.{key} must be {rule.words}, not {values[key]!r}.")
    _check_together(values)


def flatten(config: Mapping[str, Any] | Any) -> dict[str, Any]:
    """Lists a nested configuration by dotted keys.

    Args:
        config: A ConfigDict or nested mapping.

    Returns:
        For example {"data.name": "sample", ...}; an empty section stands for itself.
    """
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items") and value:
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def differing(old: Mapping[str, Any] | Any, new: Mapping[str, Any] | Any) -> list[str]:
    """Names the keys in which two configurations differ, whether or not one of them has been through JSON.

    Args:
        old: A configuration, nested or by dotted keys.
        new: Another.

    Returns:
        Dotted keys in alphabetical order: values that differ, and keys that only one of the two has.
    """
    before, after = ({key: json.dumps(_plain(v)) for key, v in flatten(config).items()} for config in (old, new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _plain(value: Any) -> Any:
    """A whole float counts as the whole number that it equals (1.0 and 1), a truth value does not (True and 1)."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _phase_sections(config: Mapping[str, Any] | Any) -> list[str]:
    """The sections that hold a phase: those named in `phases`, and those left over when fewer are named."""
    phases: Any = config.get("phases")
    named = list(phases) if RULES["phases"].holds(phases) else []  # the rule of `phases` reports it
    taken = {key.split(".")[0] for key in RULES}
    sections = [key for key, value in config.items() if hasattr(value, "items") and key not in taken]
    for name in named:
        if name not in sections:
            guess = _guess(name, sections)
            raise ConfigError(f"config.phases names {name!r}, but config.{name} is no section of a phase{guess}")
    return named + [key for key in sections if key not in named and set(config[key]) == set(PHASE_RULES)]


def _guess(key: str, known: Iterable[str]) -> str:
    """The end of a message: what the key may have been meant to be."""
    matches = get_close_matches(key, list(known), n=1)
    return f"; did you mean config.{matches[0]}?" if matches else "."


def _check_together(values: dict[str, Any]) -> None:
    """Checks what no key can be blamed for alone."""
    if values["data.name"] == "sample" and values["data.path"]:
        raise ConfigError(
            "config.data.path is given but config.data.name is 'sample': use --config=configs/gs.py:folder, or leave "
            "the path out."
        )
    if values["data.name"] == "image_folder" and values["data.split"] != "train":
        raise ConfigError(f"config.data.split of an image_folder must be 'train', not {values['data.split']!r}.")
    if values["data.name"] == "image_folder" and not Path(values["data.path"] or "?").expanduser().is_dir():
        raise ConfigError(
            "config.data.path must be a folder of images, given with --config.data.path=FOLDER, "
            f"not {values['data.path']!r}."
        )
    guided = any(values[f"{name}.step"] == "gs_step" for name in values["phases"])
    if guided and values["augment.size"] < 2 * values["model.output_stride"]:
        raise ConfigError(
            "The guidance map would be 1x1: raise config.augment.size or lower config.model.output_stride."
        )
