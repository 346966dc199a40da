"""The bytes of one image, from wherever the manifest says that it is; and a small copy of it, for somebody to look at.

What is no local file is read by one of the classes here, see :class:`~pipeline.records.ImageSource`. What cannot be read has a
word of its own: ``missing``, ``unreadable``, ``not a regular file``, ``too large``. No TensorFlow.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError, ImageError
from ..records import ImageRecord
from ..storage import RemotePath, StorageError, is_address, is_web
from .decode import decode_image
from .resize import ResizeSpec, dct_reduction

# No photograph is larger; reading on would risk the memory for a disk image that somebody named .tif.
MAX_FILE_BYTES = 2**30
# Without O_NONBLOCK, a pipe would be waited for until somebody writes to it.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
# Requests under way at a time: an object store answers each after some 10 to 50 ms, and any number of them at once.
READS_AT_ONCE = 32


def read_image(record: ImageRecord) -> bytes:
    """Read an image whole.

    Raises:
        ImageError: It is no regular file, larger than :data:`MAX_FILE_BYTES`, or changes while it is read.
        OSError: It is missing or cannot be read.
        DatasetError: The storage refuses everything, or does not answer: no fault of the image.
    """
    return _read_file(record.path) if record.source is None else record.source.read(record)


def words_for(error: Exception) -> str:
    """Return what the row of an image says that cannot be used."""
    if isinstance(error, MemoryError):
        return "out of memory: the image does not fit"
    if not isinstance(error, OSError):
        return str(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "missing: file not found"
    return f"unreadable: {(error.strerror or ' '.join(str(error).split())[:200] or type(error).__name__).lower()}"


def _read_file(path: str) -> bytes:
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        refuse_too_large(before.st_size)
        data = file.read(before.st_size + 1)
        after = os.fstat(file.fileno())
    if len(data) != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ImageError("unreadable: the file changed while it was read")
    return data


def open_regular(path: str, buffer_bytes: int = -1) -> BinaryIO:
    """Open a regular file, ``buffer_bytes`` as of ``open``; raises as :func:`read_image` does."""
    # Opening a device can have effects, so these are refused before.
    info = os.stat(path)  # noqa: PTH116 (thousands a second; a Path takes longer to make than to ask)
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe" if stat.S_ISFIFO(info.st_mode) else "a device or socket"
        raise ImageError(f"not a regular file: {kind}")
    return os.fdopen(os.open(path, _FLAGS), "rb", buffer_bytes)


def refuse_too_large(size_bytes: int) -> None:
    """Refuse, by an ``ImageError``, what is larger than :data:`MAX_FILE_BYTES`."""
    if size_bytes > MAX_FILE_BYTES:
        raise ImageError(f"too large: {size_bytes} bytes, limit {MAX_FILE_BYTES} bytes")


@dataclass(frozen=True, slots=True, eq=False)
class FileSlices:
    """Images that lie whole in larger files, of the kind ``tar`` or ``tfds``; see :class:`~pipeline.records.ImageSource`.

    Attributes:
        paths: (F) of the files.
        files: (F, 2) int64, of each when it was listed: size in bytes, when it had been written last in ns since 1970.
        slices: (N, 3) int64, of each image: number of the file, where its bytes begin, how many.
    """

    kind: str
    paths: tuple[str, ...]
    files: NDArray[np.int64]
    slices: NDArray[np.int64]

    def read(self, record: ImageRecord) -> bytes:
        """Read one image whole, as :func:`read_image`."""
        number, offset, size_bytes = self._slice(record)
        refuse_too_large(size_bytes)
        # Opened for each image: nothing to share among threads and processes.
        with open_regular(self.paths[number]) as file:
            file.seek(offset)
            data = file.read(size_bytes)
            # After it was read: a file that is being written to may have had other bytes already.
            info = os.fstat(file.fileno())
        if [info.st_size, info.st_mtime_ns] != self.files[number].tolist() or len(data) != size_bytes:
            raise ImageError(f"unreadable: the {self.kind} file changed since it was listed")
        return data

    def modified_seconds(self, record: ImageRecord) -> float:
        """Return when the file of an image was written, in seconds since 1970."""
        return os.stat(self.paths[self._slice(record)[0]]).st_mtime  # noqa: PTH116

    def _slice(self, record: ImageRecord) -> list[int]:
        if record.place < 0:
            raise FileNotFoundError(record.key)
        return self.slices[record.place].tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, eq=False)
class RemoteImages:
    """Images at addresses, a list of which may name local files too; see :class:`~pipeline.records.ImageSource`.

    Attributes:
        written: (N) float64, in seconds since 1970, when each was last written; 0 where nobody can say.
        is_list: Whether a list names them, perhaps on many web servers: one that does not answer fails its images. Any other
            storage stops the run.
    """

    written: NDArray[np.float64]
    is_list: bool = False
    kind: ClassVar[str] = "address"

    def read(self, record: ImageRecord) -> bytes:
        """Read one image whole, as :func:`read_image`."""
        if not is_address(record.path):
            return _read_file(record.path)
        refuse_too_large(record.file_bytes)
        # Of a list, nobody has asked a web server; and some say no size.
        is_known = record.file_bytes > 0 or not is_web(record.path)
        try:
            # A byte more than there should be, so that what has grown since is not read to its end.
            data = RemotePath(record.path).pread((record.file_bytes if is_known else MAX_FILE_BYTES) + 1, 0)
        except StorageError as error:
            if self.is_list and is_web(record.path):
                raise ImageError(f"unreadable: {error.strerror}") from error
            raise DatasetError(str(error)) from error
        if is_known and len(data) != record.file_bytes:
            raise ImageError("unreadable: the file changed since it was listed")
        refuse_too_large(len(data))
        return data

    def modified_seconds(self, record: ImageRecord) -> float:
        """Return when an image was last written, in seconds since 1970; infinity where nobody can say."""
        return (float(self.written[record.place]) if record.place >= 0 else 0.0) or float("inf")


def read_again(record: ImageRecord, sha256: str = "") -> bytes:
    """Read an image for the sake of looking at it; a storage that does not answer is no reason to stop then.

    Raises:
        ImageError: It cannot be read, or has another SHA-256 than the one that is given.
    """
    try:
        data = read_image(record)
    except (ImageError, OSError, MemoryError) as error:
        raise ImageError(words_for(error)) from error
    except (DatasetError, ValueError) as error:  # the second: a path that no file can have
        raise ImageError(f"unreadable: {error}") from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise ImageError("changed: the file is not the one that the features were made from")
    return data


def thumbnail(record: ImageRecord, sha256: str, side_px: int) -> NDArray[np.uint8]:
    """Return a copy of an image whose longer side has so many px at most, (h, w, 3) uint8 RGB; raises as :func:`read_again`."""
    fitting = ResizeSpec((side_px, side_px), "pad", "lanczos")
    pixels, _ = decode_image(read_again(record, sha256), partial(dct_reduction, spec=fitting))
    picture = Image.fromarray(pixels)
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return np.asarray(picture)
