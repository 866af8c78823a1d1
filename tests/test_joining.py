"""Processes of a cluster's job join, agree, and fail together; the cluster here is two processes on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from grass_jax import joining
from grass_jax.config import ConfigError
from grass_jax.sharding import agree, in_all, initialize
from tests.test_sharding import free_address

ROOT = Path(__file__).parents[1]

# Each process writes what it has seen, then the second fails alone while the first waits for it.
JOB = """
import json, sys
import jax, numpy as np
from grass_jax.config import ConfigError
from grass_jax.joining import failing_at_once
from grass_jax.data.faults import DataError
from grass_jax.segment.probe import fit_probe
from grass_jax.sharding import agree, in_all, initialize, sum_over_processes

def told(work):
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def open_images():
    if me == 1:
        raise FileNotFoundError("no images here")
    return "opened"

def head(tiles):
    rng = np.random.default_rng(me)  # each has read other pixels
    pairs = [{"image": rng.normal(size=(4, 4, 3)), "mask": np.arange(16).reshape(4, 4) % 2} for _ in range(tiles)]
    return fit_probe(lambda images: images, pairs, 2, l2=1.0)["classifier"]["conv"]["bias"].tolist()

with failing_at_once():
    initialize(seconds=float(sys.argv[2]))
    me = jax.process_index()
    found = {
        "processes": jax.process_count(),
        "same": told(lambda: agree("a", "The configuration")),
        "other": told(lambda: agree("ab"[me], "The configuration")),
        "fails": told(lambda: in_all(open_images)),
        "works": told(lambda: in_all(lambda: me)),
        "unread": told(lambda: in_all(open_images, DataError)),
        "head": told(lambda: head(2 - me)),
        "no head": told(lambda: head(1 - me)),
    }
    with open(sys.argv[1] + str(me), "w") as file:
        json.dump(found, file)
    if me == 1:
        sys.exit("grass_jax: a full disk.")
    sum_over_processes(np.zeros(1, np.int64))
"""


def slurm_task(out: Path, number: int, address: str, *, seconds: int) -> subprocess.Popen:
    """Starts the job as Slurm starts a task of two, both on this machine."""
    environment = os.environ | {
        "SLURM_JOB_ID": "123456",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "JAX_COORDINATOR_PORT": address.rpartition(":")[2],
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
    }
    command = [sys.executable, "-c", JOB, str(out), str(seconds)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_slurm_tasks_join_agree_and_fail_together(tmp_path):
    address = free_address()
    tasks = [slurm_task(tmp_path / "found", number, address, seconds=120) for number in range(2)]
    # without `failing_at_once` each would wait 300 s for the other
    ends = [task.communicate(timeout=200)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [joining.LOST, 1]
    assert "grass_jax: a full disk." in ends[1]
    assert "another process of this job has ended" in ends[0]
    assert "Traceback" not in ends[0]
    assert "Traceback" not in ends[1]
    first, second = (json.loads((tmp_path / f"found{number}").read_text()) for number in range(2))
    assert first["processes"] == second["processes"] == 2
    assert first["same"] is second["same"] is None
    differs = "ConfigError: The configuration of process 1 differs from that of process 0: "
    assert first["other"] == second["other"]
    assert first["other"].startswith(differs)
    assert first["fails"] == "ConfigError: Process 1: no images here"
    assert second["fails"] == "FileNotFoundError: no images here"
    assert (first["works"], second["works"]) == (0, 1)
    assert first["unread"] == "DataError: Process 1: no images here"
    assert first["head"] == second["head"]
    assert len(first["head"]) == 2
    assert first["no head"].startswith("DataError: Process 1: None of the tiles")
    assert second["no head"].startswith("DataError: None of the tiles")


def test_a_slurm_task_without_the_others_ends_with_a_sentence(tmp_path):
    task = slurm_task(tmp_path / "found", 0, free_address(), seconds=2)
    text = task.communicate(timeout=200)[1]
    assert task.returncode == joining.LOST  # a node may be late: to be started again
    assert (
        text.strip()
        .splitlines()[-1]
        .startswith("grass_jax: the other processes of this job have not been met within 2 s: start one process")
    )
    assert "stack trace" not in text


def test_one_process_agrees_with_itself():
    agree("a", "The configuration")
    assert in_all(lambda: 3) == 3
    with pytest.raises(FileNotFoundError):
        in_all(lambda: Path("/nowhere").read_text())


def fails(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: the core halted unexpectedly"), joining.LOST),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes differ"), 1),
        (jax.errors.JaxRuntimeError("FAILED_PRECONDITION: Gloo: connection closed by peer"), joining.LOST),
        (RuntimeError("INTERNAL: a mistake of one's own"), 1),
        (SystemExit("grass_jax: a full disk."), 1),
    ],
)
def test_an_error_of_the_runtime_of_a_job_is_to_be_started_again(monkeypatch, capsys, error, code):
    codes = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(joining.os, "_exit", codes.append)
    monkeypatch.setattr(joining, "LAST_WORDS", 0.0)
    with joining.failing_at_once():
        raise error
    assert codes == [code]
    said = capsys.readouterr().err
    assert ("Traceback" in said) == (not isinstance(error, SystemExit) and "Gloo" not in said)
    assert str(error) in said


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), RuntimeError("Gloo: closed"), SystemExit("a sentence")])
def test_a_process_whose_last_words_cannot_be_written_ends_all_the_same(monkeypatch, unwritable, error):
    codes = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(joining.os, "_exit", codes.append)
    monkeypatch.setattr(joining, "LAST_WORDS", 0.0)
    monkeypatch.setattr(joining.sys, "stderr", unwritable)
    with joining.failing_at_once():
        raise error
    assert codes == [joining.LOST if "Gloo" in str(error) else 1]


def test_what_a_cluster_complains_of_is_one_sentence(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", fails(RuntimeError("Kubernetes API Error: 403\n  no\nright")))
    with pytest.raises(ConfigError, match=r"cannot be found \(Kubernetes API Error: 403 no right\): mend that"):
        initialize()


def test_a_pod_of_an_indexed_job_that_runs_alone_says_so(monkeypatch, caplog):
    monkeypatch.setattr(jax.distributed, "initialize", fails(ValueError("coordinator_address should be defined.")))
    initialize()
    assert not caplog.records
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    initialize()
    assert "pod 3 of a Kubernetes Indexed Job, and it runs alone" in caplog.text


@pytest.mark.parametrize(
    ("environment", "all_seen"),
    [
        ({}, False),
        ({"SLURM_LOCALID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, True),  # one task a node
        ({"SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "3"}, True),
        (
            {"SLURM_LOCALID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "0,1"},
            False,
        ),
        ({"SLURM_LOCALID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}, False),
        (
            {"SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_NODES": "1", "JAX_LOCAL_DEVICE_IDS": "0,1"},
            False,
        ),
    ],
)
def test_a_slurm_task_uses_the_gpus_that_are_its_own(monkeypatch, environment, all_seen):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "CUDA_VISIBLE", "JAX_LOCAL")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    set_to = []
    monkeypatch.setattr(joining.jax.config, "update", lambda *pair: set_to.append(pair))
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    initialize()
    visible = [pair for pair in set_to if pair[0] == "jax_cuda_visible_devices"]
    assert visible == ([("jax_cuda_visible_devices", "all")] if all_seen else [])
    assert ("jax_enable_preemption_service", False) in set_to
