"""`python main.py` as a person starts it."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from grass_jax.report.log import read_metrics
from grass_jax.state import load_encoder

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


def start(*arguments: str, devices: int = 1) -> subprocess.Popen:
    """Starts main.py in a process of its own."""
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "main.py", *arguments], cwd=ROOT, env=environment)


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
        ("--config.data.path=/nowhere", "config.data.path must be a folder of images"),
        ("--config.gs.epoch=3", "no key 'epoch'"),
        ("--config=configs/none.py", "No such file"),
        ("--processes=2", "--coordinator"),
        ("config.batch_size=4", "--config.KEY=VALUE"),
        ("--config=configs/gs.py:huge", "huge"),
    ],
)
def test_a_mistake_is_answered_before_any_work(flags, tmp_path, flag, words):
    done = run(*flags, flag, f"--workdir={tmp_path / 'run'}")
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("grass_jax: ")
    assert words in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(flags, tmp_path):
    flags = [*flags, "--config.log.every=1", "--config.gs.epochs=4", "--config.checkpoint.every_epochs=0.5"]
    assert start(*flags, f"--workdir={tmp_path / 'whole'}").wait(600) == 0
    for lines in (2, 8, 13):  # steps in the log when the kill comes
        killed = start(*flags, f"--workdir={tmp_path / 'killed'}")
        log = tmp_path / "killed" / "metrics.jsonl"
        while killed.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= lines):
            time.sleep(0.01)
        assert killed.poll() is None
        killed.kill()
        killed.wait()
    assert start(*flags, f"--workdir={tmp_path / 'killed'}").wait(600) == 0
    whole, killed = (load_encoder(tmp_path / name).variables for name in ("whole", "killed"))
    for expected, actual in zip(jax.tree.leaves(whole), jax.tree.leaves(killed), strict=True):
        np.testing.assert_array_equal(actual, expected)
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 16))


@pytest.mark.slow
def test_two_processes_do_the_main_job_as_one_does(flags, tmp_path):
    flags = [*flags, "--config.log.every=1"]
    assert start(*flags, f"--workdir={tmp_path / 'one'}").wait(600) == 0
    for session in range(2):  # the second goes on from the first: one epoch more
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            coordinator = f"--coordinator=localhost:{probe.getsockname()[1]}"
        more = [f"--config.gs.epochs={session + 1}", f"--workdir={tmp_path / 'two'}", coordinator, "--processes=2"]
        pair = [start(*flags, *more, f"--process={process}", devices=2) for process in range(2)]
        assert [process.wait(600) for process in pair] == [0, 0]
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [record["step"] for record in two] == list(range(1, 10))
    np.testing.assert_allclose([r["loss"] for r in two[:3]], [r["loss"] for r in one[:3]], rtol=1e-3)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
    assert (tmp_path / "two" / "figures" / "guidance_gs.png").exists()
    assert load_encoder(tmp_path / "two", step=9).variables["params"]["conv1"]["kernel"].shape == (7, 7, 3, 4)


@pytest.mark.slow
def test_two_processes_fine_tune_score_and_map_as_one_does(tiny_segment, labelled_folder, tmp_path):
    """With validation in between, a linear head after it, and two maps of which each process makes one."""
    config = tiny_segment()
    data = [
        f"--config.data.path={labelled_folder}",
        f"--config.data.data_dir={config.data.data_dir}",
        "--config.data.classes=('grass','stone','water')",
        r"--config.data.group=(\w+)_\d",
        "--config.data.test=south",
        "--config.data.tile_size=48",
        "--config.batch_size=8",
        "--config.augment.size=48",
        "--config.model.width=4",
        "--config.head.channels=8",
        "--config.finetune.steps=6",
        "--config.labels=24",
        "--config.evaluate.boundary=1",
        f"--config.compilation_cache={ROOT / '.jax_cache'}",
    ]

    def job(name, *flags, processes):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"--coordinator=localhost:{probe.getsockname()[1]}"
        more = [address, f"--processes={processes}"] if processes > 1 else []
        own = [[*more, f"--process={i}"] if processes > 1 else [] for i in range(processes)]
        running = [start(*flags, *its, f"--workdir={tmp_path / name}", devices=2) for its in own]
        assert [process.wait(600) for process in running] == [0] * processes
        return tmp_path / name

    def summary(folder):
        return json.loads((folder / "summary.json").read_text())

    for head in ("fcn", "linear"):
        flags = ["--config=configs/segment.py:folder", *data, f"--config.head.name={head}"]
        one, two = (job(f"{head}{n}", *flags, processes=n) for n in (1, 2))
        assert summary(two)["test"]["pixels"] == summary(one)["test"]["pixels"]
        assert summary(two)["test"]["overall_accuracy"] == pytest.approx(
            summary(one)["test"]["overall_accuracy"], abs=0.02
        )
    mapped = job(
        "maps",
        *("--config=configs/predict.py", f"--config.model={two}", "--config.quicklook=False"),
        f"--config.input={labelled_folder / 'images' / 'south_*.png'}",
        processes=2,
    )
    assert sorted(path.name for path in mapped.glob("*.tif")) == ["south_0.tif", "south_1.tif"]
