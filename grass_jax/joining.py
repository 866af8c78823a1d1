"""How the processes of a job find each other at the start, and how a process that fails leaves the others."""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from absl import logging

from grass_jax.config import ConfigError
from grass_jax.rendezvous import meet
from grass_jax.report.progress import Unfailing, say

PATIENCE = 30  # seconds more that JAX's service is given, so that the sentence comes before its abort
# words of the errors that the libraries between processes raise when one of these has gone
EXCHANGES = ("Gloo", "NCCL", "heartbeat", "coordination service")
# errors that would come again; others of JAX's runtime are those of a machine, this one's or another's
OWN = ("INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED")
LOST = 134  # exit code where others have ended or have not come: that of JAX's own abort then (SIGABRT)
LAST_WORDS = 2.0  # seconds that a failing first process leaves the others to say what they have failed of


def join(coordinator: str, processes: int, process: int, *, seconds: float) -> None:
    """Joins the other processes of the job, if there are any; see `sharding.initialize`."""
    if not coordinator and (processes, process) != (1, 0):
        raise ConfigError("Processes started by hand need the address of the first: --coordinator=HOST:PORT.")
    if coordinator:
        meet(coordinator, processes, process, seconds=seconds)
        _join(seconds, coordinator, processes, process, cluster_detection_method="deactivate")
        return
    try:
        _join(seconds)
    except Exception as error:
        # jax's word for "no cluster here"; everything else is a cluster that does not work
        if isinstance(error, ValueError) and "coordinator_address" in str(error):
            _warn_if_one_of_many()
            return
        raise ConfigError(
            f"The cluster's other processes cannot be found ({' '.join(str(error).split())}): mend that, or start "
            "each process with --coordinator, --processes and --process (docs/running.md)."
        ) from error
    _take_own_gpus()


def _join(seconds: float, *where: Any, **how: Any) -> None:
    """Joins JAX's service, or ends the program with a sentence before the service aborts it.

    It waits where no exception can be raised into.
    """

    def end() -> None:
        say(
            f"grass_jax: the other processes of this job have not been met within {seconds:.0f} s: start one process "
            "for every task of the cluster's job, all at once, and let the network pass between their hosts."
        )
        os._exit(LOST)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    jax.config.update("jax_enable_preemption_service", False)  # it swallows SIGTERM, which stopping.py answers
    try:
        jax.distributed.initialize(*where, initialization_timeout=round(seconds + PATIENCE), **how)
    finally:
        timer.cancel()


def _warn_if_one_of_many() -> None:
    index = os.environ.get("JOB_COMPLETION_INDEX")  # of a Kubernetes Indexed Job
    if index:
        logging.warning(
            "This is pod %s of a Kubernetes Indexed Job, and it runs alone: give --coordinator, --processes and "
            "--process=$JOB_COMPLETION_INDEX to have its pods train together.",
            index,
        )


def _take_own_gpus() -> None:
    """Lets a Slurm task that is alone on its node, or bound to its own GPU, use what it sees.

    JAX takes the GPU of the task's number on the node: one of many in the first case, one that is not there in the
    second.
    """
    if "SLURM_LOCALID" not in os.environ or os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return
    alone = os.environ.get("SLURM_NTASKS") == os.environ.get("SLURM_STEP_NUM_NODES")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if alone or (len(seen) == 1 and seen != [""]):
        jax.config.update("jax_cuda_visible_devices", "all")


def leave(code: int) -> NoReturn:
    """Ends the program with a status that the other processes of the job, if there are any, do not come to."""
    if jax.distributed.is_initialized():
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """Ends this process of a job at once where an error leaves the block.

    At the end of a program JAX waits up to five minutes for the other processes, and these wait for this one in their
    next step. Once it is gone they end too: at once, or when its heartbeat has been missing for 100 s. A status that
    is a number (0, or that of a run told to stop) is an end that all processes come to, and changes nothing. An error
    of JAX's runtime ends this one with `LOST`, as it may be another's end: a start from the checkpoint is the answer.
    """
    try:
        yield
    except BaseException as error:
        told = isinstance(error, SystemExit)
        if not jax.distributed.is_initialized() or (told and not isinstance(error.code, str)):
            raise
        gone = any(word in str(error) for word in EXCHANGES)
        lost = gone or (isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(OWN))
        try:
            _last_words(error, gone)
        finally:
            os._exit(LOST if lost else 1)


def _last_words(error: BaseException, gone: bool) -> None:
    if gone:
        what = " ".join(str(error).split())[:200]
        say(
            f"grass_jax: another process of this job has ended or does not answer ({what}); its own log says why, "
            "and the same command goes on from the newest checkpoint."
        )
    else:
        say(str(error.code) if isinstance(error, SystemExit) else traceback.format_exc().rstrip())
    Unfailing(sys.stdout).flush()
    if jax.process_index() == 0:
        time.sleep(LAST_WORDS)
