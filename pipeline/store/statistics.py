"""Statistics of a layer: range of each channel, mean, deviation, share of zeros, dead channels, histogram.

They are gathered while features are written, and joined over rows, shards, resumed runs and extensions. Counts, minima and maxima
are exact. Each row is summed in double precision, and row sums are joined without a rounding in between: neither batches, nor
threads, nor shards, nor kills change a bit. Only the histogram is a sample: of every 16th position of a map, all channels.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from . import format
from .damage import own_node, reading

# Bins are powers of two: known before the data, exact, and the same for every layer. 127 of each sign, from 2^-62 on.
OCTAVES = 127
SMALLEST_EXPONENT = -62
# Places in the histogram: negative values from the largest magnitude to the smallest, zeros, what is smaller than the
# smallest octave, positive values.
ZEROS = OCTAVES
TINY = OCTAVES + 1
BINS = 2 * OCTAVES + 2

# The histogram is taken of each 16th position of a row or band, in C order, from the eleventh on; of a small map from its middle.
# Beginning with the first, all would lie in the left column of a map of 16 columns, beside the padding.
HISTOGRAM_STEP = 16
HISTOGRAM_FIRST = 10

# Values that are summed at a time: 256 KiB in double precision, which stay in a core's cache.
BLOCK_VALUES = 1 << 15


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """Statistics of one layer, of the values as they are stored, over the rows of images that did not fail."""

    rows: int
    values: int
    zeros: int  # of either sign
    exact_sum: NDArray[np.float64]  # (2,) the sum of all values, and what is lost by rounding it
    exact_sum_of_squares: NDArray[np.float64]  # (2,) likewise
    channel_minimum: NDArray[np.float32]  # (c,) of each channel; inf without rows
    channel_maximum: NDArray[np.float32]  # (c,) likewise; -inf without rows
    histogram: NDArray[np.int64]  # (256,) how many values of every 16th position lie in each bin, see :mod:`.format`

    @property
    def minimum(self) -> float:
        """The smallest value; inf without rows."""
        return float(self.channel_minimum.min())

    @property
    def maximum(self) -> float:
        """The largest value; -inf without rows."""
        return float(self.channel_maximum.max())

    @property
    def mean(self) -> float:
        """Mean of all values; NaN without rows."""
        return float(self.exact_sum[0] / self.values) if self.rows else math.nan

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of all values; NaN without rows."""
        if not self.rows:
            return math.nan
        # Below zero by rounding, where all values are alike.
        return math.sqrt(max(0.0, self.exact_sum_of_squares[0] / self.values - self.mean**2))

    @property
    def zero_share(self) -> float:
        """Share of values that are zero, from 0 to 1; NaN without rows."""
        return self.zeros / self.values if self.rows else math.nan

    @property
    def dead_channels(self) -> NDArray[np.int64]:
        """(d,) channels that tell nothing: never above zero where no value of the layer is negative, else constant."""
        if self.rows and self.minimum >= 0.0:
            return np.flatnonzero(self.channel_maximum <= 0.0)
        # Of a single value nobody can say that it never changes.
        is_known = self.values > len(self.channel_maximum)
        return np.flatnonzero(is_known & (self.channel_minimum == self.channel_maximum))

    def __repr__(self) -> str:
        return (
            f"<statistics of {self.rows} rows: {self.minimum:.4g} to {self.maximum:.4g}, mean {self.mean:.4g}, "
            f"standard deviation {self.standard_deviation:.4g}, {self.zero_share:.1%} zeros, {len(self.dead_channels)} dead of "
            f"{len(self.channel_maximum)} channels>"
        )


def join_statistics(parts: Sequence[LayerStatistics]) -> LayerStatistics:
    """Return the statistics of the rows of all parts; there must be one."""
    return LayerStatistics(
        rows=sum(part.rows for part in parts),
        values=sum(part.values for part in parts),
        zeros=sum(part.zeros for part in parts),
        exact_sum=_exact_sum(np.concatenate([part.exact_sum for part in parts])),
        exact_sum_of_squares=_exact_sum(np.concatenate([part.exact_sum_of_squares for part in parts])),
        channel_minimum=np.minimum.reduce([part.channel_minimum for part in parts]),
        channel_maximum=np.maximum.reduce([part.channel_maximum for part in parts]),
        histogram=np.add.reduce([part.histogram for part in parts]),
    )


def _exact_sum(terms: Iterable[float]) -> NDArray[np.float64]:
    """Return the sum of all terms, (2,) float64: rounded once, and what is lost by that."""
    known = list(terms)
    total = math.fsum(known)
    return np.array([total, math.fsum([*known, -total])])


def _histogram(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return how many values lie in each bin, (BINS,) int64."""
    # Of a magnitude from 2^(n - 1) to below 2^n, frexp gives n; below the smallest octave: -1.
    octaves = np.clip(np.frexp(values)[1] - 1 - SMALLEST_EXPONENT, -1, OCTAVES - 1)
    places = np.where(values < 0, ZEROS - 1 - octaves, TINY + 1 + octaves)
    places[octaves < 0] = TINY
    places[values == 0] = ZEROS
    return np.bincount(places.reshape(-1), minlength=BINS)


class Tally:
    """Statistics of one layer in one shard, of so many channels, gathered by threads in any order."""

    def __init__(self, channels: int) -> None:
        self._lock = threading.Lock()
        self._values = self._zeros = 0
        # Of each row or band: added once all are there, so that their order does not count.
        self._sums: list[float] = []
        self._squares: list[float] = []
        self._minimum = np.full(channels, np.inf, np.float32)
        self._maximum = np.full(channels, -np.inf, np.float32)
        self._histogram = np.zeros(BINS, np.int64)

    def add(self, rows: NDArray[np.float32]) -> bool:
        """Add (r, ..., c) values of some rows, or of a band of one; tell whether all are finite, and add nothing otherwise."""
        flat = rows.reshape(len(rows), -1)
        zeros, sums, squares = 0, np.zeros(len(rows)), np.zeros(len(rows))
        # Fresh memory for each block would take a third of the time.
        memory = np.empty((len(rows), min(BLOCK_VALUES, flat.shape[1])))
        for first in range(0, flat.shape[1], BLOCK_VALUES):
            block = flat[:, first : first + BLOCK_VALUES]
            doubles = memory[:, : block.shape[1]]
            doubles[:] = block
            # NumPy counts truths five times as fast as numbers.
            zeros += int(np.count_nonzero(block == 0))
            # Infinite values of both signs have no sum.
            with np.errstate(invalid="ignore"):
                sums += doubles.sum(axis=1)
            squares += np.square(doubles, out=doubles).sum(axis=1)
        # No float32 is so large that the sum of squares would not be finite.
        if not np.isfinite(squares).all():
            return False
        channels = rows.reshape(-1, rows.shape[-1])
        minimum, maximum = channels.min(axis=0), channels.max(axis=0)
        positions = rows.reshape(len(rows), -1, rows.shape[-1])
        histogram = _histogram(positions[:, min(HISTOGRAM_FIRST, positions.shape[1] // 2) :: HISTOGRAM_STEP])
        with self._lock:
            self._values += rows.size
            self._zeros += zeros
            self._sums += sums.tolist()
            self._squares += squares.tolist()
            np.minimum(self._minimum, minimum, out=self._minimum)
            np.maximum(self._maximum, maximum, out=self._maximum)
            self._histogram += histogram
        return True

    def statistics(self, rows: int) -> LayerStatistics:
        """Return the statistics of so many rows, all of which have come."""
        sums, squares = _exact_sum(self._sums), _exact_sum(self._squares)
        # A zero has no sign here: which of two comes out of a comparison depends on their order.
        minimum, maximum = self._minimum + np.float32(0.0), self._maximum + np.float32(0.0)
        return LayerStatistics(rows, self._values, self._zeros, sums, squares, minimum, maximum, self._histogram)


def write_statistics(file: h5py.File, statistics: Mapping[str, LayerStatistics]) -> None:
    """Write ``/statistics``, those of a file's rows by layer."""
    group = file.create_group("statistics")
    for layer, of_layer in statistics.items():
        node = group.create_group(layer)
        for name, dtype in format.STATISTICS.items():
            node.create_dataset(name, data=getattr(of_layer, name), dtype=dtype)
    group.attrs["histogram_step"] = np.int64(HISTOGRAM_STEP)


def read_statistics(file: h5py.File, path: Path, layers: Iterable[str]) -> dict[str, LayerStatistics]:
    """Return layer -> statistics of an open file's rows; raise a ``StoreError`` where they are missing or damaged."""
    found = {}
    for layer in layers:
        with reading(path, f"/statistics/{layer}"):
            group = own_node(own_node(file, "statistics"), layer)
            values: dict[str, Any] = {name: own_node(group, name)[()].astype(dtype) for name, dtype in format.STATISTICS.items()}
            found[layer] = LayerStatistics(**values)
    return found
