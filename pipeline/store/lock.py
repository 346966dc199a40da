"""The lock of a run folder: one process at a time may change what lies in it."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import LockedError
from . import disk, format
from .regular import require_file


def take_lock(folder: Path) -> FileLock:
    """Takes the lock, for this process and until it is released or the process ends.

    Raises:
        LockedError: A live process has it.
        StoreError: The disk refuses, or something else than a file is in the lock's place.
    """
    path = folder / format.LOCK_NAME
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
    return lock
