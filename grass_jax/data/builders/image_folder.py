"""TFDS builder `image_folder`: tiles of every PNG, JPEG and (Geo)TIFF file of a folder tree."""

import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tqdm import tqdm

from grass_jax.data.folder import ImageFile, find_images, fingerprint
from grass_jax.data.rasters import UnusableImageError, open_scene
from grass_jax.data.tiles import tile_positions

NAMED = 100  # files named in the log before "and N more"


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """One state of one folder, cut in one way."""

    path: Path
    files: list[ImageFile] = dataclasses.field(repr=False)
    tile_size: int
    stride: int


def folder_config(
    path: str | os.PathLike, *, tile_size: int, stride: int | None = None, exclude: str = ""
) -> FolderConfig:
    """Name a folder's present content and its tiling, so that a change of either is a new data set.

    Args:
        path: folder tree of images.
        tile_size: side of a tile in pixels.
        stride: distance between neighbouring tiles in pixels; `tile_size` where None.
        exclude: pattern of the names of files to leave out; empty leaves out none.

    Returns:
        the builder's configuration.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: see `find_images`; or a size below 1.
    """
    stride = tile_size if stride is None else stride
    tile_positions(0, 0, tile_size, stride)  # checks the two before any work
    folder = Path(path).expanduser().resolve()
    files = find_images(folder, exclude)
    title = re.sub(r"[^A-Za-z0-9_-]+", "_", folder.name)[:40] or "root"
    name = f"{title}-{tile_size}-{stride}-{fingerprint(files, tile_size, stride)}"
    return FolderConfig(name=name, path=folder, files=files, tile_size=tile_size, stride=stride)


def encode_tile(tile: np.ndarray) -> io.BytesIO:
    """A tile as the PNG bytes that TFDS stores without TensorFlow."""
    encoded = io.BytesIO()
    # The fastest level: aerial images hardly get smaller with more work.
    Image.fromarray(np.ascontiguousarray(tile)).save(encoded, "png", compress_level=1)
    encoded.seek(0)
    return encoded


def log_skipped(skipped: list[list[str]], folder: str | os.PathLike) -> None:
    """One warning that counts the skipped files and names the first ones with their reasons."""
    if skipped:
        named = "".join(f"\n  {name} ({reason})" for name, reason in skipped[:NAMED])
        more = f"\n  and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        logging.warning("Skipped %d image file(s) of %s:%s%s", len(skipped), folder, named, more)


class ImageFolder(tfds.core.GeneratorBasedBuilder):
    """Tiles of a folder tree of images, in the order of path, y, x; configure with `folder_config`."""

    VERSION = tfds.core.Version("1.0.0")  # raise it when the same files would give other tiles
    # Nothing is downloaded; TFDS would look for checksums with importlib_resources, which it does not install.
    url_infos: ClassVar[dict] = {}  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "file": tfds.features.Text(),
            "y": np.int32,
            "x": np.int32,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiles of a folder of images.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        assert isinstance(config, FolderConfig)
        used: list[list] = []
        skipped: list[list[str]] = []
        key = 0
        with (
            concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,  # zlib works without the GIL
            tqdm(config.files, desc=f"preparing {config.path.name}", unit="file", mininterval=0.5) as progress,
        ):
            for file in progress:
                with contextlib.ExitStack() as stack:
                    try:
                        scene = stack.enter_context(open_scene(config.path / file.name, min_size=config.tile_size))
                    except MemoryError:
                        raise
                    except Exception as error:  # decoders answer a broken file with anything
                        skipped.append([file.name, _reason(error)])
                        continue
                    used.append([file.name, scene.height, scene.width])
                    positions = tile_positions(scene.height, scene.width, config.tile_size, config.stride)
                    for y, row in itertools.groupby(positions.tolist(), key=lambda position: position[0]):
                        band = scene.rows(y, y + config.tile_size)
                        xs = [x for _, x in row]
                        tiles = pool.map(encode_tile, [band[:, x : x + config.tile_size] for x in xs])
                        for x, image in zip(xs, tiles, strict=True):
                            yield key, {"image": image, "file": os.fsencode(file.name), "y": y, "x": x}
                            key += 1
                        progress.set_postfix(tiles=key, refresh=False)
                        progress.update(0)
        log_skipped(skipped, config.path)
        if not used:
            raise ValueError(
                f"No image in {config.path} can be used ({len(skipped)} skipped, the first because {skipped[0][1]}): "
                f"add 8-bit images of at least {config.tile_size}x{config.tile_size} pixels or set a smaller tile_size."
            )
        notes: Any = self.info.metadata
        notes.update(
            folder=os.fspath(config.path),
            tile_size=config.tile_size,
            stride=config.stride,
            files={"train": used},
            skipped=skipped,
        )


def _reason(error: Exception) -> str:
    # rasterio's own words refer to the exception that it was raised from
    text = " ".join(str(error.__cause__ or error.__context__ or error).split())[:200]
    return text if isinstance(error, UnusableImageError) and text else f"it is broken: {text or type(error).__name__}"
