"""Pictures of a comparison: mIoU against labels and against compute, and the arms' predictions side by side."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from grass_jax.data.labels import IGNORE
from grass_jax.report.comparison import Mean, Row, mean_and_interval
from grass_jax.report.figures import save
from grass_jax.report.maps import GREYS, MOST_PIXELS, _patch, paint

EVALUATIONS = {"finetune": "Fine-tuning", "probe": "Linear probe"}
COLOURS = (*matplotlib.color_sequences["tab10"], *matplotlib.color_sequences["Dark2"])
MARKERS = "os^Dv<>Phd"
PANEL, APART = 320, 8  # width of a panel between its outermost points and that of a marker, points of print
Scene = tuple[str, np.ndarray, np.ndarray, Mapping[str, np.ndarray]]  # name, image, truth, prediction of each arm
Panels = dict[str, dict[str, list[tuple[float, Mean]]]]  # title -> arm -> its points


def budgets_of(rows: Sequence[Row], evaluation: str) -> dict[str, int]:
    """Label budgets of an evaluation's lines, name -> labelled crops, the smallest first."""
    found = {row["budget"]: row["crops"] for row in rows if row["evaluation"] == evaluation}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def mean_of(rows: Sequence[Row], arm: str, name: str) -> float | None:
    """Mean of a number over the lines of an arm's evaluations; None where none has it."""
    values = [row[name] for row in rows if row["arm"] == arm and row["evaluation"] in EVALUATIONS]
    values = [value for value in values if value is not None]
    return fsum(values) / len(values) if values else None


def budget_figure(path: str | os.PathLike, rows: Sequence[Row], arms: Mapping[str, str], blocks: str = "scene") -> None:
    """Draws mIoU over the label budget with the 95 % intervals, a panel for each evaluation that has lines.

    Args:
        path: PNG file to write.
        rows: result lines of one data set.
        arms: name -> label; those without lines are left out.
        blocks: of test scenes that the bootstrap draws, "scene" or "group".
    """
    panels: Panels = {}
    ticks: dict[float, str] = {}
    for evaluation, title in EVALUATIONS.items():
        budgets = budgets_of(rows, evaluation)
        ticks |= {crops: budget if budget == str(crops) else f"{budget} ({crops})" for budget, crops in budgets.items()}
        means = (
            (arm, n, mean_and_interval(rows, arm, evaluation, b, blocks=blocks))
            for b, n in budgets.items()
            for arm in arms
        )
        for arm, crops, found in means:
            if found:
                panels.setdefault(title, {}).setdefault(arm, []).append((crops, found))
    _draw_panels(path, panels, arms, "labelled crops", ticks)


def compute_figure(
    path: str | os.PathLike, rows: Sequence[Row], arms: Mapping[str, str], budget: str, blocks: str = "scene"
) -> None:
    """Draws mIoU over the compute of pretraining with the 95 % intervals, a panel for each evaluation that has lines.

    Arms at the same compute stand beside each other.

    Args:
        path: PNG file to write.
        rows: result lines of one data set.
        arms: name -> label; those without lines or known compute are left out, "random" is at 0.
        budget: name of the label budget.
        blocks: of test scenes that the bootstrap draws, "scene" or "group".
    """
    panels: Panels = {}
    for evaluation, title in EVALUATIONS.items():
        for arm in arms:
            found = mean_and_interval(rows, arm, evaluation, budget, blocks=blocks)
            compute = 0.0 if arm == "random" else mean_of(rows, arm, "compute")
            if found and compute is not None:
                panels.setdefault(f"{title}, {budget} crops", {})[arm] = [(compute, found)]
    _draw_panels(path, panels, arms, "compute of pretraining (time of warm-up updates)")


def predictions_page(
    path: str | os.PathLike,
    scenes: Sequence[Scene],
    arms: Mapping[str, str],
    classes: Sequence[str],
    colours: np.ndarray,
) -> None:
    """Draws a row per scene: image, truth, and the prediction of each arm; with one legend.

    Args:
        path: PNG file to write.
        scenes: (name, image (h, w, 3) uint8, truth (h, w) uint8 ids with IGNORE, {arm: prediction (h, w) uint8 ids});
            sizes may differ.
        arms: name -> label; those without any prediction are left out.
        classes: their k names.
        colours: (k, 3) uint8.

    Raises:
        ValueError: when there is no scene.
    """
    if not scenes:
        raise ValueError("A page of predictions needs at least one scene.")
    shown = {arm: label for arm, label in arms.items() if any(arm in predictions for *_, predictions in scenes)}
    heights = [min(2.0, max(0.4, truth.shape[0] / truth.shape[1])) for _, _, truth, _ in scenes]
    side = 2.1 if len(shown) <= 4 else 1.6
    width = side * (len(shown) + 2) + 0.3
    columns = max(1, min(len(classes) + 1, int(width * 11) // (max(map(len, classes)) + 6)))
    lines = -(-(len(classes) + 1) // columns)
    figure = Figure(figsize=(width, side * sum(heights) + 0.22 * lines + 0.9), dpi=110, layout="constrained")
    axes = figure.subplots(len(scenes), len(shown) + 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for ax, title in zip(axes[0], ("image", "truth", *shown.values()), strict=True):
        ax.set_title(textwrap.fill(title, int(side * 9)), fontsize=10)
    for row, height, (name, image, truth, predictions) in zip(axes, heights, scenes, strict=True):
        step = -(-max(truth.shape) // MOST_PIXELS)
        for ax in row:
            ax.set(xticks=[], yticks=[])
        row[0].imshow(image[::step, ::step])
        row[0].set_ylabel(textwrap.fill(name, int(side * height * 11)), fontsize=9)
        for ax, ids in zip(row[1:], (truth, *(predictions.get(arm) for arm in shown)), strict=True):
            if ids is None:
                ax.set_frame_on(False)
                ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", fontsize=9, color="0.4")
            else:
                ax.imshow(paint(ids[::step, ::step], colours), interpolation="nearest")
    handles = [_patch(colour, name) for colour, name in zip(colours, classes, strict=True)]
    if any((truth == IGNORE).any() for _, _, truth, _ in scenes):
        light, dark = (tuple(grey / 255) for grey in GREYS)
        handles.append(Patch(facecolor=light, edgecolor=dark, hatch="////", label="does not count"))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9)
    save(figure, path)


def _draw_panels(
    path: str | os.PathLike,
    panels: Panels,
    arms: Mapping[str, str],
    xlabel: str,
    ticks: Mapping[float, str] | None = None,
) -> None:
    """Draws the arms of each panel; with `ticks` over a logarithmic axis with these labels."""
    shown = [arm for arm in arms if any(arm in points for points in panels.values())]
    width = 5.8 * max(1, len(panels))
    columns = max(1, int(width / (0.55 + 0.07 * max((len(arms[arm]) for arm in shown), default=1))))
    figure = Figure(figsize=(width, 4.2 + 0.22 * -(-len(shown) // columns)), dpi=110, layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    drawn = {}
    for ax, (title, points) in zip(axes, panels.items(), strict=False):
        ax.set_title(title, fontsize=11, loc="left")
        ax.set(xlabel=xlabel, ylabel="mIoU, points")
        ax.grid(alpha=0.3)
        ax.margins(x=0.08)
        aside = _aside(points)
        for i, arm in enumerate(arms):
            if arm in points:
                style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
                moved = ScaledTranslation(aside.get(arm, 0.0) / 72, 0, figure.dpi_scale_trans)
                drawn[arm] = _draw_arm(ax, points[arm], moved, style)
        if ticks:
            _label_crops(ax, {crops: ticks[crops] for crops in sorted({x for arm in points.values() for x, _ in arm})})
    if shown:
        handles, names = zip(*((drawn[arm], arms[arm]) for arm in shown), strict=True)
        figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9)
    else:
        axes[0].set_axis_off()
        axes[0].text(0, 0.5, "not measured")
    save(figure, path)


def _aside(points: Mapping[str, Sequence[tuple[float, Mean]]]) -> dict[str, float]:
    """How far arms of a single point are drawn beside it, in points of print, so that none covers another."""
    single = {arm: own[0][0] for arm, own in points.items() if len(own) == 1}
    extent = np.ptp(list(single.values())) if single else 0
    x = {arm: PANEL * value / (extent or np.inf) for arm, value in single.items()}

    def places(group: list[str]) -> np.ndarray:
        return np.mean([x[arm] for arm in group]) + APART * (np.arange(len(group)) - (len(group) - 1) / 2)

    groups: list[list[str]] = []
    for arm in sorted(x, key=lambda arm: x[arm]):
        groups.append([arm])
        while len(groups) > 1 and places(groups[-1])[0] - places(groups[-2])[-1] < APART:
            groups[-2:] = [groups[-2] + groups[-1]]
    return {arm: float(place - x[arm]) for group in groups for arm, place in zip(group, places(group), strict=True)}


def _draw_arm(ax: Axes, points: Sequence[tuple[float, Mean]], aside: Transform, style: Mapping[str, Any]) -> Line2D:
    x, y = [point[0] for point in points], [100 * found.mean for _, found in points]
    # Without an interval it is as wide as the mean alone.
    low = [100 * (found.mean if found.low is None else found.low) for _, found in points]
    high = [100 * (found.mean if found.high is None else found.high) for _, found in points]
    if len(points) > 1:
        ax.fill_between(x, low, high, color=style["color"], alpha=0.1, lw=0)
        return ax.plot(x, y, lw=1.5, ms=5, **style)[0]
    moved = ax.transData + aside
    ax.update_datalim([(x[0], low[0]), (x[0], high[0])])  # what is moved aside does not count for the limits
    ax.plot(x * 2, low + high, color=style["color"], lw=1.8, transform=moved)
    return ax.plot(x, y, ls="", ms=6, transform=moved, **style)[0]


def _label_crops(ax: Axes, ticks: Mapping[float, str]) -> None:
    ax.set_xscale("log")
    if len(ticks) == 1:
        ax.set_xlim(min(ticks) / 2, max(ticks) * 2)
    crops = np.log(list(ticks))
    # The label of a budget close to the one before stands a line lower.
    close = np.diff(crops, prepend=-np.inf) < 0.12 * (crops[-1] - crops[0])
    ax.set_xticks(list(ticks), ["\n" * int(low) + name for name, low in zip(ticks.values(), close, strict=True)])
    ax.xaxis.set_minor_locator(NullLocator())
