"""``python -m tests.benchmarks``. Run the rows asked for and print one table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import all_layers, bare_network, overlap, training, whole_job
from .machine import describe_machine
from .table import Bench, Line, format_table

# In the order of the table. What a row answers is the docstring of its function.
ROWS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "network": bare_network.measure,
    "batches": bare_network.measure_batches,
    "whole-job": whole_job.measure,
    "conditions": whole_job.measure_conditions,
    "reductions": whole_job.measure_reductions,
    "overlap": overlap.measure,
    "training": training.measure,
    "reference": all_layers.measure,
}
# Take many minutes: run with --slow or by name alone.
SLOW = {"reference"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints. What goes on meanwhile is said on standard error."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure this program against its rivals.")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="NAME", help="rows to measure; --list names them")
    parser.add_argument("--turns", type=int, default=5, help="of each side (5)")
    parser.add_argument("--images", type=int, default=64, help="500 x 375 px JPEGs in the folder of photographs (64)")
    parser.add_argument("--slow", action="store_true", help="also what takes many minutes")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    given = parser.parse_args(arguments)
    if given.turns < 1 or given.images < 8:
        parser.error(f"--turns must be at least 1 and --images at least 8, got {given.turns} and {given.images}")
    questions = {name: str(measure.__doc__).partition("\n")[0].rstrip(".") for name, measure in ROWS.items()}
    if given.list:
        for name, question in questions.items():
            print(f"{name:{max(map(len, ROWS))}}  {question}{' (by name or with --slow only)' if name in SLOW else ''}")
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    print("\n".join(f"{name}: {text}" for name, text in describe_machine().items()), flush=True)
    print(f"turns: {given.turns}, interleaved; figures are medians, the ratio is the median of the turns' ratios\n", flush=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        bench = Bench(given.turns, given.images, Path(folder))
        for name in given.only or [name for name in ROWS if given.slow or name not in SLOW]:
            print(f"{name}: {questions[name]} ...", file=sys.stderr, flush=True)
            lines += ROWS[name](bench)
            # After every row, so that a call that is stopped leaves what it has measured.
            print(format_table(lines), file=sys.stderr, flush=True)
    print(format_table(lines))


if __name__ == "__main__":
    main()
