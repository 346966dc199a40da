"""A folder of images, in; a :class:`~pipeline.records.Manifest`, out. No image is opened here, only counted and sized."""

# Paths are strings here: a million Path objects would take longer than all the rest, and Path would normalise names.
# ruff: noqa: PTH100, PTH112, PTH116, PTH118, PTH208

from __future__ import annotations

import contextlib
import heapq
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from ..records import Manifest
from .manifest import SYSTEM_FOLDERS, make_manifest, no_images, quoted_names, readable_keys, reason_to_skip

# Files and folders that a run writes.
_NAMES_IN_A_RUN = frozenset({"features.h5", "shards", "manifest.jsonl.gz"})


def list_folder(folder: Path) -> Manifest:
    r"""List the images below a folder, by extension, in the order of their keys' UTF-8 bytes: the same on every system.

    Links to files and folders are followed; a folder that is reached twice is listed once, by its real name where it has one
    below ``folder``. Hidden names, system folders, other extensions and special files are passed over and counted; so are run
    folders below it and pictures beside them that begin with their names. A link to nothing with an image's extension is a
    row: somebody wanted that image. Where a name is not valid Unicode, its wrong bytes stand in the key as ``\xff``.

    Raises:
        DatasetError: The folder does not exist, is no folder or holds no image; it or one below it cannot be read.
    """
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        what = "not a folder" if os.path.lexists(root) else "no such folder"
        raise DatasetError(f"data.dir: {what}, got {root!r}. Expected a folder of images. Check the path.")
    found = _Files()
    found.walk(root)
    if found.unreadable:
        raise DatasetError(
            f"data.dir: {len(found.unreadable)} folder(s) cannot be read, got {', '.join(sorted(found.unreadable)[:3])}. "
            f"Expected folders that this user may list; {found.seen} files were seen in others. Mend their permissions."
        )
    if not found.names:
        raise no_images("data.dir", f"{found.seen} files", repr(root), found.skipped)
    keys, odd = readable_keys(found.names)
    # Python compares strings by code point, which is the order of their UTF-8 bytes.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    paths = {row: os.path.join(root, found.names[old]) for row, old in enumerate(order) if old in odd}
    sizes = np.array(found.sizes, np.int64)[order]
    return make_manifest(root, [keys[old] for old in order], sizes, columns={}, paths=paths, skipped=found.skipped)


@dataclass(slots=True)
class _Files:
    """What a walk has found; ``names`` below the root, as the system gave them, possibly not valid Unicode."""

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    seen: int = 0

    def walk(self, root: str) -> None:
        visited: set[tuple[int, int] | str] = set()
        folders = [(root, "")]
        # Folders behind links wait until all real ones are listed, and come in the order of their names: which of two
        # names a folder is listed under must not depend on the order in which the system gives them.
        linked: list[tuple[str, str]] = []
        while folders or linked:
            path, prefix = folders.pop() if folders else heapq.heappop(linked)
            try:
                info = os.stat(path)
                identity = (info.st_dev, info.st_ino) if info.st_ino else os.path.realpath(path)
                if identity in visited:
                    self.skipped["folder reached twice"] += 1
                    continue
                visited.add(identity)
                with os.scandir(path) as found:
                    entries = [*found]
                if prefix and is_run_folder(entry.name for entry in entries):
                    self.skipped["run folder"] += 1
                    continue
                pictures = _pictures_of_runs(entries)
                for entry in entries:
                    if entry.name in pictures:
                        self.skipped["picture of a run"] += 1
                    elif reason := self._reason(entry, prefix, folders, linked):
                        self.skipped[reason] += 1
            except OSError as error:
                self.unreadable.append(f"{quoted_names([path])} ({(error.strerror or '').lower()})")

    def _reason(self, entry: os.DirEntry[str], prefix: str, folders: list[tuple[str, str]], linked: list[tuple[str, str]]) -> str:
        """Take an entry; return why it is passed over, "" where it is not."""
        name = entry.name
        try:
            is_folder = entry.is_dir()
        except OSError:  # A link that leads round in a circle, or where this user may not go: a file that cannot be read.
            is_folder = False
        if is_folder:
            if name.startswith(".") or name in SYSTEM_FOLDERS:
                return "hidden folder" if name.startswith(".") else "system folder"
            if entry.is_symlink():
                heapq.heappush(linked, (entry.path, f"{prefix}{name}/"))
            else:
                folders.append((entry.path, f"{prefix}{name}/"))
            return ""
        self.seen += 1
        if reason := reason_to_skip(name):
            return reason
        size = 0
        with contextlib.suppress(OSError):
            info = entry.stat()
            if not stat.S_ISREG(info.st_mode):
                return "special file"
            size = info.st_size
        self.names.append(prefix + name)
        self.sizes.append(size)
        return ""


def is_run_folder(names: Iterable[str]) -> bool:
    """Tell by the names in a folder whether it is a run of this program: two of the three that no data set has together."""
    return len(_NAMES_IN_A_RUN.intersection(names)) >= 2


def _pictures_of_runs(entries: Sequence[os.DirEntry[str]]) -> set[str]:
    """Return the names of pictures that were drawn of run folders, which lie beside them and begin with their names."""
    pictures = [entry.name for entry in entries if entry.name.lower().endswith(".png")]
    runs = []
    # Only folders that a picture may be of are looked into.
    for entry in entries if pictures else ():
        if any(name.startswith(f"{entry.name}-") for name in pictures) and entry.is_dir():
            with contextlib.suppress(OSError):
                runs += [f"{entry.name}-"] if is_run_folder(os.listdir(entry.path)) else []
    return {name for name in pictures if name.startswith(tuple(runs))}
