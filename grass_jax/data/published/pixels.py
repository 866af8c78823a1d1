"""Open the scenes of Potsdam, Vaihingen and LoveDA as their owners publish them, images and masks."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from absl import logging

from grass_jax.data.geotiff import open_raster, row_window
from grass_jax.data.labels import IGNORE, Labels, UnknownLabelError
from grass_jax.data.layout import Layout
from grass_jax.data.masks import Mask, open_mask
from grass_jax.data.pairs import LabelError, OpenedScene
from grass_jax.data.pictures import UnusableImageError
from grass_jax.data.published.archives import DamagedArchiveError, Member
from grass_jax.data.published.scenes import PublishedScene
from grass_jax.data.rasters import open_scene, reason

CORNERS = [0xFF0000 * (i >> 2) | 0xFF00 * (i >> 1 & 1) | 0xFF * (i & 1) for i in range(8)]  # of the cube of colours


@contextlib.contextmanager
def open_published(
    scene: PublishedScene,
    labels: Labels,
    layout: Layout,
    *,
    scratch: Path | None = None,
    verify: bool = False,
) -> Iterator[OpenedScene]:
    """Open an image with its mask.

    The masks of the ISPRS hold colours whose channels are 0 or 255. Two of them do not keep to this: Potsdam's 4_12 was
    compressed with loss and has 24,850 colours, and its 6_7 gives cars (252, 255, 0). So every channel counts as 255
    from 128 on. Magenta, which is then no class, does not count, and is counted in the log.

    Args:
        scene: what `find_published` found.
        labels: what its mask holds.
        layout: the bands to read of the image.
        scratch: folder for temporary files; the system's where None.
        verify: read all of both beforehand, so that what follows cannot fail.

    Yields:
        the scene; without a mask all of it is IGNORE.

    Raises:
        LabelError: in one sentence, if one of the two cannot be read or they do not fit together; nothing is made of a
            data set of which a part is missing.
    """
    with contextlib.ExitStack() as stack:
        with _named(scene.image, scratch, stack) as path:
            image = stack.enter_context(open_scene(path, layout=layout, verify=verify))
        mask = None
        if scene.mask is not None:
            opened = _open_colours if labels.by_colour else open_mask
            with _named(scene.mask, scratch, stack) as path:
                mask = stack.enter_context(opened(path, labels, name=scene.mask.name, verify=verify))
            if (mask.height, mask.width) != (image.height, image.width):
                raise LabelError(
                    f"{scene.mask.name} has {mask.width}x{mask.height} pixels and its image {scene.image.name} "
                    f"{image.width}x{image.height}, in {scene.mask.folder}: get both again, as they are published."
                )

        def ids(y0: int, y1: int) -> np.ndarray:
            found = np.full((y1 - y0, image.width), IGNORE, np.uint8) if mask is None else np.array(mask.rows(y0, y1))
            if image.valid is not None:
                found[~image.valid(y0, y1)] = IGNORE
            return found

        yield OpenedScene(image.height, image.width, image.rows, ids, image.georeference, image.valid)


@contextlib.contextmanager
def _named(member: Member, scratch: Path | None, stack: contextlib.ExitStack) -> Iterator[Path]:
    """Open a file for as long as the stack: whatever then happens to it is said in one sentence that names it.

    And nobody skips the file because of it.
    """
    path = member.folder / member.name
    try:
        path = stack.enter_context(member.open(scratch))
        yield path
    except MemoryError:
        raise
    except Exception as error:  # decoders answer a broken file with anything
        if isinstance(error, DamagedArchiveError) or (isinstance(error, OSError) and error.errno is not None):
            raise LabelError(str(error)) from error  # as it is: it names the archive, or what the disk lacks
        if isinstance(error, UnknownLabelError):
            why = str(error).partition(":")[0]
        elif isinstance(error, UnusableImageError):
            why = reason(error)
        else:
            cause = error.__cause__ or error.__context__ or error
            # Of a member, the path is that of a temporary copy.
            text = str(cause).replace(os.fspath(path), member.name).replace(path.name, PurePosixPath(member.name).name)
            why = reason(ValueError(text or type(cause).__name__))
        raise LabelError(f"{member.name} in {member.folder} cannot be used: {why}; get it again.") from error


@contextlib.contextmanager
def _open_colours(path: Path, labels: Labels, *, name: str, verify: bool) -> Iterator[Mask]:
    classes = np.array([labels.known[colour] for colour in CORNERS], np.uint8)
    with open_raster(path) as raster:
        kinds = {raster.dtypes[band] for band in range(min(raster.count, 3))}
        if raster.count < 3 or kinds != {"uint8"}:
            raise UnusableImageError(f"it has {raster.count} band(s) of {raster.dtypes[0]} and no colours of 8 bits")

        def corners(y0: int, y1: int) -> np.ndarray:
            red, green, blue = raster.read([1, 2, 3], window=row_window(raster, y0, y1)) >> 7
            return red << 2 | green << 1 | blue

        if verify:
            steps = range(0, raster.height, 512)
            strips = (corners(y, min(y + 512, raster.height)) for y in steps)
            counts = np.sum([np.bincount(strip.ravel(), minlength=8) for strip in strips], axis=0)
            if not counts[classes != IGNORE].sum():
                raise UnusableImageError("none of its pixels has the colour of a class")
            magenta = counts[CORNERS.index(0xFF00FF)]
            if magenta:
                logging.warning("%s: %d pixels are magenta, which is no class, and do not count.", name, magenta)
        yield Mask(raster.height, raster.width, lambda y0, y1: classes[corners(y0, y1)])
