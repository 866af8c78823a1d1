"""Room on a disk, before it is written to."""

import shutil
from pathlib import Path


def too_little_space(folder: Path, needed: int) -> str:
    """Says how much room is missing on the disk of a folder; empty where there is enough or nobody knows."""
    if "://" in str(folder):
        return ""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return f"{folder} has {free / 1e6:.1f} MB left and it takes {needed / 1e6:.1f}" if free < needed else ""
