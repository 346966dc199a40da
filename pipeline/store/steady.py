"""A file that HDF5 writes through, and that never tells HDF5 that the disk refuses.

HDF5 does not survive that: what it could not write it cannot forget, so closing fails, and the process dies of a segmentation
fault when the file's objects are cleared away. Here the first refusal is kept for whoever writes the shard, and all that HDF5
writes after it goes nowhere; the file is dropped anyway.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any


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

    def __del__(self) -> None:
        # Ctrl-C can take a file away from its writer before anybody knows of it; no reason for a warning.
        with contextlib.suppress(OSError):
            self.close()

    def _write(self, data: Any) -> int:
        rest = memoryview(data)
        size_bytes = len(rest)
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
