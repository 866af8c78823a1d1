"""`python main.py` as a person starts it."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from grass_jax.report.log import read_metrics
from grass_jax.state import load_encoder
from grass_jax.stopping import EXIT_CODES, Signals

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


def start(*arguments: str, devices: int = 1, stderr: int | None = None) -> subprocess.Popen:
    """Starts main.py in a process of its own."""
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "main.py", *arguments], cwd=ROOT, env=environment, stderr=stderr, text=True
    )


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


def test_a_run_under_nohup_ignores_the_end_of_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def logged(workdir: Path) -> int:
    """Lines in the record of a run."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def half_written(workdir: Path) -> list[str]:
    """Names of the checkpoints that are being written."""
    return [path.name for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")]


def wait_until(process: subprocess.Popen, happens: Callable[[], Any]) -> None:
    """Waits for something that must happen while a process runs."""
    while not happens():
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_as_if_it_had_not_been(flags, tmp_path):
    """In turn: some time after the start, after some steps more, and inside a save; which of them the seed decides."""
    length = ["--config.warmup.epochs=12", "--config.gs.epochs=38", "--config.checkpoint.every_epochs=0.5"]
    flags = [*flags, *length, "--config.log.every=1", "--config.log.tensorboard=False"]
    assert start(*flags, f"--workdir={tmp_path / 'whole'}").wait(600) == 0
    rng, workdir = random.Random(0), tmp_path / "killed"
    for number in range(20):
        process, began, before = start(*flags, f"--workdir={workdir}"), time.monotonic(), logged(workdir)
        kind = ("time", "steps", "save", "steps", "save")[number % 5]
        if kind == "time":
            moment = began + rng.uniform(0.2, 12)
            wait_until(process, lambda moment=moment: time.monotonic() > moment)
        else:
            more = before + rng.randint(1, 4)
            wait_until(process, lambda more=more: logged(workdir) >= more)
            if kind == "save":
                wait_until(process, lambda: half_written(workdir))
            time.sleep(rng.uniform(0, 0.02))
        assert process.poll() is None
        process.kill()
        process.wait()
        steps = sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())
        print(
            f"kill {number + 1:2}: {kind:5} {time.monotonic() - began:5.1f} s after the start, {logged(workdir):3} of "
            f"150 steps logged, newest checkpoint {steps[-1] if steps else 0:3}, being written {half_written(workdir)}"
        )
    assert start(*flags, f"--workdir={workdir}").wait(600) == 0
    assert not (workdir / "damaged_checkpoints").exists()
    found = [
        json.loads((tmp_path / name / "checkpoints" / "150" / "_CHECKPOINT_METADATA").read_text())
        for name in ("whole", "killed")
    ]
    assert found[0]["custom_metadata"]["fingerprints"] == found[1]["custom_metadata"]["fingerprints"]
    whole, killed = (load_encoder(tmp_path / name).variables for name in ("whole", "killed"))
    for expected, actual in zip(jax.tree.leaves(whole), jax.tree.leaves(killed), strict=True):
        np.testing.assert_array_equal(actual, expected)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 151))


@pytest.mark.slow
@pytest.mark.parametrize("signum", list(EXIT_CODES))
def test_a_signal_saves_and_the_same_command_goes_on(flags, tmp_path, signum):
    flags = [*flags, "--config.log.every=1", "--config.gs.epochs=100", f"--workdir={tmp_path}"]
    process = start(*flags, stderr=subprocess.PIPE)
    wait_until(process, lambda: logged(tmp_path) >= 5)
    process.send_signal(signum)
    said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == EXIT_CODES[signum]
    step = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    name = signal.Signals(signum).name
    assert f"{name}: saving after this step and stopping; a second one stops at once." in said
    assert said[-1] == f"grass_jax: stopped by {name} after step {step}, which is saved; the same command goes on."
    assert logged(tmp_path) == step
    assert not any("Traceback" in line for line in said)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(flags, tmp_path):
    flags = [*flags, "--config.log.every=1", "--config.gs.epochs=500", f"--workdir={tmp_path}"]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        together = [f"--coordinator=localhost:{probe.getsockname()[1]}", "--processes=2"]
    pair = [start(*flags, *together, f"--process={n}", stderr=subprocess.PIPE) for n in range(2)]
    wait_until(pair[0], lambda: logged(tmp_path) >= 5)
    pair[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [75, 75], said
    step = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    for text in said:
        assert f"grass_jax: stopped by SIGTERM after step {step}, which is saved; the same command goes on." in text
    assert logged(tmp_path) == step
    assert (tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").exists()


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
