"""Damaged files through the readers, by the functions that the program itself opens them with.

Each reader takes numbers of cases and says of each what became of it; a case is made again from its number alone.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import mutations
import numpy as np
import parents
from absl import logging as absl_logging

READ, REFUSED, SKIPPED, FAULT = "read", "refused in one sentence", "skipped with a note", "FAULT"
Outcome = tuple[str, str]  # one of these, and what was said
LONGEST = 800  # letters of a sentence


class Notes(logging.Handler):
    """What the log has said since it was last asked."""

    def __init__(self):
        super().__init__()
        self.said: list[str] = []
        absl_logging.get_absl_logger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps what a record says."""
        self.said.append(record.getMessage())

    def take(self) -> list[str]:
        """The messages since the last call."""
        said, self.said = self.said, []
        return said


def rng_of(reader: str, case: int) -> mutations.Rng:
    return np.random.default_rng([case, *reader.encode()])


def refused(error: BaseException, *named: str, kinds: tuple[type, ...] = (ValueError, OSError)) -> Outcome:
    """Whether an error is one that the program shows, in one sentence that names what it is about."""
    words = str(error)
    if not isinstance(error, kinds) or isinstance(error, UnicodeError | json.JSONDecodeError):
        return FAULT, f"{type(error).__name__}: {words[:500]}"
    return judged(REFUSED, words) if any(name in words for name in named) else (FAULT, f"names no file: {words[:500]}")


def judged(outcome: str, words: str) -> Outcome:
    """The outcome, or a fault where what was said is no sentence."""
    if not words.strip() or not words.isprintable() or "Traceback" in words or len(words) > LONGEST:
        return FAULT, f"no sentence: {words[:500]!r}"
    return outcome, words


def place(path: Path, content: bytes, rng: mutations.Rng) -> None:
    """Writes a file, or now and then a folder, a link to nowhere or a pipe in its place."""
    what = rng.random()
    if what < 0.004:
        path.mkdir()
    elif what < 0.008:
        path.symlink_to(path.parent / "nowhere")
    elif what < 0.012:
        os.mkfifo(path)
    else:
        path.write_bytes(content)


def _damaged(files: Sequence[parents.File], rng: mutations.Rng) -> parents.File:
    suffix, data = files[int(rng.integers(len(files)))]
    return suffix, mutations.mutate(data, suffix, rng, [content for _, content in files])


def images(kind: Callable[[], list[parents.File]]) -> Callable:
    """Images of one layout in a folder with good ones, prepared as for pretraining."""

    def run(folder: Path, reader: str, cases: Sequence[int], notes: Notes) -> dict[int, Outcome]:
        from grass_jax.data.source import open_tiles

        files, home = kind(), folder / "images"
        home.mkdir()
        good = [f"{letter}{i}{files[i][0]}" for letter in "amz" for i in range(len(files))]
        for i, name in enumerate(good):
            (home / name).write_bytes(files[i % len(files)][1])
        names = {}
        for case in cases:
            rng = rng_of(reader, case)
            suffix, data = _damaged(files, rng)
            names[case] = f"case{case}{suffix}"
            place(home / names[case], data, rng)
        source = open_tiles("image_folder", path=home, tile_size=32, data_dir=folder / "tfds")
        tiles = [source[i] for i in range(len(source))]
        for name in good:
            own = [
                tile["image"]
                for tile, (file, *_) in zip(tiles, source.positions, strict=True)
                if source.files[file] == name
            ]
            assert len(own) == 4, f"of the good file {name} {len(own)} tiles are left"
            assert all(tile.shape == tiles[0]["image"].shape for tile in own)
        lines = [line.strip() for said in notes.take() for line in said.splitlines()]
        found = {}
        for case, name in names.items():
            why = [line for line in lines if line.startswith(f"{name} (")]
            if name in source.files:
                found[case] = READ, ""
            elif (home / name).is_dir():
                found[case] = SKIPPED, "a folder is none of the images"
            else:
                found[case] = judged(SKIPPED, why[0]) if why else (FAULT, "not read, and no note says why")
        return found

    return run


def _one_by_one(run: Callable) -> Callable:
    """A reader that takes one file at a time."""

    def each(folder: Path, reader: str, cases: Sequence[int], notes: Notes) -> dict[int, Outcome]:
        found = {}
        for case in cases:
            own = folder / str(case)
            own.mkdir()
            found[case] = run(own, rng_of(reader, case), notes)
            shutil.rmtree(own)
        return found

    return each


def _scenes(folder: Path, notes: Notes, name: str, **options) -> Outcome:
    """Opens the labelled images good and case, and reads all of those that are left."""
    from grass_jax.data.labelled import open_labelled
    from grass_jax.data.scenes import open_scenes

    try:
        if options.pop("prepared", False):
            tiles = open_labelled(
                "segmentation_folder", path=folder, tile_size=32, data_dir=folder / "tfds", **options
            ).train
            files = set(tiles.files)
            assert all(tiles[i]["mask"].shape == (32, 32) for i in range(len(tiles)))
        else:
            scenes = open_scenes(folder, **options)
            files = {scene.name for scene in scenes}
            for scene in scenes:
                with scene.open() as opened:
                    assert opened.mask(0, opened.height).shape == opened.rows(0, opened.height).shape[:2]
    except Exception as error:
        return refused(error, name)
    assert "good.tif" in files, "the good image is lost"
    if "case.tif" in files:
        return READ, ""
    why = [line for said in notes.take() for line in said.splitlines() if line.strip().startswith("case.tif (")]
    return judged(SKIPPED, why[0]) if why else (FAULT, "not read, and no note says why")


def _labelled_folder(folder: Path) -> Path:
    image = parents.tiff(parents.pixels()[..., :3])
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for name in ("good", "case"):
        (folder / "images" / f"{name}.tif").write_bytes(image)
    return folder / "masks"


@_one_by_one
def masks(folder: Path, rng: mutations.Rng, notes: Notes) -> Outcome:
    from grass_jax.data.labels import Labels

    by_colour = rng.random() < 0.4
    files, home = parents.masks(by_colour), _labelled_folder(folder)
    (home / f"good{files[0][0]}").write_bytes(files[0][1])
    suffix, data = _damaged(files, rng)
    place(home / f"case{suffix}", data, rng)
    values = {"values": parents.HEX, "ignore": ("#000000",)} if by_colour else {"ignore": (255,)}
    labels = Labels(("road", "tree", "car"), **values)
    return _scenes(folder, notes, f"case{suffix}", labels=labels, prepared=rng.random() < 0.04)


@_one_by_one
def vectors(folder: Path, rng: mutations.Rng, notes: Notes) -> Outcome:
    from grass_jax.data.labels import Labels

    files, home = parents.vectors(), _labelled_folder(folder)
    (home / "good.geojson").write_bytes(dict(files)[".geojson"][".geojson"])
    suffix, parts = files[int(rng.integers(len(files)))]
    hurt = suffix if rng.random() < 0.5 else str(rng.choice(sorted(parts)))
    others = [content for _, its in files for content in its.values()]
    for part, content in parts.items():
        if part == hurt:
            place(home / f"case{part}", mutations.mutate(content, part, rng, others), rng)
        else:
            (home / f"case{part}").write_bytes(content)
    labels = Labels(("road", "tree", "car"), background="road")
    return _scenes(folder, notes, f"case{suffix}", labels=labels, attribute="class")


@_one_by_one
def tables(folder: Path, rng: mutations.Rng, notes: Notes) -> Outcome:
    from grass_jax.data.splits import group_of

    good, files = parents.tables(), [f"a{i}.png" for i in range(8)]
    bad = parents.damaged_texts()
    data = bad[int(rng.integers(len(bad)))] if rng.random() < 0.1 else good[int(rng.integers(len(good)))]
    path = folder / "groups.csv"
    path.write_bytes(data if data in bad else mutations.mutate(data, ".csv", rng, good + bad))
    try:
        assert len(group_of(files, [str(path)])) == 8
    except Exception as error:
        return refused(error, "groups.csv", *files)
    return READ, ""


def label_lists(folder: Path, reader: str, cases: Sequence[int], notes: Notes) -> dict[int, Outcome]:
    """Lists of labelled tiles of one prepared folder."""
    from grass_jax.data.budget import read_labels, write_labels
    from grass_jax.data.source import open_tiles

    home, path, found = folder / "images", folder / "labels.txt", {}
    home.mkdir()
    for i in range(3):
        (home / f"a{i}.png").write_bytes(parents.picture(parents.pixels()[..., :3]))
    source = open_tiles("image_folder", path=home, tile_size=32, stride=16, data_dir=folder / "tfds")
    write_labels(path, source, np.arange(len(source)))
    good, bad = path.read_bytes(), parents.damaged_texts()
    for case in cases:
        rng = rng_of(reader, case)
        path.write_bytes(mutations.mutate(good, ".txt", rng, [good, *bad]))
        try:
            assert len(read_labels(path, source))
            found[case] = READ, ""
        except Exception as error:
            found[case] = refused(error, "labels.txt")
    return found


def _archive(folder: Path, rng: mutations.Rng) -> Path:
    """A damaged archive in a folder of its own, deep enough for names that climb to end in what is looked at."""
    home = folder / "a" / "b" / "c" / "d"
    home.mkdir(parents=True)
    files = parents.archives()
    data = files[int(rng.integers(len(files)))]
    if rng.random() < 0.9:
        data = mutations.mutate(data, ".zip", rng, files)
    place(home / "Train.zip", data, rng)
    return home


def _strays(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name not in ("tfds", "scratch"))


@_one_by_one
def archive_members(folder: Path, rng: mutations.Rng, notes: Notes) -> Outcome:
    from grass_jax.data.published.archives import list_members

    home, scratch = _archive(folder, rng), folder / "scratch"
    before, outcome = _strays(folder), (READ, "")
    members, unreadable = list_members(home, r"/images_png/\d+\.png$", nested=["train.zip"], scratch=scratch)
    for sentence in unreadable.values():
        outcome = judged(SKIPPED, sentence)
    for member in members:
        try:
            with member.open(scratch) as path:
                assert path.is_relative_to(scratch), f"{path} lies outside"
                assert not path.is_symlink(), "a link was made"
                path.read_bytes()
        except Exception as error:
            outcome = refused(error, "Train.zip") if outcome[0] != FAULT else outcome
    assert _strays(folder) == before, "files lie outside of the folder for temporary files"
    return outcome


@_one_by_one
def published(folder: Path, rng: mutations.Rng, notes: Notes) -> Outcome:
    from grass_jax.data.published import facts, sets

    facts.DATASETS["loveda"] = facts.DATASETS["loveda"]._replace(
        splits={"train": {"urban": 1, "rural": 1}, "val": {"urban": 1, "rural": 1}}
    )
    home = _archive(folder, rng)
    before = _strays(folder)
    try:
        source = sets.published_tiles("loveda", home, tile_size=32, masks="full", data_dir=folder / "tfds")
        assert all(source[i]["image"].shape == (32, 32, 3) for i in range(len(source)))
        outcome = READ, ""
    except Exception as error:
        outcome = refused(error, "Train.zip", str(home))
    shutil.rmtree(folder / "tfds", ignore_errors=True)
    assert _strays(folder) == before, "files lie outside of the folder of the data sets"
    return outcome
