"""Rows of one finished shard: its chunks read by position as they are stored, decoded here, and compared with their checksums.

HDF5 is asked once a layer where the chunks lie, since its one lock admits one reader at a time. All else is ``pread`` and ISA-L,
which any number of threads do at once.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import FAILED, ShardSpec
from ..storage import RemotePath
from . import codec, format, tables
from .damage import HDF5_READ_ERRORS, damaged, unreadable
from .file_checks import own_node

# What a damaged chunk raises: ISA-L, an absurd length, HDF5.
_CHUNK_ERRORS = (codec.DecodeError, MemoryError, *HDF5_READ_ERRORS)

# Layer -> the last decoded chunk of several rows, for those who read row after row.
LastChunks = dict[str, tuple["ShardRows", int, NDArray[np.floating]]]
# What rows are read into: (n, h, w, c), or at native size an array each.
Rows = NDArray[np.floating] | list[NDArray[np.floating]]


# One thread at a time asks HDF5 where chunks lie.
_loading = threading.Lock()
if hasattr(os, "register_at_fork"):
    # The parent's may be taken for ever.
    os.register_at_fork(after_in_child=lambda: globals().update(_loading=threading.Lock()))


class Handle:
    """An open file that is read by position, by any number of threads; a fork may go on with it. Closes when it is let go of."""

    def __init__(self, path: Path) -> None:
        self._file = -1
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()

    def pread(self, size: int, position: int) -> bytes:
        """Read bytes from a position; fewer at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(self._file, size, position)
        with self._lock:  # Windows
            os.lseek(self._file, position, os.SEEK_SET)
            return os.read(self._file, size)

    def read_into(self, values: NDArray[Any], position: int) -> int:
        """Read from a position as many bytes as an array in C order has, straight into it; return how many there were."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file, [values.data], position)
        data = self.pread(values.nbytes, position)
        values.reshape(-1).view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
        return len(data)

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def prefetch(self, size: int, position: int) -> None:
        """Have the system read bytes into its cache, without waiting for them."""
        # Of no bytes the system would read all to the end of the file. macOS has no such call.
        if size and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, position, size, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Where the chunks of an array lie in its file.

    Attributes:
        shape: (n, h, w, c) of the array; n is 1 for an image at native size.
        chunk: (rows, h', w, c): whole rows, or a band of one row.
        dtype: Of the values.
        deflated: Whether chunks are zlib streams.
        positions: (chunks,) int64, first byte of each chunk in the file, row after row, band after band; -1 where none is stored.
        sizes: (chunks,) int64, bytes of each as stored.
    """

    shape: tuple[int, int, int, int]
    chunk: tuple[int, int, int, int]
    dtype: np.dtype[np.floating]
    deflated: bool
    positions: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def is_stored_as(self, values: NDArray[np.floating]) -> bool:
        """Tell whether each row is one chunk that holds just the bytes of such an array."""
        return not self.deflated and self.dtype == values.dtype and self.chunk == (1, *self.shape[1:]) == (1, *values.shape)

    def bands(self, row: int) -> range:
        """Return the numbers of the chunks that hold a row."""
        count = -(-self.shape[1] // self.chunk[1])
        first = row // self.chunk[0] * count
        return range(first, first + count)


# A thread keeps its memory for what is stored, up to so much: fresh memory for each chunk costs a fifth of reading it.
_SCRATCH_BYTES = 16 << 20
_of_thread = threading.local()


def _scratch(size: int) -> NDArray[np.uint8]:
    kept: NDArray[np.uint8] | None = getattr(_of_thread, "scratch", None)
    if kept is None or len(kept) < size:
        kept = np.empty(size, np.uint8)
        if size <= _SCRATCH_BYTES:
            _of_thread.scratch = kept
    return kept[:size]


def _read_table(dataset: h5py.Dataset) -> ChunkTable | None:
    """Ask HDF5 for the chunks of an array; None where they are not such as this program writes, and HDF5 must read them."""
    lead = () if dataset.ndim == 4 else (1,)
    shape, chunk = (*lead, *dataset.shape), dataset.chunks and (*lead, *dataset.chunks)
    deflated = dataset.compression == "gzip"
    if (
        chunk is None
        or chunk[2:] != shape[2:]
        or (chunk[0] > 1 and chunk[1] != shape[1])
        or dataset.id.get_create_plist().get_nfilters() != deflated
        or dataset.dtype.newbyteorder("<") != dataset.dtype
    ):
        return None
    offsets = [(row, top, 0, 0) for row in range(0, shape[0], chunk[0]) for top in range(0, shape[1], chunk[1])]
    places = np.full((len(offsets), 2), (-1, 0), np.int64)
    # HDF5 leaves the size of a chunk unset where there is none at all, and h5py takes it for one.
    if dataset.id.get_storage_size():
        for number, offset in enumerate(offsets):
            info = dataset.id.get_chunk_info_by_coord(offset[len(lead) :])
            if info.byte_offset is not None and not info.filter_mask:
                places[number] = info.byte_offset, info.size
    return ChunkTable(shape, chunk, dataset.dtype, deflated, places[:, 0].copy(), places[:, 1].copy())


@dataclass(frozen=True, slots=True)
class _StoredLayer:
    """A layer of the shard.

    Attributes:
        row_shape: (h, w, c); None at native size.
        tables: One for all rows; at native size one a row. None where HDF5 must read them, or the row failed; an error where the
            row is damaged.
        failed: (rows,) whether the image failed.
        checksums: (rows,) uint32, CRC-32 of each row's values.
        unexpected: Names of what lies there and is no row, at native size.
    """

    row_shape: tuple[int, ...] | None
    tables: tuple[ChunkTable | StoreError | None, ...]
    failed: NDArray[np.bool_]
    checksums: NDArray[np.uint32]
    unexpected: tuple[str, ...]

    def locate(self, row: int) -> tuple[ChunkTable | None, int]:
        """Return the table that has a row, and the row's place in it."""
        table, place = (self.tables[row], 0) if self.row_shape is None else (self.tables[0], row)
        if isinstance(table, StoreError):
            raise table
        return table, place


class ShardRows:
    """A finished shard, read by row. Threads may share it, and a fork may go on with it.

    Args:
        path: Of the file.
        digest: Of the run that it must be of.
        shard: Which rows it must hold.
        last: Where the last decoded chunks of a run are kept.
    """

    def __init__(self, path: Path, digest: str, shard: ShardSpec, last: LastChunks | None = None) -> None:
        self._path = path
        self._digest = digest
        self._shard = shard
        self._layers: dict[str, _StoredLayer] = {}
        self._handle: Handle | RemotePath | None = None
        self._last: LastChunks = {} if last is None else last

    def read(
        self, name: str, rows: Iterable[int], out: Rows, places: Iterable[int], shape: tuple[int, ...] | None = None
    ) -> None:
        """Read rows of a layer, but for failed ones; those that share a chunk one after the other.

        Args:
            name: Of the layer.
            rows: In the shard.
            out: Where they come to, in its dtype: (n, h, w, c), or a list of (h, w, c), where an array lies already.
            places: In ``out``, one a row; that of a failed image becomes NaN, in a list it stays as it is.
            shape: (h, w, c) that rows must have; None: any.

        Raises:
            StoreError: The shard is missing, of another run or cannot be read; a row is damaged.
        """
        layer = self._layer(name)
        if shape not in (None, layer.row_shape):
            raise damaged(self._path, f"layer {name}", f"{layer.row_shape or 'native size'} where the run has {shape}")
        last = self._last.get(name)
        held = {last[1]: last[2]} if last is not None and last[0] is self else {}
        for row, place in zip(rows, places, strict=True):
            target = out[place]
            if layer.failed[row]:
                if shape is not None:
                    target[...] = np.nan
                continue
            values = self._values(name, layer, row, held, target)
            if shape is None:
                out[place] = values.astype(target.dtype)
            elif values is not target:
                target[...] = values
        for number, chunk in held.items():
            self._last[name] = self, number, chunk

    def shape(self, name: str, row: int) -> tuple[int, int, int]:
        """Return (h, w, c) of a row that is ok; reads none of its values."""
        table, _ = self._layer(name).locate(row)
        if table is None:
            height, width, channels = self._read_by_hdf5(name, row).shape
            return height, width, channels
        return table.shape[1:]

    def bands(self, name: str, row: int, every: int) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield a row that is ok piece after piece; see :meth:`.reader.Layer.bands`."""
        layer = self._layer(name)
        table, place = layer.locate(row)
        if table is None or table.chunk[0] > 1:
            yield 0, self._values(name, layer, row, {})
            return
        sums, wanted = [], 0
        height, band_height = table.shape[1], table.chunk[1]
        for number, first in zip(table.bands(place), range(0, height, band_height), strict=True):
            if first < wanted and first + band_height < height:
                continue
            wanted = first + every
            try:
                band = self._chunk(table, number)[0, : height - first]
            except _CHUNK_ERRORS as error:
                raise self._damaged(name, row, error) from error
            if every == 1:
                sums.append((codec.checksum(band), band.nbytes))
            yield first, band
        if every == 1 and codec.join_checksums(sums) != layer.checksums[row]:
            raise self._damaged(name, row, "another checksum")

    def prefetch(self, name: str, row: int) -> None:
        """Have the system read a row's chunks from the disk; what is wrong is for :meth:`read` to say."""
        with suppress(StoreError, OSError):
            table, place = self._layer(name).locate(row)
            handle = self._open_handle()
            if table is not None and isinstance(handle, Handle):
                for number in table.bands(place):
                    handle.prefetch(int(table.sizes[number]), max(0, int(table.positions[number])))

    def release(self) -> None:
        """Close the file; reading opens it again."""
        self._handle = None

    def examine(self, name: str) -> Iterator[tuple[list[StoreError], int]]:
        """Yield what is wrong with the rows of each chunk of a layer, and the bytes of their values, but for failed ones.

        Raises:
            StoreError: The layer is damaged.
        """
        layer = self._layer(name)
        table = None if layer.row_shape is None else layer.tables[0]
        step = table.chunk[0] if isinstance(table, ChunkTable) else 1
        for first in range(0, self._shard.rows, step):
            yield self._examine(name, layer, range(first, min(self._shard.rows, first + step)))
        extra = [damaged(self._path, f"layer {name}", f"a dataset {found!r} of no row") for found in layer.unexpected]
        yield [*extra], 0

    def _examine(self, name: str, layer: _StoredLayer, group: range) -> tuple[list[StoreError], int]:
        errors: list[StoreError] = []
        read_bytes = 0
        held: dict[int, NDArray[np.floating]] = {}
        for row in group:
            is_failed = bool(layer.failed[row])
            if is_failed and layer.checksums[row]:
                errors.append(self._damaged(name, row, f"checksum {int(layer.checksums[row]):08x} for a failed image"))
            try:
                table, place = layer.locate(row)
                if is_failed and (table.positions[table.bands(place)[0]] < 0 if table else layer.row_shape is None):
                    continue
                values = self._values(name, layer, row, held)
            except StoreError as error:
                errors.append(error)
                if isinstance(error.__cause__, _CHUNK_ERRORS):
                    # The chunk, and so all of its rows.
                    errors[-1] = self._damaged(name, row, error.__cause__, group[-1])
                    break
                continue
            read_bytes += 0 if is_failed else values.nbytes
            if is_failed and not np.isnan(values).all():
                errors.append(self._damaged(name, row, "a number in a row of a failed image"))
            elif not is_failed and not np.isfinite(values).all():
                errors.append(self._damaged(name, row, "a value that is not finite, although its checksum agrees"))
        return errors, read_bytes

    def _values(
        self,
        name: str,
        layer: _StoredLayer,
        row: int,
        held: dict[int, NDArray[np.floating]],
        target: NDArray[np.floating] | None = None,
    ) -> NDArray[np.floating]:
        """Return the values of a row, (h, w, c), compared with its checksum unless the image failed.

        ``held`` keeps the chunk where rows share one, by its number. Where ``target`` can take the row as stored, it is read
        straight into it, and ``target`` is returned.
        """
        table, place = layer.locate(row)
        values: NDArray[np.floating]
        try:
            if table is None:
                values = self._read_by_hdf5(name, row)
            elif table.chunk[0] > 1:
                number = place // table.chunk[0]
                if number not in held:
                    held.clear()
                    held[number] = self._chunk(table, number)
                values = held[number][place % table.chunk[0]]
            elif target is not None and table.is_stored_as(target):
                values = target
                self._chunk(table, place, target)
            else:
                bands = [self._chunk(table, number)[0] for number in table.bands(place)]
                values = bands[0] if len(bands) == 1 else np.concatenate(bands)[: table.shape[1]]
        except _CHUNK_ERRORS as error:
            raise self._damaged(name, row, error) from error
        got, expected = codec.checksum(values), int(layer.checksums[row])
        if got != expected and not layer.failed[row]:
            raise self._damaged(name, row, f"checksum {got:08x} in place of {expected:08x}")
        return values

    def _chunk(self, table: ChunkTable, number: int, target: NDArray[np.floating] | None = None) -> NDArray[np.floating]:
        """Read and decode a chunk; ``target``, if any, takes what is stored as it is."""
        position, size = int(table.positions[number]), int(table.sizes[number])
        if position < 0:
            raise ValueError("no chunk")
        if not table.deflated and size != math.prod(table.chunk) * table.dtype.itemsize:
            raise ValueError(f"a chunk of {size} bytes")
        handle = self._open_handle()
        if table.deflated and isinstance(handle, Handle):
            stored = _scratch(size)
            if handle.read_into(stored, position) != size:
                raise ValueError(f"fewer than {size} bytes")
            return codec.decode(stored, table.chunk, table.dtype, table.deflated)
        if target is None or not isinstance(handle, Handle):
            values = codec.decode(handle.pread(size, position), table.chunk, table.dtype, table.deflated)
            if target is None:
                return values
            target[...] = values[0]
        elif handle.read_into(target, position) != size:
            raise ValueError(f"fewer than {size} bytes")
        return target

    def _read_by_hdf5(self, name: str, row: int) -> NDArray[np.floating]:
        """Read a row whose chunks another program has cut or packed."""
        with tables.open_file(self._path, all_nodes=False) as file:
            node = own_node(file["features"], name)
            if isinstance(node, h5py.Group):
                return np.asarray(own_node(node, format.native_name(self._shard.first + row))[()])
            return np.asarray(node[row])

    def _open_handle(self) -> Handle | RemotePath:
        handle = self._handle
        if handle is None:
            path = self._path
            try:
                handle = path if isinstance(path, RemotePath) else Handle(path)
            except OSError as error:
                raise unreadable(path, error) from error
            self._handle = handle
        return handle

    def _layer(self, name: str) -> _StoredLayer:
        if name not in self._layers:
            with _loading:
                if name not in self._layers:
                    self._layers[name] = self._load(name)
        return self._layers[name]

    def _load(self, name: str) -> _StoredLayer:
        path, shard = self._path, self._shard
        with tables.open_file(path, all_nodes=False) as file:
            tables.check_shard(file, path, self._digest, shard)
            failed = tables.read_column(file, path, "status") == FAILED
            if failed.shape != (shard.rows,):
                raise damaged(path, "column 'status' of /images", f"{failed.size} rows in place of {shard.rows}")
            try:
                node = own_node(file["features"], name)
                checksums = tables.read_checksums(file, path, name)
                if checksums.shape != (shard.rows,):
                    raise ValueError(f"checksums of shape {checksums.shape}")
                if isinstance(node, h5py.Group):
                    return self._load_native(name, node, failed, checksums)
                if node.is_virtual or len(node) != shard.rows:
                    raise ValueError(f"shape {node.shape} for {shard.rows} rows")
                return _StoredLayer(node.shape[1:], (_read_table(node),), failed, checksums, ())
            except HDF5_READ_ERRORS as error:
                raise damaged(path, f"layer {name}", error) from error

    def _load_native(
        self, name: str, group: h5py.Group, failed: NDArray[np.bool_], checksums: NDArray[np.uint32]
    ) -> _StoredLayer:
        found: list[ChunkTable | StoreError | None] = [None] * self._shard.rows
        names = {int(row): format.native_name(self._shard.first + int(row)) for row in np.flatnonzero(~failed)}
        for row, of_image in names.items():
            try:
                node = own_node(group, of_image)
                if not isinstance(node, h5py.Dataset) or node.ndim != 3 or node.is_virtual:
                    raise ValueError("no array of an image")
                found[row] = _read_table(node)
            except HDF5_READ_ERRORS as error:
                found[row] = self._damaged(name, row, error)
        return _StoredLayer(None, tuple(found), failed, checksums, tuple(sorted({*group} - {*names.values()})))

    def _damaged(self, name: str, row: int, got: object, last: int | None = None) -> StoreError:
        try:
            with tables.open_file(self._path, all_nodes=False) as file:
                key = str(tables.read_column(file, self._path, "key")[row])
        except StoreError:
            # Two things are damaged; the row is what was asked for.
            key = "key damaged too"
        first = self._shard.first
        words = f"row {first + row} ({key})" if last in (None, row) else f"rows {first + row} ({key}) to {first + last}"
        return damaged(self._path, f"layer {name}, {words}", got)
