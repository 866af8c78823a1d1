"""Devices and hosts: the only file that knows of them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grass_jax.config import ConfigError
from grass_jax.joining import join

AXIS = "data"
START_SECONDS = 300.0  # in which all processes of a job must have come
MESSAGE = 1000  # bytes of an error that other processes repeat
Result = TypeVar("Result")


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, `data`, over the given devices or all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    # the rows that a process loads are neighbours in the batch: chips of a TPU pod are numbered across hosts
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    # Auto axes: under the Explicit default of jax.make_mesh gathers need their output sharding spelled out
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_tile(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis, the tiles, is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def each_device_alone(mesh: Mesh) -> Callable[[Callable], Callable]:
    """Makes a transformation under which a function of per-tile arrays runs on each device's own tiles.

    A `while_loop` under plain jit would ask all devices at every turn whether they are done; under this it does not.
    """

    def local(function: Callable) -> Callable:
        rows = PartitionSpec(AXIS)
        return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)

    return local


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays, split by tile, of the rows that this process has loaded."""
    sharding = split_by_tile(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def initialize(coordinator: str = "", processes: int = 1, process: int = 0, *, seconds: float = START_SECONDS) -> None:
    """Joins the other processes of the job; call it before anything touches a device.

    Args:
        coordinator: host:port of process 0 for processes started by hand; empty finds the cluster by itself (Cloud TPU
            pods, Slurm, Open MPI and what else `jax.distributed` knows) and stays alone where there is none.
        processes: number of processes started by hand.
        process: number of this one.
        seconds: how long to wait for the others.

    Raises:
        ConfigError: processes are counted but no coordinator is given, or the processes do not find each other. In a
            cluster that JAX has found by itself, waiting in vain ends the program with a sentence instead.
    """
    join(coordinator, processes, process, seconds=seconds)
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    # What exchanges something for the first time must come within 30 s of the others on CPUs: now, while all of them
    # are here, and not after compiling for a while
    mesh = make_mesh()
    ones = global_batch({"ones": np.ones(jax.local_device_count(), np.float32)}, mesh)["ones"]
    jax.jit(lambda x: x.sum(), out_shardings=replicated(mesh))(ones).block_until_ready()
    wait_for_all()


def agree(digest: str, what: str) -> None:
    """Returns where all processes have given the same text.

    Args:
        digest: any text that must be the same in all of them, such as the configuration in JSON.
        what: what it sums up, for the message: "The configuration".

    Raises:
        ConfigError: in every process; names those that differ from the first.
    """
    if jax.process_count() == 1:
        return
    agree_where_known(hashlib.sha256(digest.encode()).hexdigest(), what)


def agree_where_known(text: str, what: str) -> str:
    """Returns what all processes have given that know it.

    Args:
        text: of at most `MESSAGE` bytes; empty in processes that do not know it.
        what: as for `agree`.

    Returns:
        The text, in every process; empty where none knows it.

    Raises:
        ConfigError: in every process; names those that differ from the first that knows it.
    """
    if jax.process_count() == 1:
        return text
    found = _gather(np.frombuffer(text.encode().ljust(MESSAGE, b"\0"), np.uint8))
    texts = [bytes(row[row > 0]).decode() for row in found]
    known = next(filter(None, texts), "")
    other = [str(process) for process, its in enumerate(texts) if its not in ("", known)]
    if other:
        raise ConfigError(
            f"{what} of process {', '.join(other)} differs from that of process {texts.index(known)}: start all "
            f"{len(texts)} processes with the same command, on the same files."
        )
    return known


def in_all(work: Callable[[], Result], kind: type[Exception] = ConfigError) -> Result:
    """Does something that may fail in one process alone, such as opening its host's files; then it fails in all.

    Args:
        work: what each process does; it must not wait for the others.
        kind: of error in the others.

    Returns:
        What `work` returns.

    Raises:
        ConfigError, or `kind`: another process has failed; names it and repeats its message. In that process its own
            error.
    """
    if jax.process_count() == 1:
        return work()
    failed, result = None, None
    try:
        result = work()
    except Exception as error:
        failed = error
    text = (str(failed) or type(failed).__name__).encode()[:MESSAGE] if failed else b""
    found = _gather(np.frombuffer(text.ljust(MESSAGE, b"\0"), np.uint8))
    if failed:
        raise failed
    for process, message in enumerate(found):
        if message.any():
            raise kind(f"Process {process}: {bytes(message[message > 0]).decode(errors='ignore')}")
    return cast(Result, result)


def read_by_first(read: Callable[[], Any]) -> Any:
    """Reads in the first process alone and tells the others: another host may see a shared disk as it was before.

    Args:
        read: returns what JSON can hold; it must not wait for the other processes, all of which call this.

    Returns:
        What `read` of the first process returns, in every process.

    Raises:
        ConfigError: in the other processes, where `read` fails; in the first one its own error.
    """
    if jax.process_count() == 1:
        return read()
    own = in_all(lambda: json.dumps(read()).encode() if jax.process_index() == 0 else b"")
    length = int(sum_over_processes(np.array([len(own)], np.int64))[0])
    return json.loads(_gather(np.frombuffer(own.ljust(length, b"\0"), np.uint8))[0].tobytes())


def as_in_first(tree: Any) -> Any:
    """The first process's arrays in every process, for what each has computed alone; of the same shapes in all."""
    return tree if jax.process_count() == 1 else jax.tree.map(lambda own: _gather(own)[0], tree)


def _gather(own: np.ndarray) -> np.ndarray:
    """The arrays of all processes, one row each."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(own))


def own_copy(tree: Any) -> Any:
    """This process's copy of replicated arrays, on one of its devices: for work that it does alone."""
    return jax.tree.map(lambda a: a.addressable_data(0), tree)


def local_mesh() -> Mesh:
    """A mesh over the devices of this process alone, for work that processes divide among themselves."""
    return make_mesh(jax.local_devices())


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
    """Adds up an array of int64 counts of the same shape over all processes, exactly; every process gets the sum."""
    if jax.process_count() == 1:
        return counts
    # two halves of 32 bits: JAX has no 64-bit integers by default
    gathered = _gather(np.stack([counts & 0xFFFFFFFF, counts >> 32]).astype(np.uint32)).astype(np.int64)
    return (gathered[:, 0] + (gathered[:, 1] << 32)).sum(0)


def wait_for_all() -> None:
    """Waits until every process has come here: what the first has written is then there for all."""
    sum_over_processes(np.zeros(1, np.int64))
