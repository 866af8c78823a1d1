"""The colours of a view: jitter and greyscale, each on one image in [0, 1].

Inside, an image is planes (red, green, blue): a last axis of three wastes most of a TPU's or CPU's vector lanes.
Other bands have neither hue nor saturation: each gets a brightness and a contrast of its own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

RED_GREEN_BLUE = (0, 1, 2)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# Amounts that leave an image as it is.
NEUTRAL = np.array([1.0, 1.0, 1.0, 0.0], np.float32)

Planes = tuple[jax.Array, jax.Array, jax.Array]


class Jitter(NamedTuple):
    """What one colour jitter does; entries are brightness, contrast, saturation and hue.

    Attributes:
        turns: (4,) int32, the place of each operation in the order: a permutation of 0..3.
        amounts: (4,) float32, three factors and the turn of the hue.
        factors: (2, c) float32, brightness and contrast of every band, for those that are no colours; (2, 0) for none.
    """

    turns: jax.Array
    amounts: jax.Array
    factors: jax.Array


def adjust_brightness(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Blend an image with black, as Pillow's `ImageEnhance.Brightness` without its rounding.

    Args:
        image: (h, w, 3) in [0, 1].
        factor: () 0 is black, 1 the image itself, above 1 brighter.

    Returns:
        (h, w, 3) in [0, 1].
    """
    return _blend(image, 0.0, factor)


def adjust_contrast(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Blend an image with the constant mean of its luminance, as Pillow's `ImageEnhance.Contrast` without its rounding.

    Args:
        image: (h, w, 3) in [0, 1].
        factor: () 0 is the constant, 1 the image itself, above 1 more contrast.

    Returns:
        (h, w, 3) in [0, 1].
    """
    return _blend(image, jnp.mean(_luminance(_planes(image))), factor)


def adjust_saturation(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Blend an image with its luminance, as Pillow's `ImageEnhance.Color` without its rounding.

    Args:
        image: (h, w, 3) in [0, 1].
        factor: () 0 is grey, 1 the image itself, above 1 more colourful.

    Returns:
        (h, w, 3) in [0, 1].
    """
    return _blend(image, _luminance(_planes(image))[..., None], factor)


def adjust_hue(image: jax.Array, turn: jax.Array | float) -> jax.Array:
    """Turn the hue of every pixel and keep its value and saturation (HSV), as torchvision without its 8-bit rounding.

    Args:
        image: (h, w, 3) in [0, 1].
        turn: () share of a full turn, positive from red towards green; whole turns do nothing.

    Returns:
        (h, w, 3) in [0, 1].
    """
    return jnp.stack(_turn_hue(_planes(image), turn), axis=-1)


def greyscale(
    image: jax.Array, apply: jax.Array | bool = True, *, colours: Sequence[int] = RED_GREEN_BLUE
) -> jax.Array:
    """Replace red, green and blue by the luminance (Pillow's L) where `apply` is true.

    Args:
        image: (h, w, c) in [0, 1].
        apply: () bool.
        colours: the channels of red, green and blue.

    Returns:
        (h, w, c) in [0, 1].
    """
    changes = apply & np.isin(np.arange(image.shape[-1]), colours)
    return jnp.where(changes, _luminance(_planes(image, colours))[..., None], image)


def draw_jitter(
    key: jax.Array,
    probability: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    bands: int = 0,
) -> Jitter:
    """Draw the order and the amounts of a colour jitter, by the rule of torchvision's `ColorJitter`.

    Args:
        key: random key.
        probability: chance that there is a jitter at all; else the amounts are neutral.
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: the same for contrast.
        saturation: the same for saturation.
        hue: the turn is uniform in [-hue, hue] of a full turn.
        bands: number c of bands to draw a brightness and a contrast each for, as above.

    Returns:
        Jitter.
    """
    draws = jax.random.uniform(key, (9,), jnp.float32)
    spread = np.array([brightness, contrast, saturation, hue], np.float32)
    low = np.maximum(NEUTRAL - spread, np.array([0.0, 0.0, 0.0, -np.inf], np.float32))
    amounts = low + (NEUTRAL + spread - low) * draws[:4]
    # An operation's place is the number of draws below its own: cheaper than a sort on a device. Ties go by position.
    mine, others = draws[4:8, None], draws[4:8]
    below = (others < mine) | ((others == mine) & np.tri(4, k=-1, dtype=bool))
    happens = draws[8] < probability
    # A key of their own: the draws above are the same with and without other bands.
    factors = jax.random.uniform(jax.random.fold_in(key, 1), (2, bands), jnp.float32)
    factors = low[: CONTRAST + 1, None] + (NEUTRAL + spread - low)[: CONTRAST + 1, None] * factors
    return Jitter(
        jnp.sum(below, axis=1, dtype=jnp.int32),
        jnp.where(happens, amounts, NEUTRAL),
        jnp.where(happens, factors, np.float32(1.0)),
    )


def apply_jitter(image: jax.Array, jitter: Jitter, *, colours: Sequence[int] = RED_GREEN_BLUE) -> jax.Array:
    """Apply the four colour operations in the jitter's order, and its factors to the bands that are no colours.

    Args:
        image: (h, w, c) in [0, 1].
        jitter: order and amounts.
        colours: the channels of red, green and blue; empty where there are none.

    Returns:
        (h, w, c) in [0, 1].
    """

    def operation(place: jax.Array, planes: Planes) -> Planes:
        now = jitter.turns == place
        amount = jnp.sum(jnp.where(now, jitter.amounts, 0.0))
        grey = _luminance(planes)
        # The three blends differ in their target alone, so a place costs one blend and one turn of the hue.
        target = jnp.where(now[BRIGHTNESS], 0.0, jnp.where(now[CONTRAST], jnp.mean(grey), grey))
        turned = _turn_hue(planes, amount)
        red, green, blue = (
            jnp.where(now[HUE], hue, _blend(plane, target, amount)) for plane, hue in zip(planes, turned, strict=True)
        )
        return red, green, blue

    planes = [image[..., channel] for channel in range(image.shape[-1])]
    if jitter.factors.size:
        for channel in set(range(len(planes))) - set(colours):
            planes[channel] = _adjust_band(planes[channel], jitter.factors[:, channel], jitter.turns)
    if colours:
        # A loop, not four copies: XLA would fuse those and compute each place anew for every plane of the next one.
        turned = jax.lax.fori_loop(np.int32(0), np.int32(4), operation, _planes(image, colours))
        for channel, plane in zip(colours, turned, strict=True):
            planes[channel] = plane
    return jnp.stack(planes, axis=-1)


def _adjust_band(band: jax.Array, factors: jax.Array, turns: jax.Array) -> jax.Array:
    """Change brightness and contrast, around its own mean, of one band (h, w).

    `factors` are (2,), brightness and contrast; which is first is as in a jitter's `turns`.
    """
    brightness, contrast = factors
    contrast_first = turns[CONTRAST] < turns[BRIGHTNESS]
    # Of the band as contrast finds it; a factor of 1 leaves it as it is.
    mean = jnp.mean(_blend(band, 0.0, jnp.where(contrast_first, 1.0, brightness)))
    band = _blend(band, jnp.where(contrast_first, mean, 0.0), jnp.where(contrast_first, contrast, brightness))
    return _blend(band, jnp.where(contrast_first, 0.0, mean), jnp.where(contrast_first, brightness, contrast))


def colour_jitter(
    key: jax.Array,
    image: jax.Array,
    *,
    colours: Sequence[int] = RED_GREEN_BLUE,
    probability: float = 0.8,
    brightness: float = 0.8,
    contrast: float = 0.8,
    saturation: float = 0.8,
    hue: float = 0.2,
) -> jax.Array:
    """Change brightness, contrast, saturation and hue by random amounts in a random order.

    Bands that are not red, green and blue get a brightness and a contrast each of their own.

    Args:
        key: random key.
        image: (h, w, c) in [0, 1].
        colours: the channels of red, green and blue; empty where there are none.
        probability: chance that anything is changed at all.
        brightness: as for `draw_jitter`.
        contrast: as for `draw_jitter`.
        saturation: as for `draw_jitter`.
        hue: as for `draw_jitter`.

    Returns:
        (h, w, c) in [0, 1].
    """
    # What can never happen is left out of the program.
    own = image.shape[-1] if image.shape[-1] > len(colours) and max(brightness, contrast) > 0 else 0
    if not colours and not own:
        return image
    jitter = draw_jitter(key, probability, brightness, contrast, saturation, hue, bands=own)
    return apply_jitter(image, jitter, colours=colours)


def jittered(key: jax.Array, image: jax.Array, settings: Any) -> jax.Array:
    """`colour_jitter` as the settings of an augmentation, the fields of `rules.COLOUR` and `bands`, want it."""
    strengths = {name: getattr(settings, name) for name in ("brightness", "contrast", "saturation", "hue")}
    return colour_jitter(key, image, colours=settings.bands.colours, probability=settings.jitter, **strengths)


def _planes(image: jax.Array, colours: Sequence[int] = RED_GREEN_BLUE) -> Planes:
    red, green, blue = colours
    return image[..., red], image[..., green], image[..., blue]


def _luminance(planes: Planes) -> jax.Array:
    """Pillow's L (ITU-R 601-2), written out: a matrix product would be rounded to bfloat16 on TPU."""
    red, green, blue = planes
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _blend(image: jax.Array, target: jax.Array | float, factor: jax.Array | float) -> jax.Array:
    """Go from `target` (factor 0) through the image (factor 1) and beyond; clipped to [0, 1] as Pillow clips."""
    return jnp.clip(factor * image + (1.0 - factor) * target, 0.0, 1.0)


def _turn_hue(planes: Planes, turn: jax.Array | float) -> Planes:
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0.0, chroma, 1.0)
    # Hue in sixths of a turn: 0 red, 2 green, 4 blue.
    green_or_blue = jnp.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor)
    hue = jnp.where(value == red, (green - blue) / divisor, green_or_blue) + 6.0 * turn

    def plane(offset: float) -> jax.Array:
        """A plane loses chroma by a trapezoid of the hue, which moves by a third of a turn from plane to plane."""
        position = (hue + offset) - 6.0 * jnp.floor((hue + offset) / 6.0)
        return jnp.clip(value - chroma * jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0), 0.0, 1.0)

    return plane(5.0), plane(3.0), plane(1.0)
