"""Connected regions of many binary masks at once: 32 pixels to a word, whole runs filled in one addition.

A mask is cut into blocks of 32 x 32 pixels and stored as uint32 `words` of shape (32, by, bx, n): word r of a block is
its column r, and bit k of that word is row k. The n masks lie along the last axis, so every operation below is
elementwise over masks (vector lanes on every kind of device) and shifts only move whole slices.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

WORD = 32
_ONES = np.uint32(0xFFFFFFFF)
_BITS = np.uint32(1) << np.arange(WORD, dtype=np.uint32)


def pack(masks: Array) -> Array:
    """Pack boolean masks into words.

    Args:
        masks: (n, h, w) booleans.

    Returns:
        (32, by, bx, n) uint32 with by = ceil(h / 32), bx = ceil(w / 32); pixels beyond the mask are 0.
    """
    n, h, w = masks.shape
    masks = lax.pad(masks, np.False_, ((0, 0, 0), (0, -h % WORD, 0), (0, -w % WORD, 0)))
    # The words of rows are made first, with x before y, because that is how the product of the resize lies in memory.
    # Slices and not a sum over the axis: XLA turns these into one vectorised pass, a third of the sum's time on CPU.
    masks = jnp.swapaxes(masks, 1, 2).reshape(n, -1, WORD, masks.shape[1])
    words = masks[:, :, 0].astype(jnp.uint32)
    for k in range(1, WORD):
        words = words | (masks[:, :, k].astype(jnp.uint32) << k)
    return _turn(words.reshape(n, words.shape[1], -1, WORD).transpose(3, 2, 1, 0))


def rows(words: Array) -> Array:
    """Say which rows hold a pixel: (32, by, bx, n) words -> (32 * by, n) booleans."""
    packed = _any_bit(words, (0, 2))
    bits = (packed[:, None] & _BITS[:, None]) != 0
    return bits.reshape(-1, words.shape[3])


def columns(words: Array) -> Array:
    """Say which columns hold a pixel: (32, by, bx, n) words -> (32 * bx, n) booleans."""
    return (_any_bit(words, (1,)) != 0).transpose(1, 0, 2).reshape(-1, words.shape[3])


def keep(words: Array, in_rows: Array, in_columns: Array) -> Array:
    """Keep the pixels that lie in the given rows and columns.

    Args:
        words: (32, by, bx, n) packed masks.
        in_rows: (32 * by, n) booleans.
        in_columns: (32 * bx, n) booleans.

    Returns:
        (32, by, bx, n) packed masks.
    """
    _, by, bx, n = words.shape
    row_bits = jnp.sum(jnp.where(in_rows.reshape(by, WORD, n), _BITS[:, None], np.uint32(0)), axis=1, dtype=jnp.uint32)
    column = in_columns.reshape(bx, WORD, n).transpose(1, 0, 2)
    return jnp.where(column[:, None], words & row_bits[None, :, None], np.uint32(0))


def flood(masks: Array, seeds: Array) -> Array:
    """Grow the seeds to the whole 8-connected regions of the masks that they touch.

    A turn of the loop fills every run of pixels in a column, then steps to the diagonal neighbours, then fills every
    run in a row, so that the number of turns counts the bends of a region and not its pixels. The loop ends when no
    mask of the batch changes; under `jit` with sharded masks that test would be a collective at every turn: run it
    under `shard_map`.

    Args:
        masks: (32, by, bx, n) packed masks.
        seeds: (32, by, bx, n) packed pixels to start from; those outside the mask are ignored.

    Returns:
        (32, by, bx, n) packed regions.
    """
    turned = _turn(masks)

    def grow(state):
        region, _ = state
        grown = _to_diagonals(masks, _fill_runs(masks, region, axis=1))
        grown = _turn(_fill_runs(turned, _turn(grown), axis=2))
        return grown, jnp.any(grown != region)

    seeds = seeds & masks
    return lax.while_loop(lambda state: state[1], grow, (seeds, jnp.any(seeds != 0)))[0]


def _any_bit(words: Array, axes: tuple[int, ...]) -> Array:
    return lax.reduce(words, np.uint32(0), lax.bitwise_or, axes)


def _shift(words: Array, by: int, axis: int) -> Array:
    """Move slices one place up (by=1) or down (by=-1) an axis; zeros enter."""
    zeros = jnp.zeros_like(lax.slice_in_dim(words, 0, 1, axis=axis))
    if by == 1:
        return jnp.concatenate([zeros, lax.slice_in_dim(words, 0, -1, axis=axis)], axis)
    return jnp.concatenate([lax.slice_in_dim(words, 1, None, axis=axis), zeros], axis)


def _turn(words: Array) -> Array:
    """Transpose every block of 32 x 32 bits: words of columns become words of rows, and back (five swaps of halves)."""
    shape, low, half = words.shape, 0x0000FFFF, WORD // 2
    while half:
        pairs = words.reshape(WORD // (2 * half), 2, half, *shape[1:])
        first, second = pairs[:, 0], pairs[:, 1]
        swap = ((first >> half) ^ second) & np.uint32(low)
        words = jnp.stack([first ^ (swap << half), second ^ swap], axis=1).reshape(shape)
        half //= 2
        low ^= (low << half) & 0xFFFFFFFF
    return words


def _fill_runs(masks: Array, seeds: Array, axis: int) -> Array:
    """Fill the runs of mask bits that hold a seed; bit 31 of a word is followed by bit 0 of the next along `axis`."""
    # Towards higher bits: the carry of an addition runs through the ones of the mask and stops at the first zero.
    total = masks + seeds
    overflows, passes = total < masks, total == _ONES
    carry = _carries(overflows, passes, axis, reverse=False)
    total = total + carry.astype(jnp.uint32)
    filled = ((total ^ masks) & masks) | seeds
    # Towards lower bits nothing carries: doubling distances within a word, then runs across words as leading ones.
    open_, distance = masks, 1
    while distance < WORD:
        filled = filled | (open_ & (filled >> distance))
        open_ = open_ & (open_ >> distance)
        distance *= 2
    full = masks == _ONES
    carry = _carries((filled & 1) != 0, full, axis, reverse=True)
    leading = jnp.where(full, _ONES, ~(_ONES >> jnp.minimum(lax.clz(~masks), np.uint32(WORD - 1))))
    return jnp.where(carry, filled | leading, filled)


def _carries(makes: Array, passes: Array, axis: int, reverse: bool) -> Array:
    """Say which words receive a carry from the one before them along `axis`."""
    count = makes.shape[axis]
    carry = jnp.zeros_like(lax.index_in_dim(makes, 0, axis, keepdims=True))
    received = []
    for i in reversed(range(count)) if reverse else range(count):
        received.append(carry)
        carry = lax.slice_in_dim(makes, i, i + 1, axis=axis) | (lax.slice_in_dim(passes, i, i + 1, axis=axis) & carry)
    return jnp.concatenate(received[::-1] if reverse else received, axis)


def _to_diagonals(masks: Array, seeds: Array) -> Array:
    """Add the mask's pixels that are a diagonal (or horizontal) neighbour of a seed; vertical ones are in its run."""
    above = (seeds << 1) | (_shift(seeds, 1, axis=1) >> (WORD - 1))
    below = (seeds >> 1) | (_shift(seeds, -1, axis=1) << (WORD - 1))
    tall = seeds | above | below
    # The neighbour of a block's first (last) column is the last (first) column of the block beside it.
    left = jnp.concatenate([_shift(tall[-1:], 1, axis=2), tall[:-1]], axis=0)
    right = jnp.concatenate([tall[1:], _shift(tall[:1], -1, axis=2)], axis=0)
    return seeds | (masks & (left | right))
