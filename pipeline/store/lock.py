"""The locks of a run folder: who may change what lies in it.

A whole run holds ``.lock`` as long as it lives. Of several processes that make a run together, each its share of the shards,
each holds ``.lock-3-of-8`` as long as it lives, and ``.lock`` only while it opens the folder or writes the index; the others
wait for that. So whoever has ``.lock`` can tell who lives, and is alone in changing what is not of one share.

The system's locks end with their holder, however it ends. On another machine too, as far as the file system tells its clients
of them: NFS does, Lustre does if it is mounted with ``flock``. With NFS' ``local_lock`` or Lustre's ``localflock``, or where
there are no locks at all, nothing refuses the same part started twice. No shard is wrong for that: each is written under a name
of its own, and renamed when it is whole. Two parts that finish in the same second may write one index together; ``verify``
would tell.

Source: flock(2), NFS details; nfs(5), local_lock; mount.lustre(8), flock and localflock.
"""

from __future__ import annotations

import errno
import logging
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from ..errors import LockedError
from ..records import Share
from ..storage import HeldError, RemoteLock, RemotePath, prepare_scratch, refresh, remove_scratch
from . import disk, format
from .file_checks import require_file

# Opening a folder takes seconds; writing an index over very many shards, or reading those that a kill left without a digest,
# minutes.
WAIT_SECONDS = 1800.0
# Where no part lives, it is no part that holds the lock: a part takes a lock of its own as soon as it has this one.
NOBODY_SECONDS = 5.0
SAID_AFTER_SECONDS = 2.0
_POLL_SECONDS = 0.1, 0.3
# What a file system without locks says. Source: flock(2), fcntl(2); on Linux ENOTSUP is EOPNOTSUPP.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)

_log = logging.getLogger(__name__)
# Folders of which it has been said that they have no locks.
_said: set[Path] = set()


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
            if isinstance(error, Timeout) or getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
                raise
            self._is_missing = True
            folder = self.path.parent
            if folder not in _said:
                _said.add(folder)
                _log.warning("%s: this file system has no locks; see to it that no second run writes the folder", folder)

    def release(self) -> None:
        """Let go of it, if this process has it."""
        self._is_missing = False
        self._lock.release()


class Hold:
    """What a process holds of a run folder, until it is released or the process ends. Made by :func:`take_lock`.

    Attributes:
        share: Of the process; None: it has the whole folder.
        living: Shares that other processes made when the lock was taken last.
    """

    def __init__(self, folder: Path, share: Share | None, lock: LocalLock | RemoteLock) -> None:
        self.share = share
        self.living: frozenset[Share] = frozenset()
        self._folder = folder
        self._lock = lock
        self._own: LocalLock | RemoteLock | None = None
        self._has_scratch = False

    def look_around(self) -> None:
        """Find out who else lives, and take the lock of the own share; called with ``.lock`` held.

        Raises:
            LockedError: Somebody lives who must not.
        """
        living: dict[Share, Timeout] = {}
        for share, path in part_locks(self._folder).items():
            if self._own is not None and share == self.share:
                continue
            lock = _lock(path)
            try:
                lock.acquire()
            except Timeout as error:
                living[share] = error
            else:
                lock.release()
                # Nobody takes it meanwhile: for that, one has to have `.lock`.
                disk.remove(path)
        self.living = frozenset(living)
        for other in sorted(living, key=lambda share: (share.count, share.number)):
            _refuse(self._folder, self.share, other, _holder(living[other]))
        if self.share is not None and self._own is None:
            own = _lock(self._folder / format.part_lock_name(self.share.mark))
            own.acquire()
            self._own = own
        if not self._has_scratch:
            prepare_scratch(self._folder)
            self._has_scratch = True

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
            try:
                _wait_for(self._lock, self._folder)
                self.look_around()
            except OSError as error:
                raise disk.write_error(self._folder / format.LOCK_NAME, error) from error
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
    path = folder / format.LOCK_NAME
    lock = _lock(path)
    hold = Hold(folder, share, lock)
    try:
        if share is None:
            lock.acquire()
        else:
            _wait_for(lock, folder)
        hold.look_around()
    except Timeout as error:
        raise _locked(folder, error) from error
    except BaseException as error:
        hold.release()
        if isinstance(error, OSError):
            raise disk.write_error(path, error) from error
        raise
    return hold


def part_locks(folder: Path) -> dict[Share, Path]:
    """Return the locks of parts that are there, held or not."""
    found = ((format.PART_LOCK_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return {share: path for name, path in found if name and (share := Share.of_text(name[1]))}


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
        LockedError: It is no part that has it, or it takes too long.
    """
    began = alone_since = looked = time.monotonic()
    said = False
    while True:
        try:
            lock.acquire()
            return
        except Timeout as error:
            refusal = error
        now = time.monotonic()
        if now - min(alone_since, looked) > NOBODY_SECONDS:
            # Of an address, what is known is from before the wait: the part that has it has taken its own lock since.
            refresh(folder)
            looked = now
        if part_locks(folder):
            alone_since = now
        if now - alone_since > NOBODY_SECONDS:
            raise _locked(folder, refusal)
        if now - began > WAIT_SECONDS:
            raise LockedError(
                f"{folder}: another part of the run does not let go of the folder, got {format.LOCK_NAME} held for "
                f"{WAIT_SECONDS:.0f} s by {_holder(refusal)}. Expected seconds. Find the process that hangs and stop it, then "
                "run this part again."
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
    if share is None:
        raise LockedError(
            f"{folder}: a part of the run is being made, got part {other} held by {holder}. Expected no other process. "
            f"Wait for all parts or stop them, or choose another folder with name=..."
        )
    if other.count != share.count:
        raise LockedError(
            f"{folder}: the run is being divided otherwise, got part={share} where part {other} is held by {holder}. Expected a "
            f"part of {other.count}. Use part=k/{other.count}, or wait for the others."
        )
    if other == share:
        raise LockedError(
            f"{folder}: the same part is being made, got part={share} held by {holder}. Expected another part. "
            "Wait for it or stop it."
        )


def _locked(folder: Path, refusal: Timeout) -> LockedError:
    return LockedError(
        f"{folder}: another run writes this folder, got a lock held by {_holder(refusal)}. Expected one run at a time. "
        f"Wait for it or stop it, or choose another folder with name=..."
    )


def _holder(refusal: Timeout) -> str:
    return refusal.holder if isinstance(refusal, HeldError) else "a live process"
