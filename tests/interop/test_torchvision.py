"""torchvision's weights files: names and layouts written down by hand, and bits that come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from grass_jax.interop.torchvision import read_encoder, write_encoder
from grass_jax.models import build_encoder
from grass_jax.models.resnet import BasicBlock, Bottleneck, ResNet


def torch_shapes(blocks, bottleneck, width):
    """Names and shapes of a torchvision ResNet's state dict, from its constructor."""
    shapes = {"conv1.weight": (width, 3, 7, 7)}

    def norm(name, channels):
        shapes.update({f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", width)
    inputs = width
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        outputs = planes * (4 if bottleneck else 1)
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            kernels = [(planes, inputs, 1), (planes, planes, 3), (outputs, planes, 1)]
            for i, (o, c, k) in enumerate(kernels if bottleneck else [(planes, inputs, 3), (planes, planes, 3)], 1):
                shapes[f"{name}.conv{i}.weight"] = (o, c, k, k)
                norm(f"{name}.bn{i}", o)
            if block == 0 and (stage > 0 or bottleneck):
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return shapes | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}


def shapes_of(encoder):
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))


def random_tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(torch_shapes((1, 2, 1, 1), True, 4))


@pytest.fixture(scope="module")
def wanted():
    return shapes_of(ResNet((1, 2, 1, 1), Bottleneck, width=4))


def test_every_value_is_put_in_its_place(tmp_path, tensors, wanted):
    safetensors.numpy.save_file(tensors, tmp_path / "weights.safetensors")
    variables = read_encoder(tmp_path / "weights.safetensors", wanted)
    assert jax.tree.structure(variables) == jax.tree.structure({k: wanted[k] for k in ("params", "batch_stats")})
    params, stats = variables["params"], variables["batch_stats"]
    rows, columns, inputs, outputs = 2, 5, 1, 3
    kernel = params["conv1"]["kernel"]
    assert kernel.shape == (7, 7, 3, 4)
    assert kernel[rows, columns, inputs, outputs] == tensors["conv1.weight"][outputs, inputs, rows, columns]
    assert params["layer2_1"]["conv2"]["kernel"][0, 2, 5, 7] == tensors["layer2.1.conv2.weight"][7, 5, 0, 2]
    assert (
        params["layer3_0"]["downsample_0"]["kernel"][0, 0, 2, 9] == tensors["layer3.0.downsample.0.weight"][9, 2, 0, 0]
    )
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        np.testing.assert_array_equal(params["layer4_0"]["bn3"][ours], tensors[f"layer4.0.bn3.{theirs}"])
        np.testing.assert_array_equal(
            params["layer1_0"]["downsample_1"][ours], tensors[f"layer1.0.downsample.1.{theirs}"]
        )
    for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
        np.testing.assert_array_equal(stats["bn1"][ours], tensors[f"bn1.{theirs}"])
        np.testing.assert_array_equal(stats["layer2_0"]["bn1"][ours], tensors[f"layer2.0.bn1.{theirs}"])


def test_bits_come_back(tmp_path, wanted):
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), wanted)
    write_encoder(tmp_path / "new" / "weights.safetensors", variables)
    again = read_encoder(tmp_path / "new" / "weights.safetensors", wanted)
    jax.tree.map(np.testing.assert_array_equal, again, dict(variables))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_written_file_has_the_names_and_shapes_of_torchvision(tmp_path, name):
    encoder = build_encoder(name, width=8)
    variables = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes_of(encoder))
    write_encoder(tmp_path / "weights.safetensors", variables)
    written = {key: value.shape for key, value in safetensors.numpy.load_file(tmp_path / "weights.safetensors").items()}
    blocks = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}[name]
    expected = torch_shapes(blocks, encoder.block is Bottleneck, 8)
    assert written == {k: v for k, v in expected.items() if not k.startswith("fc.") and not k.endswith("_tracked")}


def test_the_trees_dtype_counts_and_not_the_files(tmp_path, tensors, wanted):
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    safetensors.numpy.save_file(half, tmp_path / "weights.safetensors")
    variables = read_encoder(tmp_path / "weights.safetensors", wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    np.testing.assert_array_equal(variables["params"]["bn1"]["bias"], half["bn1.bias"].astype(np.float32))


def test_other_tensors_are_listed(tmp_path, tensors, wanted):
    wrong = {name: value for name, value in tensors.items() if name != "layer1.0.bn2.bias"}
    wrong |= {"head.weight": np.zeros(3, np.float32), "conv1.weight": np.zeros((4, 4, 7, 7), np.float32)}
    safetensors.numpy.save_file(wrong, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"Set config\.model") as error:
        read_encoder(tmp_path / "weights.safetensors", wanted)
    assert "layer1.0.bn2.bias is missing" in str(error.value)
    assert "head.weight is unknown" in str(error.value)
    assert "conv1.weight has shape (4, 4, 7, 7) instead of (4, 3, 7, 7)" in str(error.value)
    assert str(error.value).count(";") == 2


def test_another_network_is_refused(tmp_path, tensors):
    safetensors.numpy.save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"layer1\.0\.conv3\.weight is unknown"):
        read_encoder(tmp_path / "weights.safetensors", shapes_of(ResNet((1, 2, 1, 1), BasicBlock, width=4)))


def test_a_file_of_another_kind_is_refused(tmp_path, wanted):
    (tmp_path / "weights.safetensors").write_bytes(b"PK\x03\x04 a torch file" + bytes(100))
    with pytest.raises(ValueError, match=r"weights\.safetensors cannot be read as \.safetensors"):
        read_encoder(tmp_path / "weights.safetensors", wanted)
