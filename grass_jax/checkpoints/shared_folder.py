"""Whether the processes of a job share the folder of their run."""

import secrets
from pathlib import Path

import jax

from grass_jax.sharding import agree, wait_for_all


def refuse_other_folders(workdir: Path, steps: list[int]) -> None:
    """Raises ConfigError where processes have a folder of that name each, on disks that they do not share.

    Args:
        workdir: folder of the run.
        steps: of the checkpoints that this process sees there.
    """
    if jax.process_count() == 1:
        return
    mark = workdir / "shared_by_all"
    if jax.process_index() == 0:
        mark.write_text(secrets.token_hex(8))
    wait_for_all()
    agree(f"{mark.read_text() if mark.exists() else ''} {steps}", "The folder of --workdir")
    if jax.process_index() == 0:
        mark.unlink()
