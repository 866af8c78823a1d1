"""What places the two views of a tile share: for methods that match cells of the feature maps, or regions, by place."""

import jax
import jax.numpy as jnp

from grass_jax.augment import Geometry


def require_places(geometry: Geometry | None, method: str) -> Geometry:
    """Returns the geometry; raises ValueError where there is none."""
    if geometry is None:
        raise ValueError(f"{method} needs the places of the views: let augment return (views, geometry).")
    return geometry


def near_cells(geometry: Geometry, height: int, width: int, distance: float) -> jax.Array:
    """Says which cells of the two views' feature maps look at about the same place of their tile.

    A cell looks at its centre. Two are near where the distance of their centres in the tile is below `distance` times
    the diagonal of a cell, of the larger cell where the views differ in scale.

    Args:
        geometry: of the views, (b, 2).
        height: rows h of the feature maps.
        width: their columns w.
        distance: in diagonals of a cell.

    Returns:
        (b, h w, h w) bool: cell i of the first view, cell j of the second, both row by row.

    Source: arXiv 2011.10043, equation 1; the larger of the two diagonals as in zdaxie/PixPro.
    """
    boxes = geometry.boxes.astype(jnp.float32)
    start, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5) / height
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5) / width
    x = jnp.where(geometry.flips[..., None], 1 - x, x)
    y = start[..., 0, None] + extent[..., 0, None] * y  # (b, 2, h) tile pixels
    x = start[..., 1, None] + extent[..., 1, None] * x
    apart_y = jnp.square(y[:, 0, :, None] - y[:, 1, None, :])  # (b, h, h)
    apart_x = jnp.square(x[:, 0, :, None] - x[:, 1, None, :])
    apart = apart_y[:, :, None, :, None] + apart_x[:, None, :, None, :]
    diagonal = jnp.square(extent[..., 0] / height) + jnp.square(extent[..., 1] / width)
    near = apart < distance**2 * diagonal.max(1)[:, None, None, None, None]
    return near.reshape(-1, height * width, height * width)


def shared_regions(geometry: Geometry, grid: int) -> tuple[jax.Array, jax.Array]:
    """Divides what both views of a tile see into a grid of regions.

    Args:
        geometry: of the views, (b, 2).
        grid: regions g along each side.

    Returns:
        Rows and columns of the regions in either view, (b, 2, g, 2): first and last edge as shares of the view's height
        and width. The first edge is not below the last where the views share nothing.
    """
    boxes = geometry.boxes.astype(jnp.float32)
    start, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    low, high = boxes[..., :2].max(1), boxes[..., 2:].min(1)
    steps = jnp.arange(grid + 1, dtype=jnp.float32) / grid
    edges = low[..., None] + (high - low)[..., None] * steps  # (b, 2 axes, g + 1) tile pixels
    shares = (edges[:, None] - start[..., None]) / extent[..., None]  # (b, 2 views, 2 axes, g + 1)
    rows, columns = (jnp.stack([edge[..., :-1], edge[..., 1:]], -1) for edge in (shares[:, :, 0], shares[:, :, 1]))
    return rows, jnp.where(geometry.flips[..., None, None], 1 - columns[..., ::-1], columns)


def coverage(intervals: jax.Array, cells: int) -> jax.Array:
    """How much of an interval lies in each of equally wide cells, as a matrix that averages over the interval.

    Args:
        intervals: (..., 2), first and last edge as shares of the whole.
        cells: how many cells n the whole has.

    Returns:
        (..., n); an interval's row sums to 1, or is 0 where its first edge is not below its last.
    """
    first, last = intervals[..., :1], intervals[..., 1:]
    edges = jnp.arange(cells + 1, dtype=intervals.dtype) / cells
    inside = jnp.maximum(jnp.minimum(last, edges[1:]) - jnp.maximum(first, edges[:-1]), 0)
    return inside / jnp.maximum(last - first, 1e-6)
