"""Where a layer's chunks lie in a finished shard: enough to read its rows without HDF5, whose one lock admits one reader.

A shard is opened by HDF5 once, then its chunks are fetched by position and decoded by any number of threads. What is not as the
table says (another file of that name, a byte that has changed) is not judged here: :class:`~.rows.ShardRows` says what is wrong.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.range_file import RemoteHandle
from ..storage.remote_path import RemotePath
from . import codec

# Windows has no such call; rows are read through HDF5 there.
HAS_POSITIONED_READS = hasattr(os, "preadv")
# Nor has macOS this one; its disks are waited for.
HAS_ADVICE = hasattr(os, "posix_fadvise")

Stamp = tuple[int, int, int, int]


class StaleError(Exception):
    """A file or its bytes are not as the table says."""


def stamp_of(file: int) -> Stamp:
    """Gives what tells an open file from its successors: device, inode, size, time of its last change."""
    found = os.fstat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Handle:
    """An open file; closes when nobody refers to it any more. Reading has no position: threads and forks may share it.

    Args:
        path: Of the file.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.file = -1
        self.file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.stamp = stamp_of(self.file)

    def read_into(self, buffer: memoryview, position: int) -> int:
        """Reads up to as many bytes as the buffer has; gives how many came."""
        return os.preadv(self.file, [buffer], position)

    def read_ahead(self, position: int, size: int) -> None:
        """Have the system read bytes into its cache, without waiting for them.

        Raises:
            OSError: The file cannot be read.
        """
        os.posix_fadvise(self.file, position, size, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if self.file >= 0:
            os.close(self.file)


def open_handle(path: Path) -> Handle | RemoteHandle:
    """Opens a file, here or at an address.

    Raises:
        OSError: It cannot be opened.
    """
    return path.handle() if isinstance(path, RemotePath) and path.local is None else Handle(path)


# A thread keeps its memory for what is stored, up to so much: fresh memory for each chunk would cost more than reading it.
KEPT_BYTES = 16 << 20
_of_thread = threading.local()


def _scratch(size_bytes: int) -> NDArray[np.uint8]:
    kept: NDArray[np.uint8] | None = getattr(_of_thread, "scratch", None)
    if kept is None or len(kept) < size_bytes:
        kept = np.empty(size_bytes, np.uint8)
        if size_bytes <= KEPT_BYTES:
            _of_thread.scratch = kept
    return kept[:size_bytes]


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """One layer of one finished shard: whole rows a chunk.

    Attributes:
        layer: Its name.
        stamp: Of the file that it describes.
        dtype: Of the stored values.
        shape: (h, w, c) of a row.
        chunk_rows: Rows a chunk; the last chunk is padded.
        deflated: Whether chunks are zlib streams.
        positions: (chunks,) int64, of each chunk's first byte in the file; -1 where none is stored.
        sizes: (chunks,) int64, bytes of each chunk as stored.
        failed: (rows,) whether the image failed.
        checksums: (rows,) uint32, CRC-32 of each row's values.
    """

    layer: str
    stamp: Stamp
    dtype: np.dtype[np.floating]
    shape: tuple[int, int, int]
    chunk_rows: int
    deflated: bool
    positions: NDArray[np.int64]
    sizes: NDArray[np.int64]
    failed: NDArray[np.bool_]
    checksums: NDArray[np.uint32]

    def place_of(self, row: int) -> tuple[int, int]:
        """Gives where a row's chunk begins in the file, and its bytes."""
        chunk = row // self.chunk_rows
        return max(0, int(self.positions[chunk])), int(self.sizes[chunk])

    def read_row(self, handle: Handle | RemoteHandle, row: int, into: NDArray[np.floating]) -> None:
        """Reads a row that is a chunk of its own straight into its place, (h, w, c) of the stored dtype in C order.

        Raises:
            StaleError: The file, or what it holds, is not as the table says; here and below.
        """
        self._decode_into(handle, row, into)
        self._check(row, into)

    def decode(self, handle: Handle | RemoteHandle, chunk: int) -> NDArray[np.floating]:
        """Gives a chunk, (chunk_rows, h, w, c)."""
        try:
            values = np.empty((self.chunk_rows, *self.shape), self.dtype)
        except (MemoryError, ValueError) as error:
            raise StaleError from error
        self._decode_into(handle, chunk, values)
        return values

    def _decode_into(self, handle: Handle | RemoteHandle, chunk: int, into: NDArray[np.floating]) -> None:
        if not self.deflated:
            self._fetch(handle, chunk, into)
            return
        try:
            data = _scratch(self._place(chunk)[1])
            self._fetch(handle, chunk, data)
            codec.decode_into(data, into)
        except (codec.DecodeError, ValueError, MemoryError) as error:
            raise StaleError from error

    def copy(
        self, values: NDArray[np.floating], chunk: int, rows: NDArray[np.int64], places: NDArray[np.int64], into: Any
    ) -> None:
        """Copies rows of a decoded chunk.

        Args:
            values: What :meth:`decode` gave.
            chunk: Its number.
            rows: (n,) rows in the shard, all in this chunk.
            places: (n,) where in ``into`` each row goes.
            into: (m, h, w, c) of any floating dtype; failed rows become NaN.
        """
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            if self.failed[row]:
                into[place] = np.nan
                continue
            of_row = values[row - chunk * self.chunk_rows]
            self._check(row, of_row)
            into[place] = of_row

    def _place(self, chunk: int) -> tuple[int, int]:
        """Gives position and bytes of a chunk, which lie in the file."""
        position, size_bytes = int(self.positions[chunk]), int(self.sizes[chunk])
        if position < 0 or not 0 <= size_bytes <= self.stamp[2] - position:
            raise StaleError
        return position, size_bytes

    def _fetch(self, handle: Handle | RemoteHandle, chunk: int, into: NDArray[Any]) -> None:
        position, size_bytes = self._place(chunk)
        if handle.stamp != self.stamp or size_bytes != into.nbytes:
            raise StaleError
        # The system gives less than was asked for above 2 GiB, and at the end of a file that has been cut.
        buffer = memoryview(into.reshape(-1).view(np.uint8).data)
        while buffer:
            got = handle.read_into(buffer, position)
            if not got:
                raise StaleError
            buffer, position = buffer[got:], position + got

    def _check(self, row: int, values: NDArray[np.floating]) -> None:
        if codec.checksum(values) != self.checksums[row]:
            raise StaleError
