"""Which run may go on from which: what a working directory holds, and what may differ between a run's sessions."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grass_jax.bands import Bands
from grass_jax.buckets import existing, place
from grass_jax.checkpoints.reading import kept_steps
from grass_jax.checkpoints.saving import ResumeError
from grass_jax.config import UNITS, differing, flatten, phase_length
from grass_jax.data.faults import cause_of
from grass_jax.models import build_encoder
from grass_jax.report.records import read_record
from grass_jax.sharding import agree, agree_where_known, read_by_first

NAMED = 5  # keys that differ
PIXELS = "pixels_digest"  # of the data: what tiles show, which those prepared by earlier versions do not say
MAX_WIDTH = 4096  # no ResNet comes near
TASK_WORDS = {"pretrain": "pretraining", "segment": "fine-tuning", "compare": "comparison"}


def run_config(workdir: str | Path, *, task: str) -> dict[str, Any]:
    """Reads the resolved configuration of a run.

    Args:
        workdir: folder of the run.
        task: what the run must be: `pretrain` or `segment`.

    Returns:
        The configuration as nested dicts.

    Raises:
        FileNotFoundError: there is no such run.
    """
    path = existing(workdir) / "config.json"
    config = read_record(path).get("config")
    if not isinstance(config, dict):  # other libraries name a file so, too
        raise FileNotFoundError(f"{path.parent} holds no {TASK_WORDS[task]} run: give the --workdir of one.")
    found = config.get("task", "pretrain")
    if found != task:
        raise FileNotFoundError(
            f"{path.parent} holds a {TASK_WORDS.get(str(found), 'different')} run: give the --workdir of a "
            f"{TASK_WORDS[task]} run."
        )
    if "bands" not in config:
        raise FileNotFoundError(
            f"{path.parent} is of an earlier version of grass_jax, which did not record its bands: train it again."
        )
    with intact(path):
        Bands(**config["bands"])
        width = config["model"]["width"]
        if type(width) is not int or not 4 <= width <= MAX_WIDTH:
            raise ValueError(f"model.width is {width!r}")
        build_encoder(**config["model"])
    return config


@contextmanager
def intact(path: Path) -> Iterator[None]:
    """Says in one sentence, a FileNotFoundError, that a file is damaged which lacks what the block looks for in it."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise FileNotFoundError(
            f"{path} is damaged ({cause_of(error)}): restore it from a copy, or train again."
        ) from error


def begun_with(workdir: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what a run began with.

    Args:
        workdir: folder of the run.

    Returns:
        Its configuration as nested dicts, with all of its phases, and its `data` as for `refuse_other_run`.

    Raises:
        FileNotFoundError: its record is missing or damaged.
    """
    path = place(workdir) / "config.json"
    record = read_record(path)
    with intact(path):
        config, data = dict(record["config"]), dict(record["data"])
        lengths = (phase_length(config[name], 1) for name in config["phases"])
        if not all(type(number) is int and number > 0 for number in (data["tiles"], data["batch_size"], *lengths)):
            raise ValueError("whole numbers above 0 belong there")
    return config, data


# may differ between the sessions of one run: what does not enter the numbers
FREE_KEYS = (
    *("name", "preset", "log.", "checkpoint.", "probe.", "compilation_cache", "branch"),
    *("data.workers", "data.path", "data.data_dir"),
)
# may differ between the hosts of one run
OF_A_HOST = ("data.path", "data.data_dir", "data.workers", "compilation_cache")
# keys that came later, with the value that does what runs begun before them do
ADDED = {"micro_batches": 1}


def agree_on_data(config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Compares the configurations and the data of the processes of a job.

    Args:
        config: nested.
        data: as for `refuse_other_run`; a host whose tiles were prepared by an earlier version has no `pixels_digest`.

    Returns:
        The data as all of them know it: with `pixels_digest` where one does.

    Raises:
        ConfigError: in every process; they have other configurations, other tiles or, where they know them, pixels.
    """
    shared = {key: value for key, value in flatten(config).items() if key not in OF_A_HOST}
    places = {key: value for key, value in data.items() if key != PIXELS}
    agree(json.dumps([shared, places], sort_keys=True), "The configuration or the data")
    pixels = agree_where_known(data.get(PIXELS, ""), "The content of the tiles")
    return places | ({PIXELS: pixels} if pixels else {})


def changed(begun: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Names the keys in which a run's configuration differs from the one it began with, maybe before a key existed.

    Args:
        begun: as it was recorded, nested.
        config: as it is now, nested.
    """
    now = flatten(config)
    return differing({key: value for key, value in ADDED.items() if key in now} | flatten(begun), now)


def _other_data(begun: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Says whether data are others than a run began with; pixels count where both sides know them.

    Data sets that were prepared by earlier versions do not, nor do the runs on them.
    """
    keys = differing(begun, data)
    return any(key != PIXELS or (key in begun and key in data) for key in keys)


def refuse_other_pixels(workdir: str | Path, path: str, begun: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Compares what the tiles of a run or a comparison show with what the same ones showed when it began.

    Args:
        workdir: its folder.
        path: of the data, for the message.
        begun: digests, and what else is known of the data, as recorded.
        data: the same, as it is now.

    Raises:
        ResumeError: the pixels differ, and nothing else.
    """
    if differing(begun, data) == [PIXELS] and _other_data(begun, data):
        raise ResumeError(
            f"An image or mask of {path}, whether it trains or not, has changed since the work in {workdir} began: "
            "restore it or give another --workdir."
        )


def refuse_other_trunk(trunk: str | Path, config: dict[str, Any], data: dict[str, Any], *, steps_per_epoch: int) -> int:
    """Compares the configuration of a run that branches off with that of the run which it goes on from.

    Args:
        trunk: folder of the run to go on from; it has ended.
        config: the resolved configuration, as nested dicts: what comes after the trunk's phases may be new, and the
            guidance where none of them used it.
        data: as for `refuse_other_run`.
        steps_per_epoch: full batches in the data.

    Returns:
        The step at which the trunk ended.

    Raises:
        ResumeError: it is no such run, or it is another one than this run would have begun with.
    """
    try:
        old, begun, kept = read_by_first(
            lambda: [run_config(trunk, task="pretrain"), begun_with(trunk)[1], kept_steps(trunk)]
        )
    except FileNotFoundError as error:
        raise ResumeError(f"config.branch: {error}") from error
    phases, wanted = list(old["phases"]), list(config["phases"])
    if wanted[: len(phases)] != phases or wanted == phases:
        raise ResumeError(
            f"config.branch is {trunk}, whose phases are {', '.join(phases)}: config.phases must be these and more."
        )
    end = sum(phase_length(old[name], steps_per_epoch) for name in phases)
    guided = any(old[name].get("step") == "gs_step" for name in phases)
    free = (*FREE_KEYS, "phases", "branch", *(f"{name}." for name in wanted[len(phases) :]))
    free += () if guided else ("guidance.",)
    free += ("schedule.restart",) if len(phases) == 1 else ()  # to one phase both values are the same
    refused = [key for key in changed(old, config) if not key.startswith(free)]
    if _other_data(begun, data):
        refused.append("data")
    if refused:
        raise ResumeError(f"config.branch is {trunk}, a run with other settings ({', '.join(refused)}): give the same.")
    if end not in kept:
        raise ResumeError(f"config.branch is {trunk}, which has not reached its step {end}: let it end first.")
    return end


def refuse_other_run(
    workdir: str | Path, config: dict[str, Any], data: dict[str, Any], *, steps_per_epoch: int, done: int
) -> None:
    """Compares the configuration with the one that the run in this folder began with.

    Args:
        workdir: folder of the run; without a checkpoint (`done` of 0) everything goes.
        config: the resolved configuration, as nested dicts.
        data: what else the numbers depend on: tiles, batch size after cutting, digests of where they come from and
            what they show.
        steps_per_epoch: full batches in them.
        done: updates in the newest checkpoint.

    Raises:
        ResumeError: a key differs that may not; a phase may only become longer, and only the last one once it has
            ended.
    """
    path = place(workdir) / "config.json"
    if done == 0:
        return

    def read() -> list[dict[str, Any]]:
        if not path.exists():
            raise ResumeError(f"{workdir} has checkpoints but no config.json to compare with: give another --workdir.")
        try:
            return list(begun_with(workdir))
        except FileNotFoundError as error:
            raise ResumeError(
                f"{path}, which the run has to be compared with, is damaged: put a copy of it in its place."
            ) from error

    begun, before = read_by_first(read)
    task = str(begun.get("task", "pretrain"))
    if task != config.get("task", "pretrain"):
        raise ResumeError(f"{workdir} holds a {TASK_WORDS.get(task, 'different')} run: give another --workdir.")
    refused, end = [], 0
    old_phases = begun["phases"]
    for key in changed(begun, config):
        if not key.startswith(FREE_KEYS) and key not in [f"{name}.{unit}" for name in old_phases for unit in UNITS]:
            refused.append(key)
    for name in old_phases:
        old = begun[name]
        length = phase_length(old, steps_per_epoch)
        end += length
        change = phase_length(config.get(name, old), steps_per_epoch) - length
        ended = done >= end and name != old_phases[-1]
        if change < 0 or (change > 0 and ended):
            refused.append(f"{name}.{'steps' if 'steps' in old else 'epochs'}")
    measured = all(key.startswith("bands.") for key in refused)  # the data's, where the configuration leaves them open
    if refused and not (measured and _other_data(before, data)):
        why = ", as after a change of the images" if measured else ""
        named = ", ".join(refused[:NAMED]) + (f" and {len(refused) - NAMED} more" if refused[NAMED:] else "")
        raise ResumeError(
            f"{workdir} holds a run of {done} steps with another configuration ({named}{why}): give the "
            f"old values (they are in {path}) or another --workdir."
        )
    if _other_data(before, data):
        refuse_other_pixels(workdir, config["data"]["path"], before, data)
        raise ResumeError(
            f"{workdir} holds a run on {before['tiles']} tiles in batches of {before['batch_size']}, now "
            f"there are {data['tiles']} in batches of {data['batch_size']}, or other tiles: "
            "restore the data or give another --workdir."
        )
