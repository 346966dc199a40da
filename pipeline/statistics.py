"""The noun of what is known of a layer's values without reading them: range, mean, zeros, dead channels, histogram. NumPy only.

Gathered a row at a time while features are written, and joined over shards, resumed runs and extensions. What is counted, minima
and maxima are exact; rows are summed in double precision, their sums without a further rounding in a shard, and shards in their
order. So neither batches, nor threads, nor kills change a bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Bins are powers of two: known before the data, exact, and the same for every layer. 127 of each sign, from 2^-62 on.
OCTAVES = 127
SMALLEST_EXPONENT = -62
# Places in the histogram: negative values from the largest magnitude to the smallest, zeros, what is smaller than the
# smallest octave, positive values.
ZEROS = OCTAVES
TINY = OCTAVES + 1
BINS = 2 * OCTAVES + 2


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """Statistics of one layer, of the values as they are stored, over the rows of images that did not fail.

    Attributes:
        rows: How many rows.
        sum: Of all values.
        sum_of_squares: Likewise.
        channel_minimum: (c,) float32, of each channel; inf without rows.
        channel_maximum: (c,) float32, likewise; -inf without rows.
        histogram: (256,) int64, values in each bin, ascending; see :func:`bin_edges`.
    """

    rows: int
    sum: float
    sum_of_squares: float
    channel_minimum: NDArray[np.float32]
    channel_maximum: NDArray[np.float32]
    histogram: NDArray[np.int64]

    @property
    def values(self) -> int:
        """How many values."""
        return int(self.histogram.sum())

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
        return self.sum / self.values if self.rows else math.nan

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of all values; NaN without rows."""
        if not self.rows:
            return math.nan
        # Below zero by rounding, where all values are alike.
        return math.sqrt(max(0.0, self.sum_of_squares / self.values - self.mean**2))

    @property
    def zero_share(self) -> float:
        """Share of values that are zero, from 0 to 1; NaN without rows."""
        return int(self.histogram[ZEROS]) / self.values if self.rows else math.nan

    @property
    def dead_channels(self) -> NDArray[np.int64]:
        """(d,) channels that tell nothing: never above zero where no value of the layer is negative, else constant.

        A single value is not called constant.
        """
        if not self.rows:
            return np.zeros(0, np.int64)
        if self.minimum >= 0.0:
            return np.flatnonzero(self.channel_maximum <= 0.0)
        if self.values == len(self.channel_maximum):
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.channel_minimum == self.channel_maximum)

    def __repr__(self) -> str:
        return (
            f"<statistics of {self.rows} rows: {self.minimum:.4g} to {self.maximum:.4g}, mean {self.mean:.4g}, "
            f"standard deviation {self.standard_deviation:.4g}, {self.zero_share:.1%} zeros, {len(self.dead_channels)} dead of "
            f"{len(self.channel_maximum)} channels>"
        )


def join_statistics(parts: Sequence[LayerStatistics]) -> LayerStatistics:
    """Gives the statistics of the rows of all parts; there must be one."""
    return LayerStatistics(
        rows=sum(part.rows for part in parts),
        sum=math.fsum(part.sum for part in parts),
        sum_of_squares=math.fsum(part.sum_of_squares for part in parts),
        channel_minimum=np.minimum.reduce([part.channel_minimum for part in parts]),
        channel_maximum=np.maximum.reduce([part.channel_maximum for part in parts]),
        histogram=np.add.reduce([part.histogram for part in parts]),
    )


def bin_edges(place: int) -> tuple[float, float]:
    """Gives the bounds of a bin of the histogram; its values are from the one to the other, the larger magnitude not included.

    Args:
        place: From 0: negative values from 2^64 and beyond to 2^-62, zero (its bounds are 0 and 0), magnitudes below 2^-62 of
            either sign, positive values from 2^-62 to 2^64 and beyond.
    """
    if place == ZEROS:
        return 0.0, 0.0
    smallest = 2.0**SMALLEST_EXPONENT
    if place == TINY:
        return -smallest, smallest
    if place < ZEROS:
        low, high = bin_edges(2 * OCTAVES + 1 - place)
        return -high, -low
    exponent = SMALLEST_EXPONENT + place - TINY - 1
    return 2.0**exponent, math.inf if place == BINS - 1 else 2.0 ** (exponent + 1)
