"""A run goes on wherever there is room: other numbers of processes and devices continue the same steps."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from grass_jax.report.log import read_metrics
from tests.test_sharding import free_address

ROOT = Path(__file__).parents[1]
STEPS = 12  # three epochs of warm-up and one of GS training, 3 steps each
WARMUP = 5e-3  # relative; once found: 0, 5e-7, 3e-6, and at most 1.3e-3 in nine steps


def start(workdir: Path, flags: list[str], processes: int, devices: int) -> list[subprocess.Popen]:
    """Starts main.py in so many processes of so many devices each."""
    options = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": options, "PYTHONPATH": str(ROOT)}
    cluster = [f"--coordinator={free_address()}", f"--processes={processes}"] if processes > 1 else []
    own = [[*cluster, f"--process={number}"] if cluster else [] for number in range(processes)]
    command = [sys.executable, "main.py", *flags, f"--workdir={workdir}"]
    return [subprocess.Popen([*command, *its], cwd=ROOT, env=environment) for its in own]


def kill_after(job: list[subprocess.Popen], log: Path, lines: int) -> None:
    """Kills all processes of a job once its log has so many lines."""
    while not (log.exists() and len(log.read_text().splitlines()) >= lines):
        assert all(process.poll() is None for process in job)
        time.sleep(0.02)
    for process in job:
        process.kill()
    for process in job:
        process.wait()


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes_and_devices(tiny, image_folder, tmp_path):
    flags = [
        "--config=configs/gs.py:folder",
        f"--config.data.path={image_folder}",
        f"--config.data.data_dir={tiny().data.data_dir}",
        "--config.data.tile_size=48",
        "--config.batch_size=8",
        "--config.augment.size=32",
        "--config.model.width=4",
        "--config.model.output_stride=8",
        "--config.warmup.epochs=3",
        "--config.gs.epochs=1",
        "--config.checkpoint.every_epochs=0.3",  # every step
        "--config.log.every=1",
        "--config.log.tensorboard=False",
        "--config.log.figure_tiles=2",
        f"--config.compilation_cache={ROOT / '.jax_cache'}",
    ]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    log = moved / "metrics.jsonl"
    (alone,) = start(whole, flags, processes=1, devices=1)
    kill_after(start(moved, flags, processes=2, devices=2), log, lines=2)
    kill_after(start(moved, flags, processes=1, devices=1), log, lines=5)
    assert [process.wait(600) for process in start(moved, flags, processes=4, devices=1)] == [0] * 4
    assert alone.wait(600) == 0

    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    summary = json.loads((moved / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert (moved / "figures" / "guidance_gs.png").exists()
    one, other = (np.array([record["loss"] for record in read_metrics(folder)]) for folder in (whole, moved))
    print("relative differences of the losses:", np.abs(other / one - 1))
    # Sums over a batch are made in another order on other devices: the first losses differ in the seventh digit. Adam
    # divides by the root of small second moments, so that the differences grow, and a box jumps when its map wavers.
    np.testing.assert_allclose(other[0], one[0], rtol=1e-5)
    np.testing.assert_allclose(other[:9], one[:9], rtol=WARMUP)
    np.testing.assert_allclose(other[9:], one[9:], rtol=0.1)
