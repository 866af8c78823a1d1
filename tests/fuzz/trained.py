"""Damaged weights, run folders and configurations through the functions that a run begins with."""

import copy
import functools
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import parents
from cases import FAULT, READ, REFUSED, Notes, Outcome, _one_by_one, judged, place, refused

MODEL = {"name": "resnet18", "width": 4, "output_stride": 32, "dtype": "float32"}


@functools.cache
def _shapes() -> Any:
    from grass_jax.models import build_encoder
    from grass_jax.state import variable_shapes

    return variable_shapes(build_encoder(**MODEL), 3)


@functools.cache
def _variables() -> Any:
    import jax

    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: draw.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype), _shapes())


@functools.cache
def _weights() -> list[parents.File]:
    import safetensors.numpy

    from grass_jax.bands import RGB
    from grass_jax.interop.names import encoder_tensors
    from grass_jax.interop.torch_write import write_torch

    tensors = {name: np.ascontiguousarray(value) for name, value in encoder_tensors(_variables()).items()}
    said = {"grass_jax": "0", "encoder": "resnet18", "width": "4", "bands": "[1, 2, 3]"}
    said |= {
        key: json.dumps(value) if key != "dtype" else value for key, value in RGB.asdict().items() if key != "numbers"
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.pth")
        write_torch(path, {"state_dict": tensors, "meta": said})
        found = [(".safetensors", safetensors.numpy.save(tensors, said)), (".pth", path.read_bytes())]
    tree = b"\x80\x02}X\x0c\x00\x00\x00conv1.weightctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
    tree += b"ctorch\nFloatStorage\n"
    tree += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89NtRs."
    found.append((".pth", parents.old_format(tree)))
    for data in parents.pickles():
        found.append((".pth", parents.old_format(data)))
        found.append((".pth", parents.zipped({"archive/data.pkl": data, "archive/data/0": bytes(16)}, 0)))
    return found


@_one_by_one
def weights(folder: Path, rng: mutations.Rng, notes: Notes) -> Outcome:
    from grass_jax.interop.open_weights import open_weights, read_description
    from grass_jax.interop.read_encoder import read_encoder

    files = _weights()
    suffix, data = files[int(rng.integers(3))] if rng.random() < 0.75 else files[int(rng.integers(3, len(files)))]
    if rng.random() < 0.95:
        head = len(data) if suffix == ".pth" or rng.random() < 0.3 else 12_000  # where its header lies
        other = [content for _, content in files]
        data = mutations.mutate(data[:head], suffix, rng, other) + data[head:]
    path = folder / f"case{suffix}"
    place(path, data, rng)
    read_description(path)
    for said in notes.take():
        if "\n" in said or len(said) > 800:
            return FAULT, f"no sentence: {said[:300]!r}"
    try:
        with open_weights(path) as (tensors, _):
            for tensor in list(tensors.values())[:300]:
                tensor.read()
    except Exception as error:
        if (outcome := refused(error, path.name, kinds=(ValueError,)))[0] == FAULT:
            return outcome
    try:
        read_encoder(path, _shapes())
    except Exception as error:
        return (
            judged(*refused(error, path.name, kinds=(ValueError,))) if len(str(error)) < 4000 else (FAULT, "too long")
        )
    return READ, ""


@functools.cache
def _run_folder() -> Path:
    """A pretraining run as it stands on disk when it has ended."""
    import jax.numpy as jnp

    from grass_jax.bands import RGB
    from grass_jax.checkpoints.saving import Checkpoints
    from grass_jax.report.log import MetricsLog
    from grass_jax.state import TrainState

    workdir = Path(tempfile.mkdtemp(prefix="fuzz-run-", dir=os.environ.get("FUZZ_DIR"))) / "run"
    params, stats = ({"encoder": _variables()[kind]} for kind in ("params", "batch_stats"))
    with Checkpoints(workdir, keep=9) as checkpoints:
        checkpoints.save(4, TrainState(jnp.int32(4), params, stats, (), ()))
    config = {
        "task": "pretrain",
        "bands": RGB.asdict(),
        "model": MODEL,
        "phases": ["warmup"],
        "warmup": {"step": "warmup_step", "epochs": 1},
    }
    config |= {"data": {"name": "image_folder", "path": "/x"}, "init": "", "init_step": 0, "method": {"name": "simclr"}}
    (workdir / "config.json").write_text(
        json.dumps({"config": config, "data": {"tiles": 8, "batch_size": 8}}, indent=1)
    )
    (workdir / "summary.json").write_text(json.dumps({"steps": 4, "phases": {"warmup": {"ends": {"loss": 3.0}}}}))
    with MetricsLog(workdir, tensorboard=False) as log:
        for step in range(1, 5):
            log.write(step, epoch=step / 4, phase="warmup", loss=1 / step)
    return workdir


@_one_by_one
def runs(folder: Path, rng: mutations.Rng, notes: Notes) -> Outcome:
    from ml_collections import ConfigDict

    from grass_jax.config import ConfigError
    from grass_jax.initial import follow_encoder, initial_encoder
    from grass_jax.report.log import read_metrics
    from grass_jax.report.summary import summarise

    home = folder / "run"
    shutil.copytree(_run_folder(), home)
    files = sorted(path for path in home.rglob("*") if path.is_file())
    what = rng.random()
    if what < 0.35:
        path = home / "config.json"
    elif what < 0.5:
        path = home / "metrics.jsonl"
    else:
        path = files[int(rng.integers(len(files)))]
    data = path.read_bytes()
    path.unlink()
    if rng.random() < 0.9:
        path.write_bytes(
            mutations.mutate(data, path.suffix, rng, [file.read_bytes() for file in files[:5] if file.exists()])
        )
    summarise(read_metrics(home), seconds=1.0, steps=4, tiles=8)
    config = ConfigDict({"task": "segment", "init": str(home), "init_step": 0, "init_prefix": "", "init_ignore": ""})
    config.bands = {"numbers": (), "dtype": "", "low": (), "high": (), "mean": (), "std": (), "rgb": ()}
    config.model = MODEL
    try:
        taken = follow_encoder(config, folder / "new")
        encoder = initial_encoder(taken)
        assert encoder is not None
        assert all(np.isfinite(leaf).all() for leaf in _leaves(encoder)), "weights that are not finite"
    except Exception as error:
        return refused(error, str(home), "config.", kinds=(ConfigError,))
    return READ, ""


def _leaves(tree: Any) -> list[np.ndarray]:
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


JUNK: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**70,
        1e300,
        -0.5,
        float("nan"),
        float("inf"),
        "",
        "x" * 3000,
        "\0",
        "../..",
        "~nobody/x",
        "(",
        "a{9999999999}",
    ),
    *(
        "(?P<a>x)(?P<a>y)",
        "\ud800",
        "/" + "x" * 300,
        "\n",
        "*",
        "[a",
        (),
        [],
        {},
        (1, 2),
        ("a", "b"),
        (1, (2, (3,))),
        [None] * 50,
        {"a": {}},
    ),
    *({"items": 1}, {1: 2}, _nested(50), b"bytes", {1, 2}, 1j, "#12345", "(?i)(a+)+$", "\x1b[31m"),
)


@functools.cache
def _configs() -> list[dict[str, Any]]:
    from configs import evaluate, export, gs, predict, segment
    from configs.baselines import moco_v2, swav

    found = [module.get_config() for module in (gs, segment, evaluate, export, predict, moco_v2, swav)]
    return [config.to_dict() for config in found] + [
        gs.get_config("folder").to_dict(),
        segment.get_config("folder").to_dict(),
    ]


@_one_by_one
def configs(folder: Path, rng: mutations.Rng, notes: Notes) -> Outcome:
    from grass_jax.config import ConfigError
    from grass_jax.schemas import check

    draw = random.Random(int(rng.integers(2**60)))
    config = copy.deepcopy(draw.choice(_configs()))
    for _ in range(draw.choice([1, 1, 2, 4])):
        section = config
        while (inner := [value for value in section.values() if isinstance(value, dict)]) and draw.random() < 0.6:
            section = draw.choice(inner)
        key = draw.choice(list(section) or ["a"])
        value = draw.choice(JUNK)
        what = draw.random()
        if what < 0.7:
            section[key] = folder if what < 0.02 else value
        elif what < 0.85:
            section.pop(key, None)
        else:
            section[draw.choice(["a", "a.b", f"{key}s", "\0", 1, ""])] = value
    try:
        check(config)
    except Exception as error:
        if not isinstance(error, ConfigError):
            return FAULT, f"{type(error).__name__}: {str(error)[:300]}"
        words = str(error)
        return (
            (REFUSED, words[:300])
            if "\n" not in words and "config" in words
            else (FAULT, f"no sentence: {words[:300]!r}")
        )
    return READ, ""
