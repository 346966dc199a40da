"""One layer of a finished run, indexed as an array."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..machine import usable_cores
from . import format, shown
from .bands import image_shape, read_bands
from .damage import does_not_fit
from .parallel import do_all
from .shards import Piece, Shards

# Rows that an iteration reads at once where each is a chunk: what it holds besides the row that it gives.
LARGEST_STEP = 8


class Layer:
    """One layer's activations of all images, indexed as a NumPy array along the first axis; read when asked for.

    ``layer[17]`` is one image, (h, w, c); ``layer[3:9]``, ``layer[mask]`` and ``layer[[4, 2]]`` are (n, h, w, c), or at native
    size a list of arrays. A failed image is NaN, at native size (1, 1, c). Further indices apply to what was read.

    Attributes:
        name: Of the layer.
        dtype: Of the stored values.
        channels: Channels of the layer.
        stride_px: Input pixels between neighbouring positions.
        row_shape: (h, w, c) of an image; None at native size, where images differ.
        chunk_rows: Rows that are stored together: reading one costs as much as reading all.
    """

    def __init__(self, shards: Shards, name: str, node: h5py.Dataset | h5py.Group) -> None:
        self.name = name
        self.dtype = np.dtype(format.STORED_DTYPES[str(node.attrs["dtype"])])
        self.channels = int(node.attrs["channels"])
        self.stride_px = int(node.attrs["stride_px"])
        self._shards = shards
        self._is_held = False
        self.row_shape = _row_shape(node)
        self.chunk_rows = format.chunk_shape(self.row_shape, self.dtype.itemsize)[0] if self.row_shape else 1

    @property
    def shape(self) -> tuple[int | None, ...]:
        """(N, h, w, c); h and w are None at native size."""
        return len(self._shards), *(self.row_shape or (None, None, self.channels))

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, wanted: Any) -> Any:
        rest: tuple[Any, ...] = ()
        if isinstance(wanted, tuple):
            wanted, *others = wanted
            rest = tuple(others)
        rows = select_rows(wanted, len(self._shards), f"layer {self.name}")
        if isinstance(rows, int):
            (values,) = self.read(np.array([rows], np.int64))
            return values[rest]
        many = self.read(rows)
        return many[(slice(None), *rest)] if isinstance(many, np.ndarray) else [values[rest] for values in many]

    def __iter__(self) -> Iterator[NDArray[np.floating]]:
        # Some at a time, so that threads share the work and a chunk of several rows is decoded once.
        step = max(self.chunk_rows, LARGEST_STEP if self._shards.are_remote else min(usable_cores(), LARGEST_STEP))
        for first in range(0, len(self), step):
            yield from self[first : first + step]

    def shape_of(self, row: int) -> tuple[int, int, int]:
        """Gives (h, w, c) of one image that is ok, at native size too; reads none of its values.

        Raises:
            StoreError: The row is damaged.
        """
        numbers, firsts = self._shards.locate(np.array([row], np.int64))
        return image_shape(self._shards.open(int(numbers[0])), self.name, row - int(firsts[0]))

    def bands(self, row: int, every: int = 1) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Gives one image that is ok piece after piece, from top to bottom, for who need not hold all of a large one.

        A piece is a chunk of the file: about 1 MiB at native size, otherwise all of an image but above 1 GiB.

        Args:
            row: Of the run, from 0.
            every: Map rows from the beginning of one piece to that of the next, at least: to look at a part. 1: all of it.

        Yields:
            The piece's first map row, and (h', w, c) in the stored dtype.

        Raises:
            StoreError: The row is damaged; it may be the last piece only that tells, or none where some are left out.
        """
        numbers, firsts = self._shards.locate(np.array([row], np.int64))
        return read_bands(self._shards.open(int(numbers[0])), self.name, row - int(firsts[0]), every)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if self.row_shape is None:
            raise StoreError(
                f"layer {self.name}: images of differing shapes make no array, got native size. Expected one shape. "
                f"Read image by image, or extract with a fixed data.size."
            )
        return np.asarray(self[:], dtype)

    def read(self, rows: NDArray[np.int64], dtype: np.dtype[np.floating] | None = None, threads: int | None = None) -> Any:
        """Reads rows in any order, repeated or not, each chunk once, several at once.

        Args:
            rows: (n,) each in [0, N).
            dtype: Of what is given, converted by the threads that decode; None: as stored.
            threads: How many decode; None: as many as there are cores.

        Returns:
            (n, h, w, c); at native size a list of (h, w, c).

        Raises:
            StoreError: A shard is missing or damaged, or the rows do not fit into memory.
        """
        dtype = self.dtype if dtype is None else dtype
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        numbers, firsts = self._shards.locate(ascending)
        local = ascending - firsts
        if len(rows) and not self._is_held:
            # Before memory is taken for what only the index has said.
            self._shards.open(int(numbers[0])).hold_to(self.name, self.row_shape, self.dtype)
            self._is_held = True
        if self.row_shape is None:
            images: list[Any] = [None] * len(rows)

            def read_image(place: int) -> None:
                image = self._shards.open(int(numbers[place])).read_native(self.name, int(local[place]))
                images[order[place]] = image.astype(dtype, copy=False)

            do_all(read_image, range(len(rows)), threads, waits=self._shards.are_remote)
            return images
        try:
            values = np.empty((len(rows), *self.row_shape), dtype)
        except (MemoryError, ValueError) as error:
            size_bytes = len(rows) * math.prod(self.row_shape) * dtype.itemsize
            raise does_not_fit(f"layer {self.name}", len(rows), size_bytes) from error
        starts = np.flatnonzero(np.diff(numbers, prepend=-1) | np.diff(local // self.chunk_rows, prepend=-1))

        pieces = [
            Piece(int(numbers[start]), local[start:stop], order[start:stop])
            for start, stop in itertools.pairwise([*starts.tolist(), len(rows)])
        ]
        self._shards.read(self.name, pieces, values, threads)
        return values

    def __repr__(self) -> str:
        return f"<layer {self.name}: {self.shape} {self.dtype}>"

    def _repr_html_(self) -> str:
        return shown.html_table(f"layer {self.name}", shown.LAYER_HEADINGS, [shown.layer_row(self)])


def _row_shape(node: h5py.Dataset | h5py.Group) -> tuple[int, int, int] | None:
    if isinstance(node, h5py.Group):
        return None
    _, height, width, channels = node.shape
    if 0 in (height, width, channels):
        raise ValueError(f"layer {node.name.rpartition('/')[2]} of shape {node.shape}")
    return int(height), int(width), int(channels)


class RowError(StoreError, IndexError):
    """There is no such row; an IndexError too, by which Python knows where a sequence ends."""


def select_rows(wanted: Any, rows: int, where: str) -> int | NDArray[np.int64]:
    """Gives the rows that an index means, as NumPy would take it along the first axis.

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
    if array.dtype == bool and array.ndim == 1:
        if len(array) != rows:
            raise StoreError(
                f"{where}: a mask of another length, got {len(array)} values. Expected {rows}, one a row. "
                f"Make it from a column of run.images."
            )
        return np.flatnonzero(array).astype(np.int64)
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
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
