"""The SHA-256 of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Event

# hashlib releases the interpreter's lock for buffers above 2 KiB: threads hash at the same time.
BUFFER_BYTES = 1 << 20


def file_digest(path: Path, stop: Event | None = None) -> str:
    """Return the SHA-256 of a file, in hex.

    Args:
        path: Of the file.
        stop: Once set, reading stops and the digest means nothing.

    Raises:
        OSError: The file cannot be read.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BUFFER_BYTES))
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(buffer)) and not (stop and stop.is_set()):
            digest.update(buffer[:count])
    return digest.hexdigest()
