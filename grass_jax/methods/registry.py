"""The methods by name: a new one is a module here, a line in `NAMES` and a config.

Each module holds a function of its own name, (encoder, **options) -> Method, and `RULES`: what every option may be.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import flax.linen as nn

from grass_jax.config import Rule
from grass_jax.methods import Method

NAMES = (
    "simclr",
    "byol",
    "barlow_twins",
    "simsiam",
    "vicreg",
    "moco_v2",
    "densecl",
    "swav",
    "false",
    "pixpro",
    "glcnet",
)
CONTRASTED = ("simclr", "false", "glcnet")  # of which the tiles of a batch are negatives of one another


def rules_of(name: str) -> dict[str, Rule]:
    """What the options of a method, the keys of `config.method` beside its name, may be."""
    return import_module(f"grass_jax.methods.{name}").RULES


def follows_length(name: str) -> bool:
    """Says whether a method has a schedule of its own over the whole run, such as that of a moving average."""
    return "total_steps" in inspect.signature(getattr(import_module(f"grass_jax.methods.{name}"), name)).parameters


def make_method(encoder: nn.Module, options: Mapping[str, Any], *, total_steps: int) -> Method:
    """Makes a method from the section `method` of a config.

    Args:
        encoder: images (n, s, s, c) -> features (n, h, w, d), called with `train=`.
        options: `name`, and the options of its `RULES`.
        total_steps: length of the run, for methods whose moving average has a schedule.
    """
    name, rest = options["name"], {key: value for key, value in options.items() if key != "name"}
    function: Callable[..., Method] = getattr(import_module(f"grass_jax.methods.{name}"), name)
    if follows_length(name):
        rest["total_steps"] = total_steps
    return function(encoder, **rest)
