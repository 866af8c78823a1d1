"""Runs and images in buckets, on stand-ins on this machine: moto's S3, and `fake_gcs` for Google's."""

import importlib.util
import json
import logging
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax import pretrain, sharding
from grass_jax.buckets import (
    BucketError,
    answering,
    existing,
    filesystem,
    on_this_machine,
    open_workdir,
    place,
    scheme_of,
)
from grass_jax.checkpoints.in_s3 import CopiedCheckpoints, steps_in_bucket
from grass_jax.checkpoints.reading import kept_steps
from grass_jax.checkpoints.saving import Checkpoints, SaveError
from grass_jax.config import ConfigError
from grass_jax.data.remote import local_folder
from grass_jax.report.atomic import replacing
from grass_jax.report.log import MetricsLog, read_metrics, write_json
from grass_jax.state import load_encoder

sys.path.insert(0, str(Path(__file__).parent))
from fake_gcs import FakeGcs

NEEDED = {"s3": ("moto", "s3fs", "flask"), "gs": ("gcsfs",)}


@pytest.fixture(scope="module", params=["s3", "gs"])
def scheme(request, tmp_path_factory):
    """A kind of bucket whose stand-in answers; its bucket is `bucket`."""
    missing = [name for name in NEEDED[request.param] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install '.[remote]' 'moto[server]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        if request.param == "gs":
            server = FakeGcs()
            for name, value in server.environment().items():
                patch.setenv(name, value)
            yield "gs"
            server.close()
        else:
            logging.getLogger("werkzeug").setLevel(logging.ERROR)
            from moto.server import ThreadedMotoServer

            server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
            server.start()
            keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}
            for name, value in {**keys, "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port())}.items():
                patch.setenv(name, value)
            filesystem("s3://bucket").mkdir("bucket")
            yield "s3"
            server.stop()


@pytest.fixture
def folder(scheme, request):
    """A folder of a test's own."""
    return f"{scheme}://bucket/{abs(hash(request.node.nodeid))}"


def test_paths_of_this_machine_stay_what_they_are(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert (place("~/runs"), place("runs/a")) == (Path("/home/somebody/runs"), Path("runs/a"))
    assert existing("runs/a") == Path("runs/a").absolute()
    assert type(place("runs/a")) is type(Path("runs/a"))
    assert scheme_of("C:/images") == scheme_of("a/b://c") == ""


def test_what_is_no_place_or_lacks_its_library_is_one_sentence(monkeypatch):
    import fsspec

    with pytest.raises(BucketError, match="az://runs is no folder of this machine and none in a bucket"):
        place("az://runs")
    with pytest.raises(ConfigError, match="--workdir: http://runs is no folder"):
        open_workdir("http://runs")
    with pytest.raises(ConfigError, match=r"config\.output must be on this machine, not s3://maps"):
        on_this_machine("s3://maps", "config.output")

    def lacking(_):
        raise ImportError("No module named 's3fs'")

    monkeypatch.setattr(fsspec, "filesystem", lacking)
    with pytest.raises(ConfigError, match=r"s3://runs needs s3fs: pip install '\.\[remote\]'\."):
        open_workdir("s3://runs")


def test_a_workdir_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "runs" / "a"):
        with pytest.raises(ConfigError, match=rf"^--workdir={workdir} cannot be written to \(Not a directory\): give"):
            open_workdir(workdir)
    with pytest.raises(ConfigError, match=r"\(Read-only file system|\(No such file|\(Permission denied"):
        open_workdir("/proc/grass_jax/run")
    assert open_workdir(tmp_path / "runs" / "a") == tmp_path / "runs" / "a"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # a mistake found later leaves nothing behind


def test_a_bucket_that_does_not_answer_is_one_sentence(monkeypatch):
    class Silent(type(Path())):
        def exists(self):
            raise RuntimeError("Unable to locate\n credentials")

    monkeypatch.setattr("grass_jax.buckets.place", lambda *_, **__: Silent("bucket/run"))
    with pytest.raises(BucketError) as caught:
        existing("s3://bucket/run")
    assert str(caught.value) == (
        "s3://bucket/run cannot be reached (Unable to locate credentials): correct its name, or give this machine "
        "credentials and a network for it."
    )


def test_what_a_library_raises_is_an_error_as_a_disk_has_them(tmp_path, monkeypatch):
    """Who goes on without a file that cannot be written catches OSError."""

    class Unanswered:
        def __truediv__(self, _):
            return self

        def __fspath__(self):
            return "gs://bucket/run"

        __str__ = __fspath__

        def exists(self):
            raise LookupError("503")  # in place of a kind of the library's own

        def put_file(self, *_):
            raise LookupError("503")

    monkeypatch.setattr("grass_jax.report.log.place", lambda _: Unanswered())
    monkeypatch.setattr("grass_jax.report.atomic.filesystem", lambda _: Unanswered())
    for call in (read_metrics, MetricsLog, lambda path: write_json(path, {})):
        with pytest.raises(OSError, match=r"^gs://bucket/run\S* cannot be reached \(503\): correct"):
            call("gs://bucket/run")
    with pytest.raises(LookupError), answering(tmp_path):
        raise LookupError


def test_a_bucket_that_is_not_there_is_one_sentence(scheme, folder):
    for call in (open_workdir, local_folder, load_encoder):
        with pytest.raises((ConfigError, BucketError)) as caught:
            call(f"{scheme}://other-bucket/run")
        assert f"{scheme}://other-bucket/run" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(open_workdir(folder).parent.glob(".written*"))


def test_a_file_is_replaced_whole_or_not_at_all(folder):
    write_json(f"{folder}/file.json", {"old": 1})

    def write_half():
        with replacing(place(folder) / "file.json") as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert json.loads((place(folder) / "file.json").read_text()) == {"old": 1}
    assert [path.name for path in place(folder).iterdir()] == ["file.json"]


def write(log, *steps):
    for step in steps:
        log.write(step, epoch=1, phase="gs", loss=float(step))


def test_a_log_goes_on_where_its_checkpoint_was(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with MetricsLog(folder) as log:
        write(log, 1, 2)
        log.flush()
        assert [record["step"] for record in read_metrics(folder)] == [1, 2]
        write(log, 3)
    assert [record["step"] for record in read_metrics(folder)] == [1, 2, 3]
    with MetricsLog(folder, 2) as log:
        write(log, 3, 4)
    assert [record["loss"] for record in read_metrics(folder)] == [1, 2, 3, 4]
    assert len(list((place(folder) / "tensorboard").iterdir())) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_log_outlives_a_bucket_that_does_not_answer(folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "absl")
    with MetricsLog(folder, tensorboard=False) as log:
        with monkeypatch.context() as patch:
            patch.setattr("grass_jax.report.appended.filesystem", lambda _: 1 / 0)
            for step in (1, 2):
                write(log, step)
                log.flush()
        write(log, 3)
    assert [record["step"] for record in read_metrics(folder)] == [1, 2, 3]
    assert [text.partition(" takes ")[2] for text in caplog.messages] == [
        "no log (division by zero): it is sent when it does again.",
        "the log again.",
    ]


def state(value):
    return {"a": jnp.full((3, 5), value, jnp.float32), "b": jnp.arange(4, dtype=jnp.bfloat16)}


def everywhere():
    return sharding.replicated(sharding.make_mesh())


def test_checkpoints_are_kept_and_read_back(folder):
    with Checkpoints(folder, keep=2, keep_steps=(1,)) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, jax.device_put(state(step), everywhere()))
    assert kept_steps(folder) == [1, 3, 4]
    with Checkpoints(folder, keep=2, keep_steps=(1,)) as checkpoints:
        step, found = checkpoints.go_on(lambda: state(0.0), everywhere())
        assert step == 4
        jax.tree.map(np.testing.assert_array_equal, found, state(4))
        checkpoints.save(5, found)
    assert kept_steps(folder) == [1, 4, 5]


def test_a_damaged_checkpoint_is_skipped_and_its_step_saved_again(folder, caplog):
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, jax.device_put(state(step), everywhere()))
    files = filesystem(folder)
    for path in files.find(f"{folder}/checkpoints/2/default"):
        if "/d/" in path:
            files.pipe_file(path, b"nothing")
    with Checkpoints(folder) as checkpoints:
        step, found = checkpoints.go_on(lambda: state(0.0), everywhere())
        assert step == 1
        checkpoints.save(2, jax.tree.map(lambda a: 2 * a, found))
    assert "The checkpoint of step 2 cannot be read" in caplog.text
    with Checkpoints(folder) as checkpoints:
        step, found = checkpoints.go_on(lambda: state(0.0), everywhere())
        assert (step, float(found["a"][0, 0])) == (2, 2.0)


def sent_by_hand(folder, *steps):
    """A `CopiedCheckpoints` with made-up steps in its folder."""
    copies = CopiedCheckpoints(f"{folder}/checkpoints")
    for step in steps:
        (copies.folder / str(step)).mkdir()
        (copies.folder / str(step) / "_CHECKPOINT_METADATA").write_text(str(step))
    return copies


def only_s3(scheme):
    if scheme != "s3":
        pytest.skip("orbax writes to gs:// itself")


def test_a_step_counts_once_it_has_arrived_whole(scheme, folder):
    only_s3(scheme)
    remote = f"{folder}/checkpoints"
    sent_by_hand(folder, 1).close()
    filesystem(remote).pipe_file(f"{remote}/2/default/d/part", b"of an upload that was cut short")
    assert steps_in_bucket(remote) == [1]
    copies = sent_by_hand(folder, 2)
    assert sorted(path.name for path in copies.folder.iterdir()) == ["1", "2"]
    copies.close()
    assert steps_in_bucket(remote) == [1, 2]
    assert not filesystem(remote).exists(f"{remote}/2/default")
    assert not copies.folder.exists()


def test_checkpoints_that_cannot_be_sent_stay_on_this_machine(scheme, folder, monkeypatch, caplog):
    only_s3(scheme)
    copies = sent_by_hand(folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(copies, "_files", None)
        copies.close()
    assert (copies.folder / "1").is_dir()
    assert len([text for text in caplog.messages if "takes no checkpoint" in text]) == 1


def test_a_session_goes_on_from_what_an_earlier_one_could_not_send(scheme, folder, monkeypatch):
    """Which was killed; it had kept on this machine what is newer than all that the bucket has."""
    only_s3(scheme)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_surely(1, jax.device_put(state(1), everywhere()))
    killed = Checkpoints(folder)
    failing(monkeypatch, killed, 99)
    for step in (2, 3, 4):
        killed.save(step, jax.device_put(state(step), everywhere()))
    killed.wait()
    killed._manager.close()
    assert kept_steps(folder) == [1]
    with Checkpoints(folder) as checkpoints:
        assert kept_steps(folder) == [1, 3, 4]  # at once
        step, found = checkpoints.go_on(lambda: state(0.0), everywhere())
        assert step == 4
        jax.tree.map(np.testing.assert_array_equal, found, state(4))
        checkpoints.save(5, found)
    assert kept_steps(folder) == [4, 5]
    assert not checkpoints._folder.parent.exists()


def test_what_a_run_could_not_send_at_all_is_sent_unless_it_has_been_deleted(scheme, folder):
    only_s3(scheme)
    write_json(f"{folder}/config.json", {})
    sent_by_hand(folder, 1)
    sent_by_hand(folder)
    assert kept_steps(folder) == [1]
    filesystem(folder).rm(f"{folder}/checkpoints", recursive=True)
    copies = sent_by_hand(folder)
    assert list(copies.folder.iterdir()) == []
    assert (copies.folder.with_name("unsent") / "1").is_dir()
    assert copies.latest == 0


def test_what_could_not_be_sent_is_kept_aside_where_the_bucket_has_changed(
    scheme, folder, monkeypatch, tmp_path, caplog
):
    """By a session on another machine, or because the run was deleted there and begun anew."""
    only_s3(scheme)
    for first in (1, 3):
        copies = sent_by_hand(folder, first)
        copies.send()
        (copies.folder / "9").mkdir()  # and the machine goes
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path))
            sent_by_hand(folder, first + 1).close()
        copies = CopiedCheckpoints(f"{folder}/checkpoints")
        assert copies.latest == first + 1
        assert f"could not send its checkpoint of step 9, now in {copies.folder.with_name('unsent')}" in caplog.text
    assert (copies.folder.with_name("unsent") / "9").is_dir()
    assert (copies.folder.with_name("unsent_again") / "9").is_dir()
    assert steps_in_bucket(f"{folder}/checkpoints") == [1, 2, 3, 4]
    copies.close()


def failing(monkeypatch, checkpoints, times):
    """Lets the first sendings of checkpoints fail; returns the list that counts all."""
    tried, send = [], checkpoints._copies._send

    def fail_first():
        tried.append(len(tried))
        if len(tried) <= times:
            raise ConnectionError("gone")
        send()

    monkeypatch.setattr(checkpoints._copies, "_send", fail_first)
    return tried


def test_a_checkpoint_is_in_the_bucket_once_it_is_written(scheme, folder):
    """And not with the next one: a machine may go for good."""
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, jax.device_put(state(step), everywhere()))
            checkpoints.wait()
            assert kept_steps(folder)[-1] == step


def test_the_last_state_is_sent_again_until_the_bucket_takes_it(scheme, folder, monkeypatch):
    only_s3(scheme)
    waited = []
    with Checkpoints(folder) as checkpoints:
        tried = failing(monkeypatch, checkpoints, 2)
        checkpoints.save_surely(1, jax.device_put(state(1), everywhere()), pause=7, sleep=waited.append)
        assert (waited, len(tried), kept_steps(folder)) == ([7, 7], 3, [1])
    checkpoints = Checkpoints(folder)
    failing(monkeypatch, checkpoints, 99)
    where = rf"in {folder}/checkpoints: .* from step 2 on this machine, and from step 1 on another\.$"
    with pytest.raises(SaveError, match=where), checkpoints:
        checkpoints.save_surely(2, jax.device_put(state(2), everywhere()), patience=0)


def test_several_processes_need_another_bucket_than_s3(scheme, folder, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    if scheme == "s3":
        with pytest.raises(ConfigError, match="is for one process: several share a gs:// workdir or a disk"):
            open_workdir(folder)
    else:
        open_workdir(folder)


def two_sessions(tiny, workdir):
    settings = {"phases": ("warmup",), "log.every": 1, "log.tensorboard": True}
    for epochs in (1, 2):
        pretrain.run(tiny(**settings, **{"warmup.epochs": epochs}), workdir)


@pytest.fixture(scope="module")
def on_disk(tiny, tmp_path_factory):
    """A run on a disk, which was begun and went on."""
    workdir = tmp_path_factory.mktemp("on_disk")
    two_sessions(tiny, workdir)
    return workdir


def test_a_run_in_a_bucket_is_the_run_on_a_disk(tiny, on_disk, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    two_sessions(tiny, folder)
    assert kept_steps(folder) == kept_steps(on_disk)
    expected, found = (load_encoder(workdir).variables for workdir in (on_disk, folder))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert {path.name for path in place(folder).iterdir()} == {path.name for path in on_disk.iterdir()}
    assert [line["loss"] for line in read_metrics(folder)] == [line["loss"] for line in read_metrics(on_disk)]
    assert list(tmp_path.glob("grass_jax*")) == []


def put_images(folder, *names, content=b"an image"):
    for name in names:
        filesystem(folder).pipe_file(f"{folder}/{name}", content)


def test_images_are_fetched_once_and_again_where_they_changed(folder, tmp_path, monkeypatch):
    files, fetched = filesystem(folder), []
    get_file = files.get_file

    def counted(name, to):
        fetched.append(name.rpartition("/")[2])
        get_file(name, to)

    monkeypatch.setattr(files, "get_file", counted)
    put_images(folder, "images/a.png", "images/b.png", "masks/a.png")
    here = Path(local_folder(folder, str(tmp_path)))
    assert here == tmp_path / "downloads" / folder.replace("://", "/")
    assert sorted(fetched) == ["a.png", "a.png", "b.png"]
    times = {path: path.stat().st_mtime_ns for path in here.rglob("*.png")}
    fetched.clear()
    assert local_folder(folder + "/", str(tmp_path)) == str(here)
    assert fetched == []

    put_images(folder, "images/b.png", content=b"a longer image")
    files.rm_file(f"{folder}/masks/a.png")
    (here / "images" / "c.png").write_bytes(b"of an earlier day")
    local_folder(folder, str(tmp_path))
    assert fetched == ["b.png"]
    assert sorted(path.relative_to(here).as_posix() for path in here.rglob("*.png")) == ["images/a.png", "images/b.png"]
    assert (here / "images" / "b.png").read_bytes() == b"a longer image"
    other = Path(local_folder(folder, str(tmp_path / "other")))
    assert (other / "images" / "a.png").stat().st_mtime_ns == times[here / "images" / "a.png"]


def test_a_file_that_is_cut_short_is_not_taken_for_one(folder, tmp_path, monkeypatch):
    files = filesystem(folder)
    put_images(folder, "a.png")

    def cut_short(_, to):
        Path(to).write_bytes(b"an")
        raise ConnectionResetError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(files, "get_file", cut_short)
        with pytest.raises(OSError, match="gone"):
            local_folder(folder, str(tmp_path))
    here = tmp_path / "downloads" / folder.replace("://", "/")
    assert [path for path in here.rglob("*") if path.is_file()] == []
    assert (Path(local_folder(folder, str(tmp_path))) / "a.png").read_bytes() == b"an image"


def test_a_folder_of_this_machine_is_itself():
    assert local_folder("~/images") == "~/images"
    assert local_folder("") == ""
    assert os.fspath(place("~/images")).startswith(str(Path.home()))
