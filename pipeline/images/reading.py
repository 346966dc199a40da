"""The bytes of one image, from wherever the manifest says that it is: a file, or what the manifest names as its source.

What cannot be read has a word of its own: ``missing``, ``unreadable``, ``not a regular file``, ``too large``.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, ImageError
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
        ImageError: It cannot be read, for the reason given.
    """
    try:
        return read_image(record)
    except ImageError:  # a ValueError too
        raise
    except OSError as error:
        raise ImageError(words_for(error)) from error
    except MemoryError:
        raise ImageError("out of memory: the image does not fit") from None
    except (DatasetError, ValueError) as error:  # the second: a path that no file can have
        raise ImageError(f"unreadable: {error}") from error


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
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        refuse_too_large(before.st_size)
        data = file.read(before.st_size + 1)
        after = os.fstat(file.fileno())
    if len(data) != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ImageDecodeError("unreadable: the file changed while it was read")
    return data


def open_regular(path: str, buffer_bytes: int = -1) -> BinaryIO:
    """Open a regular file.

    Args:
        path: Of the file.
        buffer_bytes: As of ``open``.

    Raises:
        ImageDecodeError: It is not a regular file.
        OSError: It is missing or cannot be opened.
    """
    # Opening a device can have effects, so these are refused before.
    info = os.stat(path)  # noqa: PTH116 (thousands a second; a Path takes longer to make than to ask)
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe" if stat.S_ISFIFO(info.st_mode) else "a device or socket"
        raise ImageDecodeError(f"not a regular file: {kind}")
    return os.fdopen(os.open(path, _FLAGS), "rb", buffer_bytes)


def refuse_too_large(size_bytes: int) -> None:
    """Refuse what would take too much memory.

    Raises:
        ImageDecodeError: It is larger than :data:`MAX_FILE_BYTES`.
    """
    if size_bytes > MAX_FILE_BYTES:
        raise ImageDecodeError(f"too large: {size_bytes} bytes, limit {MAX_FILE_BYTES} bytes")


@dataclass(frozen=True, slots=True, eq=False)
class FileSlices:
    """Images that lie whole in larger files; see :class:`~pipeline.records.ImageSource`.

    Attributes:
        kind: ``tar`` or ``tfds``, as stored with the run.
        paths: (F) of the files.
        files: (F, 2) int64, of each when it was listed: size in bytes, when it had been written last in ns since 1970.
        slices: (N, 3) int64, of each image: number of the file, where its bytes begin, negative where there are none, how many.
    """

    kind: str
    paths: tuple[str, ...]
    files: NDArray[np.int64]
    slices: NDArray[np.int64]

    def read(self, record: ImageRecord) -> bytes:
        """Read one image whole; see :class:`~pipeline.records.ImageSource`."""
        number, offset, size_bytes = self._slice(record)
        refuse_too_large(size_bytes)
        # Opened for each image, as files of a folder are: nothing to share among threads and processes.
        with open_regular(self.paths[number]) as file:
            file.seek(offset)
            data = file.read(size_bytes)
            # After it was read: a file that is being written to may have had other bytes already.
            info = os.fstat(file.fileno())
        if [info.st_size, info.st_mtime_ns] != self.files[number].tolist() or len(data) != size_bytes:
            raise ImageDecodeError(f"unreadable: the {self.kind} file changed since it was listed")
        return data

    def modified_seconds(self, record: ImageRecord) -> float:
        """Return when the file of an image was written; see :class:`~pipeline.records.ImageSource`."""
        return os.stat(self.paths[self._slice(record)[0]]).st_mtime  # noqa: PTH116

    def _slice(self, record: ImageRecord) -> list[int]:
        if record.place < 0 or self.slices[record.place, 1] < 0:
            raise FileNotFoundError(record.key)
        return self.slices[record.place].tolist()  # type: ignore[no-any-return]
