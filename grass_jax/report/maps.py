"""Pictures of segmentation: maps beside their truth, the confusion matrix, the probe's curve, purity."""

import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from grass_jax.data.labels import IGNORE
from grass_jax.report.figures import save

MOST_PIXELS = 640  # of a side of a panel: a larger scene is thinned out
GREYS = np.array([[205, 205, 205], [160, 160, 160]], np.uint8)  # stripes of what does not count
RIGHT = np.array([235, 240, 235])  # of the error panel
WRONG = (255, 0, 255), (0, 0, 0)  # of the error panel: the first one that looks like no class
APART = 110  # distance in RGB of colours that are not taken for each other
COLUMNS = ("image", "truth", "prediction", "errors")


def panels(
    path: str | os.PathLike,
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    classes: Sequence[str],
    colours: np.ndarray,
    title: str,
    *,
    names: Sequence[str] = (),
) -> None:
    """Draws a row per scene: image, truth, prediction, and where the two differ; with one legend.

    Errors are magenta, or another colour where a class has a similar one.

    Args:
        path: PNG file to write.
        images: n of (h, w, 3) uint8; sizes may differ.
        truths: n of (h, w) ids with IGNORE, which is striped grey.
        predictions: n of (h, w) ids.
        classes: their k names.
        colours: (k, 3) uint8.
        title: Title of the figure.
        names: of the rows; none by default.

    Raises:
        ValueError: when there is nothing to draw.
    """
    if not len(images):
        raise ValueError("A figure of maps needs at least one scene.")
    heights = [1.9 * min(2.0, max(0.4, image.shape[0] / image.shape[1])) + 0.12 for image in images]
    columns = max(1, min(6, 90 // (max(map(len, classes)) + 6)))
    lines = -(-(len(classes) + 2) // columns)
    size = (8.6, sum(heights) + 0.22 * lines + 0.9)
    wrong = _unlike(colours)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(len(images), 4, squeeze=False, gridspec_kw={"height_ratios": heights})
    for ax, column in zip(axes[0], COLUMNS, strict=True):
        ax.set_title(column, fontsize=11)
    for i, (row, image, truth, prediction) in enumerate(zip(axes, images, truths, predictions, strict=True)):
        step = -(-max(truth.shape) // MOST_PIXELS)
        small, ids, found = (array[::step, ::step] for array in (image, truth, prediction))
        for ax, picture in zip(
            row, (small, paint(ids, colours), paint(found, colours), _errors(ids, found, wrong)), strict=True
        ):
            ax.imshow(picture, interpolation="nearest" if picture is not small else "auto")
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel("\n".join([*names[i : i + 1], _right_text(truth, prediction)]), fontsize=9)
    handles = [_patch(colour, name) for colour, name in zip(colours, classes, strict=True)]
    stripes = Patch(facecolor=_hex(GREYS[0]), edgecolor=_hex(GREYS[1]), hatch="////", label="does not count")
    figure.legend(
        handles=[*handles, stripes, _patch(wrong, "error")], loc="outside lower center", ncols=columns, fontsize=9
    )
    save(figure, path)


def paint(ids: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Turns class ids into colours; what is no class is striped grey.

    Args:
        ids: (h, w).
        colours: (k, 3) uint8.

    Returns:
        (h, w, 3) uint8.
    """
    known = ids < len(colours)
    return np.where(known[..., None], colours[np.where(known, ids, 0)], _stripes(ids.shape)).astype(np.uint8)


def confusion(path: str | os.PathLike, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Draws a confusion matrix: of each true class the share predicted as each class, with the pixel counts.

    Args:
        path: PNG file to write.
        matrix: (k, k) counts, rows the truth.
        classes: their k names.
    """
    k, matrix = len(classes), np.asarray(matrix)
    totals = matrix.sum(1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    cell, counted = (0.85, True) if k <= 10 else (0.5, False)
    margin = 0.085 * max(map(len, classes))
    figure = Figure(figsize=(cell * k + margin + 2.6, cell * k + margin + 1.3), dpi=110, layout="constrained")
    ax = figure.subplots()
    drawn = ax.imshow(np.where(totals[:, None] > 0, shares, np.nan), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_facecolor("0.9")  # a class without a pixel in the truth has no row
    rows = [f"{name}\n{_short(total)} px" for name, total in zip(classes, totals.tolist(), strict=True)]
    ax.set_xticks(range(k), classes, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    ax.set_yticks(range(k), rows, fontsize=9 if counted else 7)
    ax.set(xlabel="prediction", ylabel="truth")
    for (i, j), share in np.ndenumerate(shares):
        if share > 0:
            text = f"{share:.0%}" if share >= 0.005 else "<1%"
            text += f"\n{_short(int(matrix[i, j]))}" if counted else ""
            ax.text(j, i, text, ha="center", va="center", fontsize=8 if counted else 6.5, color=_ink(share))
    figure.colorbar(drawn, ax=ax, shrink=0.7).set_label("share of the true class's pixels", fontsize=9)
    save(figure, path)


def probe_curve(path: str | os.PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws the mIoU of a linear probe on the frozen encoder over the steps of pretraining, phases shaded.

    Args:
        path: PNG file to write.
        records: in order: "step" (updates done), "phase" (the one that did them; that of step 0 is the random encoder's
            name) and "miou"; those without a number are left out.
    """
    records = [record for record in records if isinstance(record.get("miou"), int | float)]
    figure = Figure(figsize=(7.5, 4.2), dpi=110, layout="constrained")
    ax = figure.subplots()
    ax.set(xlabel="updates of the encoder", ylabel="mIoU of the linear probe")
    if records:
        ax.plot([r["step"] for r in records], [r["miou"] for r in records], color="C0", lw=1.4, marker="o", ms=4)
    else:
        ax.text(0.05, 0.9, "nothing has been probed yet", transform=ax.transAxes)
    where = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 9, "color": "0.35"}
    begin = 0
    for i, (name, group) in enumerate(groupby(records, key=lambda record: str(record.get("phase", "")))):
        last = list(group)[-1]
        label, place = f"{last['miou']:.3f}", {"xytext": (0, 7), "ha": "center"}
        if last["step"] > begin:
            ax.text((begin + last["step"]) / 2, 1.01, name, **where)
            if i % 2:
                ax.axvspan(begin, last["step"], color="black", alpha=0.06, lw=0)
        else:  # before the first update: no width to write a name over
            label, place = f"{name} {label}", {"xytext": (7, -12), "ha": "left"}
        ax.annotate(label, (last["step"], last["miou"]), textcoords="offset points", fontsize=9, **place)
        begin = last["step"]
    ax.margins(x=0.06, y=0.15)
    if records and records[0]["step"]:
        ax.set_xlim(left=0)  # a branch is probed at its end alone
    ax.grid(alpha=0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    save(figure, path)


def purity(path: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    """Draws purity with its 95 % intervals: guided boxes against controls, pairs, and the classes that boxes select.

    Args:
        path: PNG file to write.
        summary: from `summarise_purity`.
    """
    kinds = summary["boxes"]
    guided_name, guided = next(iter(kinds.items()))
    views = guided["mixed"]["majority"]["n"]
    classes = list(guided["selection"])
    height = 1.5 + 0.36 * len(kinds) + max(1.6, 0.3 * len(classes) + 0.5)
    figure = Figure(figsize=(10.5, height + 1.2), dpi=110, layout="constrained")
    figure.suptitle(
        f"Purity of {guided_name} boxes: {views} mixed views, {summary['groups']} groups (bars: 95 % bootstrap)",
        fontsize=12,
    )
    ratios = [1.0 + 0.36 * len(kinds), max(1.6, 0.3 * len(classes) + 0.5)]
    axes = figure.subplots(2, 2, gridspec_kw={"height_ratios": ratios})
    for ax, measure, text in (
        (axes[0, 0], "majority", "majority share minus that of random boxes\n(mixed views; right of 0: purer)"),
        (axes[0, 1], "entropy", "class entropy minus that of random boxes, nats\n(mixed views; left of 0: purer)"),
    ):
        _draw_intervals(ax, {name: kind["mixed"][measure] for name, kind in kinds.items()}, text, highlight=0)
        ax.axvline(0, color="0.4", lw=1, zorder=0)
    pairs = {"whole views": guided["pairs_same_class"]["views"]}
    pairs |= {name: kind["pairs_same_class"]["boxes"] for name, kind in kinds.items()}
    pairs[f"random boxes\nof {guided_name} sizes"] = guided["pairs_same_class"]["random_boxes"]
    _draw_intervals(axes[1, 0], pairs, "share of positive pairs with one majority class", highlight=1)
    _draw_selection(axes[1, 1], guided["selection"], guided_name)
    save(figure, path)


def _draw_intervals(ax: Axes, rows: Mapping[str, Mapping[str, Any]], title: str, *, highlight: int) -> None:
    for y, row in enumerate(rows.values()):
        if row["mean"] is None:
            ax.text(0, y, "not measured", va="center", fontsize=8, color="0.4")
            continue
        colour = "C3" if y == highlight else "0.35"
        if row["low"] is not None:
            ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=2.2, solid_capstyle="butt")
        ax.plot(row["mean"], y, "o", color=colour, ms=6)
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_yticks(range(len(rows)), list(rows), fontsize=9)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.margins(x=0.1)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", alpha=0.3)


def _draw_selection(ax: Axes, selection: Mapping[str, Mapping[str, float | None]], name: str) -> None:
    bars = {"boxes": (f"{name} boxes", "C3"), "random_boxes": ("random boxes of their size", "0.55")}
    bars["views"] = ("labelled pixels of the views", "0.8")
    places = np.arange(len(selection))
    for i, (key, (label, colour)) in enumerate(bars.items()):
        shares = [100 * (row[key] or 0) for row in selection.values()]
        ax.barh(places + 0.27 * (i - 1), shares, height=0.27, color=colour, label=label)
    ax.set_yticks(places, list(selection), fontsize=9)
    ax.set_ylim(len(selection) - 0.5, -0.5)
    ax.set_title("classes that the boxes select (by majority), %", fontsize=10, loc="left")
    ax.tick_params(axis="x", labelsize=8)
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.45, -0.1), ncols=3, columnspacing=1.2)
    ax.grid(axis="x", alpha=0.3)


def _stripes(shape: tuple[int, ...]) -> np.ndarray:
    """(h, w, 3) diagonal grey stripes."""
    period = max(2, max(shape) // 24)
    y, x = np.indices(shape, sparse=True)
    return GREYS[(x + y) // (period // 2) % 2]


def _unlike(colours: np.ndarray) -> np.ndarray:
    """A colour that is similar neither to those of the classes nor to the others of the error panel."""
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).reshape(-1, 3)
    candidates = np.concatenate([WRONG, grid])
    taken = np.concatenate([colours, GREYS, RIGHT[None]]).astype(int)
    distances = np.linalg.norm(candidates[:, None] - taken, axis=-1).min(1)
    return candidates[np.argmax(distances >= APART) if distances[:2].max() >= APART else distances.argmax()]


def _errors(truth: np.ndarray, prediction: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    picture = np.where((truth == prediction)[..., None], RIGHT, wrong)
    return np.where((truth == IGNORE)[..., None], _stripes(truth.shape), picture).astype(np.uint8)


def _right_text(truth: np.ndarray, prediction: np.ndarray) -> str:
    counts = truth != IGNORE
    return f"{(truth == prediction)[counts].mean():.0%} right" if counts.any() else "no labels"


def _patch(colour: np.ndarray, label: str) -> Patch:
    return Patch(facecolor=_hex(colour), edgecolor="0.5", lw=0.5, label=label)


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{int(band):02x}" for band in colour)


def _ink(share: float) -> str:
    return "white" if share > 0.6 else "black"


def _short(count: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:  # what rounds to 1000 has the next unit
            return f"{count / size:.3g} {unit}"
    return str(count)
