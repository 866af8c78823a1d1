"""Scores a segmentation network on whole scenes: every pixel counts once, in one confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from grass_jax.bands import RGB, Bands, picture
from grass_jax.config import ConfigError
from grass_jax.data.faults import DataError
from grass_jax.data.labelled import LabelledScene, OpenedScene
from grass_jax.data.labels import IGNORE
from grass_jax.report import maps
from grass_jax.report.log import write_json
from grass_jax.report.progress import counter
from grass_jax.segment.boundary import boundary_counts, boundary_f1
from grass_jax.segment.class_ids import predict_scenes
from grass_jax.segment.metrics import area_scores, make_confusion, scores
from grass_jax.segment.model import Forward
from grass_jax.segment.windows import PANEL
from grass_jax.sharding import in_all, local_mesh, sum_over_processes

PICTURE = 512  # largest side of a crop of a scene that is kept for the panels, pixels
BATCH_BYTES = 2**27  # of the logits of several heads, of the windows that are at once on the devices
ROW_BYTES = 2**28  # of the same, of a row of windows that is being blended


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
        by_scene: group and (k, k) int64 matrix of every scene by its name; of scenes with one name the second is called
            `name (2)`, and so on.
        pictures: of the first scenes of this process.
    """

    scores: dict[str, Any]
    matrix: np.ndarray
    by_scene: dict[str, tuple[str, np.ndarray]]
    pictures: list[Picture]


def evaluate(forward: Forward, scenes: Sequence[LabelledScene], classes: Sequence[str], **settings: Any) -> Evaluation:
    """Predicts whole scenes with blended windows and compares them with their masks.

    Args:
        forward: from `make_forward`, on the mesh of this process's own devices: images -> logits (n, t, t, k).
        scenes: with masks.
        classes: k names.
        **settings: those of `evaluate_heads`.

    Returns:
        The figures, the same in every process of a job.

    Raises:
        ConfigError: there is no scene, or no labelled pixel in them.
    """
    return evaluate_heads(forward, scenes, classes, heads=1, **settings)[0]


def evaluate_heads(
    forward: Forward,
    scenes: Sequence[LabelledScene],
    classes: Sequence[str],
    *,
    heads: int,
    window: int,
    overlap: float,
    batch_size: int,
    bands: Bands = RGB,
    boundary: int = 0,
    without: Sequence[str] = (),
    pictures: int = 0,
    title: str = "",
) -> list[Evaluation]:
    """Scores several heads of one network in one pass over the scenes.

    The processes of a job share the scenes; every one of them gets the same figures.

    Args:
        forward: from `make_forward`, on the mesh of this process's own devices: images -> logits (n, t, t, heads k),
            the k classes of the first head first.
        scenes: with masks.
        classes: k names.
        heads: their number.
        window: side of a window, pixels.
        overlap: share of a window that it has in common with the next one.
        batch_size: windows at once; rounded up to a multiple of the devices. Several heads take fewer where their
            logits would fill more than `BATCH_BYTES`.
        bands: of the scenes, for the pictures.
        boundary: tolerance of the boundary F1 in pixels; 0 leaves it out.
        without: classes for `miou_without`.
        pictures: number of scenes of which a crop is kept.
        title: of the progress line; empty shows none.

    Returns:
        The figures of each head.

    Raises:
        ConfigError: there is no scene, or no labelled pixel in them.
        DataError: in every process; one of them cannot read a scene.
    """
    if not scenes:
        raise ConfigError("There is no scene to score: let config.data.test choose some.")
    k, panel = len(classes), PANEL
    if heads > 1:
        line = 4 * heads * k * window  # bytes of the logits of one row, or column, of a window
        batch_size = min(batch_size, max(1, BATCH_BYTES // (line * window)))
        panel = min(panel, max(window, ROW_BYTES // line))
    confusion = make_confusion(k, local_mesh())
    own = list(range(len(scenes)))[jax.process_index() :: jax.process_count()]
    shown = bool(title) and jax.process_index() == 0
    options: dict[str, Any] = {"window": window, "overlap": overlap, "batch_size": batch_size, "panel": panel}

    def score_own() -> tuple[np.ndarray, np.ndarray, list[list[Picture]]]:
        matrices, boundaries = np.zeros((heads, len(scenes), k, k), np.int64), np.zeros((heads, k, 4), np.int64)
        kept: list[list[Picture]] = [[] for _ in range(heads)]
        with counter(total=len(own), desc=title, unit="scene", disable=not shown) as progress:
            for index, opened, predictions in predict_scenes(forward, [scenes[i] for i in own], heads=heads, **options):
                truth = opened.mask(0, opened.height)
                for head, prediction in enumerate(predictions):
                    matrices[head, own[index]] = confusion(truth, prediction)
                    if boundary:
                        boundaries[head] += boundary_counts(truth, prediction, k, boundary)
                if len(kept[0]) < pictures:
                    crops = _pictures(scenes[own[index]].name, opened, truth, predictions, bands)
                    for its, crop in zip(kept, crops, strict=True):
                        its.append(crop)
                progress.update()
        return matrices, boundaries, kept

    matrices, boundaries, kept = in_all(score_own, DataError)
    matrices, boundaries = sum_over_processes(matrices), sum_over_processes(boundaries)
    if not matrices.any():
        raise ConfigError(
            f"None of the {len(scenes)} scenes has a labelled pixel that counts: check the masks, ignore and split."
        )
    names, evaluations = _distinct(scenes), []
    for each, counts, its in zip(matrices, boundaries, kept, strict=True):
        found = _all_scores(each, scenes, classes, without)
        if boundary:
            found["boundary"] = {"tolerance": boundary, **boundary_f1(counts, classes)}
        by_scene = {name: (s.group, matrix) for name, s, matrix in zip(names, scenes, each, strict=True)}
        evaluations.append(Evaluation(found, each.sum(0), by_scene, its))
    return evaluations


def _all_scores(
    matrices: np.ndarray, scenes: Sequence[LabelledScene], classes: Sequence[str], without: Sequence[str]
) -> dict[str, Any]:
    """The figures of all scenes and their mean over areas, of the scenes' (k, k) matrices."""
    groups = list(dict.fromkeys(scene.group for scene in scenes))
    of_area = {g: matrices[[scene.group == g for scene in scenes]].sum(0) for g in groups}
    return {
        "scenes": len(scenes),
        **scores(matrices.sum(0), classes, without),
        "areas": area_scores(of_area, classes, without),
    }


def _distinct(scenes: Sequence[LabelledScene]) -> list[str]:
    """The scenes' names; one that has been taken gets a number, so that no scene hides another."""
    names: dict[str, None] = {}
    for scene in scenes:
        name, number = scene.name, 1
        while name in names:
            number += 1
            name = f"{scene.name} ({number})"
        names[name] = None
    return list(names)


def check_class_names(without: Sequence[str], classes: Sequence[str]) -> None:
    """Raises ConfigError where `config.evaluate.without` names no class; known before any training."""
    for name in without:
        if name not in classes:
            raise ConfigError(f"config.evaluate.without must name some of {', '.join(classes)}, not {name!r}.")


def _pictures(
    name: str, opened: OpenedScene, truth: np.ndarray, predictions: np.ndarray, bands: Bands
) -> list[Picture]:
    """The crop whose labelled pixels are the most mixed, of a grid of crops, with each of the predictions."""
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
    return [Picture(name, image, truth[rows, columns], each[rows, columns].copy()) for each in predictions]


def scene_records(evaluation: Evaluation) -> dict[str, Any]:
    """The matrices of single scenes as JSON takes them: `{name: {"group": ..., "matrix": [[...]]}}`, rows the truth."""
    return {name: {"group": group, "matrix": matrix.tolist()} for name, (group, matrix) in evaluation.by_scene.items()}


def write_confusion(workdir: Path, evaluation: Evaluation, classes: Sequence[str]) -> None:
    """Writes `confusion.json`: the classes, and the confusion matrix of every scene."""
    write_json(workdir / "confusion.json", {"classes": list(classes), "scenes": scene_records(evaluation)})


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
