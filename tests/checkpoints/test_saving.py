"""Checkpoints that are damaged, of another structure, or cannot be written; who may resume."""

import errno
import json
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from grass_jax import sharding
from grass_jax.checkpoints import disk_space
from grass_jax.checkpoints import saving as checkpoint
from grass_jax.checkpoints.fingerprint import differing, inspect
from grass_jax.checkpoints.reading import DamagedError, cause, restore_part
from grass_jax.checkpoints.resume import agree_on_data, changed, refuse_other_run, run_config
from grass_jax.checkpoints.saving import Checkpoints, ResumeError, SaveError
from grass_jax.config import ConfigError
from grass_jax.sharding import make_mesh, replicated, split_by_tile

# a reader of tensorstore that is given up may speak after its test
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_of(step: int) -> dict[str, Any]:
    """A small state of float32, bfloat16 and whole numbers, other at every step."""
    rng = np.random.default_rng(step)
    weights = jnp.asarray(rng.normal(size=(64, 48)), jnp.float32)
    small = jnp.asarray(rng.normal(size=7), jnp.bfloat16)
    state = {"step": jnp.int32(step), "params": {"weights": weights, "small": small}, "opt_state": (weights + 1, {})}
    return jax.device_put(state, replicated(make_mesh()))


def go_on(workdir: Path) -> tuple[int, Any]:
    """What a new session of the run begins with."""
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.go_on(lambda: state_of(0), replicated(make_mesh()))


def equal(one: Any, other: Any) -> bool:
    """Whether two trees hold the same bits."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def arrays_of(workdir: Path, step: int) -> Path:
    """The file of a checkpoint that holds its numbers."""
    files = (path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip(path: Path, place: float = 0.6) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


def said(caplog) -> list[str]:
    """What the project itself has logged; orbax says much."""
    return [r.getMessage() for r in caplog.records if Path(r.pathname) == Path(checkpoint.__file__)]


def rewrite(folder: Path, old: str, new: str) -> None:
    """Changes a word in the record of a checkpoint."""
    path = folder / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def workdir(tmp_path):
    """A run with checkpoints of the steps 4, 8 and 12."""
    with Checkpoints(tmp_path / "run", keep=3) as checkpoints:
        for step in (4, 8, 12):
            checkpoints.save(step, state_of(step))
    return tmp_path / "run"


def plain_fingerprint(array: np.ndarray) -> int:
    """As `fingerprint.inspect` takes it, one word at a time in Python's whole numbers."""

    def mix(word: int) -> int:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            word = (word ^ (word >> shift)) * factor % 2**32
        return word ^ (word >> 16)

    size = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[array.itemsize]
    words = np.ascontiguousarray(array).reshape(-1).view(size).tolist()
    return sum(mix(word ^ mix((n * 0x9E3779B1 + 1) % 2**32)) for n, word in enumerate(words)) % 2**32


def test_fingerprints_are_those_of_a_plain_computation():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        arrays = {
            "real": rng.normal(size=(5, 3, 4)),
            "single": rng.normal(size=(16, 9)).astype(np.float32),
            "brain": rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
            "whole": rng.integers(0, 9, 12),
            "bytes": rng.integers(0, 256, (2, 3, 2), np.uint8),
            "truth": rng.random((4, 2)) < 0.5,
            "scalar": np.float32(3.5),
            "none": np.zeros((0, 3), np.float32),
        }
        finite, found = inspect(jax.tree.map(jnp.asarray, {"a": [arrays]}))
    assert finite
    assert found == {f"a/0/{name}": plain_fingerprint(np.asarray(array)) for name, array in arrays.items()}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_number_that_is_not_finite_shows(bad):
    assert inspect({"a": jnp.ones(3), "b": jnp.arange(4)})[0]
    assert not inspect({"a": jnp.ones((2, 3)).at[1, 1].set(bad), "b": jnp.arange(4)})[0]


def test_a_fingerprint_does_not_depend_on_the_devices_and_every_change_shows():
    array = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    spread = jax.device_put(array, split_by_tile(make_mesh()))
    saved = inspect({"a": array, "b": array.T})[1]
    assert differing({"a": spread, "b": array.T}, saved) == []
    assert differing({"a": array}, saved) == []  # a part
    assert differing({"a": array}, {}) == []  # of an earlier version
    negated = array.at[2, 1].multiply(-1).at[5, 2].multiply(-1)  # two sign bits would cancel in a plain sum
    for other in (negated, array.at[0].set(array[1]).at[1].set(array[0]), array.at[15, 2].add(1e-6)):
        assert differing({"a": other, "b": array.T}, saved) == ["a"]


DAMAGE = {
    "a flipped bit among the numbers": lambda folder: flip(max(folder.rglob("*"), key=lambda p: p.stat().st_size)),
    "a truncated file": lambda folder: (folder / "default" / "manifest.ocdbt").write_bytes(b"\x0c\xdb"),
    "a missing file": lambda folder: (folder / "default" / "manifest.ocdbt").unlink(),
    "a broken table of contents": lambda folder: flip(folder / "default" / "_METADATA", 0.3),
    "a torn record": lambda folder: (folder / "_CHECKPOINT_METADATA").write_text("{"),
    "a record with another fingerprint": lambda folder: rewrite(folder, '"params/weights": ', '"params/weights": 1'),
    "an empty folder": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_moved_aside_and_saved_again(workdir, damage, caplog):
    DAMAGE[damage](workdir / "checkpoints" / "12")
    with Checkpoints(workdir) as checkpoints:
        step, state = checkpoints.go_on(lambda: state_of(0), replicated(make_mesh()))
        assert (step, checkpoints.latest) == (8, 8)
        assert equal(state, state_of(8))
        (warning,) = said(caplog)
        assert "step 12 cannot be read (" in warning
        assert warning.endswith(f"is now {workdir / 'damaged_checkpoints' / '12'}: going on from step 8.")
        assert "\n" not in warning
        assert len(warning) < 600
        checkpoints.save_surely(12, state_of(12))
        assert equal(checkpoints.restore(state_of(0), replicated(make_mesh()), 12), state_of(12))
    assert (workdir / "damaged_checkpoints" / "12").is_dir()
    assert go_on(workdir)[0] == 12


def test_two_damaged_checkpoints_of_one_step_are_both_kept_aside(workdir):
    for _ in range(2):
        flip(arrays_of(workdir, 12))
        with Checkpoints(workdir) as checkpoints:
            assert checkpoints.go_on(lambda: state_of(0), replicated(make_mesh()))[0] == 8
            checkpoints.save_surely(12, state_of(12))
    assert {path.name for path in (workdir / "damaged_checkpoints").iterdir()} == {"12", "12_again"}


def test_a_checkpoint_of_another_structure_is_skipped(workdir):
    other = state_of(13)
    other["params"]["more"] = other["params"].pop("weights")
    with Checkpoints(workdir, keep=4) as checkpoints:
        checkpoints.save_surely(13, other)
    step, state = go_on(workdir)
    assert step == 12
    assert equal(state, state_of(12))


def test_when_none_can_be_read_nothing_is_moved_and_nothing_starts_again(workdir):
    for step in (4, 8, 12):
        flip(arrays_of(workdir, step))
    with pytest.raises(ResumeError, match=r"No checkpoint .* can be read \(step 12: .*step 8: .*another --workdir"):
        go_on(workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "4", "8"]


def test_a_checkpoint_without_fingerprints_is_of_an_earlier_version_and_is_accepted(workdir):
    path = workdir / "checkpoints" / "12" / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": {}}))
    assert go_on(workdir)[0] == 12


def test_a_record_that_orbax_cannot_read_does_no_harm_to_a_sound_state(workdir, monkeypatch):
    """Of the oldest one, which later saves have to know, too."""
    for step in (4, 12):
        rewrite(workdir / "checkpoints" / str(step), "commit_timestamp", "commi|_timestamp")
    with Checkpoints(workdir) as checkpoints:
        step, state = checkpoints.go_on(lambda: state_of(0), replicated(make_mesh()))
        assert step == 12
        assert equal(state, state_of(12))
        full_once(monkeypatch, 1)
        checkpoints.save(13, state_of(13))
        checkpoints.save_surely(14, state_of(14))
        assert checkpoints.latest == 14


def test_no_checkpoint_is_the_start_and_what_is_half_written_goes(tmp_path):
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp" / "default").mkdir(parents=True)
    assert go_on(tmp_path) == (0, None)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_part_of_a_damaged_checkpoint_is_refused_in_one_sentence(workdir):
    shapes = jax.eval_shape(lambda: state_of(0))
    wanted = {"params": {"weights": shapes["params"]["weights"]}}
    assert equal(restore_part(workdir, wanted), {"params": {"weights": state_of(12)["params"]["weights"]}})
    for path in (workdir / "checkpoints" / "8").rglob("ocdbt.process_0/d/*"):  # which array lies where is chance
        for place in np.arange(0.02, 1, 0.02):
            flip(path, place)
    (workdir / "checkpoints" / "4" / "default" / "manifest.ocdbt").unlink()
    for step, words in ((8, r"what was saved|[Ee]rror"), (4, r"NOT_FOUND")):
        with pytest.raises(DamagedError, match=words) as error:
            restore_part(workdir, wanted, step)
        assert str(error.value).endswith(
            "give another step, of [4, 8, 12], or start the run again, which goes on from the one before."
        )
        assert "\n" not in str(error.value)
    with pytest.raises(ResumeError, match="move it away"), Checkpoints(workdir) as checkpoints:
        checkpoints.restore(state_of(0), replicated(make_mesh()), 4)


def test_a_damaged_score_costs_the_score_alone(tmp_path):
    with Checkpoints(tmp_path, keep=3, best="score") as checkpoints:
        for step, score in ((4, 0.5), (8, 0.9), (12, 0.7)):
            checkpoints.save(step, state_of(step), {"score": score})
    (tmp_path / "checkpoints" / "8" / "metrics" / "metrics").write_text('{"sco')
    with Checkpoints(tmp_path, keep=3, best="score") as checkpoints:
        assert checkpoints.latest == 12
        assert checkpoints.best_step() == 12


def test_long_errors_become_one_line():
    said = cause(ValueError('DATA_LOSS: Error reading "x":\n bad [tensorstore_spec={"a": 1}]'))
    assert said == 'DATA_LOSS: Error reading "x": bad'
    assert len(cause(ValueError("long " * 200))) < 250
    assert cause(KeyError()) == "KeyError"


def full_once(monkeypatch, failures: int) -> list[int]:
    """Lets the first writes of checkpoints fail as on a full disk; returns the list of steps that were tried."""
    tried, save = [], ocp.CheckpointManager.save

    def failing(self, step, *args, **options):
        tried.append(step)
        if len(tried) <= failures:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, *args, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", failing)
    return tried


def test_a_full_disk_stops_saving_and_not_training_and_is_said_once(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="absl")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1))
        checkpoints.wait()
        full_once(monkeypatch, 3)
        for step in range(2, 6):
            checkpoints.save(step, state_of(step))
            checkpoints.wait()
            assert checkpoints.latest == (1 if step < 5 else 5)
    assert said(caplog) == [
        "The checkpoint of step 2 could not be saved ([Errno 28] No space left on device): training goes on without, "
        "and the newest is that of step 1.",
        "Saving works again: step 5 is saved, 3 before it are not.",
    ]
    assert equal(go_on(tmp_path)[1], state_of(5))


def test_a_write_that_fails_in_the_background_leaves_the_older_checkpoints(tmp_path, monkeypatch, caplog):
    """What fails is orbax's last action, in its thread; `keep` of 1 would have removed the older one after it."""
    finalize = ocp.CheckpointManager._finalize_checkpoint

    def full(self, step):
        if step == 2:
            folder = Path(self.directory) / "2"
            folder.rename(folder.with_name("2.orbax-checkpoint-tmp"))
            raise OSError(errno.ENOSPC, "No space left on device")
        finalize(self, step)

    monkeypatch.setattr(ocp.CheckpointManager, "_finalize_checkpoint", full)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state_of(1))
        checkpoints.save(2, state_of(2))
        while not caplog.text:  # said between two steps
            checkpoints.poll()
        assert "step 2 could not be saved ([Errno 28]" in caplog.text
        assert checkpoints.latest == 1
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
        checkpoints.save(3, state_of(3))
    assert equal(go_on(tmp_path)[1], state_of(3))


def test_too_little_room_is_known_before_anything_is_written(tmp_path, monkeypatch, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        tried = full_once(monkeypatch, 0)
        checkpoints.save(1, state_of(1))
    assert tried == []
    assert "has 0.0 MB left and it takes 0.0" in caplog.text
    assert go_on(tmp_path) == (0, None)


def test_the_last_state_is_tried_for_a_while(tmp_path, monkeypatch, caplog):
    waited: list[float] = []
    options: Any = {"clock": lambda: sum(waited), "sleep": waited.append, "patience": 60, "pause": 20}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_surely(1, state_of(1), **options)
        full_once(monkeypatch, 2)
        checkpoints.save_surely(2, state_of(2), **options)
        assert (waited, checkpoints.latest) == ([20, 20], 2)
        full_once(monkeypatch, 99)
        with pytest.raises(SaveError, match=r"step 3 could not be saved in .*checkpoints: .* goes on from step 2"):
            checkpoints.save_surely(3, state_of(3), **options)
        assert waited == [20] * 5
    assert "trying again for 1 minutes" in caplog.text
    assert equal(go_on(tmp_path)[1], state_of(2))


def test_a_run_that_began_before_a_key_existed_goes_on(tmp_path):
    data = {"tiles": 30, "batch_size": 8, "tiles_digest": "a"}
    old = {"task": "pretrain", "seed": 0, "phases": ["warmup"], "warmup": {"epochs": 2}, "guidance": {}}
    (tmp_path / "config.json").write_text(json.dumps({"config": old, "data": data}))
    refuse_other_run(tmp_path, old | {"micro_batches": 1}, data, steps_per_epoch=3, done=3)
    with pytest.raises(ResumeError, match="micro_batches"):
        refuse_other_run(tmp_path, old | {"micro_batches": 2}, data, steps_per_epoch=3, done=3)
    assert changed(old, old) == []  # a task without the key
    assert changed(old, old | {"micro_batches": 1, "seed": 1}) == ["seed"]


def test_another_run_is_refused_in_a_few_words(tmp_path):
    data = {"tiles": 30, "batch_size": 8, "tiles_digest": "a"}
    old = {"task": "pretrain", "phases": ["warmup"], "warmup": {"epochs": 2}, "model": dict.fromkeys("abcdefg", 1)}
    (tmp_path / "config.json").write_text(json.dumps({"config": old, "data": data}))
    for keys, named in (("abcde", r"model\.a, .*, model\.e"), ("abcdefg", r"model\.a, .*, model\.e and 2 more")):
        model = {"model": {**old["model"], **dict.fromkeys(keys, 2)}}
        with pytest.raises(ResumeError, match=rf"another configuration \({named}\): give the old"):
            refuse_other_run(tmp_path, old | model, data, steps_per_epoch=3, done=3)
    with pytest.raises(ResumeError, match=r" holds a pretraining run: give another --workdir\.$"):
        refuse_other_run(tmp_path, {**old, "task": "segment"}, data, steps_per_epoch=3, done=3)


def test_pixels_are_compared_where_both_sides_know_them(tmp_path):
    plain = {"task": "pretrain", "phases": ["warmup"], "warmup": {"epochs": 2}, "data": {"path": "/images"}}
    data = {"tiles": 30, "batch_size": 8, "tiles_digest": "a"}
    for begun in (data, data | {"pixels_digest": "b"}):
        (tmp_path / "config.json").write_text(json.dumps({"config": plain, "data": begun}))
        for now in (data, data | {"pixels_digest": "b"}):
            refuse_other_run(tmp_path, plain, now, steps_per_epoch=3, done=3)
    changed_since = r"^An image or mask of /images, whether it trains or not, has changed since .* began: restore"
    for other, named in (
        ({"pixels_digest": "c"}, changed_since),
        ({"tiles_digest": "c", "pixels_digest": "b"}, "or other tiles: restore the data"),
    ):
        with pytest.raises(ResumeError, match=named):
            refuse_other_run(tmp_path, plain, data | other, steps_per_epoch=3, done=3)


def test_hosts_whose_tiles_an_earlier_version_prepared_run_with_the_others(monkeypatch):
    data, mine = {"tiles": 30, "batch_size": 8, "tiles_digest": "a"}, threading.local()

    def told(*hosts):
        """What each of the processes, threads here, is answered."""
        together, sent = threading.Barrier(len(hosts), timeout=20), [np.zeros(0)] * len(hosts)

        def gather(own):
            sent[mine.process] = own
            together.wait()
            rows = np.stack(sent)
            together.wait()
            return rows

        def start(process):
            mine.process = process
            try:
                return agree_on_data({"seed": 0}, hosts[process])
            except ConfigError as error:
                return str(error).partition(":")[0]

        monkeypatch.setattr(jax, "process_count", lambda: len(hosts))
        monkeypatch.setattr(sharding, "_gather", gather)
        with ThreadPoolExecutor(len(hosts)) as pool:
            return list(pool.map(start, range(len(hosts))))

    known, other = data | {"pixels_digest": "b"}, data | {"pixels_digest": "c"}
    assert told(data, known, known) == [known] * 3
    assert told(data, data, data) == [data] * 3
    assert told(data, known, other) == ["The content of the tiles of process 2 differs from that of process 1"] * 3
    differs = "The configuration or the data of process 1 differs from that of process 0"
    assert told(known, known | {"tiles": 31}, known) == [differs] * 3


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"config": 3}', "\x00"])
def test_a_record_that_is_damaged_is_one_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FileNotFoundError, match="holds no pretraining run"):
        run_config(tmp_path, task="pretrain")
    with pytest.raises(ResumeError, match="is damaged: put a copy"):
        refuse_other_run(tmp_path, {}, {}, steps_per_epoch=3, done=3)


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def wrong(*_, **__):
        raise TypeError("a mistake in the program")

    monkeypatch.setattr(ocp.CheckpointManager, "save", wrong)
    with pytest.raises(TypeError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1))


def test_the_seeded_damage_of_any_file_is_read_right_or_skipped(workdir, tmp_path):
    """Sixty cases: whatever happens to the newest checkpoint, a session begins with bits that were saved."""
    rng, seen = random.Random(0), set()
    for case in range(60):
        copy = tmp_path / f"copy{case}"  # tensorstore remembers what it has read of a path
        shutil.copytree(workdir, copy)
        files = (path for path in (copy / "checkpoints" / "12").rglob("*") if path.is_file())
        path = rng.choice(sorted(files, key=lambda path: (path.parent, path.stat().st_size)))  # some names are chance
        content = bytearray(path.read_bytes())
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content if rng.random() < 0.6 else content[:at])
        step, state = go_on(copy)
        assert equal(state, state_of(step)), (case, path)
        seen.add(step)
    assert seen == {8, 12}
