"""The scenes of Potsdam, Vaihingen and LoveDA: found in a folder as their owners publish them, and opened."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from grass_jax.data.archives import DamagedArchiveError, Member, list_members
from grass_jax.data.geotiff import open_raster, row_window
from grass_jax.data.labels import IGNORE, Labels, UnknownLabelError
from grass_jax.data.layout import Layout
from grass_jax.data.masks import Mask, open_mask
from grass_jax.data.pairs import LabelError, OpenedScene
from grass_jax.data.pictures import UnusableImageError
from grass_jax.data.published import Files, Published, facts_of, instructions, layout_of_published
from grass_jax.data.rasters import open_scene, reason

NAMED = 5  # scenes named in a message before "and N more"
CORNERS = [0xFF0000 * (i >> 2) | 0xFF00 * (i >> 1 & 1) | 0xFF * (i & 1) for i in range(8)]  # of the cube of colours


class PublishedScene(NamedTuple):
    """A scene: its name, its image, and its mask where masks are asked for."""

    name: str
    image: Member
    mask: Member | None


def find_published(
    name: str,
    folder: Path,
    *,
    numbers: Sequence[int] = (),
    masks: str = "full",
    region: str = "",
    scratch: Path | None = None,
) -> dict[str, tuple[PublishedScene, ...]]:
    """Find the scenes of a data set in a folder, and make sure that none is missing.

    Args:
        name: `potsdam`, `vaihingen` or `loveda`.
        folder: with the archives, as they are or unpacked.
        numbers: of the bands to read, from 1; empty for the first three.
        masks: `full`, `eroded` (where the pixels around boundaries do not count; of the ISPRS) or `none`.
        region: `urban`, `rural` or `all` of LoveDA; empty for all.
        scratch: folder for temporary files; the system's where None.

    Returns:
        the scenes of each split, that for training first; without the other where none of its images or none of its
        masks is there.

    Raises:
        FileNotFoundError: if the images or the masks to train on are not there; says what to get and where to put it.
        ValueError: if some of them are missing, which are then named; or for settings that the data set does not know.
    """
    facts = facts_of(name)
    regions = _regions(name, region)
    if masks not in (*facts.masks, "none"):
        raise ValueError(f"{name} has the masks {', '.join(facts.masks)} and none, not {masks!r}.")
    highest = max(layout_of_published(name, numbers).numbers)
    wanted = {"images": tuple(files for files in facts.images if files.bands >= highest)}
    if masks != "none":
        wanted["masks"] = (facts.masks[masks],)
    files, found, damaged = _list(facts, wanted, folder, scratch)
    scenes: dict[str, tuple[PublishedScene, ...]] = {}
    for split, by_region in facts.splits.items():
        expected = [
            _expected(by_region[each], f"{split}/{each}/".title(), {n for kind in found.values() for n in kind})
            for each in regions
        ]
        names, total = [n for each, _ in expected for n in each], sum(count for _, count in expected)
        lacking = {kind: [n for n in names if n not in its] for kind, its in found.items()}
        absent = [kind for kind, its in lacking.items() if len(its) == len(names)]
        if absent and not scenes:
            advice = instructions(name, folder, masks)
            raise FileNotFoundError(
                " ".join((*damaged, f"{facts.title}: its {absent[0]} are not in {folder}:", advice))
            )
        if absent:
            its = " or ".join(files[absent[0]].archives[split])
            logging.info("No %s of the part %s of %s in %s (%s): it is left out.", absent[0], split, name, folder, its)
            continue
        for kind, its in lacking.items():
            count = total - len(names) + len(its)
            if count > 0:
                named = ", ".join(its[:NAMED]) + (f" and {count - NAMED} more" if len(its) > NAMED else "")
                archive = " or ".join(files[kind].archives[split])
                sentence = (
                    f"{count} of the {total} {kind} of the part {split} of {name} are missing in {folder}"
                    f"{f' ({named})' if named else ''}: they belong to {archive}, get that again."
                )
                raise ValueError(" ".join((*damaged, sentence)))
        masks_of = found.get("masks", {})
        scenes[split] = tuple(PublishedScene(n, found["images"][n], masks_of.get(n)) for n in names)
    for sentence in damaged:
        logging.warning("%s Nothing of it is needed now.", sentence)
    return scenes


def _regions(name: str, region: str) -> list[str]:
    known = list(next(iter(facts_of(name).splits.values())))
    if region in ("", *known):
        return [region] if region else known
    if region == "all" and len(known) > 1:
        return known
    among = f"use {', '.join(known)} or all" if len(known) > 1 else "leave it out"
    raise ValueError(f"{name} has no region {region!r}: {among}.")


def _list(
    facts: Published, wanted: dict[str, tuple[Files, ...]], folder: Path, scratch: Path | None
) -> tuple[dict[str, Files], dict[str, dict[str, Member]], list[str]]:
    """By kind, the first of its files that are there and these by scene; and sentences on archives that are damaged."""
    chosen, found, damaged = {}, {}, {}
    for kind, candidates in wanted.items():
        chosen[kind], found[kind] = candidates[0], {}
        for files in candidates if folder.is_dir() else ():
            nested = {archive for archives in files.archives.values() for archive in archives}
            members, unreadable = list_members(folder, files.pattern, nested=nested, scratch=scratch)
            damaged.update(dict.fromkeys(unreadable))
            for member in members:
                match = re.search(files.pattern, member.name, re.IGNORECASE)
                assert match
                found[kind].setdefault(facts.scene.format(*(group.title() for group in match.groups())), member)
            if members:
                chosen[kind] = files
                break
    return chosen, found, list(damaged)


def _expected(known: tuple[str, ...] | int, start: str, seen: set[str]) -> tuple[list[str], int]:
    """Names of the scenes that are expected, and their number."""
    if not isinstance(known, int):
        return list(known), len(known)
    return sorted((n for n in seen if n.startswith(start)), key=lambda n: (len(n), n)), known


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
        with _named(scene.image):
            path = stack.enter_context(scene.image.open(scratch))
            image = stack.enter_context(open_scene(path, layout=layout, verify=verify))
        mask = None
        if scene.mask is not None:
            with _named(scene.mask):
                path = stack.enter_context(scene.mask.open(scratch))
                opened = _open_colours if labels.by_colour else open_mask
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
def _named(member: Member) -> Iterator[None]:
    """Whatever happens to a file is said in one sentence that names it, and nobody skips the file because of it."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # decoders answer a broken file with anything
        if isinstance(error, DamagedArchiveError) or (isinstance(error, OSError) and error.errno is not None):
            raise LabelError(str(error)) from error  # as it is: it names the archive, or what the disk lacks
        why = str(error).partition(":")[0] if isinstance(error, UnknownLabelError) else reason(error)
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
