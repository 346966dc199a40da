"""``python -m tests.benchmarks``. Run the rows asked for and prints one table."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .machine import describe_machine
from .rows import ROWS, Bench, Line
from .table import format_table

# Each registers its rows, in the order of the table.
MODULES = ("bare_network", "whole_job", "overlap", "storing", "training", "reading", "all_layers")
for module in MODULES:
    importlib.import_module(f".{module}", __package__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints. What goes on meanwhile is said on standard error."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure this program against its rivals.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows to measure; --list names them")
    parser.add_argument("--turns", type=int, default=5, help="of each side (5)")
    parser.add_argument("--images", type=int, default=64, help="500 x 375 px JPEGs in the folder of photographs (64)")
    parser.add_argument("--slow", action="store_true", help="also what takes many minutes")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    given = parser.parse_args(arguments)
    if given.turns < 1 or given.images < 8:
        parser.error(f"--turns must be at least 1 and --images at least 8, got {given.turns} and {given.images}")
    if given.list:
        width = max(map(len, ROWS))
        for row in ROWS.values():
            print(f"{row.name:{width}}  {row.question}{' (by name or with --slow only)' if row.asked_for_only else ''}")
        return
    for name in given.only or []:
        if name not in ROWS:
            near = difflib.get_close_matches(name, ROWS, 3, 0) or list(ROWS)
            parser.error(f"--only: there is no such row, got {name!r}. Expected one of: {', '.join(near)}. --list names all")
    print("\n".join(f"{name}: {text}" for name, text in describe_machine().items()), flush=True)
    print(f"turns: {given.turns}, interleaved; figures are medians, the ratio is the median of the turns' ratios\n", flush=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        bench = Bench(given.turns, given.images, Path(folder))
        for row in ROWS.values():
            if given.only and row.name not in given.only:
                continue
            if row.asked_for_only and not (given.slow or given.only):
                lines.append(Line(row.question, notes=f"left out: takes many minutes; --only {row.name} or --slow runs it"))
                continue
            print(f"{row.name}: {row.question} ...", file=sys.stderr, flush=True)
            lines += row.measure(bench)
            # After every row, so that a call that is stopped leaves what it has measured.
            print(format_table(lines), file=sys.stderr, flush=True)
    print(format_table(lines))


if __name__ == "__main__":
    main()
