"""Rows of one finished shard: chunks fetched as they are stored, decoded here, and held to their checksums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import FAILED, ShardSpec
from ..storage.remote_path import RemotePath
from . import codec, format, tables
from .array import StoredArray
from .chunk_table import HAS_POSITIONED_READS, ChunkTable, open_handle, stamp_of
from .damage import HDF5_READ_ERRORS, damaged
from .file_checks import own_node

# What a damaged chunk raises: ISA-L, an absurd length, HDF5.
_CHUNK_ERRORS = (codec.DecodeError, MemoryError, *HDF5_READ_ERRORS)


class ShardRows:
    """A finished shard, open for reading. Threads may share it; it closes when nobody refers to it any more.

    Args:
        path: Of the file.
        digest: Of the run that it must be of.
        shard: Which rows it must hold.

    Raises:
        StoreError: It is missing, damaged, of another run or of other rows.
    """

    def __init__(self, path: Path, digest: str, shard: ShardSpec) -> None:
        self._path = path
        self._shard = shard
        # A layer or two are read of it, perhaps of many.
        self._file = tables.open_file(path, all_nodes=False)
        try:
            tables.check_shard(self._file, path, digest, shard)
            self._failed = tables.read_column(self._file, path, "status") == FAILED
            if self._failed.shape != (shard.rows,):
                raise damaged(path, "column 'status' of /images", f"{self._failed.size} rows in place of {shard.rows}")
        except BaseException:
            # At once: HDF5 would give this file again, as it is now, to whoever opens its successor.
            self._file.close()
            raise
        self._layers: dict[str, tuple[Any, NDArray[np.uint32]]] = {}
        self._keys: tables.Column | None = None
        # Layer -> (first row, values) of the last chunk of several rows, for those who read row after row.
        self._last: dict[str, tuple[int, NDArray[np.floating]]] = {}

    def read(self, layer: str, rows: NDArray[np.int64], places: NDArray[np.int64], into: NDArray[np.floating]) -> None:
        """Reads rows of a layer of fixed shape.

        Args:
            layer: Name of a layer of the run.
            rows: (n,) rows in the shard, best ascending.
            places: (n,) where in ``into`` each row goes.
            into: (m, h, w, c) of any floating dtype; failed rows become NaN.

        Raises:
            StoreError: A row is damaged.
        """
        stored, checksums = self._layer(layer)
        self.hold_to(layer, into.shape[1:])
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            if self._failed[row]:
                into[place] = np.nan
                continue
            try:
                values = self._row(layer, stored, row)
                if values.shape != into.shape[1:]:
                    raise ValueError(f"a row of shape {values.shape}")
            except _CHUNK_ERRORS as error:
                raise self._damaged(layer, row, error) from error
            self._check(layer, row, values, int(checksums[row]))
            into[place] = values

    def read_native(self, layer: str, row: int) -> NDArray[np.floating]:
        """Reads one image of a layer at native size.

        Args:
            layer: Name of a layer of the run.
            row: Row in the shard.

        Returns:
            (h, w, c) in the stored dtype; one NaN a channel, (1, 1, c), for a failed row.

        Raises:
            StoreError: The row is damaged.
        """
        group, checksums = self._layer(layer)
        if not isinstance(group, h5py.Group):
            raise damaged(self._path, f"layer {layer}", f"{group.shape} where the run has native size")
        if self._failed[row]:
            return np.full((1, 1, int(group.attrs["channels"])), np.nan, format.STORED_DTYPES[str(group.attrs["dtype"])])
        try:
            stored = self._image(group, row)
            values = np.array(stored.read_image(()))  # a copy, since what was decoded cannot be written to
        except _CHUNK_ERRORS as error:
            raise self._damaged(layer, row, error) from error
        self._check(layer, row, values, int(checksums[row]))
        return values

    def chunk_table(self, layer: str) -> ChunkTable | None:
        """Gives where the chunks of a layer lie; None where they are not whole rows, or no file can be read by position.

        Raises:
            StoreError: The layer is damaged.
        """
        stored, checksums = self._layer(layer)
        if not HAS_POSITIONED_READS or not isinstance(stored, StoredArray) or stored.chunk is None:
            return None
        if stored.chunk[1:] != stored.shape[1:]:
            return None
        try:
            stamp = (
                open_handle(self._path).stamp if isinstance(self._path, RemotePath) else stamp_of(self._file.id.get_vfd_handle())
            )
            positions, sizes = stored.chunk_places()
        except HDF5_READ_ERRORS as error:
            raise damaged(self._path, f"layer {layer}", error) from error
        return ChunkTable(
            layer=layer,
            stamp=stamp,
            dtype=stored.dtype,
            shape=(stored.shape[1], stored.shape[2], stored.shape[3]),
            chunk_rows=stored.chunk[0],
            deflated=stored.deflated,
            positions=positions,
            sizes=sizes,
            failed=self._failed,
            checksums=checksums,
        )

    def image(self, layer: str, row: int) -> tuple[StoredArray, tuple[int, ...], int]:
        """Gives the array that holds an image that is ok, where in it, and the checksum of its values."""
        stored, checksums = self._layer(layer)
        if isinstance(stored, StoredArray):
            return stored, (row,), int(checksums[row])
        return self._image(stored, row), (), int(checksums[row])

    def hold_to(self, layer: str, row_shape: tuple[int, ...] | None, dtype: np.dtype[np.floating] | None = None) -> None:
        """Makes sure that a layer is stored as the run says, before rows of it take memory.

        Args:
            layer: Name of a layer of the run.
            row_shape: (h, w, c); None at native size.
            dtype: Of the stored values; None: any.

        Raises:
            StoreError: It is not.
        """
        stored, _ = self._layer(layer)
        found = (stored.shape[1:], dtype and stored.dtype) if isinstance(stored, StoredArray) else (None, dtype)
        if found != (row_shape, dtype):
            words = (f"{shape or 'native size'}{f', {of}' if of else ''}" for shape, of in (found, (row_shape, dtype)))
            raise damaged(self._path, f"layer {layer}", " where the run has ".join(words))

    def _image(self, group: Any, row: int) -> StoredArray:
        """Gives an image's dataset at native size."""
        if not isinstance(group, h5py.Group):
            raise ValueError("no images of native size")
        return StoredArray(own_node(group, format.native_name(self._shard.first + row)))

    def groups(self, layer: str) -> Iterator[range]:
        """Gives the rows of the shard that lie in a chunk together, for every chunk of a layer.

        Raises:
            StoreError: The layer is damaged.
        """
        stored, _ = self._layer(layer)
        step = stored.chunk[0] if isinstance(stored, StoredArray) and stored.chunk else 1
        return (range(first, min(self._shard.rows, first + step)) for first in range(0, self._shard.rows, step))

    def size_bytes(self, layer: str, group: range) -> int:
        """Gives the bytes of the values of one of :meth:`groups`; 0 where a damaged file does not tell."""
        stored, _ = self._layer(layer)
        if isinstance(stored, StoredArray):
            return len(group) * math.prod(stored.shape[1:]) * int(stored.dataset.dtype.itemsize)
        try:
            node = self._image(stored, group.start).dataset
            return int(math.prod(node.shape) * node.dtype.itemsize)
        except HDF5_READ_ERRORS:
            return 0

    def unexpected(self, layer: str) -> list[str]:
        """Gives the names of what lies in a layer at native size and is no row of the shard."""
        stored, _ = self._layer(layer)
        rows = range(self._shard.first, self._shard.stop)
        return [] if isinstance(stored, StoredArray) else sorted(set(stored) - {format.native_name(row) for row in rows})

    def examine(self, layer: str, group: range) -> tuple[list[StoreError], int]:
        """Gives what is wrong with the rows of a chunk, and the bytes of their values, but for failed ones.

        Args:
            layer: Name of a layer of the run.
            group: One of :meth:`groups`.
        """
        stored, _ = self._layer(layer)
        try:
            rows = self._group_values(stored, group)
        except _CHUNK_ERRORS as error:
            return [self._damaged_rows(layer, group, error)], 0
        return list(self._wrong_rows(layer, group, rows)), sum(
            values.nbytes for row, values in zip(group, rows, strict=True) if values is not None and not self._failed[row]
        )

    def _wrong_rows(self, layer: str, group: range, rows: list[NDArray[np.floating] | None]) -> Iterator[StoreError]:
        _, checksums = self._layer(layer)
        for row, values in zip(group, rows, strict=True):
            if self._failed[row]:
                # At native size there is nothing to be read of a failed row.
                if values is not None and not np.isnan(values).all():
                    yield self._damaged(layer, row, "a number in a row of a failed image")
                if checksums[row]:
                    yield self._damaged(layer, row, f"checksum {int(checksums[row]):08x} for a failed image")
                continue
            assert values is not None
            got = codec.checksum(values)
            if got != checksums[row]:
                yield self._damaged(layer, row, f"checksum {got:08x} in place of {int(checksums[row]):08x}")
            elif not np.isfinite(values).all():
                yield self._damaged(layer, row, "a value that is not finite, although its checksum agrees")

    def _group_values(self, stored: Any, group: range) -> list[NDArray[np.floating] | None]:
        if not isinstance(stored, StoredArray):
            name = format.native_name(self._shard.first + group.start)
            if self._failed[group.start]:
                if name in stored:
                    raise ValueError("a dataset of a failed image")
                return [None]
            return [self._image(stored, group.start).read_image(())]
        if self._failed[group.start : group.stop].all():
            # Such a chunk is not stored: HDF5 gives the fill value.
            return list(stored.dataset[group.start : group.stop])
        if stored.chunk is None or stored.chunk[0] == 1:
            return [stored.read_image((group.start,))]
        return list(stored.read_chunk((group.start, 0, 0, 0))[: len(group)])

    def _row(self, layer: str, stored: StoredArray, row: int) -> NDArray[np.floating]:
        if stored.chunk is None or stored.chunk[0] == 1:
            return stored.read_image((row,))
        first = row - row % stored.chunk[0]
        last = self._last.get(layer)
        if last is None or last[0] != first:
            last = self._last[layer] = first, stored.read_chunk((first, 0, 0, 0))
        values: NDArray[np.floating] = last[1][row - first]
        return values

    def _layer(self, name: str) -> tuple[Any, NDArray[np.uint32]]:
        """Gives a layer's ``StoredArray``, or its group at native size; and its checksums."""
        if name not in self._layers:
            try:
                node = own_node(self._file["features"], name)
                checksums = tables.read_checksums(self._file, self._path, name)
                if checksums.shape != (self._shard.rows,):
                    raise ValueError(f"checksums of shape {checksums.shape}")
                if not isinstance(node, h5py.Group) and (node.is_virtual or len(node) != self._shard.rows):
                    raise ValueError(f"shape {node.shape} for {self._shard.rows} rows")
                self._layers[name] = node if isinstance(node, h5py.Group) else StoredArray(node), checksums
            except HDF5_READ_ERRORS as error:
                raise damaged(self._path, f"layer {name}", error) from error
        return self._layers[name]

    def _check(self, layer: str, row: int, values: NDArray[np.floating], expected: int) -> None:
        got = codec.checksum(values)
        if got != expected:
            raise self._damaged(layer, row, f"checksum {got:08x} in place of {expected:08x}")

    def _damaged(self, layer: str, row: int, got: object) -> StoreError:
        return self._damaged_rows(layer, range(row, row + 1), got)

    def _damaged_rows(self, layer: str, rows: range, got: object) -> StoreError:
        first, last, key = self._shard.first + rows[0], self._shard.first + rows[-1], self._key(rows[0])
        words = f"row {first} ({key})" if first == last else f"rows {first} ({key}) to {last}"
        return damaged(self._path, f"layer {layer}, {words}", got)

    def _key(self, row: int) -> str:
        if self._keys is None:
            try:
                self._keys = tables.read_column(self._file, self._path, "key")
            except StoreError:
                # Two things are damaged; the row is what was asked for.
                return "key damaged too"
        return str(self._keys[row])
