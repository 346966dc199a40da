"""A run folder at an address: in which order its files arrive there, so that nothing is said of what has not.

Files are made in scratch as in any run folder. A shard is on its way while the next one is computed; its line in ``SHA256SUMS``
goes after it, with those of others that have arrived by then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..storage.hold import HOLD_NAME, refuse_held
from ..storage.mirror import Mirror
from ..storage.remote_path import RemotePath
from . import format

# Between two sendings of the digests while shards arrive: a shard without a line has to be read whole by whoever resumes.
DIGESTS_EVERY_SECONDS = 10.0


def send(path: RemotePath) -> None:
    """Sends a file that has just got its final name in scratch.

    Raises:
        OSError: The storage refuses this one, or one that was sent in the background.
    """
    mirror, name = path.mirror, path.within
    mirror.check()
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
    folder.mirror.wait()
    for name in [name for name in folder.mirror.written.copy() if _is_digests(name)]:
        _send_digests(folder.mirror, name)


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
        folder.mirror.give_back()


class _Onlooker:
    """Holds nothing, and leaves nothing behind."""

    def __init__(self, folder: RemotePath) -> None:
        self._folder = folder

    def release(self, force: bool = False) -> None:
        self._folder.mirror.give_back()


def look_on(folder: RemotePath) -> _Onlooker:
    """Makes ready for looking at a folder without changing it; what is fetched meanwhile is removed by ``release``.

    Raises:
        LockedError: A live process writes it.
        StoreError: The storage refuses.
    """
    mirror = folder.mirror
    try:
        refuse_held(mirror.address)
    except OSError as error:
        raise mirror.refused(error) from error
    mirror.borrow()
    mirror.hide(HOLD_NAME)
    return _Onlooker(folder)


def _is_digests(name: str) -> bool:
    return name == format.DIGESTS_NAME or format.WRITER_DIGESTS_NAME.fullmatch(name) is not None


def _shard_arrived(mirror: Mirror) -> None:
    if time.monotonic() - mirror.sent_seconds >= DIGESTS_EVERY_SECONDS:
        for name in [name for name in mirror.written.copy() if _is_digests(name)]:
            _send_digests(mirror, name)


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
