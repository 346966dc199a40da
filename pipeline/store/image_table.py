"""The table of images of a finished run, read column by column when asked for.

Files hold what a list says of its images as text. Here a column of numbers becomes numbers again, see :func:`as_numbers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError, nearest
from ..formatting import Shown
from .damage import damaged
from .tables import Column, open_file, read_column

# The columns of the format as a person wants them; HDF5 has sorted them by name.
_OWN = ("key", "label", "status", "error", "height", "width", "bytes", "sha256")
# Rows of a long table that are shown at either end; of a longer table no values are read to be looked at.
ENDS, LARGEST_READ = 5, 100_000
# No leading zeros, underscores or plus signs: 007 and +49 30 are names of something.
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|-?inf|nan|", re.IGNORECASE)


def as_numbers(texts: Sequence[str]) -> NDArray[np.int64] | NDArray[np.float64] | None:
    """Return a column of texts as numbers, if all of them are.

    Args:
        texts: (N,) values.

    Returns:
        (N,) int64 where all are whole; (N,) float64 where all are numbers, ``nan``, ``inf`` or empty, which becomes NaN; None
        where one is anything else (leading zeros are: 007 is a name), a whole number does not fit 64 bits, or none is a number.
    """
    different = set(texts)
    try:
        if different and all(map(_WHOLE.fullmatch, different)):
            return np.array([*map(int, texts)], np.int64)
    except OverflowError:
        return None
    if all(map(_NUMBER.fullmatch, different)) and any(map(re.compile("[0-9]").search, different)):
        return np.array([float(text or "nan") for text in texts], np.float64)
    return None


class ColumnError(StoreError, KeyError):
    """There is no such column in the table of images; a KeyError too, as a mapping's users expect."""

    # KeyError's own would put the message in quotes.
    __str__ = StoreError.__str__


class ImageTable(Shown, Mapping[str, NDArray[Any]]):
    """The table of images: column -> (N,) array. A column is read when first asked for.

    The columns of a list, ``label`` among them, are int64 or float64 where all their values are numbers, else object arrays of
    str. A label that is a folder of its key is the name of a class, and str whatever it looks like.

    Args:
        path: Of the index or shard that holds it.
        names: Of the columns.
        rows: How many.
    """

    def __init__(self, path: Path, names: Iterable[str], rows: int) -> None:
        self._path = path
        self._names = (*_OWN, *sorted({*names} - {*_OWN}))
        self._rows = rows
        self._columns: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise ColumnError(
                f"{self._path}: no such column, got {name!r}. Expected one of: {nearest(str(name), self._names)}. "
                f"The columns are in list(run.images)."
            )
        if name not in self._columns:
            with open_file(self._path) as file:
                values: NDArray[Any] = read_column(file, self._path, name)
            if len(values) < self._rows:
                raise damaged(self._path, f"column {name!r} of /images", f"{len(values)} rows in place of {self._rows}")
            # The run may have been extended since it was opened.
            values = values[: self._rows]
            if name == "label" or name not in _OWN:
                numbers = as_numbers(values.tolist())
                if numbers is not None and not (name == "label" and _are_folders(values, self["key"])):
                    values = numbers
            self._columns[name] = values
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def _table(self) -> tuple[str, Sequence[str], Iterable[Sequence[str]]]:
        caption = f"table of {self._rows} images: {', '.join(self._names)}"
        try:
            return caption, *(self._ends() if self._rows <= LARGEST_READ else ((), ()))
        except StoreError as error:
            # Looking at something must be possible whatever is wrong with it.
            return caption, [str(error)], []

    def _ends(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and cells of the first and the last images, and a row of dots for those between."""
        # Why images failed, where some did.
        names = [name for name in self if name != "error" or any(self[name])]
        is_long = self._rows > 2 * ENDS
        rows = [*range(ENDS), *range(self._rows - ENDS, self._rows)] if is_long else range(self._rows)
        cells = [[str(row), *(_text(name, self[name][row]) for name in names)] for row in rows]
        if is_long:
            cells.insert(ENDS, ["..."] * (len(names) + 1))
        return ["row", *names], cells


def _text(column: str, value: Any) -> str:
    # The rest of a digest tells a person no more.
    return f"{value:.8}..." if column == "sha256" and value else str(value)


def _are_folders(labels: Column, keys: NDArray[Any]) -> bool:
    return all(label in key.split("/")[:-1] for label, key in zip(labels, keys, strict=True) if label)
