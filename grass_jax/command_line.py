"""The command line: a config file, the keys that are given other values, and one sentence for what cannot be read."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from grass_jax.config import ConfigError, flatten, refuse_unknown

ROOT = Path(__file__).parents[1]
KINDS = {"int": "a whole number", "float": "a number", "bool": "True or False"}  # by absl's names


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags; what cannot be read of them is one line and no traceback.

    Args:
        arguments: the name of the program and what follows it; `configs/gs.py` is run where no config is named.

    Returns:
        The name of the program.
    """
    if not any(name == "config" for name, _ in _given(arguments)):
        arguments = [arguments[0], "--config=configs/gs.py", *arguments[1:]]
    try:
        known = flatten(_load(dict(_given(arguments))["config"]))
        for name, value in _given(arguments):
            key = re.fullmatch(r"(?:no)?config\.([^\[]+)", name)
            if key and not value.startswith("{"):
                refuse_unknown(key[1], value, known)
        rest = _parsed(arguments, known)
    except ConfigError as error:
        sys.exit(f"grass_jax: {error}")
    if len(rest) > 1:
        sys.exit(f"grass_jax: {rest[1]!r} is no flag: settings are given as --config.KEY=VALUE.")
    return rest


def _given(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Names of the flags, and what is given to each after its sign or as the next argument."""
    for argument, following in zip(arguments[1:], [*arguments[2:], ""], strict=True):
        name, sign, value = argument.lstrip("-").partition("=")
        if argument.startswith("-"):
            yield name, value if sign else following


def _load(path: str) -> Any:
    file = Path(path.partition(":")[0])
    if not file.is_file():
        known = [str(one.relative_to(ROOT)) for one in sorted(ROOT.glob("configs/*.py"))]
        known = [one for one in known if "def get_config" in (ROOT / one).read_text()]
        raise ConfigError(f"There is no config {file}: give one of {', '.join(known)}.")
    try:
        return flags.FLAGS["config"].parser.parse(path)
    except AttributeError as error:
        if error.name != "get_config":
            raise  # of the config's own code
        raise ConfigError(f"{file} is no config: it has no function get_config.") from error
    except ValueError as error:  # a preset that the file does not have; the parser's own error holds a traceback
        raise ConfigError(str(error.__context__)) from error


def _parsed(arguments: list[str], known: dict[str, Any]) -> list[str]:
    """What is no flag; the keys of the config are known."""
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        if error.flagname in known:
            raise ConfigError(f"--{error.flagname} is no flag: did you mean --config.{error.flagname}?") from error
        raise ConfigError(str(error)) from error
    except flags.IllegalFlagValueError as error:
        name, _, value = str(error).removeprefix("flag --").removesuffix(f": {error.__context__}").partition("=")
        kind = KINDS.get(flags.FLAGS[name].parser.flag_type()) if name in flags.FLAGS else None
        if kind is None:
            raise ConfigError(str(error)) from error
        raise ConfigError(f"{name} must be {kind}, not {value!r}.") from error
    except (flags.Error, OSError) as error:
        raise ConfigError(str(error).strip().splitlines()[-1].strip()) from error
