"""ResNet as torchvision builds it, in Flax Linen, NHWC, with torchvision's names, so that weights move both ways.

Stride in the 3x3 convolution (v1.5), explicit padding (a stride-2 `SAME` pads elsewhere), batch norm with momentum 0.1
in torch's sense and epsilon 1e-5. One difference shows in the numbers: Flax keeps the biased running variance, torch
the unbiased one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, overload

import flax.linen as nn
import jax
from flax.linen.dtypes import promote_dtype

from grass_jax.models.cpu_gradients import convolve, max_pool, pointwise

# torchvision's own initialiser: Kaiming normal, fan out, gain of ReLU
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A convolution without bias, padded by `dilation * (kernel // 2)` on every side as torchvision pads.

    A 1x1 convolution is written as a matrix product: XLA on CPU takes several times longer for the weight gradient of
    the convolution. On NVIDIA the product is a GEMM and the convolution a call of cuDNN. What else is slow on CPU has
    its own code in `cpu_gradients`.
    """

    channels: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves (n, h, w, c) to (n, ceil(h / stride), ceil(w / stride), channels)."""
        kernel = self.param("kernel", kaiming_fan_out, (self.kernel, self.kernel, x.shape[-1], self.channels))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        if self.kernel == 1:
            return pointwise(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        return convolve(x, kernel, self.stride, self.dilation)


class Block(nn.Module):
    """What the two residual blocks share: their settings and the way around."""

    channels: int
    conv: Callable
    norm: Callable
    stride: int = 1
    dilation: int = 1
    project: bool = False
    expansion: ClassVar[int] = 1

    def shortcut(self, x: jax.Array) -> jax.Array:
        """Passes x on, through a strided 1x1 convolution where the shape changes."""
        if not self.project:
            return x
        x = self.conv(self.expansion * self.channels, 1, self.stride, name="downsample_0")(x)
        return self.norm(name="downsample_1")(x)


class BasicBlock(Block):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (n, h, w, c) to (n, h / stride, w / stride, channels)."""
        y = self.conv(self.channels, 3, self.stride, self.dilation, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.channels, 3, 1, self.dilation, name="conv2")(y)
        return nn.relu(self.shortcut(x) + self.norm(name="bn2")(y))


class Bottleneck(Block):
    """1x1, 3x3 (with the stride), 1x1 to four times the channels (ResNet-50 and -101)."""

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (n, h, w, c) to (n, h / stride, w / stride, 4 channels)."""
        y = nn.relu(self.norm(name="bn1")(self.conv(self.channels, 1, name="conv1")(x)))
        y = self.conv(self.channels, 3, self.stride, self.dilation, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(4 * self.channels, 1, name="conv3")(y)
        return nn.relu(self.shortcut(x) + self.norm(name="bn3")(y))


class ResNet(nn.Module):
    """The trunk of a ResNet: images in, the last feature map out.

    Attributes:
        blocks: residual blocks in each of the four stages.
        block: BasicBlock or Bottleneck.
        width: channels of the stem; torchvision's is 64. The feature map has 8 width (basic) or 32 width channels.
        output_stride: view pixels per feature pixel: 32, or 16 or 8, which dilate the last stage or two instead
            of striding (as torchvision's `replace_stride_with_dilation`).
        dtype: of the computation; parameters and batch-norm statistics stay in float32 (or float64).
    """

    blocks: tuple[int, ...]
    block: type[BasicBlock] | type[Bottleneck]
    width: int = 64
    output_stride: int = 32
    dtype: Any = None

    @overload
    def __call__(
        self, x: jax.Array, *, train: bool, stages: Literal[False] = False, begin: int = 0, end: int = 4
    ) -> jax.Array: ...
    @overload
    def __call__(
        self, x: jax.Array, *, train: bool, stages: Literal[True], begin: int = 0, end: int = 4
    ) -> tuple[jax.Array, ...]: ...
    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, stages: bool = False, begin: int = 0, end: int = 4
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Encodes images.

        Args:
            x: images, (n, s, s, c), normalised.
            train: normalise by the batch's statistics and update the running ones (mutable `batch_stats`).
            stages: whether to return what each of the four stages gives, for a decoder.
            begin: stages that are already done: x is then what stage `begin` gave.
            end: the last stage to run.

        Returns:
            Features after the last ReLU, (n, s / output_stride, s / output_stride, d), rounded up; with `stages` the
            tuple of what each stage that ran gives: of all four at strides 4, 8, 16 and 32, none beyond the output
            stride.

        Raises:
            ValueError: output_stride is not 8, 16 or 32.
        """
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, not {self.output_stride}.")
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        if begin == 0:
            x = nn.relu(norm(name="bn1")(conv(self.width, 7, 2, name="conv1")(x)))
            x = max_pool(x)
        stride, dilation = 4, 1
        outputs = []
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                step = 2 if stage > 0 and index == 0 else 1
                before = dilation
                if step == 2 and stride == self.output_stride:
                    step, dilation = 1, 2 * dilation
                channels = self.width * 2**stage
                stride *= step
                if not begin <= stage < end:
                    continue
                x = self.block(
                    channels,
                    conv,
                    norm,
                    stride=step,
                    # torchvision's first block of a dilated stage still has the dilation of the stage before
                    dilation=before if index == 0 else dilation,
                    project=index == 0 and (stage > 0 or self.block.expansion > 1),
                    name=f"layer{stage + 1}_{index}",
                )(x)
            if begin <= stage < end:
                outputs.append(x)
        return tuple(outputs) if stages else x


resnet18 = partial(ResNet, (2, 2, 2, 2), BasicBlock)
resnet34 = partial(ResNet, (3, 4, 6, 3), BasicBlock)
resnet50 = partial(ResNet, (3, 4, 6, 3), Bottleneck)
resnet101 = partial(ResNet, (3, 4, 23, 3), Bottleneck)
