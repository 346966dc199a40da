"""Rows of a finished shard: chunks read by position as they are stored, decoded here, compared with their checksums.

HDF5 is asked once a shard and layer where the chunks lie, since its one lock admits one reader at a time. All else is plain reads
and ISA-L, which any number of threads do at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..records import FAILED
from ..sharding import ShardSpec
from ..storage import RemotePath
from . import codec, format, tables
from .damage import damaged, own_node, reading

# A thread keeps its memory for what is stored, up to so much: fresh memory for each chunk costs a fifth of reading it.
_SCRATCH_BYTES = 16 << 20

_of_thread = threading.local()


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Where the chunks of a layer, or at native size of one image, lie in the file."""

    shape: tuple[int, ...]  # (h, w, c) or (d,) of a row
    chunk: tuple[int, ...]  # (rows, h', w, c) or (rows, d): whole rows, or a band of one row
    dtype: np.dtype[np.floating]
    is_deflated: bool
    # (groups of rows, bands, 2) int64, position in the file and bytes of each chunk as stored; (-1, 0) where none is.
    positions: NDArray[np.int64]


def _find_chunks(dataset: h5py.Dataset, lead: tuple[int, ...] = ()) -> _Chunks:
    """Ask HDF5 for the chunks of an array of rows; of one image with ``lead`` (1,), the axis that it lacks."""
    rows, *shape = lead + dataset.shape
    chunk = lead + (format.band_shape if lead else format.chunk_shape)(tuple(shape), dataset.dtype.itemsize)
    chunk = (min(chunk[0], rows), *chunk[1:])
    is_deflated = dataset.compression == "gzip"
    found = lead + (dataset.chunks or ()), dataset.id.get_create_plist().get_nfilters(), dataset.dtype
    if found != (chunk, is_deflated, dataset.dtype.newbyteorder("<")):
        raise ValueError(f"other chunks than {chunk}")
    positions = np.full((-(-rows // chunk[0]), -(-shape[0] // chunk[1]), 2), (-1, 0), np.int64)

    def note(info: Any) -> None:
        row, top = ((0,) * len(lead) + info.chunk_offset)[:2]
        if not info.filter_mask:
            positions[row // chunk[0], top // chunk[1]] = info.byte_offset, info.size

    dataset.id.chunk_iter(note)
    return _Chunks(tuple(shape), chunk, dataset.dtype, is_deflated, positions)


class ShardLayer:
    """A layer of a finished shard, of this run and these rows. Threads may share it, and a fork may go on with it.

    Attributes:
        row_shape: (h, w, c) or (d,); None at native size.
        chunk_rows: Rows that share a chunk.

    Raises:
        StoreError: The shard is missing, of another run or damaged, or cannot be read; in all methods.
    """

    def __init__(self, path: Path, digest: str, shard: ShardSpec, name: str) -> None:
        self._path, self._shard, self._name = path, shard, name
        with tables.open_file(path) as file:
            tables.check_shard(file, path, digest, shard)
            self._failed = tables.read_column(file, path, "status") == FAILED
            self._checksums = tables.read_checksums(file, path, name)
            with reading(path, f"layer {name}"):
                node = own_node(file["features"], name)
                is_native = isinstance(node, h5py.Group)
                if {len(self._failed), len(self._checksums), shard.rows if is_native else len(node)} != {shard.rows}:
                    raise ValueError(f"other rows than {shard.rows}")
                self.row_shape: tuple[int, ...] | None = None if is_native else node.shape[1:]
                # Which has each row: all rows the same, at native size each its own, but for failed ones.
                self._chunks: list[Any] = [None if is_native else _find_chunks(node)] * shard.rows
            for row in np.flatnonzero(~self._failed).tolist() if is_native else ():
                with reading(path, self._words(row)):
                    self._chunks[row] = _find_chunks(own_node(node, format.native_name(shard.first + row)), lead=(1,))
        self.chunk_rows = self._chunks[0].chunk[0] if self.row_shape else 1

    def read(self, rows: Sequence[int], target: NDArray[np.floating] | None = None) -> list[NDArray[np.floating] | None]:
        """Return rows that share a chunk, each (h, w, c), read-only, and compared with its checksum; None for a failed image.

        Args:
            rows: In the shard.
            target: (h, w, c). A row that is one chunk, and stored as this has it, may be read into it.
        """
        chunk = None
        found: list[NDArray[np.floating] | None] = []
        for row in rows:
            if self._failed[row]:
                found.append(None)
                continue
            if chunk is None:
                bands = [band for _, band in self._bands(row, target=target)]
                chunk = bands[0] if len(bands) == 1 else np.concatenate(bands, axis=1)
            values = chunk[row % self.chunk_rows]
            self._compare(row, codec.checksum(values))
            found.append(values)
        return found

    def shape(self, row: int) -> tuple[int, ...]:
        """Return (h, w, c), or (d,), of a row that is ok; reads none of its values."""
        return tuple(self._chunks[row].shape)

    def bands(self, row: int, every: int) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield a row that is ok piece after piece; see :meth:`.reader.Layer.bands`."""
        sums, height = [], 0
        for top, chunk in self._bands(row, every):
            band = chunk[row % self.chunk_rows]
            sums.append((codec.checksum(band), band.nbytes))
            height += len(band)
            yield top, band
        if height == self.shape(row)[0]:
            self._compare(row, codec.join_checksums(sums))

    def _bands(
        self, row: int, every: int = 1, target: NDArray[np.floating] | None = None
    ) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield the chunks that have values of a row, decoded: the first map row, and (n, h', w, c) of the rows that share it."""
        chunks, wanted = self._chunks[row], 0
        # At native size an image has positions of its own.
        stored = chunks.positions[row // self.chunk_rows % len(chunks.positions)].tolist()
        for number, (position, size) in enumerate(stored):
            top = number * chunks.chunk[1]
            if top >= wanted or number == len(stored) - 1:
                wanted = top + every
                with reading(self._path, self._words(row - row % self.chunk_rows, self.chunk_rows)):
                    chunk = self._chunk(chunks, position, size, target)
                yield top, chunk[:, : chunks.shape[0] - top]

    def _chunk(self, chunks: _Chunks, position: int, size: int, target: NDArray[np.floating] | None) -> NDArray[np.floating]:
        """Read and decode a chunk; into ``target`` where it is stored as that has it."""
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

    def _compare(self, row: int, got: int) -> None:
        """Refuse a row that is not as its checksum says."""
        expected = int(self._checksums[row])
        if got != expected:
            raise damaged(self._path, self._words(row), f"checksum {got:08x} in place of {expected:08x}")

    def _words(self, row: int, count: int = 1) -> str:
        """Return what messages call so many rows, or those of them that there are."""
        first, stop = self._shard.first + row, min(self._shard.first + row + count, self._shard.stop)
        return f"layer {self._name}, row {first}" if stop - first == 1 else f"layer {self._name}, rows {first} to {stop - 1}"


def _scratch(size: int) -> NDArray[np.uint8]:
    """Return memory of this thread for what is stored."""
    kept: NDArray[np.uint8] | None = getattr(_of_thread, "scratch", None)
    if kept is None or len(kept) < size:
        kept = np.empty(size, np.uint8)
        if size <= _SCRATCH_BYTES:
            _of_thread.scratch = kept
    return kept[:size]
