"""Potsdam, Vaihingen and LoveDA, prepared: tiles to pretrain on, and labelled sets with their published test part."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from tensorflow_datasets.core import constants

from grass_jax.data.builders.published import BUILDERS, PublishedConfig, published_config
from grass_jax.data.labelled import LabelledSet
from grass_jax.data.prepare import prepare
from grass_jax.data.published.facts import facts_of, layout_of_published
from grass_jax.data.published.pixels import open_published
from grass_jax.data.published.scenes import PublishedScene
from grass_jax.data.scenes import LabelledScene
from grass_jax.data.source import TileSource, tiles_of
from grass_jax.data.splits import Split, assign_parts


def published_tiles(
    name: str,
    path: str | os.PathLike | None,
    *,
    split: str = "",
    masks: str = "none",
    region: str = "",
    numbers: Sequence[int] = (),
    tile_size: int | None = None,
    stride: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> TileSource:
    """Open the tiles of a data set, preparing them on first use and whenever the archives have changed.

    Args:
        name: `potsdam`, `vaihingen` or `loveda`.
        path: folder with the archives, as they are or unpacked.
        split: `train`, or the part to score on, `test` (`val` of LoveDA); empty for `train`.
        masks: `none` takes images alone, which need no labels; `full` or `eroded` tiles have masks.
        region: `urban`, `rural` or `all` of LoveDA; empty for all.
        numbers: of the bands to read, from 1; empty for the first three.
        tile_size: side of a tile in pixels; 256 where None.
        stride: distance between neighbouring tiles in pixels; `tile_size` where None.
        data_dir: where TFDS keeps its data sets; `TFDS_DATA_DIR` or `~/tensorflow_datasets` where None.

    Returns:
        the tiles.

    Raises:
        FileNotFoundError: if the data set is not there; says what to get, from whom, and where to put it.
        ValueError: in one sentence, if a part of it is missing or damaged, or for settings that it does not know.
    """
    wanted = {"numbers": numbers, "masks": masks, "region": region, "tile_size": tile_size, "stride": stride}
    return _prepared(name, path, split or "train", data_dir, **wanted)[0]


def published_labelled(
    name: str,
    path: str | os.PathLike | None,
    *,
    split: Split | None = None,
    masks: str = "full",
    region: str = "",
    numbers: Sequence[int] = (),
    tile_size: int | None = None,
    stride: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> LabelledSet:
    """Open a data set with labels: the published part to score on is `test`, every scene is a group.

    Args:
        name: `potsdam`, `vaihingen` or `loveda`.
        path: folder with the archives, as they are or unpacked.
        split: which of the training scenes validate; its `test` stays empty.
        masks: `full`, or `eroded` of the ISPRS, where the pixels around boundaries do not count.
        region: `urban`, `rural` or `all` of LoveDA; empty for all.
        numbers: of the bands to read, from 1; empty for the first three.
        tile_size: side of a tile in pixels; 256 where None.
        stride: distance between neighbouring tiles in pixels; `tile_size` where None.
        data_dir: where TFDS keeps its data sets; `TFDS_DATA_DIR` or `~/tensorflow_datasets` where None.

    Returns:
        the data set; its `test` is empty where the archives have no masks of that part.

    Raises:
        FileNotFoundError: if the data set is not there; says what to get, from whom, and where to put it.
        ValueError: in one sentence, if a part of it is missing or damaged, or for settings that it does not know.
    """
    facts, split = facts_of(name), split or Split()
    if masks == "none":
        raise ValueError(f"{name} is to be labelled: set masks to {' or '.join(facts.masks)}.")
    if split.test or split.by == "block":
        raise ValueError(f"{name} has a published test part: leave test empty and split 'file' or 'group'.")
    wanted = {"numbers": numbers, "masks": masks, "region": region, "tile_size": tile_size, "stride": stride}
    source, config, scratch = _prepared(name, path, "train", data_dir, **wanted)
    training, scored = facts.splits
    parts = assign_parts(source.files, source.files, split)
    train = source.subset(np.flatnonzero(np.array([part == "train" for part in parts])[source.positions[:, 0]]))
    layout = layout_of_published(name, numbers)

    def scenes(chosen: Sequence[PublishedScene]) -> tuple[LabelledScene, ...]:
        opened = [functools.partial(open_published, scene, facts.labels, layout, scratch=scratch) for scene in chosen]
        return tuple(LabelledScene(scene.name, scene.name, its) for scene, its in zip(chosen, opened, strict=True))

    kept = {file for file, part in zip(source.files, parts, strict=True) if part == "validation"}
    labelled = LabelledSet(
        facts.labels.classes,
        facts.labels.rgb(),
        train,
        tuple(source.files[file] for file in train.positions[:, 0].tolist()),
        scenes([scene for scene in config.scenes[training] if scene.name in kept]),
        scenes(config.scenes.get(scored, ())),
        source.bands,
    )
    logging.info(
        "%s: %d training tiles of %d scene(s), %d scene(s) to validate, %d to test.",
        facts.title,
        len(train),
        len(set(labelled.train_groups)),
        len(labelled.validation),
        len(labelled.test),
    )
    return labelled


def _prepared(
    name: str, path: str | os.PathLike | None, split: str, data_dir: str | os.PathLike | None, *, tile_size, **wanted
) -> tuple[TileSource, PublishedConfig, Path]:
    facts_of(name)
    if path is None:
        raise ValueError(f"The data set {name} needs a path: set it to the folder of its archives.")
    scratch = Path(data_dir or constants.DATA_DIR).expanduser()
    folder = Path(path).expanduser().resolve()
    tile_size = 256 if tile_size is None else tile_size
    config = published_config(name, folder, tile_size=tile_size, **wanted, scratch=scratch)
    builder, fresh = prepare(BUILDERS[name], config, None if data_dir is None else os.fspath(data_dir))
    return tiles_of(builder, split, fresh=fresh), config, scratch
