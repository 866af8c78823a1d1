"""Processes that read: they end with the run, and the run outlives them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grass_jax.data.faults import DataError
from grass_jax.data.source import open_tiles
from grass_jax.data.workers import DEATHS, surviving

DEATH = "Worker process was terminated unexpectedly with exit code -9. Search the logs"


def dying(deaths, stop, opened, error=DEATH):
    """Opens 0, 1, ... `stop` - 1 whose process dies before it gives the numbers `deaths`; notes what is still open."""

    def open_at(step):
        def numbers():
            opened.append(step)
            try:
                for number in range(step, stop):
                    if number in deaths:
                        deaths.remove(number)
                        raise RuntimeError(error)
                    yield number
            finally:
                opened.append("closed")

        return numbers()

    return open_at


def test_reading_goes_on_where_a_process_has_died(caplog):
    opened = []
    assert list(surviving(dying([4, 6, 6, 7], 9, opened), 2)) == list(range(2, 9))
    assert opened == [2, "closed", 4, "closed", 6, "closed", 6, "closed", 7, "closed"]
    assert caplog.text.count("A reading process has ended (SIGKILL)") == 4


def test_processes_that_die_again_and_again_end_the_run():
    opened = []
    found = surviving(dying([4] * DEATHS, 9, opened), 3)
    assert next(found) == 3
    with pytest.raises(DataError, match=rf"ended \(SIGKILL\) {DEATHS} times .*: lower config.data.workers"):
        next(found)
    assert opened.count("closed") == DEATHS
    with pytest.raises(RuntimeError, match="another"):
        list(surviving(dying([4], 9, opened, error="another error"), 3))


def job(tmp_path, body):
    """A program that reads real records of 45 tiles in two processes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        y, x = np.mgrid[:40, :40]
        Image.fromarray(np.stack([y, x, np.full_like(y, number)], -1).astype(np.uint8)).save(folder / f"{number}.png")
    place = {"path": str(folder), "tile_size": 16, "data_dir": str(tmp_path / "tfds")}
    source = open_tiles("image_folder", **place)
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent("""
        import hashlib, multiprocessing, os, signal, sys, time
        from absl import app
        from grass_jax.data.faults import DataError, Replaced
        from grass_jax.data.loader import batches
        from grass_jax.data.source import open_tiles

        def workers():
            return sorted(p.pid for p in multiprocessing.active_children())

        def digest(batch):
            return batch["index"].tolist(), hashlib.sha256(batch["image"].tobytes()).hexdigest()

        def main(_):
            source = open_tiles("image_folder", **PLACE)
            options = {"batch_size": 8, "seed": 2, "start": 0, "stop": 25}
        BODY

        if __name__ == "__main__":
            app.run(main)
        """)
        .replace("PLACE", repr(place))
        .replace("BODY", textwrap.indent(textwrap.dedent(body), "    "))
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return source, {"args": [sys.executable, str(script)], "env": environment, "text": True}


def test_a_worker_that_is_killed_changes_no_batch_and_leaves_nothing_behind(tmp_path):
    _, program = job(
        tmp_path,
        """
        options["stop"] = 45  # the processes read a dozen batches ahead: a kill shows when these are used up
        expected = [digest(batch) for batch in batches(source, **options)]
        found = []
        for step, batch in enumerate(batches(source, **options, workers=2)):
            found.append(digest(batch))
            if step == 2:
                for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # as to a whole group: the run decides
                    os.kill(workers()[0], signum)
            if step in (5, 26):
                os.kill(workers()[step % 2], signal.SIGKILL)
        print(found == expected, len(found), workers())
        """,
    )
    done = subprocess.run(**program, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True 45 []"]
    assert done.stderr.count("A reading process has ended") == done.stderr.count("(SIGKILL)") == 2
    assert "Traceback" not in done.stderr


def test_damage_on_disk_is_the_same_and_counted_in_worker_processes(tmp_path):
    source, program = job(
        tmp_path,
        """
        for count in (0, 2):
            replaced = Replaced()
            rows = [digest(batch) for batch in batches(source, **options, replaced=replaced, workers=count)]
            print(replaced.total, hashlib.sha256(repr(rows).encode()).hexdigest())
        """,
    )
    (record_file,) = Path(source.name).glob("*.array_record*")
    content = bytearray(record_file.read_bytes())
    picture = content.index(b"IDAT", len(content) // 20)
    content[picture : picture + 4] = b"torn"
    record_file.write_bytes(content)
    done = subprocess.run(**program, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    alone, in_workers = done.stdout.splitlines()
    assert alone == in_workers
    assert int(alone.split()[0]) >= 4  # once an epoch at most, of five


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    _, program = job(
        tmp_path,
        """
        for batch in batches(source, **options, workers=2):
            print(*workers(), flush=True)
            time.sleep(600)
        """,
    )
    with subprocess.Popen(**program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        workers = [int(number) for number in run.stdout.readline().split()]
        assert len(workers) == 2
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(worker) for worker in workers)


def alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # one whose new parent has not yet taken its end
