"""Statistics of one layer in one shard while its rows are written, by threads, in any order."""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

from ..statistics import BINS, OCTAVES, TINY, ZEROS, LayerStatistics
from . import gathering


class Tally:
    """What has been gathered of a layer.

    Args:
        channels: Of the layer.
    """

    def __init__(self, channels: int) -> None:
        self._lock = threading.Lock()
        # Of each row or band: added only once all are there, and then without rounding, so that their order does not count.
        self._sums: list[float] = []
        self._squares: list[float] = []
        self._minima = np.full(channels, np.inf, np.float32)
        self._maxima = np.full(channels, -np.inf, np.float32)
        self._counts = np.zeros(gathering.CODES, np.int64)

    def add(self, found: gathering.Gathered) -> None:
        """Adds what was found in a row, or in a band of one."""
        with self._lock:
            self._sums.append(found.sum)
            self._squares.append(found.sum_of_squares)
            np.minimum(self._minima, found.minima, out=self._minima)
            np.maximum(self._maxima, found.maxima, out=self._maxima)
            self._counts += found.counts

    def statistics(self, rows: int) -> LayerStatistics:
        """Gives the statistics, all rows having come.

        Args:
            rows: How many these were.
        """
        return LayerStatistics(
            rows,
            math.fsum(self._sums),
            math.fsum(self._squares),
            # A zero has no sign here: which of two comes out of a comparison depends on their order.
            self._minima + np.float32(0.0),
            self._maxima + np.float32(0.0),
            _histogram(self._counts),
        )


def _histogram(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Gives the counts of codes in the order of values."""
    histogram = np.zeros(BINS, np.int64)
    histogram[:OCTAVES] = counts[gathering.SIGN + 1 : gathering.SIGN + 1 + OCTAVES][::-1]
    histogram[ZEROS], histogram[TINY] = counts[gathering.ZERO], counts[gathering.TINY]
    histogram[TINY + 1 :] = counts[1 : 1 + OCTAVES]
    return histogram
