"""Feature maps to be shown: chosen channels of a layer, reduced to the size at which they will be seen. NumPy only.

What is said of a map (range, zeros) is counted over all of its values; what is drawn are means over squares of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """A channel of a layer, or all channels of a layer that has no extent, as a picture.

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
    """Tell whether a channel is a map, and not a single value as in fc6."""
    return shape[0] * shape[1] > 1


def reduction(shape: tuple[int, int, int], limit_px: tuple[int, int]) -> int:
    """Return the side of the squares over which means are taken, so that no fewer than ``limit_px`` (height, width) are left."""
    return max(1, min(shape[0] // limit_px[0], shape[1] // limit_px[1]))


def make_maps(
    layer: str,
    bands: Iterable[tuple[int, NDArray[np.floating]]],
    shape: tuple[int, int, int],
    channels: Sequence[int],
    side: int,
    most_active: int | None = None,
) -> list[FeatureMap]:
    """Return the maps of some channels, holding one band and the reduced maps at a time.

    Args:
        layer: Its name.
        bands: Of each its first row, and (h', w, c); from top to bottom, at least one in each ``side`` rows.
        shape: (h, w, c) of them together.
        channels: Which, in the order in which they are wanted.
        side: Of the squares over which means are taken.
        most_active: Of the channels only so many, those with the greatest mean of what is above 0, in this order.
    """
    height, width, _ = shape
    count, wanted = len(channels), np.asarray(channels, np.int64)
    lefts = np.arange(0, width, side)
    rows_read = np.zeros(-(-height // side), np.int64)
    sums = np.zeros((len(rows_read), len(lefts), count), np.float32)
    low, high, activity = np.full(count, np.inf), np.full(count, -np.inf), np.zeros(count)
    zeros, not_finite = np.zeros(count, np.int64), np.zeros(count, np.int64)
    with np.errstate(invalid="ignore", over="ignore"):
        for first, band in bands:
            values = band[:, :, wanted].astype(np.float32, copy=False)
            squares, tops, counts = np.unique((first + np.arange(len(values))) // side, return_index=True, return_counts=True)
            rows_read[squares] += counts
            sums[squares] += np.add.reduceat(np.add.reduceat(values, lefts, axis=1), tops, axis=0)
            zeros += np.count_nonzero(values == 0, axis=(0, 1))
            finite = np.isfinite(values)
            not_finite += np.count_nonzero(~finite, axis=(0, 1))
            low = np.minimum(low, np.where(finite, values, np.inf).min(axis=(0, 1)))
            high = np.maximum(high, np.where(finite, values, -np.inf).max(axis=(0, 1)))
            activity += np.where(finite & (values > 0), values, 0).sum(axis=(0, 1), dtype=np.float64)
        sums /= (rows_read[:, None] * np.minimum(side, width - lefts))[:, :, None].astype(np.float32)
    # Stable: of equals, the first.
    order = range(count) if most_active is None else np.argsort(-activity, kind="stable")[:most_active].tolist()
    rows = int(rows_read.sum())
    return [
        FeatureMap(
            layer,
            channels[place],
            shape,
            np.ascontiguousarray(sums[:, :, place]),
            *((float(low[place]), float(high[place])) if low[place] <= high[place] else (math.nan, math.nan)),
            float(zeros[place] / (rows * width)),
            int(not_finite[place]),
            rows,
        )
        for place in order
    ]


def fold(layer: str, values: NDArray[np.floating]) -> FeatureMap:
    """Return all channels of a layer without extent as one map: row after row, as near to a square as their number divides.

    Args:
        layer: Its name.
        values: (1, 1, c).
    """
    count = values.size
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    folded = values.reshape(rows, -1, 1)
    (one,) = make_maps(layer, [(0, folded)], folded.shape, [0], 1)
    return replace(one, channel=None, shape=(1, 1, count), rows_read=1)
