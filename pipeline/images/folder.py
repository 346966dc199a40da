"""A folder of images, here or at an address, in; a :class:`~pipeline.records.Manifest`, out. No image is opened, only sized."""

# Paths are strings here: a million Path objects would take longer than all the rest, and Path would normalise names.
# ruff: noqa: PTH100, PTH112, PTH118, PTH208

from __future__ import annotations

import contextlib
import heapq
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from ..records import Manifest
from ..storage import RemotePath
from .manifest import SYSTEM_FOLDERS, make_manifest, no_images, quoted_names, readable_keys, reason_to_skip, refuse_repeated
from .reading import RemoteImages

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
    skipped: Counter[str] = Counter()
    unreadable: list[str] = []
    names, sizes = list[str](), list[int]()
    for name, size in _walk(root, skipped, unreadable):
        names.append(name)
        sizes.append(size)
    if unreadable:
        raise DatasetError(
            f"data.dir: {len(unreadable)} folder(s) cannot be read, got {', '.join(sorted(unreadable)[:3])}. Expected folders "
            f"that this user may list; {len(names)} images were seen in others. Mend their permissions."
        )
    if not names:
        raise no_images("data.dir", repr(root), skipped)
    keys, odd = readable_keys(names)
    if odd:
        refuse_repeated("data.dir", keys)
    # Python compares strings by code point, which is the order of their UTF-8 bytes.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    paths = {row: os.path.join(root, names[old]) for row, old in enumerate(order) if old in odd}
    return make_manifest(
        root, [keys[old] for old in order], [sizes[old] for old in order], columns={}, paths=paths, skipped=skipped
    )


def list_address(folder: RemotePath) -> Manifest:
    """List the images below an address as :func:`list_folder` does below a folder: same order, same rules.

    Raises:
        DatasetError: It cannot be listed, or holds no image.
    """
    found: dict[str, tuple[int, float]] = {}
    skipped: Counter[str] = Counter()
    try:
        for name, size_bytes, written in folder.find_files():
            if reason := reason_to_skip(name):
                skipped[reason] += 1
            else:
                found[name] = size_bytes, written
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DatasetError(
            f"data.dir: cannot be listed, got {error.strerror or error} for {str(folder)!r}. Expected an address that can. Check "
            "the address, the credentials and the network."
        ) from error
    if not found:
        raise no_images("data.dir", repr(str(folder)), skipped)
    keys = sorted(found)
    sizes, written_seconds = zip(*(found[key] for key in keys), strict=True)
    source = RemoteImages(np.array(written_seconds))
    return make_manifest(str(folder), keys, sizes, columns={}, skipped=skipped, source=source)


def _walk(root: str, skipped: Counter[str], unreadable: list[str]) -> Iterator[tuple[str, int]]:
    """Yield the images below a folder: names from there, as the system gives them and possibly not valid Unicode; bytes."""
    visited: set[str] = set()
    folders = [(root, "")]
    # Folders behind links wait until all real ones are listed, and come in the order of their names: which of two
    # names a folder is listed under must not depend on the order in which the system gives them.
    linked: list[tuple[str, str]] = []
    while folders or linked:
        path, prefix = folders.pop() if folders else heapq.heappop(linked)
        real = os.path.realpath(path)
        if real in visited:
            skipped["folder reached twice"] += 1
            continue
        visited.add(real)
        try:
            with os.scandir(path) as listing:
                entries = [*listing]
        except OSError as error:
            unreadable.append(f"{quoted_names([path])} ({(error.strerror or '').lower()})")
            continue
        if prefix and is_run_folder(entry.name for entry in entries):
            skipped["run folder"] += 1
            continue
        pictures = _pictures_of_runs(entries)
        for entry in entries:
            name = entry.name
            if name in pictures:
                skipped["picture of a run"] += 1
            elif _is_folder(entry):
                if reason := "hidden folder" if name.startswith(".") else "system folder" if name in SYSTEM_FOLDERS else "":
                    skipped[reason] += 1
                elif entry.is_symlink():
                    heapq.heappush(linked, (entry.path, f"{prefix}{name}/"))
                else:
                    folders.append((entry.path, f"{prefix}{name}/"))
            elif reason := reason_to_skip(name):
                skipped[reason] += 1
            elif (size := _size(entry)) is None:
                skipped["special file"] += 1
            else:
                yield prefix + name, size


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that leads round in a circle, or where this user may not go: a file that cannot be read.
        return False


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the bytes of a file, 0 where it cannot be asked; None of what is no file."""
    try:
        info = entry.stat()
    except OSError:
        return 0
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def is_run_folder(names: Iterable[str]) -> bool:
    """Tell by the names in a folder whether it is a run of this program: two of the three that no data set has together."""
    return len(_NAMES_IN_A_RUN.intersection(names)) >= 2


def _pictures_of_runs(entries: Sequence[os.DirEntry[str]]) -> set[str]:
    """Return the names of pictures that were drawn of run folders, which lie beside them and begin with their names."""
    pictures = [entry.name for entry in entries if entry.name.lower().endswith(".png")]
    folders = {entry.name: entry.path for entry in entries if _is_folder(entry)} if pictures else {}
    if not folders:
        return set()
    runs: list[str] = []
    # Only folders that a picture may be of are looked into.
    for folder in {name[: dash.start()] for name in pictures for dash in re.finditer("-", name)}.intersection(folders):
        with contextlib.suppress(OSError):
            runs += [f"{folder}-"] if is_run_folder(os.listdir(folders[folder])) else []
    return {name for name in pictures if name.startswith(tuple(runs))}
