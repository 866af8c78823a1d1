"""The paper's own data sets: their masks as published mean what their documentation says."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from grass_jax.data.labels import IGNORE, Labels
from grass_jax.data.masks import open_mask
from grass_jax.data.rasters import open_scene

TILES = Path(__file__).parents[2].parent / "shared" / "data" / "benchmark_tiles"
ISPRS = ("impervious", "building", "low vegetation", "tree", "car", "clutter")
PUBLISHED = {
    "loveda": Labels(
        ("background", "building", "road", "water", "barren", "forest", "agriculture"), (1, 2, 3, 4, 5, 6, 7), (0,)
    ),
    "isprs": Labels(ISPRS, (1, 2, 3, 4, 5, 6), (0,)),
    "top": Labels(ISPRS, ("#FFFFFF", "#0000FF", "#00FFFF", "#00FF00", "#FFFF00", "#FF0000"), ("#000000",)),
}
COLOURS = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (0, 0, 0)]


def read(path, labels):
    with open_mask(path, labels) as mask:
        return mask.rows(0, mask.height)


def plain(path):
    """A mask by Pillow and one comparison for each class."""
    pixels = np.asarray(Image.open(path))
    if pixels.ndim == 2:
        return np.where(pixels == 0, IGNORE, pixels.astype(int) - 1)
    expected = np.full(pixels.shape[:2], -1)
    for class_id, colour in zip([0, 1, 2, 3, 4, 5, IGNORE], COLOURS, strict=True):
        expected[(pixels == colour).all(-1)] = class_id
    return expected


@pytest.mark.skipif(not TILES.is_dir(), reason="the published tiles are not here")
@pytest.mark.parametrize("kind", ["loveda", "potsdam", "vaihingen", "top_potsdam"])
def test_published_masks(kind):
    labels = PUBLISHED[{"loveda": "loveda", "top_potsdam": "top"}.get(kind, "isprs")]
    paths = sorted((TILES / "masks").glob(f"{kind}_*"))
    assert paths
    for path in paths:
        result = read(path, labels)
        np.testing.assert_array_equal(result, plain(path))
        assert len(np.unique(result[result != IGNORE])) >= 2
        image = next((TILES / "images").glob(f"{path.stem}.*"))
        with open_scene(image) as scene:
            assert result.shape == (scene.height, scene.width)
            assert scene.valid is None  # the near infrared of the GeoTIFFs is no alpha channel


@pytest.mark.parametrize("kind", ["loveda", "isprs", "top"])
def test_masks_in_the_published_ids_and_colours(tmp_path, kind):
    labels, rng = PUBLISHED[kind], np.random.default_rng(0)
    count = len(labels.classes)
    truth = rng.choice(np.array([*range(count), IGNORE], np.uint8), (16, 24))
    if kind == "top":
        table = np.zeros((256, 3), np.uint8)
        table[[*range(count), IGNORE]] = COLOURS
        with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
            raster = rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=3, height=16, width=24, dtype="uint8")
        with raster:
            raster.write(table[truth].transpose(2, 0, 1))
        path = tmp_path / "a.tif"
    else:
        path = tmp_path / "a.png"
        Image.fromarray(np.where(truth == IGNORE, 0, truth + np.uint8(1))).save(path)
    np.testing.assert_array_equal(read(path, labels), truth)
