"""``SHA256SUMS``: the digest of every finished file of a run folder, in the format of coreutils. No HDF5 here.

``sha256sum -c SHA256SUMS`` checks a run without this program. What the file means is in :mod:`pipeline.store.format`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event

from ..errors import StoreError
from . import disk, format
from .regular import require_file

# Large enough that hashing runs outside the interpreter's lock for nearly all of its time.
BLOCK_BYTES = 1 << 20
# A line has about a hundred bytes.
MOST_BYTES = 128 << 20

# Source: GNU coreutils manual, sha2 utilities: digest, a space, a space for text mode, the name, a newline. Names with a
# backslash or a newline would be escaped; none of ours has one. Where a newline was lost, a digest lies within the name.
_LINE = re.compile(r"([0-9a-f]{64})  ((?:(?![0-9a-f]{64}  )[^\\\x00-\x1f])+)")


class Digests:
    """The digests of a run folder, as its ``SHA256SUMS`` says; one thread at a time writes them.

    Args:
        folder: The run folder.

    Raises:
        StoreError: The file is there and cannot be read, or is none.

    Attributes:
        path: Of the file.
        by_name: Path from the run folder -> SHA-256, hex.
        unreadable: (number from 1, text) of lines that are none: torn, damaged, or of a file that has one already.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / format.DIGESTS_NAME
        self.by_name: dict[str, str] = {}
        self.unreadable: list[tuple[int, str]] = []
        self._folder = folder
        try:
            content = b""
            if self.path.is_symlink() or self.path.exists():
                # Else a pipe would be waited for.
                require_file(self.path)
                with self.path.open("rb") as file:
                    content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise StoreError(
                    f"{self.path}: too large for a list of digests, got more than {MOST_BYTES} bytes. Expected one line a file. "
                    f"Remove it and run the extraction again, which checks the files and writes it anew."
                )
        except FileNotFoundError:
            pass
        except OSError as error:
            raise disk.write_error(self.path, error) from error
        *whole, torn = content.split(b"\n")
        for number, line in enumerate(whole, 1):
            text = line.decode("utf-8", "backslashreplace")
            found = _LINE.fullmatch(text)
            if found and found[2] not in self.by_name:
                self.by_name[found[2]] = found[1]
            else:
                self.unreadable.append((number, text))
        if torn:
            self.unreadable.append((len(whole) + 1, torn.decode("utf-8", "backslashreplace")))

    def publish(self, path: Path) -> None:
        """Gives ``<name>.partial`` its final name as :func:`disk.publish` does, and adds its line.

        The bytes are hashed as they lie in the system's cache, just written, while the disk is told to take them.

        Raises:
            OSError: The disk refuses.
        """
        partial = disk.partial_path(path)
        with disk.flushing(partial):
            digest = file_digest(partial)
        name = path.relative_to(self._folder).as_posix()
        if name in self.by_name:
            # First: should the power fail here, a missing line is added again; a wrong one would accuse a good file.
            self.drop([name])
        disk.publish(path)
        self.add(name, digest)

    def add(self, name: str, digest: str) -> None:
        """Adds a line, on the disk when this returns.

        Raises:
            OSError: The disk refuses.
        """
        if self.unreadable or self.by_name.get(name, digest) != digest:
            self.by_name[name] = digest
            self._rewrite()
        elif name not in self.by_name:
            self.by_name[name] = digest
            is_new = not self.path.exists()
            with self.path.open("ab") as file:
                file.write(_line(name, digest))
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                disk.sync_folder(self._folder)

    def drop(self, names: Iterable[str]) -> None:
        """Removes the lines of these files, and those that are none; the others stay on the disk throughout.

        Raises:
            OSError: The disk refuses.
        """
        known = [name for name in names if name in self.by_name]
        for name in known:
            del self.by_name[name]
        if known or self.unreadable:
            self._rewrite()

    def drop_missing(self) -> None:
        """Removes the lines of files of the store that are not there, and those that are none.

        Raises:
            OSError: The disk refuses.
        """
        self.drop([name for name in self.by_name if is_own(name) and not (self._folder / name).is_file()])

    def agrees(self, name: str) -> bool:
        """Tells whether a file has a line, is there, and is as its line says."""
        try:
            return name in self.by_name and file_digest(self._folder / name) == self.by_name[name]
        except OSError:
            return False

    def _rewrite(self) -> None:
        partial = disk.partial_path(self.path)
        try:
            partial.write_bytes(b"".join(_line(name, digest) for name, digest in self.by_name.items()))
            disk.publish(self.path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise
        self.unreadable.clear()


def is_own(name: str) -> bool:
    """Tells whether a path from the run folder is that of a file which gets a line."""
    folder, _, file_name = name.rpartition("/")
    if folder:
        return folder == format.SHARD_FOLDER and format.SHARD_NAME.fullmatch(file_name) is not None
    return file_name in format.DIGESTED_NAMES or format.MANIFEST_NAME.fullmatch(file_name) is not None


def file_digest(path: Path, stop: Event | None = None) -> str:
    """Gives the SHA-256 of a file, hex.

    Args:
        path: Of the file.
        stop: Once set, what has been read is enough and the digest means nothing.

    Raises:
        OSError: It cannot be read.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(block)) and not (stop and stop.is_set()):
            digest.update(block[:count])
    return digest.hexdigest()


def _line(name: str, digest: str) -> bytes:
    return f"{digest}  {name}\n".encode()
