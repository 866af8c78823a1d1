"""Tiles that cannot be read while a run is going: another one takes the place of each, and they are counted."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import logging

from grass_jax.sharding import sum_over_processes

if TYPE_CHECKING:
    from grass_jax.data.source import TileSource

IN_A_ROW = 5  # tiles tried in the place of one
SHARE, FEW = 0.01, 4  # of an epoch's rows, and at least this number, may be replaced
NAMED = 5  # tiles that the log names; after them it says sums


class DataError(RuntimeError):
    """Data cannot be read, or not enough of them; one sentence that says what to change."""


class UnreadableTileError(DataError):
    """One tile cannot be read; `cause` says why."""

    def __init__(self, tile: str, cause: str):
        super().__init__(f"{tile} cannot be read ({cause}): delete that folder to have it prepared again.")
        self.cause = cause

    def __reduce__(self):
        return DataError, self.args  # a worker process sends the sentence


def cause_of(error: Exception | None) -> str:
    """What an error of a reader or decoder says, on one line of 200 characters at most."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def readable(source: "TileSource", numbers: Iterable[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The tiles of these numbers that can be read, for work that can do without some; the log names the others.

    A disk that comes back is waited for once: what follows an unreadable tile is tried once, until one can be read.

    Args:
        source: the tiles.
        numbers: of those that are wanted, in their order.

    Returns:
        an iterator of number and tile; each is read when it is asked for.
    """
    pauses = source.pauses
    for number in map(int, numbers):
        try:
            tile = source.read(number, pauses)
        except UnreadableTileError as error:
            pauses = ()
            logging.warning("%s cannot be read (%s): it is left out here.", source.describe(number), error.cause)
            continue
        pauses = source.pauses
        yield number, tile


class Fault(NamedTuple):
    """A tile that could not be read when its batch was made, and why."""

    tile: int
    cause: str


def substitutes(order: np.ndarray, step: int, row: int) -> Iterator[int]:
    """The tiles to try in the place of one: those of the same row in the next batches of the epoch.

    This is a function of the order alone, so that the choice is the same on whichever process owns the row. The order
    is random, so that the tiles lie elsewhere than one in the hole of a damaged file, and it has every tile once. Two
    rows of a batch get different ones as long as one of each row's tiles in the epoch can be read: one that is in a
    batch twice would be its own negative.

    Args:
        order: (steps, b) numbers of the tiles of an epoch's global batches.
        step: of the batch in its epoch.
        row: of the tile that cannot be read, in its global batch.

    Returns:
        `IN_A_ROW` numbers, or fewer where there are no more. After one round of the epoch come the next rows; those of
        the batch itself only where it is the only one.
    """
    steps, rows = order.shape
    places = (((step + ahead) % steps, (row + ahead // steps) % rows) for ahead in range(1, steps * rows))
    return islice((int(order[place]) for place in places if steps == 1 or place[0] != step), IN_A_ROW)


class Replaced:
    """The rows of this process that another tile has filled: counted, said in the log, and stopped where it is many.

    Attributes:
        total: how many since the program began.
    """

    def __init__(self):
        self.total = 0
        self._told = 0  # how many of them `since_last` has given
        self._named: set[int] = set()
        self._say_at = 2 * NAMED
        self._recent: deque[int] = deque()

    def add(self, faults: tuple[Fault, ...], names: list[str], *, rows: int, steps_per_epoch: int, where: str) -> None:
        """Takes note of a batch.

        Args:
            faults: of this process's rows of the batch; empty for healthy data.
            names: of the tiles of `faults`, for the log.
            rows: that this process has of a batch.
            steps_per_epoch: batches in an epoch; as many are looked back upon.
            where: the records are.

        Raises:
            DataError: more than `SHARE` of the rows of the last epoch's worth of batches, and more than `FEW`, had to
                be replaced.
        """
        self._recent.append(len(faults))
        while len(self._recent) > steps_per_epoch:
            self._recent.popleft()
        if not faults:
            return
        self.total += len(faults)
        for (tile, cause), name in zip(faults, names, strict=True):
            if tile not in self._named and len(self._named) < NAMED:
                self._named.add(tile)
                logging.warning("%s cannot be read (%s): another one takes its place.", name, cause)
        if self.total >= self._say_at:
            logging.warning("%d times so far a tile could not be read and another one took its place.", self.total)
            self._say_at = 2 * self.total
        recent = sum(self._recent)
        if recent > max(FEW, SHARE * rows * steps_per_epoch):
            raise DataError(
                f"{recent} of the last {rows * len(self._recent)} tiles could not be read (the last: {names[-1]}; "
                f"{faults[-1].cause}): bring their disk back, or delete {where} to have it prepared again."
            )

    def since_last(self) -> dict[str, float]:
        """How many rows of all processes were replaced since the last call, as `replaced`; empty for none.

        Every process must call it at the same step. The numbers of a run's log add up to its total, however often the
        run was resumed.
        """
        new, self._told = self.total - self._told, self.total
        everywhere = int(sum_over_processes(np.array([new], np.int64))[0])
        return {"replaced": float(everywhere)} if everywhere else {}
