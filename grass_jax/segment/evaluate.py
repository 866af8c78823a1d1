"""Scores a segmentation network on whole scenes: every pixel counts once, in one confusion matrix."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from grass_jax.bands import RGB, Bands, picture
from grass_jax.config import ConfigError
from grass_jax.data.labelled import LabelledScene, OpenedScene
from grass_jax.data.labels import IGNORE
from grass_jax.report import maps
from grass_jax.report.progress import counter
from grass_jax.segment.boundary import boundary_counts, boundary_f1
from grass_jax.segment.metrics import area_scores, make_confusion, scores
from grass_jax.segment.model import Forward
from grass_jax.segment.windows import sliding
from grass_jax.sharding import local_mesh, sum_over_processes

PICTURE = 512  # largest side of a crop of a scene that is kept for the panels, pixels


class Picture(NamedTuple):
    """A crop of a scene for the panels: image (h, w, 3) uint8, truth and prediction (h, w) uint8 ids."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


class Evaluation(NamedTuple):
    """What was measured.

    Attributes:
        scores: for `summary.json`: the global figures, `areas` (the mean over groups of scenes) and `boundary`.
        matrix: (k, k) int64 over all scenes, rows the truth.
        pictures: of the first scenes of this process.
    """

    scores: dict[str, Any]
    matrix: np.ndarray
    pictures: list[Picture]


def evaluate(
    forward: Forward,
    scenes: Sequence[LabelledScene],
    classes: Sequence[str],
    *,
    window: int,
    overlap: float,
    batch_size: int,
    bands: Bands = RGB,
    boundary: int = 0,
    without: Sequence[str] = (),
    pictures: int = 0,
    title: str = "",
) -> Evaluation:
    """Predicts whole scenes with blended windows and compares them with their masks.

    The processes of a job share the scenes; every one of them gets the same figures.

    Args:
        forward: from `make_forward`, on the mesh of this process's own devices.
        scenes: with masks.
        classes: k names.
        window: side of a window, pixels.
        overlap: share of a window that it has in common with the next one.
        batch_size: windows at once; rounded up to a multiple of the devices.
        bands: of the scenes, for the pictures.
        boundary: tolerance of the boundary F1 in pixels; 0 leaves it out.
        without: classes for `miou_without`.
        pictures: number of scenes of which a crop is kept.
        title: of the progress line; empty shows none.

    Returns:
        The figures.

    Raises:
        ConfigError: there is no scene, or no labelled pixel in them.
    """
    if not scenes:
        raise ConfigError("There is no scene to score: let config.data.test choose some.")
    k = len(classes)
    confusion = make_confusion(k, local_mesh())
    own = list(range(len(scenes)))[jax.process_index() :: jax.process_count()]
    matrices, boundaries = np.zeros((len(scenes), k, k), np.int64), np.zeros((k, 4), np.int64)
    kept: list[Picture] = []
    shown = bool(title) and jax.process_index() == 0
    with counter(total=len(own), desc=title, unit="scene", disable=not shown) as progress:
        for index, opened, prediction in predict_scenes(
            forward, [scenes[i] for i in own], window=window, overlap=overlap, batch_size=batch_size
        ):
            truth = opened.mask(0, opened.height)
            matrices[own[index]] = confusion(truth, prediction)
            if boundary:
                boundaries += boundary_counts(truth, prediction, k, boundary)
            if len(kept) < pictures:
                kept.append(_picture(scenes[own[index]].name, opened, truth, prediction, bands))
            progress.update()
    matrices = sum_over_processes(matrices)
    total = matrices.sum(0)
    if not total.any():
        raise ConfigError(
            f"None of the {len(scenes)} scenes has a labelled pixel that counts: check the masks, ignore and split."
        )
    groups = list(dict.fromkeys(scene.group for scene in scenes))
    of_area = {g: matrices[[scene.group == g for scene in scenes]].sum(0) for g in groups}
    found = {"scenes": len(scenes), **scores(total, classes, without), "areas": area_scores(of_area, classes, without)}
    if boundary:
        found["boundary"] = {"tolerance": boundary, **boundary_f1(sum_over_processes(boundaries), classes)}
    return Evaluation(found, total, kept)


def check_class_names(without: Sequence[str], classes: Sequence[str]) -> None:
    """Raises ConfigError where `config.evaluate.without` names no class; known before any training."""
    for name in without:
        if name not in classes:
            raise ConfigError(f"config.evaluate.without must name some of {', '.join(classes)}, not {name!r}.")


def predict_scenes(
    forward: Forward, scenes: Sequence[LabelledScene], *, window: int, overlap: float, batch_size: int
) -> Iterator[tuple[int, OpenedScene, np.ndarray]]:
    """Predicts scenes one after the other; yields number, open scene and (h, w) uint8 class ids of each."""
    devices = len(jax.local_devices())
    opened: dict[int, OpenedScene] = {}
    with contextlib.ExitStack() as everything:
        stacks: dict[int, contextlib.ExitStack] = {}

        def opening() -> Iterator[OpenedScene]:
            for i, scene in enumerate(scenes):
                stacks[i] = everything.enter_context(contextlib.ExitStack())
                opened[i] = stacks[i].enter_context(scene.open())
                yield opened[i]

        current, prediction = -1, np.zeros((0, 0), np.uint8)
        batch_size = -(-batch_size // devices) * devices
        for strip in sliding(forward, opening(), window=window, overlap=overlap, batch_size=batch_size):
            if strip.scene != current:
                if current >= 0:
                    yield current, opened.pop(current), prediction
                    stacks.pop(current).close()
                current = strip.scene
                prediction = np.zeros((opened[current].height, opened[current].width), np.uint8)
            rows, columns = strip.logits.shape[:2]
            prediction[strip.y0 : strip.y0 + rows, strip.x0 : strip.x0 + columns] = strip.logits.argmax(-1)
        if current >= 0:
            yield current, opened.pop(current), prediction


def _picture(name: str, opened: OpenedScene, truth: np.ndarray, prediction: np.ndarray, bands: Bands) -> Picture:
    """The crop whose labelled pixels are the most mixed, of a grid of crops."""
    height, width = truth.shape
    size_y, size_x = min(PICTURE, height), min(PICTURE, width)
    corners = [
        (y, x)
        for y in range(0, height - size_y + 1, max(1, size_y // 2))
        for x in range(0, width - size_x + 1, max(1, size_x // 2))
    ]

    def variety(corner: tuple[int, int]) -> float:
        part = truth[corner[0] : corner[0] + size_y, corner[1] : corner[1] + size_x]
        counts = np.bincount(part.ravel(), minlength=IGNORE + 1)[:IGNORE]
        shares = counts[counts > 0] / part.size
        return float(-(shares * np.log(shares)).sum())

    y, x = max(corners, key=variety)
    rows, columns = slice(y, y + size_y), slice(x, x + size_x)
    image = picture(opened.rows(y, y + size_y)[:, columns], bands)
    return Picture(name, image, truth[rows, columns], prediction[rows, columns])


def draw_evaluation(
    folder: Path, evaluation: Evaluation, classes: Sequence[str], colours: np.ndarray, *, title: str
) -> None:
    """Draws the panels and the confusion matrix of a scored network."""
    try:
        maps.confusion(folder / "confusion.png", evaluation.matrix, classes)
        if evaluation.pictures:
            names, images, truths, predictions = zip(*evaluation.pictures, strict=True)
            path = folder / "predictions.png"
            maps.panels(path, images, truths, predictions, classes, colours, title, names=names)
    except OSError as error:  # a full disk must not cost the figures
        logging.warning("The pictures of the test could not be written: %s", error)


def log_scores(part: str, found: dict[str, Any]) -> None:
    """Says the figures in a few lines."""
    areas = found["areas"]
    logging.info(
        "%s, %d scenes: mIoU %s (mean over %d areas %s), mean F1 %s, overall accuracy %s, kappa %s.",
        *(part, found["scenes"], _text(found["miou"]), areas["areas"], _text(areas["miou"]), _text(found["mean_f1"])),
        *(_text(found["overall_accuracy"]), _text(found["kappa"])),
    )
    logging.info("%s, IoU: %s.", part, ", ".join(f"{name} {_text(v)}" for name, v in found["iou"].items()))
    for name, value in found["miou_without"].items():
        logging.info("%s, mIoU without %s: %s.", part, name, _text(value))
    if "boundary" in found:
        boundary = found["boundary"]
        logging.info("%s, boundary F1 at %d pixels: %s.", part, boundary["tolerance"], _text(boundary["mean"]))
    if found["absent"]:
        logging.info(
            "%s: left out because neither truth nor prediction has them: %s.", part, ", ".join(found["absent"])
        )


def _text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
