"""A list of image paths, in: text, CSV or Parquet; a :class:`~pipeline.records.Manifest`, out."""

# Paths stay as they are written, so they are texts here.
# ruff: noqa: PTH100, PTH116, PTH118

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from ..errors import DatasetError, OptionError
from ..records import Manifest
from ..storage import RemotePath, StorageError, is_address, is_web, to_address
from .manifest import CONTROL_CHARACTERS, cell_text, make_manifest, quoted_names, refuse_repeated, valid_text
from .reading import READS_AT_ONCE, RemoteImages

_PARQUET_SUFFIXES = (".parquet", ".pq")
_DELIMITERS = (",", "\t", ";")
# Of a list in a bucket: so many images are asked for one by one. Where there are more, the folder that they share is listed, a
# thousand a request: a million requests take some 25 minutes.
_ASKED_ONE_BY_ONE = 200
# Of a file that cannot be found: a row of no bytes here, and a failed row with its reason later.
_NOTHING = 0, 0.0

Columns = list[tuple[str, list[str]]]


def read_list(listing: Path, base: Path | None = None, log: Callable[[str], None] = lambda line: None) -> Manifest:
    """Read the images that a text, CSV or Parquet file names, in its order; list and images may be at addresses.

    Text: one path a line, taken as it stands; empty lines and those that begin with ``#`` are passed over. CSV (extension
    ``.csv`` or ``.tsv``, or a first line that holds a column ``path``): ``label`` is the label, other columns become metadata.
    Parquet (extension ``.parquet`` or ``.pq``): likewise, as Arrow writes numbers and times; columns of lists, records and bytes
    are left out, and ``log`` takes a line about them.

    Relative paths are relative to ``base``, else to the list's own folder. Keys are relative to that folder too; images outside
    it have their absolute path or their address as key. Files that do not exist are rows.

    Raises:
        OptionError: It is Parquet, and Arrow is not installed.
        DatasetError: The list cannot be read, is none, is empty, or names an image twice; the storage refuses.
    """
    columns = _read_columns(listing, log)
    written = columns.pop("path")
    folder = listing.parent if base is None else base
    root = str(folder) if is_address(str(folder)) else os.path.abspath(folder)
    places = [_place(root, name) for name in written]
    inside = os.path.join(root, "")
    names = [place if is_address(place) else os.path.normpath(place).replace(os.sep, "/") for place in places]
    names = [name.removeprefix(inside) for name in names]
    refuse_repeated("data.list", names)
    keys = list(map(valid_text, names))
    is_remote = any(map(is_address, places))
    # Without its "..", a path through a link may mean another file: where there is one, the path is kept as written.
    paths = {
        row: place
        for row, (key, name, place) in enumerate(zip(keys, names, places, strict=True))
        if key != name or ".." in place or (is_remote and name == place)
    }
    sizes, seconds = zip(*_sizes_of(places), strict=True)
    source = RemoteImages(np.array(seconds), is_list=True) if is_remote else None
    return make_manifest(root, keys, sizes, columns=columns, paths=paths, source=source)


def refuse_all_missing(manifest: Manifest, listing: object) -> None:
    """Refuse, by a ``DatasetError``, a list of which no file is there: its paths are relative to another folder, most likely."""
    if manifest.source is None and not manifest.file_bytes.any() and not any(os.path.lexists(record.path) for record in manifest):
        raise DatasetError(
            f"data.list: none of its {len(manifest)} files was found, got {str(listing)!r}, {quoted_names([manifest[0].path])}. "
            f"Expected lines of a path alone, absolute or relative to {manifest.root!r}. Set data.dir=FOLDER to another folder; "
            "labels need a CSV file whose first line is path,label."
        )


def _place(root: str, name: str) -> str:
    """Return the address or the path of an entry of a list."""
    if is_address(name):
        return str(to_address(name))
    if name.startswith("/") or not is_address(root):
        return os.path.join(root, name)
    protocol, _, rest = root.partition("://")
    return f"{protocol}://{posixpath.normpath(f'{rest}/{name}')}"


def _sizes_of(places: Sequence[str]) -> list[tuple[int, float]]:
    """Return bytes, and when they were written in seconds since 1970, of addresses and paths: nothing where nothing is."""
    stored = {place for place in places if is_address(place) and not is_web(place)}
    listed = stored if len(stored) > _ASKED_ONE_BY_ONE else set[str]()
    found = dict.fromkeys(listed, _NOTHING)
    try:
        for _, group in groupby(sorted(listed), lambda place: place.split("/")[:3]):
            folder = posixpath.dirname(posixpath.commonprefix([*group]))
            with suppress(FileNotFoundError):
                for name, size_bytes, written in RemotePath(folder).find_files():
                    found[f"{folder}/{name}"] = size_bytes, written
        with ThreadPool(READS_AT_ONCE if stored else 1) as pool:
            return pool.map(lambda place: found[place] if place in listed else _size(place), places)
    except StorageError as error:
        raise DatasetError(str(error)) from error


def _size(place: str) -> tuple[int, float]:
    # Web servers are not asked: it takes as long as to get an image, and the same list must be the same run whatever they answer.
    if is_web(place):
        return _NOTHING
    try:
        info = RemotePath(place).stat() if is_address(place) else os.stat(place)
    except StorageError:
        raise
    except (OSError, ValueError):
        return _NOTHING
    return (info.st_size if stat.S_ISREG(info.st_mode) else 0), info.st_mtime


def _read_columns(path: Path, log: Callable[[str], None]) -> dict[str, list[str]]:
    """Return the columns of a list, ``path`` among them; see :func:`read_list`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a regular file")
        columns = _read_parquet(path, log) if path.name.lower().endswith(_PARQUET_SUFFIXES) else _read_text(path)
        header, paths = [name for name, _ in columns], dict(columns).get("path", [])
        if "path" not in header:
            raise ValueError(f"no column 'path' among [{quoted_names(header)}]")
        if len({*header}) < len(header):
            raise ValueError(f"columns of the same name among [{quoted_names(header)}]")
        if not paths or "" in paths:
            raise ValueError(f"no path in image {paths.index('') + 1}" if paths else "no images")
    except (OSError, ValueError) as error:
        text = " ".join(str(getattr(error, "strerror", None) or error).split())[:1000]
        reason = f"cannot be read ({text.lower()})" if isinstance(error, OSError) else text
        raise DatasetError(
            f"data.list: {reason}, got {str(path)!r}. Expected a file of image paths, as UTF-8 text, or as CSV or Parquet with a "
            "column path. Check the path, or mend the file; data.dir takes a folder."
        ) from error
    return dict(columns)


def _read_text(path: Path) -> Columns:
    """Return the columns of a text or CSV file; raise ValueError where it is none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start}; from Windows? iconv -f cp1252 or utf-16 -t utf-8)") from error
    if control := re.search(CONTROL_CHARACTERS, text):
        raise ValueError(f"not text (character {control[0]!r})")
    first_line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    marks = [mark for mark in _DELIMITERS if "path" in [name.strip(' "') for name in first_line.split(mark)]]
    delimiter = marks[0] if marks else {".csv": ",", ".tsv": "\t"}.get(path.name[-4:].lower())
    if delimiter is None:
        return [("path", [line for line in re.split(r"\r\n|\r|\n", text) if line.strip() and not line.startswith("#")])]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        for row in filter(None, reader):
            rows.append(row)
            if len(row) != len(rows[0]):
                raise csv.Error(f"{len(row)} fields where the header has {len(rows[0])}")
    except csv.Error as error:
        raise ValueError(
            f'line {reader.line_num}: {error}; fields that hold a separator or a line break need "quotes"'
        ) from error
    # Data frames are often saved with an index, whose column has no name.
    header = [name.strip() or f"column{number}" for number, name in enumerate(rows[0], 1)] if rows else []
    return [(name, [row[place] for row in rows[1:]]) for place, name in enumerate(header)]


def _read_parquet(path: Path, log: Callable[[str], None]) -> Columns:
    """Return the columns of a Parquet file that have texts; raise ValueError where it is none."""
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError as error:
        raise OptionError(
            f"data.list: Parquet needs a further package, got {str(path)!r}. Expected pyarrow. Run `pip install "
            "'deep-feature-pipeline[parquet]'`."
        ) from error
    columns: Columns = []
    try:
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            # Of types that stand for others, as uuid, what lies in the file.
            types = {field.name: getattr(field.type, "storage_type", field.type) for field in file.schema_arrow}
            kept = [name for name, kind in types.items() if not pa.types.is_nested(kind) and "binary" not in str(kind)]
            if left_out := [name for name in types if name not in kept]:
                log(f"{len(left_out)} columns of the list have no text and are left out: {quoted_names(left_out)}")
            table = file.read(kept)
            for name, column in zip(table.column_names, table.columns, strict=True):
                # Asked for m.a, the library gives a field a of a column m too.
                if name in kept:
                    texts = pc.fill_null(pc.cast(column, pa.large_string()), "").to_pylist()
                    # Each text but once in memory: labels repeat.
                    columns.append((cell_text(name), [sys.intern(cell_text(text)) for text in texts]))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"no Parquet file, or damaged ({error})") from error
    return columns
