"""Storage that does not answer while a checkpoint is saved or read: an error of it is neither an end nor damage."""

import errno
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from grass_jax.buckets import of_storage
from grass_jax.checkpoints import disk_space, reading, resume, saving, together
from grass_jax.checkpoints.disk_space import obstacle
from grass_jax.checkpoints.reading import checked
from grass_jax.checkpoints.saving import Checkpoints, ResumeError, SaveError
from grass_jax.checkpoints.together import ElsewhereError, failing_together
from grass_jax.report.atomic import DiskFullError
from grass_jax.sharding import make_mesh, replicated

HttpError = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})  # as the library's: no OSError
STALE = OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def raising(error: BaseException, times: int = 10**9, then: Any = None) -> Any:
    """A function that raises an error some times, and then does what another one does; `calls` counts."""

    def function(*args, **options):
        function.calls += 1
        if function.calls <= times:
            raise error
        return then(*args, **options)

    function.calls = 0
    return function


def state_of(step: int) -> dict[str, Any]:
    return jax.device_put({"weights": np.full((3, 5), step, np.float32)}, replicated(make_mesh()))


def go_on(workdir: Path) -> tuple[int, float]:
    """The step with which a new session of the run begins, and what its state holds."""
    with Checkpoints(workdir) as checkpoints:
        step, state = checkpoints.go_on(lambda: state_of(0), replicated(make_mesh()))
    return step, float(state["weights"][0, 0])


def steps_in(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_what_is_an_error_of_the_storage():
    Derived = type("Derived", (type("ClientError", (Exception,), {"__module__": "botocore.exceptions"}),), {})
    assert all(of_storage(error) for error in (STALE, TimeoutError(), HttpError(), Derived()))
    assert not any(of_storage(error) for error in (TypeError(), ValueError(), KeyError(), RuntimeError()))


def test_a_disk_that_does_not_answer_is_an_obstacle_and_a_mistake_is_none(tmp_path, monkeypatch):
    assert obstacle(tmp_path / "not" / "yet", 1) == ""
    assert "it takes 1000000000000.0" in obstacle(tmp_path, 10**18)
    with monkeypatch.context() as patch:
        patch.setattr(disk_space.shutil, "disk_usage", raising(STALE))
        assert obstacle(tmp_path, 1) == f"{tmp_path} does not answer: [Errno 116] Stale file handle"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", raising(OSError(errno.EIO, "Input/output error")))
        assert "does not answer: [Errno 5]" in obstacle(tmp_path, 1)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", raising(TypeError()))
    with pytest.raises(TypeError):
        obstacle(tmp_path, 1)


def test_a_bucket_that_does_not_answer_is_an_obstacle():
    class Bucket(type(Path())):
        exists = raising(HttpError("503"))

        def __fspath__(self):
            return "gs://bucket/run"

    assert obstacle(Bucket("bucket"), 1).endswith("does not answer: 503")


@pytest.mark.parametrize("error", [STALE, HttpError("503")])
def test_training_goes_on_without_a_checkpoint_that_the_storage_refuses(tmp_path, monkeypatch, caplog, error):
    """Neither the save nor what tidies up after it ends the run, and what was there before is known still."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_surely(1, state_of(1))
        with monkeypatch.context() as patch:
            for name in ("save", "reload"):
                patch.setattr(ocp.CheckpointManager, name, raising(error))
            patch.setattr(type(checkpoints._folder), "iterdir", raising(error))
            checkpoints.save(2, state_of(2))
            assert checkpoints.latest == 1
        with monkeypatch.context() as patch:
            patch.setattr(disk_space.shutil, "disk_usage", raising(STALE))
            checkpoints.save(3, state_of(3))
        assert steps_in(tmp_path) == ["1"]
        checkpoints.save_surely(4, state_of(4))
    assert f"step 2 could not be saved ({error})" in caplog.text
    assert go_on(tmp_path) == (4, 4.0)


def test_storage_that_fails_in_the_background_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_surely(1, state_of(1))
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "_finalize_checkpoint", raising(HttpError("503")))
            patch.setattr(ocp.CheckpointManager, "reload", raising(HttpError("503")))
            checkpoints.save(2, state_of(2))
            checkpoints.wait()
        assert checkpoints.latest == 1
        checkpoints.save_surely(3, state_of(3))
        assert checkpoints.latest == 3


@pytest.mark.parametrize(
    ("others", "own", "raised"),
    [
        ([False, True], None, ElsewhereError),  # another fails while this one waits
        ([False, False, True], None, ElsewhereError),  # or after it has waited for the last time
        ([False, False, False], None, None),
        ([False, False, True], HttpError("503"), HttpError),  # its answer to those who wait
    ],
)
def test_processes_that_wait_for_each_other_fail_together(monkeypatch, others, own, raised):
    """Each asks as often as the others do, whoever fails where."""
    asked: list[bool] = []

    def anywhere(happened):
        asked.append(happened)
        return happened or others[len(asked) - 1]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(together, "anywhere", anywhere)
    wait = multihost_utils.sync_global_devices
    with pytest.raises(raised) if raised else nullcontext(), failing_together():
        multihost_utils.sync_global_devices("before")
        multihost_utils.sync_global_devices("after")
        if own:
            raise own
    assert asked == [False] * (len(others) - 1) + [own is not None]
    assert multihost_utils.sync_global_devices is wait


@pytest.fixture
def second(monkeypatch) -> list[str]:
    """This process is the second of two; the list is what they have been asked to agree on."""
    agreed: list[str] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(together, "agree", lambda digest, _: agreed.append(digest))
    monkeypatch.setattr(together, "anywhere", bool)
    return agreed


def test_a_checkpoint_that_another_host_does_not_see_yet_is_waited_for(second, tmp_path, monkeypatch):
    """NFS shows a folder as it was before the last checkpoints were named, and an older one was deleted."""
    seen, waited = [[1, 2], [1, 2], [2, 3], [2, 3, 4]], []
    manager = SimpleNamespace(all_steps=lambda: seen[0], reload=lambda: seen.pop(0))
    monkeypatch.setattr(together, "read_by_first", lambda _: [2, 3, 4])
    monkeypatch.setattr(together, "refuse_other_folders", lambda workdir: second.append(workdir))
    together.see_alike(manager, tmp_path, sleep=waited.append)
    assert (seen, waited, second) == ([[2, 3, 4]], [1, 1, 1], [tmp_path])
    together.see_alike(manager, tmp_path, sleep=waited.append)
    assert len(waited) == 3
    manager.all_steps, manager.reload = lambda: [1], raising(STALE)
    together.see_alike(manager, tmp_path, sleep=waited.append)
    assert (len(waited), second[2:]) == (3 + together.STALE_SECONDS, ["[1]"])


def test_a_folder_is_shared_where_the_mark_of_the_first_is_seen(second, tmp_path, monkeypatch):
    waited: list[float] = []

    def sleep(seconds):
        waited.append(seconds)
        (tmp_path / "mark").touch() if len(waited) == 2 else None

    monkeypatch.setattr(together, "read_by_first", lambda _: "mark")
    together.refuse_other_folders(tmp_path, sleep=sleep)
    assert (waited, second) == ([1, 1], ["True"])
    together.refuse_other_folders(tmp_path / "own", sleep=waited.append)
    assert second == ["True", "False"]
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    monkeypatch.setattr(together, "read_by_first", lambda read: read())
    together.refuse_other_folders(tmp_path)
    assert second[2:] == ["True"]
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]
    monkeypatch.setattr(Path, "write_bytes", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(DiskFullError, match=r"shared_by_all_\w+ cannot be written, as its disk is full: make room"):
        together.refuse_other_folders(tmp_path)


def test_the_first_process_says_which_checkpoint_is_the_best_and_what_the_run_began_with(tmp_path, monkeypatch):
    """The files of a score may not be seen by another host yet, and each would go on from a checkpoint of its own."""
    with Checkpoints(tmp_path, best="score") as checkpoints:
        checkpoints.save_surely(1, state_of(1), {"score": 0.5})
        monkeypatch.setattr(saving, "read_by_first", lambda _: [[0.9, 4], [0.5, 1]])
        assert checkpoints.best_step() == 4
    begun = {"phases": ["gs"], "gs": {"steps": 2}}
    data = {"tiles": 8, "batch_size": 2}
    monkeypatch.setattr(resume, "read_by_first", lambda _: [begun, data])
    resume.refuse_other_run(tmp_path, begun, data, steps_per_epoch=4, done=1)
    with pytest.raises(ResumeError, match=r"another configuration \(gs\.steps"):
        resume.refuse_other_run(tmp_path, {**begun, "gs": {"steps": 1}}, data, steps_per_epoch=4, done=1)


TWO = """
import sys
import numpy as np, jax
from orbax.checkpoint import AsyncCheckpointer, CheckpointManager
from grass_jax.checkpoints import reading
from grass_jax.checkpoints.manager import Manager
from grass_jax.checkpoints.saving import Checkpoints
from grass_jax.sharding import initialize, make_mesh, replicated

def fail_once(owner, name, number):
    real, left = getattr(owner, name), [jax.process_index() == number]
    def function(*args, **options):
        if left and left.pop():
            raise OSError(116, "Stale file handle")
        return real(*args, **options)
    setattr(owner, name, function)

workdir, port, process = sys.argv[1:]
initialize(f"localhost:{port}", 2, int(process))
reading.READ_AGAIN = (0.1,)
everywhere = replicated(make_mesh())
state = lambda n: jax.make_array_from_callback((2,), everywhere, lambda _: np.full(2, n, np.float32))
with Checkpoints(workdir) as checkpoints:
    fail_once(AsyncCheckpointer, "_prepare_destination_async", 0)  # between two waits of the others
    checkpoints.save(1, {"w": state(1)})
    checkpoints.save(2, {"w": state(2)})
    checkpoints.wait()
    fail_once(CheckpointManager, "restore", 1)
    step, found = checkpoints.go_on(lambda: {"w": np.zeros(2, np.float32)}, everywhere)
print("found", step, float(found["w"].addressable_data(0)[0]), flush=True)

load, stale = Manager._load_checkpoint_infos, [2] * 2 * jax.process_index()
def load_stale(self, skip_metadata_read=False):
    return [info for info in load(self, skip_metadata_read) if [info.step] != stale[:1] or not stale.pop()]
Manager._load_checkpoint_infos = load_stale
with Checkpoints(workdir) as checkpoints:
    print("seen", checkpoints.latest, len(stale), flush=True)
"""


@pytest.mark.slow
def test_two_processes_outlive_storage_that_fails_in_one_of_them(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    where: dict[str, Any] = {"cwd": Path(__file__).parents[2], "stdout": subprocess.PIPE, "text": True}
    where["env"] = os.environ | {"PYTHONPATH": str(where["cwd"]), "XLA_FLAGS": ""}
    command = [sys.executable, "-c", TWO, str(tmp_path), port]
    pair = [subprocess.Popen([*command, str(process)], **where) for process in range(2)]
    said = [process.communicate(timeout=240)[0] for process in pair]
    assert ["found 2 2.0\n" in text and "seen 2 0\n" in text for text in said] == [True, True], said
    assert not list(tmp_path.glob("shared*"))


def test_the_last_state_is_saved_when_all_processes_say_so(tmp_path, monkeypatch):
    """The fourth question, after those on saving and on waiting, is whether it is there: here another one lacks it."""
    others = [False] * 3 + [True] + [False] * 99
    monkeypatch.setattr(saving, "anywhere", lambda happened: others.pop(0) or happened)
    slept: list[float] = []
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_surely(1, state_of(1), pause=7, sleep=slept.append)
    assert slept == [7]
    others[:] = [True] * 99
    with pytest.raises(SaveError, match="step 2 could not be saved"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_surely(2, state_of(2), sleep=slept.append)


@pytest.fixture
def waited(monkeypatch) -> list[float]:
    """The seconds for which a reader would have waited; in tests it does not."""
    seconds: list[float] = []
    monkeypatch.setattr(reading, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture
def recorded(tmp_path) -> Path:
    """The folder of a step that holds its record alone."""
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{}")
    return tmp_path


TENSORSTORE = 'Error opening "cast" driver: Error reading local file "/run/12/d/7c": Failed to read from file'


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (STALE, 3),
        (HttpError("503"), 3),
        (ValueError(f"UNKNOWN: {TENSORSTORE}: Input/output error [os_error_code='5']"), 3),
        (ValueError(f"ABORTED: {TENSORSTORE}: Stale file handle"), 3),
        (ValueError('DATA_LOSS: Error opening "cast" driver: Error decoding manifest'), 1),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 1),
        (KeyError("weights"), 1),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_the_storage_has_not_given_is_read_again_and_damage_is_not(recorded, waited, error, tries):
    read = raising(error, 2, lambda: {"a": 1})
    assert checked(recorded, read)[0] == ({"a": 1} if tries == 3 else None)
    assert read.calls == tries
    assert [seconds for seconds in waited if seconds >= 1] == list(reading.READ_AGAIN)[: tries - 1]
    found, why = checked(recorded, raising(error))
    assert (found, "\n" in why, bool(why)) == (None, False, True)


def test_the_record_of_a_checkpoint_is_read_again_too(recorded, waited, monkeypatch):
    monkeypatch.setattr(Path, "read_text", raising(STALE, 2, Path.read_text))
    assert checked(recorded, lambda: {"a": 1}) == ({"a": 1}, "")


def test_no_process_begins_to_read_before_all_know_the_record(recorded, waited):
    """Who begins waits for the others in there."""
    read, others = raising(STALE, 0, lambda: {"a": 1}), [True, True, False, False]
    assert checked(recorded, read, lambda happened: others.pop(0) or happened) == ({"a": 1}, "")
    assert (read.calls, others) == (1, [])
    others = [True, False]
    assert checked(recorded, read, lambda happened: others.pop(0)) == (None, "another process cannot read it")
    assert read.calls == 1


def test_a_sound_checkpoint_stays_where_a_read_fails_for_a_moment(tmp_path, waited, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step))
    restore = raising(OSError(errno.EIO, "Input/output error"), 2, ocp.CheckpointManager.restore)
    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    assert go_on(tmp_path) == (2, 2.0)
    assert restore.calls == 3
    assert steps_in(tmp_path) == ["1", "2"]
    assert not (tmp_path / saving.ASIDE).exists()
