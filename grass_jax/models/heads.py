"""Projection heads: pooled features to embeddings."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Maps average-pooled features (..., d) to unnormalised embeddings (..., e), in at least float32."""
        x = nn.Dense(self.hidden or pooled.shape[-1], dtype=self.dtype, kernel_init=kaiming_fan_in, name="dense1")(
            pooled
        )
        if self.relu:
            x = nn.relu(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return nn.Dense(self.embedding, name="dense2")(x)
