"""Errors of files of a run: damaged, missing, of another run, in use, or not readable; and what may be read of a run folder.

Only bytes that were read and are wrong are damage, and only damage is removed and made again: everything that opens a finished
shard, the index, a manifest or ``SHA256SUMS`` asks :func:`damaged` which it is.

This program makes no links in a run folder; what one leads to is somebody else's, anywhere on this machine: links are refused.
HDF5 would follow them, read arrays whose values lie in other files, and allocate whatever a header declares.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from ..errors import StoreError, nearest, printable
from ..storage import StorageError
from . import codec, disk, format

# What h5py and ISA-L raise for bytes that are not as they were written, or are missing; those of the second line where an object
# or a number has become one of another kind, a size has become 0, or larger than the memory.
READ_ERRORS = (
    *(codec.DecodeError, OSError, RuntimeError, ValueError, KeyError),
    *(TypeError, AttributeError, IndexError, ArithmeticError, MemoryError),
)
# What the system says where a file system has no locks. Source: flock(2), fcntl(2); on Linux ENOTSUP is EOPNOTSUPP.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
# What the system says where there is no file under a name.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
# HDF5's words for a file whose header says that a program writes it, as one that was killed leaves it. There is no error number.
_MARKED = "file is already open for"
# Windows has no error number of its own for a lock.
_LOCKED = "unable to lock file"

# Source: RFC 1951: 258 bytes from 2 bits at the most.
DEFLATE_FACTOR = 1032
# A chunk may be larger than a small array in it.
_SPARE_BYTES = 1 << 20


class DamagedError(StoreError):
    """Bytes of a file of the store were read and are not as they were written; making it again mends it."""


class ForeignError(StoreError):
    """A file is whole, and not the one that belongs there: of another run, of other rows, of another program or version."""


class UnreadableError(StoreError):
    """A finished file could not be read. Nothing is known of its bytes, so it must be kept."""


class UnsureError(UnreadableError):
    """A finished file could not be read for want of memory, which a damaged length causes too: only its digest can tell."""


def system_errno(error: object) -> int:
    """Return the system's error number behind an error, 0 where there is none.

    h5py sets ``errno`` on an OSError alone. In a KeyError or RuntimeError of the same cause, and where HDF5 cannot close or flush
    a file, only the message has it. Source: h5py 3.14 with reads that fail with EIO, ESTALE and ENOMEM.
    """
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"errno = (\d+)", str(error))
    return int(found[1]) if found else 0


def damaged(path: Path, part: str, got: object) -> StoreError:
    """Return the one-line error for a file that is damaged, missing, in use by another program, or kept from us by the system.

    ``part``: what of it was read, "": all; ``got``: what was found there, or what h5py, HDF5 or the system raised.
    """
    if isinstance(got, StorageError):
        return UnreadableError(str(got))
    number, words = system_errno(got), " ".join(str(got).split())
    if number in _MISSING:
        return missing_file(path, os.strerror(number))
    kept = "then run the command again. It is kept as it is."
    if number == errno.EAGAIN or _MARKED in words or (number == errno.EACCES and _LOCKED in words):
        found = "a lock" if number else "the mark of a writer, which may have been killed (`h5clear -s` removes it)"
        return UnreadableError(f"{path}: in use by another program, got {found}. Expected no writer. Close it there, {kept}")
    if number or isinstance(got, MemoryError):
        number = number or errno.ENOMEM
        kind = UnsureError if isinstance(got, MemoryError) else UnreadableError
        return kind(
            f"{path}: {f'{part} cannot'.lstrip()} be read, got {os.strerror(number)} ({errno.errorcode.get(number, number)}). "
            f"Expected a file that can be read. Check disk, network, permissions and memory, {kept}"
        )
    return DamagedError(
        f"{path}: {printable(part, 1000)} is damaged, got {printable(words, 200) or type(got).__name__}. Expected the bytes "
        "that were written. Remove this file and run the extraction again: only what is missing is made again."
    )


@contextmanager
def reading(path: Path, part: str) -> Iterator[None]:
    """Raise, for what h5py raises in the block, what :func:`damaged` says of the file and its part."""
    try:
        yield
    except READ_ERRORS as error:
        raise damaged(path, part, error) from error


def foreign(path: Path, happened: str, expected: str) -> ForeignError:
    """Return the one-line error for a file that is whole and does not belong there, or that is no file."""
    return ForeignError(f"{path}: {happened}. Expected {expected}. Put the run's own there, or move it away and extract again.")


def of_another_run(path: Path, found: str, expected: str) -> ForeignError:
    """Return the one-line error for a file whose run digest is not that of the run."""
    return foreign(path, f"a file of another run, got run digest {found[:12]}", expected[:12])


def missing_file(path: Path, got: str) -> StoreError:
    """Return the one-line error for a file that is not there."""
    return StoreError(f"{path}: the file is missing, got {got}. Expected all files. Put it back, or run the extraction again.")


def unfinished(folder: Path, there: int, count: int, index: str = f"no {format.INDEX_NAME}") -> StoreError:
    """Return the one-line error for a run folder that has shards and no index, or one of some rows."""
    return StoreError(
        f"{folder}: the run is not finished, got {there} of {count} shards and {index}. Expected all, and an index over them. "
        "Run the extraction again to go on, or open a single shard."
    )


def no_run(path: Path, got: str = f"no {format.INDEX_NAME}") -> StoreError:
    """Return the one-line error for what is no run folder, nor a file of one."""
    return StoreError(f"{path}: not a run, got {got}. Expected a run folder, its features.h5 or a shard. Give outputs/<name>.")


def no_such_run(path: Path) -> StoreError:
    """Return the one-line error for a path that does not exist, with the names of the runs beside it."""
    runs = [name for name in disk.names_in(path.parent) if (path.parent / name / format.INDEX_NAME).exists()]
    known = f" one of: {nearest(path.name, runs)}" if runs else " a run folder, its features.h5 or a shard"
    return StoreError(f"{path}: there is no such run, got a path that does not exist. Expected{known}. Check the path.")


def require_file(path: Path) -> None:
    """Refuse what is no regular file under a name in a run folder: a link, and what would be waited for."""
    with reading(path, ""):
        mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
        raise foreign(path, f"not a file of the run, got {kinds.get(stat.S_IFMT(mode), 'a device')}", "the file itself")


def read_file(path: Path) -> bytes:
    """Return the content of a file of a run folder, such as its options; a StoreError where it is missing or no file."""
    require_file(path)
    with reading(path, ""):
        return path.read_bytes()


def require_own_shards(folder: Path) -> None:
    """Refuse a run folder whose folder of shards is a link."""
    shards = folder / format.SHARD_FOLDER
    if shards.is_symlink():
        raise foreign(shards, "not a file of the run, got a link", "the folder itself")


def own_node(group: h5py.Group, name: str) -> Any:
    """Return the array or group that lies in a group under a name.

    Raises:
        KeyError: There is nothing.
        ValueError: It is a link, its values lie in another file, or it is larger than its file can be.
    """
    if "/" in name or group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type != h5py.h5l.TYPE_HARD:
        raise ValueError("a link, which is not followed")
    node = group[name]
    if isinstance(node, h5py.Group):
        return node
    is_layer = node.ndim in map(len, format.AXES.values())
    if node.id.get_create_plist().get_external_count() or (node.is_virtual and not is_layer):
        raise ValueError("data in another file, which is not read")
    # Of a layer, chunks of failed rows are not stored; what is, is bounded by its stream.
    if not is_layer:
        file_bytes = h5py.h5i.get_file_id(node.id).get_filesize()
        size_bytes = max(math.prod(node.shape), math.prod(node.chunks or ())) * node.id.get_type().get_size()
        if size_bytes > max(_SPARE_BYTES, file_bytes * DEFLATE_FACTOR):
            raise ValueError(f"shape {node.shape} in a file of {file_bytes} bytes")
    return node
