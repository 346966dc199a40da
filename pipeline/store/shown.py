"""What a notebook or a prompt shows of a run, a layer and the table of images: text and HTML tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ..errors import printable

# Rows of a long table that are shown at either end.
ENDS = 5
# Of a longer table no values are read to be looked at.
LARGEST_READ = 100_000
# A longer text is cut.
LONGEST_CELL = 60
LAYER_HEADINGS = ("layer", "shape", "dtype", "channels", "stride")


def text_table(headings: Sequence[str], rows: Iterable[Sequence[str]], to_the_left: int | None = None) -> str:
    """Return rows in columns, one below the other; the texts of so many columns to the left, numbers after them to the right."""
    lines = [list(headings), *([_cell(text) for text in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    signs = ["<" if to_the_left is None or column < to_the_left else ">" for column in range(len(headings))]
    padded = ([f"{text:{sign}{width}}" for text, sign, width in zip(line, signs, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


class Shown(ABC):
    """Something that is shown as a caption over a table."""

    @abstractmethod
    def _table(self) -> tuple[str, Sequence[str], Iterable[Sequence[str]]]:
        """Return caption, headings and rows."""

    def __repr__(self) -> str:
        caption, headings, rows = self._table()
        return "\n".join(filter(None, [f"<{caption}>", text_table(headings, rows)]))

    def _repr_html_(self) -> str:
        caption, headings, rows = self._table()
        head = "".join(f"<th>{escape(text)}</th>" for text in headings)
        body = "".join(f"<tr>{''.join(f'<td>{escape(_cell(text))}</td>' for text in row)}</tr>" for row in rows)
        top = f"<p>{escape(_cell(caption, 400))}</p>"
        return f"<div>{top}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def layer_row(layer: Any) -> list[str]:
    """Return the cells of a :class:`~pipeline.store.reader.Layer` under :data:`LAYER_HEADINGS`."""
    shape = " x ".join("native" if side is None else str(side) for side in layer.shape)
    return [layer.name, shape, str(layer.dtype), str(layer.channels), f"{layer.stride_px} px"]


def image_rows(columns: Mapping[str, Any], rows: int) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the first and the last images, and a row of dots for those between.

    Args:
        columns: Name -> (N,) values.
        rows: N.
    """
    places = list(range(rows)) if rows <= 2 * ENDS else [*range(ENDS), None, *range(rows - ENDS, rows)]
    # Why images failed, where some did.
    names = [name for name in columns if name != "error" or any(columns[name])]
    cells = [
        ["..."] * (len(names) + 1) if place is None else [str(place), *(_value(name, columns[name][place]) for name in names)]
        for place in places
    ]
    return ["row", *names], cells


def _value(name: str, value: Any) -> str:
    # The rest of a digest tells a person no more.
    return f"{value[:8]}..." if name == "sha256" and value else str(value)


def _cell(text: str, longest: int = LONGEST_CELL) -> str:
    """Return a text in one line, cut where it is long."""
    plain = printable(text, longest + 1)
    return plain if len(text) <= longest else f"{plain[: longest - 3]}..."
