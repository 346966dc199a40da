"""The benchmarks' own workings; nothing here depends on how fast anything is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .benchmarks.__main__ import main
from .benchmarks.rows import ROWS, Line, interleave
from .benchmarks.sides import Side
from .benchmarks.table import format_table


def fake_side(figure: float) -> tuple[dict[str, Any], Any]:
    """A side that counts its turns up from a figure, and talks where it should not."""
    turns = iter(range(1000))

    def turn() -> float:
        print("a library says something")
        return figure + next(turns)

    return {"figure": figure}, turn


def test_sides_are_measured_in_turns_and_the_ratio_is_the_median_of_the_turns_own() -> None:
    called = []

    def side(name: str, figures: Iterator[float]) -> float:
        called.append(name)
        return next(figures)

    ours, rival = iter([10.0, 4.0, 9.0]), iter([5.0, 4.0, 3.0])
    figures = interleave({"ours": lambda: side("ours", ours), "rival": lambda: side("rival", rival)}, 3)
    assert called == ["ours", "rival", "rival", "ours", "ours", "rival"]
    assert figures == {"ours": [10.0, 4.0, 9.0], "rival": [5.0, 4.0, 3.0]}
    assert Line("a rate", "1/s", figures["ours"], figures["rival"]).ratio == 2.0
    assert Line("a time", "s", figures["ours"], figures["rival"], more_is_better=False).ratio == 0.5
    assert Line("no rival", "s", figures["ours"]).ratio is None


def test_a_side_runs_in_a_process_of_its_own_and_what_libraries_print_is_no_figure() -> None:
    with Side(".test_benchmarks:fake_side", figure=2.5) as side:
        assert side.facts == {"figure": 2.5}
        assert [side.turn(), side.turn()] == [2.5, 3.5]


def test_the_table_says_whether_a_goal_is_reached() -> None:
    lines = [
        Line("fast", "images/s", [20.0], [10.0], goal=1.5, notes="a note"),
        Line("large", "MB", [150.0], [100.0], more_is_better=False, goal=1.0, notes="a note"),
    ]
    assert format_table(lines).splitlines() == [
        "| what      | ours          | rival         | ratio | goal            |",
        "|-----------|---------------|---------------|-------|-----------------|",
        "| fast [1]  | 20.0 images/s | 10.0 images/s | 2.00  | >= 1.50 reached |",
        "| large [1] | 150 MB        | 100 MB        | 0.67  | >= 1.00 MISSED  |",
        "",
        "[1] a note",
    ]


def test_the_list_names_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == list(ROWS)
