"""The scenes of Potsdam, Vaihingen and LoveDA: found in a folder as their owners publish them."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from absl import logging

from grass_jax.data.published.archives import Member, list_members
from grass_jax.data.published.facts import Files, Published, facts_of, instructions, layout_of_published

NAMED = 5  # scenes named in a message before "and N more"


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
        ValueError: if what would hold a part cannot be read; if some of its images or masks are missing, which are then
            named, or others are there; or for settings that the data set does not know.
    """
    facts = facts_of(name)
    regions = _regions(name, region)
    if masks not in (*facts.masks, "none"):
        raise ValueError(f"{name} has the masks {', '.join(facts.masks)} and none, not {masks!r}.")
    highest = max(layout_of_published(name, numbers).numbers)
    wanted = {"images": tuple(files for files in facts.images if files.bands >= highest)}
    if masks != "none":
        wanted["masks"] = (facts.masks[masks],)
    files, found, unreadable = _list(facts, wanted, folder, scratch)
    seen = {scene for its in found.values() for scene in its}
    expected = {
        split: {each: _expected(by_region[each], f"{split}/{each}/".title(), seen) for each in regions}
        for split, by_region in facts.splits.items()
    }
    names = {split: [n for its, _ in by_region.values() for n in its] for split, by_region in expected.items()}
    absent = {split: [kind for kind, its in found.items() if its.keys().isdisjoint(names[split])] for split in names}
    _answer_for_absent(absent, name, wanted, unreadable, folder)
    scenes: dict[str, tuple[PublishedScene, ...]] = {}
    for split in (split for split, kinds in absent.items() if not kinds):
        for each, (its, total) in expected[split].items():
            archives = {kind: " or ".join(one.archives[split]) for kind, one in files.items()}
            part = f"of the part {split}{each and '/'}{each} of {name}"
            problem = _problem(found, its, total, part, archives, folder)
            if problem:
                raise ValueError(" ".join((*unreadable.values(), problem)))
        masks_of = found.get("masks", {})
        scenes[split] = tuple(PublishedScene(n, found["images"][n], masks_of.get(n)) for n in names[split])
    for closed, sentence in unreadable.items():
        kinds = [kind for kind, candidates in wanted.items() if _may_hold(closed, name, candidates, facts.splits)]
        used = [_place(found[kind][scene.name]) for kind in kinds for its in scenes.values() for scene in its]
        instead = f"The {' and '.join(kinds)} are taken from {_some(list(dict.fromkeys(used)), ' and ')}."
        logging.warning("%s %s", sentence, instead if kinds else "By its name nothing of it is needed now.")
    return scenes


def _answer_for_absent(
    absent: dict[str, list[str]],
    name: str,
    wanted: dict[str, tuple[Files, ...]],
    unreadable: dict[str, str],
    folder: Path,
) -> None:
    """Refuse a data set without a part to train on, or whose absent part may be in what cannot be read."""
    training = next(iter(absent))
    for split, kinds in absent.items():
        if not kinds:
            continue
        candidates = [files for kind in kinds for files in wanted[kind]]
        holders = [its for closed, its in unreadable.items() if _may_hold(closed, name, candidates, [split])]
        lack = f"{' and '.join(kinds)} of the part {split} of {name}"
        if holders:
            way = "" if split == training else f": to go on without that part, move it out of {folder}"
            raise ValueError(f"{' '.join(holders)} Without it the {lack} are missing{way}.")
        if split == training:
            splits = [each for each, its in absent.items() if its == kinds]
            parts = f"part{'s' if len(splits) > 1 else ''} {' and '.join(splits)}"
            lack = f"{facts_of(name).title}: the {' and '.join(kinds)} of its {parts} are not in {folder}:"
            advice = instructions(name, folder, [wanted[kind] for kind in kinds], splits)
            raise FileNotFoundError(" ".join((*unreadable.values(), lack, advice)))
        archives = " or ".join(wanted[kinds[0]][0].archives[split])
        logging.info("No %s in %s (%s): it is left out.", lack, folder, archives)


def _problem(
    found: dict[str, dict[str, Member]], names: list[str], total: int, part: str, archives: dict[str, str], folder: Path
) -> str:
    """What is missing of a part, or is too much; empty where all is there, and every image has its mask."""
    lacking = {kind: [n for n in names if n not in its] for kind, its in found.items()}
    if len(names) > total:  # of names that nobody knows one may be there instead of another
        single = [f"{n} has no {kind[:-1]}" for kind, its in lacking.items() for n in its]
        origin = next(iter(archives.values()))
        if single:
            problem = f"do not have the same names ({_some(single)}): get {origin} again."
            return f"The images and masks {part} in {folder} {problem}"
        kinds = " and ".join(f"{len(names)} {kind}" for kind in found)
        return f"{kinds} {part} are in {folder}, and {total} are published: remove what does not belong to {origin}."
    for kind, its in lacking.items():
        count = total - len(names) + len(its)
        if count:
            named = f" ({_some(its, count=count)})" if its else ""
            advice = f"they belong to {archives[kind]}, get that again."
            return f"{count} of the {total} {kind} {part} are missing in {folder}{named}: {advice}"
    return ""


def _some(names: list[str], last: str = ", ", count: int | None = None) -> str:
    more = (len(names) if count is None else count) - NAMED
    return ", ".join(names[:NAMED]) + f" and {more} more" if len(names) > NAMED else last.join(names)


def _place(member: Member) -> str:
    """The archive or folder in which a file lies, in messages."""
    if len(member.chain) > 1:
        return PurePosixPath(member.chain[-2]).name
    return os.fspath(Path(member.folder, member.name).parent)


def _may_hold(closed: str, name: str, candidates: Iterable[Files], splits: Iterable[str]) -> bool:
    """Whether an archive or a folder that cannot be read has the name of one that holds some of these files.

    A browser adds ` (1)` to names; everything may be in a folder or an archive with the name of the data set.
    """
    parts = PurePosixPath(closed).parts
    if closed.lower().endswith(".zip"):
        parts = parts[-1:]
    archives = {archive for files in candidates for split in splits for archive in files.archives[split]}
    stems = {re.sub(r"( \(\d+\))?(\.zip)?$", "", each.lower()) for each in parts}
    return bool(archives) and (not parts or not stems.isdisjoint({name, *(a.lower()[:-4] for a in archives)}))


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
) -> tuple[dict[str, Files], dict[str, dict[str, Member]], dict[str, str]]:
    """By kind, the first of its files that are there and these by scene; and sentences on what cannot be read."""
    chosen, found, unreadable = {}, {}, {}
    for kind, candidates in wanted.items():
        chosen[kind], found[kind] = candidates[0], {}
        for files in candidates:
            nested = {archive for archives in files.archives.values() for archive in archives}
            try:
                members, closed = list_members(folder, files.pattern, nested=nested, scratch=scratch)
            except (FileNotFoundError, NotADirectoryError):
                continue  # nothing of the data set is there
            unreadable.update(closed)
            for member in members:
                match = re.search(files.pattern, member.name, re.IGNORECASE)
                assert match
                found[kind].setdefault(facts.scene.format(*(group.title() for group in match.groups())), member)
            if members:
                chosen[kind] = files
                break
    return chosen, found, unreadable


def _expected(known: tuple[str, ...] | int, start: str, seen: set[str]) -> tuple[list[str], int]:
    """Names of the scenes that are expected, and their number."""
    if not isinstance(known, int):
        return list(known), len(known)
    return sorted((n for n in seen if n.startswith(start)), key=lambda n: (len(n), n)), known
