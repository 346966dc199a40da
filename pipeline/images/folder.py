"""A folder of images, here or at an address, in; a :class:`~pipeline.records.Manifest`, out. No image is opened, only sized."""

# Paths are strings here: a million Path objects would take longer than all the rest, and Path would normalise names.
# ruff: noqa: PTH100, PTH112, PTH113, PTH116, PTH118

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from ..records import Manifest
from ..storage import RemotePath
from .manifest import make_manifest, no_images, quoted_names, reason_to_skip, reason_to_skip_folder, refuse_repeated, valid_text
from .reading import RemoteImages


def list_folder(folder: Path) -> Manifest:
    r"""List the images below a folder, by extension, in the order of their keys' UTF-8 bytes: the same on every system.

    Links to files and folders are followed; a folder that is reached twice is listed once, by its real name where it has one
    below ``folder``. Hidden names, system folders, other extensions and special files are passed over and counted; so are run
    folders below it and pictures beside them that begin with their names. A link to nothing with an image's extension is a
    row. Where a name is not valid Unicode, its wrong bytes stand in the key as ``\xff``.

    Raises:
        DatasetError: There is no such folder, or no image in it; it or one below it cannot be read.
    """
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise DatasetError(f"data.dir: no such folder, got {root!r}. Expected a folder of images. Check the path.")
    skipped, unreadable = Counter[str](), list[OSError]()
    found = list(_walk(root, skipped, unreadable))
    if unreadable:
        shut = sorted(f"{quoted_names([error.filename])} ({str(error.strerror).lower()})" for error in unreadable)
        raise DatasetError(
            f"data.dir: {len(shut)} folder(s) cannot be read, got {', '.join(shut[:3])}. Expected folders that can be. "
            "Mend their permissions."
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
    found, skipped = list[tuple[str, int, float]](), Counter[str]()
    try:
        for file in folder.find_files():
            if reason := reason_to_skip(file[0]):
                skipped[reason] += 1
            else:
                found.append(file)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DatasetError(
            f"data.dir: cannot be listed, got {error.strerror or error} for {str(folder)!r}. Expected an address that can. Check "
            "the address, the credentials and the network."
        ) from error
    if not found:
        raise no_images("data.dir", repr(str(folder)), skipped)
    keys, sizes, written_seconds = zip(*sorted(found), strict=True)
    source = RemoteImages(np.array(written_seconds))
    return make_manifest(str(folder), keys, sizes, columns={}, skipped=skipped, source=source)


def _walk(root: str, skipped: Counter[str], unreadable: list[OSError]) -> Iterator[tuple[str, int]]:
    """Yield the images below a folder: names from there, as the system gives them and possibly not valid Unicode; bytes."""
    visited: set[str] = set()
    # Folders behind links wait until all real ones are listed, and come in the order of their names: which of two
    # names a folder is listed under must not depend on the order in which the system gives them.
    waiting = [root]
    while waiting:
        waiting.sort()
        for path, folders, files in os.walk(waiting.pop(0), onerror=unreadable.append):
            if (real := os.path.realpath(path)) in visited:
                skipped["folder reached twice"] += 1
                folders.clear()
                continue
            visited.add(real)
            runs = [name for name in folders if _is_run(os.path.join(path, name))]
            for name in folders.copy():
                if reason := "run folder" if name in runs else reason_to_skip_folder(name):
                    skipped[reason] += 1
                    folders.remove(name)
            # The walk itself follows none.
            waiting += filter(os.path.islink, (os.path.join(path, name) for name in folders))
            prefix = os.path.join(path[len(root) :].lstrip(os.sep), "").replace(os.sep, "/")
            pictures = tuple(f"{name}-" for name in runs)
            for name in files:
                reason = reason_to_skip(name) or ("picture of a run" if name.startswith(pictures) else "")
                size = None if reason else _size(os.path.join(path, name))
                if size is None:
                    skipped[reason or "special file"] += 1
                else:
                    yield prefix + name, size


def _is_run(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "manifest.jsonl.gz")) and os.path.isdir(os.path.join(folder, "shards"))


def _size(path: str) -> int | None:
    """Return the bytes of a file, 0 where it cannot be asked; None of what is no file."""
    try:
        info = os.stat(path)
    except OSError:
        return 0
    return info.st_size if stat.S_ISREG(info.st_mode) else None
