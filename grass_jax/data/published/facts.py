"""What is known of Potsdam, Vaihingen and LoveDA: classes, colours, splits, archives, owners and licences.

Classes, colours, splits and names of files are as the owners' pages and other readers of these archives have them, and
masks of Potsdam and of LoveDA were read. The archives themselves were not at hand. Known from others alone:

- names and folders inside the archives. So folders do not count but for Vaihingen, whose images and masks have the same
  names: images lie in `top/`, and masks under a name with `ground_truth` or `gts` or straight in the folder.
- that Vaihingen's archive of eroded masks for participants unpacks into a folder spelt `ISPRS_semantic_labeing_...`.
- that the ISPRS also hands out everything in one zip file, `Potsdam.zip` or `Vaihingen.zip`.
- the numbers by which LoveDA calls its images. So they are counted, and images and masks held against each other.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from grass_jax.data.labels import Labels
from grass_jax.data.layout import Layout


class Files(NamedTuple):
    """Files of a data set.

    Attributes:
        pattern: found in their names; its groups make the name of their scene.
        archives: by split, the zip files that hold them, the one to get first.
        bands: how many bands they have.
    """

    pattern: str
    archives: dict[str, tuple[str, ...]]
    bands: int = 3


class Published(NamedTuple):
    """What is known of a data set.

    Attributes:
        title: its name in messages.
        owner: whom it is from, and where.
        licence: under which terms.
        scene: what the groups of the files' patterns make.
        splits: by split, the one to train on first, and by region: the names of the scenes, or their number where the
            owner numbers them at will.
        labels: classes, what the masks hold for them, and display colours.
        rgb: numbers of the bands that are red, green and blue; empty where near infrared takes the place of one.
        images: files of images, those with the fewest bands first.
        masks: files of masks by kind.
        inside: a zip file in which the owner hands out the archives together; empty where there is none.
    """

    title: str
    owner: str
    licence: str
    scene: str
    splits: dict[str, dict[str, tuple[str, ...] | int]]
    labels: Labels
    rgb: tuple[int, ...]
    images: tuple[Files, ...]
    masks: dict[str, Files]
    inside: str = ""


def _tiles(rows: str, start: str = "top_potsdam_") -> tuple[str, ...]:
    """Names of scenes from `2_10-12`, a row and its first and last column."""
    spans = [re.fullmatch(r"(\d+_)?(\d+)(?:-(\d+))?", text) for text in rows.split()]
    found = [(span[1] or "", int(span[2]), int(span[3] or span[2])) for span in spans if span]
    return tuple(f"{start}{row}{column}" for row, first, last in found for column in range(first, last + 1))


_ISPRS = Labels(
    ("impervious surface", "building", "low vegetation", "tree", "car", "clutter"),
    ("#FFFFFF", "#0000FF", "#00FFFF", "#00FF00", "#FFFF00", "#FF0000"),
    ignore=("#000000", "#FF00FF"),  # the boundary, and the corner that is no class
)
_ISPRS_OWNER = "the ISPRS (https://www.isprs.org/resources/datasets/benchmarks/UrbanSemLab/2d-sem-label-{}.aspx)"
_AREAS = "top_mosaic_09cm_area"
_VAIHINGEN = "ISPRS_semantic_labeling_Vaihingen"


def _both(*archives: str, participants: str = "") -> dict[str, tuple[str, ...]]:
    """Archives of both parts, and one of the training part alone."""
    return {"train": (*archives, *([participants] if participants else [])), "test": archives}


DATASETS = {
    "potsdam": Published(
        title="Potsdam (ISPRS 2D Semantic Labeling, 38 tiles of 6000x6000 pixels at 5 cm)",
        owner=_ISPRS_OWNER.format("potsdam"),
        licence="for research, with acknowledgement of the ISPRS and of BSF Swissphoto, who provided the images",
        scene="top_potsdam_{}",
        splits={
            # the split of the benchmark: the labels of the first were given to the participants
            "train": {"": _tiles("2_10-12 3_10-12 4_10-12 5_10-12 6_7-12 7_7-12")},
            "test": {"": _tiles("2_13-14 3_13-14 4_13-15 5_13-15 6_13-15 7_13")},
        },
        labels=_ISPRS,
        rgb=(1, 2, 3),
        images=(
            Files(r"(?:^|/)top_potsdam_(\d+_\d+)_RGB\.tif$", _both("2_Ortho_RGB.zip")),
            Files(r"(?:^|/)top_potsdam_(\d+_\d+)_RGBIR\.tif$", _both("4_Ortho_RGBIR.zip"), bands=4),
        ),
        masks={
            "full": Files(
                r"(?:^|/)top_potsdam_(\d+_\d+)_label\.tif$",
                _both("5_Labels_all.zip", participants="5_Labels_for_participants.zip"),
            ),
            "eroded": Files(
                r"(?:^|/)top_potsdam_(\d+_\d+)_label_noBoundary\.tif$",
                _both("5_Labels_all_noBoundary.zip", participants="5_Labels_for_participants_no_Boundary.zip"),
            ),
        },
        inside="Potsdam.zip",
    ),
    "vaihingen": Published(
        title="Vaihingen (ISPRS 2D Semantic Labeling, 33 areas in near infrared, red and green at 9 cm)",
        owner=_ISPRS_OWNER.format("vaihingen"),
        licence="for research, with acknowledgement of the ISPRS and of the DGPF, who provided the images",
        scene=_AREAS + "{}",
        splits={
            "train": {"": _tiles("1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37", _AREAS)},
            "test": {"": _tiles("2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38", _AREAS)},
        },
        labels=_ISPRS,
        rgb=(),  # near infrared, red, green
        # An image and its full mask have the same name: the folder or the archive tells which is which.
        images=(Files(rf"(?:^|/)top/{_AREAS}(\d+)\.tif$", _both(f"{_VAIHINGEN}.zip")),),
        masks={
            "full": Files(
                rf"(?:^|(?:ground_truth|gts)[^/]*/(?:(?!top/)[^/]+/)*){_AREAS}(\d+)\.tif$",
                _both(f"{_VAIHINGEN}_ground_truth_COMPLETE.zip", participants=f"{_VAIHINGEN}.zip"),
            ),
            "eroded": Files(
                rf"(?:^|/){_AREAS}(\d+)_noBoundary\.tif$",
                _both(
                    f"{_VAIHINGEN}_ground_truth_eroded_COMPLETE.zip",
                    participants=f"{_VAIHINGEN}_ground_truth_eroded_for_participants.zip",
                ),
            ),
        },
        inside="Vaihingen.zip",
    ),
    "loveda": Published(
        title="LoveDA (1024x1024 pixels at 30 cm, urban and rural)",
        owner="Zenodo (https://zenodo.org/records/5706578)",
        licence="CC BY-NC-SA 4.0",
        scene="{}/{}/{}",
        splits={"train": {"urban": 1156, "rural": 1366}, "val": {"urban": 677, "rural": 992}},  # masks of Test are kept
        labels=Labels(
            ("background", "building", "road", "water", "barren", "forest", "agriculture"),
            (1, 2, 3, 4, 5, 6, 7),
            ignore=(0,),  # no data
            colours=("#FFFFFF", "#FF0000", "#FFFF00", "#0000FF", "#9F81B7", "#00FF00", "#FFC380"),
        ),
        rgb=(1, 2, 3),
        images=(
            Files(
                r"(?:^|/)(Train|Val)(?:\.zip)?/(Urban|Rural)/images_png/(\d+)\.png$",
                {"train": ("Train.zip",), "val": ("Val.zip",)},
            ),
        ),
        masks={
            "full": Files(
                r"(?:^|/)(Train|Val)(?:\.zip)?/(Urban|Rural)/masks_png/(\d+)\.png$",
                {"train": ("Train.zip",), "val": ("Val.zip",)},
            )
        },
    ),
}


def _regions(name: str) -> list[str]:
    known = [region for region in next(iter(DATASETS[name].splits.values())) if region]
    return [f"{name}/{region}" for region in (*known, "all")] if known else [name]


# As configurations name them: with a region where there are several, or all of them.
PUBLISHED = tuple(each for name in DATASETS for each in _regions(name))


def layout_of_published(name: str, numbers: Sequence[int] = ()) -> Layout:
    """Which bands of a data set are read.

    Args:
        name: of the data set.
        numbers: of the bands, from 1; empty for the first three.

    Returns:
        the layout.

    Raises:
        ValueError: if there is no such data set or band.
    """
    facts = facts_of(name)
    numbers = tuple(numbers) or (1, 2, 3)
    most = max(files.bands for files in facts.images)
    if not set(numbers) <= set(range(1, most + 1)) or len(set(numbers)) < len(numbers):
        raise ValueError(f"{name} has the bands 1 to {most}, not {numbers}: choose some of them, each once.")
    return Layout(numbers, "uint8", facts.rgb if set(facts.rgb) <= set(numbers) else ())


def facts_of(name: str) -> Published:
    """What is known of a data set.

    Raises:
        ValueError: if there is no such data set.
    """
    if name not in DATASETS:
        raise ValueError(f"There is no published data set {name!r}: use {', '.join(DATASETS)}.")
    return DATASETS[name]


def instructions(
    name: str, folder: Path | str, wanted: Sequence[Sequence[Files]] = (), splits: Sequence[str] = ()
) -> str:
    """What to get of a data set, from whom, under which licence, and where to put it.

    Args:
        name: of the data set.
        folder: where to put it.
        wanted: for each kind of files, those that serve; images and full masks where empty.
        splits: the parts to get; all where empty.

    Returns:
        the end of a sentence.
    """
    facts = facts_of(name)
    archives = []
    for first, *others in wanted or (facts.images, (facts.masks["full"],)):
        for split in splits or facts.splits:
            also = f" (or {others[-1].archives[split][0]} for all bands)" if others else ""
            archives.append(first.archives[split][0] + also)
    inside = f" (also inside {facts.inside})" if facts.inside else ""
    return (
        f"get {' and '.join(dict.fromkeys(archives))}{inside} from {facts.owner}, licence: {facts.licence}; put the "
        f"zip files as they are, or unpacked, into {folder}."
    )
