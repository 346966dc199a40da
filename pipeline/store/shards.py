"""The shards of a finished run: where each lies, what of it is known, and the few of them that are open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import ShardSpec
from ..storage.range_file import RemoteHandle
from ..storage.remote_path import RemotePath
from .chunk_table import HAS_ADVICE, ChunkTable, Handle, StaleError, open_handle
from .parallel import do_all
from .rows import ShardRows

# Open shards a run: few enough for any system's limit on open files, with many worker processes.
OPEN_SHARDS = 16
# Chunks that the system reads from the disk while those before them are decoded: some 16 MB.
CHUNKS_AHEAD = 16
# Of those that need no HDF5 to be read; cheap to open again.
OPEN_HANDLES = 64


class _Open:
    """What one process has open. A forked child begins anew: HDF5's open files are the parent's, and its locks may be taken."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.RLock()
        self.shards: OrderedDict[int, ShardRows] = OrderedDict()
        self.handles: OrderedDict[int, Handle | RemoteHandle] = OrderedDict()


class Piece(NamedTuple):
    """Rows that lie in one chunk.

    Attributes:
        number: Place of their shard in :attr:`Shards.specs`.
        rows: (n,) rows in the shard, ascending.
        places: (n,) where each goes in what is read.
    """

    number: int
    rows: NDArray[np.int64]
    places: NDArray[np.int64]


class Shards:
    """Neighbouring shards of a run, opened when needed. Threads may share it; it may be pickled, and used after a fork.

    Args:
        paths: Where each shard lies, in order, the first row of the first one being row 0.
        digests: That the shards of each part must have.
    """

    def __init__(self, paths: dict[ShardSpec, Path], digests: tuple[str, ...]) -> None:
        self.specs = tuple(paths)
        self._paths = paths
        self._digests = digests
        # Each part ends with a shard of its own length: rows cannot be found by division.
        self._firsts = np.array([spec.first - self.specs[0].first for spec in self.specs], np.int64)
        self._current = _Open()
        # Kept of every shard that was ever read, some 20 bytes a row: opening by HDF5 costs more than reading a row, and a
        # shuffled pass over a large run opens another shard for almost every row. A fork inherits them; numbers cannot go stale
        # without the stamp of the file telling.
        self._tables: dict[tuple[int, str], ChunkTable | None] = {}
        # Layer -> the last chunk of several rows, for those who read row after row.
        self._last: dict[str, tuple[ChunkTable, int, NDArray[np.floating]]] = {}

    @property
    def are_remote(self) -> bool:
        """Whether they lie at an address, so that reading is waiting for most of the time."""
        return isinstance(self._paths[self.specs[0]], RemotePath)

    def __len__(self) -> int:
        """Rows of all of them."""
        return self.specs[-1].stop - self.specs[0].first

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Gives for each row the place of its shard in :attr:`specs`, and that shard's first row; each (n,) int64."""
        numbers = np.searchsorted(self._firsts, rows, side="right") - 1
        return numbers, self._firsts[numbers]

    def read(self, layer: str, pieces: Sequence[Piece], into: Any, threads: int | None = None) -> None:
        """Read rows of a layer of fixed shape, several chunks at once.

        Args:
            layer: Name of a layer of the run.
            pieces: In the order in which they are begun.
            into: (m, h, w, c), C order, of any floating dtype; failed rows become NaN.
            threads: How many decode; None: as many as there are cores.

        Raises:
            StoreError: A shard is missing, damaged or of another run, or a row is damaged.
        """

        def work(number: int) -> None:
            self._read_ahead(layer, pieces[number + CHUNKS_AHEAD : number + CHUNKS_AHEAD + 1])
            self._read_piece(layer, pieces[number], into)

        self._read_ahead(layer, pieces[:CHUNKS_AHEAD])
        do_all(work, range(len(pieces)), threads, waits=self.are_remote)

    def _read_ahead(self, layer: str, pieces: Sequence[Piece]) -> None:
        """Have the system read from the disk what is decoded soon."""
        if not HAS_ADVICE or self.are_remote:
            return
        for piece in pieces:
            with suppress(StoreError, OSError):
                table, handle = self._table(piece.number, layer), self._handle(piece.number)
                position, size_bytes = table.place_of(int(piece.rows[0])) if table is not None else (0, 0)
                # Of no bytes the system would read all to the end of the file.
                if size_bytes and isinstance(handle, Handle):
                    handle.read_ahead(position, size_bytes)

    def _read_piece(self, layer: str, piece: Piece, into: Any) -> None:
        rows, places = piece.rows, piece.places
        try:
            table = self._table(piece.number, layer)
            if table is not None and table.shape == into.shape[1:]:
                handle, chunks = self._handle(piece.number), rows // table.chunk_rows
                # One, but for files whose chunks were cut anew by another program.
                for chunk in chunks[:1].tolist() if chunks[0] == chunks[-1] else np.unique(chunks).tolist():
                    among = chunks == chunk
                    self._read_chunk(table, handle, chunk, (rows[among], places[among]), into)
                return
        except (StaleError, OSError):
            self._forget(piece.number)
        # The careful way: it says what is wrong, or finds nothing wrong, as with a shard that was made anew.
        self.open(piece.number).read(layer, rows, places, into)

    def _read_chunk(
        self,
        table: ChunkTable,
        handle: Handle | RemoteHandle,
        chunk: int,
        where: tuple[NDArray[np.int64], NDArray[np.int64]],
        into: Any,
    ) -> None:
        rows, places = where
        if table.failed[rows].all():
            into[places] = np.nan
        elif table.chunk_rows == 1 and into.dtype == table.dtype:
            for place in places.tolist():
                table.read_row(handle, chunk, into[place])
        else:
            last = self._last.get(table.layer)
            if last is None or last[0] is not table or last[1] != chunk:
                last = table, chunk, table.decode(handle, chunk)
                if table.chunk_rows > len(rows):
                    self._last[table.layer] = last
            table.copy(last[2], chunk, rows, places, into)

    def _table(self, number: int, layer: str) -> ChunkTable | None:
        key = number, layer
        if key not in self._tables:
            with self._of_this_process().lock:
                if key not in self._tables:
                    table = self._tables[key] = self.open(number).chunk_table(layer)
                    return table
        return self._tables.get(key)

    def open(self, number: int) -> ShardRows:
        """Gives an open shard by its place in :attr:`specs`; the last few stay open.

        Raises:
            StoreError: It is missing, damaged or of another run.
        """
        current = self._of_this_process()
        with current.lock:
            if number not in current.shards:
                spec = self.specs[number]
                current.shards[number] = ShardRows(self._paths[spec], self._digests[spec.part], spec)
                # Dropped, not closed: another thread may be reading it, and it closes with its last reader.
                if len(current.shards) > OPEN_SHARDS:
                    current.shards.popitem(last=False)
            current.shards.move_to_end(number)
            return current.shards[number]

    def _handle(self, number: int) -> Handle | RemoteHandle:
        current = self._of_this_process()
        with current.lock:
            if number not in current.handles:
                current.handles[number] = open_handle(self._paths[self.specs[number]])
                if len(current.handles) > OPEN_HANDLES:
                    current.handles.popitem(last=False)
            current.handles.move_to_end(number)
            return current.handles[number]

    def _forget(self, number: int) -> None:
        """Forgets all about a shard, so that it is opened as it is now."""
        for key in [key for key in self._tables.copy() if key[0] == number]:
            self._tables.pop(key, None)
        current = self._of_this_process()
        with current.lock:
            current.handles.pop(number, None)
            current.shards.pop(number, None)
        path = self._paths[self.specs[number]]
        if isinstance(path, RemotePath):
            path.mirror.forget(path.within)

    def _of_this_process(self) -> _Open:
        if self._current.process != os.getpid():
            self._current = _Open()
        return self._current

    def close(self) -> None:
        """Closes them; reading opens them again."""
        current = self._of_this_process()
        with current.lock:
            current.shards.clear()
            current.handles.clear()
        # A shard that is opened again is looked at again.
        self._tables.clear()
        self._last.clear()

    def __reduce__(self) -> tuple[type[Shards], tuple[dict[ShardSpec, Path], tuple[str, ...]]]:
        return Shards, (self._paths, self._digests)
