"""Devices and hosts: the only file that knows of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grass_jax.config import ConfigError

AXIS = "data"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, `data`, over the given devices or all devices of all processes."""
    devices = jax.devices() if devices is None else devices
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


def initialize(coordinator: str = "", processes: int = 1, process: int = 0) -> None:
    """Joins the other processes of the job; call it before anything touches a device.

    Args:
        coordinator: host:port of process 0 for processes started by hand; empty finds the cluster by itself (Cloud TPU
            pods, Slurm, Open MPI and what else `jax.distributed` knows) and stays alone where there is none.
        processes: number of processes started by hand.
        process: number of this one.

    Raises:
        ConfigError: processes are counted but no coordinator is given.
    """
    if not coordinator and (processes, process) != (1, 0):
        raise ConfigError("Processes started by hand need the address of the first: --coordinator=HOST:PORT.")
    if coordinator:
        jax.distributed.initialize(coordinator, processes, process)
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        # jax's word for "no cluster here"; everything else is a cluster that does not work
        if "coordinator_address" not in str(error):
            raise


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
    from jax.experimental import multihost_utils

    # two halves of 32 bits: JAX has no 64-bit integers by default
    halves = np.stack([counts & 0xFFFFFFFF, counts >> 32]).astype(np.uint32)
    gathered = np.asarray(multihost_utils.process_allgather(halves)).astype(np.int64)
    return (gathered[:, 0] + (gathered[:, 1] << 32)).sum(0)


def same_everywhere(value: float) -> float:
    """The first process's value in every process, to six decimals: for what each of them has measured by itself."""
    millionths = round(1e6 * value) if jax.process_index() == 0 else 0
    return int(sum_over_processes(np.array([millionths], np.int64))[0]) / 1e6


def wait_for_all() -> None:
    """Waits until every process has come here: what the first has written is then there for all."""
    sum_over_processes(np.zeros(1, np.int64))
