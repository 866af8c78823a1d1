"""What the settings of an augmentation may be, and how they are checked."""

from collections.abc import Mapping
from functools import partial
from numbers import Real
from typing import Any

from grass_jax.config import Rule, number, whole

_real = partial(number, kind=Real)  # NumPy's, too: settings are made in code as well as by a configuration
_FINITE = _real("", lambda v: True)

SIZE = whole(1)
PROBABILITY = _real("from 0 to 1", lambda v: 0 <= v <= 1)
SPREAD = _real("of at least 0", lambda v: v >= 0)
PAIR = Rule(
    "two numbers (low, high) with 0 < low <= high",
    lambda v: isinstance(v, tuple | list) and len(v) == 2 and all(map(_FINITE.holds, v)) and 0 < v[0] <= v[1],
)

# the colour jitter, which every augmentation has
COLOUR = {
    "jitter": PROBABILITY,
    "brightness": SPREAD,
    "contrast": SPREAD,
    "saturation": SPREAD,
    "hue": _real("from 0 to 0.5", lambda v: 0 <= v <= 0.5),
}


def check_fields(settings: Any, rules: Mapping[str, Rule]) -> None:
    """Check a frozen dataclass of settings, and turn its lists into tuples, which keeps it hashable.

    Args:
        settings: the dataclass, in its `__post_init__`.
        rules: what its fields that a configuration names must be; a field without a rule checks itself.

    Raises:
        ValueError: where a value is not allowed, naming the field.
    """
    for name, rule in rules.items():
        value = getattr(settings, name)
        if isinstance(value, list):  # from a configuration file
            value = tuple(value)
            object.__setattr__(settings, name, value)
        if not rule.holds(value):
            raise ValueError(f"{type(settings).__name__} {name} must be {rule.words}, not {value!r}.")
