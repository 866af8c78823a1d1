"""The card's own code, and the files of other libraries, where PyTorch and these are installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.bands import RGB, normalise, unit_range
from grass_jax.interop.names import encoder_tensors
from grass_jax.models import build_encoder, build_segmenter

CLASSES = ["grass", "stone", "water"]


@pytest.fixture
def bands(request, four):
    """Three or four of them."""
    return {3: RGB, 4: four}[request.param]


def blocks_of(card):
    return [part.split("```")[0] for part in card.read_text().split("```python\n")[1:]]


def run_blocks(card, monkeypatch, packages=("torchvision",)):
    """Runs the code of a card, in its folder, but for blocks of packages that are not installed."""
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.chdir(card.parent)
    spaces = []
    for block in blocks_of(card):
        space = {}
        exec(block, space)
        spaces.append(space)
    return spaces


@pytest.mark.parametrize("head", ["deeplabv3plus", "fcn", "linear"])
@pytest.mark.parametrize(
    ("name", "width", "stride", "bands"),
    [("resnet18", 64, 16, 4), ("resnet50", 64, 16, 3), ("resnet18", 8, 8, 3), ("resnet50", 8, 32, 4)],
    indirect=["bands"],
)
def test_the_cards_network_gives_the_same_logits(
    tmp_path, make_run, monkeypatch, name, width, stride, bands, head, run
):
    torch = pytest.importorskip("torch")
    settings = {"name": head, "channels": 24, "dropout": 0.1}
    workdir, variables = make_run("segment", name=name, width=width, stride=stride, bands=bands, head=settings)
    run(workdir, tmp_path / "n.safetensors")
    images = np.random.default_rng(2).integers(0, 255, (2, 96, 80, len(bands))).astype(bands.dtype)
    module = build_segmenter({"name": name, "width": width, "output_stride": stride}, settings, len(CLASSES))
    views = normalise(unit_range(jnp.asarray(images), bands), bands)
    expected = np.asarray(jax.jit(lambda x: module.apply(variables, x, train=False))(views))
    prepare, network = run_blocks(tmp_path / "n.md", monkeypatch)
    with torch.no_grad():
        logits = network["network"](prepare["prepare"](torch.from_numpy(np.moveaxis(images, -1, 1).astype(np.int32))))
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(np.moveaxis(logits.numpy(), 1, -1) / scale, expected / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "width", "stride", "bands"),
    [("resnet18", 64, 32, 4), ("resnet50", 64, 16, 3), ("resnet18", 8, 8, 3), ("resnet50", 8, 32, 4)],
    indirect=["bands"],
)
def test_the_cards_encoders_give_the_same_features(tmp_path, make_run, monkeypatch, name, width, stride, bands, run):
    torch = pytest.importorskip("torch")
    workdir, variables = make_run(name=name, width=width, stride=stride, bands=bands)
    run(workdir, tmp_path / "e.safetensors")
    images = np.random.default_rng(2).normal(size=(2, 96, 80, len(bands))).astype(np.float32)
    views = torch.from_numpy(np.moveaxis(images, -1, 1).copy())

    def features(stride):
        module = build_encoder(name, width=width, output_stride=stride)
        stages = jax.jit(lambda x: module.apply(variables, x, train=False, stages=True))(images)
        return [np.moveaxis(stage, -1, 1) for stage in stages]

    def close(found, expected):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found.detach().numpy() / scale, expected / scale, rtol=0, atol=1e-4)

    spaces = run_blocks(tmp_path / "e.md", monkeypatch, ("torchvision", "segmentation_models_pytorch"))
    seen = 0
    for encoder in [space["encoder"].eval() for space in spaces if "encoder" in space]:
        found = encoder(views)
        if isinstance(found, list):
            for own, expected in zip(found, features(stride), strict=True):
                close(own, expected)
        else:
            close(found, features(32)[-1].mean((2, 3)))
        seen += 1
    assert seen == (width == 64) + (width != 64 or stride != 32)
    for network in [space["network"].encoder.eval() for space in spaces if "network" in space]:
        np.testing.assert_array_equal(network.conv1.weight.detach(), encoder_tensors(variables)["conv1.weight"])
    assert ("smp" in "".join(blocks_of(tmp_path / "e.md"))) == (width == 64)


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 32), ("resnet50", 16), ("resnet50", 8)])
def test_timm_loads_the_folder(tmp_path, make_run, monkeypatch, name, stride, run, four):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    workdir, variables = make_run(name=name, width=64, stride=stride, bands=four)
    run(workdir, tmp_path / "folder", format="timm")
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(2).normal(size=(2, 64, 64, 4)).astype(np.float32)
    features = build_encoder(name, output_stride=stride).apply(variables, images, train=False)
    expected = np.asarray(features).mean((1, 2))
    space = {}
    exec(blocks_of(tmp_path / "folder" / "README.md")[-1], space)
    encoders = [space["encoder"]]
    if stride == 32:
        encoders += [timm.create_model("local-dir:folder", pretrained=True, num_classes=0)]
    scale = np.abs(expected).max()
    for encoder in encoders:
        with torch.no_grad():
            found = encoder.eval()(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-4)


def test_pytorch_loads_mmsegmentations_checkpoint(tmp_path, make_run, run):
    torch = pytest.importorskip("torch")
    workdir, variables = make_run()
    run(workdir, tmp_path / "e.pth", format="mmsegmentation")
    read = torch.load(tmp_path / "e.pth", weights_only=True)
    assert read["meta"]["encoder"] == "resnet18"
    for name, value in encoder_tensors(variables).items():
        np.testing.assert_array_equal(read["state_dict"][f"backbone.{name}"].numpy(), value)
