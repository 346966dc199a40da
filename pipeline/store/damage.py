"""Errors of files of a run: damaged, missing, of another run, in use, or not readable. One sentence each, for all who read.

Only bytes that were read and are wrong are damage, and only damage is removed and made again: everything that opens a finished
shard, the index, a manifest or ``SHA256SUMS`` asks :func:`why_not_read` first.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError, printable
from ..storage import StorageError
from . import format

# What h5py raises for bytes that are not as they were written, or are missing; the last ones where an object or a number has
# become one of another kind, or a size has become 0.
HDF5_READ_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError)
# What the system says where a file system has no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# What the system says where there is no file under a name.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
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


class DamagedError(StoreError):
    """Bytes of a file of the store were read and are not as they were written; making it again mends it."""


class ForeignError(StoreError):
    """A file is whole, and not the one that belongs there: of another run, of other rows, of another program or version."""


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
    if isinstance(error, StorageError):
        return UnreadableError(words)
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


def damaged(path: Path, part: str, got: object) -> DamagedError | UnreadableError:
    """Return the one-line error for a file that is not as it was written, or could not be read.

    Args:
        path: Of the file.
        part: What of it.
        got: What was found there, or what was raised while it was read.
    """
    if isinstance(got, BaseException) and (unread := why_not_read(path, part, got)):
        return unread
    words = printable(" ".join(str(got).split()), 200) or type(got).__name__
    return DamagedError(
        f"{path}: {printable(part, 1000)} is damaged, got {words}. Expected the bytes that were "
        f"written. Remove this file and run the extraction again: only what is missing is made again."
    )


@contextmanager
def reading(path: Path, part: str) -> Iterator[None]:
    """Turn what h5py raises in the block into what it means.

    Args:
        path: Of the file that is read, for the message.
        part: Of it, likewise.

    Raises:
        DamagedError: Its bytes are wrong.
        UnreadableError: It is in use, or the system does not let us read it.
    """
    try:
        yield
    except StoreError:
        raise
    except HDF5_READ_ERRORS as error:
        raise damaged(path, part, error) from error


def of_another_run(path: Path, found: str, expected: str, what: str = "shard") -> ForeignError:
    """Return the one-line error for a shard, or a manifest, whose run digest is not that of the run."""
    return ForeignError(
        f"{path}: a {what} of another run, got run digest {found[:12]}. Expected {expected[:12]}. "
        f"Put the run's own {what} back, or remove this one and run the extraction again."
    )


def missing_shard(path: Path, there: int, count: int) -> StoreError:
    """Return the one-line error for a shard that is not there."""
    return StoreError(
        f"{path}: the shard is missing, got {there} of {count} shards. Expected "
        f"all of them. Put it back, or run the extraction again: only what is missing is made again."
    )


def unfinished(folder: Path, there: int, count: int) -> StoreError:
    """Return the one-line error for a run folder that has shards and no index."""
    return StoreError(
        f"{folder}: the run is not finished, got {there} of {count} shards and no {format.INDEX_NAME}. Expected both. "
        f"Run the extraction again to go on, or open a single shard."
    )


def no_run(folder: Path, got: str = f"no {format.INDEX_NAME}") -> StoreError:
    """Return the one-line error for what is no run folder."""
    return StoreError(
        f"{folder}: not a run folder, got {got}. Expected what an extraction has written. "
        f"Give the folder that was named by name=..., usually outputs/<name>."
    )


def not_a_file(path: Path, what: str) -> ForeignError:
    """Return the one-line error for a link or a special file under the name of a file of the run."""
    return ForeignError(
        f"{path}: not a file of the run, got {what}. Expected the file or folder itself, as this program has written it. "
        f"Put it there, or move what is there away and run the extraction again."
    )


def unreadable(path: Path, error: OSError | ValueError) -> StoreError:
    """Return the one-line error for a file that is missing, or that the system or the storage does not let us read."""
    if isinstance(error, StorageError):
        return UnreadableError(str(error))
    if getattr(error, "errno", None) not in _MISSING and (unread := why_not_read(path, "", error)):
        return unread
    return StoreError(
        f"{path}: cannot be read, got {getattr(error, 'strerror', None) or error}. Expected a file of a finished run. "
        f"Put it back, or run the extraction again: only what is missing is made again."
    )


def extra_file(path: Path, example: str, count: int) -> ForeignError:
    """Return the one-line error for a file with the name of a shard that the run does not have."""
    return ForeignError(
        f"{path}: not in this run's plan of {count} shards, got an extra file. Expected {example} and its like. "
        f"Move it away, or use output.existing=replace."
    )


def missing_manifest(path: Path) -> StoreError:
    """Return the one-line error for a manifest that is not there."""
    return StoreError(
        f"{path}: the manifest is missing, got no such file. Expected one a part of the run. "
        f"Put it back, or run the extraction again, which writes it anew."
    )


def damaged_manifest(path: Path) -> DamagedError:
    """Return the one-line error for a manifest that cannot be read, or does not agree with its own digest."""
    return DamagedError(
        f"{path}: the manifest is damaged, got none that agrees with its own digest. Expected the bytes that were "
        f"written. Put it back, or run the extraction again, which writes it anew."
    )


def wrong_digests(path: Path, happened: str) -> StoreError:
    """Return the one-line error for lines of ``SHA256SUMS`` that are not as they should be."""
    return StoreError(
        f"{path}: {happened}. Expected one line a file, a digest and a name. "
        f"Verify with repair=true, then run the extraction again: it checks the file and adds its line."
    )
