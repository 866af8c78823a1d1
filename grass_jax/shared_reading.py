"""Files that the first process reads for all: another host may see a shared disk as it was a moment ago."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from grass_jax.sharding import in_all


def read_by_first(read: Callable[[], Any]) -> Any:
    """Reads in the first process alone and tells the others; every process must call it.

    Args:
        read: returns what JSON can hold; it must not wait for the other processes.

    Returns:
        What `read` of the first process returns, in every process.

    Raises:
        ConfigError: in the other processes, where `read` fails; in the first one its own error.
    """
    if jax.process_count() == 1:
        return read()
    first = jax.process_index() == 0
    own = in_all(lambda: json.dumps(read()).encode() if first else b"")
    length = int(broadcast_one_to_all(np.array(len(own), np.int32)))
    content = np.frombuffer(own.ljust(length, b"\0"), np.uint8)
    return json.loads(np.asarray(broadcast_one_to_all(content)).tobytes())
