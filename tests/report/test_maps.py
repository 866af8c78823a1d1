"""The pictures are looked into: colours where they belong, nothing cut off."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageColor

from grass_jax.data.labels import IGNORE, PALETTE
from grass_jax.report import maps
from grass_jax.segment.purity import box_purity, summarise_purity

GREEN, BLUE, ORANGE = (0, 128, 0), (0, 0, 200), (255, 160, 0)
COLOURS = np.array([GREEN, BLUE], np.uint8)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def close_to(picture, colour, tolerance=6):
    return (np.abs(picture - np.array(colour)) <= tolerance).all(-1)


@pytest.fixture
def drawn(monkeypatch):
    """The figures in place of their files."""
    figures = []
    monkeypatch.setattr(maps, "save", lambda figure, path: figures.append(figure))
    return figures


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def assert_nothing_is_cut_off(figure: Figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())  # of everything that is visible, in inches
    assert min(drawn.x0, drawn.y0) >= -0.01
    assert (np.array([drawn.x1, drawn.y1]) <= figure.get_size_inches() + 0.01).all()


def test_a_row_shows_image_truth_prediction_and_errors(tmp_path):
    truth, prediction = np.zeros((2, 60, 60), np.uint8)
    truth[:, 30:] = 1
    truth[:15] = IGNORE
    prediction[:, 45:] = 1  # columns 30 to 44 are wrong
    image = np.full((60, 60, 3), ORANGE, np.uint8)
    path = tmp_path / "figures" / "panels.png"
    maps.panels(path, [image], [truth], [prediction], ["a", "b"], COLOURS, "title")
    assert [file.name for file in path.parent.iterdir()] == ["panels.png"]
    picture = pixels(path)
    orange = close_to(picture, ORANGE)
    y, x = np.nonzero(orange)
    assert orange[y.min() : y.max() + 1, x.min() : x.max() + 1].all()
    side, top = x.max() + 1 - x.min(), y.min()  # panels are equally large and on one line
    panels = picture[top : top + side]

    def share(colour, panel, tolerance=6):
        mask = close_to(panels, colour, tolerance)
        width = picture.shape[1] / 4
        return mask[:, int(panel * width) : int((panel + 1) * width)].sum() / side**2

    assert share(GREEN, 1) == pytest.approx(0.5 * 0.75, abs=0.03)
    assert share(BLUE, 1) == pytest.approx(0.5 * 0.75, abs=0.03)
    assert share(GREEN, 2) == pytest.approx(0.75, abs=0.03)  # the whole prediction, on ignored pixels, too
    assert share(BLUE, 2) == pytest.approx(0.25, abs=0.03)
    assert share((255, 0, 255), 3) == pytest.approx(0.25 * 0.75, abs=0.03)
    assert share(maps.RIGHT, 3) == pytest.approx(0.75 * 0.75, abs=0.03)
    for panel in (1, 3):
        stripes = [share(grey, panel) for grey in maps.GREYS]
        assert min(stripes) > 0.08
        assert sum(stripes) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    "colours", [[(214, 39, 40), GREEN], [(250, 20, 230), GREEN], [(250, 20, 230), (30, 20, 20)], PALETTE]
)
def test_errors_have_a_colour_of_their_own(drawn, colours):
    colours = np.array([ImageColor.getrgb(c) if isinstance(c, str) else c for c in colours], np.uint8)
    truth = np.repeat([[0, 1, IGNORE]], 3, 0).astype(np.uint8)
    names = [f"class {i}" for i in range(len(colours))]
    maps.panels("", [np.zeros((3, 3, 3), np.uint8)], [truth], [np.zeros_like(truth)], names, colours, "t")
    errors = drawn[0].axes[3].get_images()[0].get_array().astype(int)
    wrong = errors[0, 1]
    others = [*colours.astype(int), *errors[:, 0], *errors[:, 2]]
    assert min(sum((a - b) ** 2 for a, b in zip(wrong, other, strict=True)) ** 0.5 for other in others) > 100
    patches = {patch.get_label(): patch.get_facecolor() for patch in drawn[0].legends[0].get_patches()}
    np.testing.assert_allclose(np.array(patches["error"][:3]) * 255, wrong, atol=0.01)
    for name, colour in zip(names, colours, strict=True):
        np.testing.assert_allclose(np.array(patches[name][:3]) * 255, colour, atol=0.01)


def test_the_row_says_how_much_is_right_of_what_counts(drawn):
    truth = np.array([[0, 1, 1, 255]], np.uint8).repeat(4, 0)
    images = [np.zeros((4, 4, 3), np.uint8)] * 2
    nothing = np.full((4, 4), IGNORE, np.uint8)
    maps.panels("", images, [truth, nothing], [truth * 0] * 2, ["a", "b"], COLOURS, "t", names=["one", "two"])
    assert {"one\n33% right", "two\nno labels"} <= set(texts(drawn[0]))


def test_scenes_of_any_size_and_twenty_long_names(drawn):
    names = [f"a rather long class name {i}" for i in range(20)]
    colours = np.random.default_rng(0).integers(0, 255, (20, 3)).astype(np.uint8)
    shapes = [(40, 2000), (2000, 40), (1, 1), (1500, 1500)]
    masks = [np.random.default_rng(1).integers(0, 20, shape).astype(np.uint8) for shape in shapes]
    images = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
    maps.panels("", images, masks, masks, names, colours, "twenty")
    assert_nothing_is_cut_off(drawn[0])
    assert set(names) <= set(texts(drawn[0]))
    sides = [max(image.get_array().shape[:2]) for ax in drawn[0].axes for image in ax.get_images()]
    assert max(sides) <= maps.MOST_PIXELS


def test_paint_stripes_what_is_no_class():
    painted = maps.paint(np.array([[0, 1], [IGNORE, 7]], np.uint8), COLOURS)
    np.testing.assert_array_equal(painted[0], COLOURS)
    assert all(tuple(colour) in set(map(tuple, maps.GREYS.tolist())) for colour in painted[1].tolist())


def test_no_scene_is_an_error():
    with pytest.raises(ValueError, match="at least one scene"):
        maps.panels("", [], [], [], ["a"], COLOURS[:1], "t")


@pytest.mark.parametrize("k", [1, 2, 6, 20])
def test_confusion_of_any_number_of_classes(drawn, k):
    matrix = np.random.default_rng(0).integers(0, 10**6, (k, k))
    matrix[k // 2] = 0 if k > 1 else 5
    maps.confusion("", matrix, [f"a long class name {i}" for i in range(k)])
    assert_nothing_is_cut_off(drawn[0])


def test_confusion_shows_shares_of_the_truth_and_counts(drawn, tmp_path, monkeypatch):
    matrix = np.array([[750, 250, 0], [0, 0, 0], [3, 2_000_000, 999_999]])
    maps.confusion("", matrix, ["road", "tree", "water"])
    assert {"75%\n750", "25%\n250", "<1%\n3", "67%\n2 M", "33%\n1 M", "road\n1 k px", "tree\n0 px"} <= set(
        texts(drawn[0])
    )
    shares = drawn[0].axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(shares[0], [0.75, 0.25, 0])
    assert np.ma.getmaskarray(np.ma.masked_invalid(shares))[1].all()


def test_the_probe_curve_names_phases_and_their_last_value(drawn):
    records = [
        {"step": 0, "phase": "random encoder", "miou": 0.2},
        {"step": 10, "phase": "warmup", "miou": 0.25},
        {"step": 20, "phase": "warmup", "miou": 0.3},
        {"step": 30, "phase": "gs", "miou": None},
        {"step": 40, "phase": "gs", "miou": 0.35},
    ]
    maps.probe_curve("", records)
    assert {"random encoder 0.200", "0.300", "0.350", "warmup", "gs"} <= set(texts(drawn[0]))
    assert "0.250" not in texts(drawn[0])
    line = drawn[0].axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_xydata(), [[0, 0.2], [10, 0.25], [20, 0.3], [40, 0.35]])
    names = {text.get_text(): text.get_position()[0] for text in drawn[0].axes[0].texts}
    assert (names["warmup"], names["gs"]) == (10, 30)
    assert_nothing_is_cut_off(drawn[0])


@pytest.mark.parametrize("count", [0, 1])
def test_probe_curves_without_much_to_show(tmp_path, count):
    maps.probe_curve(tmp_path / "probe.png", [{"step": 0, "phase": "random", "miou": 0.2}][:count])
    blue = close_to(pixels(tmp_path / "probe.png"), (31, 119, 180))
    assert blue.any() == (count > 0)


def test_purity_shows_every_kind_of_boxes(drawn):
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 12, (20, 4, 4)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    corners = rng.integers(0, 8, (20, 2))
    boxes = {"guided": np.hstack([corners, corners + 6]), "random encoder": np.hstack([corners // 2, corners + 4])}
    boxes |= {"the next view's box": np.roll(boxes["guided"], 2, 0), "activation only": boxes["guided"]}
    records = {name: box_purity(masks, own, 12, rng) for name, own in boxes.items()}
    names = [f"class of name {i}" for i in range(12)]
    summary = summarise_purity(records, np.arange(10), names)
    maps.purity("", summary)
    assert_nothing_is_cut_off(drawn[0])
    assert set(boxes) | set(names) <= set(texts(drawn[0]))
    share, entropy, pairs, _ = drawn[0].axes
    for ax, measure in ((share, "majority"), (entropy, "entropy")):
        points = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"]
        assert points == [kind["mixed"][measure]["mean"] for kind in summary["boxes"].values()]
        spans = [list(line.get_xdata()) for line in ax.get_lines() if line.get_linewidth() > 2]
        means = [kind["mixed"][measure] for kind in summary["boxes"].values()]
        assert spans == [[mean["low"], mean["high"]] for mean in means]
    assert len([line for line in pairs.get_lines() if line.get_marker() == "o"]) == 6


def test_purity_of_one_group_without_a_label(drawn):
    empty = box_purity(np.full((2, 8, 8), IGNORE, np.uint8), np.tile([0, 0, 4, 4], (2, 1)), 2, np.random.default_rng(0))
    maps.purity("", summarise_purity({"guided": empty}, ["one"], ["a", "b"]))
    assert texts(drawn[0]).count("not measured") == 5
    assert_nothing_is_cut_off(drawn[0])


def test_no_global_state_of_pyplot():
    assert "pyplot" not in Path(maps.__file__).read_text()
