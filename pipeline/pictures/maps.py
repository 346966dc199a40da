"""From the bands of an activation to the maps that are drawn: chosen channels, no larger than they will be seen. NumPy only.

What is said of a map (range, zeros) is counted over all of its values; what is drawn are means over squares of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """One picture to be: a channel of a layer, or all channels of a layer that has no extent.

    Attributes:
        layer: Its name.
        channel: Which; None: all of them, folded.
        shape: (h, w, c) of the layer's activations.
        pixels: (h', w') float32: means over squares of values.
        low: Least value, of those that are finite; NaN where none is.
        high: Greatest, likewise.
        zeros: Share of values that are exactly 0, 0 to 1.
        not_finite: How many values are NaN or infinite.
        rows_read: How many rows of the activations all this has been taken from; fewer than h where only a part was read.
    """

    layer: str
    channel: int | None
    shape: tuple[int, int, int]
    pixels: NDArray[np.float32]
    low: float
    high: float
    zeros: float
    not_finite: int
    rows_read: int


def has_extent(shape: tuple[int, int, int]) -> bool:
    """Tells whether a channel is a map, and not a single value as in fc6."""
    return shape[0] * shape[1] > 1


def reduction(shape: tuple[int, int, int], limit_px: tuple[int, int]) -> int:
    """Gives the side of the squares over which means are taken, so that no fewer than ``limit_px`` (height, width) are left."""
    return max(1, min(shape[0] // limit_px[0], shape[1] // limit_px[1]))


def gather(
    layer: str,
    bands: Iterable[tuple[int, NDArray[np.floating]]],
    shape: tuple[int, int, int],
    channels: Sequence[int],
    side: int,
    most_active: int | None = None,
) -> list[FeatureMap]:
    """Gives the maps of some channels, holding one band and the reduced maps at a time.

    Args:
        layer: Its name.
        bands: Of each its first row, and (h', w, c); from top to bottom, at least one in each ``side`` rows.
        shape: (h, w, c) of them together.
        channels: Which, in the order in which they are wanted.
        side: Of the squares over which means are taken.
        most_active: Of the channels only so many, those with the greatest mean of what is above 0, in this order.
    """
    gathered = _Gathered(shape, channels, side)
    with np.errstate(invalid="ignore", over="ignore"):
        for first, band in bands:
            gathered.add(first, band)
        pixels = gathered.pixels()
    places = range(len(channels))
    if most_active is not None:
        activity = np.nan_to_num(gathered.activity, nan=0.0)
        # Stable: of equals, the first.
        places = np.argsort(-activity, kind="stable")[:most_active].tolist()
    rows_read = int(gathered.rows_read.sum())
    return [
        FeatureMap(
            layer,
            channels[place],
            shape,
            np.ascontiguousarray(pixels[:, :, place]),
            *_range(gathered.low[place], gathered.high[place]),
            float(gathered.zeros[place] / (rows_read * shape[1])),
            int(gathered.not_finite[place]),
            rows_read,
        )
        for place in places
    ]


def fold(layer: str, values: NDArray[np.floating]) -> FeatureMap:
    """Gives all channels of a layer without extent as one map: row after row, as near to a square as their number divides.

    Args:
        layer: Its name.
        values: (1, 1, c).
    """
    flat = values.reshape(-1).astype(np.float32)
    finite = flat[np.isfinite(flat)]
    rows = next(rows for rows in range(math.isqrt(len(flat)), 0, -1) if len(flat) % rows == 0)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (math.nan, math.nan)
    zeros = float(np.mean(flat == 0))
    return FeatureMap(layer, None, (1, 1, len(flat)), flat.reshape(rows, -1), low, high, zeros, len(flat) - len(finite), 1)


class _Gathered:
    """Sums over the bands that have come so far, of n channels.

    Args:
        shape: (h, w, c).
        channels: Which.
        side: Of the squares over which means are taken.
    """

    def __init__(self, shape: tuple[int, int, int], channels: Sequence[int], side: int) -> None:
        height, width, all_channels = shape
        self._side = side
        self._starts = np.arange(0, width, side)
        self._channels = None if list(channels) == list(range(all_channels)) else np.array(channels, np.int64)
        self.rows_read = np.zeros(-(-height // side), np.int64)
        self._columns_of = np.minimum(side, width - self._starts)
        self._sums = np.zeros((len(self.rows_read), len(self._starts), len(channels)), np.float32)
        self.low = np.full(len(channels), np.inf)
        self.high = np.full(len(channels), -np.inf)
        self.zeros = np.zeros(len(channels), np.int64)
        self.not_finite = np.zeros(len(channels), np.int64)
        self.activity = np.zeros(len(channels))

    def add(self, first: int, band: NDArray[np.floating]) -> None:
        """Takes the next band, (h', w, c), that begins with row ``first``."""
        chosen = band if self._channels is None else band[:, :, self._channels]
        values = chosen.astype(np.float32, copy=False)
        self._count(values)
        rows = np.arange(first, first + len(values)) // self._side
        squares, begins, counts = np.unique(rows, return_index=True, return_counts=True)
        self.rows_read[squares] += counts
        if self._side == 1:
            self._sums[squares] = values
        else:
            self._sums[squares] += np.add.reduceat(np.add.reduceat(values, self._starts, axis=1), begins, axis=0)

    def _count(self, values: NDArray[np.float32]) -> None:
        low, high = values.min(axis=(0, 1)), values.max(axis=(0, 1))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            finite = np.isfinite(values)
            self.not_finite += np.count_nonzero(~finite, axis=(0, 1))
            low = np.where(finite, values, np.inf).min(axis=(0, 1))
            high = np.where(finite, values, -np.inf).max(axis=(0, 1))
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.zeros += np.count_nonzero(values == 0, axis=(0, 1))
        above = values if low.min() >= 0 else np.maximum(values, 0)
        self.activity += above.sum(axis=(0, 1), dtype=np.float64)

    def pixels(self) -> NDArray[np.float32]:
        """Gives (h', w', n) means."""
        sizes = (self.rows_read[:, None] * self._columns_of)[:, :, None].astype(np.float32)
        return self._sums if self._side == 1 else self._sums / sizes


def _range(low: float, high: float) -> tuple[float, float]:
    return (float(low), float(high)) if low <= high else (math.nan, math.nan)
