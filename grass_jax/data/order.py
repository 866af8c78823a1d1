"""Which tiles make up the batch of a step: a function of the seed and the step alone."""

from typing import NamedTuple

import numpy as np

from grass_jax.data.tiles import overlapping_pairs

CANDIDATES = (64, 1024)  # tiles tried for a swap: a few at first, many where none of those would help
PATIENCE = 8  # rounds without fewer clashes before the rest is left and counted
EFFORT = 200_000_000  # neighbours looked at before the rest is left and counted: about two seconds


class Overlaps(NamedTuple):
    """Neighbours of every tile, in compressed rows: those of tile i are `neighbours[starts[i]:starts[i + 1]]`."""

    starts: np.ndarray
    neighbours: np.ndarray

    def of(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours of several tiles one after the other, and for each of them which of the tiles it belongs to."""
        first, counts = self.starts[tiles], self.starts[tiles + 1] - self.starts[tiles]
        owner = np.repeat(np.arange(len(tiles)), counts)
        return self.neighbours[np.arange(len(owner)) + (first - np.cumsum(counts) + counts)[owner]], owner


def find_overlaps(positions: np.ndarray, tile_size: int) -> Overlaps:
    """Neighbour lists of tiles that overlap in one scene.

    Args:
        positions: (n, 3) integers of file, y, x in pixels.
        tile_size: side of a tile in pixels.

    Returns:
        the lists; every pair stands in both tiles' lists.
    """
    pairs = overlapping_pairs(positions, tile_size)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    starts = np.searchsorted(both[:, 0], np.arange(len(positions) + 1))
    return Overlaps(starts, both[:, 1].astype(np.int32))


def epoch_order(seed: int, epoch: int, *, tiles: int, batch_size: int, overlaps: Overlaps) -> tuple[np.ndarray, int]:
    """The batches of one epoch: every tile at most once, overlapping tiles apart where that can be done.

    Two overlapping tiles in a batch would be pushed apart as negatives although they show the same ground. A random
    order has few such pairs, so they are mended by swaps with tiles of other batches (or with those left over), which
    leaves the order as good as random.

    Args:
        seed: the run's seed.
        epoch: number of the epoch, from 0.
        tiles: number of tiles.
        batch_size: tiles of a global batch; the last, partial batch is left out (other tiles in every epoch).
        overlaps: what `find_overlaps` found.

    Returns:
        (steps, batch_size) int32 indices of tiles, and the number of overlapping pairs that still share a batch.

    Raises:
        ValueError: if `batch_size` is below 1 or above the number of tiles.
    """
    if not 1 <= batch_size <= tiles:
        raise ValueError(f"batch_size must be between 1 and the number of tiles ({tiles}), not {batch_size}.")
    # Raw words and a stable sort, because NumPy promises the bits of a bit generator but not those of permutation().
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    slots = np.argsort(bits.random_raw(tiles), kind="stable")
    steps = tiles // batch_size
    left = 0
    if len(overlaps.neighbours):
        left = _separate(slots, steps, batch_size, overlaps, bits)
    return slots[: steps * batch_size].reshape(steps, batch_size).astype(np.int32), left


def _separate(slots: np.ndarray, steps: int, batch_size: int, overlaps: Overlaps, bits: np.random.Philox) -> int:
    """Swap tiles in place until no batch holds two that overlap, or no swap helps; returns the pairs that stay."""
    tiles = len(slots)
    place = np.argsort(slots)  # tile -> its place in the order
    batch = np.minimum(place // batch_size, steps)  # what is left over counts as batch `steps`, where nothing clashes
    everyone, owner = overlaps.of(np.arange(tiles))
    together = (batch[owner] == batch[everyone]) & (batch[owner] < steps)
    own = np.bincount(owner[together], minlength=tiles)  # tile -> how many of its own batch it overlaps

    def neighbours(tile: int) -> np.ndarray:
        return overlaps.neighbours[overlaps.starts[tile] : overlaps.starts[tile + 1]]

    def move(tile: int, target: int) -> None:
        near = neighbours(tile)
        if batch[tile] < steps:
            own[near[batch[near] == batch[tile]]] -= 1
        batch[tile] = target
        rivals = near[batch[near] == target] if target < steps else near[:0]
        own[rivals] += 1
        own[tile] = len(rivals)

    fewest, stale, effort = own.sum(), 0, EFFORT
    while fewest and stale < PATIENCE and effort > 0:
        for i in np.flatnonzero(own).tolist():
            if not own[i]:
                continue  # an earlier swap of this round has freed it
            home, near = int(batch[i]), neighbours(i)
            mine = np.bincount(batch[near], minlength=steps + 1)  # batch -> how many of it tile i overlaps
            mine[steps] = 0
            for count in CANDIDATES:
                others = (
                    slots if tiles <= count else slots[(bits.random_raw(count) % np.uint64(tiles)).astype(np.int64)]
                )
                others = others[batch[others] != home]
                there = batch[others]
                touching = np.isin(others, near)  # the two pass each other in the swap
                if batch_size < len(others):  # overlaps are mutual: count from the side with fewer tiles
                    looked_at, _ = overlaps.of(slots[home * batch_size : (home + 1) * batch_size])
                    in_home = np.bincount(looked_at, minlength=tiles)[others] - touching
                else:
                    looked_at, whose = overlaps.of(others)
                    in_home = np.bincount(whose[batch[looked_at] == home], minlength=len(others)) - touching
                in_theirs = np.where(there < steps, mine[there] - touching, 0)
                change = in_theirs + in_home - own[i] - own[others]
                effort -= len(looked_at)
                if len(others) and change.min() < 0:
                    break
            if not len(others) or change.min() > 0:
                continue
            # Tiles left over are the last choice: nothing clashes there, and crowded tiles would gather among them.
            change = np.where((there == steps) & (change[there < steps] < 0).any(), tiles, change)
            good = others[change == change.min()]  # a swap that only moves the clash may open the way for the next
            j = int(good[int(bits.random_raw() % np.uint64(len(good)))])
            target = int(batch[j])
            move(i, target)
            move(j, home)
            slots[place[i]], slots[place[j]] = j, i
            place[i], place[j] = place[j], place[i]
            if effort <= 0:
                break
        stale = stale + 1 if own.sum() >= fewest else 0
        fewest = min(fewest, own.sum())
    return int(own.sum()) // 2
