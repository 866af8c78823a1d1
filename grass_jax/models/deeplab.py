"""DeepLabV3+ (arXiv 1802.02611) on the stages of an encoder."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grass_jax.models.heads import Classifier, ConvNormReLU

# The paper's for output strides 16 and 8. Those of 32 reach as far in pixels of the view.
RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 convolutions and the image's mean, side by side.

    Attributes:
        channels: of each branch and of the output.
        rates: dilations of the 3x3 convolutions.
        dtype: of the computation.
    """

    channels: int
    rates: Sequence[int]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (n, h, w, d) to (n, h, w, channels)."""

        def layer(name: str, x: jax.Array, kernel: int = 1, rate: int = 1) -> jax.Array:
            return ConvNormReLU(self.channels, kernel, rate, self.dtype, name=name)(x, train=train)

        branches = [layer("point", x)]
        branches += [layer(f"atrous{i}", x, 3, rate) for i, rate in enumerate(self.rates, 1)]
        pooled = layer("pool", x.mean((1, 2), keepdims=True))
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        return layer("project", jnp.concatenate(branches, axis=-1))


class DeepLabV3Plus(nn.Module):
    """The pyramid on the last stage, enlarged and refined with the first stage's features of stride 4.

    Attributes:
        classes: number k of classes.
        channels: of the pyramid and of the two 3x3 convolutions that refine; the paper's 256 suit an accelerator.
        low_level: channels that the first stage is reduced to, few enough not to outweigh the pyramid.
        rates: dilations of the pyramid, `RATES` for the encoder's output stride.
        dropout: share of the features left out before the classifier while training (rng `dropout`).
        dtype: of the computation, up to the logits.
    """

    classes: int
    channels: int = 256
    low_level: int = 48
    rates: Sequence[int] = RATES[16]
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """Maps the encoder's stages to logits (n, h, w, k) at the first one's resolution."""
        detail = ConvNormReLU(self.low_level, 1, dtype=self.dtype, name="low_level")(stages[0], train=train)
        x = ASPP(self.channels, self.rates, self.dtype, name="aspp")(stages[-1], train=train)
        x = jax.image.resize(x, (*detail.shape[:-1], self.channels), "bilinear")
        x = jnp.concatenate([x, detail], axis=-1)
        for name in ("refine1", "refine2"):
            x = ConvNormReLU(self.channels, 3, dtype=self.dtype, name=name)(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Classifier(self.classes, name="classifier")(x)
