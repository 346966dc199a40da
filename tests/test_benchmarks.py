"""The benchmarks' own workings; nothing here depends on how fast anything is."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from .benchmarks.__main__ import ROWS, main
from .benchmarks.sides import interleave, measure_sides
from .benchmarks.table import Line, format_table


def fake_side(figure: float) -> tuple[dict[str, Any], Any]:
    """A side that counts its turns up from a figure."""
    turns = iter(range(1000))
    return {"figure": figure}, lambda: figure + next(turns)


def test_sides_are_measured_in_turns_and_the_ratio_is_the_median_of_the_turns_own() -> None:
    called = []

    def turn(name: str, figures: list[float]) -> float:
        called.append(name)
        return figures.pop(0)

    figures = interleave({"ours": partial(turn, "ours", [10.0, 4.0, 9.0]), "rival": partial(turn, "rival", [5.0, 4.0, 3.0])}, 3)
    assert called == ["ours", "rival", "rival", "ours", "ours", "rival"]
    assert figures == {"ours": [10.0, 4.0, 9.0], "rival": [5.0, 4.0, 3.0]}
    assert Line("a rate", "1/s", figures["ours"], figures["rival"]).ratio == 2.0
    assert Line("a time", "s", figures["ours"], figures["rival"], more_is_better=False).ratio == 0.5
    assert Line("no rival", "s", figures["ours"]).ratio is None


def test_each_side_is_prepared_once_in_a_process_of_its_own() -> None:
    figures, facts = measure_sides({"one": partial(fake_side, 2.5), "two": partial(fake_side, 0.0)}, 2)
    assert figures == {"one": [2.5, 3.5], "two": [0.0, 1.0]}
    assert facts == {"one": {"figure": 2.5}, "two": {"figure": 0.0}}


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
