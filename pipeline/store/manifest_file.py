"""``manifest.jsonl.gz``: the images that a part of a run was planned for. Written before the first shard, then only read.

The manifest is the plan: parts, rows and shards of a run follow from it alone. What is in the file: :mod:`pipeline.store.format`.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import Manifest, digest_identity, digest_images
from ..sharding import Part
from . import disk, format
from .damage import HDF5_READ_ERRORS, UnreadableError, UnsureError, damaged, require_file
from .digests import Digests

# A line of so many rows is some megabytes: a manifest of millions never lies in memory twice.
ROWS_A_LINE = 1 << 15
# The fastest of zlib's: higher ones take several times as long for a tenth less.
LEVEL = 1

# What bytes that are not as they were written raise in gzip, JSON and here.
_READ_ERRORS = (*HDF5_READ_ERRORS, EOFError, zlib.error, StoreError, MemoryError)
_IMAGES = re.compile(r"(\d{1,10}) rows, digest [0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PartManifest:
    """What a part of a run is planned for.

    Attributes:
        identity: Of the run with this part, option -> value.
        first_row: Of the part, in the run.
        gone: (g,) int64, rows of the run before the part whose images were no longer there when it was planned.
        images: Of this part alone: row 0 is the part's first. None where only the first line was read.
    """

    identity: Mapping[str, str]
    first_row: int
    gone: NDArray[np.int64]
    images: Manifest | None = None

    @property
    def part(self) -> Part:
        """Digest of the run with this part, and the row after its last."""
        return Part(digest_identity(self.identity), self.first_row + rows_of(self.identity))

    def follows(self, before: Sequence[PartManifest]) -> bool:
        """Tell whether this is the part that comes after these."""
        expected = f"{before[-1].part.stop} rows, digest {before[-1].part.digest}" if before else None
        return self.identity.get("extends") == expected


def write_manifest(path: Path, number: int, manifest: PartManifest) -> None:
    """Write the manifest of a part, whole or not at all.

    Args:
        path: Of the file.
        number: Of the part, from 0.
        manifest: With its images.

    Raises:
        StoreError: The disk refuses.
    """
    images = manifest.images
    assert images is not None
    header = {
        "format": format.MANIFEST_FORMAT,
        "format_version": format.FORMAT_VERSION,
        "part": number,
        "first_row": manifest.first_row,
        "rows": len(images),
        "identity": dict(sorted(manifest.identity.items())),
        "gone": manifest.gone.tolist(),
    }
    with disk.writing(path) as partial:
        # Neither a name nor a time in it: the same images make the same file.
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as file:
            # With escapes for what is not ASCII: UTF-8 has none for half a surrogate pair.
            file.write(json.dumps(header).encode() + b"\n")
            for first in range(0, len(images), ROWS_A_LINE):
                rows = slice(first, first + ROWS_A_LINE)
                line = {
                    "key": images.keys[rows],
                    "bytes": images.file_bytes[rows].tolist(),
                    "label": images.labels[rows],
                    "columns": {name: values[rows] for name, values in images.metadata.items()},
                }
                file.write(json.dumps(line).encode() + b"\n")
        Digests(path.parent).publish(path)


def read_manifest(path: Path, images: bool = True) -> PartManifest | None:
    """Return what :func:`write_manifest` has written; None if it is not there or not as it was written.

    Args:
        path: Of the file.
        images: Whether all is read and compared with its digest, or the first line alone.

    Raises:
        UnreadableError: The system does not let us read it.
    """
    try:
        require_file(path)
        with path.open("rb") as raw, gzip.open(raw) as file:
            header = json.loads(file.readline())
            if (header["format"], header["format_version"]) != (format.MANIFEST_FORMAT, format.FORMAT_VERSION):
                return None
            identity, first_row = parse_identity(header["identity"]), int(header["first_row"])
            manifest = PartManifest(identity, first_row, np.array(header["gone"], np.int64))
            if not 0 <= first_row < format.MOST_ROWS:
                return None
            if not images:
                return manifest
            found = _join_lines([json.loads(line) for line in file])
        # The digest is in the run's, which is in every shard: a manifest that agrees with it is the right one.
        return PartManifest(identity, first_row, manifest.gone, found) if identity["images"] == images_words(found) else None
    except _READ_ERRORS as error:
        if isinstance(error, FileNotFoundError):
            return None
        unread = error if isinstance(error, UnreadableError) else damaged(path, "the manifest", error)
        # One that unpacks to more than the memory holds is as likely a damaged one.
        if isinstance(unread, UnreadableError) and not isinstance(unread, UnsureError):
            raise unread from error
        return None


def _join_lines(lines: list[dict[str, Any]]) -> Manifest:
    keys, labels, sizes = ([value for line in lines for value in line[name]] for name in ("key", "label", "bytes"))
    columns = {name: tuple(value for line in lines for value in line["columns"][name]) for name in lines[0]["columns"]}
    file_bytes = np.array(sizes, np.int64)
    return Manifest("", tuple(keys), tuple(labels), file_bytes, {}, columns, {}, digest_images(keys, labels, file_bytes, columns))


def join_images(parts: Sequence[PartManifest]) -> Manifest:
    """Return the images of all parts, one after the other; the digest is that of the last part's."""
    images = [part.images for part in parts if part.images]
    return Manifest(
        root="",
        keys=tuple(key for part in images for key in part.keys),
        labels=tuple(label for part in images for label in part.labels),
        file_bytes=np.concatenate([part.file_bytes for part in images]),
        paths={},
        metadata={name: tuple(value for part in images for value in part.metadata[name]) for name in images[0].metadata},
        skipped={},
        digest=images[-1].digest,
    )


def images_words(images: Manifest) -> str:
    """Return what the identity of a part says of its images."""
    return f"{len(images)} rows, digest {images.digest}"


def parse_identity(found: Any) -> Mapping[str, str]:
    """Return the identity of a run from its JSON, or from what was read of that.

    Raises:
        ValueError: It is none that this program writes; also KeyError and RecursionError.
    """
    found = json.loads(found) if isinstance(found, str) else found
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("an identity that no run has")
    rows, step = rows_of(found), int(found["output.images_per_shard"])
    if not {"layers", "output.dtype"} <= found.keys() or not 1 <= step <= format.MOST_SHARD_ROWS:
        raise ValueError("an identity without layers, dtype or shards")
    if not 1 <= rows <= format.MOST_ROWS or -(-rows // step) > format.MOST_SHARDS:
        raise ValueError(f"{rows} rows, {step} a shard")
    return found


def rows_of(identity: Mapping[str, str]) -> int:
    """Return the rows of the part that an identity is of.

    Raises:
        ValueError: It does not say.
    """
    found = _IMAGES.fullmatch(identity.get("images", ""))
    if not found:
        raise ValueError("an identity without images")
    return int(found[1])
