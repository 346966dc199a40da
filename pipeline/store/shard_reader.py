"""Rows of a finished shard: chunks read by position as they are stored, decoded here, compared with their checksums.

HDF5 is asked once a shard and layer where the chunks lie, since its one lock admits one reader at a time. All else is plain reads
and ISA-L, which any number of threads do at once.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import FAILED
from ..sharding import ShardSpec
from ..storage import RemotePath
from . import codec, format, tables
from .damage import HDF5_READ_ERRORS, damaged, own_node, reading

# What a damaged chunk raises: ISA-L, an absurd length, HDF5.
_CHUNK_ERRORS = (codec.DecodeError, *HDF5_READ_ERRORS)
# A thread keeps its memory for what is stored, up to so much: fresh memory for each chunk costs a fifth of reading it.
_SCRATCH_BYTES = 16 << 20

_of_thread = threading.local()


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Where the chunks of a layer, or at native size of one image, lie in the file.

    Attributes:
        shape: (h, w, c) or (d,) of a row.
        chunk: (rows, h', w, c) or (rows, d): whole rows, or a band of one row.
        dtype: Of the values.
        is_deflated: Whether chunks are zlib streams.
        positions: (groups of rows, bands, 2) int64, position in the file and size in bytes of each chunk as stored; (-1, 0) where
            none is. None where another program has cut or packed the chunks, and HDF5 must read them.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[np.floating]
    is_deflated: bool
    positions: NDArray[np.int64] | None


# Of a failed image at native size.
_NOTHING = _Chunks((1, 1, 1), (1, 1, 1, 1), np.dtype(np.float32), False, np.array([[[-1, 0]]]))


def _find_chunks(dataset: h5py.Dataset, lead: tuple[int, ...] = ()) -> _Chunks:
    """Ask HDF5 for the chunks of an array of rows; of one image with ``lead`` (1,), the axis that it lacks."""
    rows, *shape = lead + dataset.shape
    chunk_shape = format.band_shape if lead else format.chunk_shape
    chunk = lead + chunk_shape(tuple(shape), dataset.dtype.itemsize)
    chunk = (min(chunk[0], rows), *chunk[1:])
    is_deflated = dataset.compression == "gzip"
    positions = None
    if (
        lead + (dataset.chunks or ()) == chunk
        and dataset.id.get_create_plist().get_nfilters() == is_deflated
        and dataset.dtype.newbyteorder("<") == dataset.dtype
    ):
        positions = np.full((-(-rows // chunk[0]), -(-shape[0] // chunk[1]), 2), (-1, 0), np.int64)

        def note(info: Any) -> None:
            row, top = ((0,) * len(lead) + info.chunk_offset)[:2]
            if not info.filter_mask:
                positions[row // chunk[0], top // chunk[1]] = info.byte_offset, info.size

        dataset.id.chunk_iter(note)
    return _Chunks(tuple(shape), chunk, dataset.dtype, is_deflated, positions)


class ShardLayer:
    """A layer of a finished shard, read by row. Threads may share it, and a fork may go on with it.

    Args:
        path: Of the shard.
        digest: Of the run that it must be of.
        shard: Which rows it must hold.
        name: Of the layer.

    Attributes:
        row_shape: (h, w, c) or (d,); None at native size.

    Raises:
        StoreError: The shard is missing, of another run or damaged, or cannot be read.
    """

    def __init__(self, path: Path, digest: str, shard: ShardSpec, name: str) -> None:
        self._path = path
        self._shard = shard
        self._name = name
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
                self.row_shape: tuple[int, ...] | None = None if is_native else node.shape[1:]
                # Which has each row: all rows the same, at native size each its own; an error where the row is damaged.
                rows = range(shard.rows)
                self._chunks = [self._find_image(node, row) for row in rows] if is_native else [_find_chunks(node)] * len(rows)

    def _find_image(self, group: h5py.Group, row: int) -> _Chunks | StoreError:
        """Return the chunks of an image at native size."""
        if self._failed[row]:
            return _NOTHING
        try:
            node = own_node(group, format.native_name(self._shard.first + row))
            if not isinstance(node, h5py.Dataset) or node.ndim != 3:
                raise ValueError("no array of an image")
            return _find_chunks(node, lead=(1,))
        except HDF5_READ_ERRORS as error:
            return self._damaged(range(row, row + 1), error)

    def read(self, rows: Sequence[int], out: Any, places: Sequence[int]) -> None:
        """Read rows that share a chunk.

        Args:
            rows: In the shard.
            out: Where they come to: (n, h, w, c), or at native size a list, in which each row is put as (h, w, c).
            places: In ``out``, one a row; what lies at that of a failed image becomes NaN.

        Raises:
            StoreError: The shard is missing or cannot be read; a row is damaged.
        """
        chunk = None
        for row, place in zip(rows, places, strict=True):
            target = out[place]
            if self._failed[row]:
                target[...] = np.nan
                continue
            if chunk is None:
                chunk = self._decode(row, target)
            values = self._checked(row, chunk)
            if self.row_shape is None:
                out[place] = values.copy()
            elif not np.may_share_memory(values, target):  # it was not read there
                target[...] = values

    def shape(self, row: int) -> tuple[int, ...]:
        """Return (h, w, c), or (d,), of a row that is ok; reads none of its values."""
        return self._chunks_of(row).shape

    def bands(self, row: int, every: int) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield a row that is ok piece after piece; see :meth:`.reader.Layer.bands`."""
        chunks = self._chunks_of(row)
        if chunks.positions is None or chunks.chunk[0] > 1:
            yield 0, self._checked(row, self._decode(row))
            return
        sums, wanted, tops = [], 0, range(0, chunks.shape[0], chunks.chunk[1])
        for top, (position, size) in zip(tops, self._stored(row), strict=True):
            if top < wanted and top != tops[-1]:
                continue
            wanted = top + every
            band = self._chunk(row, position, size)[0, : chunks.shape[0] - top]
            sums.append((codec.checksum(band), band.nbytes))
            yield top, band
        if len(sums) == len(tops) and codec.join_checksums(sums) != self._checksums[row]:
            raise self._damaged(range(row, row + 1), "another checksum")

    def examine(self) -> Iterator[StoreError | None]:
        """Yield what is wrong with each row that is ok, None if nothing; once for rows that share a damaged chunk."""
        for _, rows in itertools.groupby(np.flatnonzero(~self._failed).tolist(), self._group):
            chunk = None
            for row in rows:
                try:
                    chunk = self._decode(row) if chunk is None else chunk
                    self._checked(row, chunk)
                    yield None
                except StoreError as error:
                    yield error
                    if chunk is None:
                        break

    def _chunks_of(self, row: int) -> _Chunks:
        found = self._chunks[row]
        if isinstance(found, StoreError):
            raise found
        return found

    def _group(self, row: int) -> range:
        """Return the rows that share a chunk with one, itself among them."""
        chunks = self._chunks[row]
        count = chunks.chunk[0] if isinstance(chunks, _Chunks) else 1
        first = row - row % count
        return range(first, min(first + count, self._shard.rows))

    def _stored(self, row: int) -> list[tuple[int, int]]:
        """Return position and size of each chunk that has values of a row."""
        chunks = self._chunks_of(row)
        assert chunks.positions is not None
        # At native size an image has positions of its own.
        found: list[tuple[int, int]] = chunks.positions[row // chunks.chunk[0] % len(chunks.positions)].tolist()
        return found

    def _decode(self, row: int, target: NDArray[np.floating] | None = None) -> NDArray[np.floating]:
        """Return the values of the rows that share a chunk with one, (n, h, w, c), not yet compared with their checksums.

        Of a row that is one chunk, and stored as ``target`` has it, they are read into that.
        """
        chunks = self._chunks_of(row)
        if chunks.positions is None:
            return self._read_by_hdf5(row)
        stored = self._stored(row)
        bands = [self._chunk(row, *of_band, target if len(stored) == 1 else None) for of_band in stored]
        return bands[0] if len(bands) == 1 else np.concatenate(bands, axis=1)[:, : chunks.shape[0]]

    def _checked(self, row: int, chunk: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the values of a row of a decoded chunk, (h, w, c), compared with its checksum."""
        values: NDArray[np.floating] = chunk[row - self._group(row).start]
        got, expected = codec.checksum(values), int(self._checksums[row])
        if got != expected:
            raise self._damaged(range(row, row + 1), f"checksum {got:08x} in place of {expected:08x}")
        return values

    def _chunk(self, row: int, position: int, size: int, target: NDArray[np.floating] | None = None) -> NDArray[np.floating]:
        """Read and decode a chunk."""
        chunks = self._chunks_of(row)
        try:
            if position < 0:
                raise ValueError("no chunk")
            if chunks.is_deflated:
                stored = _scratch(size)
            elif size != math.prod(chunks.chunk) * chunks.dtype.itemsize:
                raise ValueError(f"a chunk of {size} bytes")
            elif target is not None and (chunks.dtype, chunks.chunk) == (target.dtype, (1, *target.shape)):
                stored = target.reshape(-1).view(np.uint8)
            else:
                stored = np.empty(size, np.uint8)
            if self._read_into(stored, position) < size:
                raise ValueError(f"fewer than {size} bytes")
            return codec.decode(stored, chunks.chunk, chunks.dtype, chunks.is_deflated)
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
        """Read the rows of a chunk that another program has cut or packed, as :meth:`_decode` gives them."""
        rows = self._group(row)
        try:
            with tables.open_file(self._path) as file:
                node = own_node(file["features"], self._name)
                if isinstance(node, h5py.Group):
                    return np.asarray(own_node(node, format.native_name(self._shard.first + row))[()])[None]
                return np.asarray(node[rows.start : rows.stop])
        except _CHUNK_ERRORS as error:
            raise self._damaged(rows, error) from error

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
