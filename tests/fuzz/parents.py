"""The files that are damaged: cut out of real imagery where it is beside the checkout, else drawn."""

import functools
import io
import json
import os
import pickle
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyogrio.raw
import rasterio
import shapely
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

REAL = Path(__file__).parents[2].parent / "shared" / "data"
SIZE = (40, 48)
UTM, GRID = CRS.from_epsg(32611), Affine(0.6, 0, 4e5, 0, -0.6, 4e6)
IDS = np.kron(np.arange(12).reshape(3, 4) % 3, np.ones((14, 12))).astype(np.uint8)[: SIZE[0], : SIZE[1]]
COLOURS = np.array([[60, 16, 152], [132, 41, 246], [110, 193, 228]], np.uint8)
HEX = ("#3C1098", "#8429F6", "#6EC1E4")
File = tuple[str, bytes]  # the suffix of its name and its content


@functools.cache
def pixels() -> np.ndarray:
    """An image (40, 48, 4) uint8 of red, green, blue and near infrared."""
    found = sorted((REAL / "naip_geotiff").rglob("*.tif"))
    if found:
        with rasterio.open(found[0]) as raster:
            return np.moveaxis(raster.read([1, 2, 3, 4], window=((90, 90 + SIZE[0]), (70, 70 + SIZE[1]))), 0, -1)
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 4), np.uint8)


def picture(array: np.ndarray, kind: str = "png", **options) -> bytes:
    target = io.BytesIO()
    Image.fromarray(array).save(target, kind, **options)
    return target.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    """An array (h, w) or (h, w, c) as a GeoTIFF."""
    bands = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    profile = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with warnings.catch_warnings(), rasterio.MemoryFile() as file:
        warnings.simplefilter("ignore")
        with file.open(driver="GTiff", **{"crs": UTM, "transform": GRID, **profile, **options}) as raster:
            raster.write(bands)
        return file.read()


TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}


@functools.cache
def colour() -> list[File]:
    """Images of red, green and blue in 8 bits."""
    rgb = pixels()[..., :3]
    found = [(".png", picture(rgb)), (".jpg", picture(rgb, "jpeg")), (".tif", tiff(rgb)), (".tif", tiff(rgb, **TILED))]
    found += [(".tif", tiff(rgb, compress=how)) for how in ("deflate", "lzw", "packbits", "zstd")]
    found += [
        (".tif", tiff(rgb, compress="jpeg", photometric="YCBCR", **TILED)),
        (".jpg", picture(rgb, "jpeg", progressive=True)),
    ]
    found += [(".png", picture(np.dstack([rgb, np.full(SIZE, 255, np.uint8)]))), (".tif", tiff(rgb, nodata=0))]
    dubai = sorted((REAL / "dubai" / "images").glob("*.*"))[:1]
    for path in dubai:  # as another program has written it
        with Image.open(path) as image:
            found.append((".jpg", picture(np.asarray(image.convert("RGB").crop((0, 0, 48, 40))), "jpeg", quality=95)))
    return found


@functools.cache
def deep() -> list[File]:
    """Images of four bands in 16 bits."""
    values = pixels().astype(np.uint16) * 16
    found = [(".tif", tiff(values, **options)) for options in ({}, TILED, {"nodata": 0}, {"interleave": "band"})]
    return [
        *found,
        (".tif", tiff(values, compress="deflate", predictor=2)),
        (".tif", tiff(values, compress="lzw", **TILED)),
    ]


@functools.cache
def real_numbers() -> list[File]:
    """Images of two bands of floats, one of them with NaN."""
    values = (pixels()[..., :2] / 7).astype(np.float32)
    values[:3] = np.nan
    ways = (
        {"nodata": np.nan},
        {"nodata": -9999.0},
        {"compress": "deflate", "predictor": 3},
        {"compress": "lerc"},
        TILED,
    )
    return [(".tif", tiff(values, **options)) for options in ways]


@functools.cache
def masks(by_colour: bool) -> list[File]:
    """Masks of three classes, as ids 0 to 2 or in three colours."""
    if not by_colour:
        palette = Image.fromarray(IDS)
        palette.putpalette(COLOURS.tobytes())
        target = io.BytesIO()
        palette.save(target, "png")
        return [
            (".png", picture(IDS)),
            (".png", target.getvalue()),
            (".tif", tiff(IDS)),
            (".tif", tiff(IDS, nodata=255, **TILED)),
        ]
    drawn = COLOURS[IDS]
    indexed = Image.fromarray(drawn).quantize(8)
    target = io.BytesIO()
    indexed.save(target, "png")
    return [(".png", picture(drawn)), (".png", target.getvalue()), (".tif", tiff(drawn, compress="deflate"))]


@functools.cache
def vectors() -> list[tuple[str, dict[str, bytes]]]:
    """Files of three squares with a class each: the suffix, and the content by suffix (a Shapefile has four)."""
    shapes = [shapely.box(4e5 + 3 + 8 * i, 4e6 - 15, 4e5 + 9 + 8 * i, 4e6 - 4) for i in range(3)]
    found = []
    for suffix in (".gpkg", ".geojson", ".shp"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "a" + suffix)
            values = [np.array(["road", "tree", "car"])]
            wkb, crs = shapely.to_wkb(np.array(shapes, object)), UTM.to_wkt()
            pyogrio.raw.write(path, wkb, values, ["class"], geometry_type="Polygon", crs=crs)
            found.append((suffix, {each.suffix: each.read_bytes() for each in sorted(Path(folder).iterdir())}))
    return found


def zipped(members: dict[str, bytes], way: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", way) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


@functools.cache
def archives() -> list[bytes]:
    """Zip files in the layout of LoveDA's `Train.zip`: plain, stored, nested, and some that mean harm."""
    image, mask = picture(pixels()[..., :3]), picture(IDS)
    plain = {
        f"Train/{place}/{kind}_png/{i}.png": data
        for i, place in enumerate(("Urban", "Rural"))
        for kind, data in (("images", image), ("masks", mask))
    }
    found = [
        zipped(plain, way) for way in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    ]
    found += [
        zipped({"x/Train.zip": inner}, way) for inner in found[:2] for way in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    ]
    out = [
        f"{start}images_png/0.png"
        for start in ("../../", "/tmp/", "Train/Urban/../../../", "C:\\", "Train/Urban/images_png/../../../../")
    ]
    found.append(zipped(plain | dict.fromkeys(out, image)))
    link = zipfile.ZipInfo("Train/Urban/images_png/7.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand there twice
        target = io.BytesIO(found[0])
        with zipfile.ZipFile(target, "a") as archive:
            archive.writestr(link, "/etc/passwd")
            archive.writestr("Train/Urban/images_png/0.png", mask)
        found.append(target.getvalue())
    zeros = bytes(2**21)
    for way in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        bomb = zipped({"Train/Urban/images_png/9.png": zeros * 8}, way)
        found += [zipped({"x/Train.zip": bomb}), bomb]
    return found


class Harm:
    """What a pickle calls when it is loaded by the library of that name."""

    def __init__(self, function, *arguments):
        self.way = function, arguments

    def __reduce__(self):
        return self.way


@functools.cache
def pickles() -> list[bytes]:
    """Pickles that would make the file `canary` where they are loaded, take much memory, or nest without end."""
    code = "open('canary', 'w')"
    calls = [
        Harm(os.system, "touch canary"),
        Harm(eval, code),
        Harm(exec, code),
        Harm(bytearray, 2**40),
        Harm(open, "canary", "w"),
    ]
    found = [pickle.dumps({"state_dict": {"conv1.weight": call}}, protocol) for call in calls for protocol in (0, 2, 4)]
    found += [b"\x80\x02" + b"(" * 400_000 + b"N.", b"\x80\x02N" + b"\x85" * 400_000 + b".", b"\x80\x02]q\x00h\x00a."]
    found += [
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    ]
    found += [b"\x80\x02]q\x00" + b"(h\x00h\x00t\x71\x00" * 100_000 + b".", b"I" + b"9" * 200_000 + b"\n."]
    return found


def old_format(tree: bytes, keys=("0",), storages: bytes = struct.pack("<q4f", 4, *range(4))) -> bytes:
    """A checkpoint as PyTorch before 1.6 wrote it."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, machine))
    return head + tree + pickle.dumps(list(keys), 2) + storages


def tables() -> list[bytes]:
    """Group tables of the images a0.png to a7.png."""
    lines = [f"a{i}.png,place {i // 2}" for i in range(8)]
    return [
        "\n".join(["file,group", *lines]).encode(),
        "\r\n".join(["\ufefffile,group", *(f'"{a}"' for a in lines)]).encode("utf-8"),
    ]


def damaged_texts() -> list[bytes]:
    """What stands in no table: a quote without end, a field of a megabyte, a null, half a letter, another encoding."""
    head = b"file,group\na0.png,"
    return [
        head + b'"x\n' * 50,
        head + b"x" * 1_000_000,
        head + b"\0\n",
        head + b"\xc3\n",
        "file,group\n".encode("utf-16"),
        json.dumps({}).encode(),
    ]
