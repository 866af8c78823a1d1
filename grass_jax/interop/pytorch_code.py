"""The PyTorch code that a model card shows: short, complete, and run by the tests."""

from typing import Any

from grass_jax.bands import Bands
from grass_jax.models import RATES, build_encoder
from grass_jax.models.resnet import ResNet

ENCODER = '''

class Encoder(ResNet):
    """{title}: the features of its four stages."""

    def __init__(self):
        super().__init__({block}, {blocks})
        self.conv1 = nn.Conv2d({bands}, {width}, 7, 2, 3, bias=False){norm}
        del self.fc{dilate}
{narrow}
    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        stages = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            stages.append(x := stage(x))
        return stages
'''
DILATE = """
        for stage, first, others in [{stages}]:  # dilated instead of strided
            for index, block in enumerate(stage):
                for conv in block.modules():
                    if isinstance(conv, nn.Conv2d):
                        conv.stride, dilation = (1, 1), others if index else first
                        if conv.kernel_size == (3, 3):
                            conv.dilation = conv.padding = (dilation, dilation)"""
DILATED = {32: (), 16: ("(self.layer4, 1, 2)",), 8: ("(self.layer3, 1, 2)", "(self.layer4, 2, 4)")}
NARROW = """
    def _make_layer(self, block, planes, *args, **options):
        if planes == 64:
            self.inplanes = {width}
        return super()._make_layer(block, planes * {width} // 64, *args, **options)
"""

LAYER = '''

def layer(inputs, outputs, kernel):
    """Convolution, batch norm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
'''
NETWORK = '''

class Network(nn.Module):
    """Images (n, {bands}, h, w) in, logits (n, {classes}, h, w) out."""

    def __init__(self):
        super().__init__()
        self.backbone = Encoder(){layers}
        self.classifier = nn.Conv2d({channels}, {classes}, 1)

    def forward(self, x):
        {forward}
        return interpolate(self.classifier(y), x.shape[2:], mode="bilinear")


network = Network()
network.load_state_dict(load_file("{file}"))
network.eval()
'''
LAYERS = {
    "deeplabv3plus": """
        self.aspp = ASPP({features}, {rates}, {channels})
        self.low_level = layer({first}, 48, 1)
        self.refine1 = layer({channels} + 48, {channels}, 3)
        self.refine2 = layer({channels}, {channels}, 3)""",
    "fcn": """
        self.block = layer({features}, {channels}, 3)""",
    "linear": "",
}
FORWARD = {
    "deeplabv3plus": """detail, *_, y = self.backbone(x)
        y = interpolate(self.aspp(y), detail.shape[2:], mode="bilinear")
        y = self.refine2(self.refine1(torch.cat([y, self.low_level(detail)], 1)))""",
    "fcn": "y = self.block(self.backbone(x)[-1])",
    "linear": "y = self.backbone(x)[-1]",
}
PREPARE = '''\
import torch


def prepare(images):
    """Images as stored, (n, {count}, h, w), bands {numbers} of a file, to what the network reads."""
    low, high, mean, std = torch.tensor([{values}
    ]).view(4, -1, 1, 1)
    return ((images.float() - low) / (high - low)).clamp(0, 1).nan_to_num(0).sub(mean).div(std)
'''


def prepare_code(bands: Bands) -> str:
    """The function from images as stored to the network's input."""
    values = "".join(f"\n        {list(getattr(bands, name))}," for name in ("low", "high", "mean", "std"))
    return PREPARE.format(count=len(bands), numbers=", ".join(map(str, bands.numbers)), values=values)


def plain_code(model: dict[str, Any], bands: int, file: str) -> str:
    """torchvision's own encoder, of width 64: images to pooled features."""
    stem = f"encoder.conv1 = nn.Conv2d({bands}, 64, 7, 2, 3, bias=False)\n" if bands != 3 else ""
    return (
        "from safetensors.torch import load_file\nfrom torch import nn\nfrom torchvision.models import "
        f"{model['name']}\n\nencoder = {model['name']}()\n{stem}encoder.fc = nn.Identity()\n"
        f'encoder.load_state_dict(load_file("{file}"))\n'
    )


def smp_code(model: dict[str, Any], bands: int, file: str) -> str:
    """A network of segmentation_models_pytorch on an encoder of width 64."""
    return (
        "import segmentation_models_pytorch as smp\nfrom safetensors.torch import load_file\n\n"
        f'network = smp.DeepLabV3Plus("{model["name"]}", encoder_weights=None, in_channels={bands}, classes=6)\n'
        f'network.encoder.load_state_dict(load_file("{file}"))\n'
    )


def encoder_code(model: dict[str, Any], bands: int, file: str) -> str:
    """The encoder as it was trained, whatever its width and output stride.

    Args:
        model: section of the run's configuration.
        bands: number of bands.
        file: name of the weights file.

    Returns:
        Code that ends with an `encoder` ready for use.
    """
    encoder = build_encoder(**model)
    imports = "from safetensors.torch import load_file\nfrom torch import nn\n" + _import_resnet(encoder)
    use = f'\n\nencoder = Encoder()\nencoder.load_state_dict(load_file("{file}"))\nencoder.eval()\n'
    return imports + _encoder_class(encoder, bands) + use


def network_code(model: dict[str, Any], head: dict[str, Any], classes: int, bands: int, file: str) -> str:
    """A whole segmentation network.

    Args:
        model: section of the run's configuration.
        head: likewise.
        classes: number of classes.
        bands: number of bands.
        file: name of the weights file.

    Returns:
        Code that ends with a `network` ready for use.
    """
    encoder, name = build_encoder(**model), head["name"]
    first = encoder.width * encoder.block.expansion
    features = 8 * first
    sizes = {"first": first, "features": features, "channels": features if name == "linear" else head["channels"]}
    pyramid = name == "deeplabv3plus"
    return "".join(
        [
            "import torch\n" if pyramid else "",
            "from safetensors.torch import load_file\nfrom torch import nn\n",
            "from torch.nn.functional import interpolate\n",
            _import_resnet(encoder),
            "from torchvision.models.segmentation.deeplabv3 import ASPP\n" if pyramid else "",
            _encoder_class(encoder, bands),
            "" if name == "linear" else LAYER,
            NETWORK.format(
                bands=bands,
                classes=classes,
                layers=LAYERS[name].format(rates=list(RATES[encoder.output_stride]), **sizes),
                forward=FORWARD[name],
                file=file,
                **sizes,
            ),
        ]
    )


def _import_resnet(encoder: ResNet) -> str:
    return f"from torchvision.models.resnet import {encoder.block.__name__}, ResNet\n"


def _encoder_class(encoder: ResNet, bands: int) -> str:
    narrow, dilated = encoder.width != 64, DILATED[encoder.output_stride]
    return ENCODER.format(
        title=f"torchvision's ResNet of width {encoder.width} and output stride {encoder.output_stride}",
        block=encoder.block.__name__,
        blocks=list(encoder.blocks),
        bands=bands,
        width=encoder.width,
        norm=f"\n        self.bn1 = nn.BatchNorm2d({encoder.width})" if narrow else "",
        dilate=DILATE.format(stages=", ".join(dilated)) if dilated else "",
        narrow=NARROW.format(width=encoder.width) if narrow else "",
    )
