"""The locks of a run folder: who may change what lies in it.

A whole run holds ``.lock`` as long as it lives. Of several processes that make a run together, each its share of the shards,
each holds ``.lock-3-of-8`` as long as it lives, and ``.lock`` only while it opens the folder or writes the index; the others
wait for that. So whoever has ``.lock`` can tell who lives, and is alone in changing what is not of one share.

At an address a lock is an object, which a kill leaves behind. The system's locks end with their holder, however it ends. On
another machine too, as far as the file system tells its clients of them: NFS does, Lustre does if it is mounted with
``flock``. With NFS' ``local_lock`` or Lustre's ``localflock``, or where there are no locks at all, nothing refuses the same
part started twice. No shard is wrong for that: each is written under a name of its own, and renamed when it is whole. Two
parts that finish in the same second may write one index together; ``verify`` would tell.

Source: flock(2), NFS details; nfs(5), local_lock; mount.lustre(8), flock and localflock.
"""

from __future__ import annotations

import errno
import functools
import logging
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from ..errors import LockedError
from ..sharding import Share
from ..storage import HeldError, RemoteLock, RemotePath, prepare_scratch, refresh, remove_scratch
from . import disk, format
from .damage import NO_LOCKS, require_file

# Opening a folder takes seconds; writing an index over very many shards, or reading those that a kill left without a digest,
# minutes.
WAIT_SECONDS = 1800.0
# Where no part lives, it is no part that holds the lock: a part takes a lock of its own as soon as it has this one.
NOBODY_SECONDS = 5.0
SAID_AFTER_SECONDS = 2.0
_POLL_SECONDS = 0.1, 0.3

_log = logging.getLogger(__name__)


class LocalLock:
    """A lock on the disks of this machine; always free where the file system has no locks, which is said once a folder.

    Args:
        path: Of the lock file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path, timeout=0)
        self._is_missing = False

    @property
    def is_locked(self) -> bool:
        """Whether this process has it."""
        return self._is_missing or self._lock.is_locked

    def acquire(self) -> None:
        """Take it.

        Raises:
            Timeout: Another process has it.
            OSError: The disk refuses.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._lock.acquire()
            if isinstance(self._lock, SoftFileLock):
                # A file that a kill would leave behind is no lock.
                self._lock.release()
                raise OSError(errno.ENOSYS, "no locks")
        except (OSError, NotImplementedError) as error:  # the second is filelock's before version 4
            if isinstance(error, Timeout) or getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
                raise
            self._is_missing = True
            _say_no_locks(self.path.parent)

    def release(self) -> None:
        """Let go of it, if this process has it."""
        self._is_missing = False
        self._lock.release()


@functools.cache
def _say_no_locks(folder: Path) -> None:
    _log.warning("%s: this file system has no locks; see to it that no second run writes the folder", folder)


class Hold:
    """What a process holds of a run folder, until it is released or the process ends. Made by :func:`take_lock`.

    Attributes:
        share: Of the process; None: it has the whole folder.
        living: Shares that other processes made when the lock was taken last.
    """

    def __init__(self, folder: Path, share: Share | None) -> None:
        self.share = share
        self.living: frozenset[Share] = frozenset()
        self._folder = folder
        self._lock = _lock(folder / format.LOCK_NAME)
        self._own: LocalLock | RemoteLock | None = None
        self._has_scratch = False

    def take(self) -> None:
        """Take ``.lock``, find out who else lives, and take the lock of the own share.

        Raises:
            LockedError: Somebody lives who must not, or does not let go of ``.lock``.
            StoreError: The disk or the storage refuses.
        """
        try:
            if self.share is None:
                self._lock.acquire()
            else:
                _wait_for(self._lock, self._folder)
            others = [share for share in _part_locks(self._folder) if self._own is None or share != self.share]
            holders = {share: holder for share in others if (holder := self._holder_of(share))}
            self.living = frozenset(holders)
            for other in sorted(holders, key=lambda share: (share.count, share.number)):
                _refuse(self._folder, self.share, other, holders[other])
            if self.share is not None and self._own is None:
                own = _lock(self._folder / format.part_lock_name(self.share.mark))
                own.acquire()
                self._own = own
            if not self._has_scratch:
                prepare_scratch(self._folder)
                self._has_scratch = True
        except Timeout as error:
            raise _locked(self._folder, error) from error
        except OSError as error:
            raise disk.write_error(self._folder / format.LOCK_NAME, error) from error

    def _holder_of(self, share: Share) -> str:
        """Return who has the lock of a share; "" for nobody, and then it is removed."""
        path = self._folder / format.part_lock_name(share.mark)
        lock = _lock(path)
        try:
            lock.acquire()
        except Timeout as error:
            return _holder(error)
        lock.release()
        # Nobody takes it meanwhile: for that, one has to have `.lock`.
        disk.remove(path)
        return ""

    def let_others(self) -> None:
        """Let the other parts open the folder; does nothing for a whole run."""
        if self.share is not None:
            self._lock.release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the others from opening the folder during the block; a whole run does so anyway.

        Raises:
            LockedError: Another process does not let go.
            StoreError: The disk or the storage refuses.
        """
        if self.share is None or self._lock.is_locked:
            yield
            return
        try:
            self.take()
            yield
        finally:
            self._lock.release()

    def release(self) -> None:
        """Let go of all."""
        if self._has_scratch:
            remove_scratch(self._folder)
        if self._own is not None:
            # First, since nobody may lock what is gone; should another process find it before, it is one that is dead.
            with suppress(OSError):
                self._own.path.unlink(missing_ok=True)
            self._own.release()
            self._own = None
        self._lock.release()


def take_lock(folder: Path, share: Share | None = None) -> Hold:
    """Take the lock, for this process and until it is released or the process ends.

    Args:
        folder: The run folder.
        share: That this process makes beside others; ``.lock`` is then to be given up soon, by :meth:`Hold.let_others`.

    Raises:
        LockedError: A live process has it, or has a part of the run that excludes this one.
        StoreError: The disk refuses, or something else than a file is in the lock's place.
    """
    hold = Hold(folder, share)
    try:
        hold.take()
    except BaseException:
        hold.release()
        raise
    return hold


def _part_locks(folder: Path) -> list[Share]:
    """Return the shares of which there are locks, held or not."""
    found = (format.PART_LOCK_NAME.fullmatch(path.name) for path in folder.iterdir())
    return [share for name in found if name and (share := Share.of_text(name[1]))]


def _lock(path: Path) -> LocalLock | RemoteLock:
    if isinstance(path, RemotePath):
        return RemoteLock(path)
    # Another process may remove its own just now.
    if path.is_symlink() or (path.exists() and not path.is_file()):
        # Behind a link, the lock would empty whatever that leads to.
        require_file(path)
    return LocalLock(path)


def _wait_for(lock: LocalLock | RemoteLock, folder: Path) -> None:
    """Take a lock that a part has for a while.

    Raises:
        Timeout: It is no part that has it.
        LockedError: It takes too long.
    """
    began = seen = time.monotonic()
    said = False
    while True:
        try:
            lock.acquire()
            return
        except Timeout as error:
            holder, now = _holder(error), time.monotonic()
            if now - seen > NOBODY_SECONDS:
                # Of an address, what is known is from before the wait: the part that has it has taken its own lock since.
                refresh(folder)
                seen = now
                if not _part_locks(folder):
                    raise
        if now - began > WAIT_SECONDS:
            raise LockedError(
                f"{folder}: another part of the run does not let go of the folder, got {format.LOCK_NAME} held for "
                f"{WAIT_SECONDS:.0f} s by {holder}. Expected seconds. Find the process that hangs and stop it, then run this "
                f"part again."
            )
        if not said and now - began > SAID_AFTER_SECONDS:
            said = True
            _log.info("%s: waiting for another part, which opens the folder or writes the index", folder)
        time.sleep(random.uniform(*_POLL_SECONDS))


def _refuse(folder: Path, share: Share | None, other: Share, holder: str) -> None:
    """Refuse a process beside one that makes another share, unless both are parts of one division.

    Raises:
        LockedError: They are not.
    """
    expected = f"another part of {other.count}" if share else "no other process"
    if share is None or other.count != share.count or other == share:
        raise LockedError(
            f"{folder}: a part of the run is being made, got part {other} held by {holder}. Expected {expected}. "
            f"Wait for it or stop it, or choose another folder with name=..."
        )


def _locked(folder: Path, refusal: Timeout) -> LockedError:
    return LockedError(
        f"{folder}: another run writes this folder, got a lock held by {_holder(refusal)}. Expected one run at a time. "
        f"Wait for it or stop it, or choose another folder with name=..."
    )


def _holder(refusal: Timeout) -> str:
    return refusal.holder if isinstance(refusal, HeldError) else "a live process"
