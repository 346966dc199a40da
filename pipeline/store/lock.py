"""The locks of a run folder: who may change what lies in it.

A whole run holds ``.lock`` as long as it lives. Of several processes that make a run together, each holds ``.lock-3-of-8`` as
long as it lives, and ``.lock`` only while it opens the folder, fits the transforms of ``pca`` or writes the index; the others
wait for that. So whoever has ``.lock`` can tell who lives, and is alone in changing what is not of one share.

At an address a lock is an object, which a kill leaves behind. The system's locks end with their holder, on another machine too
if the file system tells its clients: NFS does, Lustre if it is mounted with ``flock``. With ``local_lock`` or ``localflock``, or
without locks, nothing refuses the same part started twice. No shard is wrong for that, as each is written under a name of its
own; two parts that finish in the same second may write one index together, which ``verify`` would tell.

Source: flock(2), NFS details; nfs(5), local_lock; mount.lustre(8), flock and localflock.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import LockedError
from ..sharding import Share
from ..storage import RemotePath, prepare_scratch, refresh, remove_scratch
from . import disk, format
from .damage import NO_LOCKS

# Where no part lives, it is no part that holds the lock: a part takes a lock of its own as soon as it has this one.
NOBODY_SECONDS = 5.0
_POLL_SECONDS = 0.1, 0.3
# Commands that remove an object.
_REMOVING = {"s3": "aws s3 rm", "gs": "gcloud storage rm"}

_log = logging.getLogger(__name__)


class Lock:
    """A lock: a file, or at an address an object that one process alone can make. Free where a file system has no locks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_taken = False
        # It follows no link. A file that a kill leaves behind is no lock, so there is nothing to fall back to.
        self._file = None if isinstance(path, RemotePath) else FileLock(path, timeout=0, fallback_to_soft=False)

    def take(self) -> str:
        """Take it, and return "", or return who has it instead; of an object, which outlives a kill, also how to remove it."""
        holder = self._make_object(self.path) if isinstance(self.path, RemotePath) else self._lock_file()
        self.is_taken = not holder
        return holder

    def _lock_file(self) -> str:
        assert self._file is not None
        try:
            self._file.acquire()
        except Timeout:
            return "a live process"
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _say_no_locks(self.path.parent)
        return ""

    def _make_object(self, path: RemotePath) -> str:
        # To the microsecond: no two are alike.
        now = datetime.now(timezone.utc).isoformat()
        own = f"process {os.getpid()} on {socket.gethostname()} since {now}"
        if not path.create(own.encode()):
            found = ""
            with suppress(FileNotFoundError):
                found = path.read_bytes().decode("utf-8", "replace")
            # A request that was answered too late finds what it has made itself.
            if found != own:
                remove = f"{_REMOVING.get(path.protocol, 'removing the object')} {path}"
                return f"{found[:300]} (if that process is there no more, remove its lock: `{remove}`)"
        refresh(path)
        return ""

    def release(self) -> None:
        """Let go of it, if this process has it; never raises for what the storage does."""
        # The end of the process lets go of what the system does not take back now.
        with suppress(OSError):
            if self._file is not None:
                self._file.release()
            elif self.is_taken:
                self.path.unlink(missing_ok=True)
        self.is_taken = False


@functools.cache
def _say_no_locks(folder: Path) -> None:
    _log.warning("%s: this file system has no locks; see to it that no second run writes the folder", folder)


@functools.cache
def _say_waiting(folder: Path) -> None:
    _log.info("%s: waiting for another part, which opens the folder, fits a transform or writes the index", folder)


class Hold:
    """What this process holds of a run folder, from the beginning until it is released or the process ends.

    ``share``: that this process makes beside others; ``.lock`` is then to be given up soon, by :meth:`let_others`. None: all.

    Raises:
        LockedError: A live process has the folder, or a part of the run that excludes this one; here and in :meth:`alone`.
        StoreError: The disk or the storage refuses; likewise.
    """

    def __init__(self, folder: Path, share: Share | None = None) -> None:
        self.living: frozenset[Share] = frozenset()  # what other processes made when `.lock` was taken last
        self._folder, self._share = folder, share
        self._lock = Lock(folder / format.LOCK_NAME)
        self._own = Lock(folder / format.marked(format.LOCK_NAME, share.mark)) if share else None
        try:
            self._take()
            with disk.writing(folder):
                prepare_scratch(folder)
        except BaseException:
            self._let_go()
            raise

    def _take(self) -> None:
        """Take ``.lock``, find out who else lives, and take the lock of the own share."""
        with disk.writing(self._lock.path):
            if holder := self._wait() if self._share else self._lock.take():
                raise self._refused("another run writes this folder", f"a lock held by {holder}", "one run at a time")
            living = []
            for other in self._part_locks():
                lock = Lock(self._folder / format.marked(format.LOCK_NAME, other.mark))
                if other == self._share and self._own and self._own.is_taken:
                    continue
                if holder := lock.take():
                    living.append(other)
                    if self._share is None or other.count != self._share.count or other == self._share:
                        expected = f"another part of {other.count}" if self._share else "no other process"
                        raise self._refused("a part of the run is being made", f"part {other} held by {holder}", expected)
                else:
                    lock.release()
                    disk.remove(lock.path)
            self.living = frozenset(living)
            # Nobody has it: for that, one has to have `.lock`.
            if self._own and not self._own.is_taken:
                self._own.take()

    def _wait(self) -> str:
        """Take ``.lock``, waiting as long as another part may have it; return who has it where no part lives."""
        looked = time.monotonic()
        while holder := self._lock.take():
            if time.monotonic() - looked > NOBODY_SECONDS:
                # Of an address, what is known is from before the wait: the part that has it has taken its own lock since.
                refresh(self._folder)
                if not self._part_locks():
                    return holder
                _say_waiting(self._folder)
                looked = time.monotonic()
            time.sleep(random.uniform(*_POLL_SECONDS))
        return ""

    def _part_locks(self) -> list[Share]:
        """Return the shares of which there are locks, held or not."""
        found = map(format.PART_LOCK_NAME.fullmatch, disk.names_in(self._folder))
        shares = (share for name in found if name and (share := Share.of_text(name[1])))
        return sorted(shares, key=lambda share: (share.count, share.number))

    def _refused(self, happened: str, got: str, expected: str) -> LockedError:
        remedy = "Wait for it or stop it, or choose another folder with name=..."
        return LockedError(f"{self._folder}: {happened}, got {got}. Expected {expected}. {remedy}")

    def let_others(self) -> None:
        """Let the other parts open the folder; does nothing for a whole run."""
        if self._share:
            self._lock.release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the others from opening the folder during the block; a whole run does so anyway."""
        if self._lock.is_taken:
            yield
            return
        try:
            self._take()
            yield
        finally:
            self._lock.release()

    def release(self) -> None:
        """Let go of all."""
        remove_scratch(self._folder)
        self._let_go()

    def _let_go(self) -> None:
        if self._own and self._own.is_taken:
            # First, since nobody may lock what is gone; should another process find it before, it is one that is dead.
            with suppress(OSError):
                self._own.path.unlink(missing_ok=True)
            self._own.release()
        self._lock.release()
