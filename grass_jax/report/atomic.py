"""Files that are either the old one or the new one, whenever the run is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to, and puts what was written in place of `path` when the block ends without an error.

    Args:
        path: The file to replace or create; its folder is made when it is missing.

    Yields:
        The path of a file in the same folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name: what a killed run leaves behind is overwritten by the next one and does not pile up.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
