"""The bands of stored images: which they are, how they become a network's input, and how they are shown."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("uint8", "uint16", "float32")
DTYPES_IN_WORDS = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
MAX_BANDS = 16
# of ImageNet's photographs, in [0, 1]: what published ResNets expect, and what the original normalises by
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Bands:
    """The bands that a network reads, in the order of its input channels.

    Attributes:
        numbers: of the bands in a file, from 1.
        dtype: of the stored images: uint8, uint16 or float32.
        low: stored value of each band that becomes 0.
        high: stored value of each band that becomes 1.
        mean: of each band in [0, 1], subtracted at the end.
        std: of each band, divided by at the end.
        rgb: numbers of the bands that are red, green and blue; empty where that is not known.

    Raises:
        ValueError: where these do not fit together; one sentence.
    """

    numbers: tuple[int, ...] = (1, 2, 3)
    dtype: str = "uint8"
    low: tuple[float, ...] = (0.0, 0.0, 0.0)
    high: tuple[float, ...] = (255.0, 255.0, 255.0)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    rgb: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # from a configuration file
                object.__setattr__(self, field.name, tuple(value))
        if self.dtype not in DTYPES:
            raise ValueError(f"bands.dtype must be {DTYPES_IN_WORDS}, not {self.dtype!r}.")
        different = len(set(self.numbers)) == len(self.numbers)
        if not (1 <= len(self.numbers) <= MAX_BANDS and different and min(self.numbers) >= 1):
            raise ValueError(
                f"bands.numbers must be 1 to {MAX_BANDS} different bands, counted from 1, not {self.numbers}."
            )
        for name in ("low", "high", "mean", "std"):
            if len(getattr(self, name)) != len(self.numbers):
                raise ValueError(
                    f"bands.{name} must have a number for each of the {len(self.numbers)} bands, "
                    f"not {len(getattr(self, name))}."
                )
            if not all(map(math.isfinite, getattr(self, name))):
                raise ValueError(f"bands.{name} must be finite, not {getattr(self, name)}.")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)) or min(self.std) <= 0:
            raise ValueError("bands.low must be below bands.high and bands.std above 0 in every band.")
        if self.rgb and (len(self.rgb) != 3 or len(set(self.rgb)) < 3 or not set(self.rgb) <= set(self.numbers)):
            raise ValueError(
                f"bands.rgb must be three different ones of the bands {self.numbers}, or none, not {self.rgb}."
            )

    def __len__(self) -> int:
        """The number c of channels."""
        return len(self.numbers)

    @property
    def colours(self) -> tuple[int, ...]:
        """Channels, from 0, that are red, green and blue; empty where that is not known."""
        return tuple(self.numbers.index(number) for number in self.rgb)

    @property
    def shown(self) -> tuple[int, int, int]:
        """Channels, from 0, that pictures show as red, green and blue; the first three, or one, where unknown."""
        first, second, third = self.colours or ((0, 1, 2) if len(self) >= 3 else (0, 0, 0))
        return first, second, third

    def asdict(self) -> dict[str, Any]:
        """The section `bands` of a run's configuration."""
        return asdict(self)


RGB = Bands()  # 8-bit colour with the normalisation of ImageNet


def choose_bands(given: Mapping[str, Any], measured: Bands) -> Bands:
    """The bands of a run: what its configuration gives, else what fits the data.

    Args:
        given: the section `bands` of a configuration, whose empty values are open.
        measured: of the data set.

    Returns:
        measured, with the values that are given; where `low` or `high` is, measured means and deviations follow the new
        scale. 8-bit red, green and blue alone are normalised as ImageNet's photographs unless `mean` and `std` are
        given.

    Raises:
        ValueError: where they do not fit together.
    """
    values = {field.name: given[field.name] for field in fields(Bands) if given.get(field.name)}
    values = {name: tuple(value) if isinstance(value, tuple | list) else value for name, value in values.items()}
    for name in ("numbers", "dtype"):
        if values.get(name, getattr(measured, name)) != getattr(measured, name):
            raise ValueError(f"bands.{name} must be that of the data, {getattr(measured, name)}, not {values[name]}.")
    scaled = replace(measured, **{name: values[name] for name in ("low", "high", "rgb") if name in values})
    if (scaled.numbers, scaled.dtype) == (scaled.rgb, "uint8"):
        scaled = replace(scaled, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    elif (scaled.low, scaled.high) != (measured.low, measured.high):
        low, mean, width = (
            np.asarray(v) for v in (measured.low, measured.mean, np.subtract(measured.high, measured.low))
        )
        new_width = np.subtract(scaled.high, scaled.low)
        mean, std = (low + mean * width - scaled.low) / new_width, np.asarray(measured.std) * width / new_width
        scaled = replace(scaled, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    return replace(scaled, **values)


def unit_range(images: jax.Array, bands: Bands) -> jax.Array:
    """Turn images as stored into floats in [0, 1].

    Args:
        images: (..., h, w, c) of the dtype of `bands`; floats, where that is an integer type, are in [0, 1] already.
        bands: supplies dtype, low and high.

    Returns:
        (..., h, w, c) float32 in 0..1; stored values outside of low..high are cut off, and NaN becomes 0.

    Raises:
        ValueError: where `images` has another dtype or number of bands.
    """
    if images.ndim < 3 or images.shape[-1] != len(bands):
        raise ValueError(f"images must end with {len(bands)} bands, (..., h, w, {len(bands)}), not {images.shape}.")
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    if images.dtype != bands.dtype and not floating:
        alternative = "" if bands.dtype == "float32" else " or float in 0..1"
        raise ValueError(f"images must be {bands.dtype}{alternative}, not {images.dtype}.")
    images = images.astype(jnp.float32)
    if floating and bands.dtype != "float32":
        return images
    if _is_plain(bands):
        return images * np.float32(1 / 255)
    scale = (1 / np.subtract(bands.high, bands.low)).astype(np.float32)
    scaled = jnp.clip((images - np.asarray(bands.low, np.float32)) * scale, 0.0, 1.0)
    return jnp.where(jnp.isnan(scaled), 0.0, scaled) if floating else scaled


def _is_plain(bands: Bands) -> bool:
    """Whether stored values are levels from 0 to 255, which need no stretch."""
    return bands.dtype == "uint8" and set(bands.low) == {0} and set(bands.high) == {255}


def normalise(images: jax.Array, bands: Bands) -> jax.Array:
    """Subtract the mean of each band and divide by its standard deviation; (..., c) in [0, 1] to (..., c)."""
    return (images - np.asarray(bands.mean, np.float32)) / np.asarray(bands.std, np.float32)


def denormalise(images: jax.Array, bands: Bands) -> jax.Array:
    """Undo `normalise` and keep what pictures show; (..., c) to (..., 3) in [0, 1]."""
    mean, std = (np.asarray(values, np.float32) for values in (bands.mean, bands.std))
    return jnp.clip(jnp.stack([images[..., i] * std[i] + mean[i] for i in bands.shown], axis=-1), 0.0, 1.0)


def picture(images: np.ndarray, bands: Bands) -> np.ndarray:
    """Images as stored, (..., c), as they are shown: (..., 3) uint8, each band stretched from its low to its high.

    What is no number is black. 8-bit red, green and blue are given back as they are, without a copy.
    """
    shown = list(bands.shown)
    # np.take, as indexing by a list leaves every channel a plane of its own in memory
    colours = images if shown == list(range(images.shape[-1])) else np.take(images, shown, axis=-1)
    if _is_plain(bands):
        return colours
    low, high = (np.asarray(values, np.float32)[shown] for values in (bands.low, bands.high))
    scaled = np.nan_to_num((colours.astype(np.float32) - low) / (high - low))
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
