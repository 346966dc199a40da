"""How a call measures, a line of what it found, and the table of all lines."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEADINGS = ("what", "ours", "rival", "ratio", "goal")


@dataclass(frozen=True, slots=True)
class Bench:
    """How this call measures.

    Attributes:
        turns: Of each side, at least 1.
        images: 500 x 375 px JPEGs in the folder of photographs.
        folder: Empty at the start, removed at the end; everything is written here.
    """

    turns: int
    images: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: ours against one rival.

    Attributes:
        what: What was measured, and the rival's name.
        unit: Of both figures.
        ours: One figure a turn; empty where nothing was measured.
        rival: One figure a turn, of the same turns; empty where there is no rival.
        more_is_better: True for a rate, False for seconds and bytes.
        goal: What the ratio must reach, or None.
        notes: What a reader must know to judge it; for a missing rival, how to install it.
    """

    what: str
    unit: str = ""
    ours: Sequence[float] = ()
    rival: Sequence[float] = ()
    more_is_better: bool = True
    goal: float | None = None
    notes: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better ours is: the median of the turns' own ratios."""
        if not self.ours or not self.rival:
            return None
        pairs = zip(self.ours, self.rival, strict=True)
        return statistics.median(ours / rival if self.more_is_better else rival / ours for ours, rival in pairs)

    @property
    def is_reached(self) -> bool | None:
        """Whether the ratio is as large as it must be; None where there is none, or it need not be."""
        return None if self.ratio is None or self.goal is None else self.ratio >= self.goal


def format_table(lines: Sequence[Line]) -> str:
    """Gives the lines as a Markdown table, and below it the notes that the lines refer to by number."""
    notes = list(dict.fromkeys(line.notes for line in lines if line.notes))
    cells = [HEADINGS]
    for line in lines:
        result = {None: "", True: " reached", False: " MISSED"}[line.is_reached]
        goal, ratio = "" if line.goal is None else f">= {line.goal:.2f}{result}", line.ratio
        what = f"{line.what} [{notes.index(line.notes) + 1}]" if line.notes else line.what
        figures = _figure(line.ours, line.unit), _figure(line.rival, line.unit), "" if ratio is None else f"{ratio:.2f}"
        cells.append((what, *figures, goal))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells]
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*rows, "", *(f"[{number}] {note}" for number, note in enumerate(notes, start=1))])


def _figure(figures: Sequence[float], unit: str) -> str:
    if not figures:
        return "-"
    # Three digits; an exponent for errors alone.
    middle = statistics.median(figures)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2 if middle >= 1 else 4
    return f"{middle:.{digits}f} {unit}" if middle >= 0.01 else f"{middle:.1e} {unit}"
