"""Label budgets: which training tiles keep their labels, drawn by seed or given as a list."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grass_jax.data.source import TileSource
from grass_jax.report.atomic import replacing


def choose_labels(groups: Sequence[str], labels: int | float, seed: int) -> np.ndarray:
    """Draw training tiles, evenly from all groups; a smaller budget of the same seed lies inside a larger one.

    Every round takes one tile, drawn at random, of every group that has one left, in a random order of the groups.

    Args:
        groups: group of every tile.
        labels: number of tiles, or a share of them between 0 and 1 (exclusive); 0 takes all.
        seed: seed of the draw.

    Returns:
        (n,) int64 indices of tiles in the order they are drawn.

    Raises:
        ValueError: if there are not as many tiles, or `labels` is neither number nor share.
    """
    if labels < 0 or (labels != int(labels) and labels > 1):
        raise ValueError(f"The label budget must be a whole number of tiles or a share between 0 and 1, not {labels}.")
    if isinstance(labels, float) and labels == 1:
        raise ValueError("A label budget of 1.0 may mean one tile or all: write 1 or 'all'.")
    count = max(1, int(labels * len(groups) + 0.5)) if 0 < labels < 1 else int(labels) or len(groups)
    if count > len(groups):
        raise ValueError(
            f"The label budget of {count} is larger than the {len(groups)} labelled training tiles: lower it, use "
            "'all', or set a smaller stride."
        )
    names, group = np.unique(np.array(groups, dtype=str), return_inverse=True)
    # Raw words, because NumPy promises the bits of a bit generator but not those of permutation().
    bits = np.random.Philox(np.random.SeedSequence([seed, 0xB0D9E7]))
    place = np.argsort(np.argsort(bits.random_raw(len(names)), kind="stable"))[group]
    shuffled = np.lexsort((bits.random_raw(len(groups)), group))
    starts = np.searchsorted(group[shuffled], np.arange(len(names)))
    turn = np.empty(len(groups), np.int64)
    turn[shuffled] = np.arange(len(groups)) - starts[group[shuffled]]
    return np.lexsort((place, turn))[:count]


def write_labels(path: str | os.PathLike, source: TileSource, indices: Sequence[int] | np.ndarray) -> None:
    """Write chosen tiles as a list, a line `file<TAB>y<TAB>x` each, in their order.

    Args:
        path: the file to write or replace.
        source: tiles of a labelled set.
        indices: those to write.
    """
    rows = source.positions[np.asarray(indices, np.int64)].tolist()
    lines = [f"{source.files[file]}\t{y}\t{x}\n" for file, y, x in rows]
    with replacing(path) as temporary:
        temporary.write_bytes(os.fsencode("".join(lines)))


def read_labels(path: str | os.PathLike, source: TileSource) -> np.ndarray:
    """Indices of the tiles of a list that `write_labels`, or a hand, has written.

    Args:
        path: the list; empty lines are passed over.
        source: tiles of a labelled set.

    Returns:
        (n,) int64 indices in the order of the list.

    Raises:
        ValueError: if a line is no training tile or stands there twice, or there is none.
        FileNotFoundError: if there is no such list.
    """
    known = {(source.files[file], y, x): i for i, (file, y, x) in enumerate(source.positions.tolist())}
    chosen: dict[int, None] = {}
    if not Path(path).is_file() and Path(path).exists():
        raise ValueError(f"The list {path} is no file: give one with a line file<TAB>y<TAB>x for each tile.")
    for number, line in enumerate(os.fsdecode(Path(path).read_bytes()).split("\n"), 1):
        if not line.strip():
            continue
        try:
            file, y, x = line.rstrip("\r").rsplit("\t", 2)
            index = known[file, int(y), int(x)]
        except (ValueError, KeyError):
            raise ValueError(
                f"Line {number} of {path}, {line[:100]!r}, is no labelled training tile: write file<TAB>y<TAB>x, with "
                "the split, tile_size and stride that the list was made with."
            ) from None
        if index in chosen:
            raise ValueError(f"Line {number} of {path}, {line[:100]!r}, stands there twice: remove one of them.")
        chosen[index] = None
    if not chosen:
        raise ValueError(f"The list {path} names no tile: write a line file<TAB>y<TAB>x for each.")
    return np.fromiter(chosen, np.int64)
