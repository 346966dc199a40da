"""Which rows an index means, as NumPy takes it along the first axis. For layers of a run and for training sets over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import StoreError


class RowError(StoreError, IndexError):
    """There is no such row; an IndexError too, by which Python knows where a sequence ends."""


def select_rows(wanted: Any, rows: int, where: str) -> int | NDArray[np.int64]:
    """Return the rows that an index means.

    Args:
        wanted: Integer, slice, mask of ``rows`` booleans, or integers; negative ones count from the end.
        rows: How many there are.
        where: What is indexed, for messages.

    Returns:
        One row for an integer, else (n,) int64, each in [0, rows).

    Raises:
        StoreError: It is out of range, of another length or of another type.
    """
    if isinstance(wanted, slice):
        return np.arange(rows, dtype=np.int64)[wanted]
    array = np.asarray(wanted)
    if array.size == 0 and array.ndim == 1:
        array = np.zeros(0, np.int64)
    if array.dtype == bool and array.ndim == 1:
        if len(array) != rows:
            raise StoreError(
                f"{where}: a mask of another length, got {len(array)} values. Expected {rows}, one a row. "
                f"Make it from a column of run.images."
            )
        return np.flatnonzero(array).astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer) or array.ndim > 1:
        raise StoreError(
            f"{where}: cannot be indexed so, got {wanted!r}. Expected a row, a slice, a mask or a list of rows. "
            f"The row of a key is run.row(key)."
        )
    indices = array.astype(np.int64)
    wrong = indices[(indices < -rows) | (indices >= rows)]
    if wrong.size:
        raise RowError(f"{where}: no such row, got {wrong.reshape(-1)[0]}. Expected {-rows} to {rows - 1}. len(run) is {rows}.")
    indices = np.where(indices < 0, indices + rows, indices)
    return int(indices) if indices.ndim == 0 else indices
