"""What the section of a configuration that describes a data set may hold."""

from pathlib import Path
from typing import Any

from grass_jax.buckets import is_folder
from grass_jax.config import (
    NAMES,
    NOT_NEGATIVE,
    PATTERN,
    SEQUENCE,
    TEXT,
    ConfigError,
    one_of,
    whole,
)
from grass_jax.data.landscape import CLASS_NAMES
from grass_jax.data.published.facts import PUBLISHED, facts_of

# a labelled data set: images, masks, classes, and what is trained and tested on
LABELLED = {
    "name": one_of("sample", "segmentation_folder", *PUBLISHED),
    "path": TEXT,
    "images": TEXT,
    "masks": TEXT,
    "attribute": TEXT,
    "radius": whole(0),
    "classes": NAMES,
    "mask_values": SEQUENCE,
    "ignore": SEQUENCE,
    "colours": NAMES,
    "background": TEXT,
    "split": one_of("file", "group", "block"),
    "group": PATTERN,
    "group_tables": NAMES,
    "test": PATTERN,
    "validation": PATTERN,
    "block": whole(0),
    "guard": whole(0),
    "split_seed": whole(0),
    "ignored": SEQUENCE,
    "gsd": NOT_NEGATIVE,
    "tile_size": whole(32),
    "stride": whole(0, " (0: the tile size)"),
    "data_dir": TEXT,
}


def refuse_masks(folder: str, shown: str) -> None:
    """Raises ConfigError where a folder to pretrain on, of this machine, holds masks beside its images."""
    if all(Path(folder or "?").expanduser().joinpath(part).is_dir() for part in ("images", "masks")):
        raise ConfigError(
            f"config.data.path, {shown}, holds images and masks, and masks are no images to pretrain on: give its "
            "folder images."
        )


def check_folder(values: dict[str, Any], where: str, what: str) -> None:
    """Raises ConfigError where the path of the section `where` is no folder; `what` says which one it must be."""
    path = values[f"{where}.path"]
    if not is_folder(path or "?"):
        found = f"and there is no {path}" if path and not Path(path).expanduser().exists() else f"not {path!r}"
        raise ConfigError(f"config.{where}.path must be {what}, given with --config.{where}.path=FOLDER, {found}.")


def check_archives(values: dict[str, Any], where: str) -> None:
    """Raises ConfigError where the section `where` names no folder for the archives of a published data set."""
    check_folder(values, where, f"the folder of the archives of {values[f'{where}.name']}, or of what they hold")


def check_labelled(values: dict[str, Any], where: str) -> None:
    """Raises ConfigError where the keys of the labelled data set `where`, each allowed, do not go together."""
    path, name = values[f"{where}.path"], values[f"{where}.name"]
    if name == "sample" and path:
        raise ConfigError(
            f"config.{where}.path is given but config.{where}.name is 'sample': choose a preset for folders, or leave "
            "the path out."
        )
    if name in PUBLISHED:
        check_archives(values, where)
        if values[f"{where}.classes"]:
            raise ConfigError(f"config.{where}.classes of {name} are its own: leave it empty.")
        if values[f"{where}.masks"] not in ("full", "eroded"):
            raise ConfigError(
                f"config.{where}.masks of {name} must be 'full' or 'eroded', not {values[f'{where}.masks']!r}."
            )
    if name == "segmentation_folder":
        check_folder(values, where, "the folder of the labelled images")
        if len(values[f"{where}.classes"]) < 2:
            raise ConfigError(
                f"config.{where}.classes must name two classes or more, not {len(values[where + '.classes'])}: "
                f"--config.{where}.classes=\"('field','forest','town')\"."
            )
    if values[f"{where}.split"] == "block" and values[f"{where}.block"] < values[f"{where}.tile_size"]:
        raise ConfigError(f"config.{where}.block must be at least the tile size, {values[f'{where}.tile_size']}.")


def class_count(values: dict[str, Any], where: str) -> int:
    """How many classes the labelled data set `where` has, before it is opened."""
    name = values[f"{where}.name"]
    if name == "sample":
        return len(CLASS_NAMES)
    if name in PUBLISHED:
        return len(facts_of(name.partition("/")[0]).labels.classes)
    return len(values[f"{where}.classes"])
