"""Runs what a config names: `python main.py --config=configs/gs.py`."""

import signal
import sys
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from grass_jax import pretrain, schemas, sharding
from grass_jax.buckets import BucketError, place
from grass_jax.checkpoints.reading import DamagedError
from grass_jax.checkpoints.saving import ResumeError, SaveError
from grass_jax.command_line import parse
from grass_jax.comparison import run as compare
from grass_jax.config import ConfigError
from grass_jax.data.faults import DataError, cause_of
from grass_jax.interop import export
from grass_jax.joining import LOST, failing_at_once, leave
from grass_jax.planning import dry_run
from grass_jax.rendezvous import NotMetError
from grass_jax.report.atomic import DiskFullError
from grass_jax.report.progress import say
from grass_jax.report.terminal import show_plain_messages
from grass_jax.segment import apply, finetune
from grass_jax.stopping import EXIT_CODES, Stopped, end_as_others_do
from grass_jax.train import DivergedError

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with a preset after a colon (configs/gs.py).")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; runs/<config>_<preset> when empty.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, for processes started by hand.")
PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes started by hand.")
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Say what the run will need on this machine, and stop.")
PROCESS = flags.DEFINE_integer("process", 0, "Number of this process, from 0.")
# what is answered by its sentence alone
EXPLAINED = (ConfigError, DataError, ResumeError, DamagedError, DivergedError, SaveError, DiskFullError, BucketError)
TASKS = {
    "pretrain": pretrain.run,
    "segment": finetune.run,
    "evaluate": apply.evaluate_model,
    "predict": apply.predict_images,
    "export": export.run,
    "compare": compare.run,
}


@failing_at_once()
def main(_: list[str]) -> None:
    """Joins the job, turns on the compilation cache and runs the task."""
    config = CONFIG.value
    workdir = WORKDIR.value or f"runs/{config.name}_{config.preset}"
    show_plain_messages()
    end_as_others_do()
    try:
        if config.get("compilation_cache"):
            jax.config.update("jax_compilation_cache_dir", str(place(config.compilation_cache)))
        schemas.check(config)
        sharding.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        (dry_run.run if DRY_RUN.value else TASKS[config.task])(config, workdir)
        sharding.wait_for_all()  # JAX waits five minutes for the last process, and then aborts the others
    except NotMetError as error:
        say(f"grass_jax: {error}")
        sys.exit(LOST)
    except EXPLAINED as error:
        sys.exit(f"grass_jax: {error}")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(f"grass_jax: {in_less_memory(config)} ({cause_of(error)}).")
    except Stopped as stop:
        say(f"grass_jax: {stop}")
        sys.exit(stop.code)
    except KeyboardInterrupt:
        resumes = "phases" in config or config.task == "compare"
        goes_on = f" goes on from the newest checkpoint in {workdir}" if resumes else " starts over"
        say(f"grass_jax: interrupted; the same command{goes_on}.")
        leave(EXIT_CODES[signal.SIGINT])


def in_less_memory(config: Any) -> str:
    """Says what to change where the memory of a device is too small."""
    parts = 4 * config.get("micro_batches", 0)
    if not parts:
        return "the device's memory is too small: lower batch_size; --dry_run says the largest one of a training"
    return (
        "the device's memory is too small for this batch: --dry_run says the largest config.batch_size that fits, and "
        f"config.micro_batches={parts} keeps the batch and holds 1/{parts} of it at a time"
    )


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
