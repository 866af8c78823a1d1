"""The loss attention map: where in a view the contrastive loss looks (arXiv 2306.15868)."""

import jax
import jax.numpy as jnp


def loss_attention_map(features: jax.Array, gradients: jax.Array) -> jax.Array:
    """Averages over channels the features weighted by the spatially averaged gradient of the loss.

    A(i, j) = 1/d sum_c F(i, j, c) g(c) with g = mean over (i, j) of dL/dF: Grad-CAM's weights with a mean over channels
    and no ReLU, as the original computes it. The map has both signs: positive where more of the feature raises the
    loss.

    Args:
        features: the encoder's last feature map, (n, h, w, d); more leading axes are allowed.
        gradients: dL/dfeatures, (n, h, w, d), or already averaged over space, (n, d).

    Returns:
        The maps, (n, h, w), in at least float32.

    Raises:
        ValueError: the shapes of features and gradients do not belong together.
    """
    if gradients.shape not in (features.shape, features.shape[:-3] + features.shape[-1:]):
        raise ValueError(
            f"gradients of shape {gradients.shape} fit neither features {features.shape} nor their pooling."
        )
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    weights = gradients.astype(dtype)
    if gradients.ndim == features.ndim:
        weights = weights.mean((-3, -2))
    return jnp.einsum("...hwd,...d->...hw", features.astype(dtype), weights, precision="highest") / features.shape[-1]
