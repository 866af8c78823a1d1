"""Every test runs on eight virtual CPU devices with a compilation cache: XLA compiles are most of the suite's time."""

import contextlib
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes four times longer than running what these tests compile: unoptimised code is the quicker one here.
QUICK_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # the older emitter of elementwise loops halves it; later versions have none
    QUICK_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_COMPILE} --xla_force_host_platform_device_count=8"

import jax
import numpy as np
import pytest

jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """The temporary folder, also of processes that tests start, is pytest's own: TFDS leaves empty folders there."""
    folder = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr("tempfile.tempdir", folder)
        yield


@pytest.fixture(params=["full disk", "closed pipe"])
def unwritable(request):
    """A stream to a disk that is full, or to a pipe whose reader has gone."""
    if request.param == "full disk":
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    stream = os.fdopen(writing, "w", buffering=1)
    with pytest.raises(OSError, match=r"space|pipe"):
        stream.write("a line\n")
    yield stream
    with contextlib.suppress(OSError):
        stream.close()


@pytest.fixture(scope="session")
def vectors():
    """Opens one file of vectors made by running the original implementation: `vectors("lam_v8_c64_h7")`."""
    return lambda name: np.load(Path(__file__).parent / "reference" / f"{name}.npz", allow_pickle=False)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Five 128x96 images of coloured rectangles, in two subfolders."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(5):
        image = np.full((96, 128, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(12):
            y, x, height, width = rng.integers(0, 96), rng.integers(0, 128), *rng.integers(8, 40, 2)
            image[y : y + height, x : x + width] = rng.integers(0, 256, 3)
        path = folder / ("east" if number % 2 else "west") / f"scene{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="session")
def tiny(image_folder, tmp_path_factory):
    """Makes configs of the main job that run in seconds: 30 tiles in 3 steps an epoch, a ResNet-18 of width 4."""
    from configs import gs

    data_dir = tmp_path_factory.mktemp("prepared")

    def config(**changes):
        config = gs.get_config("folder")
        config.update(
            {
                "batch_size": 8,
                "data": {"path": str(image_folder), "tile_size": 48, "stride": 48, "data_dir": str(data_dir)},
                "augment": {"size": 32},
                "model": {"width": 4, "output_stride": 8},
                "method": {"embedding": 16},
                "warmup": {"epochs": 2},
                "gs": {"epochs": 2},
                "checkpoint": {"every_epochs": 0.5},
                "log": {"figure_tiles": 2, "tensorboard": False},
                "compilation_cache": "",
            }
        )
        config.update_from_flattened_dict(changes)
        return config

    return config


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory) -> Path:
    """Eight 96x128 images of rectangles in three noisy colours, with their masks: two of each of four places."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(1)
    colours = np.array([[60, 90, 50], [150, 140, 120], [40, 60, 120]])
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number in range(8):
        mask = np.zeros((96, 128), np.uint8)
        for label in (1, 2, 1, 2, 0, 1):
            y, x, height, width = rng.integers(0, 80), rng.integers(0, 110), *rng.integers(16, 50, 2)
            mask[y : y + height, x : x + width] = label
        image = np.clip(colours[mask] + rng.normal(0, 6, (96, 128, 3)), 0, 255).astype(np.uint8)
        name = f"{('east', 'west', 'north', 'south')[number // 2]}_{number % 2}.png"
        Image.fromarray(image).save(folder / "images" / name)
        Image.fromarray(mask).save(folder / "masks" / name)
    return folder


@pytest.fixture(scope="session")
def tiny_segment(labelled_folder, tmp_path_factory):
    """Makes configs of the segmentation task that run in seconds: a ResNet-18 of width 4 on tiles of 48."""
    from configs import segment

    data_dir = tmp_path_factory.mktemp("prepared_labelled")

    def config(**changes):
        config = segment.get_config("folder")
        config.update(
            {
                "batch_size": 8,
                "data": {
                    "path": str(labelled_folder),
                    "classes": ("grass", "stone", "water"),
                    "group": r"(\w+)_\d",
                    "test": "south",
                    "tile_size": 48,
                    "data_dir": str(data_dir),
                },
                "augment": {"size": 48, "scale": (1.0, 1.5)},
                "model": {"width": 4, "output_stride": 8},
                "head": {"channels": 8, "dropout": 0.0},
                "schedule": {"peak": 5e-3},
                "encoder_rate": 1.0,
                "finetune": {"steps": 6},
                "evaluate": {"batch_size": 8, "boundary": 1, "figure_scenes": 1},
                "checkpoint": {"every_steps": 2},
                "log": {"tensorboard": False, "every": 1},
                "compilation_cache": "",
            }
        )
        config.update_from_flattened_dict(changes)
        return config

    return config
