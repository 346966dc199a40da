"""The lock of a run folder: one process at a time may change what lies in it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from ..errors import LockedError, StoreError
from ..storage.hold import HOLD_NAME, Hold
from ..storage.remote_path import RemotePath
from . import disk, format, remote
from .regular import require_file

_LOG_NAME = "run.log"


class Lock(Protocol):
    """What holds a run folder."""

    def release(self, force: bool = False) -> None:
        """Lets others write it."""


def take_lock(folder: Path) -> Lock:
    """Takes the lock, for this process and until it is released or the process ends.

    Of a folder at an address two are taken: of its scratch folder here, and of the address; scratch is made ready then.

    Raises:
        LockedError: A live process has it.
        StoreError: The disk refuses, or something else than a file is in the lock's place.
    """
    path = disk.scratch_of(folder) / format.LOCK_NAME
    if os.path.lexists(path):
        # Behind a link, the lock would empty whatever that leads to.
        require_file(path)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockedError(
            f"{folder}: another run writes this folder, got a lock held by a live process. Expected one run at a time. "
            f"Wait for it or stop it, or choose another folder with name=..."
        ) from error
    except (OSError, NotImplementedError) as error:  # the second is filelock's, for a file system without locks
        raise disk.write_error(path, error) from error
    return RemoteLock(folder, lock) if isinstance(folder, RemotePath) else lock


class RemoteLock:
    """The two locks of a run folder at an address. Whoever releases them has what was made sent before.

    Args:
        folder: The folder.
        local: Of its scratch folder, taken.

    Raises:
        LockedError: A live process holds the address.
        StoreError: The storage or the disk refuses.
    """

    def __init__(self, folder: RemotePath, local: FileLock) -> None:
        self._folder = folder
        self._local = local
        self._hold: Hold | None = None
        try:
            self._hold = Hold(folder.mirror.address, folder.mirror.fail)
            folder.mirror.prepare(kept=(format.LOCK_NAME,))
            folder.mirror.hide(HOLD_NAME)
            (folder / format.SHARD_FOLDER).mkdir()
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):
                raise disk.write_error(folder, error) from error
            raise

    def release(self, force: bool = False) -> None:
        """Sends the log and what else is new, as far as the storage lets it, and lets others write the folder."""
        if self._hold is None:
            self._local.release(force)
            return
        mirror = self._folder.mirror
        try:
            with suppress(OSError, StoreError):
                remote.settle(self._folder)
            with suppress(OSError, StoreError):
                if (log := mirror.place(_LOG_NAME)) and log.is_file():
                    mirror.send(_LOG_NAME)
        finally:
            hold, self._hold = self._hold, None
            hold.release()
            mirror.clear(kept=(format.LOCK_NAME,))
            self._local.release(force)
