import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from grass_jax.bands import Bands
from grass_jax.data import layout as module
from grass_jax.data.layout import (
    RGB_LAYOUT,
    Layout,
    OtherBandsError,
    check_colours,
    common_layout,
    layout_of,
    read_bands,
)
from grass_jax.data.pictures import UnusableImageError
from grass_jax.data.rasters import open_scene

rng = np.random.default_rng(0)


def write(path, count=3, dtype="uint8", colours=None, values=None, **options):
    if values is None:
        values = rng.integers(0, 100, (count, 20, 31)).astype(dtype)
    profile = {"driver": "GTiff", "height": 20, "width": 31, "count": len(values), "dtype": values.dtype}
    if path.suffix == ".png":
        profile["driver"] = "PNG"
        Image.fromarray(np.zeros((1, 1), np.uint8)).save(path)
    with rasterio.open(path, "w", transform=Affine(1, 0, 5, 0, -1, 5), **profile | options) as raster:
        raster.write(values)
        if options.get("photometric") == "PALETTE":
            raster.write_colormap(1, {i: (i % 256, 7, 9, 255) for i in range(256)})
        if colours:
            raster.colorinterp = [ColorInterp[name] for name in colours]
    for beside in path.parent.glob("*.aux.xml"):
        beside.unlink()
    return path


def layers(dtype, *, alpha, clear=True):
    values = rng.integers(1, 100, (4, 20, 31)).astype(dtype)
    if alpha:
        values[3] = np.where(rng.random((20, 31)) < 0.3, 0, np.iinfo(dtype).max)
    if not clear:
        values[3, :, 5] = 9  # 3 % of it
    return {"values": values}


FIRST = (1, 2, 3)
TIFFS = {
    "colour": ({}, RGB_LAYOUT),
    "grey": ({"count": 1}, Layout((1,), "uint8")),
    "grey and alpha": ({"values": layers("uint8", alpha=True)["values"][2:], "alpha": "yes"}, Layout((1,), "uint8")),
    "two": ({"count": 2}, Layout((1, 2), "uint8")),
    "alpha": (layers("uint8", alpha=True), RGB_LAYOUT),
    "infrared tagged as alpha": (layers("uint8", alpha=False), Layout((1, 2, 3, 4), "uint8", FIRST)),
    "deep alpha": (
        layers("uint16", alpha=True) | {"photometric": "RGB", "alpha": "yes"},
        Layout(FIRST, "uint16", FIRST),
    ),
    "deep infrared tagged as alpha": (
        layers("uint16", alpha=False) | {"photometric": "RGB", "alpha": "yes"},
        Layout((1, 2, 3, 4), "uint16", FIRST),
    ),
    "deep, hardly alpha": (
        layers("uint16", alpha=True, clear=False) | {"photometric": "RGB", "alpha": "yes"},
        Layout((1, 2, 3, 4), "uint16", FIRST),
    ),
    "deep": ({"dtype": "uint16"}, Layout(FIRST, "uint16")),
    "deep, four": ({"dtype": "uint16", "count": 4}, Layout((1, 2, 3, 4), "uint16")),
    "deep, named": (
        {"dtype": "uint16", "count": 4, "colours": ("blue", "green", "red", "undefined")},
        Layout((1, 2, 3, 4), "uint16", (3, 2, 1)),
    ),
    "five": ({"dtype": "uint16", "count": 5}, Layout((1, 2, 3, 4, 5), "uint16")),
    "five, named": (
        {"dtype": "uint16", "count": 5, "colours": ("blue", "green", "red", "undefined", "undefined")},
        Layout((1, 2, 3, 4, 5), "uint16", (3, 2, 1)),
    ),
    "twenty": ({"count": 20}, Layout(tuple(range(1, 21)), "uint8")),
    "palette": ({"count": 1, "photometric": "PALETTE"}, RGB_LAYOUT),
    "bits": ({"values": layers("uint8", alpha=False)["values"][:1] % 2, "nbits": 1}, Layout((1,), "uint8")),
    "float": ({"dtype": "float32", "count": 2}, Layout((1, 2), "float32")),
    "double": ({"dtype": "float64"}, Layout(FIRST, "float32")),
    "float, four": ({"dtype": "float32", "count": 4}, Layout((1, 2, 3, 4), "float32")),
    "float, named": (
        {"dtype": "float32", "colours": ("blue", "green", "red")},
        Layout(FIRST, "float32", (3, 2, 1)),
    ),
    "signed": ({"dtype": "int16", "count": 1}, Layout((1,), "float32")),
    "bytes": ({"dtype": "int8", "count": 1}, Layout((1,), "float32")),
}


@pytest.mark.parametrize("name", TIFFS)
def test_layouts_of_tiffs(tmp_path, name):
    options, expected = TIFFS[name]
    assert layout_of(write(tmp_path / "a.tif", **options)) == expected


@pytest.mark.parametrize("dtype", ["uint32", "int32", "complex64"])
def test_values_without_a_way_to_read_them(tmp_path, dtype):
    path = write(tmp_path / "a.tif", dtype=dtype)
    with pytest.raises(UnusableImageError, match=f"^it holds {dtype}: convert it to uint8, uint16 or float32$"):
        layout_of(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_layouts_of_pictures(tmp_path, mode):
    picture = Image.fromarray(rng.integers(0, 256, (20, 31, 3), np.uint8)).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path)
    assert layout_of(path) == (Layout((1,), "uint8") if mode in ("1", "L", "LA") else RGB_LAYOUT)


@pytest.mark.parametrize(("count", "numbers"), [(1, (1,)), (2, (1,)), (3, FIRST), (4, FIRST)])
def test_layouts_of_deep_pictures(tmp_path, count, numbers):
    values = rng.integers(1, 100, (count, 20, 31)).astype(np.uint16)
    if count in (2, 4):
        values[-1] = np.where(rng.random((20, 31)) < 0.3, 0, 65535)
    path = write(tmp_path / "a.png", values=values)
    assert layout_of(path) == Layout(numbers, "uint16", numbers if len(numbers) == 3 else ())


def test_a_file_is_opened_once_while_it_stays_as_it_is(tmp_path, monkeypatch):
    opened, open_raster = [], module.open_raster
    monkeypatch.setattr(module, "open_raster", lambda *args: (opened.append(args), open_raster(*args))[1])
    path = write(tmp_path / "a.tif", **TIFFS["five"][0])
    for _ in range(3):
        assert layout_of(path) == TIFFS["five"][1]
    with open_scene(path, layout=TIFFS["five"][1]) as scene:
        assert scene.rows(0, 20).shape == (20, 31, 5)
    assert len(opened) == 1
    write(path, **TIFFS["deep"][0])
    assert layout_of(path) == TIFFS["deep"][1]
    assert len(opened) == 2


def test_the_layout_of_a_networks_bands():
    bands = Bands((4, 2, 1), "uint16", (0,) * 3, (9,) * 3, (0.5,) * 3, (1,) * 3, (1, 2, 4))
    assert Layout.of(bands) == Layout((4, 2, 1), "uint16", (1, 2, 4))


def folder(path, kinds):
    paths = []
    for i, kind in enumerate(kinds):
        paths.append(path / f"{i:03}.tif")
        if kind is None:
            paths[-1].write_text("no raster")
        else:
            write(paths[-1], **TIFFS[kind][0])
    return paths


DEEP = Layout(FIRST, "uint16", FIRST)  # as files without names are read in the end


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["five", "deep", "deep"], DEEP),
        (["five", None, "deep"], "five"),
        ([None, None, None, "deep", "five", "deep"], DEEP),
        (["deep", "five, named", "five", "five, named"], "five, named"),
        (["grey", "grey", "colour"], "colour"),
        (["grey", "grey", "infrared tagged as alpha"], "colour"),
        (["grey", "grey", "deep"], "grey"),
        (["deep, four"], Layout((1, 2, 3, 4), "uint16", FIRST)),
        (["deep, named", "deep, named", "deep, four"], "deep, named"),
        (["double"], "double"),
        (["float, four"], "float, four"),
        (["float, named"], "float, named"),
        (["two"], "two"),
        ([None, None], "colour"),
        ([], "colour"),
    ],
)
def test_the_layout_of_most_files(tmp_path, kinds, expected):
    assert common_layout(folder(tmp_path, kinds)) == (TIFFS[expected][1] if isinstance(expected, str) else expected)


def test_up_to_16_files_that_lie_evenly_are_looked_at(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "layout_of", lambda path: (seen.append(int(path.name)), RGB_LAYOUT)[1])
    for count in (3, 16, 17, 1000):
        seen.clear()
        common_layout([tmp_path / str(i) for i in range(count)])
        assert len(set(seen)) == min(count, 16)
        assert max(np.diff(sorted(seen))) <= count / 16 + 1
    monkeypatch.setattr(module, "layout_of", lambda path: {"999": TIFFS["five"][1]}[path.name])
    assert common_layout([tmp_path / str(i) for i in range(1000)]) == TIFFS["five"][1], "the only one that can be read"


@pytest.mark.parametrize(
    ("kinds", "numbers", "expected"),
    [
        (["five", "deep", "deep"], (5, 1), Layout((5, 1), "uint16")),
        (["five, named"], (4, 1, 2, 3), Layout((4, 1, 2, 3), "uint16", (3, 2, 1))),
        (["five, named"], [1, 2], Layout((1, 2), "uint16")),
        (["infrared tagged as alpha", "colour"], FIRST, RGB_LAYOUT),
        (["grey", "grey"], FIRST, RGB_LAYOUT),
        (["twenty"], (20, 3), Layout((20, 3), "uint8")),
    ],
)
def test_chosen_bands(tmp_path, kinds, numbers, expected):
    assert common_layout(folder(tmp_path, kinds), numbers) == expected


@pytest.mark.parametrize(
    ("kinds", "numbers", "problem"),
    [
        (["twenty"], (), r"^The images have 20 bands, and at most 16 .* with config\.bands\.numbers\.$"),
        (["deep", "five"], (1, 9), r"has all of the bands \(1, 9\): choose config\.bands\.numbers of \(1, 2, 3\)\.$"),
        (["colour"], (1, 1), "different bands"),
        (["colour"], (0, 1), "different bands from 1"),
        (["colour"], tuple(range(1, 18)), "1 to 16"),
    ],
)
def test_bands_that_cannot_be_had(tmp_path, kinds, numbers, problem):
    with pytest.raises(ValueError, match=problem):
        common_layout(folder(tmp_path, kinds), numbers)


def test_a_file_of_another_layout_is_told_what_it_lacks_and_what_to_do():
    four = Layout((1, 2, 3, 4), "uint8", FIRST)
    assert read_bands(four, Layout((4, 2), "uint8")) == [4, 2]
    assert read_bands(Layout((1,), "uint8"), RGB_LAYOUT) == [1, 1, 1]
    choose = "choose config.bands.numbers that all images have, such as "
    for stored, wanted, fact, advice in [
        (RGB_LAYOUT, four, "it has 3 bands of uint8 and 4 of uint8 are wanted", choose + "(1, 2, 3)"),
        (
            Layout((1,), "uint16"),
            Layout((4, 2), "uint16"),
            "it has 1 band of uint16 and bands 4, 2 of uint16 are wanted",
            choose + "(1,)",
        ),
        (DEEP, RGB_LAYOUT, "it has 3 bands of uint16 and 3 of uint8 are wanted", "convert it to 8 bits"),
        (
            RGB_LAYOUT,
            Layout((1,), "float32"),
            "it has 3 bands of uint8 and 1 of float32 is wanted",
            "convert it to float32",
        ),
    ]:
        with pytest.raises(OtherBandsError) as caught:
            read_bands(stored, wanted)
        assert (str(caught.value), caught.value.advice) == (fact, advice)
        assert isinstance(caught.value, UnusableImageError)


def test_files_that_name_other_colours_do_not_go_together():
    swapped, unnamed = RGB_LAYOUT._replace(rgb=(3, 2, 1)), RGB_LAYOUT._replace(rgb=())
    for stored, wanted in ((RGB_LAYOUT, RGB_LAYOUT), (unnamed, swapped), (swapped, unnamed), (swapped, swapped)):
        check_colours(stored, wanted)
    with pytest.raises(UnusableImageError) as caught:
        check_colours(RGB_LAYOUT, swapped)
    assert str(caught.value) == (
        "its red, green and blue are bands 1, 2, 3 and those of most images bands 3, 2, 1: make a data set of its own "
        "of such images, or correct their tags"
    )
