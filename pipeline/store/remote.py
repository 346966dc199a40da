"""A run folder at an address: in which order its files arrive there, so that nothing is said of what has not.

Files are made in scratch as in any run folder. A shard is on its way while the next one is computed; its line in ``SHA256SUMS``
goes after it, with those of others that have arrived by then.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import cast

from ..errors import StoreError
from ..storage.mirror import Mirror
from ..storage.remote_path import RemotePath
from . import format

# Between two sendings of the digests while shards arrive: a shard without a line has to be read whole by whoever resumes.
DIGESTS_EVERY_SECONDS = 10.0
# Files whose ends are being fetched while one is read.
AHEAD = 16


def send(path: RemotePath) -> None:
    """Sends a file that has just got its final name in scratch.

    Raises:
        OSError: The storage refuses this one, or one that was sent in the background.
    """
    mirror, name = path.mirror, path.within
    mirror.sending.check()
    if _is_digests(name):
        _send_digests(mirror, name)
    elif name.startswith(f"{format.SHARD_FOLDER}/"):
        mirror.send_later(name, lambda: _shard_arrived(mirror))
    else:
        mirror.send(name)


def settle(folder: Path) -> None:
    """Waits until everything has arrived that was to be sent, the digests included; here it has already.

    Raises:
        StoreError: The storage refuses.
    """
    if isinstance(folder, RemotePath):
        try:
            _settle(folder)
        except OSError as error:
            raise folder.mirror.refused(error) from error


def _settle(folder: RemotePath) -> None:
    folder.mirror.sending.wait()
    _send_all_digests(folder.mirror)


def send_changed(folder: RemotePath) -> None:
    """Sends the digests that have changed, as others are to see them.

    Raises:
        StoreError: The storage refuses.
    """
    if folder.mirror.scratch is None:
        return
    try:
        _send_all_digests(folder.mirror)
    except OSError as error:
        raise folder.mirror.refused(error) from error


def mark_written(path: Path) -> None:
    """Has a file sent once more that has been added to: since it was opened it may have been sent as it was before."""
    if isinstance(path, RemotePath):
        path.mirror.written.add(path.within)


def _send_all_digests(mirror: Mirror) -> None:
    for name in [name for name in mirror.written.copy() if _is_digests(name)]:
        _send_digests(mirror, name)


def ahead(paths: Iterable[Path]) -> Iterator[Path]:
    """Gives paths of HDF5 files in their order; of those at an address what HDF5 reads first of the next ones comes meanwhile."""
    with ThreadPoolExecutor(AHEAD, "ahead") as pool:
        waiting: deque[tuple[Path, Future[None] | None]] = deque()
        for path in paths:
            is_away = isinstance(path, RemotePath) and path.local is None
            waiting.append((path, pool.submit(cast("RemotePath", path).read_ahead) if is_away else None))
            if len(waiting) > AHEAD:
                yield from _arrived(*waiting.popleft())
        while waiting:
            yield from _arrived(*waiting.popleft())


def _arrived(path: Path, task: Future[None] | None) -> Iterator[Path]:
    if task is not None:
        # Whoever opens it tries again, and says what is wrong.
        task.exception()
    yield path
    if isinstance(path, RemotePath):
        path.forget_ahead()


class Copies:
    """Files of this machine, for those who can read no others: of one at an address a copy, as long as it is needed.

    Args:
        uses: How many times each is asked for; after the last its copy is removed.
    """

    def __init__(self, uses: Callable[[Path], int]) -> None:
        self._uses = uses
        self._left: dict[str, int] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    @contextmanager
    def here(self, path: Path) -> Iterator[Path]:
        """Gives the file, or the copy.

        Raises:
            StoreError: The storage refuses.
            OSError: The disk refuses.
        """
        if not isinstance(path, RemotePath):
            yield path
            return
        with self._lock:
            left = self._left.setdefault(path.within, self._uses(path))
            lock = self._locks.setdefault(path.within, threading.Lock())
        with lock:
            copy = path.mirror.fetch(path.within)
        try:
            yield copy
        finally:
            with self._lock:
                left = self._left[path.within] = self._left[path.within] - 1
            if not left:
                copy.unlink(missing_ok=True)


@contextmanager
def lending_scratch(folder: Path) -> Iterator[None]:
    """Has a scratch folder there for copies, while nobody holds the address."""
    if not isinstance(folder, RemotePath) or folder.mirror.scratch is not None:
        yield
        return
    folder.mirror.borrow()
    try:
        yield
    finally:
        folder.mirror.clear(kept=())


def scan(folder: Path) -> AbstractContextManager[Iterable[os.DirEntry[str] | Path]]:
    """Lists a folder, here by ``os.scandir``.

    Raises:
        OSError: There is none, or it cannot be read.
    """
    return nullcontext(folder.iterdir()) if isinstance(folder, RemotePath) else os.scandir(folder)


def look_anew(folder: Path) -> None:
    """Forgets what was there when an earlier run of this process looked."""
    if isinstance(folder, RemotePath):
        folder.mirror.refresh()


def borrow_scratch(folder: Path) -> None:
    """Makes ready for looking at a folder without changing it; :func:`leave` removes what is fetched meanwhile."""
    if isinstance(folder, RemotePath):
        folder.mirror.borrow()


def leave(folder: Path) -> None:
    """Sends the log and what else is new, as far as the storage lets it, and empties scratch; never raises."""
    scratch = folder.mirror.scratch if isinstance(folder, RemotePath) else None
    if not isinstance(folder, RemotePath) or scratch is None:
        return
    mirror = folder.mirror
    if not mirror.is_borrowed:
        with suppress(OSError, StoreError):
            settle(folder)
        with suppress(OSError, StoreError):
            for path in scratch.glob("*.log"):
                mirror.send(path.name)
    mirror.clear(kept=[path.name for path in scratch.glob(f"{format.LOCK_NAME}*")])


def is_shared(name: str) -> bool:
    """Tells whether several processes write a file of a run folder, one after the other."""
    return name in format.DIGESTED_NAMES or _is_digests(name) or format.MANIFEST_NAME.fullmatch(name) is not None


def _is_digests(name: str) -> bool:
    return name == format.DIGESTS_NAME or format.WRITER_DIGESTS_NAME.fullmatch(name) is not None


def _shard_arrived(mirror: Mirror) -> None:
    if time.monotonic() - mirror.sent_seconds >= DIGESTS_EVERY_SECONDS:
        _send_all_digests(mirror)


def _send_digests(mirror: Mirror, name: str) -> None:
    """Sends a list of digests, but for the lines of files that are still on their way."""
    with mirror.turn:
        mirror.sent_seconds = time.monotonic()
        # First: a line that comes meanwhile is sent the next time.
        mirror.written.discard(name)
        place = mirror.place(name)
        assert place is not None
        lines = place.read_bytes().splitlines(keepends=True)
        # A line that is just being added may lack its end.
        arrived = [line for line in lines if line.endswith(b"\n") and mirror.is_there(line[66:-1].decode("utf-8", "replace"))]
        if len(arrived) < len(lines):
            mirror.written.add(name)
        mirror.send_bytes(name, b"".join(arrived))
