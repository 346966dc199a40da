"""Why a finished file could not be read: its bytes are wrong, or another program or the system did not let them be read.

Only bytes that were read and are wrong are damage, and only damage is removed and made again. Everything that opens a finished
shard, the index, a list of images or ``SHA256SUMS`` asks :func:`why_not_read` first.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from ..errors import StoreError, printable

# HDF5's words for a file whose header says that a program writes it, as one that was killed leaves it. There is no error number.
_MARKED = "file is already open for"
# Windows has no error number of its own for a lock.
_LOCKED = "unable to lock file"

_REMEDIES = {
    errno.ENOMEM: "Free some memory",
    errno.EACCES: "Change its permissions",
    errno.EPERM: "Change its permissions",
    errno.EMFILE: "Raise the limit on open files (ulimit -n)",
    errno.ENFILE: "Close other programs",
}


class UnreadableError(StoreError):
    """A finished file could not be read. Nothing is known of its bytes, so it must be kept."""


class UnsureError(UnreadableError):
    """A finished file could not be read for want of memory, which a damaged length causes too: only its digest can tell."""


def system_errno(error: BaseException) -> int:
    """Return the system's error number behind an error, 0 where there is none.

    h5py sets ``errno`` on an OSError alone. In a KeyError or RuntimeError of the same cause, and where HDF5 cannot close or flush
    a file, only the message has it. Source: h5py 3.14 with reads that fail with EIO, ESTALE and ENOMEM.
    """
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"errno = (\d+)", str(error))
    return int(found[1]) if found else 0


def why_not_read(path: Path, part: str, error: BaseException) -> UnreadableError | None:
    """Return the one-line error for a read that another program or the system prevented.

    Args:
        path: Of the file, for the message.
        part: Of the file that was being read, likewise: ``the HDF5 file``; empty: all of it.
        error: What h5py, HDF5 or the system raised.

    Returns:
        None where bytes were read and are wrong: h5py gives no error number for those.
    """
    number, words = system_errno(error), str(error)
    kept = "then run the command again. It is kept as it is."
    where = f"{path}: {printable(part, 1000)} cannot be read" if part else f"{path}: cannot be read"
    if number == errno.EAGAIN or isinstance(error, BlockingIOError) or (number == errno.EACCES and _LOCKED in words):
        return UnreadableError(
            f"{path}: in use by another program, got a lock on the file. Expected no program that has it open for writing. "
            f"Close it there, {kept}"
        )
    if _MARKED in words:
        return UnreadableError(
            f"{path}: in use by another program, or left open by one that was killed, got a file marked as open for writing. "
            f"Expected no such mark. Close it there, or remove the mark with `h5clear -s`, {kept}"
        )
    if number:
        return UnreadableError(
            f"{where}, got {os.strerror(number)} ({errno.errorcode.get(number, number)}). Expected a file that can be read. "
            f"{_REMEDIES.get(number, 'Check the disk or the network')}, {kept}"
        )
    if isinstance(error, MemoryError):
        return UnsureError(f"{where}, got MemoryError. Expected enough memory. Free some memory, {kept}")
    return None
