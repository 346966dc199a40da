"""The benchmarks' own workings; nothing here depends on how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .benchmarks import __main__ as door
from .benchmarks import rows
from .benchmarks.rows import Bench, Line, Row, interleave, missing
from .benchmarks.sides import REPOSITORY, Side, environment
from .benchmarks.table import format_table, to_json


def fake_side(figure: float) -> tuple[dict[str, Any], Any]:
    """A side that counts its turns up from a figure, and talks where it should not."""
    turns = iter(range(1000))

    def turn() -> float:
        print("a library says something")
        return figure + next(turns)

    return {"figure": figure}, turn


def broken_side() -> tuple[dict[str, Any], Any]:
    raise ValueError("the side has a mistake")


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


def test_a_side_that_ends_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"exit code 1(.|\n)*ValueError: the side has a mistake"):
        Side(".test_benchmarks:broken_side")


def test_a_missing_rival_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rows.INSTALL, "no_such_package", "pip install no-such-package")
    assert missing(["json"]) == ""
    words = missing(["json", "no_such_package"])
    assert words == "not installed: no_such_package (pip install no-such-package)"
    table = format_table([Line("whole job: a rival", notes=words)])
    assert "| whole job: a rival [1] | -    | -     |       |      |" in table
    assert f"[1] {words}" in table


def test_every_package_that_a_row_asks_for_says_how_it_is_installed() -> None:
    from .benchmarks import bare_network, whole_job

    needs = [needs for _, needs in bare_network.RIVALS.values()] + [script.needs for script in whole_job.SCRIPTS.values()]
    assert {name for packages in needs for name in packages} <= set(rows.INSTALL)


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
    content = json.loads(to_json({"date": "today"}, lines))
    assert content["machine"] == {"date": "today"}
    assert [line["ratio"] for line in content["lines"]] == pytest.approx([2.0, 2 / 3])
    assert content["lines"][0]["ours"] == [20.0]


def test_only_the_rows_asked_for_are_run_and_slow_ones_say_that_they_were_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran = []

    def fake(name: str, asked_for_only: bool = False) -> Row:
        def measure(bench: Bench) -> Iterator[Line]:
            assert bench.folder.is_dir()
            ran.append(name)
            yield Line(f"{name} measured", "s", [1.0] * bench.turns, [2.0] * bench.turns, more_is_better=False)

        return Row(name, f"how fast is {name}", measure, asked_for_only)

    monkeypatch.setattr(door, "ROWS", {row.name: row for row in (fake("one"), fake("two"), fake("hours", True))})
    door.main(["--turns", "3", "--json", str(tmp_path / "results.json")])
    printed = capsys.readouterr().out
    assert ran == ["one", "two"]
    assert "processor: " in printed
    assert "how fast is hours [1]" in printed
    assert "left out: takes many minutes; --only hours or --slow runs it" in printed
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [line["what"] for line in stored["lines"]] == ["one measured", "two measured", "how fast is hours"]
    assert stored["lines"][0]["ours"] == [1.0, 1.0, 1.0]
    door.main(["--only", "hours"])
    assert ran == ["one", "two", "hours"]
    with pytest.raises(SystemExit):
        door.main(["--only", "hour"])
    assert "got 'hour'. Expected one of: hours" in capsys.readouterr().err


def test_the_list_names_every_row() -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "--list"]
    printed = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in printed.splitlines()] == list(rows.ROWS)
    for row in rows.ROWS.values():
        assert row.question in printed
