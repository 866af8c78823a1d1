import errno
import json
import logging
import math
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event, SessionLog

from grass_jax.report.appended import AppendedFile
from grass_jax.report.atomic import DiskFullError, replacing
from grass_jax.report.log import MetricsLog, read_metrics, write_json


def write(log, step, loss=1.0, **metrics):
    log.write(step, epoch=1, phase="gs", loss=loss, learning_rate=0.5, images_per_second=None, **metrics)


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def events(workdir):
    """Reads the records of the event files in the order in which TensorBoard does (by name)."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])  # length, its crc, the event, its crc
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def scalars(workdir, tag):
    """The steps and values that TensorBoard shows: where a session starts, it forgets what came from that step on."""
    shown = {}
    for event in events(workdir):
        if event.session_log.status == SessionLog.START:
            shown = {step: value for step, value in shown.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == tag:
                shown[event.step] = value.simple_value
    return shown


def test_a_line_holds_the_step_and_every_metric(tmp_path):
    with MetricsLog(tmp_path / "run", 0, tensorboard=False) as log:
        log.write(
            np.int64(3),
            epoch=1,
            phase="warmup",
            loss=jnp.float32(0.5),
            learning_rate=np.float32(0.25),
            images_per_second=8,
            box_area=0.75,
        )
    assert [json.loads(line) for line in lines(tmp_path / "run")] == [
        {
            "step": 3,
            "epoch": 1,
            "phase": "warmup",
            "loss": 0.5,
            "learning_rate": 0.25,
            "images_per_second": 8.0,
            "box_area": 0.75,
        }
    ]


def test_values_that_are_not_finite_become_null(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        write(log, 1, loss=math.nan, gradient_norm=jnp.inf, box_area=0.5)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(lines(tmp_path)[0], parse_constant=refuse)
    assert (record["loss"], record["gradient_norm"], record["box_area"]) == (None, None, 0.5)
    assert scalars(tmp_path, "loss") == {}
    assert scalars(tmp_path, "box_area") == {1: 0.5}


def test_resuming_does_each_step_once(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        for step in range(1, 7):
            write(log, step, loss=step)
    with MetricsLog(tmp_path, 4) as log:
        assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]
        for step in range(5, 9):
            write(log, step, loss=10 * step)
    expected = {1: 1, 2: 2, 3: 3, 4: 4, 5: 50, 6: 60, 7: 70, 8: 80}
    assert {record["step"]: record["loss"] for record in read_metrics(tmp_path)} == expected
    assert len(lines(tmp_path)) == len(expected)
    assert scalars(tmp_path, "loss") == expected


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "phase": "\xc3'.encode("latin-1"), "3", "[1]", "{}"])
def test_a_torn_last_line_is_ignored_and_removed(tmp_path, torn):
    with MetricsLog(tmp_path, 0, tensorboard=False) as log:
        write(log, 1)
        write(log, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn if isinstance(torn, bytes) else torn.encode())
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
    with MetricsLog(tmp_path, 2, tensorboard=False) as log:
        write(log, 3)
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_step_that_stands_twice_is_read_once_the_later_counts(tmp_path):
    for loss in (1.0, 2.0):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 5, "phase": "gs", "loss": loss}) + "\n")
    assert read_metrics(tmp_path) == [{"step": 5, "phase": "gs", "loss": 2.0}]
    MetricsLog(tmp_path, 5, tensorboard=False).close()
    assert len(lines(tmp_path)) == 1


def test_a_killed_process_leaves_every_written_line(tmp_path):
    code = """if True:
        import os, signal, sys
        from grass_jax.report.log import MetricsLog
        log = MetricsLog(sys.argv[1], 0, tensorboard=False)
        for step in range(1, 4):
            log.write(step, epoch=1, phase="gs", loss=1, learning_rate=1, images_per_second=1)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_log_that_is_off_writes_nothing(tmp_path):
    with MetricsLog(tmp_path / "run", 0, enabled=False) as log:
        write(log, 1)
    assert not (tmp_path / "run").exists()
    assert read_metrics(tmp_path / "run") == []


def test_write_json_takes_what_a_config_and_a_summary_hold(tmp_path):
    content = {
        "config": ConfigDict({"phases": ("warmup", "gs"), "augment": {"area": (0.08, 1.0)}}),
        "loss": np.float32(math.nan),
        "losses": [math.inf, jnp.float32(0.5)],
        "boxes": np.arange(4).reshape(2, 2),
        "half": jnp.ones(2, jnp.bfloat16),
        "path": tmp_path,
        "finished": np.bool_(True),
        "steps": 3,
    }
    write_json(tmp_path / "new" / "summary.json", content)
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == {
        "config": {"phases": ["warmup", "gs"], "augment": {"area": [0.08, 1.0]}},
        "loss": None,
        "losses": [None, 0.5],
        "boxes": [[0, 1], [2, 3]],
        "half": [1.0, 1.0],
        "path": str(tmp_path),
        "finished": True,
        "steps": 3,
    }


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


class Disk:
    """Room for so many bytes, which the files of a log share: what does not fit is written in part, then not at all."""

    def __init__(self, room):
        self.room = room

    def opened(self, path):
        disk, file = self, path.open("ab", buffering=0)

        class Opened:
            def write(self, data):
                if not disk.room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                written = file.write(data[: disk.room])
                disk.room -= written
                return written

            def close(self):
                file.close()

        return Opened()


@pytest.fixture
def disk(monkeypatch):
    disk = Disk(room=10**9)
    monkeypatch.setattr("grass_jax.report.appended._opened", disk.opened)
    return disk


def test_a_full_disk_costs_no_line_and_is_said_once(tmp_path, disk, caplog):
    caplog.set_level(logging.INFO, "absl")
    with MetricsLog(tmp_path, 0, tensorboard=False) as log:
        write(log, 1)
        disk.room = 30  # the next line is torn
        for step in range(2, 6):
            write(log, step)
        assert len(lines(tmp_path)[-1]) == 30
        assert [record["step"] for record in read_metrics(tmp_path)] == [1]
        disk.room = 10**9
        write(log, 6)
        assert [json.loads(line)["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert ["cannot be written (No space left on device)" in text for text in caplog.messages] == [True, False]
    assert caplog.messages[1].endswith("metrics.jsonl is written again.")


def test_what_waits_for_a_full_disk_is_bounded_and_what_is_lost_is_said(tmp_path, disk, caplog):
    caplog.set_level(logging.INFO, "absl")
    disk.room = 3
    file = AppendedFile(tmp_path / "lines", most_waiting=2)
    for line in (b"first\n", b"second\n", b"third\n", b"fourth\n"):
        file.write(line)
        file.flush()
    disk.room = 10**9
    file.close()
    assert (tmp_path / "lines").read_bytes() == b"first\nfourth\n"  # the oldest go but for the one that has begun
    assert caplog.messages[1].endswith("is written again but for 2 records.")


def test_a_run_that_ends_on_a_full_disk_says_what_its_log_lacks(tmp_path, disk, caplog):
    log = MetricsLog(tmp_path, 0, tensorboard=False)
    write(log, 1)
    disk.room = 10
    write(log, 2)
    write(log, 3)
    log.close()
    assert caplog.messages[-1].endswith("metrics.jsonl could not be written to the end: it lacks 2 records.")
    disk.room = 10**9
    with MetricsLog(tmp_path, 1, tensorboard=False) as log:  # the torn line is gone
        write(log, 2)
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_log_that_cannot_be_shortened_goes_on_below_a_torn_line(tmp_path, monkeypatch):
    with MetricsLog(tmp_path, 0, tensorboard=False) as log:
        for step in (1, 2, 3):
            write(log, step)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo')

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        log = MetricsLog(tmp_path, 2, tensorboard=False)
    write(log, 3, loss=30.0)
    log.close()
    assert [(record["step"], record["loss"]) for record in read_metrics(tmp_path)] == [(1, 1), (2, 1), (3, 30)]


def test_tensorboard_outlives_a_full_disk(tmp_path, disk):
    """Its writing thread died of it, and the training then waited for the thread for ever."""
    with MetricsLog(tmp_path, 0) as log:
        write(log, 1)
        disk.room = 0
        for step in range(2, 40):  # more than its queue holds
            write(log, step, loss=step)
        disk.room = 10**9
    assert scalars(tmp_path, "loss") == {step: step for step in range(1, 40)}


def test_a_file_that_does_not_fit_is_one_sentence(tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFullError) as caught:
        write_json(tmp_path / "summary.json", {})
    assert str(caught.value) == (
        f"{tmp_path}/summary.json cannot be written, as its disk is full: make room and give the same command again."
    )
    assert caught.value.errno == errno.ENOSPC
