import numpy as np
import pytest

from grass_jax.data.builders import sample
from grass_jax.data.landscape import CLASS_NAMES, landscape
from grass_jax.data.landscape.texture import cast_shadow
from grass_jax.data.source import open_tiles

SIZE = 480


@pytest.fixture(scope="module")
def scenes():
    return {seed: landscape(seed, SIZE) for seed in (100, 101, 102, 900)}


def test_the_same_seed_gives_the_same_scene_and_another_seed_another(scenes):
    image, mask = landscape(100, SIZE)
    np.testing.assert_array_equal(image, scenes[100][0])
    np.testing.assert_array_equal(mask, scenes[100][1])
    assert (scenes[100][1] != scenes[101][1]).mean() > 0.3


def test_every_class_is_there_in_sensible_amounts(scenes):
    masks = np.stack([mask for _, mask in scenes.values()])
    shares = np.bincount(masks.ravel(), minlength=len(CLASS_NAMES)) / masks.size
    assert len(shares) == len(CLASS_NAMES) == 6
    assert (shares > 0.01).all(), dict(zip(CLASS_NAMES, shares, strict=True))
    assert (shares < 0.7).all()


def test_pictures_are_neither_flat_nor_burnt(scenes):
    for image, _ in scenes.values():
        assert image.dtype == np.uint8
        assert 20 < image.std() < 80
        assert 60 < image.mean() < 190
        assert (image == 255).mean() < 0.05


def test_masks_are_aligned_with_the_pictures(scenes):
    """Colours change more across the borders of the mask than anywhere else, and nowhere as much when it is moved."""

    def contrast(label, moved=0, axis=0):
        steps = []
        for image, mask in scenes.values():
            inside = np.roll(mask == label, moved, axis)
            step = np.abs(np.diff(image.astype(float), axis=1)).sum(-1)
            steps.append(step[inside[:, 1:] != inside[:, :-1]])
        return np.concatenate(steps).mean()

    for label in range(1, len(CLASS_NAMES)):
        for moved in (-5, 5):
            assert contrast(label) > 1.15 * contrast(label, moved, 0), CLASS_NAMES[label]
            assert contrast(label) > 1.15 * contrast(label, moved, 1), CLASS_NAMES[label]


def test_colour_alone_does_not_give_the_class_away(scenes):
    """The class that is most frequent at each coarse colour is right far less often than a look at the picture."""
    pixels = np.concatenate([image.reshape(-1, 3) for image, _ in scenes.values()]) // 32
    labels = np.concatenate([mask.ravel() for _, mask in scenes.values()])
    table = np.zeros((512, 6), np.int64)
    np.add.at(table, (pixels @ [64, 8, 1], labels), 1)
    assert table.max(axis=1).sum() / len(labels) < 0.8


def test_shadows_fall_away_from_the_sun_as_far_as_the_height_says():
    height = np.zeros((20, 40), np.float32)
    height[8:12, 10:14] = 6
    shade = cast_shadow(height, azimuth=0.0, slope=1.0)  # towards +x, one pixel for each of height
    np.testing.assert_array_equal(np.flatnonzero(shade[10]), np.arange(14, 19))
    assert not shade[7].any()


def test_train_and_val_are_different_scenes_cut_exactly(tmp_path, monkeypatch, scenes):
    monkeypatch.setattr(sample, "SCENE_SIZE", SIZE)
    monkeypatch.setattr(sample, "SCENES", {"train": range(100, 102), "val": range(900, 901)})
    opened = {split: open_tiles("sample", split=split, tile_size=96, data_dir=tmp_path) for split in ("train", "val")}
    assert not set(opened["train"].files) & set(opened["val"].files)
    assert {split: len(source) for split, source in opened.items()} == {"train": 50, "val": 25}
    pixels = np.concatenate([scenes[seed][0].reshape(-1, 3) for seed in (100, 101)]) / 255
    for source in opened.values():
        assert source.bands == opened["train"].bands, "what training subtracts"
        assert (source.bands.numbers, source.bands.dtype, source.bands.high) == ((1, 2, 3), "uint8", (255, 255, 255))
        np.testing.assert_allclose(source.bands.mean, pixels.mean(0), atol=0.01)
        np.testing.assert_allclose(source.bands.std, pixels.std(0), atol=0.01)
        assert source.class_names == CLASS_NAMES
        for i in (0, 7, len(source) - 1):
            file, y, x = source.positions[i]
            image, mask = scenes[int(source.files[file].removeprefix("scene_"))]
            tile = source[i]
            np.testing.assert_array_equal(tile["image"], image[y : y + 96, x : x + 96])
            np.testing.assert_array_equal(tile["mask"], mask[y : y + 96, x : x + 96])
    with pytest.raises(ValueError, match="no split 'test': use train or val"):
        open_tiles("sample", split="test", tile_size=96, data_dir=tmp_path)


def test_the_default_split_has_the_promised_size():
    tiles = (sample.SCENE_SIZE // 96) ** 2
    assert [tiles * len(seeds) for seeds in sample.SCENES.values()] == [1200, 300]
    assert not set(sample.SCENES["train"]) & set(sample.SCENES["val"])
    assert sample.SCENE_SIZE % 96 == 0


@pytest.mark.parametrize(
    ("options", "problem"), [({"tile_size": 961}, "use at most 960"), ({"tile_size": 0}, "least 1")]
)
def test_impossible_tilings_are_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        sample.sample_config(**options)
