"""The tiles of a prepared data set, by index."""

import copy
import dataclasses
import hashlib
import io
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from grass_jax.bands import RGB, Bands
from grass_jax.data.builders.image_folder import ImageFolder, folder_config
from grass_jax.data.builders.notices import log_notes
from grass_jax.data.builders.sample import Sample, sample_config
from grass_jax.data.builders.tiling import kept_tiles
from grass_jax.data.faults import UnreadableTileError, cause_of
from grass_jax.data.prepare import prepare
from grass_jax.data.tiles import tile_positions
from grass_jax.report.records import read_record


@dataclasses.dataclass(frozen=True, eq=False)
class TileSource:
    """Tiles with random access; can be pickled.

    Attributes:
        name: where the records are, for messages.
        records: TFDS data source with encoded images.
        files: names of the scenes, relative to the folder.
        positions: (n, 3) int32 of file, y, x; file counts in `files`, y and x are pixels.
        tile_size: side of a tile in pixels.
        class_names: names of the mask's ids; empty where there are no masks.
        rows: (n,) numbers of the tiles' records; None where tile i is record i.
        bands: of the images, as measured when they were prepared.
        pixels: hash of what all tiles of the data set show, masks included; empty where it was not noted when they were
            prepared.
        pauses: seconds to wait before each further try to read a record: a network disk comes back.
    """

    name: str
    records: Any
    files: tuple[str, ...]
    positions: np.ndarray
    tile_size: int
    class_names: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    bands: Bands = RGB
    pixels: str = ""
    pauses: tuple[float, ...] = (0.1, 1.0, 5.0)

    def __len__(self) -> int:
        return len(self.positions)

    def digests(self) -> dict[str, str]:
        """Sum up which tiles these are, by names of files and positions, and, where that is known, what they show."""
        parts = ["\n".join(self.files).encode(), self.positions.tobytes(), str(self.tile_size).encode()]
        places = {"tiles_digest": hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]}
        return places | ({"pixels_digest": self.pixels} if self.pixels else {})

    def subset(self, indices: Sequence[int] | np.ndarray) -> "TileSource":
        """Some of the tiles, in the order of `indices`; their files keep their numbers."""
        chosen = np.asarray(indices, np.int64)
        rows = chosen if self.rows is None else self.rows[chosen]
        return dataclasses.replace(self, positions=self.positions[chosen], rows=rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Decode one tile.

        Args:
            index: number of the tile, from 0.

        Returns:
            `image` (t, t, c) of the dtype of `bands`, where nodata is NaN in floats, and, where the data set has masks,
            `mask` (t, t) uint8.

        Raises:
            IndexError: if there is no such tile.
            UnreadableTileError: if its record cannot be read; names the tile, its file and position.
        """
        return self.read(index, self.pauses)

    def read(self, index: int, pauses: Sequence[float]) -> dict[str, np.ndarray]:
        """Decode one tile as `source[index]` does, after pauses of one's own choice; none of them tries once."""
        if not 0 <= index < len(self):
            raise IndexError(f"There is no tile {index}: the data set has {len(self)}.")
        failed: Exception | None = None
        for pause in (None, *pauses):
            if pause is not None:
                time.sleep(pause)
                self._reopen()
            try:
                return self._decoded(self.records[int(index if self.rows is None else self.rows[index])])
            except MemoryError:
                raise
            except Exception as error:  # a damaged record ends in any error of its reader or decoder
                failed = error
        raise UnreadableTileError(self.describe(index), cause_of(failed)) from failed

    def describe(self, index: int) -> str:
        """Which tile of which file this is, for messages."""
        file, y, x = self.positions[index]
        return f"Tile {index} ({self.files[file]}, y={y}, x={x}) of {self.name}"

    def _reopen(self) -> None:
        """Forget the open files: a reader that could not open its file once fails for ever, as does a stale handle."""
        records = copy.copy(self.records)
        if hasattr(records, "data_source"):  # of TFDS; its copy opens files of its own, when it reads
            records.data_source = copy.copy(records.data_source)
        object.__setattr__(self, "records", records)  # other threads go on with the old ones

    def _decoded(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        size = self.tile_size
        wanted = {"image": ((size, size, len(self.bands)), self.bands.dtype), "mask": ((size, size), "uint8")}
        tile = {name: pixels_of(record[name]) for name in wanted if name in record or name == "image"}
        for name, pixels in tile.items():
            if (pixels.shape, pixels.dtype.name) != wanted[name]:
                shape, dtype = wanted[name]
                raise ValueError(f"its {name} is {pixels.dtype} {pixels.shape} and not {dtype} {shape}")
        return tile


def pixels_of(encoded: bytes | np.ndarray) -> np.ndarray:
    """Decodes what a record holds of an image or a mask, (t, t, c) or (t, t)."""
    if isinstance(encoded, np.ndarray):
        return encoded
    with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        return np.asarray(image)


def positions_of(files: Sequence[Sequence], tile_size: int, stride: int) -> np.ndarray:
    """Where every tile of a data set lies, worked out from the sizes of its files.

    Args:
        files: name, height and width of every file in the order of the records.
        tile_size: side of a tile in pixels.
        stride: distance between neighbouring tiles in pixels.

    Returns:
        (n, 3) int32 of file, y, x.
    """
    each = [tile_positions(height, width, tile_size, stride) for _, height, width in files]
    number = np.repeat(np.arange(len(each), dtype=np.int32), [len(corners) for corners in each])
    return np.concatenate([number[:, None], np.concatenate(each)], axis=1)


def open_tiles(
    name: str,
    *,
    path: str | os.PathLike | None = None,
    tile_size: int | None = None,
    stride: int | None = None,
    exclude: str = "",
    numbers: Sequence[int] = (),
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
) -> TileSource:
    """Open a data set, preparing it on first use and whenever the folder's content or the tiling has changed.

    Args:
        name: `sample` (the embedded landscape) or `image_folder`.
        path: the folder of `image_folder`.
        tile_size: side of a tile in pixels; 96 for `sample` and 256 for `image_folder` where None.
        stride: distance between neighbouring tiles in pixels; `tile_size` where None.
        exclude: pattern of the names of files of `image_folder` to leave out, such as those kept for testing.
        numbers: of the bands to read, from 1; all of most files' bands where empty.
        split: `train`, or `val` for `sample`.
        data_dir: where TFDS keeps its data sets; `TFDS_DATA_DIR` or `~/tensorflow_datasets` where None.

    Returns:
        the tiles.

    Raises:
        ValueError: for an unknown name or split, a folder without a usable image, bands that no file has, or sizes that
            make no sense.
        FileNotFoundError: if the folder does not exist.
        NotADirectoryError: if `path` is a file.
    """
    directory = None if data_dir is None else os.fspath(data_dir)
    if name == "sample":
        if path is not None:
            raise ValueError("The data set sample takes no path: leave it out or use image_folder.")
        check_sample_numbers(numbers)
        builder, fresh = prepare(Sample, sample_config(tile_size=tile_size or 96, stride=stride), directory)
    elif name == "image_folder":
        if path is None:
            raise ValueError("The data set image_folder needs a path: set it to the folder of your images.")
        tile_size = 256 if tile_size is None else tile_size
        config = folder_config(path, tile_size=tile_size, stride=stride, exclude=exclude, numbers=numbers)
        builder, fresh = prepare(ImageFolder, config, directory)
    else:
        raise ValueError(f"There is no data set {name!r}: use sample or image_folder.")
    return tiles_of(builder, split, fresh=fresh)


def check_sample_numbers(numbers: Sequence[int]) -> None:
    """Raises ValueError where bands are chosen of which the sample has none."""
    if tuple(numbers) not in ((), RGB.numbers):
        bands = f"band{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
        raise ValueError(f"The sample has red, green and blue of 8 bits and the network reads {bands}: give a folder.")


def tiles_of(builder: tfds.core.DatasetBuilder, split: str, *, fresh: bool) -> TileSource:
    """The tiles of a prepared builder; says in the log what was skipped and where earlier states of a folder lie.

    Args:
        builder: what `prepare` gives.
        split: name of the split.
        fresh: whether it has been prepared just now.

    Returns:
        the tiles.

    Raises:
        ValueError: for an unknown split, or where records are missing.
    """
    notes: dict[str, Any] = dict(builder.info.metadata or {})
    if split not in notes["files"]:
        raise ValueError(f"The data set {builder.name} has no split {split!r}: use {' or '.join(notes['files'])}.")
    notes |= notes.get("of_split", {}).get(split, {})  # which tiles were kept, where the splits are cut one by one
    records = builder.as_data_source(split=split, decoders=_undecoded(builder))  # pyright: ignore[reportCallIssue]
    files = notes["files"][split]
    positions = positions_of(files, notes["tile_size"], notes["stride"])
    positions = positions[kept_tiles(notes, len(positions))]
    if len(positions) != len(records):
        raise ValueError(f"{builder.data_path} is damaged: delete that folder to have it prepared again.")
    if "folder" in notes:
        if not fresh:  # a fresh one has just said so
            log_notes(notes)
        _log_outdated(builder, notes)
    logging.info("Using %d tiles of %d file(s) from %s", len(positions), len(files), builder.data_path)
    names = tuple(str(file[0]) for file in files)
    classes = tuple(notes.get("class_names", ()))
    bands, place = Bands(**notes["bands"]), os.fspath(builder.data_path)
    pixels = notes.get("pixels", {}).get(split, "")  # unknown of the sample, and of what earlier versions prepared
    return TileSource(place, records, names, positions, notes["tile_size"], classes, bands=bands, pixels=pixels)


def _undecoded(builder: tfds.core.DatasetBuilder) -> dict:
    """Leave pictures as bytes: TFDS would decode with OpenCV where that happens to be installed."""
    features: Any = builder.info.features
    pictures = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    return {name: tfds.decode.SkipDecoding() for name in pictures}


def _log_outdated(builder: tfds.core.DatasetBuilder, notes: dict[str, Any]) -> None:
    """Say where earlier states of the same folder still take space; they are the user's to delete."""
    home = builder.data_path.parent
    stem = home.name.rpartition("-")[0]
    outdated = []
    for metadata in home.parent.glob(f"{stem}-*/*/metadata.json"):
        other = metadata.parent.parent
        if other == home or other.name.rpartition("-")[0] != stem:  # the same state, or other settings
            continue
        if read_record(metadata).get("folder") == notes["folder"]:  # pyright: ignore[reportArgumentType]
            outdated.append(os.fspath(other))
    if outdated:
        logging.info("%s has changed since; earlier tiles may be deleted: %s", notes["folder"], ", ".join(outdated))
