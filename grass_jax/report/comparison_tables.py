"""The report of a comparison: tables in Markdown and LaTeX, the verdict, and the figures beside them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import fsum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grass_jax.data.labels import Labels
from grass_jax.report.atomic import replacing
from grass_jax.report.comparison import Difference, Mean, Row, latest, mean_and_interval, paired_difference, verdict
from grass_jax.report.comparison_figures import (
    EVALUATIONS,
    Scene,
    budget_figure,
    budgets_of,
    compute_figure,
    mean_of,
    predictions_page,
)

PRIMARY_BUDGET = "50"  # the primary endpoint: fine-tuned mIoU at so many crops
PRIMARY, CONTROL = ("gs", "simclr_compute"), ("gs", "gs_random")
PAIRS = (
    *(PRIMARY, ("gs", "simclr_updates"), CONTROL, ("gs", "warmup"), ("gs", "random")),
    *(("gs_random", "simclr_compute"), ("gs_random", "simclr_updates")),
    *(("simclr_compute", "warmup"), ("warmup", "random")),
)
MISSING = "not measured"
SOURCES = ("data", "encoder", "hardware", "commit")  # said once, above the tables
NOTE = (
    "mIoU and IoU are in points; in brackets the 95 % interval of a bootstrap over seeds, label lists and {blocks} "
    "(area-balanced: groups of test scenes), after ± the standard deviation over the seeds, and as [seeds×lists] where "
    "an arm has fewer of them than another. Two arms differ where the interval of their difference excludes 0: there "
    "both have the same draws. Compute is in the time of warm-up updates."
)
LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": "$<$", ">": "$>$", "|": "$|$", "−": "$-$", "±": r"$\pm$", "×": r"$\times$"}
)


class Table(NamedTuple):
    """Rows of text under a header; a row has a cell for each name of the header."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(
    folder: str | os.PathLike,
    rows: Iterable[Row],
    arms: Mapping[str, str],
    classes: Sequence[str],
    colours: np.ndarray | None = None,
    pictures: Sequence[Scene] | None = None,
    budget: str = PRIMARY_BUDGET,
    blocks: str = "scene",
    pairs: Sequence[tuple[str, str]] = PAIRS,
) -> str:
    """Writes tables.md, tables.tex, budget.png, compute.png and, of pictures, predictions.png.

    The order of the lines means nothing, but that of exact repeats the last one counts.

    Args:
        folder: made when it is missing.
        rows: result lines of one data set that belong together.
        arms: name -> label, in the order of the tables; also those without lines.
        classes: k names.
        colours: (k, 3) uint8; None takes the palette.
        pictures: (name, image (h, w, 3) uint8, truth (h, w) uint8, {arm: prediction (h, w) uint8}) of some scenes.
        budget: name of the label budget of the tables by class and pair, of the verdict and of compute.png.
        blocks: of test scenes that the bootstrap draws, "scene" or "group".
        pairs: of arms whose differences are listed, the second taken from the first; of arms that are not there, none.

    Returns:
        The text of tables.md.

    Raises:
        ValueError: the lines are of several data sets, or were scored on different scenes.
    """
    folder, rows = Path(folder), [row for row in latest(rows) if row["arm"] in arms]
    parts = report(rows, arms, classes, budget, blocks, pairs)
    text = markdown(parts)
    for name, content in (("tables.md", text), ("tables.tex", latex(parts))):
        with replacing(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    budget_figure(folder / "budget.png", rows, arms, blocks)
    compute_figure(folder / "compute.png", rows, arms, budget, blocks)
    if pictures:
        colours = Labels(tuple(classes)).rgb() if colours is None else colours
        predictions_page(folder / "predictions.png", pictures, arms, classes, colours)
    return text


def report(
    rows: Sequence[Row],
    arms: Mapping[str, str],
    classes: Sequence[str],
    budget: str,
    blocks: str,
    pairs: Sequence[tuple[str, str]] = PAIRS,
) -> list[Table | str]:
    """Builds the report: paragraphs and tables.

    Args:
        rows: result lines of declared arms, without exact repeats.
        arms: as for `write_report`.
        classes: k names.
        budget: as for `write_report`.
        blocks: as for `write_report`.
        pairs: as for `write_report`.

    Returns:
        What `markdown` and `latex` write, in order.

    Raises:
        ValueError: as for `write_report`.
    """
    data = sorted({str(row["data"]) for row in rows})
    if len(data) > 1:
        raise ValueError(f"The lines are of {len(data)} data sets, {', '.join(data)}: each needs a report of its own.")
    difference = partial(paired_difference, rows, blocks=blocks)
    sources = {name: sorted({str(row[name]) for row in rows if row.get(name) is not None}) for name in SOURCES}
    parts: list[Table | str] = [
        " ".join(f"{name}: {', '.join(found)}." for name, found in sources.items() if found),
        _verdict(difference, budget),
        NOTE.format(blocks="test scenes" if blocks == "scene" else "groups of test scenes"),
    ]
    for evaluation, name in EVALUATIONS.items():
        budgets = budgets_of(rows, evaluation)
        if not budgets:
            continue
        for area, what in ((False, "mIoU"), (True, "area-balanced mIoU")):
            mean = partial(mean_and_interval, rows, evaluation=evaluation, area=area, blocks=blocks)
            parts.append(Table(f"{name}: {what} by label budget", *_means(rows, arms, budgets, mean)))
        if budget in budgets:
            lines = [row for row in rows if row["evaluation"] == evaluation and row["budget"] == budget]
            parts.append(Table(f"{name}: IoU by class at {_crops(budget)}", *_classes(lines, arms, classes)))
        parts += _differences(name, arms, pairs, budgets, budget, partial(difference, evaluation=evaluation))
    purity = _purity(rows, arms)
    return [part for part in (*parts, purity) if part]


def markdown(parts: Iterable[Table | str]) -> str:
    """Writes a report as Markdown whose columns are aligned in a terminal, too."""
    blocks = []
    for part in parts:
        if isinstance(part, str):
            blocks.append(part)
            continue
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (part.header, *part.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        padded = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in lines]
        padded.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        blocks.append(f"### {part.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in padded))
    return "\n\n".join(blocks) + "\n"


def latex(parts: Iterable[Table | str]) -> str:
    """Writes a report as LaTeX, to be included where the packages booktabs and graphicx are loaded."""
    blocks = []
    for part in parts:
        if isinstance(part, str):
            blocks.append(part.translate(LATEX))
            continue
        head, *body = (" & ".join(cell.translate(LATEX) for cell in row) + r" \\" for row in (part.header, *part.rows))
        lines = [
            r"\begin{table}[htbp]\centering",
            rf"\caption{{{part.title.translate(LATEX)}}}",
            r"\resizebox{\ifdim\width>\linewidth \linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * (len(part.header) - 1)}}}",
            *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
            *(r"\end{tabular}}", r"\end{table}"),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _verdict(difference: Callable[..., Difference | None], budget: str) -> str:
    def endpoint(evaluation: str) -> tuple[Difference | None, str]:
        primary, control = (difference(*pair, evaluation=evaluation, budget=budget) for pair in (PRIMARY, CONTROL))
        return primary, f"{_size(primary)}): {verdict(primary, control)}"

    name = "the primary endpoint" if budget == PRIMARY_BUDGET else "which is not the primary endpoint"
    primary, sentence = endpoint("finetune")
    text = f"Verdict (fine-tuned mIoU at {_crops(budget)}, {name}{sentence}"
    if primary is None:
        text += f" Direction only (linear probe at {_crops(budget)}{endpoint('probe')[1]}"
    return text


def _size(found: Difference | None) -> str:
    return f"; {found.seeds} seeds × {found.lists} lists, {found.blocks} blocks of test scenes" if found else ""


def _means(
    rows: Sequence[Row], arms: Mapping[str, str], budgets: Mapping[str, int], mean: Callable[..., Mean | None]
) -> tuple[list[str], list[list[str]]]:
    means = {budget: {arm: mean(arm, budget=budget) for arm in arms} for budget in budgets}
    full = {budget: max(found.seeds * found.lists for found in of.values() if found) for budget, of in means.items()}
    lines = []
    for arm, label in arms.items():
        spent = (mean_of(rows, arm, what) for what in ("updates", "compute"))
        cells = (_mean_text(of[arm], full[budget]) for budget, of in means.items())
        lines.append([label, *("" if value is None else f"{value:,.0f}" for value in spent), *cells])
    return ["arm", "updates", "compute", *_columns(budgets)], lines


def _classes(rows: Sequence[Row], arms: Mapping[str, str], classes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    lines = []
    for arm, label in arms.items():
        own = [row["iou"] for row in rows if row["arm"] == arm]
        values = [[iou[name] for iou in own if iou.get(name) is not None] for name in classes]
        missing = "not defined" if own else MISSING
        lines.append([label, *(f"{100 * fsum(v) / len(v):.1f}" if v else missing for v in values)])
    return ["arm", *classes], lines


def _differences(
    name: str,
    arms: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    budgets: Mapping[str, int],
    budget: str,
    difference: Callable[..., Difference | None],
) -> list[Table]:
    named = {f"{arms[a]} − {arms[b]}": (a, b) for a, b in pairs if a in arms and b in arms}
    if not named:
        return []
    found = {label: {size: difference(*pair, budget=size) for size in budgets} for label, pair in named.items()}
    lines = [[label, *map(_difference_text, of.values())] for label, of in found.items()]
    tables = [Table(f"{name}: differences in mIoU by label budget", ["difference", *_columns(budgets)], lines)]
    here = {label: {(s, n): value for s, n, value in at.pairs} for label, of in found.items() if (at := of.get(budget))}
    lists = sorted({cell[1] for cells in here.values() for cell in cells})
    lines = [
        [label, str(seed), *(_signed(cells[seed, n]) if (seed, n) in cells else "" for n in lists)]
        for label, cells in here.items()
        for seed in sorted({seed for seed, _ in cells})
    ]
    if lines:
        header = ["difference", "seed", *(f"list {n}" for n in lists)]
        tables.append(Table(f"{name}: every difference in mIoU at {_crops(budget)}", header, lines))
    return tables


def _purity(rows: Sequence[Row], arms: Mapping[str, str]) -> Table | None:
    lines = []
    for arm, label in arms.items():
        own = (row for row in rows if row["arm"] == arm and row["evaluation"] == "purity")
        for row in sorted(own, key=lambda row: (row["seed"], str(row.get("phase")))):
            gain = row["purity"]
            text = (
                MISSING
                if gain["mean"] is None
                else _signed(gain["mean"]) + _interval(gain["low"], gain["high"], _signed)
            )
            lines.append([label, str(row.get("phase", "")), str(row["seed"]), text, str(gain["n"])])
    title = "Purity: share of the largest class in guided boxes minus that in random boxes, points, mixed views"
    return Table(title, ["arm", "phase", "seed", "gain", "views"], lines) if lines else None


def _columns(budgets: Mapping[str, int]) -> list[str]:
    return [name if name == str(crops) else f"{name} ({crops})" for name, crops in budgets.items()]


def _crops(budget: str) -> str:
    return f"{budget} crops"


def _mean_text(found: Mean | None, full: int) -> str:
    if found is None:
        return MISSING
    deviation = "" if found.deviation is None else f" ± {100 * found.deviation:.1f}"
    few = f" [{found.seeds}×{found.lists}]" if found.seeds * found.lists < full else ""
    return f"{100 * found.mean:.1f}{deviation}{_interval(found.low, found.high, lambda x: f'{100 * x:.1f}')}{few}"


def _difference_text(found: Difference | None) -> str:
    return MISSING if found is None else _signed(found.mean) + _interval(found.low, found.high, _signed)


def _interval(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    return "" if low is None or high is None else f" ({text(low)} to {text(high)})"


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")
