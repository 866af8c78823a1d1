"""Means, differences and intervals against plain loops that score every drawn matrix with the field's own function."""

import json

import numpy as np
import pytest

from grass_jax.report.comparison import (
    Difference,
    latest,
    mean_and_interval,
    paired_difference,
    read_results,
    verdict,
)
from grass_jax.segment.metrics import area_scores, scores

CLASSES = ("a", "b", "c")
GROUPS = {"s0": "west", "s1": "west", "s2": "east", "s3": "north", "s4": "north"}


def line(arm, seed, number, matrices, evaluation="probe", budget="50"):
    scenes = {name: {"group": GROUPS[name], "matrix": m.tolist()} for name, m in matrices.items()}
    return {"arm": arm, "seed": seed, "list": number, "evaluation": evaluation, "budget": budget, "scenes": scenes}


def draw(rng, right=0):
    """Matrices of the scenes; the class c is in one of them alone, and the scene s3 has no label."""
    matrices = {name: rng.integers(0, 50, (3, 3)) + right * np.eye(3, dtype=int) for name in GROUPS}
    for name, matrix in matrices.items():
        if name != "s1":
            matrix[2] = matrix[:, 2] = 0
    matrices["s3"][:] = 0
    return matrices


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    lines = [line(arm, seed, n, draw(rng)) for arm in ("x", "y") for seed in (0, 3, 7) for n in (0, 1)]
    return [*lines, line("x", 0, 0, draw(rng), budget="10"), line("x", 0, 0, draw(rng), evaluation="finetune")]


def miou(rows, arm, seed, number, blocks, kind, area=False):
    """mIoU of drawn blocks (names, with repeats), by the field's own functions."""
    (row,) = (
        r
        for r in rows
        if (r["arm"], r["seed"], r["list"], r["evaluation"], r["budget"]) == (arm, seed, number, "probe", "50")
    )
    drawn = []
    for block in blocks:
        own = [s["matrix"] for name, s in row["scenes"].items() if block == (name if kind == "scene" else s["group"])]
        drawn.append(np.sum(own, 0))
    if area:
        return area_scores({str(i): matrix for i, matrix in enumerate(drawn)}, CLASSES)["miou"]
    return scores(np.sum(drawn, 0), CLASSES)["miou"]


def plain(rows, signs, kind, area=False, resamples=60, seed=5):
    """Mean and interval by loops over resamples, seeds and lists."""
    seeds, lists, blocks = [0, 3, 7], [0, 1], sorted(GROUPS if kind == "scene" else set(GROUPS.values()))

    def value(s, n, drawn):
        each = [miou(rows, arm, s, n, drawn, kind, area) for arm in signs]
        return None if None in each else sum(f * v for f, v in zip(signs.values(), each, strict=True))

    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(len(of), [1 / len(of)] * len(of), resamples) for of in (seeds, lists, blocks)]
    means = []
    for i in range(resamples):
        s_drawn, l_drawn, b_drawn = (np.repeat(of, c[i]) for of, c in zip((seeds, lists, blocks), counts, strict=True))
        found = [value(s, n, b_drawn.tolist()) for s in s_drawn for n in l_drawn]
        if None not in found:  # only blocks without any label were drawn
            means.append(np.mean(found))
    return np.mean([value(s, n, blocks) for s in seeds for n in lists]), *np.percentile(means, (2.5, 97.5))


@pytest.mark.parametrize("kind", ["scene", "group"])
def test_the_difference_is_that_of_plain_loops(rows, kind):
    found = paired_difference(rows, "x", "y", evaluation="probe", budget="50", blocks=kind, resamples=60, seed=5)
    assert found is not None
    np.testing.assert_allclose(found[:3], plain(rows, {"x": 1, "y": -1}, kind), rtol=1e-12)
    assert found[3:6] == (3, 2, 5 if kind == "scene" else 3)
    for seed, number, difference in found.pairs:
        one, other = (miou(rows, arm, seed, number, GROUPS, "scene") for arm in "xy")
        assert difference == pytest.approx(one - other, rel=1e-12)
    assert [pair[:2] for pair in found.pairs] == [(s, n) for s in (0, 3, 7) for n in (0, 1)]


@pytest.mark.parametrize(("kind", "area"), [("scene", False), ("group", False), ("group", True)])
def test_the_mean_is_that_of_plain_loops(rows, kind, area):
    found = mean_and_interval(rows, "x", "probe", "50", area=area, blocks=kind, resamples=60, seed=5)
    assert found is not None
    np.testing.assert_allclose(found[:3], plain(rows, {"x": 1}, kind, area), rtol=1e-12)
    of_seeds = [
        np.mean([miou(rows, "x", s, n, sorted(set(GROUPS.values())), "group", area) for n in (0, 1)]) for s in (0, 3, 7)
    ]
    assert found.deviation == pytest.approx(np.std(of_seeds, ddof=1), rel=1e-9)


def test_lines_mean_the_same_in_any_order(rows):
    difference = [
        paired_difference(lines, "x", "y", evaluation="probe", budget="50", blocks=kind)
        for kind in ("scene", "group")
        for lines in (rows, rows[::-1])
    ]
    assert difference[0] == difference[1]
    assert difference[2] == difference[3]


def test_equal_arms_differ_by_nothing(rows):
    twins = [{**row, "arm": arm} for row in rows if row["arm"] == "x" for arm in ("x", "z")]
    found = paired_difference(twins, "x", "z", evaluation="probe", budget="50")
    assert found is not None
    assert found[:3] == (0, 0, 0)


def test_an_effect_in_every_scene_excludes_zero():
    rng = np.random.default_rng(1)
    lines = [
        line(arm, seed, n, draw(rng, right))
        for arm, right in (("x", 200), ("y", 20))
        for seed in (0, 1)
        for n in (0, 1)
    ]
    found = paired_difference(lines, "x", "y", evaluation="probe", budget="50")
    back = paired_difference(lines, "y", "x", evaluation="probe", budget="50")
    assert found is not None
    assert back is not None
    assert 0 < found.low < found.mean < found.high
    np.testing.assert_allclose([-found.mean, -found.high, -found.low], back[:3])


def test_only_a_full_grid_counts():
    rng = np.random.default_rng(2)
    cells = {
        "x": [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)],
        "y": [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0)],
    }
    lines = [line(arm, *cell, draw(rng)) for arm, own in cells.items() for cell in own]
    found = paired_difference(lines, "x", "y", evaluation="probe", budget="50", resamples=10)
    assert found is not None
    assert [pair[:2] for pair in found.pairs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    alone = mean_and_interval(lines, "x", "probe", "50", resamples=10)
    assert alone is not None
    assert (alone.seeds, alone.lists, alone.deviation) == (1, 3, None)
    assert paired_difference(lines, "x", "nobody", evaluation="probe", budget="50") is None
    assert paired_difference(lines, "x", "y", evaluation="finetune", budget="50") is None
    assert mean_and_interval(lines, "x", "probe", "all") is None


def test_one_block_has_no_interval():
    rng = np.random.default_rng(3)
    lines = [line(arm, 0, 0, {"s0": draw(rng)["s0"]}) for arm in "xy"]
    found = paired_difference(lines, "x", "y", evaluation="probe", budget="50")
    assert found is not None
    assert found[1:6] == (None, None, 1, 1, 1)


def test_arms_must_be_scored_on_the_same_scenes(rows):
    rows[-3]["scenes"].pop("s0")  # the last line of y
    with pytest.raises(ValueError, match="probe lines at 50 crops of x and y were scored on different test scenes"):
        paired_difference(rows, "x", "y", evaluation="probe", budget="50")
    with pytest.raises(ValueError, match="'scene' or 'group', not 'pixel'"):
        mean_and_interval(rows, "x", "probe", "50", blocks="pixel")


def test_a_torn_last_line_is_left_out_and_another_is_an_error(tmp_path):
    path, lines = tmp_path / "results.jsonl", [{"arm": "gs", "seed": i, "label": "Grün"} for i in range(3)]
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines).encode()
    path.write_bytes(text)
    assert read_results(path) == lines
    for cut in (3, len('n"}\n') + 1):  # the second one within a character
        path.write_bytes(text[:-cut])
        assert read_results(path) == lines[:2]
    path.write_bytes(text[:-cut] + b"\n" + text)
    with pytest.raises(ValueError, match=r"Line 3 of .*results.jsonl is not a whole result: remove that line\."):
        read_results(path)
    path.write_bytes(b"")
    assert read_results(path) == []


def test_of_exact_repeats_the_last_one_counts():
    one = {"data": "d", "arm": "gs", "seed": 0, "evaluation": "probe", "budget": "50", "list": 0, "config_hash": "a"}
    purity = {"data": "d", "arm": "gs", "seed": 0, "evaluation": "purity", "phase": "warmup"}
    others = [{**one, "list": 1}, {**one, "arm": "x"}, purity, {**purity, "phase": "gs"}]
    again = {**one, "config_hash": "b"}
    assert latest([one, *others, again]) == [again, *others]


def difference(low, high):
    middle = None if low is None else (low + high) / 2
    return Difference(middle or 0.0, low, high, 2, 5, 24, ())


@pytest.mark.parametrize(
    ("primary", "control", "sentence"),
    [
        (None, (0.01, 0.02), "not measured."),
        ((0.001, 0.03), (0.001, 0.02), "supports: GS is better"),
        ((0.001, 0.01), (0.001, 0.02), "supports: GS is better"),
        ((0.001, 0.03), (0.0, 0.02), "random boxes explain it: "),
        ((0.001, 0.01), (-0.02, 0.02), "random boxes explain it: "),
        ((0.001, 0.03), None, "not measured: GS is better than SimCLR at equal compute, but random boxes"),
        ((0.0, 0.0156), (0.001, 0.02), "against 1.57 points: the interval"),
        ((-0.02, 0.001), None, "against 1.57 points: the interval"),
        ((-0.02, -0.001), (0.001, 0.02), "against 1.57 points: GS is worse"),
        ((-0.004, 0.016), (0.001, 0.02), "inconclusive: the half-width of the interval is 1.00 points."),
        ((None, None), (0.001, 0.02), "inconclusive: there is no interval"),
    ],
)
def test_the_verdict_follows_the_rule(primary, control, sentence):
    found = verdict(*(None if ends is None else difference(*ends) for ends in (primary, control)))
    assert found.startswith(sentence)
    assert found.count(".") - found.count("1.57") - found.count("1.00") == 1
