"""Labelled scenes of a folder, opened whole when they are needed."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grass_jax.data.builders.notices import log_skipped
from grass_jax.data.footprints import footprint_of, merge_overlapping
from grass_jax.data.labels import IGNORE, Labels
from grass_jax.data.layout import RGB_LAYOUT, Layout, OtherBandsError
from grass_jax.data.pairs import Annotation, LabelError, OpenedScene, Pairs, check_patterns, find_pairs, open_pair
from grass_jax.data.rasters import reason
from grass_jax.data.splits import group_of


class LabelledScene(NamedTuple):
    """A scene with labels that is opened when it is needed.

    Attributes:
        name: of the image, relative to the images' folder.
        group: its group; scores are averaged over groups as areas.
        open: opens it as a context; one scene takes little memory until rows are read.
    """

    name: str
    group: str
    open: Callable[[], AbstractContextManager[OpenedScene]]


def find_labelled(
    path: str | os.PathLike | None,
    *,
    images: str | os.PathLike = "images",
    masks: str | os.PathLike = "masks",
    labels: Labels | None = None,
    attribute: str = "",
    radius: int = 2,
    ignored: Sequence[Sequence] = (),
    gsd: float | None = None,
) -> tuple[Pairs, Annotation]:
    """Find the images of a folder and their labels.

    Args:
        path: the folder.
        images: folder of the images, in `path` or absolute.
        masks: folder of masks or vector files with the images' names, or one vector file; in `path` or absolute.
        labels: classes and what stands for them in masks.
        attribute: field of the class in vector files.
        radius: radius in pixels of points and lines of vector files.
        ignored: rectangles that do not count, see `Annotation`.
        gsd: metres per pixel to resample to.

    Returns:
        the files, and how the labels are read.

    Raises:
        ValueError: for settings or files that do not go together.
        FileNotFoundError, NotADirectoryError: if a folder does not exist.
    """
    if path is None:
        raise ValueError("The data set segmentation_folder needs a path: set it to the folder of images and masks.")
    if labels is None:
        raise ValueError("The data set segmentation_folder needs labels: name the classes and their ids or colours.")
    folder = Path(path).expanduser().resolve()
    annotation = Annotation(labels, attribute, radius, gsd, tuple(ignored))
    pairs = find_pairs(folder / Path(images).expanduser(), folder / Path(masks).expanduser())
    check_patterns(annotation, [file.name for file in pairs.files])
    return pairs, annotation


def open_scenes(
    path: str | os.PathLike, *, group: str | Sequence[str] = "", layout: Layout = RGB_LAYOUT, **where: Any
) -> tuple[LabelledScene, ...]:
    """All scenes of a labelled folder, to score a model on; nothing is prepared.

    Args:
        path: the folder.
        group: groups of the files, see `group_of`; those that show the same ground are joined.
        layout: the bands of the images to read, those of a network; images without them are left out.
        where: keyword arguments of `find_labelled`.

    Returns:
        the scenes whose image and labels can be read, sorted by name; the others are named in the log.

    Raises:
        ValueError: in one sentence, for settings, labels or files that do not go together, or no usable image.
        FileNotFoundError, NotADirectoryError: if a folder or table does not exist.
    """
    pairs, annotation = find_labelled(path, **where)
    usable, footprints, skipped, advice = [], [], list(pairs.skipped), "add others"
    for file, labels in zip(pairs.files, pairs.labels, strict=True):
        try:
            with open_pair(pairs.images / file.name, labels, file.name, annotation, layout=layout) as scene:
                footprints.append(footprint_of(scene.georeference, scene.height, scene.width))
                usable.append((file.name, labels))
        except (MemoryError, LabelError):
            raise
        except Exception as error:  # decoders answer a broken file with anything
            if isinstance(error, OtherBandsError):
                advice = "give images with the network's bands"
            skipped.append((file.name, reason(error)))
    log_skipped(skipped, pairs.images)
    if not usable:
        raise ValueError(f"No image in {pairs.images} can be used, the first because {skipped[0][1]}: {advice}.")
    groups, _ = merge_overlapping(group_of([name for name, _ in usable], group), footprints)
    return tuple(
        LabelledScene(name, its, scene_opener(pairs.images, name, labels, annotation, layout=layout))
        for (name, labels), its in zip(usable, groups, strict=True)
    )


def scene_opener(
    images: Path,
    name: str,
    labels: Path,
    annotation: Annotation,
    view: Callable[[int, int], np.ndarray] | None = None,
    *,
    layout: Layout = RGB_LAYOUT,
) -> Callable[[], AbstractContextManager[OpenedScene]]:
    """A function that opens a scene.

    Args:
        images: folder of the images.
        name: of the image.
        labels: file of its labels.
        annotation: how the labels are read.
        view: which pixels of rows y0 to y1 - 1 count, (y1 - y0, width) bool; None for all.
        layout: the bands of the image to read.

    Returns:
        the function; it can be pickled.
    """
    return functools.partial(_open_scene, images / name, labels, name, annotation, view, layout)


@contextlib.contextmanager
def _open_scene(
    image: Path,
    labels: Path,
    name: str,
    annotation: Annotation,
    view: Callable[..., np.ndarray] | None,
    layout: Layout,
) -> Iterator[OpenedScene]:
    with open_pair(image, labels, name, annotation, layout=layout, verify=False) as scene:
        if view is None:
            yield scene
            return

        def mask(y0: int, y1: int) -> np.ndarray:
            return np.where(view(y0, y1), scene.mask(y0, y1), np.uint8(IGNORE))

        yield scene._replace(mask=mask)
