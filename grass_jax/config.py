"""Rules for the keys of a configuration, and how they are checked before any work; the rules are in `schemas.py`."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key."""


class Rule(NamedTuple):
    """What the value of a key must be, in words that follow "must be" and as a function that says whether it holds."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any, kind: type) -> bool:
    return _is_whole(value) or (isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value))


def whole(least: int, note: str = "") -> Rule:
    """An integer of at least `least`; `note` says what a special value means."""
    return Rule(f"a whole number of at least {least}{note}", lambda v: _is_whole(v) and v >= least)


def number(words: str, holds: Callable[[float], bool], *, kind: type = float) -> Rule:
    """A finite number, a whole one or one of the type `kind`, for which `holds`."""
    return Rule(f"a number {words}", lambda v: _is_number(v, kind) and holds(v))


def one_of(*choices: str | int) -> Rule:
    """One of two or more values of one type."""
    words = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
    return Rule(words, lambda v: type(v) is type(choices[0]) and v in choices)


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except (re.error, OverflowError, RecursionError):  # a{9999999999} and a thousand brackets are no error of re
        return False


TEXT = Rule("text", lambda v: isinstance(v, str))
PATTERN = Rule("a pattern (a regular expression)", _is_pattern)
YES_OR_NO = Rule("True or False", lambda v: isinstance(v, bool))
POSITIVE = number("above 0", lambda v: v > 0)
NOT_NEGATIVE = number("of at least 0", lambda v: v >= 0)
BELOW_ONE = number("of at least 0 and below 1", lambda v: 0 <= v < 1)
AT_LEAST_A_HUNDREDTH = number("of at least 0.01", lambda v: v >= 0.01)
SEQUENCE = Rule("a list", lambda v: isinstance(v, tuple | list))
NAMES = Rule("a list of names", lambda v: isinstance(v, tuple | list) and all(isinstance(name, str) for name in v))
NUMBERS = Rule(
    "a list of numbers", lambda v: isinstance(v, tuple | list) and all(number("", lambda _: True).holds(x) for x in v)
)
WEIGHTS = Rule(
    "a list of numbers above 0",
    lambda v: isinstance(v, tuple | list) and all(POSITIVE.holds(x) for x in v),
)


class Schema(NamedTuple):
    """What the configuration of one task may hold.

    Attributes:
        rules: by dotted key.
        phase_rules: of the section that every name in `phases` has; empty for a task without phases.
        together: checks what no key can be blamed for alone; gets the values by dotted keys.
    """

    rules: dict[str, Rule]
    phase_rules: dict[str, Rule]
    together: Callable[[dict[str, Any]], None]


FEW = 3  # keys of a section that are all named where another one is given
UNITS = ("epochs", "steps")  # in which a phase says its length


def phase_length(section: Mapping[str, Any] | Any, steps_per_epoch: int) -> int:
    """Length in steps of a phase whose section says it in epochs or in steps."""
    return section["steps"] if "steps" in section else max(1, round(section["epochs"] * steps_per_epoch))


def check_against(config: Mapping[str, Any] | Any, schema: Schema) -> None:
    """Checks a configuration: no key unknown, none missing, every value allowed.

    Args:
        config: A ConfigDict or nested mapping; every name in its `phases` has a section.
        schema: what it may hold.

    Raises:
        ConfigError: at the first fault, naming the key, what it must be, and what it is.
    """
    values = flatten(config)
    sections = _phase_sections(config, schema) if schema.phase_rules else []
    rules = schema.rules | {f"{name}.{key}": rule for name in sections for key, rule in schema.phase_rules.items()}
    for key in values:
        refuse_unknown(key, values[key], rules)
    for key, rule in rules.items():
        if key not in values:
            raise ConfigError(f"config.{key} is missing: it must be {rule.words}.")
        if not rule.holds(values[key]):
            raise ConfigError(f"config.{key} must be {rule.words}, not {values[key]!r}.")
    schema.together(values)


def flatten(config: Mapping[str, Any] | Any) -> dict[str, Any]:
    """Lists a nested configuration by dotted keys.

    Args:
        config: A ConfigDict or nested mapping.

    Returns:
        For example {"data.name": "sample", ...}; an empty section stands for itself.
    """
    try:
        return _flat(config)
    except RecursionError:
        raise ConfigError("config has sections nested without end: a key has a few sections at most.") from None


def _flat(config: Mapping[str, Any] | Any) -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if callable(getattr(value, "items", None)) and value:
            flat |= {f"{key}.{inner}": leaf for inner, leaf in _flat(value).items()}
        else:
            flat[f"{key}"] = value
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


def _phase_sections(config: Mapping[str, Any] | Any, schema: Schema) -> list[str]:
    """The sections that hold a phase: those named in `phases`, and those left over when fewer are named."""
    phases: Any = config.get("phases")
    named = list(phases) if schema.rules["phases"].holds(phases) else []  # the rule of `phases` reports it
    taken = {key.split(".")[0] for key in schema.rules}
    sections = [key for key, value in config.items() if hasattr(value, "items") and key not in taken]
    for name in named:
        if name not in sections:
            guess = _guess(name, sections)
            raise ConfigError(f"config.phases names {name!r}, but config.{name} is no section of a phase{guess}")
    return named + [key for key in sections if key not in named and set(config[key]) == set(schema.phase_rules)]


def refuse_unknown(key: str, value: Any, known: Collection[str]) -> None:
    """Raises ConfigError where a dotted key is none of the known ones; says what may have been meant.

    Args:
        key: to look for.
        value: that it is given.
        known: dotted keys.
    """
    if key in known:
        return
    if any(name.startswith(f"{key}.") for name in known):
        run = ": a pretraining run is given with --config.init=RUN" if key == "model" and "init" in known else ""
        raise ConfigError(f"config.{key} is a section of keys and must not be {value!r}{run}.")
    raise ConfigError(f"config.{key} is not a key of the configuration{_guess(key, known)}")


def _guess(key: str, known: Collection[str]) -> str:
    """The end of a message: what the key may have been meant to be."""
    section, _, last = key.rpartition(".")
    own = [name.removeprefix(f"{section}.") for name in known if section and name.startswith(f"{section}.")]
    if own and len(own) <= FEW:
        return f"; config.{section} has the key{'s' * bool(own[1:])} {', '.join(own)}."
    if key == "init" and "model" in known:
        return "; the run to use is given with --config.model=RUN."
    same = [name for name in known if name.rpartition(".")[2] == last]
    matches = get_close_matches(key, list(known), n=1) or same
    return f"; did you mean config.{matches[0]}?" if matches else "."
