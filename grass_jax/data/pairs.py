"""An image and its labels: found in parallel trees, opened together."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grass_jax.data.folder import ImageFile, find_images
from grass_jax.data.labels import IGNORE, Labels, UnknownLabelError
from grass_jax.data.layout import RGB_LAYOUT, Layout
from grass_jax.data.limits import one_line
from grass_jax.data.masks import open_mask
from grass_jax.data.rasters import JPEG_SUFFIXES, SUFFIXES, Georeference, Scene, UnusableImageError, open_scene
from grass_jax.data.vectors import SUFFIXES as VECTOR_SUFFIXES
from grass_jax.data.vectors import burn

SIDECARS = (".dbf", ".shx", ".prj", ".cpg")  # a shapefile is several files


class LabelError(ValueError):
    """Labels that have to be put right before anything is made of them."""


class OpenedScene(NamedTuple):
    """An open image with its labels.

    Attributes:
        height: in pixels.
        width: in pixels.
        rows: reads rows y0 to y1 - 1 of the image, (y1 - y0, width, c) in the dtype of the layout, as those of `Scene`.
        mask: reads the same rows of the labels, (y1 - y0, width) uint8 ids; IGNORE does not count.
        georeference: where the scene lies; None where the file does not say.
        valid: reads which pixels of these rows hold an image, (y1 - y0, width) bool; None where all do.
        values: reads which values of them are not nodata in their band; None as in `Scene`.
    """

    height: int
    width: int
    rows: Callable[[int, int], np.ndarray]
    mask: Callable[[int, int], np.ndarray]
    georeference: Georeference | None = None
    valid: Callable[[int, int], np.ndarray] | None = None
    values: Callable[[int, int], np.ndarray] | None = None


@dataclass(frozen=True)
class Annotation:
    """How labels are read.

    Attributes:
        labels: classes and the ids or colours that stand for them.
        attribute: field of a vector file that holds the class.
        radius: radius in pixels of the discs and strokes that points and lines are drawn as.
        gsd: metres per pixel to which georeferenced images and masks are resampled; None leaves them.
        ignored: rectangles (pattern, y0, x0, y1, x1) in pixels of the scene, resampled where `gsd` is given, that do
            not count in files whose name the pattern is found in; None or -1 reaches to the edge.
    """

    labels: Labels
    attribute: str = ""
    radius: int = 2
    gsd: float | None = None
    ignored: tuple[Sequence, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "ignored", tuple(_rectangle(given) for given in self.ignored))

    def rectangles(self, name: str) -> list[tuple[slice, slice]]:
        """The ignored rectangles of a file, as slices of rows and columns."""
        found = [corners for pattern, *corners in self.ignored if re.search(pattern, name)]
        edges = [[None if corner == -1 else corner for corner in corners] for corners in found]
        return [(slice(y0 or 0, y1), slice(x0 or 0, x1)) for y0, x0, y1, x1 in edges]


def _rectangle(given: Any) -> tuple:
    """An ignored rectangle as a tuple of one pattern and four corners.

    Raises:
        ValueError: if it is none.
    """
    way = "write (pattern, y0, x0, y1, x1) in whole pixels, -1 or None to the edge"
    whole = isinstance(given, (list, tuple)) and len(given) == 5 and isinstance(given[0], str)
    if not whole or not all(corner is None or isinstance(corner, Integral) for corner in given[1:]):
        raise ValueError(f"{given!r} is no ignored rectangle: {way}.")
    pattern, *corners = given
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"The ignored rectangle {given!r} has no valid pattern ({error}): {way}.") from None
    edges = [None if corner in (None, -1) else int(corner) for corner in corners]
    if any(edge is not None and edge < 0 for edge in edges):
        raise ValueError(f"The ignored rectangle {given!r} has a corner below -1: {way}.")
    if any(stop is not None and stop <= (start or 0) for start, stop in zip(edges[:2], edges[2:], strict=True)):
        raise ValueError(f"The ignored rectangle {given!r} is empty, as y0 < y1 and x0 < x1 must hold: {way}.")
    return pattern, *(corner if corner is None else int(corner) for corner in corners)


class Pairs(NamedTuple):
    """The images of a folder that have labels.

    Attributes:
        images: folder of the images.
        files: the images, sorted by name.
        labels: file of masks or vectors for every image.
        skipped: name and reason of the others.
    """

    images: Path
    files: list[ImageFile]
    labels: list[Path]
    skipped: list[tuple[str, str]]


def find_pairs(images: Path, masks: Path) -> Pairs:
    """Find the images of a folder tree and the mask or vector file of each.

    Args:
        images: folder tree of images.
        masks: folder tree with the same names (any suffix of masks or vector files), or one vector file for all.

    Returns:
        the pairs.

    Raises:
        FileNotFoundError, NotADirectoryError: if a folder does not exist.
        ValueError: if there is no image, no image has labels, it is not clear which labels an image has, or all masks
            are JPEG.
    """
    files = find_images(images)
    if masks.is_file():
        if masks.suffix.lower() not in VECTOR_SUFFIXES:
            raise NotADirectoryError(f"{masks} is a file: give the folder that holds the masks, or a vector file.")
        return Pairs(images, files, [masks] * len(files), [])
    if not masks.is_dir():
        raise FileNotFoundError(f"There is no {masks}: set masks to the folder of the masks, or to a vector file.")
    if masks.is_relative_to(images) and masks != images:
        files = [file for file in files if not (images / file.name).is_relative_to(masks)]
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(masks.rglob("*")):
        if path.suffix.lower() in SUFFIXES | VECTOR_SUFFIXES and not path.name.startswith("."):
            by_stem.setdefault(path.relative_to(masks).with_suffix("").as_posix(), []).append(path)
    kept, labels, skipped, taken = [], [], [], {}
    for file in files:
        stem = file.name.rpartition(".")[0]
        found = by_stem.get(stem, [])
        # A .json beside a mask is somebody's notes about it.
        found = [path for path in found if path.suffix.lower() != ".json"] or found
        if not found:
            skipped.append((file.name, f"there is no mask {stem}.* in {masks}"))
            continue
        if len(found) > 1:
            raise ValueError(f"{file.name} has the masks {found[0].name} and {found[1].name}: keep one of them.")
        if stem in taken:
            raise ValueError(f"{taken[stem]} and {file.name} have the same mask {found[0].name}: keep one of them.")
        taken[stem] = file.name
        kept.append(file)
        labels += found
    if not kept:
        raise ValueError(
            f"None of the {len(files)} images of {images} has a mask in {masks}: give both the same names."
        )
    if all(path.suffix.lower() in JPEG_SUFFIXES for path in labels):
        raise ValueError(
            f"The masks in {masks} are JPEG, whose lossy compression changes the values of classes: convert them to "
            "PNG, from the originals where there are any."
        )
    return Pairs(images, kept, labels, skipped)


def label_files(pairs: Pairs) -> list[ImageFile]:
    """State of the files that hold the labels, parts of shapefiles included, each once."""
    paths = dict.fromkeys(pairs.labels)
    parts = [path.with_suffix(suffix) for path in paths if path.suffix.lower() == ".shp" for suffix in SIDECARS]
    states = [(path, path.stat()) for path in (*paths, *parts) if path.exists()]
    return [ImageFile(os.path.relpath(path, pairs.images), each.st_size, each.st_mtime_ns) for path, each in states]


def check_patterns(annotation: Annotation, names: Sequence[str]) -> None:
    """Make sure that every ignored rectangle belongs to a file, so that a slip does not go unseen.

    Raises:
        ValueError: if a pattern matches no name.
    """
    for pattern, *_ in annotation.ignored:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"The pattern {pattern!r} of an ignored rectangle matches no image: correct it.")


@contextlib.contextmanager
def open_pair(
    image: Path,
    labels: Path,
    name: str,
    annotation: Annotation,
    *,
    layout: Layout = RGB_LAYOUT,
    verify: bool = True,
) -> Iterator[OpenedScene]:
    """Open an image with its labels; nodata and ignored rectangles do not count.

    Args:
        image: file of the image.
        labels: file of its mask, or of polygons, lines or points.
        name: the image's name, for ignored rectangles and messages.
        annotation: how the labels are read.
        layout: the bands of the image to read.
        verify: whether to read all of both beforehand, so that what follows cannot fail.

    Yields:
        the scene.

    Raises:
        LabelError: if the labels do not fit the image or the classes.
        UnusableImageError: if the mask is broken; OtherBandsError where the image has another layout; other errors
            where the image is broken.
    """
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(open_scene(image, layout=layout, gsd=annotation.gsd, verify=verify))
        with _named_errors(labels):
            drawn = stack.enter_context(_open_labels(labels, scene, name, annotation, verify))
        if (drawn.height, drawn.width) != (scene.height, scene.width):
            raise LabelError(
                f"The mask {labels} has {drawn.width}x{drawn.height} pixels and its image {name} "
                f"{scene.width}x{scene.height}: give them one size."
            )
        rectangles = annotation.rectangles(name)

        def mask(y0: int, y1: int) -> np.ndarray:
            with _named_errors(labels):
                ids = np.array(drawn.rows(y0, y1))
            if scene.valid is not None:
                ids[~scene.valid(y0, y1)] = IGNORE
            for rows, columns in rectangles:
                low, high, _ = rows.indices(scene.height)
                ids[max(low - y0, 0) : max(high - y0, 0), columns] = IGNORE
            return ids

        yield OpenedScene(scene.height, scene.width, scene.rows, mask, scene.georeference, scene.valid, scene.values)


@contextlib.contextmanager
def _open_labels(path: Path, scene: Scene, name: str, annotation: Annotation, verify: bool) -> Iterator[Any]:
    if path.suffix.lower() not in VECTOR_SUFFIXES:
        with open_mask(path, annotation.labels, gsd=annotation.gsd, factors=scene.factors, verify=verify) as mask:
            yield mask
        return
    if scene.georeference is None:
        raise LabelError(f"{name} has no georeference to place the features of {path} by: convert it to a GeoTIFF.")
    yield burn(
        path,
        scene.georeference,
        scene.height,
        scene.width,
        annotation.labels,
        annotation.attribute,
        radius=annotation.radius,
    )


@contextlib.contextmanager
def _named_errors(labels: Path) -> Iterator[None]:
    """A sentence of `open_mask` and `burn` stops everything; a file that is broken is a reason to skip its image.

    The sentences are plain ValueErrors and UnknownLabelErrors, and decoders raise some of the kinds made from them.
    """
    try:
        yield
    except (MemoryError, LabelError):
        raise
    except UnusableImageError as error:
        raise UnusableImageError(f"its mask {labels.name} cannot be used: {error}") from error
    except Exception as error:  # decoders answer a broken file with anything
        if type(error) in (ValueError, UnknownLabelError):
            raise LabelError(str(error)) from error
        words = one_line(str(error)) or type(error).__name__
        raise UnusableImageError(f"its mask {labels.name} is broken: {words}") from error
