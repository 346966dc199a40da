"""Images at addresses: a folder of them as a :class:`~pipeline.records.Manifest`, and what reads them, many at a time."""

from __future__ import annotations

import os
import posixpath
import stat
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..records import ImageRecord, Manifest
from ..storage import RemotePath, StorageError, is_address, is_web
from .decode import ImageDecodeError
from .manifest import make_manifest, no_images, reason_to_skip
from .reading import MAX_FILE_BYTES, read_file, refuse_too_large

# Requests under way at a time: an object store answers each after some 10 to 50 ms, and any number of them at once.
READS_AT_ONCE = 32
# Of a list in a bucket: so many images are asked for one by one; where there are more, the folder that they share is listed.
ASKED_ONE_BY_ONE = 200

# Address or path -> bytes, and seconds when it was written. What is not there is not in it.
_Sizes = dict[str, tuple[int, float]]


class RemoteImages:
    """What reads images at addresses; see :class:`~pipeline.records.ImageSource`.

    Args:
        modified_seconds: (N,) float64, when each was last written, by its place; 0 where nobody can say.
        is_list: Whether a list names them, perhaps on very many web servers: one that does not answer fails its images. Any other
            stops the run.

    Attributes:
        kind: As stored with the run.
        reads_at_once: How many reads are worth having under way; see :mod:`.loader`.
    """

    kind = "address"
    reads_at_once = READS_AT_ONCE

    def __init__(self, modified_seconds: NDArray[np.float64], is_list: bool = False) -> None:
        self._modified_seconds = modified_seconds
        self._is_list = is_list

    def read(self, record: ImageRecord) -> bytes:
        """Read one image whole.

        Raises:
            ImageError: It is too large, or is not as it was listed; or its web server does not answer.
            OSError: It is missing, or this user may not read it.
            DatasetError: The storage refuses everything, or does not answer: no fault of the image.
        """
        if not is_address(record.path):
            return read_file(record.path)
        refuse_too_large(record.file_bytes)
        # Of a list, nobody has asked a web server; and some say no size.
        is_known = record.file_bytes > 0 or not is_web(record.path)
        try:
            # A byte more than there should be, so that what has grown since is not read to its end.
            data = RemotePath(record.path).pread((record.file_bytes if is_known else MAX_FILE_BYTES) + 1, 0)
        except StorageError as error:
            if self._is_list and is_web(record.path):
                raise ImageDecodeError(f"unreadable: {error.strerror}") from error
            raise DatasetError(str(error)) from error
        if is_known and len(data) != record.file_bytes:
            raise ImageDecodeError("unreadable: the file changed since it was listed")
        refuse_too_large(len(data))
        return data

    def modified_seconds(self, record: ImageRecord) -> float:
        """Return when an image was last written, as it was listed."""
        seconds = float(self._modified_seconds[record.place]) if record.place >= 0 else 0.0
        return seconds or float("inf")


def list_address(folder: Path) -> Manifest:
    """List the images below an address as :func:`~.folder.list_folder` does below a folder: same order, same rules.

    Raises:
        DatasetError: It cannot be listed, or holds no image.
    """
    assert isinstance(folder, RemotePath)
    found: _Sizes = {}
    skipped: Counter[str] = Counter()
    try:
        for name, size_bytes, seconds in folder.find_files():
            if reason := reason_to_skip(name):
                skipped[reason] += 1
            else:
                found[name] = size_bytes, seconds
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DatasetError(
            f"data.dir: cannot be listed, got {error.strerror or error} for {str(folder)!r}. Expected an address that can. Check "
            "the address, the credentials and the network."
        ) from error
    if not found:
        raise no_images("data.dir", repr(str(folder)), skipped)
    # Python compares strings by code point, which is the order of their UTF-8 bytes.
    keys = sorted(found)
    sizes, times = zip(*(found[key] for key in keys), strict=True)
    return make_manifest(str(folder), keys, sizes, columns={}, skipped=skipped, source=RemoteImages(np.array(times)))


def sizes_of(places: Sequence[str]) -> _Sizes:
    """Return how large the images of a list are, and when they were written.

    Web servers are not asked: to get a size takes as long as to get an image, and the same list must be the same run also where
    one did not answer.

    Args:
        places: Addresses and paths.

    Returns:
        Place -> bytes, and seconds when it was written; nothing of what is not there.

    Raises:
        DatasetError: The storage refuses.
    """
    found = {place: size for place in places if not is_address(place) and (size := _size(place))}
    stored = sorted(place for place in places if is_address(place) and not is_web(place))
    try:
        if len(stored) <= ASKED_ONE_BY_ONE:
            with ThreadPoolExecutor(READS_AT_ONCE, "ask") as pool:
                sizes = zip(stored, pool.map(_size, stored), strict=True)
                return found | {place: size for place, size in sizes if size}
        for _, group in groupby(stored, lambda place: place.split("/")[:3]):
            wanted = {*group}
            folder = posixpath.dirname(posixpath.commonprefix([*wanted]))
            with suppress(FileNotFoundError):
                for name, size_bytes, seconds in RemotePath(folder).find_files():
                    if (place := f"{folder}/{name}") in wanted:
                        found[place] = size_bytes, seconds
    except StorageError as error:
        raise DatasetError(str(error)) from error
    return found


def _size(place: str) -> tuple[int, float] | None:
    try:
        info = RemotePath(place).stat() if is_address(place) else os.stat(place)  # noqa: PTH116
    except StorageError:
        raise
    except (OSError, ValueError):
        return None
    return (info.st_size if stat.S_ISREG(info.st_mode) else 0), info.st_mtime
