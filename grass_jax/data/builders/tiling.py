"""From the files of a folder to the examples of a TFDS builder: tiles, what was skipped, and the notes beside them."""

import base64
import concurrent.futures
import contextlib
import hashlib
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from grass_jax.bands import DTYPES_IN_WORDS
from grass_jax.data.builders.notices import log_notes, log_skipped
from grass_jax.data.folder import ImageFile, fingerprint
from grass_jax.data.labels import IGNORE
from grass_jax.data.layout import RGB_LAYOUT, Layout, OtherBandsError, count_bands
from grass_jax.data.pairs import LabelError
from grass_jax.data.rasters import reason
from grass_jax.data.statistics import PixelSample
from grass_jax.data.tiles import tile_positions
from grass_jax.data.workers import cores
from grass_jax.report.progress import counter


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of what is on this machine already; without `_split_generators` of its own all of it is `train`."""

    # Nothing is downloaded; TFDS would look for checksums with importlib_resources, which it does not install.
    url_infos: ClassVar[dict] = {}  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}


class Layers(NamedTuple):
    """An open file.

    Attributes:
        height: in pixels.
        width: in pixels.
        read: reads rows y0 to y1 - 1 of its layers, `image` and perhaps `mask`.
        valid: reads which pixels of these rows hold an image, (y1 - y0, width) bool, or which values of each band do,
            (y1 - y0, width, c); None where all do.
        notes: what to note about it, fit for JSON.
        stored: the layout that the file itself has, where others of the data set may have another.
    """

    height: int
    width: int
    read: Callable[[int, int], dict[str, np.ndarray]]
    valid: Callable[[int, int], np.ndarray] | None = None
    notes: Any = None
    stored: Layout | None = None


def config_name(folder: Path, files: Sequence[ImageFile], tile_size: int, stride: int, settings: object = "") -> str:
    """Name of a builder's configuration: readable, and another one for other settings or another state of the files.

    What stands before the last hyphen is the same for all states of the files.
    """
    title = re.sub(r"[^A-Za-z0-9_-]+", "_", folder.name)[:40] or "root"
    way = f"-{fingerprint([], settings)[:6]}" if settings else ""
    return f"{title}-{tile_size}-{stride}{way}-{fingerprint(files, tile_size, stride)}"


def tile_features(layout: Layout, tile_size: int, *, mask: bool) -> tfds.features.FeaturesDict:
    """What a record holds: the tile, its mask where there is one, its file and its upper left corner.

    Args:
        layout: of the tile; three bands of 8 bits are stored as PNG, others as compressed arrays.
        tile_size: side of a tile in pixels.
        mask: whether there is a mask.

    Returns:
        the features.
    """
    shape, encoding = (tile_size, tile_size, len(layout.numbers)), tfds.features.Encoding.ZLIB
    features: dict[str, Any] = {
        "image": tfds.features.Tensor(shape=shape, dtype=np.dtype(layout.dtype), encoding=encoding)
    }
    if _is_picture(layout):
        features["image"] = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    if mask:
        features["mask"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    return tfds.features.FeaturesDict(features | {"file": tfds.features.Text(), "y": np.int32, "x": np.int32})


def _is_picture(layout: Layout) -> bool:
    return layout.dtype == "uint8" and len(layout.numbers) == 3


def encode_tile(tile: np.ndarray) -> io.BytesIO:
    """A mask or a tile of three 8-bit bands as the PNG bytes that TFDS stores without TensorFlow."""
    encoded = io.BytesIO()
    # The fastest level: aerial images hardly get smaller with more work.
    Image.fromarray(np.ascontiguousarray(tile)).save(encoded, "png", compress_level=1)
    encoded.seek(0)
    return encoded


def cut_files(
    notes: Any,
    folder: Path,
    files: Sequence[ImageFile],
    opened: Callable[[str], AbstractContextManager[Layers]],
    *,
    tile_size: int,
    stride: int,
    layout: Layout = RGB_LAYOUT,
    skipped: Sequence[tuple[str, str]] = (),
) -> Iterator[tuple[int, dict]]:
    """The examples of a folder, in the order of file, y, x; files that cannot be opened are skipped and named.

    A tile of which fewer than half of the pixels are valid, or whose mask has no labelled pixel, is left out.

    Args:
        notes: the builder's metadata, which gets `folder`, `tile_size`, `stride`, `files` (name, height, width),
            `pixels` (a hash of all tiles and masks), `skipped` (name, reason), `bands` (as measured on the tiles), and
            where there are any the files' `notes`, `barren` files (name, reason), the number of `nodata` tiles, which
            tiles were `kept`, what `mixed` layouts the used files have, or how many bands of all are `unread`, and the
            bands that may hold `untagged` nodata (`Outlier`).
        folder: the folder.
        files: its files.
        opened: opens a file by name once all of it has been found readable.
        tile_size: side of a tile in pixels.
        stride: distance between neighbouring tiles in pixels.
        layout: of the images.
        skipped: name and reason of files that were skipped before.

    Yields:
        key and example.

    Raises:
        LabelError: as `opened` raises it.
        ValueError: if no tile comes of it.
    """
    used: list[list] = []
    unusable: list[list[str]] = [list(pair) for pair in skipped]
    barren: list[list[str]] = []
    noted, kept, key, nodata = [], [], 0, 0
    own: Counter[Layout] = Counter()
    sample, shown = PixelSample(layout), hashlib.sha256()
    pictures = {"mask", "image"} if _is_picture(layout) else {"mask"}

    def encode(tile: dict[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
        # of the pixels and not of the PNG, which another version of its library writes otherwise
        digest = hashlib.sha256(b"".join(tile[name].tobytes() for name in sorted(tile))).digest()
        return {name: encode_tile(array) if name in pictures else array for name, array in tile.items()}, digest

    with (
        concurrent.futures.ThreadPoolExecutor(min(8, cores())) as pool,  # zlib works without the GIL
        counter(files, desc=f"preparing {folder.name}", unit="file") as progress,
    ):
        for file in progress:
            with contextlib.ExitStack() as stack:
                try:
                    layers = stack.enter_context(opened(file.name))
                except (MemoryError, LabelError):
                    raise
                except OtherBandsError as error:
                    unusable.append([file.name, f"{error}: {error.advice}"])
                    continue
                except Exception as error:  # decoders answer a broken file with anything
                    unusable.append([file.name, reason(error)])
                    continue
                used.append([file.name, layers.height, layers.width])
                noted.append(layers.notes)
                own[(layers.stored or layout)._replace(rgb=())] += 1
                positions = tile_positions(layers.height, layers.width, tile_size, stride)
                before = key, nodata
                for y, row in itertools.groupby(positions.tolist(), key=lambda position: position[0]):
                    strips = layers.read(y, y + tile_size)
                    if layers.valid is not None:
                        strips["valid"] = layers.valid(y, y + tile_size)
                    tiles = [(x, {name: strip[:, x : x + tile_size] for name, strip in strips.items()}) for _, x in row]
                    counted = [_has_image(tile) for _, tile in tiles]
                    use = [good and _has_label(tile) for good, (_, tile) in zip(counted, tiles, strict=True)]
                    nodata += counted.count(False)
                    kept += use
                    tiles = list(itertools.compress(tiles, use))
                    for _, tile in tiles:
                        sample.add(tile["image"], tile.pop("valid", None))
                    encoded = pool.map(encode, (tile for _, tile in tiles))
                    for (x, _), (example, digest) in zip(tiles, encoded, strict=True):
                        shown.update(digest)
                        yield key, example | {"file": os.fsencode(file.name), "y": y, "x": x}
                        key += 1
                    progress.set_postfix(tiles=key, refresh=False)
                    progress.update(0)
                if key == before[0]:
                    dropped = nodata - before[1] == len(positions)
                    why = "nearly all of it is nodata" if dropped else "no pixel is labelled"
                    barren.append([file.name, why if len(positions) else "smaller than a tile"])
    if not used:
        log_skipped(unusable, folder)
        raise ValueError(
            f"No image in {folder} can be used ({len(unusable)} skipped, the first because {unusable[0][1]}): "
            f"add images of at least {tile_size}x{tile_size} pixels, of {DTYPES_IN_WORDS}, "
            "or set a smaller tile_size."
        )
    if nodata and nodata == len(kept):
        raise ValueError(
            f"More than half of every tile of {tile_size}x{tile_size} pixels in {folder} is nodata: set a smaller "
            "tile_size, or check the files' nodata values and alpha channels."
        )
    if not key:
        raise ValueError(
            f"No tile of {tile_size}x{tile_size} pixels in {folder} has a labelled pixel: set a smaller tile_size, or "
            "check the classes, the ignored ids and rectangles."
        )
    notes.update(folder=os.fspath(folder), tile_size=tile_size, stride=stride, files={"train": used}, skipped=unusable)
    notes.update(bands=sample.bands().asdict(), pixels={"train": shown.hexdigest()[:16]})
    found: dict[str, Any] = {
        "notes": noted if any(noted) else None,
        "barren": barren,
        "nodata": nodata,
        "mixed": _mixed(own, layout),
        "unread": len(own) == 1 and max(0, len(next(iter(own)).numbers) - len(layout.numbers)),
        "untagged": [list(outlier) for outlier in sample.outliers()],
        "kept": "" if all(kept) else base64.b85encode(np.packbits(kept).tobytes()).decode(),
    }
    notes.update({name: value for name, value in found.items() if value})
    log_notes(notes)


def _has_image(tile: dict[str, np.ndarray]) -> bool:
    if "valid" not in tile:
        return True
    valid = tile["valid"]
    return bool((valid if valid.ndim == 2 else valid.any(axis=-1)).mean() >= 0.5)


def _mixed(own: Counter[Layout], layout: Layout) -> list[str]:
    """How many of the used files have another layout than what is read, in words; empty where all are alike."""
    if len(own) == 1:
        return []
    read = f"of which {len(layout.numbers)} {'is' if len(layout.numbers) == 1 else 'are'} read"
    return [
        f"{count} of {own.total()} files have {count_bands(stored)}, "
        + ("which is read three times" if len(stored.numbers) < len(layout.numbers) else read)
        for stored, count in own.items()
        if set(stored.numbers) != set(layout.numbers)
    ]


def _has_label(tile: dict[str, np.ndarray]) -> bool:
    return "mask" not in tile or bool((tile["mask"] != IGNORE).any())


def kept_tiles(notes: dict[str, Any], count: int) -> np.ndarray:
    """Which of the `count` tiles that a folder's sizes make are among the records, from a builder's metadata."""
    if not notes.get("kept"):
        return np.ones(count, bool)
    packed = np.frombuffer(base64.b85decode(notes["kept"]), np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)
