"""Whether the images of finished shards are still those on the disk: names and sizes cannot tell, SHA-256 can."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from .errors import ImageError, StoreError
from .images.reading import read_image
from .records import Manifest, ShardSpec


def refuse_changed_images(
    folder: Path, manifest: Manifest, shard: ShardSpec, sha256: Sequence[str], created: str, root: str
) -> None:
    """Reads again the images of a finished shard that may have changed since, and refuses to go on where one has.

    An image may have changed if it was written after the shard, or if the shard was made from a folder elsewhere. Where the
    clock has been set back since, nobody can say what was written after it.

    Args:
        folder: The run folder, for the message.
        manifest: The rows.
        shard: Which of them the shard holds.
        sha256: (rows of the shard) of the files as they were read, hex; ``""`` where they could not be.
        created: When the shard was finished, ISO 8601.
        root: Data folder that it was made from.

    Raises:
        StoreError: An image has another content than the features were made from.
    """
    finished_seconds = _seconds_of(created)
    for index, digest in zip(range(shard.first, shard.stop), sha256, strict=True):
        record = manifest[index]
        try:
            # Not by way of a Path: thousands are asked a second.
            written = os.stat(record.path).st_mtime if record.source is None else record.source.modified_seconds(record)  # noqa: PTH116
            if root == manifest.root and written < finished_seconds:
                continue
            found = hashlib.sha256(read_image(record)).hexdigest() if digest else ""
        except (OSError, ImageError):
            # Its features are there; that it cannot be read now is no reason to doubt them.
            continue
        if found != digest:
            raise StoreError(
                f"{folder}: an image has changed since its features were made, got another content of {manifest.keys[index]!r}. "
                f"Expected the images of {root!r} as they were. Use another name=..., or output.existing=replace to start again."
            )


def _seconds_of(created: str) -> float:
    """Gives when a shard was finished; 0, before all images, if that cannot be read or is still to come."""
    try:
        seconds = datetime.fromisoformat(created).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
    return seconds if seconds <= time.time() else 0.0
