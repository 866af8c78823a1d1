"""Encoders and heads in Flax Linen."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from grass_jax.models.deeplab import RATES, DeepLabV3Plus
from grass_jax.models.heads import FCNHead, LinearHead
from grass_jax.models.resnet import ResNet, resnet18, resnet34, resnet50, resnet101
from grass_jax.models.segmentation import Segmenter

ENCODERS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}


def build_encoder(name: str, *, width: int = 64, output_stride: int = 32, dtype: str | None = None, **_: Any) -> ResNet:
    """Makes the encoder that a config's `model` section describes.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101.
        width: channels of the stem.
        output_stride: view pixels per feature pixel.
        dtype: of the computation: None or float32 (that of the parameters), or bfloat16.
        **_: what the section says of other things (its initialisation).

    Returns:
        The module.
    """
    # None, not float32: a float64 test stays in float64
    precision = jnp.bfloat16 if dtype == "bfloat16" else None
    return ENCODERS[name](width=width, output_stride=output_stride, dtype=precision)


def build_segmenter(model: Mapping[str, Any], head: Mapping[str, Any], classes: int) -> Segmenter:
    """Makes the network that a config's `model` and `head` sections describe.

    Args:
        model: as for `build_encoder`.
        head: `name` (deeplabv3plus, fcn or linear), and for the first two `channels` and `dropout`.
        classes: number k of classes.

    Returns:
        The module.

    Raises:
        ValueError: there is no head of that name.
    """
    encoder = build_encoder(**model)
    options = {key: head[key] for key in ("channels", "dropout") if key in head}
    match head["name"]:
        case "deeplabv3plus":
            rates = RATES[encoder.output_stride]
            decoder = DeepLabV3Plus(classes, rates=rates, dtype=encoder.dtype, **options)
        case "fcn":
            decoder = FCNHead(classes, dtype=encoder.dtype, **options)
        case "linear":
            decoder = LinearHead(classes)
        case other:
            raise ValueError(f"the head must be 'deeplabv3plus', 'fcn' or 'linear', not {other!r}.")
    return Segmenter(encoder, decoder)
