import struct
import zlib

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

from grass_jax.data import masks
from grass_jax.data.labels import IGNORE, Labels, UnknownLabelError
from grass_jax.data.masks import open_mask
from grass_jax.data.rasters import UnusableImageError, open_scene

rng = np.random.default_rng(0)
NAMES = ("road", "tree", "car")
IDS = rng.choice(np.array([0, 1, 2, 255], np.uint8), (20, 31))
COLOURS = np.zeros((256, 3), np.uint8)
COLOURS[[0, 1, 2, 255]] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128]]
BY_ID = Labels(NAMES)
BY_COLOUR = Labels(NAMES, values=("#FF0000", "#00FF00", "#0000FF"), ignore=("#808080",))
UTM = CRS.from_epsg(26911)
COS, SIN = 0.5 * np.cos(0.6), 0.5 * np.sin(0.6)
TURNED = Affine(COS, SIN, 3e5, SIN, -COS, 4e6)


def read(path, labels=BY_ID, **options):
    with open_mask(path, labels, **options) as mask:
        whole = mask.rows(0, mask.height)
        np.testing.assert_array_equal(mask.rows(3, 7), whole[3:7])
        assert whole.shape == (mask.height, mask.width)
        assert whole.dtype == np.uint8
        return whole


def write(path, bands, **options):
    bands = np.asarray(bands)
    options = {"crs": UTM, "transform": TURNED} | options
    profile = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **profile, **options) as raster:
        raster.write(bands)
        if options.get("photometric") == "PALETTE":
            raster.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(COLOURS.tolist())})
    return path


def save_png(path, ids, bits):
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write."""
    rows = np.unpackbits(ids[..., None], axis=-1)[..., 8 - bits :].reshape(len(ids), -1)
    header = struct.pack(">IIBBBBB", ids.shape[1], len(ids), bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.packbits(rows, axis=1)))
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_grey_and_palette_png_hold_ids(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "grey.PNG")
    picture = Image.fromarray(IDS)
    picture.putpalette(COLOURS.ravel().tolist())  # makes a palette picture of the grey one
    picture.save(tmp_path / "palette.png")
    picture.save(tmp_path / "clear.png", transparency=0)  # a viewer's setting, the index is still a class
    for name in ("grey.PNG", "palette.png", "clear.png"):
        np.testing.assert_array_equal(read(tmp_path / name), IDS)


def test_colours_of_a_png_with_and_without_a_palette(tmp_path):
    Image.fromarray(COLOURS[IDS]).save(tmp_path / "rgb.png")
    picture = Image.fromarray(IDS)
    picture.putpalette(COLOURS.ravel().tolist())  # makes a palette picture of the grey one
    picture.save(tmp_path / "palette.png")
    for name in ("rgb.png", "palette.png"):
        np.testing.assert_array_equal(read(tmp_path / name, BY_COLOUR), IDS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_hold_ids(tmp_path, bits):
    ids = rng.integers(0, 2**bits, (20, 31)).astype(np.uint8)
    save_png(tmp_path / "a.png", ids, bits)
    labels = Labels(tuple(f"c{i}" for i in range(2**bits)))
    np.testing.assert_array_equal(read(tmp_path / "a.png", labels), ids)


def test_one_bit_is_black_and_white_for_colours(tmp_path):
    save_png(tmp_path / "a.png", IDS % 2, 1)
    np.testing.assert_array_equal(read(tmp_path / "a.png", Labels(("no", "yes"), ("#000000", "#FFFFFF"))), IDS % 2)
    write(tmp_path / "a.tif", [IDS % 2], nbits=1)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", Labels(("no", "yes"))), IDS % 2)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", Labels(("no", "yes"), ("#000000", "#FFFFFF"))), IDS % 2)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_hold_ids(tmp_path, name):
    ids = rng.choice(np.array([1000, 3, 40000, 65535], np.uint16), (20, 31))
    if name == "a.png":
        Image.fromarray(ids).save(tmp_path / name)
    else:
        write(tmp_path / name, [ids])
    decoded = read(tmp_path / name, Labels(NAMES, values=(1000, 3, 40000), ignore=(65535,)))
    expected = np.select([ids == 1000, ids == 3, ids == 40000], [0, 1, 2], IGNORE)
    np.testing.assert_array_equal(decoded, expected)


def test_ids_that_were_repeated_as_grey_are_still_ids(tmp_path):
    Image.fromarray(IDS).convert("RGB").save(tmp_path / "a.png")
    write(tmp_path / "a.tif", [IDS, IDS, IDS])
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read(tmp_path / name), IDS)
    Image.fromarray(COLOURS[IDS]).save(tmp_path / "a.png")
    write(tmp_path / "a.tif", COLOURS[IDS].transpose(2, 0, 1))
    for name in ("a.png", "a.tif"):
        with pytest.raises(UnknownLabelError, match=f"{name} holds colours, not ids"):
            read(tmp_path / name)


def test_ids_are_not_taken_for_colours(tmp_path):
    Image.fromarray(np.full((20, 31), 7, np.uint8)).save(tmp_path / "a.png")
    write(tmp_path / "a.tif", [np.full((20, 31), 7, np.uint8)])
    for name in ("a.png", "a.tif"):
        with pytest.raises(UnknownLabelError, match=rf"{name} holds the colour #070707 \(620 pixels\)"):
            read(tmp_path / name, BY_COLOUR)


def test_bands_and_palettes_of_a_tiff(tmp_path):
    bands = COLOURS[IDS].transpose(2, 0, 1)
    np.testing.assert_array_equal(read(write(tmp_path / "a.tif", bands, blockysize=4), BY_COLOUR), IDS)
    path = write(tmp_path / "b.tif", [IDS], photometric="PALETTE")
    np.testing.assert_array_equal(read(path), IDS)
    np.testing.assert_array_equal(read(path, BY_COLOUR), IDS)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32"])
def test_wide_ids_of_a_tiff_and_their_nodata(tmp_path, dtype):
    ids = np.where(IDS == 255, 77, IDS).astype(dtype)  # 77 is no class: only nodata explains it
    np.testing.assert_array_equal(read(write(tmp_path / "a.tif", [ids], nodata=77)), IDS)


def test_transparent_pixels_do_not_count(tmp_path):
    cut = rng.random(IDS.shape) < 0.3
    opacity = np.where(cut, 0, 255).astype(np.uint8)
    expected = np.where(cut, IGNORE, IDS)
    colours = np.where(cut[..., None], np.uint8(9), COLOURS[IDS])  # unknown where nothing counts
    Image.fromarray(np.dstack([colours, opacity])).save(tmp_path / "a.png")
    write(tmp_path / "a.tif", [*colours.transpose(2, 0, 1), opacity], alpha="yes")
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read(tmp_path / name, BY_COLOUR), expected)
    ids = np.where(cut, np.uint8(9), IDS)
    Image.fromarray(np.dstack([ids, opacity])).save(tmp_path / "b.png")
    write(tmp_path / "b.tif", [ids, opacity], alpha="yes")
    for name in ("b.png", "b.tif"):
        np.testing.assert_array_equal(read(tmp_path / name), expected)


def test_a_nodata_value_that_is_a_class_is_refused(tmp_path):
    path = write(tmp_path / "ids.tif", [IDS], nodata=2)
    with pytest.raises(UnknownLabelError, match=r"ids\.tif has the nodata value 2, which is also the class car"):
        read(path)
    np.testing.assert_array_equal(read(path, Labels(NAMES, ignore=(2, 255))), np.where(IDS == 2, IGNORE, IDS))
    path = write(tmp_path / "colours.tif", COLOURS[IDS].transpose(2, 0, 1), nodata=9)
    grey = Labels((*NAMES, "grey"), values=(*BY_COLOUR.values, "#090909"), ignore=("#808080",))
    with pytest.raises(UnknownLabelError, match="nodata value 9, which is also the class grey"):
        read(path, grey)
    np.testing.assert_array_equal(read(path, BY_COLOUR), IDS)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_unknown_ids_are_found_and_counted_when_the_mask_is_opened(tmp_path, name):
    ids = np.zeros((1100, 3), np.uint8)
    ids[[5, 600, 1099]] = 9
    if name == "a.png":
        Image.fromarray(ids).save(tmp_path / name)
    else:
        write(tmp_path / name, [ids])
    with pytest.raises(UnknownLabelError, match=r"mask east/a holds the id 9 \(9 pixels\)"):
        read(tmp_path / name, name="east/a")
    with open_mask(tmp_path / name, BY_ID, verify=False) as mask:
        np.testing.assert_array_equal(mask.rows(6, 600), 0)
        with pytest.raises(UnknownLabelError, match=rf"{name} holds the id 9 \(3 pixels\)"):
            mask.rows(599, 601)


def test_files_that_are_no_masks(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "a.jpg")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"no picture")
    write(tmp_path / "float.tif", [IDS.astype(np.float32)])
    write(tmp_path / "two.tif", [IDS, IDS])
    for name, words in [
        ("a.jpg", "JPEG changes ids and colours"),
        ("empty.png", "empty"),
        ("text.png", "no readable PNG"),
        ("float.tif", "holds float32: convert it to whole ids"),
        ("two.tif", "has 2 bands: save one of ids or three of colours"),
    ]:
        with pytest.raises(UnusableImageError, match=words):
            read(tmp_path / name)
    with pytest.raises(UnusableImageError, match="holds uint16 and the labels are colours"):
        read(write(tmp_path / "a.tif", COLOURS[IDS].transpose(2, 0, 1).astype(np.uint16)), BY_COLOUR)


@pytest.mark.parametrize("gsd", [1.0, 1.3, 0.2, 0.5])
@pytest.mark.parametrize("kind", ["ids", "colours"])
def test_image_and_mask_share_a_resampled_grid(tmp_path, gsd, kind):
    labels = BY_ID if kind == "ids" else BY_COLOUR
    write(tmp_path / "image.tif", rng.integers(0, 256, (3, 20, 31), np.uint8))
    bands = [IDS] if kind == "ids" else COLOURS[IDS].transpose(2, 0, 1)
    placed = write(tmp_path / "placed.tif", bands)
    Image.fromarray(IDS if kind == "ids" else COLOURS[IDS]).save(tmp_path / "plain.png")
    with open_scene(tmp_path / "image.tif", gsd=gsd) as scene:
        with open_mask(placed, labels, gsd=gsd) as mask:
            assert (mask.height, mask.width) == (scene.height, scene.width)
            assert mask.georeference == scene.georeference
            whole = mask.rows(0, mask.height)
        np.testing.assert_array_equal(read(tmp_path / "plain.png", labels, gsd=gsd, factors=scene.factors), whole)
    factor = gsd / 0.5
    for i, j in np.ndindex(whole.shape):
        y = [max(0, min((i + 1) * factor, row + 1) - max(i * factor, row)) for row in range(20)]
        x = [max(0, min((j + 1) * factor, column + 1) - max(j * factor, column)) for column in range(31)]
        if factor > 1:
            areas = {label: (np.outer(y, x) * (label == IDS)).sum() for label in (0, 1, 2, 255)}
            assert whole[i, j] == min(label for label, area in areas.items() if area > max(areas.values()) - 1e-6)
        else:
            assert whole[i, j] == IDS[min(int((i + 0.5) * factor), 19), min(int((j + 0.5) * factor), 30)]


def test_a_placed_mask_is_resampled_by_its_own_pixels(tmp_path):
    fine = Affine(COS / 2, SIN / 2, 3e5, SIN / 2, -COS / 2, 4e6)
    path = write(tmp_path / "a.tif", [np.repeat(np.repeat(IDS, 2, 0), 2, 1)], transform=fine)
    np.testing.assert_array_equal(read(path, gsd=0.5, factors=(1.0, 1.0)), IDS)


def test_resampling_a_mask_needs_to_know_its_pixels(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "a.png")
    with pytest.raises(UnusableImageError, match="no georeference to resample by"):
        read(tmp_path / "a.png", gsd=1)
    with pytest.raises(ValueError, match="gsd must be above 0"):
        read(tmp_path / "a.png", gsd=0)


def test_a_large_tiff_is_read_in_windows(tmp_path, monkeypatch):
    ids = rng.choice(np.array([0, 1, 2, 255], np.uint8), (1500, 40))
    path = write(tmp_path / "a.tif", [ids], compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    look_up, seen = masks.look_up, []
    monkeypatch.setattr(masks, "look_up", lambda codes, labels: seen.append(len(codes)) or look_up(codes, labels))
    with open_mask(path, BY_ID) as mask:
        np.testing.assert_array_equal(mask.rows(700, 720), ids[700:720])
    assert max(seen) <= 512
    assert sum(seen) == 1520


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_text_that_unpacks_to_megabytes_breaks_the_file_and_no_label(tmp_path, behind):
    Image.fromarray(IDS).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    text = b"zTXt" + b"a\0\0" + zlib.compress(bytes(2**23))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    at = data.index(b"IEND") - 4 if behind else data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + chunk + data[at:])
    with pytest.raises(UnusableImageError, match=r"^it is broken: Decompressed data too large"):
        read(tmp_path / "a.png")
