"""The report of fabricated lines: what stands in which cell, in Markdown and LaTeX."""

import re

import numpy as np
import pytest

from grass_jax.report.comparison import mean_and_interval, paired_difference
from grass_jax.report.comparison_tables import Table, latex, markdown, write_report
from grass_jax.segment.metrics import scores

CLASSES = ("road", "tree_&_bush", "water")
ARMS = {
    "random": "random",
    "simclr_compute": "SimCLR, equal compute",
    "gs": "GS",
    "gs_random": "random boxes",
    "byol": "BYOL",  # declared, without lines
}
RIGHT = {"random": 20, "simclr_compute": 60, "gs": 200, "gs_random": 80}
BUDGETS = {"10": 10, "50": 50, "all": 320}


def fabricate(evaluation, arms=tuple(RIGHT), budgets=tuple(BUDGETS), seeds=(0, 1), lists=(0, 1)):
    rng = np.random.default_rng(len(evaluation))
    rows = []
    for arm, budget, seed, number in ((a, b, s, n) for a in arms for b in budgets for s in seeds for n in lists):
        scenes = {
            f"s{i}": {"group": f"g{i % 2}", "matrix": rng.integers(0, 50, (3, 3)) + RIGHT[arm] * np.eye(3, dtype=int)}
            for i in range(4)
        }
        row = {"data": "sample", "arm": arm, "seed": seed, "evaluation": evaluation, "budget": budget, "list": number}
        row["scenes"] = {name: {**s, "matrix": s["matrix"].tolist()} for name, s in scenes.items()}
        found = scores(sum(s["matrix"] for s in scenes.values()), CLASSES)
        row |= {"crops": BUDGETS[budget], "iou": found["iou"], "miou": found["miou"], "encoder": "resnet18"}
        rows.append({**row, "updates": 1500, "compute": 0.0 if arm == "random" else 1600.25 + seed, "commit": "abc"})
    return rows


def purity(arm, seed, phase, mean=0.02):
    gain = {"mean": mean, "low": None if mean is None else -0.01, "high": None if mean is None else 0.05, "n": 41}
    key = {"data": "sample", "arm": arm, "seed": seed, "evaluation": "purity", "phase": phase}
    return {**key, "purity": gain, "updates": 7, "compute": 7.0}


@pytest.fixture
def rows():
    lines = [*fabricate("probe"), *fabricate("finetune", budgets=("50",))]
    return [*lines, purity("gs", 1, "gs"), purity("gs", 0, "warmup", None), purity("gs", 0, "gs")]


def table(text, title):
    """Rows of a Markdown table as {first cell: {column: cell}}; of several with one first cell the last."""
    lines = text[text.index(f"### {title}\n") :].split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in lines]
    assert len({len(row) for row in lines}) == 1  # aligned
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def test_every_cell_says_mean_and_interval_in_points(rows, tmp_path):
    text = write_report(tmp_path, rows, ARMS, CLASSES)
    assert (tmp_path / "tables.md").read_text("utf-8") == text
    for title, evaluation, area in (
        ("Linear probe: mIoU", "probe", False),
        ("Linear probe: area-balanced mIoU", "probe", True),
        ("Fine-tuning: mIoU", "finetune", False),
    ):
        found = table(text, f"{title} by label budget")
        assert list(found) == list(ARMS.values())
        for arm in RIGHT:
            cells = found[ARMS[arm]]
            assert (cells["updates"], cells["compute"]) == ("1,500", "0" if arm == "random" else "1,601")
            for column, budget in {"10": "10", "50": "50", "all (320)": "all"}.items():
                if column not in cells:
                    assert evaluation == "finetune"
                    continue
                mean = mean_and_interval(rows, arm, evaluation, budget, area=area)
                assert mean is not None
                m, low, high, sd = (100 * value for value in mean[:4])
                assert cells[column] == f"{m:.1f} ± {sd:.1f} ({low:.1f} to {high:.1f})"
        assert found["BYOL"]["50"] == "not measured"
        assert found["BYOL"]["compute"] == ""


def test_classes_are_means_over_lines(rows, tmp_path):
    undefined = fabricate("probe", arms=("random",))
    for row in undefined:
        row["iou"] = {"road": 0.25, "tree_&_bush": None, "water": 0.5 if row["list"] else None}
    rows = [row for row in rows if row["arm"] != "random" or row["evaluation"] != "probe"] + undefined
    found = table(write_report(tmp_path, rows, ARMS, CLASSES), "Linear probe: IoU by class at 50 crops")
    own = [r["iou"] for r in rows if (r["arm"], r["evaluation"], r.get("budget")) == ("gs", "probe", "50")]
    assert len(own) == 4
    for name in CLASSES:
        assert found["GS"][name] == f"{100 * np.mean([iou[name] for iou in own]):.1f}"
    assert found["random"] == {"arm": "random", "road": "25.0", "tree_&_bush": "not defined", "water": "50.0"}
    assert set(found["BYOL"].values()) == {"BYOL", "not measured"}


def test_every_difference_stands_in_the_report(rows, tmp_path):
    arms = {**ARMS, "warmup": "warm-up"}
    text = write_report(tmp_path, rows, arms, CLASSES)
    means = table(text, "Linear probe: differences in mIoU by label budget")
    assert list(means) == [
        *("GS − SimCLR, equal compute", "GS − random boxes", "GS − warm-up", "GS − random"),
        *("random boxes − SimCLR, equal compute", "SimCLR, equal compute − warm-up", "warm-up − random"),
    ]
    assert means["GS − warm-up"]["50"] == "not measured"
    each = table(text, "Linear probe: every difference in mIoU at 50 crops")
    assert "GS − warm-up" not in each
    for other in ("simclr_compute", "random"):
        found = paired_difference(rows, "gs", other, evaluation="probe", budget="50")
        assert found is not None
        mean, low, high = (f"{100 * value:+.2f}" for value in found[:3])
        assert means[f"GS − {ARMS[other]}"]["50"] == f"{mean} ({low} to {high})"
        last = {f"list {n}": f"{100 * value:+.2f}" for seed, n, value in found.pairs if seed == 1}
        assert each[f"GS − {ARMS[other]}"] == {"difference": f"GS − {ARMS[other]}", "seed": "1", **last}


def test_purity_lines_are_in_order(rows, tmp_path):
    text = write_report(tmp_path, rows, ARMS, CLASSES)
    lines = [re.split(r" *\| *", line)[1:-1] for line in text[text.index("### Purity") :].splitlines()[4:]]
    assert lines == [
        ["GS", "gs", "0", "+2.00 (−1.00 to +5.00)", "41"],
        ["GS", "warmup", "0", "not measured", "41"],
        ["GS", "gs", "1", "+2.00 (−1.00 to +5.00)", "41"],
    ]


def test_the_verdict_rests_on_fine_tuning_at_50_crops(rows, tmp_path):
    def verdict(lines, **options):
        return next(p for p in write_report(tmp_path, lines, ARMS, CLASSES, **options).split("\n\n") if "Verdict" in p)

    size = "2 seeds × 2 lists, 4 blocks of test scenes"
    assert verdict(rows).startswith(
        f"Verdict (fine-tuned mIoU at 50 crops, the primary endpoint; {size}): supports: GS is better"
    )
    probe = [row for row in rows if row["evaluation"] == "probe"]
    assert verdict(probe).startswith(
        "Verdict (fine-tuned mIoU at 50 crops, the primary endpoint): not measured. "
        f"Direction only (linear probe at 50 crops; {size}): supports: "
    )
    assert "fine-tuned mIoU at 10 crops, which is not the primary endpoint): not measured. " in verdict(
        rows, budget="10", blocks="group"
    )
    assert verdict([]).endswith("Direction only (linear probe at 50 crops): not measured.")


def test_the_order_of_lines_means_nothing(rows, tmp_path):
    for folder, lines in (("a", rows), ("b", [rows[i] for i in np.random.default_rng(0).permutation(len(rows))])):
        write_report(tmp_path / folder, lines, ARMS, CLASSES)
    for name in ("tables.md", "tables.tex"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_undeclared_arms_are_left_out_and_fewer_seeds_are_marked(rows, tmp_path):
    late = [row for row in rows if row["arm"] != "gs_random" or row["seed"] == 0]
    text = write_report(tmp_path, late, {name: ARMS[name] for name in ("gs", "gs_random")}, CLASSES)
    found = table(text, "Linear probe: mIoU by label budget")
    assert list(found) == ["GS", "random boxes"]
    assert re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\) \[1×2\]", found["random boxes"]["50"])
    assert "[" not in found["GS"]["50"]
    assert "SimCLR" not in text.replace("SimCLR at equal compute", "")
    assert "encoder: resnet18. commit: abc." in text


def test_files_of_a_report(rows, tmp_path):
    truth = np.zeros((8, 8), np.uint8)
    pictures = [("s0", np.zeros((8, 8, 3), np.uint8), truth, {"gs": truth})]
    write_report(tmp_path / "new", rows, ARMS, CLASSES, pictures=pictures)
    names = ["budget.png", "compute.png", "predictions.png", "tables.md", "tables.tex"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == names


def test_a_report_is_of_one_data_set(rows, tmp_path):
    with pytest.raises(ValueError, match="2 data sets, other, sample: each needs a report of its own"):
        write_report(tmp_path, [*rows, {**rows[0], "data": "other"}], ARMS, CLASSES)


def test_both_renderers_escape_what_means_something_to_them():
    parts = [Table("a_b", ["x|y", "50 %"], [["tree_&_bush", "−1.5 ± 2"], ["c", "d"]]), "p ~ {$5} #1 ^ \\ <1×2>"]
    assert markdown(parts) == (
        "### a_b\n\n"
        "| x\\|y        |     50 % |\n"
        "| ----------- | -------: |\n"
        "| tree_&_bush | −1.5 ± 2 |\n"
        "| c           |        d |\n\n"
        "p ~ {$5} #1 ^ \\ <1×2>\n"
    )
    text = latex(parts)
    assert r"\caption{a\_b}" in text
    assert r"\begin{tabular}{lr}" in text
    assert (
        "\\toprule\nx$|$y & 50 \\% \\\\\n\\midrule\ntree\\_\\&\\_bush & $-$1.5 $\\pm$ 2 \\\\\nc & d \\\\\n\\bottomrule"
        in text
    )
    assert text.endswith(
        "p \\textasciitilde{} \\{\\$5\\} \\#1 \\textasciicircum{} \\textbackslash{} $<$1$\\times$2$>$\n"
    )
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")
