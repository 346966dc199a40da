"""``SHA256SUMS``: the digest of every finished file of a run folder, in the format of coreutils. No HDF5 here.

``sha256sum -c SHA256SUMS`` checks a run without this program. What the file means is in :mod:`pipeline.store.format`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable
from pathlib import Path

from ..sharding import Share
from . import damage, disk, format

# Source: GNU coreutils manual, sha2 utilities: digest, a space, a space for text mode, the name, a newline. Names with a
# backslash or a newline would be escaped; none of ours has one. Where a newline was lost, a digest lies within the name.
_LINE = re.compile(r"([0-9a-f]{64})  ((?:(?![0-9a-f]{64}  )[^\\\x00-\x1f])+)")
# Paths from the run folder of all files that get a line.
_OTHERS = "|".join(map(re.escape, format.DIGESTED_NAMES))
OWN = re.compile(f"{format.shard_path(format.SHARD_NAME.pattern)}|{format.MANIFEST_NAME.pattern}|{_OTHERS}")


class Digests:
    """The digests of a run folder, as its ``SHA256SUMS`` says. Threads may publish files at the same time; else one uses it.

    Where several processes write a folder, each has its lines in a file of its own, ``SHA256SUMS-<writer>``, since every change
    writes a file anew. Whoever holds the folder's lock reads these too, and folds them into ``SHA256SUMS``. A name of which two
    files say different things counts as having no line, until the file has been checked.

    Args:
        folder: The run folder.
        writer: Whose lines these are, such as ``3-of-8``; only that file is read then. Empty: of the holder of the lock.

    Raises:
        StoreError: A file is there and cannot be read, or is none; in all methods: the disk refuses.
    """

    def __init__(self, folder: Path, writer: str = "") -> None:
        self.path = folder / format.marked(format.DIGESTS_NAME, writer)
        self.writer = writer
        self._folder = folder
        self._adding = threading.Lock()
        self.by_name = _read(self.path)  # path from the run folder -> SHA-256, hex
        # Also of one that was killed when it had written no line yet.
        names = [] if writer else [name.removesuffix(format.PARTIAL_SUFFIX) for name in disk.names_in(folder)]
        self._of_writers = {
            found[1]: folder / found[0] for name in names if (found := format.WRITER_DIGESTS_NAME.fullmatch(name))
        }
        lines = [line for path in self._of_writers.values() for line in _read(path).items()]
        disputed = {name for name, digest in lines if self.by_name.setdefault(name, digest) != digest}
        for name in disputed:
            del self.by_name[name]

    def publish(self, path: Path, partial: Path | None = None) -> None:
        """Give a file its final name as :func:`disk.publish` does, and add its line; an ``OSError`` if the disk refuses."""
        name = path.relative_to(self._folder).as_posix()
        with self._adding:
            # First: should the power fail here, a missing line is added again; a wrong one would accuse a good file.
            self.drop([name])
        # Several at a time: a large one is hashed, and sent to an address, for seconds.
        digest = disk.publish(path, partial)
        with self._adding:
            self.add(name, digest)

    def add(self, name: str, digest: str) -> None:
        """Add a line, on the disk when this returns."""
        if self.by_name.get(name) != digest:
            self.by_name[name] = digest
            self._write()

    def close(self) -> None:
        """Let threads write no more lines, since the process ends; wait at most a second for one that does so now."""
        self._adding.acquire(timeout=1.0)

    def drop(self, names: Iterable[str]) -> None:
        """Remove the lines of these files; of writers only those that have been folded in. Others stay on the disk throughout."""
        known = self.by_name.keys() & {*names}
        for name in known:
            del self.by_name[name]
        if known:
            self._write()

    def drop_missing(self, besides: Collection[str]) -> None:
        """Remove the lines of files of the store that are not there, or among ``besides``."""
        shards = self._folder / format.SHARD_FOLDER
        # Listed, as asking the system for each of a million files takes minutes.
        with disk.writing(self._folder):
            there = {*disk.names_in(self._folder), *map(format.shard_path, disk.names_in(shards))}
        self.drop(name for name in self.by_name if OWN.fullmatch(name) and name not in there.difference(besides))

    def fold(self, living: Collection[Share] = ()) -> None:
        """Take the lines of writers into ``SHA256SUMS``, and remove the files of those that make none of these shares now."""
        marks = {share.mark for share in living}
        done = [path for writer, path in self._of_writers.items() if writer not in marks]
        if done:
            # First: a kill in between leaves lines twice, which say the same.
            self._write()
            disk.remove(*done, *map(disk.partial_path, done))

    def agrees(self, name: str) -> bool:
        """Tell whether a file has a line, is there, and is as its line says; an ``UnreadableError`` if nobody can tell."""
        path = self._folder / name
        return name in self.by_name and path.is_file() and digest_of(path) == self.by_name[name]

    def _write(self) -> None:
        # All of it anew, whole or not at all: of a thousand lines, 100 kB, it takes a millisecond, of a shard seconds.
        lines = "".join(f"{digest}  {name}\n" for name, digest in self.by_name.items())
        disk.write_file(self.path, lines.encode(), disk.publish)


class RemoteDigests(Digests):
    """Digests of shards that a process far from the folder's lock makes: told to its holder, who adds the lines.

    A kill between the two leaves a whole shard without a line, as a kill of a process that writes its own lines does.
    """

    def add(self, name: str, digest: str) -> None:
        """Keep a digest in :attr:`by_name`."""
        self.by_name[name] = digest


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a finished file, in hex; a ``StoreError`` if it is missing or cannot be read."""
    with damage.reading(path, ""):
        return disk.file_digest(path)


def _read(path: Path) -> dict[str, str]:
    """Return the lines of a file, name -> digest, but for those that are none; nothing if it is not there."""
    if not path.is_symlink() and not path.exists():
        return {}
    lines = map(_LINE.fullmatch, damage.read_file(path).decode("utf-8", "replace").split("\n"))
    return {line[2]: line[1] for line in lines if line}
