"""Gradient guided sampling: loss attention map -> salient box -> guided view."""

from grass_jax.sampling.attention import loss_attention_map
from grass_jax.sampling.control import random_places
from grass_jax.sampling.crop import crop_boxes
from grass_jax.sampling.regions import salient_boxes

__all__ = ["crop_boxes", "loss_attention_map", "random_places", "salient_boxes"]
