"""Rows of a layer, as the network gives them, cut into the pieces that become chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# (rows, h, w, c) or (rows, d).
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What becomes one chunk.

    Attributes:
        rows: Rows in the shard that it holds values of, ascending.
        first_row: Row in the shard of its first row, present or not.
        band: Which band of its row it is; 0 for whole rows.
        values: (r, h, w, c) or (r, d), float32: r rows from ``first_row`` on, NaN where absent. The last band of a row may be
            lower than the chunk.
        chunk: Shape of the chunk.
    """

    rows: tuple[int, ...]
    first_row: int
    band: int
    values: NDArray[np.float32]
    chunk: Shape

    @property
    def offset(self) -> Shape:
        """Where the chunk begins in its dataset."""
        return self.first_row, self.band * self.chunk[1], *(0 for _ in self.chunk[2:])

    def row_values(self, row: int) -> NDArray[np.float32]:
        """Return the values of one of its rows."""
        values: NDArray[np.float32] = self.values[row - self.first_row]
        return values


class Cutter:
    """Cuts the rows of one layer in one shard; rows come in ascending order, failed ones not at all.

    Args:
        chunk: Shape of a chunk: several rows, one row, or a band of one.
    """

    def __init__(self, chunk: Shape) -> None:
        self._chunk = chunk
        self._rows: list[int] = []
        self._values: NDArray[np.float32] | None = None

    def put(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> Iterator[Piece]:
        """Return the pieces that are complete.

        A piece of one row refers to ``values``, which must stay as they are until it is written; small rows are copied.

        Args:
            rows: (n,) rows in the shard, ascending, after all that were put before.
            values: (n, h, w, c) or (n, d).
        """
        if self._chunk[0] == 1:
            for row, value in zip(rows.tolist(), values, strict=True):
                yield from _bands(row, value, self._chunk)
            return
        numbers = rows // self._chunk[0]
        for number in np.unique(numbers).tolist():
            first_row = number * self._chunk[0]
            if self._rows and self._rows[0] < first_row:
                yield from self.flush()
            if self._values is None:
                self._values = np.full(self._chunk, np.nan, np.float32)
            among = numbers == number
            self._values[rows[among] - first_row] = values[among]
            self._rows += rows[among].tolist()

    def flush(self) -> Iterator[Piece]:
        """Return the piece that is begun, if any: no more of its rows will come."""
        if self._values is not None:
            first_row = self._rows[0] // self._chunk[0] * self._chunk[0]
            piece = Piece(tuple(self._rows), first_row, 0, self._values, self._chunk)
            self._rows, self._values = [], None
            yield piece


def _bands(row: int, value: NDArray[np.float32], chunk: Shape) -> Iterator[Piece]:
    for band, start in enumerate(range(0, value.shape[0], chunk[1])):
        yield Piece((row,), row, band, value[None, start : start + chunk[1]], chunk)
