"""This checkout against another one, in turns: ``python -m tests.benchmarks.checkouts ../before [--turns 5] [--only whole-job]``.

What must not become slower from one commit to another: commands, start to exit. Both sides run with the same Python and packages.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .machine import describe_machine
from .photographs import LARGE_PX, SMALL_PX, WIDE_PX, make_photographs
from .sides import REPOSITORY, Finished, interleave, run_ours, run_program
from .table import Line, format_table

# Name -> photographs, their size, and options.
JOBS = {
    "whole-job": (256, SMALL_PX, ["layers=[relu4_1]"]),
    "all-layers": (1, WIDE_PX, ["layers=all", "data.size=null"]),
    "large-images": (48, LARGE_PX, ["layers=[relu4_1]"]),
}
READING = "reading"


def compare(what: str, sides: dict[str, Callable[[], Finished]], turns: int) -> Iterator[Line]:
    """Gives seconds and peak memory of a command of both checkouts."""
    finished = interleave(sides, turns)
    for words, unit, figure in (
        ("start to exit", "s", lambda run: run.seconds),
        ("peak memory", "GB", lambda run: run.peak_bytes / 1e9),
    ):
        ours, theirs = (list(map(figure, runs)) for runs in finished.values())
        yield Line(f"{what}, {words}", unit, ours, theirs, more_is_better=False)


def measure(name: str, repositories: dict[str, Path], turns: int, folder: Path) -> Iterator[Line]:
    """Gives the lines of a job, or of reading all that a run has stored; each checkout reads its own."""
    count, (width, height), options = JOBS.get(name, JOBS["whole-job"])
    photographs = make_photographs(folder / f"{count} of {width}", count, (width, height))

    def extract(side: str) -> Finished:
        return run_ours(
            folder / side, f"data.dir={photographs}", *options, "output.existing=replace", repository=repositories[side]
        )

    def read(side: str) -> Finished:
        made = f"from pipeline import open_run; epoch = open_run({str(folder / side)!r}).batches('relu4_1', 32, shuffle=True)"
        return run_program("timeit", "-n4", "-r1", "-s", made, "for batch in epoch: pass", repository=repositories[side])

    if name == READING:
        for side in repositories:
            extract(side)
    what = (
        f"{count} x {width} x {height} px, {' '.join(options)}"
        if name != READING
        else f"four shuffled epochs of {count} rows of relu4_1"
    )
    yield from compare(what, {side: partial(read if name == READING else extract, side) for side in repositories}, turns)


def main() -> None:
    """Measures and prints."""
    names = [*JOBS, READING]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.checkouts", description="Measure against another checkout.")
    parser.add_argument("other", type=Path, help="its folder, e.g. made by: git worktree add ../before COMMIT")
    parser.add_argument("--turns", type=int, default=5, help="of each side (5)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="what to measure")
    given = parser.parse_args()
    if not (given.other / "pipeline").is_dir():
        parser.error(f"{given.other} is no checkout of this project")
    print("\n".join(f"{name}: {text}" for name, text in describe_machine().items()), flush=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="checkouts-") as folder:
        for name in given.only:
            lines += measure(name, {"this": REPOSITORY, "other": given.other.resolve()}, given.turns, Path(folder))
            print(format_table(lines), file=sys.stderr, flush=True)
    print(format_table(lines))


if __name__ == "__main__":
    main()
