"""The shards of a finished run: where each lies, and the few of them that are open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..records import ShardSpec
from .rows import ShardRows

# Open shards a run: few enough for any system's limit on open files, with many worker processes.
OPEN_SHARDS = 16


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
        self._open: OrderedDict[int, ShardRows] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __len__(self) -> int:
        """Rows of all of them."""
        return self.specs[-1].stop - self.specs[0].first

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Gives for each row the place of its shard in :attr:`specs`, and that shard's first row; each (n,) int64."""
        numbers = np.searchsorted(self._firsts, rows, side="right") - 1
        return numbers, self._firsts[numbers]

    def open(self, number: int) -> ShardRows:
        """Gives an open shard by its place in :attr:`specs`; the last few stay open.

        Raises:
            StoreError: It is missing, damaged or of another run.
        """
        with self._lock:
            if self._process != os.getpid():
                # HDF5's state of an open file must not be shared with the parent process.
                self._open.clear()
                self._process = os.getpid()
            if number not in self._open:
                spec = self.specs[number]
                self._open[number] = ShardRows(self._paths[spec], self._digests[spec.part], spec)
                # Dropped, not closed: another thread may be reading it, and it closes with its last reader.
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]

    def close(self) -> None:
        """Closes them; reading opens them again."""
        with self._lock:
            self._open.clear()

    def __reduce__(self) -> tuple[type[Shards], tuple[dict[ShardSpec, Path], tuple[str, ...]]]:
        return Shards, (self._paths, self._digests)
