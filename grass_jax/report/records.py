"""JSON files as a kill, a full disk or another program may have left them."""

import json
from pathlib import Path
from typing import Any

from absl import logging

from grass_jax.buckets import of_storage


def read_record(path: Path, lost: str = "") -> dict[str, Any]:
    """What a file of JSON holds; nothing where there is none or it is damaged.

    Args:
        path: of the file, on this machine or in a bucket.
        lost: what follows where it is damaged, for a warning; empty warns of nothing.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except Exception as error:  # every library has errors of its own
        if not (of_storage(error) or isinstance(error, (ValueError, RecursionError))):
            raise
        record = None
    if isinstance(record, dict):
        return record
    if lost:
        logging.warning("%s is damaged or cannot be read: %s.", path, lost)
    return {}
