"""`python main.py` as a person starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def flags(tiny, image_folder):
    """The tiny job's settings as command-line flags over `configs/gs.py:folder`."""
    config = tiny()
    return [
        "--config=configs/gs.py:folder",
        f"--config.data.path={image_folder}",
        f"--config.data.data_dir={config.data.data_dir}",
        "--config.data.tile_size=48",
        "--config.batch_size=8",
        "--config.augment.size=32",
        "--config.model.width=4",
        "--config.model.output_stride=8",
        "--config.warmup.epochs=1",
        "--config.gs.epochs=1",
        "--config.log.figure_tiles=2",
        f"--config.compilation_cache={ROOT / '.jax_cache'}",
    ]


def run(*arguments: str, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    """Runs main.py in a process of its own, with code before and after it."""
    code = f"{before}\nimport runpy, sys\nsys.argv = ['main.py', *sys.argv[1:]]\n"
    code += f"try:\n    runpy.run_path('main.py', run_name='__main__')\nfinally:\n    {after or 'pass'}\n"
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def test_the_job_needs_no_tensorflow_torch_or_opencv(flags, tmp_path):
    """The three are made to look as if they were not installed, and none of them is loaded at the end."""
    hidden = """
import importlib.machinery
find_spec = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: (
    None if name in ("tensorflow", "torch", "cv2") else find_spec(name, *rest)
)
"""
    loaded = "print('loaded:', [m for m in ('tensorflow', 'torch', 'cv2') if m in sys.modules])"
    done = run(*flags, f"--workdir={tmp_path}", before=hidden, after=loaded)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 6
    assert any((tmp_path / "tensorboard").iterdir())
    assert "orbax" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.batch_size=0", "config.batch_size must be a whole number of at least 2, not 0"),
        ("--config.data.path=/nowhere", "config.data.path"),
        ("--config.gs.epoch=3", "epoch"),
        ("--config=configs/gs.py:huge", "huge"),
    ],
)
def test_a_mistake_is_answered_before_any_work(flags, tmp_path, flag, words):
    done = run(*flags, flag, f"--workdir={tmp_path / 'run'}")
    assert done.returncode != 0
    assert words in done.stderr.splitlines()[-1] or words in done.stderr
    assert not (tmp_path / "run").exists()
