"""Pictures of a run: what the guidance looks at, and how the numbers went."""

import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from grass_jax.report.atomic import replacing
from grass_jax.sampling.regions import resize_maps

BOX_COLOUR = "#ffe800"
# Panels of `curves`: title, then the metrics in it with their names in plain words. A panel without data is left out.
PANELS = (
    ("Loss", {"loss": "loss of the step", "loss_before": "before guidance (uncropped views)"}),
    ("Learning rate", {"learning_rate": "learning rate"}),
    (
        "Embeddings (collapse: deviation to 0, cosine to 1)",
        {"embedding_std": "standard deviation", "mean_cosine": "mean cosine between tiles"},
    ),
    (
        "Guidance (shares)",
        {
            "box_area": "mean box area",
            "whole_boxes": "box is the whole view",
            "fallback": "fell back to the whole",
        },
    ),
    ("Pixel accuracy of the training crops", {"pixel_accuracy": "share of labelled pixels"}),
    ("mIoU while training", {"validation_miou": "validation scenes", "probe_miou": "linear probe"}),
    ("Gradient norm", {"gradient_norm": "norm of the whole gradient"}),
    ("Images per second", {"images_per_second": "images per second"}),
)
Phases = Sequence[tuple[str, Sequence[Mapping[str, Any]]]]  # names and records
MOST_POINTS = 400  # of a curve before it is drawn as the mean and range of bins


def guidance(
    path: str | os.PathLike,
    views: np.ndarray,
    maps: np.ndarray,
    boxes: np.ndarray,
    guided: np.ndarray,
    *,
    title: str,
    fallback: np.ndarray | None = None,
    threshold: float = 0.5,
) -> None:
    """Draws a row per tile: view with its salient box, loss attention map over the view, guided view.

    Args:
        path: PNG file to write.
        views: (n, s, s, c) in 0..1, before normalisation; the first three bands are shown.
        maps: loss attention maps (n, h, w).
        boxes: salient boxes (y0, x0, y1, x1), half-open, in pixels of the view, (n, 4).
        guided: views cropped to their boxes and resized back, (n, s, s, c) in 0..1.
        title: Title of the figure.
        fallback: (n,) bool, views that stay whole because of their map's sign; None for none.
        threshold: Height of the contour between the lowest (0) and highest (1) value of the resized map.

    Raises:
        ValueError: when there is no tile to draw.
    """
    views, maps, boxes, guided = (np.asarray(array) for array in (views, maps, boxes, guided))
    n, size = views.shape[:2]
    if n == 0:
        raise ValueError("A guidance figure needs at least one tile.")
    fallback = np.zeros(n, bool) if fallback is None else np.asarray(fallback)
    figure = Figure(figsize=(8.6, 2.5 * n + 1.5), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(n, 3, squeeze=False)
    for ax, column in zip(axes[0], ("view and salient box", "loss attention map", "guided view"), strict=True):
        ax.set_title(column, fontsize=11)
    for row, view, heat, box, crop, whole in zip(axes, views, maps, boxes, guided, fallback, strict=True):
        for ax in row:
            ax.set(xticks=[], yticks=[])
        row[0].imshow(_rgb(view))
        _draw_map(row[1], view, heat, threshold)
        _draw_box(row[0], box)
        _draw_box(row[1], box)
        row[2].imshow(_rgb(crop))
        row[0].set_ylabel(_box_text(box, size, bool(whole)), fontsize=9)
    scale = ScalarMappable(Normalize(-1, 1), "RdBu_r")
    bar = figure.colorbar(scale, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.01, ticks=[-1, 0, 1])
    scale_text = f"map value / largest absolute value of the map (black line: threshold, {threshold:g} of the range)"
    bar.set_label(scale_text, fontsize=9)
    save(figure, path)


def curves(path: str | os.PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws the metrics of a run over its steps, phases shaded.

    Args:
        path: PNG file to write.
        records: From `read_metrics`; what is missing or null is left out.
    """
    panels = [
        (title, present)
        for title, lines in PANELS
        if (present := {key: label for key, label in lines.items() if any(_is_number(r.get(key)) for r in records)})
    ]
    phases = [(name, list(group)) for name, group in groupby(records, key=lambda record: str(record.get("phase", "")))]
    rows = max(1, (len(panels) + 1) // 2)
    figure = Figure(figsize=(11, 2.7 * rows + 0.6), dpi=110, layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for ax, (title, lines) in zip(axes, panels, strict=False):
        ax.set_title(title, fontsize=10, loc="left", pad=16)
        _draw_lines(ax, lines, phases)
        _shade_phases(ax, phases)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    if not panels:
        axes[0].text(0, 0.5, "nothing has been logged yet")
    save(figure, path)


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as a PNG in place of `path`, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _rgb(image: np.ndarray) -> np.ndarray:
    bands = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    return np.clip(bands.astype(np.float32), 0, 1)


def _draw_box(ax: Axes, box: np.ndarray) -> None:
    y0, x0, y1, x1 = (int(edge) for edge in box)
    # Pixel i is drawn from i - 0.5 to i + 0.5. A dark rim keeps the line visible on bright ground.
    for width, colour in ((4.0, "black"), (2.0, BOX_COLOUR)):
        frame = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, lw=width, ec=colour, joinstyle="miter")
        frame.set(clip_on=False, zorder=5)
        ax.add_patch(frame)


def _draw_map(ax: Axes, view: np.ndarray, heat: np.ndarray, threshold: float) -> None:
    grey = _rgb(view).mean(-1)
    ax.imshow(grey, cmap="gray", vmin=0, vmax=1)
    if not np.isfinite(heat).all():
        ax.text(0.5, 0.5, "map is not finite", transform=ax.transAxes, ha="center", color="red")
        return
    heat = np.asarray(resize_maps(jnp.asarray(heat)[None], grey.shape[0]))[0]
    ax.imshow(heat / (np.abs(heat).max() or 1), cmap="RdBu_r", vmin=-1, vmax=1, alpha=0.55)
    low, high = heat.min(), heat.max()
    if high > low:
        ax.contour(heat, levels=[low + threshold * (high - low)], colors="black", linestyles="solid", linewidths=1.2)


def _box_text(box: np.ndarray, size: int, fallback: bool) -> str:
    y0, x0, y1, x1 = (int(edge) for edge in box)
    if fallback:
        return "fell back to the whole\nview: no positive value"
    share = (y1 - y0) * (x1 - x0) / size**2
    return "box is the whole view" if share == 1 else f"box: {share:.0%} of the view"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _draw_lines(ax: Axes, lines: Mapping[str, str], phases: Phases) -> None:
    for i, key in enumerate(lines):
        for _, group in phases:  # phase by phase: their losses are not comparable, and no line joins them
            points = [(record["step"], record[key]) for record in group if _is_number(record.get(key))]
            if points:
                _draw_line(ax, np.array(points, float), f"C{i}")
    if len(lines) > 1:
        handles = [Line2D([], [], color=f"C{i}") for i in range(len(lines))]
        ax.legend(handles, list(lines.values()), fontsize=8, loc="upper center", ncols=len(lines), columnspacing=1.2)
        low, high = ax.get_ylim()
        ax.set_ylim(low, high + 0.2 * (high - low))  # room for the legend above the curves
    ax.grid(alpha=0.3)
    ax.set_xlabel("step", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.xaxis.set_major_formatter("{x:,.0f}")


def _draw_line(ax: Axes, points: np.ndarray, colour: str) -> None:
    if len(points) > MOST_POINTS:
        bins = np.array_split(points, MOST_POINTS // 2)
        low, high = ([extreme(part[:, 1]) for part in bins] for extreme in (np.min, np.max))
        points = np.array([part.mean(0) for part in bins])
        ax.fill_between(points[:, 0], low, high, color=colour, alpha=0.2, lw=0)
    # A line of one point is no line: few points are marked.
    ax.plot(points[:, 0], points[:, 1], color=colour, lw=1.2, marker="o" if len(points) < 25 else "", ms=3)


def _shade_phases(ax: Axes, phases: Phases) -> None:
    begin, stop = phases[0][1][0]["step"], phases[-1][1][-1]["step"]
    margin = max(1, 0.02 * (stop - begin))
    ax.set_xlim(begin - margin, stop + margin)  # of the whole run, so that panels can be compared
    for i, (name, group) in enumerate(phases):
        end = (group[-1]["step"] + phases[i + 1][1][0]["step"]) / 2 if i + 1 < len(phases) else stop
        if i % 2:
            ax.axvspan(begin, end, color="black", alpha=0.06, lw=0)
        if end - begin >= 0.05 * (stop - phases[0][1][0]["step"]):  # no room for a name otherwise
            where = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            ax.text((begin + end) / 2, 1.01, name, **where, fontsize=8, color="0.4")
        begin = end
