"""Encoders and heads in Flax Linen."""

from typing import Any

import jax.numpy as jnp

from grass_jax.models.resnet import ResNet, resnet18, resnet34, resnet50, resnet101

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
