"""Guidance map -> salient box, for a whole batch on the device (arXiv 2306.15868; GeoX-Lab/GraSS `DACrop`)."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from grass_jax.sampling.flood import columns, flood, keep, pack, rows


def resize_maps(heatmaps: Array, size: int) -> Array:
    """Enlarge maps bilinearly: half-pixel centres, edges clamped, no antialiasing; columns first, then rows.

    Args:
        heatmaps: (..., h, w) maps; float64 stays float64, every other type is computed in float32.
        size: side of the result in pixels.

    Returns:
        (..., size, size) maps; a value that is not finite spreads over its row and column.

    Source: GeoX-Lab/GraSS resizes with OpenCV's default `cv2.resize` in float32.
    """
    maps = heatmaps.astype(jnp.promote_types(heatmaps.dtype, jnp.float32))
    h, w = maps.shape[-2:]
    # Products with small matrices and not gathers: they are fast everywhere, and a product is not computed a second
    # time inside a later fusion, where it may round differently: then no pixel would equal the maximum.
    maps = jnp.einsum("...yx,Xx->...yX", maps, _bilinear(w, size), precision=lax.Precision.HIGHEST)
    maps = jnp.einsum("...yX,Yy->...XY", maps, _bilinear(h, size), precision=lax.Precision.HIGHEST)
    return jnp.swapaxes(maps, -1, -2)


def salient_boxes(heatmaps: Array, *, size: int | None, threshold: float = 0.5) -> Array:
    """Find the box of each map's leading connected region.

    The mask is map > min + threshold * (max - min). Its 8-connected regions are numbered in raster order of their first
    pixels; the box is that of the highest number among the regions whose bounding box, not only the region, holds a
    pixel equal to the map's maximum. A map without such a region (constant, or not finite) gives the whole view.

    Args:
        heatmaps: (..., h, w) maps of any sign.
        size: side in pixels to which the maps are enlarged first; None takes them as they are.
        threshold: height of the cut between a map's minimum (0) and its maximum (1).

    Returns:
        (..., 4) int32 boxes (y0, x0, y1, x1), half-open, in pixels of the (enlarged) map.

    Raises:
        ValueError: threshold is not in [0, 1), or heatmaps has fewer than three axes.

    Source: GeoX-Lab/GraSS `DACrop`: label, regionprops, and the largest maximum within a box, ties to the later region.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold is {threshold}: choose a value from 0 up to, not including, 1.")
    if heatmaps.ndim < 3:
        raise ValueError(f"heatmaps has shape {heatmaps.shape}: give it axes (..., h, w), at least one before h.")
    maps = heatmaps.reshape(-1, *heatmaps.shape[-2:])
    maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32)) if size is None else resize_maps(maps, size)
    bottom, top = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    salient = maps > bottom + threshold * (top - bottom)
    boxes = _leading_boxes(salient, maps == top)
    return boxes.reshape(*heatmaps.shape[:-2], 4)


def _bilinear(length: int, size: int) -> np.ndarray:
    """Make the (size, length) matrix of one axis in NumPy, with float32 weights."""
    position = (np.arange(size) + 0.5) * (length / size) - 0.5
    low = np.floor(position).astype(np.int32)
    inside = (low >= 0) & (low < length - 1)
    weight = np.where(inside, position - low, 0).astype(np.float32)
    low = np.clip(low, 0, length - 1)
    pixel, matrix = np.arange(size), np.zeros((size, length), np.float32)
    matrix[pixel, np.minimum(low + 1, length - 1)] = weight
    matrix[pixel, low] = 1 - weight
    return matrix


def _leading_boxes(salient: Array, is_top: Array) -> Array:
    """Apply the box rule to (n, h, w) masks and the pixels equal to the maximum; see `salient_boxes`.

    Labelling everything is not needed. A box holds a pixel only if its region has pixels in that pixel's row and in its
    column (a connected region occupies every row and column of its box). So regions are taken off one at a time, first
    those that hold a maximum, then only those that could still win: they reach a maximum's row, something left reaches
    a maximum's column, and they do not begin above the best region so far, since a higher number begins later.
    """
    _, h, w = salient.shape
    mask = pack(salient)
    tops = pack(is_top) & mask
    top_rows, top_columns = rows(tops), columns(tops)
    all_rows, all_columns = jnp.ones_like(top_rows), jnp.ones_like(top_columns)
    row = lax.broadcasted_iota(jnp.int32, top_rows.shape, 0)
    column = lax.broadcasted_iota(jnp.int32, top_columns.shape, 0)

    def candidates(rest):
        holding = rest & tops
        reaching = keep(rest, top_rows & (columns(rest) & top_columns).any(0), all_columns)
        return jnp.where((holding != 0).any((0, 1, 2)), holding, reaching)

    def take(state):
        rest, todo, first, box = state
        last_row = _last(rows(todo))
        seed = keep(todo, row == last_row, all_columns)
        seed = keep(seed, all_rows, column == _first(columns(seed)))
        region = flood(mask, seed)
        in_rows, in_columns = rows(region), columns(region)
        y0, y1, x0, x1 = _first(in_rows), _last(in_rows) + 1, _first(in_columns), _last(in_columns) + 1
        inside = keep(tops, (row >= y0) & (row < y1), (column >= x0) & (column < x1))
        begins = y0 * w + _first(columns(keep(region, row == y0, all_columns)))
        wins = (inside != 0).any((0, 1, 2)) & (begins > first)
        first = jnp.where(wins, begins, first)
        box = jnp.where(wins, jnp.stack([y0, x0, y1, x1]), box)
        rest = keep(rest & ~region, row >= first // np.int32(w), all_columns)
        return rest, candidates(rest), first, box

    # A map without a top pixel in its mask starts with the whole view and a first pixel that no region comes after.
    has_top = (tops != 0).any((0, 1, 2))
    first = jnp.where(has_top, jnp.int32(-1), jnp.int32(h * w))
    box = jnp.where(has_top, jnp.int32(0), jnp.array([0, 0, h, w], jnp.int32)[:, None])
    state = (mask, tops, first, box)
    return lax.while_loop(lambda state: jnp.any(state[1] != 0), take, state)[3].T


def _first(found: Array) -> Array:
    """Give the index of the first True along axis 0."""
    return lax.argmax(found, 0, jnp.int32)


def _last(found: Array) -> Array:
    """Give the index of the last True along axis 0."""
    return found.shape[0] - 1 - lax.argmax(found[::-1], 0, jnp.int32)
