"""The nouns of the first stage: the images of a run, in columns, and where their bytes are. NumPy only, like all of them.

:mod:`pipeline.records` has them beside the others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One row of the manifest: an image that somebody wants features of, whether or not it can be read.

    Attributes:
        index: Row in the run, from 0.
        key: The name a person reads: path relative to the data folder, ``/`` on every system. Unique in a run.
        path: Where the file is, for this machine.
        label: First folder of the key, or the list's ``label`` column; ``""`` if none.
        file_bytes: Size of the file when it was listed; 0 where it could not be found.
        source: What reads it, if it is no local file; then ``path`` is for people, or for this source.
        place: Which of the source's images it is; -1 where the source has it no longer, or goes by ``path``.
    """

    index: int
    key: str
    path: str
    label: str
    file_bytes: int
    source: ImageSource | None = None
    place: int = -1


class ImageSource(Protocol):
    """Where images are that are no local files: tar files, a data set, an object store.

    One for all rows, so it must be safe in threads and after a fork; and picklable, small for what it holds: it is sent to every
    machine that has a share in the run. What it has open, it opens when it is first asked.
    """

    @property
    def kind(self) -> str:
        """One word, stored with the run."""

    def read(self, record: ImageRecord) -> bytes:
        """Reads one image whole.

        Raises:
            ImageError: It cannot be used; the text begins with ``unreadable``, ``too large`` or ``not a regular file``.
            OSError: It is missing or cannot be read, as of a file.
        """

    def modified_seconds(self, record: ImageRecord) -> float:
        """Gives when it was last written, in seconds since 1970; later than now where nobody can say.

        Raises:
            OSError: It is missing or cannot be asked.
        """


@dataclass(frozen=True, slots=True)
class Manifest:
    """The images of a run, in order: row i of everything that is written is image i of this.

    Stored by column, since a run may have millions of rows.

    Attributes:
        root: Folder that keys are relative to.
        keys: (N) unique names, in the order of the run.
        labels: (N) labels, ``""`` where there is none.
        file_bytes: (N,) int64, size of each file when it was listed.
        paths: Where a file is, by index, for those that do not lie at ``root/key``.
        metadata: Further columns of the list, each (N) strings.
        skipped: Files passed over while walking a folder: reason -> how many. For the report alone.
        digest: By :func:`digest_images`; of an extended run, of the rows that its last part has added.
        source: What reads the images, if they are no local files.
        places: (N) int64, which of the source's images each row is, -1 where it has it no longer; None where it goes by paths.
    """

    root: str
    keys: Sequence[str]
    labels: Sequence[str]
    file_bytes: NDArray[np.int64]
    paths: Mapping[int, str]
    metadata: Mapping[str, Sequence[str]]
    skipped: Mapping[str, int]
    digest: str
    source: ImageSource | None = None
    places: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> ImageRecord:
        key, path = self.keys[index], self.paths.get(index)
        if path is None:
            path = os.path.join(self.root, key) if self.source is None else f"{self.root}/{key}"  # noqa: PTH118 (a millionfold)
        place = -1 if self.places is None else int(self.places[index])
        return ImageRecord(index, key, path, self.labels[index], int(self.file_bytes[index]), self.source, place)

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))


def digest_images(
    keys: Sequence[str], labels: Sequence[str], file_bytes: NDArray[np.int64], metadata: Mapping[str, Sequence[str]]
) -> str:
    """Gives the SHA-256, hex, of keys, labels, sizes and metadata."""
    digest = hashlib.sha256()
    for name, column in (("key", keys), ("label", labels), *sorted(metadata.items())):
        # The number of texts and their lengths go before them: no two manifests can run together into the same stream.
        encoded = [text.encode("utf-8", "surrogateescape") for text in (name, *column)]
        digest.update(np.fromiter((len(encoded), *map(len, encoded)), "<i8", len(encoded) + 1).tobytes())
        digest.update(b"".join(encoded))
        if name == "key":
            digest.update(file_bytes.astype("<i8").tobytes())
    return digest.hexdigest()
