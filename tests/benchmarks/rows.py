"""The records of the benchmarks: a row of questions, a line of answers, and the register of all rows."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


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


@dataclass(frozen=True, slots=True)
class Row:
    """One claim and what measures it.

    Attributes:
        name: For ``--only``.
        question: What it answers.
        measure: Gives the lines.
        asked_for_only: Runs with ``--slow`` or by its name alone.
    """

    name: str
    question: str
    measure: Callable[[Bench], Iterator[Line]] = field(repr=False)
    asked_for_only: bool = False


ROWS: dict[str, Row] = {}


def row(
    name: str, question: str, *, asked_for_only: bool = False
) -> Callable[[Callable[[Bench], Iterator[Line]]], Callable[[Bench], Iterator[Line]]]:
    """Registers a function as the one that measures this row."""

    def register(measure: Callable[[Bench], Iterator[Line]]) -> Callable[[Bench], Iterator[Line]]:
        assert name not in ROWS, name
        ROWS[name] = Row(name, question, measure, asked_for_only)
        return measure

    return register


def missing(modules: Sequence[str]) -> str:
    """Gives "" where all these packages are installed, else which are not and how to install them."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)} (pip install {' '.join(absent)})" if absent else ""


def interleave(sides: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Measures every side once a turn, so that a slow minute falls on all of them; forwards and backwards (A B C C B A ...).

    Else one side would always come after another that leaves caches full, or memory that a virtual machine has to ask for again.

    Args:
        sides: Name -> what measures it once.
        turns: At least 1.

    Returns:
        Name -> one figure a turn.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in reversed(sides) if turn % 2 else sides:
            figures[name].append(sides[name]())
    return figures
