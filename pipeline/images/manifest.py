"""A folder or a list of paths, in; a :class:`~pipeline.records.Manifest`, out: which images, in which order, under which names.

The first stage. No image is opened here, only counted and sized: what cannot be read becomes a failed row later on.
"""

# Paths are strings in this room: a million Path objects would take longer than all the rest, and Path would normalise names.
# ruff: noqa: PTH100, PTH112, PTH116, PTH118, PTH122, PTH208

from __future__ import annotations

import contextlib
import heapq
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..records import Manifest, digest_images
from .decode import image_extensions
from .lists import as_written_elsewhere, read_text_list, refuse_empty, refuse_other_encoding, refuse_repeated
from .names import first_folders, quoted_names, readable_keys, valid_text, words_for_extension
from .parquet import PARQUET_SUFFIXES, read_parquet_list

# Folders that file systems keep for themselves; some can be read by nobody else, which is no reason to stop.
SYSTEM_FOLDERS = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN", "__MACOSX"})
# Files and folders that a run writes.
_NAMES_IN_A_RUN = frozenset({"features.h5", "shards", "manifest.jsonl.gz"})


def list_folder(folder: Path) -> Manifest:
    r"""Lists the images below a folder, by extension, in the order of their keys' UTF-8 bytes: the same on every system.

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
    found = _Found()
    found.walk(root)
    if found.unreadable:
        raise DatasetError(
            f"data.dir: {len(found.unreadable)} folder(s) cannot be read, got {', '.join(sorted(found.unreadable)[:3])}. "
            f"Expected folders that this user may list; {found.files} files were seen in others. Mend their permissions."
        )
    if not found.keys:
        often = sorted(found.skipped.items(), key=lambda item: (-item[1], item[0]))
        skipped = ", ".join(f"{count} {reason}" for reason, count in often[:5]) or "nothing"
        raise DatasetError(
            f"data.dir: no images among {found.files} files, got {root!r}. Expected files with one of the extensions "
            f"{' '.join(sorted(image_extensions()))}. Skipped: {skipped}. Check the path."
        )
    keys, odd = readable_keys(found.keys)
    # Python compares strings by code point, which is the order of their UTF-8 bytes.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    paths = {row: os.path.join(root, found.keys[old]) for row, old in enumerate(order) if old in odd}
    keys = [keys[old] for old in order]
    sizes = np.array(found.sizes, np.int64)[order]
    return _manifest(root, keys, first_folders(keys), sizes, paths, {}, dict(sorted(found.skipped.items())))


def read_list(path: Path, base: Path | None = None, log: Callable[[str], None] = lambda line: None) -> Manifest:
    """Reads the images that a text, CSV or Parquet file names, in its order.

    Text: one path a line, taken as it stands; empty lines and those that begin with ``#`` are passed over. CSV (extension
    ``.csv`` or ``.tsv``, or a first line that holds a column ``path``): ``label`` is the label, other columns become metadata.
    Parquet (extension ``.parquet`` or ``.pq``): likewise, as text; see :func:`~pipeline.images.parquet.read_parquet_list`.
    What another system or Caffe has written is understood; see :func:`~pipeline.images.lists.as_written_elsewhere`.
    Relative paths are relative to ``base``, else to the list's own folder. Keys are relative to that folder too; images
    outside it have their absolute path as key. Files that do not exist are rows.

    Args:
        path: Of the list.
        base: Absolute or relative to the present folder.
        log: Takes a line about columns that are left out, and about how lines were understood.

    Raises:
        DatasetError: The list cannot be read, is no text, is not UTF-8, is empty, has no column ``path``, a line of the wrong
            length, a column whose name is taken, or names an image twice.
    """
    return images_of_list(read_columns(path, log), path, base, log)


def read_columns(path: Path, log: Callable[[str], None]) -> dict[str, list[str]]:
    """Gives the columns of a list, ``path`` among them; see :func:`read_list`."""
    return read_parquet_list(path, log) if path.suffix.lower() in PARQUET_SUFFIXES else read_text_list(path)


def images_of_list(columns: dict[str, list[str]], path: Path, base: Path | None, log: Callable[[str], None]) -> Manifest:
    """Gives the images of a list that has been read; see :func:`read_list`.

    Args:
        columns: Of the list, ``path`` among them.
        path: Of the list.
        base: As there.
        log: As there.
    """
    written = columns.pop("path")
    refuse_empty(written, path)
    root = os.path.abspath(path.parent if base is None else base)
    refuse_other_encoding(written, columns, path, root)
    written, last_words = as_written_elsewhere(written, root, has_labels=not columns, log=log)
    columns |= {"label": last_words} if last_words else {}
    inside = os.path.join(root, "")
    names = [os.path.normpath(os.path.join(root, name)) for name in written]
    names = [(name[len(inside) :] if name.startswith(inside) else name).replace(os.sep, "/") for name in names]
    refuse_repeated(names)
    keys, odd = readable_keys(names)
    # Without its "..", a path through a link may mean another file: where there is one, the path is kept as written.
    paths = {row: os.path.join(root, name) for row, name in enumerate(written) if row in odd or ".." in name}
    sizes = np.array([_size(paths.get(row) or os.path.join(root, key)) for row, key in enumerate(keys)], np.int64)
    metadata = {name: tuple(map(valid_text, values)) for name, values in columns.items()}
    labels = metadata.pop("label", None) or first_folders(keys)
    return _manifest(root, keys, labels, sizes, paths, metadata, {})


def refuse_all_missing(manifest: Manifest, listing: object) -> None:
    """Refuse a list of which no file is there: its paths are relative to another folder, most likely.

    Args:
        manifest: Of the list.
        listing: The list.

    Raises:
        DatasetError: All are missing.
    """
    if manifest.source is None and not manifest.file_bytes.any() and not any(os.path.lexists(record.path) for record in manifest):
        raise DatasetError(
            f"data.list: none of its {len(manifest)} files was found, got {str(listing)!r} with paths such as "
            f"{quoted_names([manifest[0].path])}. Expected absolute paths, or paths relative to {manifest.root!r}. Set "
            "data.dir=FOLDER to the folder that they are relative to."
        )


@dataclass(slots=True)
class _Found:
    """What a walk has found; ``keys`` as the system gave them, possibly not valid Unicode."""

    keys: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    files: int = 0

    def walk(self, root: str) -> None:
        seen: set[tuple[int, int] | str] = set()
        folders = [(root, "")]
        # Folders behind links wait until all real ones are listed, and come in the order of their names: which of two
        # names a folder is listed under must not depend on the order in which the system gives them.
        linked: list[tuple[str, str]] = []
        while folders or linked:
            path, prefix = folders.pop() if folders else heapq.heappop(linked)
            try:
                info = os.stat(path)
                identity = (info.st_dev, info.st_ino) if info.st_ino else os.path.realpath(path)
                if identity in seen:
                    self.skipped["folder reached twice"] += 1
                    continue
                seen.add(identity)
                with os.scandir(path) as found:
                    entries = [*found]
                if prefix and is_run_folder(entry.name for entry in entries):
                    self.skipped["run folder"] += 1
                    continue
                pictures = _pictures_of_runs(entries)
                for entry in entries:
                    if entry.name in pictures:
                        self.skipped["picture of a run"] += 1
                    else:
                        self._take(entry, prefix, folders, linked)
            except OSError as error:
                self.unreadable.append(f"{quoted_names([path])} ({(error.strerror or '').lower()})")

    def _take(self, entry: os.DirEntry[str], prefix: str, folders: list[tuple[str, str]], linked: list[tuple[str, str]]) -> None:
        name = entry.name
        try:
            is_folder = entry.is_dir()
        except OSError:  # A link that leads round in a circle, or where this user may not go: a file that cannot be read.
            is_folder = False
        self.files += not is_folder
        if name.startswith("."):
            self.skipped["hidden folder" if is_folder else "hidden file"] += 1
        elif is_folder and name in SYSTEM_FOLDERS:
            self.skipped["system folder"] += 1
        elif is_folder and entry.is_symlink():
            heapq.heappush(linked, (entry.path, f"{prefix}{name}/"))
        elif is_folder:
            folders.append((entry.path, f"{prefix}{name}/"))
        elif (extension := os.path.splitext(name)[1].lower()) not in image_extensions():
            self.skipped[words_for_extension(extension)] += 1
        else:
            size = 0
            with contextlib.suppress(OSError):
                info = entry.stat()
                size = info.st_size if stat.S_ISREG(info.st_mode) else -1
            if size < 0:
                self.skipped["special file"] += 1
            else:
                self.keys.append(prefix + name)
                self.sizes.append(size)


def is_run_folder(names: Iterable[str]) -> bool:
    """Tell by the names in a folder whether it is a run of this program: two of the three that no data set has together."""
    return len(_NAMES_IN_A_RUN.intersection(names)) >= 2


def _pictures_of_runs(entries: Sequence[os.DirEntry[str]]) -> set[str]:
    """Return the names of pictures that were drawn of run folders, which lie beside them and begin with their names."""
    pictures = [entry.name for entry in entries if entry.name.lower().endswith(".png")]
    if not pictures:
        return set()
    runs = []
    # Only folders that a picture may be of are looked into.
    for entry in entries:
        if any(name.startswith(f"{entry.name}-") for name in pictures) and entry.is_dir():
            with contextlib.suppress(OSError):
                runs += [f"{entry.name}-"] if is_run_folder(os.listdir(entry.path)) else []
    return {name for name in pictures if name.startswith(tuple(runs))}


def _manifest(
    root: str,
    keys: Sequence[str],
    labels: Sequence[str],
    sizes: NDArray[np.int64],
    paths: Mapping[int, str],
    metadata: Mapping[str, tuple[str, ...]],
    skipped: Mapping[str, int],
) -> Manifest:
    digest = digest_images(keys, labels, sizes, metadata)
    return Manifest(root, tuple(keys), tuple(labels), sizes, paths, metadata, skipped, digest)


def _size(path: str) -> int:
    # A file that cannot be found is a row of no bytes here, and a failed row with its reason later.
    with contextlib.suppress(OSError, ValueError):
        info = os.stat(path)
        return info.st_size if stat.S_ISREG(info.st_mode) else 0
    return 0
