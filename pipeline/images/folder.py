"""A folder of images, here or at an address, in; a :class:`~pipeline.records.Manifest`, out. No image is opened, only sized."""

# Paths are strings here: a million Path objects would take longer than all the rest, and Path would normalise names.
# ruff: noqa: PTH100, PTH112, PTH118

from __future__ import annotations

import heapq
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from ..records import Manifest
from ..storage import RemotePath
from .manifest import SYSTEM_FOLDERS, make_manifest, no_images, quoted_names, reason_to_skip, refuse_repeated, valid_text
from .reading import RemoteImages

# Files and folders that a run writes; two of the three are in no data set together.
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
    runs: dict[str, tuple[str, ...]] = {}
    found = list(_walk(root, skipped, unreadable, runs))
    if runs:
        images = [image for image in found if not _is_picture(image[0], runs)]
        skipped += Counter({"picture of a run": len(found) - len(images)})
        found = images
    if unreadable:
        raise DatasetError(
            f"data.dir: {len(unreadable)} folder(s) cannot be read, got {', '.join(sorted(unreadable)[:3])}. Expected folders "
            f"that this user may list; {len(found)} images were seen in others. Mend their permissions."
        )
    if not found:
        raise no_images("data.dir", repr(root), skipped)
    # Python compares strings by code point, which is the order of their UTF-8 bytes.
    keys, names, sizes = zip(*sorted((valid_text(name), name, size) for name, size in found), strict=True)
    refuse_repeated("data.dir", keys)
    paths = {row: os.path.join(root, name) for row, (name, key) in enumerate(zip(names, keys, strict=True)) if name != key}
    return make_manifest(root, keys, sizes, columns={}, paths=paths, skipped=skipped)


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


def _walk(root: str, skipped: Counter[str], unreadable: list[str], runs: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, int]]:
    """Yield the images below a folder: names from there, as the system gives them and possibly not valid Unicode; bytes.

    Fills in what is passed over and why, which folders cannot be read, and the names of run folders by the folder they are in.
    """
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
        if prefix and len(_NAMES_IN_A_RUN.intersection(entry.name for entry in entries)) >= 2:
            skipped["run folder"] += 1
            parent, name = posixpath.split(prefix[:-1])
            runs[parent] = (*runs.get(parent, ()), f"{name}-")
            continue
        for entry in entries:
            name = entry.name
            try:
                is_folder = entry.is_dir()
            except OSError:  # A link that leads round in a circle, or where this user may not go: a file that cannot be read.
                is_folder = False
            if is_folder:
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


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the bytes of a file, 0 where it cannot be asked; None of what is no file."""
    try:
        info = entry.stat()
    except OSError:
        return 0
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def _is_picture(name: str, runs: dict[str, tuple[str, ...]]) -> bool:
    """Tell whether an image is a picture that was drawn of a run: those lie beside its folder and begin with its name."""
    folder, last = posixpath.split(name)
    return last.lower().endswith(".png") and last.startswith(runs.get(folder, ()))
