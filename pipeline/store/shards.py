"""The shards of a finished run, read by several threads."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..machine import usable_cores
from ..records import ShardSpec
from ..storage import RemotePath, refresh
from .rows import LastChunks, Rows, ShardRows

# Open files a run: few enough for any system's limit, with many worker processes.
OPEN_FILES = 64
# Chunks that the system reads from the disk while those before them are decoded: some 16 MB.
CHUNKS_AHEAD = 16
# Requests that an object store answers at the same time, each after some 10 to 50 ms.
WAITING_THREADS = 16


# Whether tasks wait for a network -> threads, which start when they are first used.
_pools: dict[bool, ThreadPoolExecutor] = {}


def _make_pools() -> None:
    """Make the pools, in a forked child too: it has none of its parent's threads."""
    sizes = {False: usable_cores(), True: WAITING_THREADS}
    _pools.update({waits: ThreadPoolExecutor(threads, "rows") for waits, threads in sizes.items()})


_make_pools()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_pools)


def do_all(work: Callable[[int], None], count: int, threads: int | None = None, *, waits: bool = False) -> None:
    """Do tasks 0 to ``count - 1``, begun in this order, the calling thread being one of those that work.

    Args:
        work: Does one task; most of its time should be spent outside the interpreter's lock.
        count: Number of tasks.
        threads: How many to use at most; None: as many as there are cores.
        waits: Whether a task waits for a network most of its time: then more are begun than there are cores, whatever ``threads``
            says.

    Raises:
        Exception: Of the first task that failed, in the order of tasks; those after it may not have been done.
    """
    # Taking the next number is one step of the interpreter: no two threads get the same.
    numbers = iter(range(count))
    failures: dict[int, Exception] = {}
    stopped = False

    def take_part() -> None:
        while not stopped and not failures and (number := next(numbers, None)) is not None:
            try:
                work(number)
            except Exception as error:
                failures[number] = error

    most = WAITING_THREADS if waits else usable_cores() if threads is None else threads
    helpers = [_pools[waits].submit(take_part) for _ in range(min(most, count) - 1)]
    try:
        take_part()
    finally:
        stopped = True
        for helper in helpers:
            # One that has not begun is not waited for: all threads of the pool may be busy with tasks that wait for others.
            if not helper.cancel():
                helper.exception()
    if failures:
        raise failures.pop(min(failures))


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
        # Of every shard that was ever read where its chunks lie, some 20 bytes a row: asking HDF5 costs more than reading a row,
        # and a shuffled pass over a large run reads another shard for almost every row.
        self._rows: dict[int, ShardRows] = {}
        # The few of them whose files are open, the last used at the end.
        self._recent: dict[int, ShardRows] = {}
        self._last: LastChunks = {}

    @property
    def are_remote(self) -> bool:
        """Whether they lie at an address, so that reading is waiting for most of the time."""
        return isinstance(self._paths[self.specs[0]], RemotePath)

    def __len__(self) -> int:
        """Rows of all of them."""
        return self.specs[-1].stop - self.specs[0].first

    def locate(self, row: int) -> tuple[ShardRows, int]:
        """Return the shard that has a row, and the row's place in it."""
        number = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return self._shard(number), row - int(self._firsts[number])

    def read(
        self,
        name: str,
        rows: NDArray[np.int64],
        out: Rows,
        shape: tuple[int, ...] | None,
        chunk_rows: int,
        threads: int | None = None,
    ) -> None:
        """Read rows of a layer, each chunk once, several at once.

        Args:
            name: Of the layer.
            rows: (n,) in any order, repeated or not.
            out: What they are read into, see :meth:`.rows.ShardRows.read`.
            shape: (h, w, c) of a row; None at native size.
            chunk_rows: Rows that share a chunk.
            threads: How many decode; None: as many as there are cores.

        Raises:
            StoreError: A shard is missing, damaged or of another run, or a row is damaged.
        """
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        numbers = np.searchsorted(self._firsts, ascending, side="right") - 1
        local = ascending - self._firsts[numbers]
        starts = np.flatnonzero(np.diff(numbers, prepend=-1) | np.diff(local // chunk_rows, prepend=-1)).tolist()
        pieces = [slice(*ends) for ends in itertools.pairwise([*starts, len(rows)])]

        def prefetch(wanted: slice) -> None:
            for piece in () if self.are_remote else pieces[wanted]:
                self._shard(int(numbers[piece.start])).prefetch(name, int(local[piece.start]))

        def read_piece(number: int) -> None:
            prefetch(slice(number + CHUNKS_AHEAD, number + CHUNKS_AHEAD + 1))
            piece = pieces[number]
            of_shard = int(numbers[piece.start])
            arguments = name, local[piece].tolist(), out, order[piece].tolist(), shape
            try:
                self._shard(of_shard).read(*arguments)
            except StoreError:
                # The shard may have been made anew since it was opened: what is there now says whether anything is wrong.
                self._forget(of_shard)
                self._shard(of_shard).read(*arguments)

        prefetch(slice(CHUNKS_AHEAD))
        do_all(read_piece, len(pieces), threads, waits=self.are_remote)

    def _shard(self, number: int) -> ShardRows:
        shard = self._rows.get(number)
        if shard is None:
            spec = self.specs[number]
            shard = self._rows.setdefault(number, ShardRows(self._paths[spec], self._digests[spec.part], spec, self._last))
        self._recent.pop(number, None)
        self._recent[number] = shard
        for oldest in list(self._recent)[:-OPEN_FILES]:
            released = self._recent.pop(oldest, None)
            if released is not None:
                released.release()
        return shard

    def _forget(self, number: int) -> None:
        self._rows.pop(number, None)
        self._recent.pop(number, None)
        refresh(self._paths[self.specs[number]])

    def close(self) -> None:
        """Close all; reading opens them again, and looks at them again."""
        self._rows.clear()
        self._recent.clear()
        self._last.clear()

    def __reduce__(self) -> tuple[type[Shards], tuple[dict[ShardSpec, Path], tuple[str, ...]]]:
        return Shards, (self._paths, self._digests)
