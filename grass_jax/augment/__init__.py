"""Augmented views, made on the device from keys: `two_views`, and its parts as functions of their own."""

from grass_jax.augment.blur import gaussian_blur
from grass_jax.augment.colour import (
    Jitter,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    apply_jitter,
    colour_jitter,
    draw_jitter,
    greyscale,
)
from grass_jax.augment.geometry import horizontal_flip, random_resized_crop_box, resized_crop
from grass_jax.augment.views import Augmentation, Geometry, denormalise, normalise, one_view, two_views

__all__ = [
    "Augmentation",
    "Geometry",
    "Jitter",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "apply_jitter",
    "colour_jitter",
    "denormalise",
    "draw_jitter",
    "gaussian_blur",
    "greyscale",
    "horizontal_flip",
    "normalise",
    "one_view",
    "random_resized_crop_box",
    "resized_crop",
    "two_views",
]
