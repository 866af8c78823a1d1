"""torchvision's ResNet, written once more in NumPy on its own names, agrees with the encoder; PyTorch does, too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.interop.names import encoder_tensors
from grass_jax.models import build_encoder

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


def convolve(x, weight, stride=1):
    """(n, c, h, w) with kernels (o, c, k, k), padded by half a kernel."""
    side = weight.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2))
    patches = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", patches, weight, optimize=True)


def plain_resnet(x, weights, blocks):
    """The features before the pooling, in double precision."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}

    def norm(x, name):
        scale, bias, mean, var = (
            weights[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(norm(convolve(x, weights["conv1.weight"], 2), "bn1"), 0)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((-1, -2))
    for stage, count in enumerate(blocks, 1):
        for index in range(count):
            name, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            last = 3 if f"{name}.conv3.weight" in weights else 2
            y = x
            for conv in range(1, last + 1):
                # the stride is in the first 3x3 convolution
                step = stride if conv == last - 1 else 1
                y = norm(convolve(y, weights[f"{name}.conv{conv}.weight"], step), f"{name}.bn{conv}")
                y = np.maximum(y, 0) if conv < last else y
            if f"{name}.downsample.0.weight" in weights:
                x = norm(convolve(x, weights[f"{name}.downsample.0.weight"], stride), f"{name}.downsample.1")
            x = np.maximum(x + y, 0)
    return x


@pytest.mark.parametrize("name", BLOCKS)
def test_the_encoder_is_torchvisions_resnet(name, random_variables):
    encoder = build_encoder(name)
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    variables = random_variables(jax.eval_shape(lambda: encoder.init(jax.random.key(0), images, train=False)))
    features = np.moveaxis(jax.jit(lambda x: encoder.apply(variables, x, train=False))(jnp.asarray(images)), -1, 1)
    weights = encoder_tensors(variables)
    expected = plain_resnet(np.moveaxis(images, -1, 1).astype(np.float64), weights, BLOCKS[name])
    assert features.shape == expected.shape == (2, 512 if name == "resnet18" else 2048, 2, 2)
    scale = np.abs(expected).max()
    assert scale > 0.1
    np.testing.assert_allclose(features / scale, expected / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_pytorch_agrees(name, random_variables):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    encoder = build_encoder(name)
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    variables = random_variables(jax.eval_shape(lambda: encoder.init(jax.random.key(0), images, train=False)))
    features = np.asarray(jax.jit(lambda x: encoder.apply(variables, x, train=False))(jnp.asarray(images)))
    network = getattr(torchvision.models, name)().eval()
    network.fc = torch.nn.Identity()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in encoder_tensors(variables).items()})
    with torch.no_grad():
        pooled = network(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()
    scale = np.abs(pooled).max()
    np.testing.assert_allclose(features.mean((1, 2)) / scale, pooled / scale, rtol=0, atol=1e-4)
