"""What a run ran on: versions, machine, devices."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from grass_jax.data.workers import cores

PACKAGES = (
    "grass_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow-datasets",
    "grain",
)


def environment() -> dict[str, Any]:
    """Describes the software and hardware of this process; to be called after `jax.distributed` is up.

    Returns:
        Versions (None for what is not installed), commit, platform, CPU cores that this process may use, memory in
        bytes, jax backend, kind and number of devices, number of processes; nothing that JSON does not know.
    """
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(Path(__file__).resolve().parents[2]),
        "platform": platform.platform(),
        "cpu_count": cores(),
        "memory_bytes": _memory(),
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(root: Path) -> str | None:
    """The commit of the checkout at `root`, with "+changes" when tracked files differ from it."""
    # An installed package may lie inside the checkout of another project, whose commit would say nothing.
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on this system
        return None
