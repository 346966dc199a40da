"""The list of images that a part of a run was planned for, ``manifest.jsonl.gz``: written before the first shard, then only read.

Without it nobody could say which images an unfinished run was of, once others have come or some have gone.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import Manifest, RunSpec, digest_images
from . import disk, format
from .digests import Digests
from .file_checks import require_file
from .identity import checked_identity, rows_of
from .read_errors import UnreadableError, UnsureError, why_not_read

# A line of so many rows is some megabytes: a list of millions never lies in memory twice.
ROWS_A_LINE = 1 << 15
# The fastest of zlib's: higher ones take several times as long for a tenth less.
LEVEL = 1

# A list may unpack to so many times its size, as one with a long text in every row does, or to so many bytes: a stranger's can
# unpack to a thousand times.
_LARGEST_FACTOR, _SMALL_BYTES = 300, 16 << 20

# What comes of bytes that are not as they were written: of the disk, of gzip, of JSON (nested too deeply: RuntimeError; a number
# of thousands of digits: OverflowError), of this room.
_READ_ERRORS = (
    *(OSError, EOFError, zlib.error, StoreError, RuntimeError),
    *(ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError),
)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a part of a run was planned for.

    Attributes:
        identity: Of the run with this part, option -> value.
        images: Of this part alone: row 0 is the part's first.
        gone: (g,) int64, rows of the run before the part whose images were no longer there when it was planned.
    """

    identity: Mapping[str, str]
    images: Manifest
    gone: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Header:
    """What the first line of a list says.

    Attributes:
        identity: Of the run with the part, option -> value.
        first_row: Of the part.
        rows: Of the part, one at least.
    """

    identity: Mapping[str, str]
    first_row: int
    rows: int


def write_listing(path: Path, spec: RunSpec, gone: NDArray[np.int64]) -> None:
    """Writes the list of the images of a run's last part.

    Args:
        path: Where; complete, or not there.
        spec: The run, up to the part.
        gone: (g,) int64, as in :class:`Listing`.

    Raises:
        StoreError: The disk refuses.
    """
    manifest = spec.manifest
    header = {
        "format": format.MANIFEST_FORMAT,
        "format_version": format.FORMAT_VERSION,
        "part": len(spec.before),
        "first_row": spec.first_row,
        "rows": len(manifest) - spec.first_row,
        "identity": dict(spec.identity),
        "gone": gone.tolist(),
    }
    partial = disk.partial_path(path)
    try:
        # Neither a name nor a time in it: the same images make the same file.
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as file:
            file.write(_line(header))
            for first in range(spec.first_row, len(manifest), ROWS_A_LINE):
                rows = slice(first, first + ROWS_A_LINE)
                line = {
                    "key": manifest.keys[rows],
                    "bytes": manifest.file_bytes[rows].tolist(),
                    "label": manifest.labels[rows],
                    "columns": {name: values[rows] for name, values in manifest.metadata.items()},
                }
                file.write(_line(line))
        Digests(path.parent).publish(path)
    except BaseException as error:  # Ctrl-C too
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise disk.write_error(path, error) from error
        raise


def read_listing(path: Path) -> Listing | None:
    """Gives what :func:`write_listing` has written; None if it is not there or not as it was written.

    Raises:
        UnreadableError: The system does not let us read it.
    """
    try:
        most_bytes = _most_bytes(path)
        with path.open("rb") as raw, gzip.open(raw) as file:
            header, identity = _read_first(file, most_bytes)
            lines: list[dict[str, Any]] = []
            left_bytes = most_bytes - file.tell()
            while line := file.readline(left_bytes + 1):
                left_bytes -= len(line)
                if left_bytes < 0:
                    return None
                content = json.loads(line)
                if not content["key"]:
                    return None
                lines.append(content)
        images = _joined(lines)
        # The digest is in the run's, which is in every shard: a list that agrees with it is the right one.
        if len(images) != header["rows"] or identity["images"] != f"{len(images)} rows, digest {images.digest}":
            return None
        return Listing(identity, images, np.array(header["gone"], np.int64))
    except _READ_ERRORS as error:
        _refuse_unread(path, error)
        return None


def read_header(path: Path) -> Header | None:
    """Gives what the first line of a list says, none of its images; None if it is not there or none that this program writes.

    What it says is held to what a run can be, not to the images: the others of its lines may be damaged.

    Raises:
        UnreadableError: The system does not let us read it.
    """
    try:
        most_bytes = _most_bytes(path)
        with path.open("rb") as raw, gzip.open(raw) as file:
            header, identity = _read_first(file, most_bytes)
        first_row, rows = header["first_row"], header["rows"]
        is_one = isinstance(first_row, int) and 0 <= first_row < format.MOST_ROWS and rows == rows_of(identity) > 0
        return Header(identity, first_row, rows_of(identity)) if is_one else None
    except _READ_ERRORS as error:
        _refuse_unread(path, error)
        return None


def _refuse_unread(path: Path, error: BaseException) -> None:
    """Raise what kept a list from being read; nothing where it is missing or was read and is wrong."""
    if isinstance(error, FileNotFoundError):
        return
    unread = error if isinstance(error, UnreadableError) else why_not_read(path, "the list of images", error)
    # A list that unpacks to more than the memory holds is as likely a damaged one.
    if unread is not None and not isinstance(unread, UnsureError):
        raise unread from error


def _most_bytes(path: Path) -> int:
    """Gives how many bytes a list may unpack to; makes sure that it is a file."""
    require_file(path)
    return max(_SMALL_BYTES, _LARGEST_FACTOR * path.stat().st_size)


def _read_first(file: gzip.GzipFile, most_bytes: int) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Gives the first line of a list, and of it the identity.

    Raises:
        ValueError: It is of another format or of no run; one of the others of _READ_ERRORS: it is damaged.
    """
    header = json.loads(file.readline(most_bytes))
    identity = checked_identity(header["identity"])
    if (header["format"], header["format_version"]) != (format.MANIFEST_FORMAT, format.FORMAT_VERSION) or identity is None:
        raise ValueError("no list of this version")
    return header, identity


def _line(content: Mapping[str, Any]) -> bytes:
    # With escapes for what is not ASCII: UTF-8 has none for half a surrogate pair.
    return json.dumps(content).encode() + b"\n"


def _joined(lines: list[dict[str, Any]]) -> Manifest:
    names = list(lines[0]["columns"]) if lines else []
    keys = tuple(key for line in lines for key in line["key"])
    labels = tuple(label for line in lines for label in line["label"])
    sizes = np.array([size for line in lines for size in line["bytes"]], np.int64)
    metadata = {name: tuple(value for line in lines for value in line["columns"][name]) for name in names}
    return Manifest("", keys, labels, sizes, {}, metadata, {}, digest_images(keys, labels, sizes, metadata))
