"""The bytes of images in tar files, read where the listing has found them; no tar file is read from its beginning."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..records import ImageRecord
from .decode import ImageDecodeError
from .reading import open_regular, refuse_too_large
from .tar_headers import read_at

# In the place of an offset.
NOWHERE, SPARSE = -1, -2


class _Held:
    """A tar file that a thread has open. It is closed with the thread."""

    def __init__(self) -> None:
        self.number = -1
        self.file: BinaryIO | None = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.number, self.file = -1, None

    def __del__(self) -> None:
        self.close()


class _Open(threading.local):
    """What a thread has read last. Rows lie in the order of the files, so one is enough; and threads share nothing."""

    def __init__(self) -> None:
        self.held = _Held()

    def __reduce__(self) -> tuple[type[_Open], tuple[()]]:
        return _Open, ()


@dataclass(frozen=True, slots=True, eq=False)
class TarSource:
    """Images in tar files.

    Attributes:
        paths: (T) of the tar files.
        sizes_bytes: (T) int64, of the tar files when they were listed.
        modified_ns: (T) int64, when they had been written last then, since 1970.
        numbers: (N) int32, in which tar file each image is.
        offsets: (N) int64, where its bytes begin; ``NOWHERE``: a link to nothing; ``SPARSE``: not stored in one piece.
        lengths: (N) int64, how many bytes it has.
    """

    paths: tuple[str, ...]
    sizes_bytes: NDArray[np.int64]
    modified_ns: NDArray[np.int64]
    numbers: NDArray[np.int32]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    kind: str = "tar"
    _open: _Open = field(default_factory=_Open, repr=False)

    def read(self, record: ImageRecord) -> bytes:
        """Reads one image whole; see :class:`~pipeline.records.ImageSource`."""
        place = record.place
        offset, size_bytes = (int(self.offsets[place]), int(self.lengths[place])) if place >= 0 else (NOWHERE, 0)
        if offset == NOWHERE:
            raise FileNotFoundError(record.key)
        if offset == SPARSE:
            raise ImageDecodeError("unreadable: a sparse member of a tar file")
        refuse_too_large(size_bytes)
        number = int(self.numbers[place])
        held = self._open.held
        if held.number != number or held.file is None:
            held.close()
            held.file, held.number = open_regular(self.paths[number]), number
        data = read_at(held.file, offset, size_bytes)
        # After it was read: a file that is being written to may have had other bytes already.
        info = os.fstat(held.file.fileno())
        if (info.st_size, info.st_mtime_ns) != (self.sizes_bytes[number], self.modified_ns[number]) or len(data) != size_bytes:
            held.close()
            raise ImageDecodeError("unreadable: the tar file changed since it was listed")
        return data

    def modified_seconds(self, record: ImageRecord) -> float:
        """Gives when the tar file of an image was written; see :class:`~pipeline.records.ImageSource`."""
        if record.place < 0 or self.offsets[record.place] == NOWHERE:
            raise FileNotFoundError(record.key)
        return os.stat(self.paths[int(self.numbers[record.place])]).st_mtime  # noqa: PTH116 (asked for each image)
