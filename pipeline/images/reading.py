"""The bytes of one image, from wherever the manifest says that it is: a file, or what the manifest names as its source.

What cannot be read has a word of its own: ``missing``, ``unreadable``, ``not a regular file``, ``too large``.
"""

from __future__ import annotations

import os
import stat
from io import FileIO

from ..errors import DatasetError
from ..records import ImageRecord
from .decode import ImageDecodeError

# No photograph is larger; reading on would risk the memory for a disk image that somebody named .tif.
MAX_FILE_BYTES = 2**30
# Without O_NONBLOCK, a pipe would be waited for until somebody writes to it.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def read_image(record: ImageRecord) -> bytes:
    """Read an image whole.

    Raises:
        ImageError: It cannot be used: no regular file, larger than :data:`MAX_FILE_BYTES`, or changed while it is read.
        OSError: It is missing or cannot be read.
    """
    return read_file(record.path) if record.source is None else record.source.read(record)


def read_again(record: ImageRecord) -> bytes:
    """Read an image for the sake of looking at it; a storage that does not answer is no reason to stop then.

    Raises:
        ImageError: As :func:`read_image`; or the storage does not answer.
        OSError: As there.
    """
    try:
        return read_image(record)
    except DatasetError as error:
        raise ImageDecodeError(f"unreadable: {error}") from error


def words_for(error: OSError) -> str:
    """Return what the row of an image says that could not be read."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "missing: file not found"
    return f"unreadable: {(error.strerror or ' '.join(str(error).split())[:200] or type(error).__name__).lower()}"


def read_file(path: str) -> bytes:
    """Read a regular file whole.

    Raises:
        ImageDecodeError: It is not a regular file, is larger than :data:`MAX_FILE_BYTES`, or changes while it is read.
        OSError: It is missing or cannot be read.
    """
    # Without a file object, which asks twice as much of the system, and every question may hand Python to another thread.
    descriptor = _open(path)
    try:
        before = os.fstat(descriptor)
        size = _regular_size(before)
        data = _read(descriptor, size + 1)
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if len(data) != size or (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
        raise ImageDecodeError("unreadable: the file changed while it was read")
    return data


def open_regular(path: str) -> FileIO:
    """Open a regular file, without a buffer.

    Args:
        path: Of the file.

    Raises:
        ImageDecodeError: It is not a regular file.
        OSError: It is missing or cannot be opened.
    """
    return open(_open(path), "rb", buffering=0)


def _open(path: str) -> int:
    # Opening a device can have effects, so these are refused before.
    _refuse_other_kinds(os.stat(path))  # noqa: PTH116 (thousands a second; a Path takes longer to make than to ask)
    return os.open(path, _FLAGS)


def _read(descriptor: int, most: int) -> bytes:
    """Read a file from its beginning until so many bytes are there or it is at its end."""
    data = os.read(descriptor, most)
    # Most files come at once, but for the byte that should not be there.
    if len(data) >= most - 1:
        return data
    del data
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(most) or b""


def _regular_size(info: os.stat_result) -> int:
    _refuse_other_kinds(info)
    refuse_too_large(info.st_size)
    return info.st_size


def _refuse_other_kinds(info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe" if stat.S_ISFIFO(info.st_mode) else "a device or socket"
        raise ImageDecodeError(f"not a regular file: {kind}")


def refuse_too_large(size_bytes: int) -> None:
    """Refuse what would take too much memory.

    Raises:
        ImageDecodeError: It is larger than :data:`MAX_FILE_BYTES`.
    """
    if size_bytes > MAX_FILE_BYTES:
        raise ImageDecodeError(f"too large: {size_bytes} bytes, limit {MAX_FILE_BYTES} bytes")
