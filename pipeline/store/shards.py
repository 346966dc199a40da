"""The shards of a finished run: where each lies, what of it is known, and the few of them that are open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import ShardSpec
from ..storage.range_file import RemoteHandle
from ..storage.remote_path import RemotePath
from .chunk_table import HAS_ADVICE, ChunkTable, Handle, StaleError, WantedRow, open_handle, read_together
from .inflate_code import MOST_STREAMS, compiled_inflate
from .parallel import do_all
from .rows import ShardRows

# Open shards a run: few enough for any system's limit on open files, with many worker processes.
OPEN_SHARDS = 16
# Rows that are begun to be read from the disk before those ahead of them are inflated: some 16 MB.
ROWS_FORETOLD = 16
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

    def read(self, number: int, layer: str, rows: NDArray[np.int64], places: NDArray[np.int64], into: Any) -> None:
        """Reads rows of a layer of fixed shape that lie in one chunk, as this program cuts them.

        Args:
            number: Place of the shard in :attr:`specs`.
            layer: Name of a layer of the run.
            rows: (n,) rows in the shard, ascending.
            places: (n,) where in ``into`` each row goes.
            into: (m, h, w, c), C order, of any floating dtype; failed rows become NaN.

        Raises:
            StoreError: The shard is missing, damaged or of another run, or a row is damaged.
        """
        try:
            table = self._table(number, layer)
            if table is not None and table.shape == into.shape[1:]:
                handle, chunks = self._handle(number), rows // table.chunk_rows
                # One, but for files whose chunks were cut anew by another program.
                for chunk in chunks[:1].tolist() if chunks[0] == chunks[-1] else np.unique(chunks).tolist():
                    among = chunks == chunk
                    self._read_chunk(table, handle, chunk, (rows[among], places[among]), into)
                return
        except (StaleError, OSError):
            self._forget(number)
        # The careful way: it says what is wrong, or finds nothing wrong, as with a shard that was made anew.
        self.open(number).read(layer, rows, places, into)

    def read_together(self, layer: str, pieces: Sequence[Piece], into: Any, threads: int) -> list[Piece]:
        """Reads such pieces as are single rows that this program has compressed, several side by side in each thread.

        Args:
            layer: Name of a layer of the run.
            pieces: In the order in which they are begun.
            into: As above.
            threads: How many to use.

        Returns:
            What is left for :meth:`read`, in the same order: what is anything else, and what is not as it should be.
        """
        try:
            compiled_inflate()
        except RuntimeError:  # LLVM's, where it can make no code: the library needs none.
            return list(pieces)
        queue = iter(enumerate(pieces))
        # Not so many that another thread would find nothing.
        most = min(MOST_STREAMS, -(-len(pieces) // threads))
        left: list[int] = []

        def wanted() -> Iterator[WantedRow]:
            for number, piece in queue:
                self._foretell(layer, pieces[number + ROWS_FORETOLD : number + ROWS_FORETOLD + 1])
                of_row = self._wanted(layer, number, piece, into)
                if of_row is None:
                    left.append(number)
                else:
                    yield of_row

        def work(_: int) -> None:
            left.extend(of_row.number for of_row, is_there in read_together(wanted(), most) if not is_there)

        self._foretell(layer, pieces[:ROWS_FORETOLD])
        do_all(work, range(threads), threads)
        return [pieces[number] for number in sorted(left)]

    def _foretell(self, layer: str, pieces: Sequence[Piece]) -> None:
        """Has the system read from the disk meanwhile what is to be inflated soon."""
        if not HAS_ADVICE:
            return
        for piece in pieces:
            with suppress(StoreError, OSError):
                table, handle = self._table(piece.number, layer), self._handle(piece.number)
                if table is not None and isinstance(handle, Handle):
                    handle.foretell(*table.place_of(int(piece.rows[0])))

    def _wanted(self, layer: str, number: int, piece: Piece, into: Any) -> WantedRow | None:
        """Gives what is to be read of a piece; None where it is to be read in another way, or cannot be."""
        if len(piece.rows) > 1:
            return None
        row = int(piece.rows[0])
        try:
            table = self._table(piece.number, layer)
            if table is None or table.shape != into.shape[1:] or not table.has_row(row, into.dtype):
                return None
            handle = self._handle(piece.number)
            return WantedRow(number, table, handle, row, into[int(piece.places[0])]) if isinstance(handle, Handle) else None
        except (StoreError, OSError):
            return None

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
