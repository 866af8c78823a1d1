"""Heads on an encoder: pooled features to embeddings, and feature maps to the classes' logits."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from grass_jax.models.resnet import Conv

kaiming_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class ProjectionHead(nn.Module):
    """Two dense layers with bias.

    Attributes:
        embedding: channels e of the embedding.
        hidden: channels of the hidden layer; 0 takes as many as come in.
        relu: a ReLU between the two (SimCLR's). The original GraSS configuration loses it by accident, so that its head
            is affine; `relu=False` reproduces that.
        dtype: of the first layer's computation; the second is at least float32, as the similarities that follow.
    """

    embedding: int = 128
    hidden: int = 0
    relu: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, pooled: jax.Array, *, train: bool = True) -> jax.Array:
        """Maps average-pooled features (..., d) to unnormalised embeddings (..., e), in at least float32."""
        del train  # nothing here depends on it
        x = nn.Dense(self.hidden or pooled.shape[-1], dtype=self.dtype, kernel_init=kaiming_fan_in, name="dense1")(
            pooled
        )
        if self.relu:
            x = nn.relu(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return nn.Dense(self.embedding, name="dense2")(x)


class MLPHead(nn.Module):
    """Dense layers, each but the last with batch norm and ReLU: the projectors and predictors of most methods.

    Attributes:
        widths: channels of the layers, the embedding's last.
        norm: batch norm (and no bias) on the hidden layers; without it they have a bias.
        last_norm: what follows the last layer: `none`, which then has a bias, `batch`, or `fixed`, batch norm without
            scale and bias of its own.
        dtype: of the hidden layers' computation; the last one is at least float32, as the losses that follow.
    """

    widths: tuple[int, ...]
    norm: bool = True
    last_norm: Literal["none", "batch", "fixed"] = "none"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (..., d) to unnormalised embeddings (..., e), in at least float32."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        for number, width in enumerate(self.widths[:-1], 1):
            x = nn.Dense(
                width, use_bias=not self.norm, dtype=self.dtype, kernel_init=kaiming_fan_in, name=f"dense{number}"
            )(x)
            if self.norm:
                x = norm(dtype=self.dtype, name=f"bn{number}")(x)
            x = nn.relu(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        count, bare = len(self.widths), self.last_norm == "none"
        x = nn.Dense(self.widths[-1], use_bias=bare, name=f"dense{count}")(x)
        if not bare:
            affine = self.last_norm == "batch"
            x = norm(use_bias=affine, use_scale=affine, name=f"bn{count}")(x)
        return x


class ConvNormReLU(nn.Module):
    """A convolution without bias, batch norm and ReLU, as everywhere in torchvision's segmentation models.

    Attributes:
        channels: of the output.
        kernel: side of the kernel, 1 or 3.
        dilation: pixels between the kernel's taps.
        dtype: of the computation.
    """

    channels: int
    kernel: int
    dilation: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (n, h, w, c) to (n, h, w, channels)."""
        x = Conv(self.channels, self.kernel, dilation=self.dilation, dtype=self.dtype, name="conv")(x)
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="bn")
        return nn.relu(norm(x))


class Classifier(nn.Module):
    """A 1x1 convolution with bias: the logits of every pixel, in at least float32.

    Attributes:
        classes: number k of classes.
    """

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features (n, h, w, d) to logits (n, h, w, k)."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # small: training starts with all classes equally likely
        return nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.01), name="conv")(x)


class LinearHead(nn.Module):
    """The linear probe of dense features: a classifier on the last feature map, and nothing else.

    Attributes:
        classes: number k of classes.
    """

    classes: int

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """Maps the encoder's stages to logits (n, h, w, k) at the last one's resolution; `train` changes nothing."""
        return Classifier(self.classes, name="classifier")(stages[-1])


class FCNHead(nn.Module):
    """torchvision's FCN head: a 3x3 convolution with batch norm, dropout and the classifier (arXiv 1411.4038).

    Attributes:
        classes: number k of classes.
        channels: of the 3x3 convolution.
        dropout: share of the features left out before the classifier while training (rng `dropout`).
        dtype: of the computation, up to the logits.
    """

    classes: int
    channels: int = 256
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """Maps the encoder's stages to logits (n, h, w, k) at the last one's resolution."""
        x = ConvNormReLU(self.channels, 3, dtype=self.dtype, name="block")(stages[-1], train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Classifier(self.classes, name="classifier")(x)
