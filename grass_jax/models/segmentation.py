"""An encoder and a decoder as one network: images in, the classes' logits of every pixel out."""

import flax.linen as nn
import jax

from grass_jax.models.resnet import ResNet


class Segmenter(nn.Module):
    """A segmentation network; `params` and `batch_stats` have the keys `encoder` and `decoder`.

    The tree below `encoder` is the one that pretraining keeps, so that weights go in and out as they are. A decoder
    without batch norm has no `batch_stats`.

    Attributes:
        encoder: gives its four stages.
        decoder: (stages, train) -> logits (n, h, w, k) at any resolution: `DeepLabV3Plus`, `FCNHead`, `LinearHead`.
    """

    encoder: ResNet
    decoder: nn.Module

    def __call__(self, x: jax.Array, *, train: bool, train_encoder: bool | None = None) -> jax.Array:
        """Classifies every pixel.

        Args:
            x: images, (n, s, s, c), normalised.
            train: normalise by the batch's statistics, update the running ones (mutable `batch_stats`) and drop out
                (rng `dropout`).
            train_encoder: False freezes the encoder: it takes no gradient, and its running statistics are used and left
                alone. An optimiser's weight decay would still shrink its parameters: mask them there. None, like True,
                lets the encoder follow `train`.

        Returns:
            Logits (n, s, s, k) in at least float32, enlarged bilinearly with aligned pixel edges (PyTorch's
            `align_corners=False`).
        """
        frozen = train_encoder is False
        stages = self.encoder(x, train=train and not frozen, stages=True)
        if frozen:
            stages = jax.lax.stop_gradient(stages)
        logits = self.decoder(stages, train=train)
        return jax.image.resize(logits, (*x.shape[:-1], logits.shape[-1]), "bilinear")
