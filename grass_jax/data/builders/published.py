"""TFDS builders `potsdam`, `vaihingen` and `loveda`: tiles and masks of archives as their owners publish them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from grass_jax.data.builders.tiling import Layers, LocalBuilder, config_name, cut_files, tile_features
from grass_jax.data.folder import ImageFile
from grass_jax.data.published.archives import Member
from grass_jax.data.published.facts import facts_of, instructions, layout_of_published
from grass_jax.data.published.pixels import open_published
from grass_jax.data.published.scenes import PublishedScene, find_published
from grass_jax.data.tiles import tile_positions


@dataclasses.dataclass(eq=False, kw_only=True)
class PublishedConfig(tfds.core.BuilderConfig):
    """How a data set is read and cut, and, where `published_config` made it, one state of its archives.

    Attributes:
        tile_size: side of a tile in pixels.
        stride: distance between neighbouring tiles in pixels.
        numbers: of the bands to read, from 1; empty for the first three.
        masks: `full`, `eroded` or `none`.
        region: of LoveDA.
        path: folder with the archives; TFDS's `manual_dir` where None.
        scenes: of each split, as found in `path`.
    """

    tile_size: int
    stride: int
    numbers: tuple[int, ...] = ()
    masks: str = "full"
    region: str = ""
    path: Path | None = None
    scenes: dict[str, tuple[PublishedScene, ...]] = dataclasses.field(default_factory=dict, repr=False)


def published_config(
    name: str,
    path: Path,
    *,
    tile_size: int,
    stride: int | None = None,
    numbers: Sequence[int] = (),
    masks: str = "full",
    region: str = "",
    scratch: Path | None = None,
) -> PublishedConfig:
    """Name the present state of a data set's archives and how they are read and cut.

    Args:
        name: `potsdam`, `vaihingen` or `loveda`.
        path: folder with the archives, as they are or unpacked.
        tile_size: side of a tile in pixels.
        stride: distance between neighbouring tiles in pixels; `tile_size` where None.
        numbers: of the bands to read, from 1; empty for the first three.
        masks: `full`, `eroded` (of the ISPRS: pixels around boundaries do not count) or `none`.
        region: `urban`, `rural` or `all` of LoveDA; empty for all.
        scratch: folder for temporary files; the system's where None.

    Returns:
        the builder's configuration.

    Raises:
        FileNotFoundError, ValueError: see `find_published`; or a size below 1.
    """
    stride = tile_size if stride is None else stride
    tile_positions(0, 0, tile_size, stride)  # checks the two before any work
    scenes = find_published(name, path, numbers=numbers, masks=masks, region=region, scratch=scratch)
    members = [m for split in scenes.values() for _, *both in split for m in both if m is not None]
    settings = (layout_of_published(name, numbers).numbers, masks, region or "all")
    return PublishedConfig(
        name=config_name(path, [_state(member.name, member) for member in members], tile_size, stride, settings),
        tile_size=tile_size,
        stride=stride,
        numbers=tuple(numbers),
        masks=masks,
        region=region,
        path=path,
        scenes=scenes,
    )


def _state(name: str, member: Member) -> ImageFile:
    return ImageFile(name, member.size, member.state)


class _Published(LocalBuilder, skip_registration=True):
    """Tiles of each split in the order of scene, y, x; configure with `published_config`, or by the names below."""

    VERSION = tfds.core.Version("1.0.0")  # raise it when the same archives would give other tiles or notes

    def _info(self) -> tfds.core.DatasetInfo:
        config, facts = self._config, facts_of(self.name)
        notes: dict[str, Any] = {
            "palette": ["#" + bytes(colour).hex().upper() for colour in facts.labels.rgb().tolist()],
            "licence": facts.licence,
        }
        if config.masks != "none":
            notes["class_names"] = list(facts.labels.classes)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Tiles of {facts.title}, from {facts.owner}.",
            features=tile_features(self._layout, config.tile_size, mask=config.masks != "none"),
            disable_shuffling=True,
            license=facts.licence,
            metadata=tfds.core.MetadataDict(notes),
        )

    @property
    def _config(self) -> PublishedConfig:
        config = self.builder_config
        assert isinstance(config, PublishedConfig)
        return config

    @property
    def _layout(self):
        return layout_of_published(self.name, self._config.numbers)

    def _split_generators(self, dl_manager):
        config = self._config
        path, scenes = config.path, config.scenes
        scratch = Path(self.data_path).parents[2]
        if path is None:
            path = Path(dl_manager.manual_dir)
            wanted = {"numbers": config.numbers, "masks": config.masks, "region": config.region}
            scenes = find_published(self.name, path, **wanted, scratch=scratch)
        return {split: self._generate_examples(path, split, its, scratch) for split, its in scenes.items()}

    def _generate_examples(
        self, path: Path, split: str, scenes: Sequence[PublishedScene], scratch: Path | None
    ) -> Iterator[tuple[int, dict]]:
        config, labels = self._config, facts_of(self.name).labels
        by_name = {scene.name: scene for scene in scenes}

        @contextlib.contextmanager
        def opened(name: str) -> Iterator[Layers]:
            with open_published(by_name[name], labels, self._layout, scratch=scratch, verify=True) as scene:

                def read(y0: int, y1: int) -> dict:
                    both = {"image": scene.rows(y0, y1)}
                    return both if config.masks == "none" else both | {"mask": scene.mask(y0, y1)}

                yield Layers(scene.height, scene.width, read, scene.valid)

        notes: dict[str, Any] = {}
        yield from cut_files(
            notes,
            path,
            [_state(scene.name, scene.image) for scene in scenes],
            opened,
            tile_size=config.tile_size,
            stride=config.stride,
            layout=self._layout,
        )
        metadata = self.info.metadata
        assert metadata is not None
        own = {key: notes.get(key, empty) for key, empty in (("kept", ""), ("barren", []), ("nodata", 0))}
        if "files" not in metadata:  # the part to train on comes first, and what is measured is measured on it
            metadata.update(notes, files={}, pixels={}, of_split={})
        for name in ("files", "pixels"):
            metadata[name][split] = notes[name]["train"]
        metadata["of_split"][split] = own


def _cut(name: str, size: int, description: str, **settings: Any) -> PublishedConfig:
    return PublishedConfig(name=name, tile_size=size, stride=size, description=description, **settings)


class Potsdam(_Published):
    """Potsdam of the ISPRS: 24 tiles to train on and 14 to test.

    `rgb_256` are the 13,824 and 8,064 patches of the earlier work of the paper's laboratory: 24 x 24 = 576 a tile, the
    last row and column aligned to the edge. Its list of 138 labelled patches, 1 %, is `configs/potsdam_138.txt`. There
    it names them by tile and a number from 1 to 576, and how it counts is not written down: the list takes it that they
    are numbered row by row, from the upper left.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = instructions("potsdam", "that directory")
    BUILDER_CONFIGS: ClassVar[list] = [
        _cut("rgb", 512, "Red, green and blue, tiles of 512 pixels."),
        _cut("rgbir", 512, "Red, green, blue and near infrared, tiles of 512 pixels.", numbers=(1, 2, 3, 4)),
        _cut("rgb_256", 256, "Red, green and blue, patches of 256 pixels: 576 a tile."),
    ]


class Vaihingen(_Published):
    """Vaihingen of the ISPRS: 16 areas to train on and 17 to test, of near infrared, red and green."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = instructions("vaihingen", "that directory")
    BUILDER_CONFIGS: ClassVar[list] = [_cut("irrg", 512, "Near infrared, red and green, tiles of 512 pixels.")]


class LoveDA(_Published):
    """LoveDA: the parts Train and Val; the masks of Test are not published."""

    name = "loveda"
    MANUAL_DOWNLOAD_INSTRUCTIONS = instructions("loveda", "that directory")
    BUILDER_CONFIGS: ClassVar[list] = [
        _cut(region, 1024, f"Whole images, {region}.", region=region) for region in ("urban", "rural", "all")
    ]


BUILDERS: dict[str, type[_Published]] = {"potsdam": Potsdam, "vaihingen": Vaihingen, "loveda": LoveDA}
