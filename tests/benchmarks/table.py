"""The one table that a call prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .rows import Line

HEADINGS = ("what", "ours", "rival", "ratio", "goal")


def format_table(lines: Sequence[Line]) -> str:
    """Gives the lines as a Markdown table, and below it the notes that the lines refer to by number."""
    notes: list[str] = []
    cells = [HEADINGS]
    for line in lines:
        mark = ""
        if line.notes:
            if line.notes not in notes:
                notes.append(line.notes)
            mark = f" [{notes.index(line.notes) + 1}]"
        ratio = line.ratio
        goal = "" if line.goal is None else f">= {line.goal:.2f}"
        if ratio is not None and line.goal is not None:
            goal += " reached" if ratio >= line.goal else " MISSED"
        cells.append(
            (
                line.what + mark,
                _figure(line.ours, line.unit),
                _figure(line.rival, line.unit),
                "" if ratio is None else f"{ratio:.2f}",
                goal,
            )
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    rows = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells]
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*rows, "", *(f"[{number}] {note}" for number, note in enumerate(notes, start=1))])


def _figure(figures: Sequence[float], unit: str) -> str:
    if not figures:
        return "-"
    # Three digits, never an exponent.
    middle = statistics.median(figures)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2 if middle >= 1 else 4
    return f"{middle:.{digits}f} {unit}"
