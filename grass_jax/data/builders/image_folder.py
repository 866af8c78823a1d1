"""TFDS builder `image_folder`: tiles of every PNG, JPEG and (Geo)TIFF file of a folder tree."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from grass_jax.data.builders.tiling import Layers, LocalBuilder, config_name, cut_files, tile_features
from grass_jax.data.folder import ImageFile, find_images
from grass_jax.data.layout import Layout, check_colours, common_layout, is_choice, layout_of
from grass_jax.data.rasters import open_scene
from grass_jax.data.tiles import tile_positions


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """One state of one folder, cut in one way."""

    path: Path
    files: list[ImageFile] = dataclasses.field(repr=False)
    tile_size: int
    stride: int
    layout: Layout


def folder_config(
    path: str | os.PathLike,
    *,
    tile_size: int,
    stride: int | None = None,
    exclude: str = "",
    numbers: Sequence[int] = (),
) -> FolderConfig:
    """Name a folder's present content and its tiling, so that a change of either is a new data set.

    Args:
        path: folder tree of images.
        tile_size: side of a tile in pixels.
        stride: distance between neighbouring tiles in pixels; `tile_size` where None.
        exclude: pattern of the names of files to leave out; empty leaves out none.
        numbers: of the bands to read, from 1; all where empty.

    Returns:
        the builder's configuration.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: see `find_images` and `common_layout`; or a size below 1.
    """
    stride = tile_size if stride is None else stride
    tile_positions(0, 0, tile_size, stride)  # checks the two before any work
    folder = Path(path).expanduser().resolve()
    files = find_images(folder, exclude)
    paths = [folder / file.name for file in files]
    layout = common_layout(paths, numbers)
    chosen = is_choice(layout, paths)  # bands that are read anyway make no other data set
    name = config_name(folder, files, tile_size, stride, (exclude, layout.numbers) if chosen else exclude)
    return FolderConfig(name=name, path=folder, files=files, tile_size=tile_size, stride=stride, layout=layout)


class ImageFolder(LocalBuilder):
    """Tiles of a folder tree of images, in the order of path, y, x; configure with `folder_config`."""

    VERSION = tfds.core.Version("1.2.0")  # raise it when the same files would give other tiles or notes

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        assert isinstance(config, FolderConfig)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiles of a folder of images.",
            features=tile_features(config.layout, config.tile_size, mask=False),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        assert isinstance(config, FolderConfig)

        @contextlib.contextmanager
        def opened(name: str) -> Iterator[Layers]:
            path = config.path / name
            with open_scene(path, layout=config.layout, min_size=config.tile_size) as scene:
                stored = layout_of(path)
                check_colours(stored, config.layout)
                yield Layers(
                    scene.height,
                    scene.width,
                    lambda y0, y1: {"image": scene.rows(y0, y1)},
                    scene.values or scene.valid,
                    stored=stored,
                )

        yield from cut_files(
            self.info.metadata,
            config.path,
            config.files,
            opened,
            tile_size=config.tile_size,
            stride=config.stride,
            layout=config.layout,
        )
