"""A file that HDF5 writes through, and that never tells HDF5 that the disk refuses.

HDF5 does not survive that: what it could not write it cannot forget, so closing fails, and the process dies of a segmentation
fault when the file's objects are cleared away. Here the first refusal is kept for whoever writes the shard, and all that HDF5
writes after it goes nowhere; the file is dropped anyway.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SteadyFile(io.FileIO):
    """A new file, open for HDF5's reading and writing.

    Args:
        path: Emptied if it is there.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._refusal: BaseException | None = None
        # Bytes that are not to be written yet: where they are in memory, how many; and where HDF5 wants them in the file.
        self._awaited: tuple[int, int] | None = None
        self._place: int | None = None

    def hide_refusals(self) -> None:
        """Hides from HDF5 what the disk refuses from now on.

        Not from the start: HDF5 makes a file in the main thread, which calls no Python of ours in the meantime this way, so no
        Ctrl-C can come into the middle of that. A file that cannot be made is an error that HDF5 survives.
        """
        self.write = self._write  # type: ignore[method-assign]
        self.truncate = self._truncate  # type: ignore[method-assign]

    def check(self) -> None:
        """Says what has been hidden.

        Raises:
            OSError: The disk has refused a write.
        """
        if self._refusal is not None:
            raise self._refusal

    def locate(self, data: bytes | NDArray[np.uint8], store: Callable[[], Any]) -> int | None:
        """Has HDF5 find a place for a chunk. One thread at a time.

        Args:
            data: The chunk.
            store: Gives it to HDF5.

        Returns:
            Where :meth:`write_at` is to write it; None where HDF5 has written it already.
        """
        # HDF5 hands a ready chunk through from where it is.
        self._awaited = _whereabouts(data) if hasattr(os, "pwrite") else None
        self._place = None
        try:
            store()
        finally:
            self._awaited = None
        return self._place

    def write_at(self, data: bytes | NDArray[np.uint8], place: int) -> None:
        """Writes a chunk to its place, while other threads are in HDF5 or write others; what is refused, :meth:`check` says."""
        rest = memoryview(data)  # type: ignore[arg-type]
        try:
            while rest and self._refusal is None:
                count = os.pwrite(self.fileno(), rest, place)
                rest, place = rest[count:], place + count
        except BaseException as error:
            self._refusal = error

    def __del__(self) -> None:
        # Ctrl-C can take a file away from its writer before anybody knows of it; no reason for a warning.
        with contextlib.suppress(OSError):
            self.close()

    def _write(self, data: Any) -> int:
        rest = memoryview(data)
        size_bytes = len(rest)
        if self._awaited is not None and _whereabouts(rest) == self._awaited:
            self._place = self.tell()
            return size_bytes
        try:
            # The system may take a part only, up to a limit for instance.
            while rest and self._refusal is None:
                rest = rest[super().write(rest) :]
        except BaseException as error:
            self._refusal = error
        return size_bytes

    def _truncate(self, size: int | None = None) -> int:
        try:
            if self._refusal is None:
                super().truncate(size)
        except BaseException as error:
            self._refusal = error
        return size or 0


def _whereabouts(data: Any) -> tuple[int, int]:
    values = np.frombuffer(data, np.uint8)
    return int(values.ctypes.data), len(values)
