import contextlib
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import scipy.special
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from configs import evaluate as evaluate_config
from configs import predict as predict_config
from grass_jax.bands import RGB
from grass_jax.config import ConfigError
from grass_jax.data.rasters import UnusableImageError, open_scene
from grass_jax.segment import apply
from grass_jax.segment.map_writer import OutputError, choose_nodata, encode_probabilities
from grass_jax.segment.predict import predict_file, predict_files

CLASSES = ("building", "land & soil", "Straße")
COLOURS = np.array([[255, 0, 0], [0, 200, 0], [10, 20, 255]], np.uint8)
SETTINGS = {"classes": CLASSES, "colours": COLOURS, "window": 32, "progress": False}
UTM = CRS.from_epsg(26911)
PLACE = Affine(0.6, 0, 500000, 0, -0.6, 3800000)


def forward(tiles):
    """The class of a pixel is its strongest channel."""
    return tiles.astype(np.float32) / 20


def pixels(height, width, seed=0):
    """Bands (4, h, w) without a tie among the first three and without 0 and 255."""
    rng = np.random.default_rng(seed)
    bands = rng.integers(1, 80, (4, height, width)) * 3 + np.array([0, 1, 2, 0]).reshape(4, 1, 1)
    return bands.astype(np.uint8)


def write_tiff(path, bands, **options):
    options = {"crs": UTM, "transform": PLACE, "photometric": "RGB" if len(bands) > 2 else "MINISBLACK"} | options
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **options) as raster:
        raster.write(bands)
    return path


def read_map(path):
    with rasterio.open(path) as raster:
        return raster.read(1), raster.profile, raster.nodata


@pytest.mark.parametrize("alpha", ["YES", "NO"])  # GDAL likes to tag near infrared as alpha
@pytest.mark.parametrize(("nodata", "written"), [(0, 255), (255, 255), (9, 9)])
def test_a_mosaic_with_a_nodata_border(tmp_path, caplog, nodata, written, alpha):
    bands = pixels(150, 190)
    border = np.ones((150, 190), bool)
    border[20:130, 25:170] = False
    bands[bands == 9] = 12
    expected = np.where(border, written, bands[:3].argmax(0))
    bands[:, border] = nodata
    write_tiff(tmp_path / "mosaic.tif", bands, nodata=nodata, alpha=alpha, tiled=True, blockxsize=64, blockysize=64)
    with caplog.at_level(logging.INFO):
        counts = predict_file(forward, tmp_path / "mosaic.tif", tmp_path / "out", **SETTINGS)
    said = f"mosaic.tif is {nodata}, a class id: it is {written} in the map"
    assert caplog.text.count("nodata value") == caplog.text.count(said) == (nodata != written)
    ids, profile, value = read_map(tmp_path / "out" / "mosaic.tif")
    np.testing.assert_array_equal(ids, expected)
    assert (profile["crs"], profile["transform"], value) == (UTM, PLACE, written)
    assert (profile["count"], profile["dtype"], profile["compress"]) == (1, "uint8", "deflate")
    assert (profile["tiled"], profile["blockxsize"], profile["blockysize"]) == (True, 256, 256)
    assert counts == {name: int((expected == i).sum()) for i, name in enumerate(CLASSES)}


def test_the_map_does_not_depend_on_the_window(tmp_path):
    write_tiff(tmp_path / "a.tif", pixels(150, 190))
    maps = []
    for window in (16, 50, 300):
        predict_file(forward, tmp_path / "a.tif", tmp_path / "out", **SETTINGS | {"window": window})
        maps.append(read_map(tmp_path / "out" / "a.tif")[0])
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


@pytest.mark.parametrize(
    "place",
    [
        {"transform": PLACE @ Affine.rotation(30) if hasattr(Affine, "__matmul__") else PLACE * Affine.rotation(30)},
        {"crs": None},
        {"crs": "EPSG:4326", "transform": Affine(1e-5, 0, -117, 0, -1e-5, 34)},
    ],
)
def test_rotation_and_missing_crs_are_kept(tmp_path, place):
    write_tiff(tmp_path / "a.tif", pixels(40, 50), **place)
    predict_file(forward, tmp_path / "a.tif", tmp_path / "out", **SETTINGS)
    with rasterio.open(tmp_path / "a.tif") as image, rasterio.open(tmp_path / "out" / "a.tif") as result:
        assert result.crs == image.crs
        assert result.transform.almost_equals(image.transform, 1e-9)
        assert not result.transform.is_identity
        assert result.shape == image.shape
        assert result.nodata is None


def test_ground_control_points_are_kept(tmp_path):
    points = [GroundControlPoint(row, col, 500000 + col, 3800000 - 2 * row) for row in (0, 40) for col in (0, 50)]
    write_tiff(tmp_path / "a.tif", pixels(40, 50), gcps=points, crs=UTM, transform=None)
    predict_file(forward, tmp_path / "a.tif", tmp_path / "out", **SETTINGS)
    with rasterio.open(tmp_path / "out" / "a.tif") as result:
        found, crs = result.gcps
    assert crs == UTM
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]


def test_a_crs_that_only_fits_beside_the_file_is_kept(tmp_path):
    crs = CRS.from_string("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39 +lon_0=18 +R=6371229 +no_defs")
    with rasterio.open(write_tiff(tmp_path / "a.tif", pixels(40, 50), crs=crs)) as image:
        stored = image.crs
    assert (tmp_path / "a.tif.aux.xml").exists()
    for _ in range(2):
        predict_file(forward, tmp_path / "a.tif", tmp_path / "out", **SETTINGS, quicklook=False, probabilities=True)
        for name in ("a.tif", "a_probabilities.tif"):
            with rasterio.open(tmp_path / "out" / name) as raster:
                assert raster.crs == stored
        root = ElementTree.parse(tmp_path / "out" / "a.tif.aux.xml").getroot()
        assert [name.text for name in root.iter("Category")] == list(CLASSES)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_pictures_give_a_map_without_a_place(tmp_path):
    image = np.moveaxis(pixels(45, 70)[:3], 0, -1)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image).save(tmp_path / "b.jpg", quality=95, subsampling=0)
    outcome = predict_files(forward, tmp_path, tmp_path / "out", **SETTINGS, quicklook=False)
    assert sorted(outcome.written) == [str(tmp_path / "out" / name) for name in ("a.tif", "b.tif")]
    for name, stored in (("a", image), ("b", np.asarray(Image.open(tmp_path / "b.jpg")))):
        with pytest.warns(NotGeoreferencedWarning):
            raster = rasterio.open(tmp_path / "out" / f"{name}.tif")
        with raster:
            assert raster.crs is None
            assert raster.transform.is_identity
            assert raster.nodata is None
            clear = np.sort(stored.astype(int), -1)
            clear = clear[..., 2] > clear[..., 1]
            np.testing.assert_array_equal(raster.read(1)[clear], stored.argmax(-1)[clear])


def test_transparent_pixels_of_a_picture_are_nodata(tmp_path):
    image = np.moveaxis(pixels(40, 40), 0, -1).copy()
    image[..., 3] = 255
    image[:10, :, 3] = 0
    Image.fromarray(image).save(tmp_path / "a.png")
    predict_file(forward, tmp_path / "a.png", tmp_path / "out", **SETTINGS)
    with pytest.warns(NotGeoreferencedWarning):
        ids, _, nodata = read_map(tmp_path / "out" / "a.tif")
    assert nodata == 255
    np.testing.assert_array_equal(ids == 255, image[..., 3] == 0)


def test_colours_and_class_names_are_where_gis_programs_look(tmp_path):
    write_tiff(tmp_path / "a.tif", pixels(40, 50))
    predict_file(forward, tmp_path / "a.tif", tmp_path / "out", **SETTINGS)
    with rasterio.open(tmp_path / "out" / "a.tif") as raster:
        table = raster.colormap(1)
        assert [table[i][:3] for i in range(3)] == [tuple(colour) for colour in COLOURS.tolist()]
        assert raster.colorinterp[0].name == "palette"
        assert [raster.tags(1)[f"CLASS_{i}"] for i in range(3)] == list(CLASSES)
    root = ElementTree.parse(tmp_path / "out" / "a.tif.aux.xml").getroot()
    assert root.tag == "PAMDataset"
    names = root.findall("PAMRasterBand[@band='1']/CategoryNames/Category")
    assert [name.text for name in names] == list(CLASSES)


def test_band_counts(tmp_path, caplog):
    bands = pixels(40, 50)
    for count in (1, 2, 3, 4):
        write_tiff(tmp_path / f"bands{count}.tif", bands[:count], **({"alpha": "NO"} if count == 4 else {}))
    write_tiff(tmp_path / "again4.tif", bands, alpha="NO")
    with caplog.at_level(logging.INFO):
        outcome = predict_files(forward, tmp_path, tmp_path / "out", **SETTINGS, quicklook=False)
    np.testing.assert_array_equal(read_map(tmp_path / "out" / "bands1.tif")[0], 0)  # grey: a tie, the first class
    for name in ("bands3", "bands4", "again4"):
        np.testing.assert_array_equal(read_map(tmp_path / "out" / f"{name}.tif")[0], bands[:3].argmax(0))
    ((image, reason),) = outcome.skipped.items()
    assert image == str(tmp_path / "bands2.tif")
    assert "it has 2 bands of uint8 and 3 of uint8 are wanted" in reason
    assert caplog.text.count("has 4 bands: the network reads 1, 2, 3") == 1


def test_what_cannot_be_read_is_named_and_skipped(tmp_path, caplog):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "b.tif").write_bytes(b"")
    whole = write_tiff(folder / "c.tif", pixels(300, 300), compress="deflate", blockysize=16).read_bytes()
    (folder / "c.tif").write_bytes(whole[: len(whole) // 2])  # opens well and breaks in the middle
    write_tiff(folder / "sub" / "d.tif", pixels(40, 50))
    write_tiff(folder / "e16.tif", pixels(40, 50).astype(np.uint16))
    with caplog.at_level(logging.INFO):
        written, skipped = predict_files(forward, folder, tmp_path / "out", **SETTINGS)
    assert list(written) == [str(tmp_path / "out" / "sub" / "d.tif")]
    assert [Path(image).name for image in skipped] == ["a.png", "b.tif", "c.tif", "e16.tif"]
    assert skipped[str(folder / "a.png")] == "it is no readable PNG or JPEG file"
    assert skipped[str(folder / "b.tif")] == "the file is empty"
    why = "it has 4 bands of uint16 and 3 of uint8 are wanted: give an image with the network's bands"
    assert skipped[str(folder / "e16.tif")] == why
    for image, reason in skipped.items():
        assert f"Skipped {image}: {reason}" in caplog.text
    names = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names == ["d.png", "d.tif", "d.tif.aux.xml"]
    with pytest.raises(UnusableImageError, match=r"b\.tif: the file is empty"):
        predict_file(forward, folder / "b.tif", tmp_path / "out", **SETTINGS)


def test_scores_that_were_torn_are_made_again_and_those_of_another_model_kept(tmp_path, monkeypatch, caplog):
    config = evaluate_config.get_config("folder")
    config.update({"model": "run", "data": {"path": str(tmp_path), "classes": CLASSES}})
    network = SimpleNamespace(bands=RGB, classes=CLASSES, window=32, gsd=None, forward=lambda mesh: forward)
    monkeypatch.setattr(apply, "_network", lambda config: network)
    monkeypatch.setattr(apply, "open_all_scenes", lambda *_: ())  # no scene is scored, which is said first
    (tmp_path / "summary.json").write_text('{"model": "other"}')
    with pytest.raises(ConfigError, match="holds the scores of another model or data set"):
        apply.evaluate_model(config, tmp_path)
    (tmp_path / "summary.json").write_text('{"model": ')
    with pytest.raises(ConfigError, match="There is no scene to score"):
        apply.evaluate_model(config, tmp_path)
    assert "summary.json is damaged or cannot be read: it is written anew." in caplog.text


def test_what_any_process_has_skipped_is_said_by_all_when_all_are_done(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_tiff(tmp_path / f"{name}.tif", pixels(40, 50))
    network = SimpleNamespace(bands=RGB, classes=CLASSES, colours=COLOURS, window=32, gsd=None)
    network.forward = lambda mesh: forward
    monkeypatch.setattr(apply, "_network", lambda config: network)
    config = predict_config.get_config()
    config.update({"input": str(tmp_path), "output": str(tmp_path / "out"), "quicklook": False})
    assert len(apply.predict_images(config, tmp_path)["written"]) == 2
    for others, done in (([3, 1], "1 of 6"), ([0, 4], "4 of 6")):
        monkeypatch.setattr(apply, "sum_over_processes", np.array(others).__add__)
        with pytest.raises(ConfigError, match=f"^{done} images could not be mapped, see .*; the others are done"):
            apply.predict_images(config, tmp_path)


@pytest.mark.parametrize("place", ["file", "file/out", "/proc/self"])  # nobody can write to the last
def test_an_output_that_cannot_be_written_is_told_before_any_image_is_opened(tmp_path, monkeypatch, place):
    if place.startswith("/") and not Path(place).exists():
        pytest.skip("this system has no /proc")
    write_tiff(tmp_path / "a.tif", pixels(40, 40))
    (tmp_path / "file").write_text("a file")
    out = tmp_path / place
    monkeypatch.setattr("grass_jax.segment.predict.SceneMap", None)
    with pytest.raises(OutputError, match=rf"^The output folder {out} [^.]*: choose another folder\.$"):
        predict_files(forward, tmp_path / "a.tif", out, **SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "file"]


def test_a_product_that_cannot_be_made_stops_the_run(tmp_path, caplog):
    for name in ("a.tif", "b/c.tif", "d.tif"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_tiff(tmp_path / "in" / name, pixels(40, 40))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("a file where a folder goes")
    with pytest.raises(OutputError, match=r"The output folder .*out/b cannot be written \(c\.tif: "):
        predict_files(forward, tmp_path / "in", tmp_path / "out", **SETTINGS)
    assert "Skipped" not in caplog.text
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("missing", [1, 30, 500, 10**9])
def test_a_full_disk_stops_the_run_and_leaves_nothing_half_written(tmp_path, caplog, missing):
    resource = pytest.importorskip("resource")
    options = SETTINGS | {"probabilities": True, "quicklook": missing == 500}
    write_tiff(tmp_path / "a.tif", pixels(300, 300))
    predict_file(forward, tmp_path / "a.tif", tmp_path / "whole", **options)
    most = max(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(1, most - missing), limits[1]))  # writing beyond it is an OSError
    try:
        with pytest.raises(OutputError, match=r"^The output folder .* cannot be written \(a\.tif: .*\): make room"):
            predict_file(forward, tmp_path / "a.tif", tmp_path / "out", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Skipped" not in caplog.text
    assert not list((tmp_path / "out").iterdir())


def test_an_image_that_breaks_when_it_is_read_again_is_skipped(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_tiff(tmp_path / f"{name}.tif", pixels(70, 40))
    seen = []

    def opened(path, **options):
        @contextlib.contextmanager
        def scene():
            with open_scene(path, **options) as whole:

                def rows(y0, y1):
                    seen.append(y0)
                    if path.name == "a.tif" and seen.count(0) > 1:  # the quick look reads what the windows have read
                        raise OSError("the cable is out")
                    return whole.rows(y0, y1)

                yield whole._replace(rows=rows)

        return scene()

    monkeypatch.setattr("grass_jax.segment.scene_map.open_scene", opened)
    written, skipped = predict_files(forward, tmp_path, tmp_path / "out", **SETTINGS, batch_size=1)
    assert list(written) == [str(tmp_path / "out" / "b.tif")]
    assert skipped == {str(tmp_path / "a.tif"): "it is broken: the cable is out"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.png", "b.tif", "b.tif.aux.xml"]


def test_another_resolution_than_that_of_the_training_is_told_once_for_each(tmp_path, caplog):
    feet = CRS.from_epsg(2263)  # 1,000 US survey feet are 304.8 m
    sides = {"a": 0.1, "b": 0.1001, "c": 0.54, "d": 0.46, "e": 2, "f": 0.5 / 0.3048, "g": 1 / 0.3048}
    for name, side in sides.items():
        place = {"transform": Affine(side, 0, 500000, 0, -side, 3800000), "crs": feet if name in "fg" else UTM}
        write_tiff(tmp_path / f"{name}.tif", pixels(40, 40), **place)
    write_tiff(tmp_path / "h.tif", pixels(40, 40), crs="EPSG:4326", transform=Affine(1e-5, 0, -117, 0, -1e-5, 34))
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "i.png")
    predict_files(forward, tmp_path, tmp_path / "out", **SETTINGS, quicklook=False, gsd=0.5)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    ending = " per pixel, the network was trained at 0.50 m; resample the image first, or expect worse maps."
    found = {"a": "0.10 m", "e": "2.00 m", "g": "1.00 m"}
    assert said == [f"{tmp_path / name}.tif: {gsd}{ending}" for name, gsd in found.items()]
    caplog.clear()
    predict_files(forward, tmp_path, tmp_path / "out", **SETTINGS, quicklook=False)
    assert "per pixel" not in caplog.text
    with pytest.raises(ValueError, match="gsd must be above 0"):
        predict_files(forward, tmp_path, tmp_path / "out", **SETTINGS, gsd=0.0)


def test_an_interruption_leaves_the_old_map_and_nothing_half_written(tmp_path):
    write_tiff(tmp_path / "a.tif", pixels(200, 60))
    predict_file(forward, tmp_path / "a.tif", tmp_path / "out", **SETTINGS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write_tiff(tmp_path / "a.tif", pixels(200, 60, seed=1))
    seen = []

    def interrupted(tiles):
        if len(seen) == 3:
            seen.append(sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")))
            raise KeyboardInterrupt
        seen.append(None)
        return forward(tiles)

    with pytest.raises(KeyboardInterrupt):
        predict_file(interrupted, tmp_path / "a.tif", tmp_path / "out", **SETTINGS, probabilities=True)
    assert ".a.tif.tmp" in seen[-1]
    assert ".a_probabilities.tif.tmp" in seen[-1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    predict_file(forward, tmp_path / "a.tif", tmp_path / "out", **SETTINGS)
    assert (tmp_path / "out" / "a.tif").read_bytes() != before["a.tif"]


def test_probabilities(tmp_path):
    bands = pixels(60, 70)
    bands[:, :, :8] = 0
    write_tiff(tmp_path / "a.tif", bands, nodata=0, alpha="NO")
    predict_file(forward, tmp_path / "a.tif", tmp_path / "out", **SETTINGS, probabilities=True)
    with rasterio.open(tmp_path / "out" / "a_probabilities.tif") as raster:
        assert raster.descriptions == CLASSES
        assert raster.nodata == 255
        assert raster.crs == UTM
        values = raster.read()
        shares = values * np.array(raster.scales)[:, None, None]
    assert (values[:, :, :8] == 255).all()
    expected = scipy.special.softmax(bands[:3, :, 8:].astype(float) / 20, axis=0)
    np.testing.assert_allclose(shares[:, :, 8:], expected, atol=0.0021)
    assert encode_probabilities(np.array([[[-2000.0, 2000.0]]]), None).ravel().tolist() == [0, 250]


def test_nodata_is_the_images_own_where_it_can_be():
    cases = {None: 255, 0.0: 255, 4.0: 255, 5.0: 5, 254.0: 254, 255.0: 255, 5.5: 255, -9999.0: 255, float("nan"): 255}
    assert {value: choose_nodata(value, 5) for value in cases} == cases


def test_inputs_by_file_folder_and_pattern(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "in" / "maps"
    (folder / "x").mkdir(parents=True)
    for name in ("a.tif", "x/b.tif", "x/.hidden.tif"):
        write_tiff(folder / name, pixels(40, 40))
    os.symlink(folder / "a.tif", tmp_path / "linked.tif")

    def names(inputs):
        written, _ = predict_files(forward, inputs, out, **SETTINGS, quicklook=False)
        return [str(Path(path).relative_to(out)) for path in written]

    assert names(str(folder)) == ["a.tif", "x/b.tif"]
    assert names(folder) == ["a.tif", "x/b.tif"]  # and not the maps of the first run
    assert names([folder / "x" / "b.tif", folder / "a.tif", folder / "a.tif"]) == ["b.tif", "a.tif"]
    assert names(f"{folder}/**/*.tif") == ["a.tif", "b.tif"]
    assert names(tmp_path / "linked.tif") == ["linked.tif"]
    with pytest.raises(FileNotFoundError, match=r"There is no image .*nothing\.tif"):
        names(folder / "nothing.tif")
    with pytest.raises(FileNotFoundError, match="No image matches"):
        names(f"{folder}/*.jpg")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "a.png")
    with pytest.raises(ValueError, match=r"a\.png and .*a\.tif would both be mapped to .*a\.tif"):
        names(folder)
    with pytest.raises(ValueError, match=r"would replace an image to map"):
        predict_files(forward, folder / "x", folder / "x", **SETTINGS)
    shutil.copy(folder / "a.tif", folder / "a_probabilities.tif")
    (folder / "a.png").unlink()
    with pytest.raises(ValueError, match="would both be mapped to"):
        predict_files(forward, folder, out, **SETTINGS, probabilities=True)


def test_names_for_another_number_of_classes_are_refused(tmp_path):
    write_tiff(tmp_path / "a.tif", pixels(40, 40))
    with pytest.raises(ValueError, match="has 3 classes, but 2 are named"):
        predict_file(forward, tmp_path / "a.tif", tmp_path / "out", **SETTINGS | {"classes": ("a", "b")})
    assert not list((tmp_path / "out").iterdir())


def test_the_line_shows_pixels_and_time_left(tmp_path, capsys):
    write_tiff(tmp_path / "a.tif", pixels(90, 100))
    (tmp_path / "b.png").write_bytes(b"no picture")
    predict_files(forward, tmp_path, tmp_path / "out", **SETTINGS | {"progress": True})
    last = capsys.readouterr().err.split("\r")[-1]
    assert "mapping 2 image(s): 100%" in last
    assert "9.00k/9.00k" in last
    assert "px/s" in last
