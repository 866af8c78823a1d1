"""Where the tiles of a scene lie, and which of them overlap."""

import itertools

import numpy as np


def axis_positions(length: int, tile_size: int, stride: int) -> np.ndarray:
    """Starts of the tiles along one axis, the last one aligned to the edge.

    Args:
        length: length of the axis in pixels.
        tile_size: side of a tile in pixels.
        stride: distance between neighbouring tiles in pixels; above `tile_size` it leaves gaps on purpose.

    Returns:
        (k,) int32, increasing; empty where the axis is shorter than a tile.

    Raises:
        ValueError: if `tile_size` or `stride` is below 1.
    """
    if tile_size < 1 or stride < 1:
        raise ValueError(f"tile_size and stride must be at least 1, not {tile_size} and {stride}.")
    if length < tile_size:
        return np.zeros(0, np.int32)
    last = length - tile_size
    starts = np.arange(0, last + 1, stride, dtype=np.int32)
    return starts if starts[-1] == last else np.append(starts, np.int32(last))


def tile_positions(height: int, width: int, tile_size: int, stride: int) -> np.ndarray:
    """Upper left corners of the tiles of a scene, row by row.

    Args:
        height: height of the scene in pixels.
        width: width of the scene in pixels.
        tile_size: side of a tile in pixels.
        stride: distance between neighbouring tiles in pixels.

    Returns:
        (k, 2) int32 of y, x; empty where the scene is smaller than a tile in either direction.

    Raises:
        ValueError: if `tile_size` or `stride` is below 1.
    """
    ys, xs = (axis_positions(length, tile_size, stride) for length in (height, width))
    return np.stack(np.meshgrid(ys, xs, indexing="ij"), -1).reshape(-1, 2)


def overlapping_pairs(positions: np.ndarray, tile_size: int) -> np.ndarray:
    """Pairs of tiles that share at least one pixel of one scene.

    Every tile is sorted into a cell of one tile's size, so only tiles of neighbouring cells are compared.

    Args:
        positions: (n, 3) integers of file, y, x in pixels.
        tile_size: side of a tile in pixels.

    Returns:
        (m, 2) int64 indices i < j, each pair once, sorted.
    """
    file, y, x = (np.asarray(positions, np.int64).reshape(-1, 3)[:, axis] for axis in range(3))
    if not file.size:
        return np.zeros((0, 2), np.int64)
    # A border of one cell around every scene keeps a neighbour's key inside the same scene.
    row, column = y // tile_size + 1, x // tile_size + 1
    rows, columns = row.max() + 2, column.max() + 2
    key = (file * rows + row) * columns + column
    order = np.argsort(key, kind="stable")
    in_order = key[order]
    found = []
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        if (down, right) < (0, 0):
            continue  # the mirrored neighbour finds these pairs
        wanted = key + down * columns + right
        first, last = np.searchsorted(in_order, wanted, "left"), np.searchsorted(in_order, wanted, "right")
        counts = last - first
        i = np.repeat(np.arange(len(key)), counts)
        j = order[np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)]
        close = (np.abs(y[i] - y[j]) < tile_size) & (np.abs(x[i] - x[j]) < tile_size)
        if (down, right) == (0, 0):
            close &= i < j  # inside one cell every pair shows up twice, and each tile with itself
        found.append(np.stack([i[close], j[close]], -1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
