"""Archives of Potsdam, Vaihingen and LoveDA, written in the layout and the colours of the published ones."""

import errno
import io
import os
import pickle
import types
import warnings
import zipfile

import numpy as np
import pytest
import rasterio
from PIL import Image

from grass_jax.data.labels import IGNORE
from grass_jax.data.published import facts
from grass_jax.data.published.facts import DATASETS
from grass_jax.data.published.sets import published_labelled, published_tiles

COLOURS = {0: (255, 255, 255), 1: (0, 0, 255), 2: (0, 255, 255), 3: (0, 255, 0), 4: (255, 255, 0), 5: (255, 0, 0)}
TILES = {"train": ("2_10", "4_12", "6_7"), "test": ("2_13", "7_13")}
AREAS = {"train": ("1", "11"), "test": ("2", "20")}
LOVEDA = {"Train/Urban": (1366, 1367), "Train/Rural": (0, 9, 10), "Val/Urban": (3514,), "Val/Rural": (2522, 2523)}
SIZE = (64, 80)


def image(seed, bands=3, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, bands), np.uint8)


def ids(seed, size=SIZE):
    """Classes in runs, and a frame that does not count."""
    truth = np.random.default_rng(seed).integers(0, 6, (size[0] // 8, size[1] // 8)).repeat(8, 0).repeat(8, 1)
    truth[:2] = IGNORE
    return truth.astype(np.uint8)


def coloured(truth):
    pixels = np.zeros((*truth.shape, 3), np.uint8)
    for class_id, colour in COLOURS.items():
        pixels[truth == class_id] = colour
    return pixels


def tif(pixels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.MemoryFile() as file:
            shape = {"count": pixels.shape[2], "height": pixels.shape[0], "width": pixels.shape[1]}
            with file.open(driver="GTiff", dtype="uint8", photometric="RGB", **shape) as raster:
                raster.write(pixels.transpose(2, 0, 1))
            return file.read()


def png(pixels):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "png")
    return target.getvalue()


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def potsdam(*, bands=("RGB", "RGBIR"), labels=("all",), tiles=(*TILES["train"], *TILES["test"])):
    """The archives of Potsdam: by name their members."""
    seeds = {tile: i for i, tile in enumerate((*TILES["train"], *TILES["test"]))}
    found = {}
    for kind, archive, count in (("RGB", "2_Ortho_RGB", 3), ("RGBIR", "4_Ortho_RGBIR", 4)):
        if kind in bands:
            found[f"{archive}.zip"] = {
                f"{archive}/top_potsdam_{tile}_{kind}.tif": tif(image(seeds[tile], 4)[..., :count]) for tile in tiles
            }
    for kind in labels:
        given = [tile for tile in tiles if kind != "for_participants" or tile in TILES["train"]]
        for ending, boundary in (("", 0), ("_noBoundary", 8)):
            name = f"5_Labels_{kind}{ending}" if kind == "all" or not ending else f"5_Labels_{kind}_no_Boundary"
            found[f"{name}.zip"] = {}
            for tile in given:
                truth = ids(seeds[tile])
                truth[:boundary] = IGNORE
                found[f"{name}.zip"][f"top_potsdam_{tile}_label{ending}.tif"] = tif(coloured(truth))
    return found


def potsdam_truth(part, channels=(0, 1, 2)):
    seeds = {tile: i for i, tile in enumerate((*TILES["train"], *TILES["test"]))}
    return {f"top_potsdam_{t}": (image(seeds[t], 4)[..., list(channels)], ids(seeds[t])) for t in TILES[part]}


def vaihingen():
    named = {"train": AREAS["train"], "all": (*AREAS["train"], *AREAS["test"])}

    def files(kind, start="", end="", boundary=0):
        found = {}
        for i, area in enumerate(named["all"]):
            if area in named[kind]:
                truth = ids(i, (72, 80))
                truth[:boundary] = IGNORE
                pixels = image(i, size=(72, 80)) if boundary < 0 else coloured(truth)
                found[f"{start}top_mosaic_09cm_area{area}{end}.tif"] = tif(pixels)
        return found

    base = "ISPRS_semantic_labeling_Vaihingen"
    return {
        f"{base}.zip": files("all", "top/", boundary=-1)
        | files("train", "gts_for_participants/")
        | {"dsm/dsm_09cm_matching_area1.tif": b"no"},
        f"{base}_ground_truth_COMPLETE.zip": files("all"),
        f"{base}_ground_truth_eroded_COMPLETE.zip": files("all", end="_noBoundary", boundary=8),
    }


def vaihingen_truth(part, boundary=0):
    names = (*AREAS["train"], *AREAS["test"])
    expected = {}
    for i, area in enumerate(names):
        if area in AREAS[part]:
            truth = ids(i, (72, 80))
            truth[:boundary] = IGNORE
            expected[f"top_mosaic_09cm_area{area}"] = (image(i, size=(72, 80)), truth)
    return expected


def loveda_mask(number):
    return np.random.default_rng(number).integers(0, 8, (64, 80)).astype(np.uint8)


def loveda(empty=None):
    found = {"Train.zip": {}, "Val.zip": {}, "Test.zip": {"Test/Urban/images_png/5167.png": png(image(5167))}}
    for place, numbers in LOVEDA.items():
        for number in numbers:
            its = found[place.partition("/")[0] + ".zip"]
            its[f"{place}/images_png/{number}.png"] = png(image(number))
            mask = loveda_mask(number)
            if number == empty:
                mask[:32, :32] = 0
            its[f"{place}/masks_png/{number}.png"] = png(mask)
    return found


def loveda_truth(*places):
    masks = {n: loveda_mask(n) for place in places for n in LOVEDA[place]}
    return {
        f"{place}/{n}": (image(n), np.where(masks[n] == 0, IGNORE, masks[n] - 1).astype(np.uint8))
        for place in places
        for n in LOVEDA[place]
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def store(folder, found, form="zips"):
    if form in ("zips", "unpacked"):
        for archive, members in found.items():
            if form == "zips":
                write(folder / archive, zipped(members))
                continue
            for name, content in members.items():
                write(folder / archive.removesuffix(".zip") / name, content)
    else:
        way = zipfile.ZIP_STORED if form == "nested" else zipfile.ZIP_DEFLATED
        inside = {f"Potsdam/{archive}": zipped(members) for archive, members in found.items()}
        write(folder / "Potsdam (1).zip", zipped(inside | {"Potsdam/1_DSM.zip": b"not looked at"}, way))


def corners(size):
    return [(y, x) for y in sorted({*range(0, size[0] - 31, 32), size[0] - 32}) for x in (0, 32, size[1] - 32)]


def check_tiles(source, expected):
    """Compare all tiles with plain slices of images and masks by name of scene."""
    places = [(name, y, x) for name, (whole, _) in expected.items() for y, x in corners(whole.shape[:2])]
    assert [(source.files[f], y, x) for f, y, x in source.positions.tolist()] == places
    for i, (name, y, x) in enumerate(places):
        tile = source[i]
        np.testing.assert_array_equal(tile["image"], expected[name][0][y : y + 32, x : x + 32])
        if expected[name][1] is None:
            assert "mask" not in tile
        else:
            np.testing.assert_array_equal(tile["mask"], expected[name][1][y : y + 32, x : x + 32])


def check_scenes(scenes, expected):
    assert [scene.name for scene in scenes] == list(expected)
    assert [scene.group for scene in scenes] == list(expected)
    for scene in scenes:
        with pickle.loads(pickle.dumps(scene.open))() as opened:
            pixels, truth = expected[scene.name]
            assert (opened.height, opened.width) == truth.shape
            np.testing.assert_array_equal(opened.rows(0, opened.height), pixels)
            np.testing.assert_array_equal(opened.mask(0, opened.height), truth)
            np.testing.assert_array_equal(opened.mask(5, 9), truth[5:9])


@pytest.fixture(scope="session")
def made():
    """What writes the archives, and says what should be read of them."""
    functions = (
        image,
        ids,
        coloured,
        tif,
        png,
        zipped,
        potsdam,
        potsdam_truth,
        vaihingen,
        vaihingen_truth,
        loveda_mask,
        loveda,
        loveda_truth,
        write,
        store,
        corners,
        check_tiles,
        check_scenes,
    )
    constants = {"COLOURS": COLOURS, "TILES": TILES, "AREAS": AREAS, "LOVEDA": LOVEDA, "SIZE": SIZE}
    return types.SimpleNamespace(**{each.__name__: each for each in functions}, **constants)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "Bilder für Ägypten"


@pytest.fixture
def fewer(monkeypatch):
    """Data sets with fewer scenes; everything else is as it is, the check that all are there too."""
    scenes = {
        "potsdam": {part: {"": tuple(f"top_potsdam_{tile}" for tile in tiles)} for part, tiles in TILES.items()},
        "vaihingen": {part: {"": tuple(f"top_mosaic_09cm_area{a}" for a in areas)} for part, areas in AREAS.items()},
        "loveda": {"train": {"urban": 2, "rural": 3}, "val": {"urban": 1, "rural": 2}},
    }
    whole = dict(DATASETS)
    for name, splits in scenes.items():
        monkeypatch.setitem(facts.DATASETS, name, DATASETS[name]._replace(splits=splits))
    return whole


@pytest.fixture
def labelled(folder, tmp_path):
    def opened(name="potsdam", **options):
        return published_labelled(name, folder, **{"tile_size": 32, "data_dir": tmp_path / "tfds"} | options)

    return opened


@pytest.fixture
def tiles(folder, tmp_path):
    def opened(name="potsdam", **options):
        return published_tiles(name, folder, **{"tile_size": 32, "data_dir": tmp_path / "tfds"} | options)

    return opened


@pytest.fixture
def forbid(monkeypatch):
    """Takes the right to read files and folders, also from whoever runs as root, and gives it back at the end."""
    paths, opened, listed = [], os.open, os.scandir

    def refusing(call):
        def allowed(path, *args, **kwargs):
            if isinstance(path, (str, os.PathLike)) and os.fspath(path) in paths:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return call(path, *args, **kwargs)

        return allowed

    monkeypatch.setattr(os, "open", refusing(opened))
    monkeypatch.setattr(os, "scandir", refusing(listed))

    def forbidden(path):
        paths.append(os.fspath(path))
        path.chmod(0)

    yield forbidden
    for path in paths:
        os.chmod(path, 0o700)
