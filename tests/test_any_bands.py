"""Five bands of sixteen bits, in a folder with a space and an umlaut, from the first step to the map."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine

from configs import evaluate as evaluate_config
from configs import predict as predict_config
from grass_jax import pretrain
from grass_jax.bands import Bands
from grass_jax.config import ConfigError
from grass_jax.segment import apply, finetune
from grass_jax.segment.model import load_segmenter
from grass_jax.segment.predict import predict_files
from grass_jax.state import load_encoder

SPECTRA = np.array([[400, 700, 300, 3200, 2100], [1500, 1400, 1200, 1900, 2600], [300, 500, 700, 200, 100]])
BLUE_GREEN_RED = (3, 2, 1)  # red is the third band, as in much satellite imagery
NODATA = 65535


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Eight scenes of three spectra with noise, one with a nodata border, and their masks."""
    folder = tmp_path_factory.mktemp("data") / "Bänder und Böden"
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(8):
        mask = rng.integers(0, 3, (6, 8)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        bands = np.moveaxis(SPECTRA[mask] * rng.normal(1, 0.05, (96, 128, 5)), -1, 0).round().astype(np.uint16)
        if number == 7:
            bands[:, :, :16] = NODATA
        place = Affine(10, 0, 500_000 + 5000 * number, 0, -10, 5_800_000)
        profile = {"driver": "GTiff", "height": 96, "width": 128, "crs": "EPSG:32633", "transform": place}
        name = f"{'abcd'[number // 2]}_{number % 2}.tif"
        with rasterio.open(folder / "images" / name, "w", count=5, dtype="uint16", nodata=NODATA, **profile) as raster:
            raster.write(bands)
        with rasterio.open(folder / "masks" / name, "w", count=1, dtype="uint8", **profile) as raster:
            raster.write(mask, 1)
    return folder


@pytest.fixture(scope="module")
def pretrained(tiny, scenes, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    changes = {"data.path": str(scenes / "images"), "warmup.epochs": 1, "gs.epochs": 1, "bands.rgb": BLUE_GREEN_RED}
    pretrain.run(tiny(**changes), workdir)
    return workdir


@pytest.fixture(scope="module")
def finetuned(pretrained, tiny_segment, scenes, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetuned")
    changes = {"data.path": str(scenes), "init": str(pretrained), "data.test": "d_", "finetune.steps": 40}
    return workdir, finetune.run(tiny_segment(**changes), workdir)


def stored(scenes):
    """All pixels that hold data, (n, 5)."""
    pixels = []
    for path in sorted((scenes / "images").iterdir()):
        with rasterio.open(path) as raster:
            image = np.moveaxis(raster.read(), 0, -1).reshape(-1, 5)
        pixels.append(image[image[:, 0] != NODATA])
    return np.concatenate(pixels).astype(np.float64)


def test_the_run_knows_its_bands_and_their_statistics(pretrained, scenes):
    bands = Bands(**json.loads((pretrained / "config.json").read_text())["config"]["bands"])
    assert (bands.numbers, bands.dtype, bands.rgb) == ((1, 2, 3, 4, 5), "uint16", BLUE_GREEN_RED)
    pixels = stored(scenes)
    low, high = np.percentile(pixels, (0.5, 99.5), axis=0)
    scaled = np.clip((pixels - low) / (high - low), 0, 1)
    # the run measures on a thinned sample of the tiles
    np.testing.assert_allclose(bands.low, low, rtol=0.1)
    np.testing.assert_allclose(bands.high, high, rtol=0.05)
    np.testing.assert_allclose(bands.mean, scaled.mean(0), atol=0.03)
    np.testing.assert_allclose(bands.std, scaled.std(0), atol=0.03)
    for phase in ("warmup", "gs"):
        assert (pretrained / "figures" / f"guidance_{phase}.png").stat().st_size > 10_000


def test_the_encoder_reads_what_the_files_hold(pretrained):
    encoder = load_encoder(pretrained)
    assert encoder.variables["params"]["conv1"]["kernel"].shape[2] == 5
    images = np.full((1, 32, 32, 5), 1000, np.uint16)
    features = encoder(images)
    assert features.shape == (1, 4, 4, 32)
    scaled = np.clip((images - np.array(encoder.bands.low)) / np.subtract(encoder.bands.high, encoder.bands.low), 0, 1)
    views = ((scaled - encoder.bands.mean) / encoder.bands.std).astype(np.float32)
    plain = encoder.module.apply(encoder.variables, views, train=False)
    np.testing.assert_allclose(features, plain, atol=1e-4)
    with pytest.raises(ValueError, match="uint16"):
        encoder(images.astype(np.uint8))


def test_a_fine_tuned_network_tells_the_spectra_apart(finetuned):
    workdir, summary = finetuned
    assert summary["test"]["overall_accuracy"] > 0.8
    assert load_segmenter(workdir).bands.dtype == "uint16"
    assert (workdir / "figures" / "predictions.png").exists()


def test_its_map_keeps_place_and_nodata(finetuned, scenes, tmp_path):
    config = predict_config.get_config()
    config.update({"model": str(finetuned[0]), "input": str(scenes / "images"), "output": str(tmp_path / "Karten")})
    config.update({"compilation_cache": "", "overlap": 0.25})
    apply.predict_images(config, tmp_path)
    with (
        rasterio.open(tmp_path / "Karten" / "d_1.tif") as found,
        rasterio.open(scenes / "images" / "d_1.tif") as image,
        rasterio.open(scenes / "masks" / "d_1.tif") as truth,
    ):
        assert (found.crs, found.transform, found.shape) == (image.crs, image.transform, image.shape)
        valid = image.read(1) != NODATA
        np.testing.assert_array_equal(found.read_masks(1) > 0, valid)
        assert (found.read(1) == truth.read(1))[valid].mean() > 0.8
    assert (tmp_path / "Karten" / "d_1.png").exists()


def test_an_image_of_another_kind_is_skipped_with_the_reason(finetuned, tmp_path):
    for name, count, kind in (("three", 3, "uint16"), ("bytes", 5, "uint8")):
        profile = {"driver": "GTiff", "height": 64, "width": 64, "count": count, "dtype": kind, "crs": "EPSG:32633"}
        place = Affine(10, 0, 5000, 0, -10, 9000)
        with rasterio.open(tmp_path / f"{name}.tif", "w", transform=place, **profile) as raster:
            raster.write(np.ones((count, 64, 64), kind))
    network = load_segmenter(finetuned[0])
    settings = {"classes": network.classes, "colours": network.colours, "bands": network.bands, "window": 48}
    outcome = predict_files(
        lambda tiles: np.zeros((*tiles.shape[:3], 3), np.float32),
        tmp_path,
        tmp_path / "maps",
        progress=False,
        **settings,
    )
    assert not outcome.written
    reasons = {name.rsplit("/", 1)[-1]: why for name, why in outcome.skipped.items()}
    assert "3 bands" in reasons["three.tif"]
    assert "uint8" in reasons["bytes.tif"]
    assert "uint16" in reasons["bytes.tif"]


def test_tasks_refuse_images_of_another_kind_in_one_sentence(pretrained, finetuned, scenes, tiny_segment, tmp_path):
    config = predict_config.get_config()
    config.update({"model": str(finetuned[0]), "compilation_cache": ""})
    with pytest.raises(ConfigError, match=r"config\.input must be given: .* the network reads 5 band\(s\) of uint16"):
        apply.predict_images(config, tmp_path)
    (tmp_path / "images").mkdir()
    for path in sorted((scenes / "images").iterdir()):
        with rasterio.open(path) as raster:
            profile = raster.profile | {"dtype": "uint8", "nodata": None}
            with rasterio.open(tmp_path / "images" / path.name, "w", **profile) as copy:
                copy.write((raster.read() // 256).astype(np.uint8))
    changes = {
        "data.path": str(tmp_path),
        "data.masks": str(scenes / "masks"),
        "init": str(pretrained),
        "data.test": "d_",
    }
    with pytest.raises(
        ConfigError, match=r"encoder of config\.init reads uint16 and the images of config\.data hold uint8"
    ):
        finetune.run(tiny_segment(**changes), tmp_path / "run")
    evaluate = evaluate_config.get_config()
    evaluate.update({"model": str(finetuned[0]), "compilation_cache": ""})
    with pytest.raises(ConfigError, match=r"sample has .*red, green and blue of 8 bits"):
        apply.evaluate_model(evaluate, tmp_path / "scores")
