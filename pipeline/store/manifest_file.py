"""``manifest.jsonl.gz``: the images that a part of a run was planned for. Written before the first shard, then only read.

The manifest is the plan: parts, rows and shards of a run follow from it alone. What is in the file: :mod:`pipeline.store.format`.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import Manifest, Part, RunSpec, digest_identity, digest_images
from . import disk, format
from .damage import UnreadableError, UnsureError, why_not_read
from .digests import Digests
from .file_checks import require_file

# A line of so many rows is some megabytes: a manifest of millions never lies in memory twice.
ROWS_A_LINE = 1 << 15
# The fastest of zlib's: higher ones take several times as long for a tenth less.
LEVEL = 1
# What a manifest may unpack to, as a multiple of its size; small ones to so many bytes.
_LARGEST_FACTOR, _SMALL_BYTES = 300, 16 << 20

# What bytes that are not as they were written raise in gzip, JSON and here.
_READ_ERRORS = (
    *(OSError, EOFError, zlib.error, StoreError, RuntimeError),
    *(ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError),
)
_IMAGES = re.compile(r"(\d{1,10}) rows, digest [0-9a-f]{64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PartManifest:
    """What a part of a run was planned for.

    Attributes:
        identity: Of the run with this part, option -> value.
        first_row: Of the part, in the run.
        rows: Of the part, at least one.
        gone: (g,) int64, rows of the run before the part whose images were no longer there when it was planned.
        images: Of this part alone: row 0 is the part's first. None where only the first line was read.
    """

    identity: Mapping[str, str]
    first_row: int
    rows: int
    gone: NDArray[np.int64]
    images: Manifest | None = None

    @property
    def part(self) -> Part:
        """Digest of the run with this part, and the row after its last."""
        return Part(digest_identity(self.identity), self.first_row + self.rows)

    def follows(self, before: Sequence[PartManifest]) -> bool:
        """Tell whether this is the part that comes after these."""
        return self.identity.get("extends") == extends_words([manifest.part for manifest in before])


def extends_words(before: Sequence[Part]) -> str | None:
    """Return what the identity of a part says of the parts before it; None for the first."""
    return f"{before[-1].stop} rows, digest {before[-1].digest}" if before else None


def write_manifest(path: Path, spec: RunSpec, gone: NDArray[np.int64]) -> None:
    """Write the manifest of a run's last part, whole or not at all.

    Args:
        path: Of the file.
        spec: The run, up to the part.
        gone: (g,) int64, as in :class:`PartManifest`.

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
    with disk.writing(path) as partial:
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


def read_manifest(path: Path, images: bool = True) -> PartManifest | None:
    """Return what :func:`write_manifest` has written; None if it is not there or not as it was written.

    Args:
        path: Of the file.
        images: Whether all is read and held to its digest, or the first line alone.

    Raises:
        UnreadableError: The system does not let us read it.
    """
    try:
        require_file(path)
        most_bytes = max(_SMALL_BYTES, _LARGEST_FACTOR * path.stat().st_size)
        with path.open("rb") as raw, gzip.open(raw) as file:
            header = json.loads(file.readline(most_bytes))
            if (header["format"], header["format_version"]) != (format.MANIFEST_FORMAT, format.FORMAT_VERSION):
                return None
            identity = parse_identity(header["identity"])
            first_row, rows, gone = header["first_row"], rows_of(identity), np.array(header["gone"], np.int64)
            if not isinstance(first_row, int) or not 0 <= first_row < format.MOST_ROWS or not header["rows"] == rows > 0:
                return None
            if not images:
                return PartManifest(identity, first_row, rows, gone)
            lines: list[dict[str, Any]] = []
            left_bytes = most_bytes - file.tell()
            while line := file.readline(left_bytes + 1):
                left_bytes -= len(line)
                content = json.loads(line)
                if left_bytes < 0 or not content["key"]:
                    return None
                lines.append(content)
        found = _joined(lines)
        # The digest is in the run's, which is in every shard: a manifest that agrees with it is the right one.
        if identity["images"] != images_words(found):
            return None
        return PartManifest(identity, first_row, rows, gone, found)
    except _READ_ERRORS as error:
        if isinstance(error, FileNotFoundError):
            return None
        unread = error if isinstance(error, UnreadableError) else why_not_read(path, "the manifest", error)
        # One that unpacks to more than the memory holds is as likely a damaged one.
        if unread is not None and not isinstance(unread, UnsureError):
            raise unread from error
        return None


def join_images(images: Sequence[Manifest]) -> Manifest:
    """Return the images of all parts, one after the other, without a digest."""
    return Manifest(
        root="",
        keys=tuple(key for part in images for key in part.keys),
        labels=tuple(label for part in images for label in part.labels),
        file_bytes=np.concatenate([part.file_bytes for part in images]),
        paths={},
        metadata={name: tuple(value for part in images for value in part.metadata[name]) for name in images[0].metadata},
        skipped={},
        digest="",
    )


def images_words(images: Manifest) -> str:
    """Return what the identity of a part says of its images."""
    return f"{len(images)} rows, digest {images.digest}"


def parse_identity(found: Any) -> Mapping[str, str]:
    """Return the identity of a run from its JSON, or from what was read of that.

    Raises:
        ValueError: It is none that this program writes.
    """
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except RecursionError as error:
            raise ValueError("an identity nested too deeply") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("an identity that no run has")
    if not _IMAGES.fullmatch(found.get("images", "")) or not rows_of(found) <= format.MOST_ROWS:
        raise ValueError("an identity without images")
    if not {"layers", "output.dtype", "output.images_per_shard"} <= found.keys():
        raise ValueError("an identity without layers, dtype or shards")
    step = found["output.images_per_shard"]
    if not re.fullmatch(r"\d{1,10}", step) or not 1 <= int(step) <= format.MOST_SHARD_ROWS:
        raise ValueError(f"{step} images a shard")
    if -(-rows_of(found) // int(step)) > format.MOST_SHARDS:
        raise ValueError(f"{rows_of(found)} rows, {step} a shard")
    return found


def rows_of(identity: Mapping[str, str]) -> int:
    """Return the rows of the part that an identity is of."""
    found = _IMAGES.fullmatch(identity["images"])
    assert found is not None
    return int(found[1])


def checked_parts(digests: Sequence[str], stops: Sequence[int], images_per_shard: int) -> Iterator[tuple[str, int]]:
    """Return the parts that a file names, before their shards are counted out.

    Raises:
        ValueError: No run can have such.
    """
    if len(stops) != len(digests):
        raise ValueError(f"{len(digests)} digests of {len(stops)} parts")
    if not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise ValueError("digests that are none")
    if not 1 <= images_per_shard <= format.MOST_SHARD_ROWS or not 1 <= len(stops) <= format.LARGEST_PART + 1:
        raise ValueError(f"{images_per_shard} images a shard, {len(stops)} parts")
    if not all(first < stop <= format.MOST_ROWS for first, stop in itertools.pairwise([0, *stops])):
        raise ValueError(f"parts that end at rows {stops[:5]}")
    shards = sum(-(-(stop - first) // images_per_shard) for first, stop in itertools.pairwise([0, *stops]))
    if shards > format.MOST_SHARDS:
        raise ValueError(f"{stops[-1]} rows in {shards} shards")
    return zip(digests, stops, strict=True)


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
