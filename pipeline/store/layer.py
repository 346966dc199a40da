"""One layer of a finished run, indexed as an array."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from . import format, shown
from .damage import does_not_fit
from .selection import select_rows
from .shards import Shards


class Layer:
    """One layer's activations of all images, indexed as a NumPy array along the first axis; read when asked for.

    ``layer[17]`` is one image, (h, w, c); ``layer[3:9]``, ``layer[mask]`` and ``layer[[4, 2]]`` are (n, h, w, c), or at native
    size a list of arrays. A failed image is NaN, at native size (1, 1, c). Further indices apply to what was read.

    Attributes:
        name: Of the layer.
        dtype: Of the stored values.
        channels: Channels of the layer.
        stride_px: Input pixels between neighbouring positions.
    """

    def __init__(self, shards: Shards, name: str, node: h5py.Dataset | h5py.Group) -> None:
        self.name = name
        self.dtype = np.dtype(format.STORED_DTYPES[str(node.attrs["dtype"])])
        self.channels = int(node.attrs["channels"])
        self.stride_px = int(node.attrs["stride_px"])
        self._shards = shards
        self._row_shape = None if isinstance(node, h5py.Group) else tuple(int(side) for side in node.shape[1:])

    @property
    def shape(self) -> tuple[int | None, ...]:
        """(N, h, w, c); h and w are None at native size."""
        return len(self._shards), *(self._row_shape or (None, None, self.channels))

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, wanted: Any) -> Any:
        rest: tuple[Any, ...] = ()
        if isinstance(wanted, tuple):
            wanted, *others = wanted
            rest = tuple(others)
        rows = select_rows(wanted, len(self._shards), f"layer {self.name}")
        if isinstance(rows, int):
            (values,) = self._read(np.array([rows], np.int64))
            return values[rest]
        many = self._read(rows)
        return many[(slice(None), *rest)] if isinstance(many, np.ndarray) else [values[rest] for values in many]

    def __iter__(self) -> Iterator[NDArray[np.floating]]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if self._row_shape is None:
            raise StoreError(
                f"layer {self.name}: images of differing shapes make no array, got native size. Expected one shape. "
                f"Read image by image, or extract with a fixed data.size."
            )
        return np.asarray(self[:], dtype)

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.floating] | list[NDArray[np.floating]]:
        """Reads rows in any order, repeated or not, each shard's in one go."""
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        numbers, firsts = self._shards.locate(ascending)
        if len(rows):
            # Before memory is taken for what only the index has said.
            self._shards.open(int(numbers[0])).hold_to(self.name, self._row_shape, self.dtype)
        if self._row_shape is None:
            images: list[Any] = [None] * len(rows)
            for place, number, row in zip(order.tolist(), numbers.tolist(), (ascending - firsts).tolist(), strict=True):
                images[place] = self._shards.open(number).read_native(self.name, row)
            return images
        try:
            values = np.empty((len(rows), *self._row_shape), self.dtype)
        except (MemoryError, ValueError) as error:
            size_bytes = len(rows) * math.prod(self._row_shape) * self.dtype.itemsize
            raise does_not_fit(f"layer {self.name}", len(rows), size_bytes) from error
        for number in np.unique(numbers).tolist():
            among = numbers == number
            self._shards.open(number).read(self.name, (ascending - firsts)[among], order[among], values)
        return values

    def __repr__(self) -> str:
        return f"<layer {self.name}: {self.shape} {self.dtype}>"

    def _repr_html_(self) -> str:
        return shown.html_table(f"layer {self.name}", shown.LAYER_HEADINGS, [shown.layer_row(self)])
