"""Statistics of a layer: range of each channel, mean, deviation, share of zeros, dead channels, histogram.

They are gathered while features are written, and joined over rows, shards, resumed runs and extensions. Counts, minima and maxima
are exact. Each row is summed in double precision, and row sums are joined without a rounding in between: neither batches, nor
threads, nor shards, nor kills change a bit. Only the histogram is a sample: of every 16th position of a map, all channels.
"""

from __future__ import annotations

import json
import math
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5s, h5t
from numpy.typing import NDArray

from ..errors import StoreError, nearest
from . import format, tables
from .damage import HDF5_READ_ERRORS, damaged
from .file_checks import own_node

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

# Source: IEEE 754, binary32: a sign, 8 bits of exponent with a bias of 127, 23 of fraction.
_FRACTION_BITS, _EXPONENTS, _BIAS = 23, 256, 127


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """Statistics of one layer, of the values as they are stored, over the rows of images that did not fail.

    Attributes:
        rows: How many rows.
        values: How many values.
        zeros: How many of them are zero, of either sign.
        exact_sum: (2,) float64: the sum of all values, and what is lost by rounding it.
        exact_sum_of_squares: (2,) float64, likewise.
        channel_minimum: (c,) float32, of each channel; inf without rows.
        channel_maximum: (c,) float32, likewise; -inf without rows.
        histogram: (256,) int64, how many values of every 16th position lie in each bin, ascending; see :func:`bin_edges`.
    """

    rows: int
    values: int
    zeros: int
    exact_sum: NDArray[np.float64]
    exact_sum_of_squares: NDArray[np.float64]
    channel_minimum: NDArray[np.float32]
    channel_maximum: NDArray[np.float32]
    histogram: NDArray[np.int64]

    @property
    def sum(self) -> float:
        """Sum of all values."""
        return float(self.exact_sum[0])

    @property
    def sum_of_squares(self) -> float:
        """Sum of the squares of all values."""
        return float(self.exact_sum_of_squares[0])

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
        return self.zeros / self.values if self.rows else math.nan

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
    """Return the statistics of the rows of all parts; there must be one."""
    return LayerStatistics(
        rows=sum(part.rows for part in parts),
        values=sum(part.values for part in parts),
        zeros=sum(part.zeros for part in parts),
        exact_sum=_exact_sum(term for part in parts for term in part.exact_sum.tolist()),
        exact_sum_of_squares=_exact_sum(term for part in parts for term in part.exact_sum_of_squares.tolist()),
        channel_minimum=np.minimum.reduce([part.channel_minimum for part in parts]),
        channel_maximum=np.maximum.reduce([part.channel_maximum for part in parts]),
        histogram=np.add.reduce([part.histogram for part in parts]),
    )


def _exact_sum(terms: Iterable[float]) -> NDArray[np.float64]:
    """Return the sum of all terms, (2,) float64: rounded once, and what is lost by that."""
    known = list(terms)
    total = math.fsum(known)
    return np.array([total, math.fsum([*known, -total])])


class Gathered(NamedTuple):
    """Statistics of one row, or of a band of one.

    Attributes:
        values: How many.
        zeros: How many are zero.
        sum: Of the values; not finite if one of them is not.
        sum_of_squares: Likewise.
        minimum: (c,) float32, of each channel.
        maximum: (c,) float32, likewise.
        histogram: (BINS,) int64, of every 16th position.
    """

    values: int
    zeros: int
    sum: float
    sum_of_squares: float
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    histogram: NDArray[np.int64]

    @property
    def is_finite(self) -> bool:
        """Whether all values are: no float32 is so large that the sum of squares would not be."""
        return math.isfinite(self.sum_of_squares)


class _Scratch(threading.local):
    """Memory of a thread: fresh memory for each row would take a third of the time."""

    def __init__(self) -> None:
        self.doubles = np.empty(BLOCK_VALUES, np.float64)
        self.is_nonzero = np.empty(BLOCK_VALUES, np.bool_)


_scratch = _Scratch()


def gather(values: NDArray[np.float32]) -> Gathered:
    """Return the statistics of the values of a row, or of a band of one.

    Args:
        values: (..., c) float32, C order, not empty.
    """
    positions, flat = values.reshape(-1, values.shape[-1]), values.reshape(-1)
    total = squares = 0.0
    nonzero = 0
    # Infinite values of both signs have no sum.
    with np.errstate(invalid="ignore"):
        for first in range(0, len(flat), BLOCK_VALUES):
            block = flat[first : first + BLOCK_VALUES]
            nonzero += int(np.count_nonzero(np.not_equal(block, 0, out=_scratch.is_nonzero[: len(block)])))
            doubles = _scratch.doubles[: len(block)]
            doubles[:] = block
            total += float(doubles.sum())
            squares += float(np.square(doubles, out=doubles).sum())
        return Gathered(
            values=len(flat),
            zeros=len(flat) - nonzero,
            sum=total,
            sum_of_squares=squares,
            minimum=positions.min(axis=0),
            maximum=positions.max(axis=0),
            histogram=_histogram(positions[min(HISTOGRAM_FIRST, len(positions) // 2) :: HISTOGRAM_STEP]),
        )


def _bins_of_exponents() -> NDArray[np.int64]:
    """Return the bin of each sign and exponent as they are stored, (512,) int64; zeros are among the tiny values."""
    octaves = np.minimum(np.arange(_EXPONENTS) - (_BIAS + SMALLEST_EXPONENT), OCTAVES - 1)
    signed = [np.where(octaves < 0, TINY, place) for place in (TINY + 1 + octaves, ZEROS - 1 - octaves)]
    return np.concatenate(signed)


_BINS_OF_EXPONENTS = _bins_of_exponents()


def _histogram(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return how many values lie in each bin, (BINS,) int64."""
    exponents = np.right_shift(values.view(np.uint32), _FRACTION_BITS, dtype=np.intp)
    counts = np.bincount(exponents.reshape(-1), minlength=2 * _EXPONENTS)
    histogram = np.zeros(BINS, np.int64)
    np.add.at(histogram, _BINS_OF_EXPONENTS, counts)
    histogram[ZEROS] = values.size - np.count_nonzero(values != 0)
    histogram[TINY] -= histogram[ZEROS]
    return histogram


class Tally:
    """Statistics of one layer in one shard, gathered by threads in any order.

    Args:
        channels: Of the layer.
    """

    def __init__(self, channels: int) -> None:
        self._lock = threading.Lock()
        self._values = self._zeros = 0
        # Of each row or band: added once all are there, so that their order does not count.
        self._sums: list[float] = []
        self._squares: list[float] = []
        self._minimum = np.full(channels, np.inf, np.float32)
        self._maximum = np.full(channels, -np.inf, np.float32)
        self._histogram = np.zeros(BINS, np.int64)

    def add(self, found: Gathered) -> None:
        """Add the statistics of a row, or of a band of one."""
        with self._lock:
            self._values += found.values
            self._zeros += found.zeros
            self._sums.append(found.sum)
            self._squares.append(found.sum_of_squares)
            np.minimum(self._minimum, found.minimum, out=self._minimum)
            np.maximum(self._maximum, found.maximum, out=self._maximum)
            self._histogram += found.histogram

    def statistics(self, rows: int) -> LayerStatistics:
        """Return the statistics, all rows having come.

        Args:
            rows: How many these were.
        """
        return LayerStatistics(
            rows,
            self._values,
            self._zeros,
            _exact_sum(self._sums),
            _exact_sum(self._squares),
            # A zero has no sign here: which of two comes out of a comparison depends on their order.
            self._minimum + np.float32(0.0),
            self._maximum + np.float32(0.0),
            self._histogram.copy(),
        )


def bin_edges(place: int) -> tuple[float, float]:
    """Return the bounds of a bin of the histogram; its values are from the one to the other, the larger magnitude not included.

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


class StatisticsError(StoreError, KeyError):
    """There are no statistics of such a layer; a KeyError too, as a mapping's users expect."""

    # KeyError's own would put the message in quotes.
    __str__ = StoreError.__str__


class Statistics(Mapping[str, LayerStatistics]):
    """Layer -> its statistics; read when first asked for.

    Args:
        path: Of the index or shard that they are of.
        layers: Of the run.
    """

    def __init__(self, path: Path, layers: tuple[str, ...]) -> None:
        self._path = path
        self._layers = layers
        self._read: dict[str, LayerStatistics] | None = None

    def _found(self) -> dict[str, LayerStatistics]:
        if self._read is None:
            with tables.open_file(self._path) as file:
                found = read_statistics(file, self._path)
            self._read = {layer: found[layer] for layer in self._layers if layer in found}
        return self._read

    def __getitem__(self, layer: str) -> LayerStatistics:
        if layer in self._found():
            return self._found()[layer]
        raise StatisticsError(
            f"{self._path}: no such layer, got {layer!r}. Expected one of: {nearest(str(layer), self._layers)}. "
            f"The run's layers are in run.layers."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())

    def __repr__(self) -> str:
        return "\n".join(f"{layer}: {of_layer!r}" for layer, of_layer in self.items()) or "<no statistics>"


def write_statistics(file: h5py.File, statistics: Mapping[str, LayerStatistics]) -> None:
    """Write ``/statistics`` and its checksums, an attribute of the root.

    Args:
        file: Open for writing.
        statistics: Layer -> statistics of the file's rows.
    """
    group, checksums = file.create_group("statistics"), {}
    for layer, of_layer in statistics.items():
        node = group.create_group(layer)
        for (name, dtype), value in zip(format.STATISTICS.items(), astuple(of_layer), strict=True):
            array = np.asarray(value, dtype)
            # By h5py's lower half, which takes a third of the time: there are eight of these a layer.
            space = h5s.create_simple(array.shape) if array.ndim else h5s.create(h5s.SCALAR)
            h5d.create(node.id, name.encode(), h5t.py_create(array.dtype), space).write(h5s.ALL, h5s.ALL, array)
            checksums[f"{layer}/{name}"] = zlib.crc32(array.tobytes())
    group.attrs["histogram_step"] = np.int64(HISTOGRAM_STEP)
    file.attrs[format.STATISTICS_CHECKSUMS] = json.dumps(checksums)


def read_statistics(file: h5py.File, path: Path) -> dict[str, LayerStatistics]:
    """Return layer -> statistics of an open file's rows.

    Raises:
        StoreError: They are damaged.
    """
    found = {}
    for layer, of_layer in _read_layers(file, path):
        if isinstance(of_layer, StoreError):
            raise of_layer
        found[layer] = of_layer
    return found


def wrong_statistics(file: h5py.File, path: Path, layers: Sequence[str], rows_ok: int) -> Iterator[StoreError]:
    """Give what of the statistics is not as it was written, or cannot be of these rows.

    Args:
        file: Open shard or index.
        path: Of the file, for messages.
        layers: Of the run.
        rows_ok: Rows of the file that did not fail.
    """
    found = dict(_read_layers(file, path))
    for layer in dict.fromkeys([*layers, *found]):
        of_layer = found.get(layer)
        if layer not in layers or of_layer is None:
            yield damaged(path, f"/statistics/{layer}", "none" if of_layer is None else "statistics of no layer")
        elif isinstance(of_layer, StoreError):
            yield of_layer
        elif of_layer.rows != rows_ok:
            yield damaged(path, f"/statistics/{layer}", f"{of_layer.rows} rows in place of {rows_ok}")


def _read_layers(file: h5py.File, path: Path) -> Iterator[tuple[str, LayerStatistics | StoreError]]:
    try:
        expected: dict[str, int] = json.loads(str(file.attrs[format.STATISTICS_CHECKSUMS]))
        layers = list(dict.fromkeys(name.rpartition("/")[0] for name in expected))
    except HDF5_READ_ERRORS as error:
        raise damaged(path, "the statistics", error) from error
    for layer in layers:
        try:
            group = own_node(own_node(file, "statistics"), layer)
            values: list[Any] = []
            for name, dtype in format.STATISTICS.items():
                array = np.asarray(own_node(group, name)[()])
                checksum = zlib.crc32(array.astype(array.dtype.newbyteorder("<")).tobytes())
                if array.dtype != np.dtype(dtype) or checksum != expected[f"{layer}/{name}"]:
                    raise ValueError(f"{name} of type {array.dtype} with checksum {checksum:08x}")
                values.append(array if array.ndim else array.item())
            yield layer, LayerStatistics(*values)
        except StoreError as error:
            yield layer, error
        except (*HDF5_READ_ERRORS, MemoryError) as error:
            yield layer, damaged(path, f"/statistics/{layer}", error)
