"""Augmented images, made on the device from keys, and the parts as functions of their own.

`two_views` makes the views of pretraining, `augment_pairs` changes labelled tiles and their masks together.
"""

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
from grass_jax.augment.geometry import (
    horizontal_flip,
    nearest_crop,
    oriented,
    random_resized_crop_box,
    random_square_box,
    resized_crop,
)
from grass_jax.augment.pairs import PairAugmentation, Placement, augment_pairs, draw_placement, one_pair
from grass_jax.augment.views import Augmentation, Geometry, one_view, two_views, view_masks, zoomed

__all__ = [
    "Augmentation",
    "Geometry",
    "Jitter",
    "PairAugmentation",
    "Placement",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "apply_jitter",
    "augment_pairs",
    "colour_jitter",
    "draw_jitter",
    "draw_placement",
    "gaussian_blur",
    "greyscale",
    "horizontal_flip",
    "nearest_crop",
    "one_pair",
    "one_view",
    "oriented",
    "random_resized_crop_box",
    "random_square_box",
    "resized_crop",
    "two_views",
    "view_masks",
    "zoomed",
]
