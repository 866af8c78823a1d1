"""Branches: runs that go on from where another one, their trunk, has ended."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from grass_jax import pretrain
from grass_jax.checkpoints.resume import refuse_other_trunk
from grass_jax.checkpoints.saving import ResumeError
from grass_jax.config import flatten
from grass_jax.report.log import read_metrics
from grass_jax.segment import watch
from grass_jax.sharding import make_mesh

TIMES = ("images_per_second", "input_wait")


def arrays(workdir: Path, step: int) -> list[np.ndarray]:
    """Everything in a checkpoint."""
    path = workdir / "checkpoints" / str(step) / "default"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored)]


def same(one: tuple[Path, int], other: tuple[Path, int]) -> bool:
    """Whether two checkpoints are equal, bit for bit."""
    pairs = zip(arrays(*one), arrays(*other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def close(one: tuple[Path, int], other: tuple[Path, int]) -> bool:
    """Whether two checkpoints are equal but for rounding: another schedule makes another program, fused otherwise."""
    pairs = zip(arrays(*one), arrays(*other), strict=True)
    return all(a.dtype == b.dtype and np.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in pairs)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def config(tiny):
    """Makes configs of six steps of warm-up and six of GS training, each phase with a schedule of its own."""
    shared = {"schedule.restart": True, "log.figure_tiles": 0, "checkpoint.every_epochs": 1.0}
    return lambda **changes: tiny(**shared | changes)


@pytest.fixture(scope="module")
def one_device():
    """The job on a single device: it is the arithmetic of one machine that must repeat bit for bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.sharding, "make_mesh", lambda devices=None: make_mesh(jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def trunk(config, one_device, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "trunk"
    pretrain.run(config(phases=("warmup",)), workdir)
    return workdir


@pytest.fixture(scope="module")
def branch(config, trunk):
    before, workdir = contents(trunk), trunk.parent / "branch"
    summary = pretrain.run(config(branch=str(trunk)), workdir)
    assert contents(trunk) == before
    return workdir, summary


@pytest.fixture(scope="module")
def unbroken(config, trunk):
    workdir = trunk.parent / "unbroken"
    pretrain.run(config(), workdir)
    return workdir


def test_a_branch_is_the_unbroken_run(trunk, branch, unbroken):
    workdir, summary = branch
    assert same((workdir, 6), (trunk, 6))
    assert close((workdir, 6), (unbroken, 6))
    assert close((workdir, 12), (unbroken, 12))
    assert not close((workdir, 12), (workdir, 6))
    own, whole = (
        [{name: value for name, value in record.items() if name not in TIMES} for record in read_metrics(run)]
        for run in (workdir, unbroken)
    )
    for mine, its in zip(own, whole[6:], strict=True):
        assert mine.pop("phase") == its.pop("phase") == "gs"
        assert mine == pytest.approx(its, rel=1e-3, abs=1e-5)
    assert [record["step"] for record in own] == list(range(7, 13))
    assert (summary["steps"], list(summary["phases"])) == (12, ["gs"])


def test_several_branches_grow_from_one_trunk(config, trunk, branch, monkeypatch):
    monkeypatch.chdir(trunk.parent)
    workdirs = {}
    changes = {"random": {"guidance.boxes": "random"}, "short": {"gs.epochs": 1}}
    for name, change in changes.items():
        workdirs[name] = trunk.parent / name
        pretrain.run(config(branch="trunk", **change), workdirs[name])
        assert same((workdirs[name], 6), (trunk, 6))
    assert read_metrics(workdirs["random"])[-1]["step"] == 12
    assert not same((workdirs["random"], 12), (branch[0], 12))
    assert read_metrics(workdirs["short"])[-1]["step"] == 9
    assert not same((workdirs["short"], 9), (branch[0], 9))  # its learning rate falls sooner
    # a path is remembered in full: the same command goes on from another folder
    monkeypatch.chdir(trunk)
    assert pretrain.run(config(branch=str(trunk), **changes["short"]), workdirs["short"]) is None


def test_an_interrupted_branch_goes_on_without_its_trunk(config, trunk, branch, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill_at(stop):
        def watch(phase, step, metrics):
            if step == stop:
                raise Killed

        return lambda steps_per_epoch: watch

    own = shutil.copytree(trunk, tmp_path / "trunk")
    for stop in (7, 10):  # before and after the first checkpoint of its own
        with monkeypatch.context() as patch:
            patch.setattr(pretrain, "fallback_watch", kill_at(stop))
            with pytest.raises(Killed):
                pretrain.run(config(branch=str(own)), tmp_path / "branch")
        shutil.rmtree(own, ignore_errors=True)
    pretrain.run(config(branch=str(own)), tmp_path / "branch")
    assert same((tmp_path / "branch", 12), (branch[0], 12))
    assert [record["step"] for record in read_metrics(tmp_path / "branch")] == list(range(7, 13))


@pytest.fixture
def refuse(trunk):
    """Compares a branch with its trunk: `refuse(changes)`, or with another trunk's folder."""

    def refuse(changes, workdir=trunk, **data):
        begun = json.loads((trunk / "config.json").read_text())
        config = flatten(begun["config"]) | {"phases": ("warmup", "gs"), "branch": str(workdir)} | changes
        return refuse_other_trunk(workdir, config, begun["data"] | data, steps_per_epoch=3)

    return refuse


def test_what_comes_after_the_trunk_may_be_new(refuse, unbroken):
    assert refuse({}) == 6
    free = {"name": "other", "gs.epochs": 7, "guidance.boxes": "random", "probe.every_epochs": 1.0, "log.every": 5}
    assert refuse({**free, "schedule.restart": False}) == 6  # whether its one phase has a schedule of its own
    late = {"phases": ("warmup", "gs", "late"), "late.step": "warmup_step", "late.epochs": 1}
    assert refuse(late, unbroken) == 12
    with pytest.raises(ResumeError, match=r"other settings \(gs\.epochs, guidance\.boxes, schedule\.restart\): give"):
        refuse({**late, **free, "schedule.restart": False}, unbroken)


@pytest.mark.parametrize(
    ("changes", "data", "words"),
    [
        (
            {"optimizer.weight_decay": 0.1, "seed": 1},
            {},
            r"a run with other settings \(optimizer\.weight_decay, seed\)",
        ),
        ({"warmup.epochs": 3}, {}, r"a run with other settings \(warmup\.epochs\)"),
        (
            {"method.temperature": 0.1},
            {"tiles_digest": "others"},
            r"a run with other settings \(method\.temperature, data\)",
        ),
        ({"phases": ("gs", "warmup")}, {}, r"whose phases are warmup: config\.phases must be these and more\.$"),
        ({"phases": ("warmup",)}, {}, r"whose phases are warmup: config\.phases must be these and more\.$"),
    ],
)
def test_another_run_is_no_trunk(refuse, changes, data, words):
    with pytest.raises(ResumeError, match=rf"^config\.branch is /.*, {words}") as error:
        refuse(changes, **data)
    assert str(error.value).count(". ") == 0


def test_a_folder_without_an_ended_pretraining_run_is_no_trunk(refuse, trunk, tiny_segment, tmp_path):
    with pytest.raises(
        ResumeError, match=r"^config\.branch: .* holds no pretraining run: give the --workdir of one\.$"
    ):
        refuse({}, tmp_path / "nothing")
    begun = json.loads((trunk / "config.json").read_text())
    begun["config"]["warmup"]["epochs"] = 3
    (tmp_path / "config.json").write_text(json.dumps(begun))
    with pytest.raises(ResumeError, match=r"^config\.branch: .* has no checkpoint yet: let the run go on\.$"):
        refuse({"warmup.epochs": 3}, tmp_path)
    (tmp_path / "checkpoints").symlink_to(trunk / "checkpoints")
    with pytest.raises(ResumeError, match=r"which has not reached its step 9: let it end first\.$"):
        refuse({"warmup.epochs": 3}, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"config": tiny_segment().to_dict(), "data": {}}))
    with pytest.raises(ResumeError, match=r"^config\.branch: .* holds a fine-tuning run: give .* pretraining run\.$"):
        refuse({}, tmp_path)


def test_the_first_process_says_where_a_branch_began(config, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain.sharding, "read_by_first", lambda _: 6)  # this host sees no checkpoint yet
    given = config(branch=str(tmp_path / "trunk"))
    assert pretrain._trunk(given, tmp_path, {}, {}, steps_per_epoch=3, done=9) == 6


def test_a_refused_branch_leaves_nothing(config, trunk, tmp_path):
    with pytest.raises(ResumeError, match=r"a run with other settings \(optimizer\.weight_decay\): give the same\.$"):
        pretrain.run(config(branch=str(trunk), **{"optimizer.weight_decay": 0.1}), tmp_path)
    assert contents(tmp_path) == {}


def test_the_probe_of_an_ended_branch_is_not_that_of_its_trunk(
    config, branch, trunk, labelled_folder, tmp_path, monkeypatch
):
    workdir = shutil.copytree(branch[0], tmp_path / "branch")
    probed = config(branch=str(trunk))
    probed.probe.update({"every_epochs": 1.0, "labels": "8", "batch_size": 8, "purity_tiles": 0})
    probed.probe.data.update({"path": str(labelled_folder), "classes": ("grass", "stone", "water"), "tile_size": 48})
    probed.probe.data.update({"group": r"(\w+)_\d", "test": "south", "validation": "north"})
    probed.probe.data.data_dir = str(tmp_path / "tiles")
    assert pretrain.run(probed, workdir) is None
    scored = [record for record in read_metrics(workdir) if record.get("probe_miou") is not None]
    assert [(record["step"], record["phase"]) for record in scored] == [(12, "gs")]
    assert list(json.loads((workdir / "summary.json").read_text())["probe"]) == ["gs"]
    before = contents(workdir)
    monkeypatch.setattr(watch, "run_hooks", lambda *_: pytest.fail("measured again"))
    assert pretrain.run(probed, workdir) is None
    assert contents(workdir) == before
