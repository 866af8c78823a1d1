"""The figures of a comparison are looked into: what is drawn where, in which colour, and nothing is cut off."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color

from grass_jax.data.labels import IGNORE
from grass_jax.report import comparison_figures as figures
from grass_jax.report.comparison import mean_and_interval

ARMS = {f"arm{i}": f"an arm with a rather long name {i}" for i in range(10)} | {"random": "random", "none": "no lines"}
COMPUTE = {arm: 500.0 + 50 * (i // 4) for i, arm in enumerate(ARMS)} | {"random": 0.0}
BUDGETS = {"10": 10, "50": 50, "all": 55}


@pytest.fixture
def drawn(monkeypatch):
    """The figures in place of their files."""
    found = []
    monkeypatch.setattr(figures, "save", lambda figure, path: found.append(figure))
    return found


def fabricate(evaluation, budgets, arms=ARMS):
    rng, rows = np.random.default_rng(0), []
    for arm, budget, number in ((a, b, n) for a in arms if a != "none" for b in budgets for n in (0, 1)):
        scenes = {
            f"s{i}": {"group": "g", "matrix": (rng.integers(1, 50, (2, 2)) + 60 * np.eye(2, dtype=int)).tolist()}
            for i in range(3)
        }
        row = {"arm": arm, "seed": 0, "list": number, "evaluation": evaluation, "budget": budget, "scenes": scenes}
        rows.append({**row, "crops": BUDGETS[budget], "compute": COMPUTE[arm]})
    return rows


def assert_nothing_is_cut_off(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer())
    assert min(box.x0, box.y0) >= -0.01
    assert (np.array([box.x1, box.y1]) <= figure.get_size_inches() + 0.01).all()


def legend(figure):
    """Label -> (colour, marker)."""
    (box,) = figure.legends
    styles = [(line.get_color(), line.get_marker()) for line in box.get_lines()]
    return dict(zip([text.get_text() for text in box.get_texts()], styles, strict=True))


def test_budgets_are_on_a_logarithmic_axis_with_a_panel_for_each_evaluation(drawn):
    rows = [*fabricate("probe", BUDGETS), *fabricate("finetune", ["50", "10"])]
    figures.budget_figure("", rows, ARMS)
    assert_nothing_is_cut_off(drawn[0])
    finetune, probe = drawn[0].axes
    assert [ax.get_title(loc="left") for ax in (finetune, probe)] == ["Fine-tuning", "Linear probe"]
    assert probe.get_xscale() == "log"
    assert [text.get_text() for text in probe.get_xticklabels()] == ["10", "50", "\nall (55)"]
    assert len(probe.lines) == len(probe.collections) == 11
    for arm, line, band in zip(ARMS, probe.lines, probe.collections, strict=False):
        means = [mean_and_interval(rows, arm, "probe", budget) for budget in BUDGETS]
        np.testing.assert_array_equal(line.get_xdata(), [10, 50, 55])
        np.testing.assert_allclose(line.get_ydata(), [100 * m.mean for m in means if m])
        edges = np.unique(band.get_paths()[0].vertices[:, 1])
        np.testing.assert_allclose(edges, np.unique([100 * e for m in means if m for e in (m.low, m.high)]))
    assert list(legend(drawn[0])) == [label for arm, label in ARMS.items() if arm != "none"]


def test_arms_at_one_compute_stand_beside_each_other(drawn):
    rows = fabricate("probe", ["50"])
    figures.compute_figure("", rows, ARMS, "50")
    assert_nothing_is_cut_off(drawn[0])
    (ax,) = drawn[0].axes
    bars, points = ax.lines[::2], ax.lines[1::2]
    assert [point.get_xdata()[0] for point in points] == [COMPUTE[arm] for arm in ARMS if arm != "none"]
    places = np.array([p.get_transform().transform((p.get_xdata()[0], p.get_ydata()[0])) for p in points])
    assert np.diff(np.sort(places[:, 0])).min() > 5  # pixels
    frame = ax.get_window_extent()
    for bar, point, place in zip(bars, points, places, strict=True):
        ends = bar.get_transform().transform(np.column_stack([bar.get_xdata(), bar.get_ydata()]))
        assert ends[0, 1] < place[1] < ends[1, 1]
        assert frame.y0 < ends[0, 1] < ends[1, 1] < frame.y1
        assert frame.x0 < place[0] < frame.x1
        assert point.get_color() == bar.get_color()


def test_an_arm_looks_the_same_in_both_figures_and_like_no_other(drawn):
    rows = fabricate("probe", BUDGETS)
    some = [row for row in rows if row["arm"] not in ("arm1", "arm4")]
    figures.budget_figure("", rows, ARMS)
    figures.compute_figure("", some, ARMS, "50")
    styles, of_some = map(legend, drawn)
    assert all(styles[label] == style for label, style in of_some.items())
    assert len(of_some) == len(styles) - 2
    assert len(set(styles.values())) == len(styles)


def test_a_single_budget_and_a_single_scene_are_drawn(drawn):
    rows = fabricate("finetune", ["50"])
    for row in rows:
        row["scenes"] = {"s0": row["scenes"]["s0"]}
    figures.budget_figure("", rows, ARMS)
    assert_nothing_is_cut_off(drawn[0])
    (ax,) = drawn[0].axes
    left, right = ax.get_xlim()
    assert left * right == pytest.approx(50**2)  # in the middle
    assert all(np.ptp(bar.get_ydata()) == 0 for bar in ax.lines[::2])


def test_without_lines_the_figures_say_so(drawn):
    figures.budget_figure("", [], ARMS)
    figures.compute_figure("", fabricate("probe", ["10"]), ARMS, "50")
    for figure in drawn:
        assert [text.get_text() for text in figure.axes[0].texts] == ["not measured"]
        assert not figure.legends


def test_an_arm_without_compute_is_only_in_the_other_figure(drawn):
    rows = [{**row, "compute": None if row["arm"] != "arm0" else 5.0} for row in fabricate("probe", ["50"])]
    figures.compute_figure("", rows, ARMS, "50")
    assert list(legend(drawn[0])) == [ARMS["arm0"], "random"]
    assert [line.get_xdata()[0] for line in drawn[0].axes[0].lines[1::2]] == [5, 0]


def test_predictions_stand_beside_image_and_truth(drawn):
    colours = np.array([[0, 128, 0], [0, 0, 200]], np.uint8)
    shapes = [(30, 40), (1400, 700), (20, 90)]
    scenes = []
    for i, shape in enumerate(shapes):
        truth = np.zeros(shape, np.uint8)
        truth[: shape[0] // 2] = 1
        predictions = {arm: 1 - truth for arm in ARMS if arm != "none" and (arm, i) != ("arm3", 1)}
        truth[0] = IGNORE if i == 0 else 0
        scenes.append((f"a_long_folder_name/scene_{i:03d}.tif", np.full((*shape, 3), 9, np.uint8), truth, predictions))
    figures.predictions_page("", scenes, ARMS, ["grass", "water"], colours)
    assert_nothing_is_cut_off(drawn[0])
    axes = np.array(drawn[0].axes).reshape(3, 13)
    titles = [ax.get_title().replace("\n", " ") for ax in axes[0]]
    assert titles == ["image", "truth", *(label for arm, label in ARMS.items() if arm != "none")]
    image, truth, first = (ax.get_images()[0].get_array() for ax in axes[0, :3])
    assert (image == 9).all()
    np.testing.assert_array_equal(truth[[1, -1], 0], colours[[1, 0]])
    np.testing.assert_array_equal(first[[1, -1], 0], colours[[0, 1]])
    assert max(axes[1, 2].get_images()[0].get_array().shape) <= 640
    assert not axes[1, 5].get_images()
    assert [text.get_text() for text in axes[1, 5].texts] == ["not measured"]
    patches = {patch.get_label(): patch.get_facecolor() for patch in drawn[0].legends[0].get_patches()}
    assert list(patches) == ["grass", "water", "does not count"]
    assert same_color(patches["water"], tuple(colours[1] / 255))


def test_without_ignored_pixels_the_legend_has_the_classes_alone(drawn):
    truth = np.zeros((4, 4), np.uint8)
    scene = ("s", np.zeros((4, 4, 3), np.uint8), truth, {"arm0": truth})
    figures.predictions_page("", [scene], ARMS, ["grass"], np.zeros((1, 3), np.uint8))
    assert len(drawn[0].axes) == 3
    assert [patch.get_label() for patch in drawn[0].legends[0].get_patches()] == ["grass"]
    with pytest.raises(ValueError, match="at least one scene"):
        figures.predictions_page("", [], ARMS, ["grass"], np.zeros((1, 3), np.uint8))
