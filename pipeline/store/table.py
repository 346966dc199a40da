"""The table of images of a finished run, read column by column when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import StoreError, nearest
from . import shown
from .damage import damaged
from .tables import Column, open_file, read_column


class ColumnError(StoreError, KeyError):
    """There is no such column in the table of images; a KeyError too, as a mapping's users expect."""

    # KeyError's own would put the message in quotes.
    __str__ = StoreError.__str__


class Table(Mapping[str, Column]):
    """The table of images: column -> (N,) array. A column is read when first asked for.

    Args:
        path: Of the index or shard that holds it.
        names: Of the columns.
        rows: How many.
    """

    def __init__(self, path: Path, names: tuple[str, ...], rows: int) -> None:
        self._path = path
        self._names = names
        self._rows = rows
        self._columns: dict[str, Column] = {}

    def __getitem__(self, name: str) -> Column:
        if name not in self._names:
            raise ColumnError(
                f"{self._path}: no such column, got {name!r}. Expected one of: {nearest(str(name), self._names)}. "
                f"The columns are in list(run.images)."
            )
        if name not in self._columns:
            with open_file(self._path) as file:
                values = read_column(file, self._path, name)
            if len(values) < self._rows:
                raise damaged(self._path, f"column {name!r} of /images", f"{len(values)} rows in place of {self._rows}")
            # The run may have been extended since it was opened.
            self._columns[name] = values[: self._rows]
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __repr__(self) -> str:
        try:
            table = shown.text_table(*self._ends()) if self._rows <= shown.LARGEST_READ else ""
        except StoreError as error:
            # Looking at something must be possible whatever is wrong with it.
            table = str(error)
        return f"<{self._caption()}>" + f"\n{table}" * bool(table)

    def _repr_html_(self) -> str:
        try:
            headings, rows = self._ends() if self._rows <= shown.LARGEST_READ else ([], [])
        except StoreError as error:
            headings, rows = [str(error)], []
        return shown.html_table(self._caption(), headings, rows)

    def _ends(self) -> tuple[list[str], list[list[str]]]:
        return shown.image_rows(self, self._rows)

    def _caption(self) -> str:
        return f"table of {self._rows} images: {', '.join(self._names)}"

    def __reduce__(self) -> tuple[type[Table], tuple[Path, tuple[str, ...], int]]:
        return Table, (self._path, self._names, self._rows)
