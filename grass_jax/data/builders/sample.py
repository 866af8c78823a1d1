"""TFDS builder `sample`: tiles of a procedural landscape with exact masks, nothing downloaded."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from grass_jax.data.builders.tiling import LocalBuilder, encode_tile, tile_features
from grass_jax.data.landscape import CLASS_NAMES, landscape
from grass_jax.data.layout import RGB_LAYOUT
from grass_jax.data.statistics import PixelSample
from grass_jax.data.tiles import tile_positions
from grass_jax.data.workers import cores
from grass_jax.report.progress import counter

SCENE_SIZE = 960
CLASS_COLOURS = ("#C8BE96", "#E6C832", "#1E6E32", "#2878C8", "#787878", "#DC3C28")  # in the order of CLASS_NAMES
SCENES = {"train": range(100, 112), "val": range(900, 903)}  # seeds: every scene is a place of its own


@dataclasses.dataclass(eq=False, kw_only=True)
class SampleConfig(tfds.core.BuilderConfig):
    """How the landscape is cut."""

    tile_size: int
    stride: int


def sample_config(*, tile_size: int = 96, stride: int | None = None) -> SampleConfig:
    """Configuration of the sample.

    Args:
        tile_size: side of a tile in pixels; 96 cuts the scenes without a rest.
        stride: distance between neighbouring tiles in pixels; `tile_size` where None.

    Returns:
        the builder's configuration.

    Raises:
        ValueError: if a tile does not fit into a scene or a number is below 1.
    """
    stride = tile_size if stride is None else stride
    if not len(tile_positions(SCENE_SIZE, SCENE_SIZE, tile_size, stride)):
        raise ValueError(f"tile_size {tile_size} does not fit into the sample's scenes: use at most {SCENE_SIZE}.")
    return SampleConfig(name=f"{tile_size}-{stride}", tile_size=tile_size, stride=stride)


class Sample(LocalBuilder):
    """Fields, woods, water, roads and buildings; train and val are different scenes."""

    VERSION = tfds.core.Version("1.2.0")  # raise it when the landscape or the notes change

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        assert isinstance(config, SampleConfig)
        files = {
            split: [[f"scene_{seed}", SCENE_SIZE, SCENE_SIZE] for seed in seeds] for split, seeds in SCENES.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="A procedural aerial landscape with exact label masks.",
            features=tile_features(RGB_LAYOUT, config.tile_size, mask=True),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                tile_size=config.tile_size, stride=config.stride, files=files, class_names=list(CLASS_NAMES)
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in SCENES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        assert isinstance(config, SampleConfig)
        key, t, pixels = 0, config.tile_size, PixelSample(RGB_LAYOUT)
        with concurrent.futures.ThreadPoolExecutor(min(4, cores())) as pool:
            scenes = zip(
                SCENES[split], pool.map(functools.partial(landscape, size=SCENE_SIZE), SCENES[split]), strict=True
            )
            progress = counter(scenes, desc=f"drawing the sample ({split})", unit="scene", total=len(SCENES[split]))
            for seed, (image, mask) in progress:
                for y, x in tile_positions(SCENE_SIZE, SCENE_SIZE, t, config.stride).tolist():
                    pixels.add(image[y : y + t, x : x + t])
                    tile, labels = (encode_tile(array[y : y + t, x : x + t]) for array in (image, mask))
                    yield key, {"image": tile, "mask": labels, "file": f"scene_{seed}", "y": y, "x": x}
                    key += 1
        if split == "train":  # what training subtracts, whatever it is applied to
            notes: Any = self.info.metadata
            notes.update(bands=pixels.bands().asdict())
