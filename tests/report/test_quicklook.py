import numpy as np
import pytest
from PIL import Image

from grass_jax.report.quicklook import QuickLook

CLASSES = ("building", "land & soil", "Straße")
COLOURS = np.array([[255, 0, 0], [0, 200, 0], [10, 20, 255]], np.uint8)


@pytest.mark.parametrize(("height", "width"), [(300, 500), (80, 2500), (2500, 80), (2, 2)])
def test_quick_look_fits_and_shows_every_colour(tmp_path, height, width):
    ids = (np.arange(width) * 3 // width).astype(np.uint8)[None].repeat(height, 0)
    image = np.full((height, width, 3), 77, np.uint8)
    look = QuickLook(height, width)
    for y in range(0, height, 33):  # strips in two panels
        for x in (0, width // 2):
            here = slice(y, y + 33), slice(x, x + width // 2 if x == 0 else width)
            look.add(y, x, image[here], ids[here])
    counts = dict(zip(CLASSES, (5, 10, 85), strict=True))
    look.save(tmp_path / "a.png", counts, COLOURS, title="a.tif", nodata=True)
    with Image.open(tmp_path / "a.png") as picture:
        assert max(picture.size) <= 2048
        found, count = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0, return_counts=True)
    sizes = {tuple(colour): n for colour, n in zip(found.tolist(), count.tolist(), strict=True)}
    swatch = 300  # pixels of a colour in the legend
    assert sizes[77, 77, 77] > 10 * swatch
    for colour in COLOURS[np.unique(ids)].tolist():
        assert sizes[tuple(colour)] > 10 * swatch
    step = max(1, -(-max(height, width) // 960))
    assert look.step == step
    np.testing.assert_array_equal(look._ids, ids[::step, ::step])
    np.testing.assert_array_equal(look._image, image[::step, ::step])
