"""A labelled data set in parts that do not leak: tiles to train on, whole scenes to validate and test on."""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from grass_jax.bands import Bands
from grass_jax.data.builders import sample
from grass_jax.data.builders.segmentation_folder import SegmentationFolder, segmentation_config
from grass_jax.data.footprints import Footprint, merge_overlapping
from grass_jax.data.labels import Labels
from grass_jax.data.landscape import CLASS_NAMES, landscape
from grass_jax.data.pairs import OpenedScene
from grass_jax.data.prepare import prepare
from grass_jax.data.scenes import LabelledScene, find_labelled, scene_opener
from grass_jax.data.source import TileSource, check_sample_numbers, open_tiles, tiles_of
from grass_jax.data.splits import PARTS, Blocks, Split, assign_blocks, assign_parts, group_of

NAMED = 5  # overlapping pairs named in the log before "and N more"


class LabelledSet(NamedTuple):
    """A labelled data set in its parts.

    Attributes:
        classes: names of the ids 0 to k - 1.
        colours: (k, 3) uint8 display colours.
        train: training tiles with at least one labelled pixel each.
        train_groups: group of every training tile.
        validation: scenes to choose by; may be empty.
        test: scenes to score at the end; may be empty.
        bands: of the images, as measured on all tiles of the folder, those that do not train included.
    """

    classes: tuple[str, ...]
    colours: np.ndarray
    train: TileSource
    train_groups: tuple[str, ...]
    validation: tuple[LabelledScene, ...]
    test: tuple[LabelledScene, ...]
    bands: Bands


def open_labelled(
    name: str,
    *,
    path: str | os.PathLike | None = None,
    images: str | os.PathLike = "images",
    masks: str | os.PathLike = "masks",
    labels: Labels | None = None,
    attribute: str = "",
    radius: int = 2,
    split: Split | None = None,
    group: str | Sequence[str] = "",
    ignored: Sequence[Sequence] = (),
    gsd: float | None = None,
    numbers: Sequence[int] = (),
    tile_size: int | None = None,
    stride: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> LabelledSet:
    """Open a labelled data set, preparing its tiles on first use and whenever files or settings have changed.

    What a band is scaled and normalised by is measured when the tiles are prepared, on the pixels of all of them: the
    images, but not the labels, of files or blocks that validate and test have a part in it. It is the same for every
    split, therefore. Give config.bands.low, high, mean and std for a network that has seen nothing of them.

    Args:
        name: `sample` (the embedded landscape, with test scenes of its own) or `segmentation_folder`.
        path: folder of `segmentation_folder`.
        images: folder of the images, in `path` or absolute.
        masks: folder of masks or vector files with the images' names, or one vector file; in `path` or absolute.
        labels: classes and what stands for them in masks.
        attribute: field of the class in vector files.
        radius: radius in pixels of points and lines of vector files.
        split: which files or blocks train, validate and test; `Split()`, all to train, where None.
        group: groups of the files, see `group_of`.
        ignored: rectangles that do not count, see `Annotation`.
        gsd: metres per pixel to resample to.
        numbers: of the bands to read, from 1; all of most files' bands where empty.
        tile_size: side of a tile in pixels; 96 for `sample` and 256 for `segmentation_folder` where None.
        stride: distance between neighbouring tiles in pixels; `tile_size` where None.
        data_dir: where TFDS keeps its data sets; `TFDS_DATA_DIR` or `~/tensorflow_datasets` where None.

    Returns:
        the data set.

    Raises:
        ValueError: in one sentence, for settings, labels or files that do not go together.
        FileNotFoundError, NotADirectoryError: if a folder or table does not exist.
    """
    split = Split() if split is None else split
    if name == "sample":
        if path is not None:
            raise ValueError("The data set sample takes no path: leave it out or use segmentation_folder.")
        check_sample_numbers(numbers)
        return _open_sample(split, tile_size or 96, stride, data_dir)
    if name != "segmentation_folder":
        raise ValueError(f"There is no labelled data set {name!r}: use sample or segmentation_folder.")
    pairs, annotation = find_labelled(
        path,
        images=images,
        masks=masks,
        labels=labels,
        attribute=attribute,
        radius=radius,
        ignored=ignored,
        gsd=gsd,
    )
    tile_size = 256 if tile_size is None else tile_size
    if split.by == "block" and split.block < tile_size:
        raise ValueError(f"block {split.block} is smaller than a tile: set it to {tile_size} or a multiple of it.")
    _check_split([file.name for file in pairs.files], group, split)
    config = segmentation_config(pairs, annotation, tile_size=tile_size, stride=stride, numbers=numbers)
    builder, fresh = prepare(SegmentationFolder, config, None if data_dir is None else os.fspath(data_dir))
    source = tiles_of(builder, "train", fresh=fresh)
    notes: dict[str, Any] = dict(builder.info.metadata or {})
    sizes = [(height, width) for _, height, width in notes["files"]["train"]]
    footprints = [note and Footprint(*note) for note in notes.get("notes", [None] * len(sizes))]
    groups, parts, blocks, overlapping = _divide(source.files, group, split, sizes, footprints)
    train = source.subset(_training_tiles(source, parts, blocks))
    if not len(train):
        raise ValueError(
            f"No tile of {tile_size} pixels with a label lies wholly in the training part: set a smaller tile_size or "
            "stride, or leave more to train on."
        )
    labels_of = {file.name: path for file, path in zip(pairs.files, pairs.labels, strict=True)}

    def scenes(part: str) -> tuple[LabelledScene, ...]:
        found = []
        for i, file in enumerate(source.files):
            view = None
            if blocks is not None and (blocks[i].parts == PARTS.index(part)).any():
                view = functools.partial(blocks[i].rows, part, guard=split.guard)
            elif parts is None or parts[i] != part:
                continue
            opened = scene_opener(pairs.images, file, labels_of[file], annotation, view, layout=config.layout)
            found.append(LabelledScene(file, groups[i], opened))
        return tuple(found)

    labelled = LabelledSet(
        annotation.labels.classes,
        annotation.labels.rgb(),
        train,
        tuple(groups[file] for file in train.positions[:, 0].tolist()),
        scenes("validation"),
        scenes("test"),
        source.bands,
    )
    _log_parts(labelled, len(set(groups)), [(source.files[i], source.files[j]) for i, j in overlapping])
    return labelled


def _check_split(files: Sequence[str], group: str | Sequence[str], split: Split) -> None:
    """Find slips in names and patterns before hours of preparation."""
    groups = group_of(files, group)
    if split.by != "block":
        assign_parts(files, groups if split.by == "group" else files, split)
        return
    first: dict[str, str] = {}
    for file, its in zip(files, groups, strict=True):
        if first.setdefault(its, file) != file:
            raise ValueError(
                f"{first[its]} and {file} are of the group {its}, which split 'block' would divide: use "
                "split 'group', or leave the groups out."
            )


def _divide(files, group, split: Split, sizes, footprints):
    """Group and part of every file (or its blocks), and the overlapping pairs."""
    groups, overlapping = merge_overlapping(group_of(files, group), footprints)
    if split.by == "block":
        if overlapping:
            first, second = (files[i] for i in overlapping[0])
            raise ValueError(
                f"{first} and {second} show the same ground, which split 'block' would divide: use "
                "split 'group', or leave one of them out."
            )
        return groups, None, assign_blocks(files, sizes, split), overlapping
    units = groups if split.by == "group" else merge_overlapping(files, footprints)[0]
    return groups, assign_parts(files, units, split), None, overlapping


def _training_tiles(source: TileSource, parts: Sequence[str] | None, blocks: Sequence[Blocks] | None) -> np.ndarray:
    file, y, x = source.positions.T
    if parts is not None:
        return np.flatnonzero(np.array([part == "train" for part in parts])[file])
    assert blocks is not None
    inside = np.zeros(len(source), bool)
    for number, scene in enumerate(blocks):
        own = np.flatnonzero(file == number)
        inside[own] = scene.all_of("train", y[own], x[own], y[own] + source.tile_size, x[own] + source.tile_size)
    return np.flatnonzero(inside)


def _log_parts(labelled: LabelledSet, groups: int, overlapping: Sequence[tuple[str, str]]) -> None:
    train = labelled.train
    logging.info(
        "Labelled data: %d training tiles of %d file(s) in %d group(s), %d scene(s) to validate, %d to test; "
        "%d group(s) in all, %d pair(s) of files show the same ground and stay together.",
        len(train),
        len(np.unique(train.positions[:, 0])),
        len(set(labelled.train_groups)),
        len(labelled.validation),
        len(labelled.test),
        groups,
        len(overlapping),
    )
    if overlapping:
        named = ", ".join(f"{first} and {second}" for first, second in overlapping[:NAMED])
        more = f" and {len(overlapping) - NAMED} more" if len(overlapping) > NAMED else ""
        logging.info("Overlapping footprints: %s%s.", named, more)


def _open_sample(split: Split, tile_size: int, stride: int | None, data_dir) -> LabelledSet:
    if split.test or split.by == "block":
        raise ValueError("The sample has test scenes of its own: leave test empty and split 'file' or 'group'.")
    source = open_tiles("sample", tile_size=tile_size, stride=stride, data_dir=data_dir)
    parts = assign_parts(source.files, source.files, split)
    train = source.subset(_training_tiles(source, parts, None))

    def scenes(names: Sequence[str]) -> tuple[LabelledScene, ...]:
        return tuple(LabelledScene(name, name, functools.partial(_open_drawn, name)) for name in names)

    labelled = LabelledSet(
        CLASS_NAMES,
        Labels(CLASS_NAMES, colours=sample.CLASS_COLOURS).rgb(),
        train,
        tuple(source.files[file] for file in train.positions[:, 0].tolist()),
        scenes([file for file, part in zip(source.files, parts, strict=True) if part == "validation"]),
        scenes([f"scene_{seed}" for seed in sample.SCENES["val"]]),
        source.bands,
    )
    _log_parts(labelled, len(source.files) + len(labelled.test), ())
    return labelled


@contextlib.contextmanager
def _open_drawn(name: str) -> Iterator[OpenedScene]:
    image, mask = _draw(int(name.removeprefix("scene_")), sample.SCENE_SIZE)
    height, width = mask.shape
    yield OpenedScene(height, width, lambda y0, y1: image[y0:y1], lambda y0, y1: mask[y0:y1].copy())


@functools.lru_cache(maxsize=4)  # a scene takes a second to draw and 4 MB to keep
def _draw(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    return landscape(seed, size)
