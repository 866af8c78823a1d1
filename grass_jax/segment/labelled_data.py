"""From a config to a labelled data set and the crops whose labels may be used."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from grass_jax.bands import Bands
from grass_jax.config import ConfigError
from grass_jax.data.budget import choose_labels, read_labels
from grass_jax.data.faults import readable
from grass_jax.data.labelled import LabelledSet, open_labelled
from grass_jax.data.labels import IGNORE, Labels
from grass_jax.data.layout import Layout
from grass_jax.data.pairs import OpenedScene
from grass_jax.data.published.facts import PUBLISHED
from grass_jax.data.published.sets import published_labelled
from grass_jax.data.remote import local_folder
from grass_jax.data.scenes import LabelledScene, open_scenes
from grass_jax.data.splits import Split


def open_data(data: Any, where: str = "data", *, numbers: Sequence[int] = ()) -> LabelledSet:
    """Opens, and on first use prepares, the labelled data set that a section of a config describes.

    Args:
        data: the section.
        where: its name, for messages.
        numbers: of the bands, from 1; empty takes all.

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
            return open_labelled("sample", split=split, numbers=numbers, **tiling)
        if data.name in PUBLISHED:
            name, _, region = data.name.partition("/")
            path = local_folder(data.path, data.data_dir)
            return published_labelled(
                name, path, region=region, masks=data.masks, split=split, numbers=numbers, **tiling
            )
        return open_labelled(data.name, split=split, numbers=numbers, **_where(data), **tiling)
    except (ValueError, OSError) as error:
        raise ConfigError(f"config.{where}: {error}") from error


def open_all_scenes(data: Any, bands: Bands) -> tuple[LabelledScene, ...]:
    """Opens the scenes of a labelled folder to score a model on, all of them, whatever its split says.

    Args:
        data: the section.
        bands: those that the model reads.

    Raises:
        ConfigError: the data cannot be had as it is described.
    """
    try:
        return open_scenes(**_where(data), layout=Layout.of(bands))
    except (ValueError, OSError) as error:
        raise ConfigError(f"config.data: {error}") from error


def _where(data: Any) -> dict[str, Any]:
    labels = Labels(
        classes=tuple(data.classes),
        values=_tuples(data.mask_values),
        ignore=tuple(data.ignore),
        colours=tuple(data.colours),
        background=data.background,
    )
    folder = local_folder(data.path, data.data_dir)
    return {
        "path": folder,
        "images": data.images,
        "masks": data.masks,
        "labels": labels,
        "attribute": data.attribute,
        "radius": data.radius,
        "group": [_below(folder, table) for table in data.group_tables] or data.group,
        "ignored": _tuples(data.ignored),
        "gsd": data.gsd or None,
    }


def _below(folder: str, table: str) -> str:
    """A table's path, which counts from the data's folder; `train=groups.csv` keeps what stands before the sign."""
    place, sign, name = table.rpartition("=")
    return place + sign + str(Path(folder).expanduser().resolve() / Path(name).expanduser())


def choose(labelled: LabelledSet, budget: str, seed: int, *, key: str = "labels") -> np.ndarray:
    """Chooses the training tiles whose labels are used.

    Args:
        labelled: the data set.
        budget: `all`, a number of tiles, a share below 1, or the path of a list that an earlier run wrote.
        seed: of the order from which a number or share is taken.
        key: of the budget, for messages.

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
        raise ConfigError(f"config.{key}: {error}") from error
    raise ConfigError(
        f"config.{key} must be 'all', a number of crops, a share below 1 or a file that lists crops, not {budget!r}."
    )


def hold_out(labelled: LabelledSet, chosen: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Keeps whole groups of the chosen tiles back for validation, so that no label beyond the budget is looked at.

    Args:
        labelled: the data set.
        chosen: indices of tiles of `labelled.train`.
        share: of them that is held out, rounded up to whole groups; the last group always trains.
        seed: of the order of the groups.

    Returns:
        Indices to train on, and indices to validate on; in the order of `chosen`.
    """
    group = np.array([labelled.train_groups[int(i)] for i in chosen])
    names = np.unique(group)
    # raw words: NumPy promises the bits of a bit generator but not those of permutation()
    order = np.argsort(np.random.Philox(np.random.SeedSequence([seed, 1])).random_raw(len(names)), kind="stable")
    held = np.zeros(len(chosen), bool)
    for name in names[order[:-1]]:
        if held.sum() >= share * len(chosen):
            break
        held |= group == name
    return chosen[~held], chosen[held]


def tile_scenes(labelled: LabelledSet, indices: np.ndarray) -> tuple[LabelledScene, ...]:
    """Training tiles as scenes of their own, to score on; in one that cannot be read no pixel counts."""
    side, bands = labelled.train.tile_size, labelled.bands
    blank = {"image": np.zeros((side, side, len(bands)), bands.dtype), "mask": np.full((side, side), IGNORE, np.uint8)}

    @contextlib.contextmanager
    def opened(index: int) -> Iterator[OpenedScene]:
        tile = dict(readable(labelled.train, [index])).get(index, blank)
        image, mask = tile["image"], tile["mask"]
        yield OpenedScene(side, side, lambda y0, y1: image[y0:y1], lambda y0, y1: mask[y0:y1].copy())

    return tuple(LabelledScene(f"tile {i}", labelled.train_groups[i], partial(opened, i)) for i in map(int, indices))


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
