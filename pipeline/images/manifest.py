"""A folder or a list of paths, in; a :class:`~pipeline.records.Manifest`, out: which images, in which order, under which names.

The first stage. No image is opened here, only counted and sized: what cannot be read becomes a failed row later on.
"""

# Paths are strings in this room: a million Path objects would take longer than all the rest, and Path would normalise names.
# ruff: noqa: PTH100, PTH112, PTH116, PTH118, PTH122

from __future__ import annotations

import codecs
import contextlib
import csv
import heapq
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..records import Manifest, digest_images
from .decode import image_extensions

# Folders that file systems keep for themselves; some can be read by nobody else, which is no reason to stop.
SYSTEM_FOLDERS = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN", "__MACOSX"})

_ENCODINGS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_DELIMITERS = (",", "\t", ";")

# Ten million images with long paths and some columns. A list is read whole.
MAX_LIST_BYTES = 2**31
_MOST_COLUMNS = 1000
# Of a message: names in a stranger's list may have megabytes.
_LONGEST_QUOTE = 300


def list_folder(folder: Path) -> Manifest:
    r"""Lists the images below a folder, by extension, in the order of their keys' UTF-8 bytes: the same on every system.

    Links to files and folders are followed; a folder that is reached twice is listed once, by its real name where it has one
    below ``folder``. Hidden names, system folders, other extensions and special files are passed over and counted. A link
    to nothing with an image's extension is a row: somebody wanted that image. Where a name is not valid Unicode, its wrong
    bytes stand in the key as ``\xff``.

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
    keys, odd = _readable(found.keys)
    # Python compares strings by code point, which is the order of their UTF-8 bytes.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    paths = {row: os.path.join(root, found.keys[old]) for row, old in enumerate(order) if old in odd}
    keys = [keys[old] for old in order]
    sizes = np.array(found.sizes, np.int64)[order]
    return _manifest(root, keys, _first_folders(keys), sizes, paths, {}, dict(sorted(found.skipped.items())))


def read_list(path: Path, base: Path | None = None) -> Manifest:
    """Reads the images that a text or CSV file names, in its order.

    Text: one path a line, taken as it stands; empty lines and those that begin with ``#`` are passed over. CSV (extension
    ``.csv`` or ``.tsv``, or a first line that holds a column ``path``): ``label`` is the label, other columns become metadata.
    Relative paths are relative to ``base``, else to the list's own folder. Keys are relative to that folder too; images
    outside it have their absolute path as key. Files that do not exist are rows.

    Raises:
        DatasetError: The list cannot be read, is no text, is empty, has no column ``path``, a line of the wrong length, a column
            whose name is taken, or names an image twice.
    """
    text = _read_text(path)
    delimiter = _delimiter(path, text)
    if delimiter is None:
        columns = {"path": [line for line in re.split(r"\r\n|\r|\n", text) if line.strip() and not line.startswith("#")]}
    else:
        columns = _read_columns(path, text, delimiter)
    written = columns.pop("path")
    if not written:
        raise DatasetError(f"data.list: no paths in the list, got {str(path)!r}. Expected one path a line. Check the file.")
    root = os.path.abspath(path.parent if base is None else base)
    inside = os.path.join(root, "")
    names = [os.path.normpath(os.path.join(root, name)) for name in written]
    names = [(name[len(inside) :] if name.startswith(inside) else name).replace(os.sep, "/") for name in names]
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise DatasetError(
            f"data.list: {len(twice)} images are named more than once, got {_quoted(twice[:3])}. Expected each "
            "image once. Remove the repeated lines."
        )
    keys, odd = _readable(names)
    # Without its "..", a path through a link may mean another file: where there is one, the path is kept as written.
    paths = {row: os.path.join(root, name) for row, name in enumerate(written) if row in odd or ".." in name}
    sizes = np.array([_size(paths.get(row) or os.path.join(root, key)) for row, key in enumerate(keys)], np.int64)
    metadata = {name: tuple(map(_valid, values)) for name, values in columns.items()}
    labels = metadata.pop("label", None) or _first_folders(keys)
    return _manifest(root, keys, labels, sizes, paths, metadata, {})


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
                with os.scandir(path) as entries:
                    for entry in entries:
                        self._take(entry, prefix, folders, linked)
            except OSError as error:
                self.unreadable.append(f"{_quoted([path])} ({(error.strerror or '').lower()})")

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
            usual = extension.isascii() and extension[1:].isalnum() and len(extension) < 12
            self.skipped[f"extension {extension}" if usual else "other extension" if extension else "no extension"] += 1
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


def _first_folders(keys: Sequence[str]) -> list[str]:
    # A label repeats: kept once, however many rows have it. Absolute keys begin with the separator and have none.
    known: dict[str, str] = {"": ""}
    firsts = (key.split("/", 1)[0] if "/" in key else "" for key in keys)
    return [known.setdefault(first, first) for first in firsts]


def _valid(text: str) -> str:
    r"""Gives text that can be encoded: bytes that are not UTF-8 as ``\xff``."""
    if text.isascii():
        return text
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # Half a surrogate pair, which only Windows has in names.
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def _readable(names: Sequence[str]) -> tuple[list[str], frozenset[int]]:
    """Gives valid, still unique keys; and the rows whose key is therefore not the name of the file."""
    keys = list(map(_valid, names))
    odd = sorted((row for row, key in enumerate(keys) if key != names[row]), key=names.__getitem__)
    taken = set(names) if odd else set()
    for row in odd:
        while keys[row] in taken:
            keys[row] += "~"
        taken.add(keys[row])
    return keys, frozenset(odd)


def _size(path: str) -> int:
    # A file that cannot be found is a row of no bytes here, and a failed row with its reason later.
    with contextlib.suppress(OSError, ValueError):
        info = os.stat(path)
        return info.st_size if stat.S_ISREG(info.st_mode) else 0
    return 0


def _read_text(path: Path) -> str:
    what = f"got {str(path)!r}. Expected a text or CSV file of image paths."
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) and not stat.S_ISDIR(info.st_mode):
            raise DatasetError(f"data.list: not a regular file, {what} Write it to a file first.")
        if info.st_size > MAX_LIST_BYTES:
            raise DatasetError(f"data.list: too large ({info.st_size} bytes, limit {MAX_LIST_BYTES} bytes), {what} Divide it.")
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"data.list: cannot be read ({(error.strerror or '').lower()}), {what} Check the path; data.dir takes a folder."
        ) from error
    mark, encoding = next((pair for pair in _ENCODINGS if data.startswith(pair[0])), (b"", "utf-8"))
    try:
        # Names that are not UTF-8 pass through, as they do everywhere in Python.
        text = data[len(mark) :].decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise DatasetError(f"data.list: not {encoding} text (byte {error.start}), {what} Save it as UTF-8.") from error
    if rubbish := re.search(r"[^\t\n\r -\U0010ffff]", text):
        raise DatasetError(f"data.list: not text (character {rubbish[0]!r}), {what} Check the path; data.dir takes a folder.")
    return text


def _quoted(names: Sequence[str]) -> str:
    """Gives the first names, or their beginnings."""
    shown = ", ".join(repr(name[:_LONGEST_QUOTE]) for name in names[:3])
    return f"{shown} and {len(names) - 3} others" if len(names) > 3 else shown


def _delimiter(path: Path, text: str) -> str | None:
    """Gives what separates the fields of a CSV file; None for a plain list of paths."""
    first_line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    for mark in _DELIMITERS:
        if "path" in [name.strip(' "') for name in first_line.split(mark)]:
            return mark
    return {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())


def _read_columns(path: Path, text: str, delimiter: str) -> dict[str, list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            rows += [row] if row else []
            if len(row) > _MOST_COLUMNS:
                raise csv.Error(f"{len(row):,} columns, more than {_MOST_COLUMNS:,}")
            if row and len(row) != len(rows[0]):
                raise csv.Error(f"{len(row)} fields where the header has {len(rows[0])}")
    except csv.Error as error:
        raise DatasetError(
            f"data.list: line {reader.line_num}: {error}, got {str(path)!r}. Expected CSV with as many fields in each line as in "
            'the first. Put fields that hold a separator or a line break in "quotes".'
        ) from error
    # Data frames are often saved with an index, whose column has no name.
    header = [name.strip() or f"column{number}" for number, name in enumerate(rows[0], 1)] if rows else []
    if "path" not in header:
        got = f"[{_quoted(header)}]" if header else "an empty file"
        raise DatasetError(
            f"data.list: {str(path)!r}: no column 'path', got {got}. Expected a first line that "
            "names the columns, one of them path. Add it, or rename the column that holds the paths."
        )
    if len(set(header)) < len(header):
        got = _quoted([name for name, count in Counter(header).items() if count > 1])
        raise DatasetError(
            f"data.list: {str(path)!r}: columns of the same name, got [{got}]. Expected names that occur once. Rename them."
        )
    columns = {name: [row[place] for row in rows[1:]] for place, name in enumerate(header)}
    if "" in columns["path"]:
        raise DatasetError(
            f"data.list: {str(path)!r}: rows without a path, got '' in image {columns['path'].index('') + 1} and "
            f"{columns['path'].count('') - 1} others. Expected a path in each row. Fill it in, or remove the row."
        )
    return columns
