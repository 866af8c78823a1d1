"""The original's GS step as a plain PyTorch program, to be timed and compared with: not used by anything else.

What GeoX-Lab/GraSS (commit 53a0a5e) computes, in its order: forward, full backward, a loop over the views on the host
that turns maps to boxes and crops (NumPy and scikit-image), forward, backward, LARC and SGD. Left out is one call of
its loop that changes nothing there (`remove_small_objects` on labels), which favours this program. Float32 or float64,
NCHW; rows of a batch are all first views, then all second views.
"""
# pyright: reportMissingImports=false

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from skimage.measure import label, regionprops
from torch import Tensor, nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the channels."""

    def __init__(self, inputs: int, channels: int, stride: int, project: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * channels, 1, stride, bias=False), nn.BatchNorm2d(4 * channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, c, h, w) to (n, 4 channels, h / stride, w / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        around = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.bn3(self.conv3(y)) + around, inplace=True)


class Network(nn.Module):
    """ResNet of bottlenecks with torchvision's names, and the affine head (two linear layers, nothing between)."""

    def __init__(self, layers: Sequence[int] = (3, 4, 6, 3), width: int = 64, embedding: int = 128):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(layers):
            blocks = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(Bottleneck(inputs, width * 2**stage, stride, project=not index))
                inputs = 4 * width * 2**stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.dense1, self.dense2 = nn.Linear(inputs, inputs), nn.Linear(inputs, embedding)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds views (n, 3, s, s): embeddings (n, e) and the last feature map (n, d, h, w)."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.dense2(self.dense1(x.mean((2, 3)))), x


def info_nce(embeddings: Tensor, temperature: float) -> Tensor:
    """Mean over all rows of -log(exp(s_ip) / sum over j != i of exp(s_ij)); row i's positive is i + n/2 (mod n)."""
    z = functional.normalize(embeddings, eps=1e-12)
    similarity = torch.exp(z @ z.T / temperature)
    rows = torch.arange(len(z))
    others = similarity.sum(1) - similarity[rows, rows]
    return -torch.log(similarity[rows, (rows + len(z) // 2) % len(z)] / others).mean()


def enlarge(heat: np.ndarray, size: int) -> np.ndarray:
    """Resizes a map (h, w) bilinearly to (size, size): half-pixel centres, edges clamped."""

    def taps(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = (np.arange(size) + 0.5) * length / size - 0.5
        low = np.floor(position).astype(int)
        share = np.where((low < 0) | (low >= length - 1), 0, position - low).astype(heat.dtype)
        low = low.clip(0, length - 1)
        return low, np.minimum(low + 1, length - 1), share

    low, high, share = taps(heat.shape[1])
    wide = (1 - share) * heat[:, low] + share * heat[:, high]
    low, high, share = taps(heat.shape[0])
    return (1 - share)[:, None] * wide[low] + share[:, None] * wide[high]


def leading_box(heat: np.ndarray) -> tuple[int, int, int, int] | None:
    """The box (y0, x0, y1, x1) of the region whose box holds the largest value, the later one of equals."""
    bottom, top = heat.min(), heat.max()
    regions = label(heat > bottom + heat.dtype.type(0.5) * (top - bottom), connectivity=2)
    best, chosen = -np.inf, None
    for region in regionprops(regions):
        y0, x0, y1, x1 = region.bbox
        height = heat[y0:y1, x0:x1].max()
        if height >= best:
            best, chosen = height, region.bbox
    return chosen


def crop_in_place(views: Tensor, maps: Tensor) -> np.ndarray:
    """Crops every view (n, 3, s, s) to the box of its map (n, h, w) and enlarges it; returns the boxes (n, 4)."""
    size = views.shape[-1]
    boxes = np.tile(np.array([0, 0, size, size]), (len(views), 1))
    for number, heat in enumerate(maps.cpu().numpy()):
        box = leading_box(enlarge(heat, size))
        if box is not None:
            y0, x0, y1, x1 = boxes[number] = box
            crop = views[number : number + 1, :, y0:y1, x0:x1]
            views[number] = functional.interpolate(crop, (size, size), mode="nearest")[0]
    return boxes


class Step(NamedTuple):
    """What one step computed: losses before and after the crop, and the boxes (n, 4)."""

    loss_before: float
    loss: float
    boxes: np.ndarray


class Trainer:
    """The GS step with its network and momentum."""

    def __init__(self, network: Network, *, temperature: float = 0.5, decay: float = 1e-6):
        self.network, self.temperature, self.decay = network.train(), temperature, decay
        self.momentum = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def __call__(self, views: Tensor, rate: float) -> Step:
        """Does one step on views (n, 3, s, s), which it crops in place, with learning rate `rate`."""
        embeddings, features = self.network(views)
        features.retain_grad()
        before = info_nce(embeddings, self.temperature)
        before.backward()  # through the whole network; the parameters' gradients are thrown away below
        gradient = features.grad
        assert gradient is not None
        with torch.no_grad():
            maps = (features * gradient.mean((2, 3), keepdim=True)).mean(1)
            maps = maps / maps.amax((1, 2), keepdim=True)
            boxes = crop_in_place(views, maps)
        embeddings, _ = self.network(views)
        loss = info_nce(embeddings, self.temperature)
        self.momentum.zero_grad()
        loss.backward()
        self.momentum.param_groups[0]["lr"] = rate
        self.control()
        self.momentum.step()
        return Step(before.item(), loss.item(), boxes)

    @torch.no_grad()
    def control(self) -> None:
        """Scales every gradient by LARC, weight decay included; batch norm does not decay."""
        spared = {
            id(p) for m in self.network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters(recurse=False)
        }
        for parameter in self.network.parameters():
            gradient = parameter.grad
            assert gradient is not None
            decay = 0.0 if id(parameter) in spared else self.decay
            length, slope = float(parameter.norm()), float(gradient.norm())
            if length and slope:
                gradient += decay * parameter
                gradient *= 1e-3 * length / (slope + decay * length + 1e-8)
