from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grass_jax.report import figures


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def close_to(picture, colour, tolerance=12):
    return (np.abs(picture - np.array(colour)) <= tolerance).all(-1)


def extent(mask):
    """Half-open (y0, x0, y1, x1) of the pixels that are set."""
    y, x = np.nonzero(mask)
    return y.min(), x.min(), y.max() + 1, x.max() + 1


GREEN, RED, YELLOW, WHITE = (0, 128, 0), (255, 0, 0), (255, 232, 0), (255, 255, 255)


@pytest.fixture(scope="module")
def tiles():
    """Two green views of 64 pixels; the guided views are red; the first map has a peak, the second is constant."""
    views = np.broadcast_to(np.array(GREEN) / 255, (2, 64, 64, 3))
    guided = np.broadcast_to(np.array(RED) / 255, (2, 64, 64, 3))
    maps = np.stack([np.full((4, 4), -0.25), np.full((4, 4), -0.25)])
    maps[0, 1, 2] = 1.0
    boxes = np.array([[16, 8, 32, 56], [0, 0, 64, 64]])
    return {"views": views, "maps": maps, "boxes": boxes, "guided": guided}


@pytest.fixture(scope="module")
def picture(tiles, tmp_path_factory):
    path = tmp_path_factory.mktemp("figure") / "figures" / "guidance_gs.png"
    figures.guidance(path, **tiles, title="GS", fallback=np.array([False, True]))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return pixels(path)


def first_row(picture):
    """The rows of the picture that the first tile takes, from the guided view on the right, which nothing covers."""
    red = close_to(picture, RED).any(1)
    begin = red.argmax()
    return picture[begin : begin + (~red[begin:]).argmax()]


def test_guidance_draws_a_row_per_tile(picture):
    height, width, _ = picture.shape
    assert (width, height) == (860, 650)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500
    green, red = close_to(picture, GREEN), close_to(picture, RED)
    assert green[:, : width // 2].sum() == green.sum() > 100_000
    assert red[:, width // 2 :].sum() == red.sum() > 100_000
    assert np.diff(red.any(1).astype(int)).tolist().count(1) == 2


def test_the_box_stands_where_it_should(picture):
    row = first_row(picture)
    _, x0, _, x1 = extent(close_to(row, GREEN))  # of the view, whose edges the first box does not touch
    assert abs((x1 - x0) - row.shape[0]) <= 2
    by0, bx0, by1, bx1 = extent(close_to(row[:, : x1 + 2], YELLOW))
    drawn = np.array([by0, bx0 - x0, by1, bx1 - x0]) / row.shape[0] * 64
    np.testing.assert_allclose(drawn, [16, 8, 32, 56], atol=0.8)


def test_the_overlay_is_red_where_the_map_is_high_and_blue_where_it_is_low(picture):
    row = first_row(picture)
    side = row.shape[0]
    _, _, _, left = extent(close_to(row, GREEN))
    _, right, _, _ = extent(close_to(row, RED))
    middle = (left + right) // 2
    overlay = row[:, middle - side // 2 : middle + side // 2]
    redness = overlay[..., 0] - overlay[..., 2]

    def around(y, x):
        return redness[tuple(slice(int((v - 0.02) * side), int((v + 0.02) * side)) for v in (y, x))]

    assert around(1.5 / 4, 2.5 / 4).min() > 25  # the middle of the map's row 1, column 2
    assert around(3.5 / 4, 0.5 / 4).max() < 0
    assert around(2.5 / 4, 1.5 / 4).max() < 0  # its mirror image


def test_a_fallback_is_said_so(tiles, tmp_path):
    written = {}
    for name, fallback in (("natural", None), ("fallback", np.array([False, True]))):
        figures.guidance(tmp_path / f"{name}.png", **tiles, title="GS", fallback=fallback)
        written[name] = pixels(tmp_path / f"{name}.png")
    changed = (written["natural"] != written["fallback"]).any(-1)
    assert changed.any()
    box = np.array([0, 0, 64, 64])
    assert figures._box_text(box, 64, True) == "fell back to the whole\nview: no positive value"
    assert figures._box_text(box, 64, False) == "box is the whole view"
    assert figures._box_text(np.array([16, 8, 32, 56]), 64, False) == "box: 19% of the view"


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_any_number_of_bands_and_maps_that_are_not_finite(tmp_path, bands):
    image = np.full((1, 32, 32, bands), 0.5)
    maps = np.full((1, 2, 3), np.nan)
    figures.guidance(tmp_path / "g.png", image, maps, np.array([[0, 0, 32, 32]]), image, title="")
    assert close_to(pixels(tmp_path / "g.png"), RED).any()


def test_no_tile_is_an_error(tmp_path):
    empty = np.zeros((0, 32, 32, 3))
    with pytest.raises(ValueError, match="at least one tile"):
        figures.guidance(tmp_path / "g.png", empty, np.zeros((0, 2, 2)), np.zeros((0, 4)), empty, title="")
    assert not list(tmp_path.iterdir())


def records(count):
    return [
        {
            "step": step,
            "epoch": 1,
            "phase": "warmup" if step <= count / 2 else "gs",
            "loss": None if step % 7 == 3 else 1 + step / count,
            "learning_rate": 0.1,
            "images_per_second": None if step == 1 else 100.0,
            "embedding_std": 0.1,
        }
        | ({} if step <= count / 2 else {"box_area": 0.5, "whole_boxes": 0.1, "fallback": 0.0})
        for step in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 20, 5000])
def test_curves_of_any_length(tmp_path, count):
    figures.curves(tmp_path / "curves.png", records(count))
    picture = pixels(tmp_path / "curves.png")
    assert picture.shape[1] == 1210
    line = close_to(picture, (31, 119, 180))  # matplotlib's first colour
    assert line.any() == (count > 0)
    shade = close_to(picture, (240, 240, 240), 1)  # of the second phase
    assert (shade.sum() > 10_000) == (count > 1)


def test_curves_leave_out_panels_without_numbers(tmp_path):
    warmup = [{"step": s, "phase": "warmup", "loss": 1.0, "learning_rate": 0.1, "box_area": None} for s in (1, 2)]
    figures.curves(tmp_path / "one_row.png", warmup)
    figures.curves(tmp_path / "more_rows.png", records(20))
    assert pixels(tmp_path / "one_row.png").shape[0] < pixels(tmp_path / "more_rows.png").shape[0]


def test_a_long_curve_shows_the_range_of_what_it_averages(tmp_path):
    """A loss that jumps between 0 and 2 at every one of 5000 steps is a flat line in a band, not a solid block."""
    jumping = [{"step": step, "phase": "gs", "loss": 2.0 * (step % 2)} for step in range(5000)]
    figures.curves(tmp_path / "jumping.png", jumping)
    picture = pixels(tmp_path / "jumping.png")
    band = close_to(picture, (210, 228, 240), 3)  # a fifth of the first colour on white
    line = close_to(picture, (31, 119, 180))
    assert band.sum() > 30_000
    y0, _, y1, _ = extent(line)
    assert y1 - y0 < 25


def test_no_global_state_of_pyplot():
    assert "pyplot" not in Path(figures.__file__).read_text()
