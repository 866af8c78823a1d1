"""From a config to a labelled data set and the crops whose labels may be used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grass_jax.config import ConfigError
from grass_jax.data.budget import choose_labels, read_labels
from grass_jax.data.labelled import LabelledSet, open_labelled
from grass_jax.data.labels import Labels
from grass_jax.data.scenes import LabelledScene, open_scenes
from grass_jax.data.splits import Split


def open_data(data: Any) -> LabelledSet:
    """Opens, and on first use prepares, the labelled data set that a section of a config describes.

    Raises:
        ConfigError: the data cannot be had as it is described.
    """
    try:
        split = Split(
            by=data.split,
            test=data.test,
            validation=data.validation,
            block=data.block or data.tile_size,
            guard=data.guard,
            seed=data.split_seed,
        )
        tiling = {"tile_size": data.tile_size, "stride": data.stride or None, "data_dir": data.data_dir or None}
        if data.name == "sample":
            return open_labelled("sample", split=split, **tiling)
        return open_labelled(data.name, split=split, **_where(data), **tiling)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def open_all_scenes(data: Any) -> tuple[LabelledScene, ...]:
    """Opens every scene of a labelled folder to score a model on, whatever its split says.

    Raises:
        ConfigError: the data cannot be had as it is described.
    """
    try:
        return open_scenes(**_where(data))
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def _where(data: Any) -> dict[str, Any]:
    labels = Labels(
        classes=tuple(data.classes),
        values=_tuples(data.mask_values),
        ignore=tuple(data.ignore),
        colours=tuple(data.colours),
        background=data.background,
    )
    return {
        "path": data.path,
        "images": data.images,
        "masks": data.masks,
        "labels": labels,
        "attribute": data.attribute,
        "radius": data.radius,
        "group": [_below(data.path, table) for table in data.group_tables] or data.group,
        "ignored": _tuples(data.ignored),
        "gsd": data.gsd or None,
    }


def _below(folder: str, table: str) -> str:
    """A table's path, which counts from the data's folder; `train=groups.csv` keeps what stands before the sign."""
    place, sign, name = table.rpartition("=")
    return place + sign + str(Path(folder).expanduser().resolve() / Path(name).expanduser())


def choose(labelled: LabelledSet, budget: str, seed: int) -> np.ndarray:
    """Chooses the training tiles whose labels are used.

    Args:
        labelled: the data set.
        budget: `all`, a number of tiles, a share below 1, or the path of a list that an earlier run wrote.
        seed: of the order from which a number or share is taken.

    Returns:
        Indices of tiles of `labelled.train`.

    Raises:
        ConfigError: the budget is none of these, or larger than the data.
    """
    try:
        if budget == "all":
            return choose_labels(labelled.train_groups, 0, seed)
        number = _number(budget)
        if number is not None:
            return choose_labels(labelled.train_groups, number, seed)
        if Path(budget).expanduser().is_file():
            return read_labels(Path(budget).expanduser(), labelled.train)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    raise ConfigError(
        f"config.labels must be 'all', a number of crops, a share below 1 or a file that lists crops, not {budget!r}."
    )


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if value <= 0 or (kind is float and value >= 1):
            raise ValueError(
                f"A label budget must be a number of crops above 0 or a share between 0 and 1, not {text}."
            )
        return value
    return None


def _tuples(value: Any) -> Any:
    """Lists of lists, as JSON and command lines give them, as tuples of tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value
