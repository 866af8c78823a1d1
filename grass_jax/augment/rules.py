"""What the settings of an augmentation may be: rules in words and as functions, and how they are checked."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

FieldRule = tuple[str, Callable[[Any], bool]]


def is_number(value: object) -> bool:
    """Whether a value is a finite real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def are_numbers(value: object, count: int) -> bool:
    """Whether a value is a tuple or list of `count` finite real numbers."""
    return isinstance(value, tuple | list) and len(value) == count and all(map(is_number, value))


SIZE: FieldRule = ("a whole number of at least 1", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1)
PROBABILITY: FieldRule = ("a number from 0 to 1", lambda v: is_number(v) and 0 <= v <= 1)
SPREAD: FieldRule = ("a number of at least 0", lambda v: is_number(v) and v >= 0)
PAIR: FieldRule = ("two numbers (low, high) with 0 < low <= high", lambda v: are_numbers(v, 2) and 0 < v[0] <= v[1])

# the colour jitter, which every augmentation has
COLOUR: dict[str, FieldRule] = {
    "jitter": PROBABILITY,
    "brightness": SPREAD,
    "contrast": SPREAD,
    "saturation": SPREAD,
    "hue": ("a number from 0 to 0.5", lambda v: is_number(v) and 0 <= v <= 0.5),
}


def check_fields(settings: Any, rules: Mapping[str, FieldRule]) -> None:
    """Check a frozen dataclass of settings, and turn its lists into tuples, which keeps it hashable.

    Args:
        settings: the dataclass, in its `__post_init__`.
        rules: what its fields that a configuration names must be; a field without a rule checks itself.

    Raises:
        ValueError: where a value is not allowed, naming the field.
    """
    for name, (words, holds) in rules.items():
        value = getattr(settings, name)
        if isinstance(value, list):  # from a configuration file
            value = tuple(value)
            object.__setattr__(settings, name, value)
        if not holds(value):
            raise ValueError(f"{type(settings).__name__} {name} must be {words}, not {value!r}.")
