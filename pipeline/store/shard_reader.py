"""Rows of finished shards: chunks read by position as they are stored, decoded here, compared with their checksums.

HDF5 is asked once a shard and layer where the chunks lie, since its one lock admits one reader at a time. All else is plain reads
and ISA-L, which any number of threads do at once.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..machine import usable_cores
from ..records import FAILED
from ..sharding import ShardSpec
from ..storage import RemotePath, refresh
from . import codec, format, tables
from .damage import HDF5_READ_ERRORS, damaged, own_node, reading

# What a damaged chunk raises: ISA-L, an absurd length, HDF5.
_CHUNK_ERRORS = (codec.DecodeError, *HDF5_READ_ERRORS)
# Chunks that the system reads from the disk while those before them are decoded: some 16 MB.
CHUNKS_AHEAD = 16
# Requests that an object store answers at the same time, each after some 10 to 50 ms.
WAITING_THREADS = 16
# A thread keeps its memory for what is stored, up to so much: fresh memory for each chunk costs a fifth of reading it.
_SCRATCH_BYTES = 16 << 20

# What rows are read into: (n, h, w, c), or at native size an array each.
Rows = NDArray[np.floating] | list[NDArray[np.floating]]

_of_thread = threading.local()


_decoding: ThreadPoolExecutor
_waiting: ThreadPoolExecutor
# Of the one thread that asks HDF5 where chunks lie.
_asking: threading.Lock


def _start() -> None:
    """Make threads and lock, in a forked child too, which has none of its parent's threads."""
    global _decoding, _waiting, _asking
    # No more than cores: each keeps memory for what it decodes.
    _decoding = ThreadPoolExecutor(usable_cores(), "rows")
    _waiting = ThreadPoolExecutor(WAITING_THREADS, "rows")
    _asking = threading.Lock()


_start()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start)


def do_all(work: Callable[[int], None], count: int, threads: int | None, waits: bool = False) -> None:
    """Do tasks 0 to ``count - 1``, begun in this order, the calling thread being one of those that work.

    Args:
        work: Does one task; most of its time should be spent outside the interpreter's lock.
        count: Number of tasks.
        threads: How many to use at most; None: as many as there are cores.
        waits: Whether tasks wait for a network: then more are begun than there are cores, whatever ``threads`` says.

    Raises:
        Exception: Of a task that failed; those after it may not have been done.
    """
    numbers = iter(range(count))

    def take_part() -> None:
        try:
            # Taking the next number is one step of the interpreter: no two threads get the same.
            for number in numbers:
                work(number)
        finally:
            # What nobody has begun when a task fails, or at Ctrl-C, is left.
            for _ in numbers:
                pass

    most = min(count, WAITING_THREADS if waits else threads or usable_cores())
    helpers = [(_waiting if waits else _decoding).submit(take_part) for _ in range(most - 1)]
    try:
        take_part()
    finally:
        # One that has not begun is not waited for: on a busy machine it may take long to wake up.
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
    for helper in begun:
        helper.result()


@dataclass(frozen=True, slots=True)
class _ChunkTable:
    """Where the chunks of an array lie in its file.

    Attributes:
        shape: (n, h, w, c) or (n, d) of the array; n is 1 for an image at native size.
        chunk: (rows, h', w, c) or (rows, d): whole rows, or a band of one row.
        dtype: Of the values.
        is_deflated: Whether chunks are zlib streams.
        places: (chunks, 2) int64, position in the file and size in bytes of each chunk as stored, row after row, band after band;
            (-1, 0) where none is stored. None where the chunks are not such as this program writes, and HDF5 must read them.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[np.floating]
    is_deflated: bool
    places: NDArray[np.int64] | None

    def bands(self, row: int) -> range:
        """Return the numbers of the chunks that hold a row of the shard."""
        count = -(-self.shape[1] // self.chunk[1])
        # An array of one image is a table for itself.
        first = row % self.shape[0] // self.chunk[0] * count
        return range(first, first + count)


# Of a failed image at native size.
_NOTHING = _ChunkTable((1, 1, 1, 1), (1, 1, 1, 1), np.dtype(np.float32), False, np.array([[-1, 0]]))


def _read_table(dataset: h5py.Dataset, *, is_one_image: bool = False) -> _ChunkTable:
    """Ask HDF5 for the chunks of an array of rows, or of one image."""
    lead = (1,) * is_one_image
    shape, chunk = (*lead, *dataset.shape), (*lead, *(dataset.chunks or ()))
    is_deflated = dataset.compression == "gzip"
    if (
        chunk[2:] != shape[2:]
        or (chunk[0] > 1 and chunk[1] != shape[1])
        or dataset.id.get_create_plist().get_nfilters() != is_deflated
        or dataset.dtype.newbyteorder("<") != dataset.dtype
    ):
        return _ChunkTable(shape, (1, *shape[1:]), dataset.dtype, False, None)
    bands = -(-shape[1] // chunk[1])
    places = np.full((-(-shape[0] // chunk[0]) * bands, 2), (-1, 0), np.int64)

    def note(info: Any) -> None:
        row, top = ((0,) * len(lead) + info.chunk_offset)[:2]
        if not info.filter_mask:
            places[row // chunk[0] * bands + top // chunk[1]] = info.byte_offset, info.size

    dataset.id.chunk_iter(note)
    return _ChunkTable(shape, chunk, dataset.dtype, is_deflated, places)


class _Decoded(NamedTuple):
    """Values of rows that share a chunk, (n, h, w, c), or of a row for itself; not yet compared with their checksums."""

    owner: ShardLayer
    rows: range
    values: NDArray[np.floating]


class ShardLayer:
    """A layer of a finished shard, read by row. Threads may share it, and a fork may go on with it.

    Args:
        path: Of the shard.
        digest: Of the run that it must be of.
        shard: Which rows it must hold.
        name: Of the layer.
        last: Layer -> the last decoded chunk of several rows of a run, for those who read row after row.

    Raises:
        StoreError: The shard is missing, of another run or damaged, or cannot be read.
    """

    def __init__(self, path: Path, digest: str, shard: ShardSpec, name: str, last: dict[str, _Decoded] | None = None) -> None:
        self._path = path
        self._shard = shard
        self._name = name
        self._last = {} if last is None else last
        with tables.open_file(path) as file:
            tables.check_shard(file, path, digest, shard)
            self._failed = tables.read_column(file, path, "status") == FAILED
            # CRC-32 of each row's values.
            self._checksums = tables.read_checksums(file, path, name)
            with reading(path, f"layer {name}"):
                node = own_node(file["features"], name)
                is_native = isinstance(node, h5py.Group)
                lengths = {len(self._failed), len(self._checksums), shard.rows if is_native else len(node)}
                if lengths != {shard.rows}:
                    raise ValueError(f"{lengths} rows in place of {shard.rows}")
                # (h, w, c); None at native size.
                self._row_shape: tuple[int, ...] | None = None if is_native else node.shape[1:]
                # Which has each row: one for all, at native size one a row; an error where the row is damaged.
                table = None if is_native else _read_table(node)
                self._tables = [table or self._table_of(node, row) for row in range(shard.rows)]

    def read(self, rows: Sequence[int], out: Rows, places: Sequence[int], shape: tuple[int, ...] | None) -> None:
        """Read rows; those that share a chunk one after the other.

        Args:
            rows: In the shard.
            out: Where they come to, in its dtype: (n, h, w, c), or a list of (h, w, c), where an array lies already.
            places: In ``out``, one a row; that of a failed image becomes NaN.
            shape: (h, w, c) that rows must have; None at native size.

        Raises:
            StoreError: The shard is missing or cannot be read; a row is damaged.
        """
        if shape != self._row_shape:
            got = f"{self._row_shape or 'native size'} where the run has {shape}"
            raise damaged(self._path, f"layer {self._name}", got)
        decoded = self._last.get(self._name)
        for row, place in zip(rows, places, strict=True):
            target = out[place]
            if self._failed[row]:
                target[...] = np.nan
                continue
            if decoded is None or decoded.owner is not self or row not in decoded.rows:
                decoded = self._decode(row, target)
            values = self._checked(row, decoded)
            if shape is None:
                out[place] = values.astype(target.dtype)
            elif not np.may_share_memory(values, target):  # it was not read there
                target[...] = values
        if decoded is not None and len(decoded.rows) > 1:
            self._last[self._name] = decoded

    def shape(self, row: int) -> tuple[int, ...]:
        """Return (h, w, c), or (d,), of a row that is ok; reads none of its values."""
        return self._table(row).shape[1:]

    def bands(self, row: int, every: int) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield a row that is ok piece after piece; see :meth:`.reader.Layer.bands`."""
        table = self._table(row)
        if table.places is None or table.chunk[0] > 1:
            yield 0, self._checked(row, self._decode(row))
            return
        sums, wanted = [], 0
        height, numbers = table.shape[1], table.bands(row)
        for number, top in zip(numbers, range(0, height, table.chunk[1]), strict=True):
            if top < wanted and number != numbers[-1]:
                continue
            wanted = top + every
            band = self._chunk(row, table, number)[0, : height - top]
            sums.append((codec.checksum(band), band.nbytes))
            yield top, band
        if len(sums) == len(numbers) and codec.join_checksums(sums) != self._checksums[row]:
            raise self._damaged(range(row, row + 1), "another checksum")

    def prefetch(self, row: int) -> None:
        """Have the system read a row's chunks from the disk; what is wrong is for :meth:`read` to say."""
        table = self._tables[row]
        if isinstance(table, _ChunkTable) and table.places is not None:
            with suppress(OSError), self._path.open("rb", buffering=0) as file:
                for position, size in table.places[table.bands(row)].tolist():
                    # Of no bytes the system would read all to the end of the file.
                    if size:
                        os.posix_fadvise(file.fileno(), position, size, os.POSIX_FADV_WILLNEED)

    def examine(self) -> Iterator[int | StoreError]:
        """Yield the bytes of the values of each row that is ok, or what is wrong; once for rows that share a damaged chunk."""
        decoded, damaged_rows = None, range(0)
        for row in np.flatnonzero(~self._failed).tolist():
            if row in damaged_rows:
                continue
            try:
                if decoded is None or row not in decoded.rows:
                    damaged_rows = self._group(row)
                    decoded = self._decode(row)
                    damaged_rows = range(0)
                yield self._checked(row, decoded).nbytes
            except StoreError as error:
                yield error

    def _table(self, row: int) -> _ChunkTable:
        table = self._tables[row]
        if isinstance(table, StoreError):
            raise table
        return table

    def _group(self, row: int) -> range:
        """Return the rows that share a chunk with one, itself among them."""
        table = self._tables[row]
        count = table.chunk[0] if isinstance(table, _ChunkTable) else 1
        first = row - row % count
        return range(first, min(first + count, self._shard.rows))

    def _table_of(self, group: h5py.Group, row: int) -> _ChunkTable | StoreError:
        """Return the chunks of an image at native size."""
        if self._failed[row]:
            return _NOTHING
        try:
            node = own_node(group, format.native_name(self._shard.first + row))
            if not isinstance(node, h5py.Dataset) or node.ndim != 3:
                raise ValueError("no array of an image")
            return _read_table(node, is_one_image=True)
        except HDF5_READ_ERRORS as error:
            return self._damaged(range(row, row + 1), error)

    def _decode(self, row: int, target: NDArray[np.floating] | None = None) -> _Decoded:
        """Read and decode a row with those that share its chunk; straight into ``target`` where it can take what is stored."""
        table, rows = self._table(row), self._group(row)
        if table.places is None:
            return _Decoded(self, rows, self._read_by_hdf5(row)[None])
        numbers = table.bands(row)
        # Into the target goes a row of one chunk: of several, each would overwrite the one before.
        bands = [self._chunk(row, table, number, target if len(numbers) == 1 else None) for number in numbers]
        values = bands[0] if len(bands) == 1 else np.concatenate(bands, axis=1)[:, : table.shape[1]]
        return _Decoded(self, rows, values)

    def _checked(self, row: int, decoded: _Decoded) -> NDArray[np.floating]:
        """Return the values of a row, (h, w, c), compared with its checksum."""
        values: NDArray[np.floating] = decoded.values[row - decoded.rows.start]
        got, expected = codec.checksum(values), int(self._checksums[row])
        if got != expected:
            raise self._damaged(range(row, row + 1), f"checksum {got:08x} in place of {expected:08x}")
        return values

    def _chunk(
        self, row: int, table: _ChunkTable, number: int, target: NDArray[np.floating] | None = None
    ) -> NDArray[np.floating]:
        """Read and decode a chunk."""
        assert table.places is not None
        position, size = table.places[number].tolist()
        try:
            if position < 0:
                raise ValueError("no chunk")
            if table.is_deflated:
                stored = _scratch(size)
            elif size != math.prod(table.chunk) * table.dtype.itemsize:
                raise ValueError(f"a chunk of {size} bytes")
            elif target is not None and (table.dtype, table.chunk) == (target.dtype, (1, *target.shape)):
                stored = target.reshape(-1).view(np.uint8)
            else:
                stored = np.empty(size, np.uint8)
            if self._read_into(stored, position) < size:
                raise ValueError(f"fewer than {size} bytes")
            return codec.decode(stored, table.chunk, table.dtype, table.is_deflated)
        except _CHUNK_ERRORS as error:
            raise self._damaged(self._group(row), error) from error

    def _read_into(self, values: NDArray[np.uint8], position: int) -> int:
        """Read bytes from a position of the file; return how many there were."""
        if isinstance(self._path, RemotePath):
            data = self._path.pread(len(values), position)
            values[: len(data)] = np.frombuffer(data, np.uint8)
            return len(data)
        # Opened each time: it costs a hundredth of reading a chunk, and no file is left open, in a fork or when shards are many.
        with self._path.open("rb", buffering=0) as file:
            file.seek(position)
            return file.readinto(values.data)

    def _read_by_hdf5(self, row: int) -> NDArray[np.floating]:
        """Read a row whose chunks another program has cut or packed."""
        try:
            with tables.open_file(self._path) as file:
                node = own_node(file["features"], self._name)
                is_native = isinstance(node, h5py.Group)
                values = own_node(node, format.native_name(self._shard.first + row))[()] if is_native else node[row]
                return np.asarray(values)
        except _CHUNK_ERRORS as error:
            raise self._damaged(range(row, row + 1), error) from error

    def _damaged(self, rows: range, got: object) -> StoreError:
        try:
            with tables.open_file(self._path) as file:
                key = str(tables.read_column(file, self._path, "key")[rows[0]])
        except StoreError:
            # Two things are damaged; the row is what was asked for.
            key = "key damaged too"
        first = self._shard.first
        words = f"row {first + rows[0]} ({key})" if len(rows) == 1 else f"rows {first + rows[0]} ({key}) to {first + rows[-1]}"
        return damaged(self._path, f"layer {self._name}, {words}", got)


def _scratch(size: int) -> NDArray[np.uint8]:
    """Return memory of this thread for what is stored."""
    kept: NDArray[np.uint8] | None = getattr(_of_thread, "scratch", None)
    if kept is None or len(kept) < size:
        kept = np.empty(size, np.uint8)
        if size <= _SCRATCH_BYTES:
            _of_thread.scratch = kept
    return kept[:size]


class Shards:
    """Neighbouring shards of a run. Threads may share it; it may be pickled, and used after a fork.

    Args:
        paths: Where each shard lies, in order, the first row of the first one being row 0.
        digests: That the shards of each part must have.
    """

    def __init__(self, paths: dict[ShardSpec, Path], digests: tuple[str, ...]) -> None:
        self.specs = tuple(paths)
        self.are_remote = isinstance(paths[self.specs[0]], RemotePath)
        self._paths = paths
        self._digests = digests
        # Each part ends with a shard of its own length: rows cannot be found by division.
        self._firsts = np.array([spec.first - self.specs[0].first for spec in self.specs], np.int64)
        # Of every shard that was ever read where its chunks lie, some 20 bytes a row: asking HDF5 costs more than reading a row,
        # and a shuffled pass over a large run reads another shard for almost every row.
        self._layers: dict[tuple[int, str], ShardLayer] = {}
        self._last: dict[str, _Decoded] = {}

    def __len__(self) -> int:
        """Rows of all of them."""
        return self.specs[-1].stop - self.specs[0].first

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the number of the shard that has each row, and the row's place in it."""
        numbers = np.searchsorted(self._firsts, rows, side="right") - 1
        return numbers, rows - self._firsts[numbers]

    def layer(self, number: int, name: str) -> ShardLayer:
        """Return a layer of one of them.

        Raises:
            StoreError: The shard is missing, of another run or damaged, or cannot be read.
        """
        found = self._layers.get((number, name))
        if found is None:
            with _asking:
                found = self._layers.get((number, name))
                if found is None:
                    spec = self.specs[number]
                    found = ShardLayer(self._paths[spec], self._digests[spec.part], spec, name, self._last)
                    self._layers[number, name] = found
        return found

    def forget(self, number: int, name: str) -> None:
        """Have a layer of one looked at again: the shard may have been made anew."""
        self._layers.pop((number, name), None)
        refresh(self._paths[self.specs[number]])

    def close(self) -> None:
        """Forget what is known of the shards; reading looks at them again."""
        self._layers.clear()
        self._last.clear()

    def __reduce__(self) -> tuple[type[Shards], tuple[dict[ShardSpec, Path], tuple[str, ...]]]:
        return Shards, (self._paths, self._digests)
