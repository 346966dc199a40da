"""The order of an epoch: shuffled so that what is stored together is read once, cut for ranks and workers. Numbers only.

Where every row is a chunk of its own (rows of 64 KiB or more: all convolutional layers at usual sizes), the order of an epoch is
a uniform random permutation of all rows, as ``DataLoader(shuffle=True)`` would draw it; nothing is held back in a buffer.

Smaller rows share a chunk, and reading one costs as much as reading all. Chunks are then permuted uniformly, and taken in windows
of K (``buffer_chunks``); the rows of a window are permuted uniformly. Every row is still equally likely at every place of the
epoch. What differs from a uniform permutation: the rows of one chunk, which are neighbours in the list of images and so mostly of
one class, all come in the same window. Of a batch of B, the share of a class with frequency p has the variance
``p (1 - p) (1/B + 1/K)`` at most, in place of ``p (1 - p) / B``: its standard deviation is larger by the factor
``sqrt(1 + B/K)``, 6 % for batches of 64 and the 512 chunks that are usual. A run of at most K chunks is permuted uniformly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Order(NamedTuple):
    """An epoch.

    Attributes:
        places: (n,) of the rows chosen, as they come.
        stops: Where windows end in it, ascending, the last one n; each is best read as one. None: it matters to nobody.
    """

    places: NDArray[np.int64]
    stops: NDArray[np.int64] | None

    def cut(self, start: int, stop: int) -> Order:
        """Gives the part from one place to another."""
        if self.stops is None:
            return Order(self.places[start:stop], None)
        inner = self.stops[(self.stops > start) & (self.stops < stop)]
        return Order(self.places[start:stop], np.append(inner, stop) - start)


def shuffled(units: NDArray[np.int64], window: int, seed: tuple[int, ...]) -> Order:
    """Gives a random order of rows, as the head of this file says.

    Args:
        units: (n,) number of the chunk that a row lies in; any numbers.
        window: How many chunks are mixed.
        seed: Numbers >= 0. The same give the same order, on every machine.
    """
    random = np.random.default_rng(seed)
    _, numbers = np.unique(units, return_inverse=True)
    count = int(numbers.max()) + 1
    if count in (1, len(units)) or count <= window:
        # Of one window, or every row for itself.
        places = random.permutation(len(units))
        return Order(places, None if count == len(units) else np.array([len(units)]))
    windows = random.permutation(count)[numbers] // window
    places = np.lexsort((random.random(len(units)), windows))
    return Order(places, np.cumsum(np.bincount(windows)))


def straight(count: int, step: int | None) -> Order:
    """Gives rows as they were chosen, in windows of ``step`` rows; None: without windows."""
    stops = None if step is None else np.append(np.arange(step, count, step), count)
    return Order(np.arange(count, dtype=np.int64), stops)


def share_of(count: int, share: tuple[int, int], equal: bool) -> tuple[int, int]:
    """Gives start and stop of what one of several takes.

    Args:
        count: How many there are.
        share: (rank, ranks).
        equal: All get the same number; up to ``ranks - 1`` at the end are nobody's.
    """
    rank, ranks = share
    if equal:
        return rank * (count // ranks), (rank + 1) * (count // ranks)
    return rank * count // ranks, (rank + 1) * count // ranks
