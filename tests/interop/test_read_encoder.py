"""Weights of other libraries: names and layouts written down by hand, and bits that come back."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from grass_jax.bands import RGB, Bands
from grass_jax.interop.names import encoder_tensors
from grass_jax.interop.read_encoder import read_encoder
from grass_jax.interop.torch_write import write_torch
from grass_jax.models import build_encoder
from grass_jax.models.resnet import BasicBlock, Bottleneck, ResNet

FOUR = Bands((1, 2, 3, 4), "uint16", (0.0,) * 4, (9000.0,) * 4, (0.5,) * 4, (0.2,) * 4, (4, 2, 1))
UNKNOWN_FOUR = Bands((1, 2, 3, 4), "uint16", (0.0,) * 4, (9000.0,) * 4, (0.5,) * 4, (0.2,) * 4, ())
GREY = Bands((1,), "uint8", (0.0,), (255.0,), (0.5,), (0.2,), ())
VISSL = "classy_state_dict.base_model.model.trunk._feature_blocks"


def shapes_of(encoder, bands=3):
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 64, 64, bands)), train=False))


@pytest.fixture(scope="module")
def tensors(torch_shapes, random_tensors):
    return random_tensors(torch_shapes((1, 2, 1, 1), bottleneck=True, width=4))


@pytest.fixture(scope="module")
def wanted():
    return shapes_of(ResNet((1, 2, 1, 1), Bottleneck, width=4))


def nest(names, tensors):
    """Puts tensors below nested dicts."""
    for name in reversed(names.split("/")):
        tensors = {name: tensors}
    return tensors


def below(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_every_value_is_put_in_its_place(tmp_path, tensors, wanted, suffix):
    path = tmp_path / f"weights.{suffix}"
    (safetensors.numpy.save_file(tensors, path) if suffix == "safetensors" else write_torch(path, tensors))
    variables = read_encoder(path, wanted)
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


def test_the_trees_dtype_counts_and_not_the_files(tmp_path, tensors, wanted):
    for dtype in (np.float16, np.float64, jnp.bfloat16):
        other = {name: value.astype(dtype) for name, value in tensors.items()}
        safetensors.numpy.save_file(other, tmp_path / "weights.safetensors")
        variables = read_encoder(tmp_path / "weights.safetensors", wanted)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
        np.testing.assert_array_equal(variables["params"]["bn1"]["bias"], other["bn1.bias"].astype(np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda t: {"state_dict": t, "epoch": 3, "arch": "resnet50"},
        lambda t: {"model": below("module.", t)},
        lambda t: {"state_dict": below("backbone.", t)},
        lambda t: below("encoder.", t),
        lambda t: {
            "state_dict": below("module.encoder_q.", t),
            "optimizer": {"state": {0: {"momentum_buffer": t["bn1.bias"]}}},
        },
        # VISSL's trunk has no classifier; its heads are another dict
        lambda t: nest(VISSL.replace(".", "/"), {n: v for n, v in t.items() if not n.startswith("fc.")}),
        # SwAV and others leave the classifier's name to something else
        lambda t: {n.replace("fc.", "head.fc."): v for n, v in t.items()},
        lambda t: {n.replace("fc.", "classifier."): v for n, v in t.items()},
    ],
    ids=["state_dict", "ddp", "backbone", "encoder", "moco", "vissl", "head.fc", "classifier"],
)
def test_the_names_of_other_libraries(tmp_path, tensors, wanted, make):
    write_torch(tmp_path / "plain.pth", tensors)
    write_torch(tmp_path / "other.pth", make(tensors))
    expected, read = (read_encoder(tmp_path / name, wanted) for name in ("plain.pth", "other.pth"))
    jax.tree.map(np.testing.assert_array_equal, read, expected)


def test_of_several_networks_one_is_chosen(tmp_path, tensors, wanted):
    plain = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
    other = {name: np.asarray(2 * value) for name, value in plain.items()}
    state = plain | below("module.encoder_k.", other) | {"module.queue": np.zeros(3, np.float32)}
    write_torch(tmp_path / "w.pth", {"state_dict": state})
    with pytest.raises(ValueError, match=r"has 2 networks \(state_dict, state_dict\.module\.encoder_k\).*init_prefix"):
        read_encoder(tmp_path / "w.pth", wanted)
    for prefix in ("state_dict.module.encoder_k", "state_dict.module.encoder_k."):
        read = read_encoder(tmp_path / "w.pth", wanted, prefix=prefix)
        np.testing.assert_array_equal(read["params"]["bn1"]["bias"], 2 * tensors["bn1.bias"])
    with pytest.raises(ValueError, match=r"has no ResNet below 'encoder_k'.* one of state_dict, "):
        read_encoder(tmp_path / "w.pth", wanted, prefix="encoder_k")
    write_torch(tmp_path / "top.pth", plain | below("teacher.", other))
    with pytest.raises(ValueError, match=r"has 2 networks \(\., teacher\)"):
        read_encoder(tmp_path / "top.pth", wanted)
    with pytest.raises(ValueError, match=r"100 unknown \(teacher\.bn1\.bias"):  # it lies below ., too
        read_encoder(tmp_path / "top.pth", wanted, prefix=".")
    read = read_encoder(tmp_path / "top.pth", wanted, prefix=".", ignore="^teacher")
    np.testing.assert_array_equal(read["params"]["bn1"]["bias"], tensors["bn1.bias"])


def test_what_lies_beside_the_encoder_is_an_error_unless_told(tmp_path, tensors, wanted):
    plain = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
    heads = {f"{i}.clf.{leaf}": np.zeros(2, np.float32) for i in range(2) for leaf in ("weight", "bias")}
    write_torch(tmp_path / "w.pth", {"model": {"trunk": below("_feature_blocks.", plain), "heads": heads}})
    with pytest.raises(ValueError, match=r"4 unknown \(model\.heads\.0\.clf\.bias, ") as error:
        read_encoder(tmp_path / "w.pth", wanted)
    assert "config.init_ignore=PATTERN" in str(error.value)
    assert "config.init_prefix=model.trunk._feature_blocks" in str(error.value)
    assert "config.model" not in str(error.value)
    by_pattern = read_encoder(tmp_path / "w.pth", wanted, ignore=r"\.heads\.")
    by_prefix = read_encoder(tmp_path / "w.pth", wanted, prefix="model.trunk._feature_blocks")
    jax.tree.map(np.testing.assert_array_equal, by_pattern, by_prefix)


def test_without_a_pattern_the_classifier_is_unknown(tmp_path, tensors, wanted):
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"tensors 2 unknown \(fc\.bias, fc\.weight\): leave"):
        read_encoder(tmp_path / "w.safetensors", wanted, ignore="")


def test_faults_are_listed_in_one_message(tmp_path, tensors, wanted):
    wrong = {name: value for name, value in tensors.items() if name != "layer1.0.bn2.bias"}
    wrong |= {"head.weight": np.zeros(3, np.float32), "bn1.weight": np.zeros(5, np.float32)}
    wrong |= {"bn1.bias": np.zeros(4, np.int32)}
    safetensors.numpy.save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors does not hold this encoder; ") as error:
        read_encoder(tmp_path / "w.safetensors", wanted)
    assert "1 missing (layer1.0.bn2.bias)" in str(error.value)
    assert "1 unknown (head.weight)" in str(error.value)
    assert "1 of another shape (bn1.weight (5,) instead of (4,))" in str(error.value)
    assert "1 of a type that is not read (bn1.bias of I32)" in str(error.value)
    assert "set config.model" in str(error.value)


def test_another_network_is_refused_with_a_list_that_ends(tmp_path, tensors):
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"30 unknown \(layer1\.0\.bn3\.bias, .* and 20 more\)") as error:
        read_encoder(tmp_path / "w.safetensors", shapes_of(ResNet((1, 2, 1, 1), BasicBlock, width=4)))
    assert len(str(error.value)) < 2500


@pytest.mark.parametrize("stem", ["conv1.0.weight", "stem.0.weight"])
def test_a_deep_stem_is_told_apart(tmp_path, tensors, wanted, stem):
    deep = {name: value for name, value in tensors.items() if name != "conv1.weight"}
    write_torch(tmp_path / "w.pth", below("backbone.", deep | {stem: np.zeros((2, 3, 3, 3), np.float32)}))
    for prefix in ("", "backbone"):
        with pytest.raises(ValueError, match=r"stem has three convolutions .* single 7x7"):
            read_encoder(tmp_path / "w.pth", wanted, prefix=prefix)


def test_a_stem_of_small_kernels_is_of_another_shape(tmp_path, tensors, wanted):
    write_torch(tmp_path / "w.pth", tensors | {"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)})
    with pytest.raises(ValueError, match=re.escape("conv1.weight (4, 3, 3, 3) instead of (4, 3, 7, 7)")):
        read_encoder(tmp_path / "w.pth", wanted)


def test_other_files_are_refused(tmp_path, tensors, wanted):
    write_torch(tmp_path / "w.pth", {"a": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"has no ResNet.* but 1 other tensors \(a, \.\.\.\)"):
        read_encoder(tmp_path / "w.pth", wanted)
    write_torch(tmp_path / "w.pth", {"epoch": 3})
    with pytest.raises(ValueError, match="has no tensors by name"):
        read_encoder(tmp_path / "w.pth", wanted)
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    for end in (9, 200, len(whole) - 1):
        (tmp_path / "w.safetensors").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"w\.safetensors cannot be read as \.safetensors"):
            read_encoder(tmp_path / "w.safetensors", wanted)


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        (
            FOUR,
            "bands 4, 2, 1 keep the weights of red, green and blue, every other band takes their mean, all times 3/4",
        ),
        (UNKNOWN_FOUR, "every band takes the mean of their weights, all times 3/4"),
        (GREY, "every band takes the mean of their weights, all times 3/1"),
    ],
)
def test_the_stem_is_adapted_and_the_log_says_so(tmp_path, tensors, caplog, bands, words):
    write_torch(tmp_path / "w.pth", tensors)
    with caplog.at_level(logging.INFO, "absl"):
        read = read_encoder(
            tmp_path / "w.pth", shapes_of(ResNet((1, 2, 1, 1), Bottleneck, width=4), len(bands)), bands=bands
        )
    (line,) = (record.getMessage() for record in caplog.records if "first convolution" in record.getMessage())
    assert words in line
    kernel, weight = read["params"]["conv1"]["kernel"], tensors["conv1.weight"].astype(np.float64)
    red, green, blue = weight.transpose(1, 2, 3, 0)  # each (h, w, out)
    mean = (red + green + blue) / 3
    expected = {FOUR: [blue, green, mean, red], UNKNOWN_FOUR: [mean] * 4, GREY: [mean]}[bands]
    assert kernel.shape == (7, 7, len(bands), 4)
    for band, values in enumerate(expected):
        np.testing.assert_allclose(kernel[:, :, band], values * 3 / len(bands), rtol=1e-6, atol=1e-7)
    if bands.rgb != FOUR.rgb:  # a grey surface answers as before
        np.testing.assert_allclose(kernel.sum(2), red + green + blue, rtol=1e-5, atol=1e-6)


def test_red_green_and_blue_in_another_order_take_their_own_weights(tmp_path, tensors, caplog):
    write_torch(tmp_path / "w.pth", tensors)
    like, bands = shapes_of(ResNet((1, 2, 1, 1), Bottleneck, width=4), 3), Bands(rgb=(3, 2, 1))
    with caplog.at_level(logging.INFO, "absl"):
        kernel = read_encoder(tmp_path / "w.pth", like, bands=bands)["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"][:, ::-1].transpose(2, 3, 1, 0))
    assert "red, green and blue go to the bands 3, 2, 1" in caplog.text


def test_four_channels_to_three_and_to_four(tmp_path, torch_shapes, random_tensors, wanted):
    four = random_tensors(torch_shapes((1, 2, 1, 1), bottleneck=True, width=4, bands=4))
    write_torch(tmp_path / "w.pth", four)
    weight = four["conv1.weight"].astype(np.float64)
    kernel = read_encoder(tmp_path / "w.pth", wanted, bands=RGB)["params"]["conv1"]["kernel"]
    for band in range(3):
        np.testing.assert_allclose(kernel[:, :, band], weight.mean(1).transpose(1, 2, 0) * 4 / 3, rtol=1e-6, atol=1e-7)
    same = read_encoder(tmp_path / "w.pth", shapes_of(ResNet((1, 2, 1, 1), Bottleneck, width=4), 4), bands=FOUR)
    np.testing.assert_array_equal(same["params"]["conv1"]["kernel"], four["conv1.weight"].transpose(2, 3, 1, 0))


def test_bands_that_are_not_the_encoders_are_a_mistake(tmp_path, tensors, wanted):
    write_torch(tmp_path / "w.pth", tensors)
    with pytest.raises(ValueError, match="reads 3 bands, and 4 are described"):
        read_encoder(tmp_path / "w.pth", wanted, bands=FOUR)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_names_out_are_torchvisions_and_bits_come_back(tmp_path, torch_shapes, random_variables, name):
    encoder = build_encoder(name)
    wanted = shapes_of(encoder)
    variables = random_variables(wanted)
    tensors = encoder_tensors(variables)
    blocks = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}[name]
    expected = torch_shapes(blocks, bottleneck=encoder.block is Bottleneck, width=64)
    assert {key: value.shape for key, value in tensors.items()} == {
        key: shape for key, shape in expected.items() if not key.startswith("fc.") and not key.endswith("_tracked")
    }
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    write_torch(tmp_path / "w.pth", tensors)
    for file in ("w.safetensors", "w.pth"):
        jax.tree.map(np.testing.assert_array_equal, read_encoder(tmp_path / file, wanted), dict(variables))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_numbers_that_no_network_has_are_listed(tmp_path, tensors, wanted, suffix):
    path = tmp_path / f"w.{suffix}"
    wrong = {name: value.copy() for name, value in tensors.items()}
    wrong["conv1.weight"][1, 2, 3, 4] = np.nan
    wrong["layer1.0.bn1.bias"][0] = -np.inf
    wrong["bn1.running_var"][3] = -1e-3
    wrong["bn1.running_mean"][3] = -1e-3
    wrong["fc.weight"][:] = np.nan  # which nobody wants
    (safetensors.numpy.save_file(wrong, path) if suffix == "safetensors" else write_torch(path, wrong))
    with pytest.raises(
        ValueError, match=r"^\S*w\.\w+ holds no usable weights; tensors 2 with NaN or infinity "
    ) as error:
        read_encoder(path, wanted)
    assert "infinity (conv1.weight, layer1.0.bn1.bias) and 1 with negative variances (bn1.running_var): give" in str(
        error.value
    )


def test_numbers_too_large_for_the_tree_are_listed(tmp_path, tensors, wanted):
    wide = {name: value.astype(np.float64) for name, value in tensors.items()}
    wide["bn1.weight"][0] = 1e300
    safetensors.numpy.save_file(wide, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"1 with NaN or infinity \(bn1\.weight\): give"):
        read_encoder(tmp_path / "w.safetensors", wanted)


def test_types_are_called_by_their_names(tmp_path, tensors, wanted):
    other = tensors | {"bn1.bias": jnp.zeros(4, jnp.float8_e4m3fn), "bn1.weight": np.zeros(4, np.int32)}
    safetensors.numpy.save_file({name: np.asarray(value) for name, value in other.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"\(bn1\.bias of F8_E4M3, bn1\.weight of I32\)"):
        read_encoder(tmp_path / "w.safetensors", wanted)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_control_characters_never_reach_a_terminal(tmp_path, tensors, wanted, suffix):
    path = tmp_path / f"w.{suffix}"
    odd = tensors | {"\x1b[31mred\nline\u202e": np.zeros(3, np.float32)}
    (safetensors.numpy.save_file(odd, path) if suffix == "safetensors" else write_torch(path, odd))
    with pytest.raises(ValueError, match="1 unknown") as error:
        read_encoder(path, wanted)
    assert str(error.value).isprintable()
    assert r"\x1b[31mred\nline\u202e" in str(error.value)


def test_control_characters_of_a_broken_header_neither(tmp_path, wanted):
    header = b'{"conv1.weight": {"dtype": "\\u001b[31m", "shape": [0], "data_offsets": [0, 0]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"cannot be read as \.safetensors") as error:
        read_encoder(tmp_path / "w.safetensors", wanted)
    assert str(error.value).isprintable()


def test_a_header_whose_length_looks_like_a_pickle(tmp_path, tensors, wanted):
    path = tmp_path / "w.safetensors"
    for length in range(300):
        safetensors.numpy.save_file(tensors, path, {"x": "x" * length})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    np.testing.assert_array_equal(read_encoder(path, wanted)["params"]["bn1"]["bias"], tensors["bn1.bias"])
