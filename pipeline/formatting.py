"""What people read: numbers, sizes and times in words, and tables as a terminal and a notebook show them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from html import escape
from typing import Any

from .errors import printable

# A longer text in a table is cut.
LONGEST_CELL = 60


def words_for_shape(shape: Sequence[int]) -> str:
    """Return the sides with signs of multiplication between them; of a vector ``512 components``."""
    return " × ".join(map(str, shape)) if len(shape) > 1 else counted(shape[0], "component")


def words_for_number(value: float, digits: int = 4) -> str:
    """Return a number with so many digits that count; whole below a million."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.0f}" if 10**digits <= abs(value) < 1e6 else f"{value:.{digits}g}"
    return text.replace("-", "\N{MINUS SIGN}")


def words_for_share(share: float) -> str:
    """Return a share of one in percent; 0 % and 100 % only where it is just that."""
    if not 0 < share < 1:
        return f"{100 * share:.0f} %" if math.isfinite(share) else "–"
    return "<0.1 %" if share < 0.001 else ">99.9 %" if share > 0.999 else f"{100 * share:.1f} %"


def words_for_bytes(count: float) -> str:
    """Return ``1.6 MB``, ``3.2 TB``: decimal units, as disks are sold."""
    if count < 1000:
        return f"{count:.0f} B"
    units = ("kB", "MB", "GB", "TB", "PB")
    power = min(len(units), int(math.log(count, 1000)))
    return f"{count / 1000**power:.1f} {units[power - 1]}"


def words_for_seconds(seconds: float) -> str:
    """Return ``0:03:20``."""
    return str(timedelta(seconds=int(seconds)))


def shortened(text: str, longest: int = LONGEST_CELL) -> str:
    """Return a text in one printable line; one of more characters loses its middle, as both ends of a path tell something."""
    plain, half = printable(text), longest // 2
    return plain if len(plain) <= longest else f"{plain[:half]}…{plain[len(plain) - half :]}"


def words_for_device(attributes: Mapping[str, Any]) -> str:
    """Return what the attributes of a file say of the device that made it: ``gpu, NVIDIA H200, tf32``; "" if nothing."""
    names = {"device": "", "gpu": "", "precision": "", "batch_size": "batch ", "cuda": "CUDA ", "cudnn": "cuDNN "}
    return ", ".join(f"{word}{attributes[name]}" for name, word in names.items() if name in attributes)


def counted(count: int, noun: str) -> str:
    """Return ``1 image``, ``2 images``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def count_causes(errors: Iterable[str]) -> dict[str, int]:
    """Count failed rows by the words before the colon of their reason."""
    return dict(Counter(error.split(":", 1)[0] for error in errors if error))


def text_table(headings: Sequence[str], rows: Iterable[Sequence[str]], to_the_left: int) -> str:
    """Return rows in columns, one below the other; the texts of so many columns to the left, numbers after them to the right."""
    lines = [headings, *([shortened(text) for text in row] for row in rows)]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'<' if number < to_the_left else '>'}{width}}}" for number, width in enumerate(widths))
    return "\n".join(form.format(*line).rstrip() for line in lines)


class Shown(ABC):
    """Something that a prompt and a notebook show as a caption over a table."""

    @abstractmethod
    def _table(self) -> tuple[str, Sequence[str], Iterable[Sequence[str]]]:
        """Return caption, headings and rows."""

    def __repr__(self) -> str:
        caption, headings, rows = self._table()
        return "\n".join(filter(None, [f"<{caption}>", text_table(headings, rows, len(headings))]))

    def _repr_html_(self) -> str:
        caption, headings, rows = self._table()
        head = "".join(f"<th>{escape(text)}</th>" for text in headings)
        body = "".join(f"<tr>{''.join(f'<td>{escape(shortened(text))}</td>' for text in row)}</tr>" for row in rows)
        top = f"<p>{escape(shortened(caption, 400))}</p>"
        return f"<div>{top}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
