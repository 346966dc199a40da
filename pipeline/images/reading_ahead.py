"""Images that come over a network, read by more threads than there are cores, ahead of those that decode.

Stands within the loader. A local file needs none of it: it is there sooner than another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ..records import ImageRecord, Manifest
from .reading import read_image

# Of files that are read and not yet decoded; one that somebody waits for always may be read.
WAITING_BYTES = 256 << 20


class ReadAhead:
    """Reads images before they are asked for, if their source says that this is worth while.

    Args:
        manifest: The rows of the run.
        waiting_bytes: See :data:`WAITING_BYTES`.
    """

    def __init__(self, manifest: Manifest, waiting_bytes: int = WAITING_BYTES) -> None:
        self._manifest = manifest
        self._waiting_bytes = waiting_bytes
        self._bytes = 0
        self._changed = threading.Condition()
        self._is_closed = False
        threads = getattr(manifest.source, "reads_at_once", 0)
        self._pool = ThreadPoolExecutor(threads, "fetch") if threads else None

    def begin(self, indices: Sequence[int]) -> Sequence[Callable[[], bytes]]:
        """Begins to read these rows, in this order; gives what waits for each and gives its bytes once, or raises its error."""
        if self._pool is None:
            return [_Now(self._manifest, index) for index in indices]
        return [_Ahead(self, self._pool, self._manifest[index]) for index in indices]

    def close(self) -> None:
        """Begins nothing more; whoever waits for room gets on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def take_room(self, item: _Ahead) -> None:
        """Waits until there is room for an image, or somebody waits for it."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    item.is_wanted or self._is_closed or not self._bytes or self._bytes + item.size_bytes <= self._waiting_bytes
                )
            )
            self._bytes += item.size_bytes

    def give_room(self, item: _Ahead) -> None:
        """Takes it that an image is no longer held."""
        with self._changed:
            self._bytes -= item.size_bytes
            self._changed.notify_all()

    def want(self, item: _Ahead) -> None:
        """Takes it that somebody waits for an image."""
        with self._changed:
            item.is_wanted = True
            self._changed.notify_all()


class _Now:
    """A file, read when asked for."""

    def __init__(self, manifest: Manifest, index: int) -> None:
        self._manifest = manifest
        self._index = index

    def __call__(self) -> bytes:
        return read_image(self._manifest[self._index])


class _Ahead:
    """An image that is being read, or will be."""

    def __init__(self, ahead: ReadAhead, pool: ThreadPoolExecutor, record: ImageRecord) -> None:
        self.size_bytes = record.file_bytes
        self.is_wanted = False
        self._ahead = ahead
        self._record = record
        self._task: Future[bytes] | None = pool.submit(self._read)

    def _read(self) -> bytes:
        self._ahead.take_room(self)
        return read_image(self._record)

    def __call__(self) -> bytes:
        # The loader keeps this object until its batch is whole; the task would keep the bytes for as long.
        task, self._task = self._task, None
        assert task is not None
        if task.cancel():
            # Nobody has begun: whoever waits reads it.
            return read_image(self._record)
        self._ahead.want(self)
        try:
            return task.result()
        finally:
            self._ahead.give_room(self)
