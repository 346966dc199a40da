"""An object as a file: what is read of it is fetched, in blocks, and the last of these are kept."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .address import Address
from .objects import Entry, read

BLOCK_BYTES = 1 << 17
# Of one file. What HDF5 reads of a shard before its chunks lies at the beginning and at the end, and here and there between.
BLOCKS_KEPT = 64
# Fetched at once when the end is first asked for: the tables of a shard lie there.
END_BYTES = 1 << 18


class RangeFile(io.RawIOBase):
    """An object, open for reading; for one thread at a time.

    Args:
        address: Of the object.
        entry: As a listing shows it.
        failed: Told why something could not be read: HDF5 does not pass it on.
    """

    def __init__(self, address: Address, entry: Entry, failed: Callable[[OSError], None]) -> None:
        super().__init__()
        self._failed = failed
        self._address = address
        self._entry = entry
        self._size = entry.size
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def again(self) -> RangeFile:
        """Gives the same object, opened anew, with what has been fetched so far."""
        other = RangeFile(self._address, self._entry, self._failed)
        other._blocks = self._blocks.copy()
        return other

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def fetch_ends(self) -> RangeFile:
        """Fetches what HDF5 will ask for first: beginning and end."""
        last = max(0, self._size - 1) // BLOCK_BYTES
        self._fetch(0, 0)
        self._fetch(max(0, (self._size - END_BYTES) // BLOCK_BYTES), last)
        return self

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start, stop = self._position, min(self._position + len(view), self._size)
        if start >= stop:
            return 0
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        if last - first >= BLOCKS_KEPT // 2:
            # More than would be kept: past the blocks.
            view[: stop - start] = self._read(start, stop)
        else:
            self._fetch(first, last)
            for number in range(first, last + 1):
                block, begin = self._blocks[number], number * BLOCK_BYTES
                low, high = max(start, begin), min(stop, begin + len(block))
                view[low - start : high - start] = block[low - begin : high - begin]
        self._position = stop
        return stop - start

    def _read(self, start: int, stop: int) -> bytes:
        try:
            return read(self._address, start, stop) if stop > start else b""
        except OSError as error:
            self._failed(error)
            raise

    def _fetch(self, first: int, last: int) -> None:
        """Has these blocks there: what is missing comes by one request."""
        missing = [number for number in range(first, last + 1) if number not in self._blocks]
        for number in range(first, last + 1):
            if number in self._blocks:
                self._blocks.move_to_end(number)
        if not missing:
            return
        low, high = missing[0] * BLOCK_BYTES, min((missing[-1] + 1) * BLOCK_BYTES, self._size)
        data = self._read(low, high)
        for number in range(missing[0], missing[-1] + 1):
            self._blocks[number] = data[number * BLOCK_BYTES - low : (number + 1) * BLOCK_BYTES - low]
            self._blocks.move_to_end(number)
        while len(self._blocks) > BLOCKS_KEPT:
            self._blocks.popitem(last=False)


class RemoteHandle:
    """An object of which pieces are read by position, by any number of threads; see ``store/chunk_table.py``.

    Args:
        address: Of the object.
        entry: As a listing shows it.
    """

    def __init__(self, address: Address, entry: Entry) -> None:
        self._address = address

    def pread(self, size: int, position: int) -> bytes:
        """Read bytes from a position; fewer at the end of the object.

        Raises:
            OSError: The storage refuses.
        """
        return read(self._address, position, position + size)
