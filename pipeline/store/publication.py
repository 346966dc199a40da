"""Who gives a finished shard its final name: the process that holds the folder, or one that makes shards for it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from . import disk


class Publisher(Protocol):
    """What a writer hands its finished shards to. :class:`~pipeline.store.digests.Digests` is one.

    Attributes:
        writer: Who writes, letters, digits and dashes; empty: the holder of the folder's lock.
    """

    writer: str

    def publish(self, path: Path, partial: Path | None = None) -> None:
        """Give the file, which lies at ``partial``, its final name.

        Raises:
            OSError: The disk refuses.
        """


class Publication:
    """Gives shards their final names and keeps no digest: it tells them to whoever holds the folder's lock and writes the lines.

    A kill between the two leaves a whole shard without a line, as a kill of a process that writes its own lines does.

    Args:
        writer: See :class:`Publisher`.
        permit: Called right before a shard gets its name; raises where this process may no longer do that.
        tell: Takes a final path and its SHA-256, hex, once the shard is in place and on the disk.
    """

    def __init__(self, writer: str, permit: Callable[[], None], tell: Callable[[Path, str], None]) -> None:
        self.writer = writer
        self._permit = permit
        self._tell = tell

    def publish(self, path: Path, partial: Path | None = None) -> None:
        """Give a shard its final name, and tell.

        Raises:
            OSError: The disk refuses.
        """
        partial = partial or disk.partial_path(path)
        with disk.flushing(partial):
            digest = disk.file_digest(partial)
        self._permit()
        disk.publish(path, partial)
        self._tell(path, digest)
