"""A text or CSV file of paths, read into columns; the way to a manifest that begins with a list."""

# Paths stay as they are written, so they are texts here.
# ruff: noqa: PTH118

from __future__ import annotations

import codecs
import csv
import io
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import DatasetError
from .names import RUBBISH, quoted_names

_ENCODINGS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# A line of Caffe's: a path with an extension, and a word or number.
_LABELLED = re.compile(r"(\S.*\.\w+)[ \t]+(\S+)")
# As Python keeps bytes that are not UTF-8.
_OTHER_BYTES = re.compile("[\udc80-\udcff]")
_DELIMITERS = (",", "\t", ";")

# Ten million images with long paths and some columns. A list is read whole.
MAX_LIST_BYTES = 2**31
MOST_COLUMNS = 1000


def read_text_list(path: Path) -> dict[str, list[str]]:
    """Gives the columns of a list, ``path`` among them.

    Raises:
        DatasetError: See :func:`~pipeline.images.manifest.read_list`.
    """
    text = _read_text(path)
    delimiter = _delimiter(path, text)
    if delimiter is None:
        return {"path": [line for line in re.split(r"\r\n|\r|\n", text) if line.strip() and not line.startswith("#")]}
    return _read_columns(path, text, delimiter)


def refuse_empty(written: Sequence[str], path: object) -> None:
    """Refuses a list without paths.

    Raises:
        DatasetError: It is one.
    """
    if not written:
        raise DatasetError(f"data.list: no paths in the list, got {str(path)!r}. Expected one path a line. Check the file.")


def refuse_repeated(names: Sequence[str]) -> None:
    """Refuses a list that names an image twice.

    Raises:
        DatasetError: It does.
    """
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise DatasetError(
            f"data.list: {len(twice)} images are named more than once, got {quoted_names(twice[:3])}. Expected each "
            "image once. Remove the repeated lines."
        )


def as_written_elsewhere(
    written: list[str], root: str, has_labels: bool, log: Callable[[str], None]
) -> tuple[list[str], list[str]]:
    r"""Return the paths of a list that another program or system has written, and the labels that stand behind them.

    Lines that are no file's are read with ``/`` for ``\``, without their last word, or both, if any of them is a file's then.

    Args:
        written: The paths of the list, as they stand there.
        root: What relative ones are relative to.
        has_labels: Whether a last word may be a label, as in Caffe's lists.
        log: Takes a line about what was understood.

    Returns:
        The paths, and as many labels, "" where there is none; no labels at all where no line has one.
    """

    def is_there(name: str) -> bool:
        return os.path.lexists(os.path.join(root, name))

    # Those that can be meant otherwise; of all others nothing is asked.
    odd = [row for row, line in enumerate(written) if "\\" in line or (has_labels and _LABELLED.fullmatch(line))]
    odd = [row for row in odd if not is_there(written[row])]
    for slashes, labels in ((True, False), (False, True), (True, True)):
        paths, words = [*written], [""] * len(written)
        for row in odd:
            match = _LABELLED.fullmatch(written[row]) if labels and has_labels else None
            if match:
                paths[row], words[row] = match[1], match[2]
            if slashes:
                paths[row] = paths[row].replace("\\", "/")
        if any(paths[row] != written[row] and is_there(paths[row]) for row in odd):
            changed = sum(paths[row] != written[row] for row in odd)
            how = " and ".join(["\\ as /"] * slashes + ["the last word as the label"] * labels)
            log(f"data.list: {how} in {changed} lines, whose files are there then, e.g. {quoted_names([written[odd[0]]])}")
            return paths, words if any(words) else []
    return written, []


def refuse_other_encoding(written: Sequence[str], columns: Mapping[str, Sequence[str]], path: Path, root: str) -> None:
    """Refuse a list that is not UTF-8, unless what its bytes name is there: names of files may have any bytes.

    Raises:
        DatasetError: A file is there under the name that Windows' encoding gives; or a label or another column is not UTF-8.
    """
    odd = [name for name in written if not name.isascii() and _OTHER_BYTES.search(name)]
    wrong = [name for name in odd if os.path.lexists(os.path.join(root, _as_cp1252(name)))]
    cells = itertools.chain.from_iterable(columns.values())
    wrong += [cell for cell in cells if not cell.isascii() and _OTHER_BYTES.search(cell)]
    if wrong:
        raise DatasetError(
            f"data.list: not UTF-8 text but perhaps cp1252, got {quoted_names([_as_cp1252(wrong[0])])} if it is, in "
            f"{str(path)!r}. Expected UTF-8. Convert it: iconv -f cp1252 -t utf-8 OLD > NEW."
        )


def _as_cp1252(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("cp1252", "replace")


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
    if rubbish := re.search(RUBBISH, text):
        raise DatasetError(f"data.list: not text (character {rubbish[0]!r}), {what} Check the path; data.dir takes a folder.")
    return text


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
            if len(row) > MOST_COLUMNS:
                raise csv.Error(f"{len(row):,} columns, more than {MOST_COLUMNS:,}")
            if row and len(row) != len(rows[0]):
                raise csv.Error(f"{len(row)} fields where the header has {len(rows[0])}")
    except csv.Error as error:
        raise DatasetError(
            f"data.list: line {reader.line_num}: {error}, got {str(path)!r}. Expected CSV with as many fields in each line as in "
            'the first. Put fields that hold a separator or a line break in "quotes".'
        ) from error
    # Data frames are often saved with an index, whose column has no name.
    header = [name.strip() or f"column{number}" for number, name in enumerate(rows[0], 1)] if rows else []
    require_columns(path, header)
    columns = {name: [row[place] for row in rows[1:]] for place, name in enumerate(header)}
    require_paths(path, columns)
    return columns


def require_columns(path: Path, header: Sequence[str]) -> None:
    """Refuses a list whose columns are not those of a list.

    Raises:
        DatasetError: None is called ``path``, or two have the same name.
    """
    if "path" not in header:
        got = f"[{quoted_names(header)}]" if header else "an empty file"
        raise DatasetError(
            f"data.list: {str(path)!r}: no column 'path', got {got}. Expected a first line that "
            "names the columns, one of them path. Add it, or rename the column that holds the paths."
        )
    if len(set(header)) < len(header):
        got = quoted_names([name for name, count in Counter(header).items() if count > 1])
        raise DatasetError(
            f"data.list: {str(path)!r}: columns of the same name, got [{got}]. Expected names that occur once. Rename them."
        )


def require_paths(path: Path, columns: Mapping[str, list[str]]) -> None:
    """Refuses a list with rows that name no image.

    Raises:
        DatasetError: A path is empty.
    """
    if "" in columns["path"]:
        raise DatasetError(
            f"data.list: {str(path)!r}: rows without a path, got '' in image {columns['path'].index('') + 1} and "
            f"{columns['path'].count('') - 1} others. Expected a path in each row. Fill it in, or remove the row."
        )
