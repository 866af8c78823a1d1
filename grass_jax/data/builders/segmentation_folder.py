"""TFDS builder `segmentation_folder`: tiles of the images of a folder tree with masks from a parallel tree."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds

from grass_jax.data.builders.tiling import Layers, LocalBuilder, config_name, cut_files, tile_features
from grass_jax.data.footprints import footprint_of
from grass_jax.data.layout import Layout, check_colours, common_layout, is_choice, layout_of
from grass_jax.data.pairs import Annotation, Pairs, label_files, open_pair
from grass_jax.data.tiles import tile_positions


@dataclasses.dataclass(eq=False, kw_only=True)
class SegmentationConfig(tfds.core.BuilderConfig):
    """One state of one folder of images and labels, read and cut in one way."""

    pairs: Pairs = dataclasses.field(repr=False)
    annotation: Annotation
    tile_size: int
    stride: int
    layout: Layout


def segmentation_config(
    pairs: Pairs, annotation: Annotation, *, tile_size: int, stride: int | None = None, numbers: Sequence[int] = ()
) -> SegmentationConfig:
    """Name the present content of a folder and how it is read and cut, so that a change of any is a new data set.

    Args:
        pairs: images and their labels.
        annotation: how the labels are read.
        tile_size: side of a tile in pixels.
        stride: distance between neighbouring tiles in pixels; `tile_size` where None.
        numbers: of the bands to read, from 1; all where empty.

    Returns:
        the builder's configuration.

    Raises:
        ValueError: if a size is below 1; or see `common_layout`.
    """
    stride = tile_size if stride is None else stride
    tile_positions(0, 0, tile_size, stride)  # checks the two before any work
    read = dataclasses.replace(annotation, labels=dataclasses.replace(annotation.labels, colours=()))
    files = [*pairs.files, *label_files(pairs)]
    paths = [pairs.images / file.name for file in pairs.files]
    layout = common_layout(paths, numbers)
    chosen = is_choice(layout, paths)  # bands that are read anyway make no other data set
    return SegmentationConfig(
        name=config_name(pairs.images, files, tile_size, stride, (read, layout.numbers) if chosen else read),
        pairs=pairs,
        annotation=annotation,
        tile_size=tile_size,
        stride=stride,
        layout=layout,
    )


class SegmentationFolder(LocalBuilder):
    """Tiles and their masks in the order of path, y, x, those with a label; configure with `segmentation_config`."""

    VERSION = tfds.core.Version("1.2.0")  # raise it when the same files would give other tiles or notes

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        assert isinstance(config, SegmentationConfig)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiles of a folder of images and their label masks.",
            features=tile_features(config.layout, config.tile_size, mask=True),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(class_names=list(config.annotation.labels.classes)),
        )

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        assert isinstance(config, SegmentationConfig)
        pairs = config.pairs
        labels = {file.name: path for file, path in zip(pairs.files, pairs.labels, strict=True)}

        @contextlib.contextmanager
        def opened(name: str) -> Iterator[Layers]:
            path = pairs.images / name
            with open_pair(path, labels[name], name, config.annotation, layout=config.layout) as scene:
                stored = layout_of(path)
                check_colours(stored, config.layout)
                footprint = footprint_of(scene.georeference, scene.height, scene.width)
                yield Layers(
                    scene.height,
                    scene.width,
                    lambda y0, y1: {"image": scene.rows(y0, y1), "mask": scene.mask(y0, y1)},
                    scene.values or scene.valid,
                    footprint,
                    stored,
                )

        yield from cut_files(
            self.info.metadata,
            pairs.images,
            pairs.files,
            opened,
            tile_size=config.tile_size,
            stride=config.stride,
            layout=config.layout,
            skipped=pairs.skipped,
        )
