"""Whether a folder can take a checkpoint, asked before it is written to."""

import shutil
from pathlib import Path

from grass_jax.buckets import of_storage, scheme_of
from grass_jax.checkpoints.reading import cause


def obstacle(folder: Path, needed: int) -> str:
    """Says why so many bytes cannot be written below a folder; empty where they can or nobody knows."""
    try:
        if scheme_of(folder):
            folder.exists()  # what orbax asks first, too
            return ""
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
    except Exception as error:  # every library has errors of its own
        if not of_storage(error):
            raise
        return f"{folder} does not answer: {cause(error)}"
    return f"{folder} has {free / 1e6:.1f} MB left and it takes {needed / 1e6:.1f}" if free < needed else ""
