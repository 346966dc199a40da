"""This checkout against another one, in turns: ``python -m tests.benchmarks.checkouts ../before [--turns 5] [--only whole-job]``.

What must not become slower from one commit to another. Both sides run with the same Python and packages.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from .bare_network import make_inputs
from .machine import describe_machine
from .photographs import LARGE_PX, WIDE_PX, make_photographs
from .rows import Line, interleave
from .sides import REPOSITORY, Finished, Side, run_ours
from .table import format_table

IMAGES = 256
LARGE_IMAGES = 48


class Pair:
    """Both checkouts.

    Args:
        other: The other's folder.
        turns: Of each.
        folder: Empty; everything is written here.
    """

    def __init__(self, other: Path, turns: int, folder: Path) -> None:
        self.repositories = {"this": REPOSITORY, "other": other}
        self.turns = turns
        self.folder = folder

    def commands(self, what: str, *options: str) -> Iterator[Line]:
        """Gives seconds and peak memory of a command, start to exit."""
        finished: dict[str, list[Finished]] = {name: [] for name in self.repositories}

        def turn(name: str) -> float:
            output = self.folder / "out" / name
            shutil.rmtree(output, ignore_errors=True)
            finished[name].append(run_ours(output, *options, repository=self.repositories[name]))
            shutil.rmtree(output)
            return finished[name][-1].seconds

        interleave({name: lambda name=name: turn(name) for name in self.repositories}, self.turns)
        for unit, figure in (("s", lambda run: run.seconds), ("GB", lambda run: run.peak_bytes / 1e9)):
            ours, theirs = (list(map(figure, finished[name])) for name in ("this", "other"))
            yield Line(f"{what}, {'start to exit' if unit == 's' else 'peak memory'}", unit, ours, theirs, more_is_better=False)

    def sides(self, what: str, unit: str, function: str, rate: Callable[[object], float], **arguments: object) -> Iterator[Line]:
        """Gives the figures of a function of the benchmarks that both checkouts have."""
        with ExitStack() as stack:
            of = {
                name: stack.enter_context(Side(function, repository, **{**arguments, **self._own(arguments, name)}))
                for name, repository in self.repositories.items()
            }
            figures = interleave({name: lambda side=side: rate(side.turn()) for name, side in of.items()}, self.turns)
        yield Line(what, unit, figures["this"], figures["other"])

    def _own(self, arguments: dict[str, object], name: str) -> dict[str, object]:
        """Gives paths that each side writes or has written itself."""
        return {key: f"{value}-{name}" for key, value in arguments.items() if key == "folder"}


def whole_job(pair: Pair) -> Iterator[Line]:
    """256 JPEGs of 500 x 375 px to relu4_1."""
    photographs = make_photographs(pair.folder / "photographs", IMAGES)
    yield from pair.commands(f"{IMAGES} JPEGs to relu4_1", f"data.dir={photographs}", "layers=[relu4_1]")


def all_layers(pair: Pair) -> Iterator[Line]:
    """All 36 layers of one photograph at native size."""
    wide = make_photographs(pair.folder / "wide", 1, WIDE_PX)
    yield from pair.commands("36 layers of one 2560 x 1440 px photograph", f"data.dir={wide}", "layers=all", "data.size=null")


def large_images(pair: Pair) -> Iterator[Line]:
    """Photographs of 12 megapixels to a layer that costs little."""
    large = make_photographs(pair.folder / "large", LARGE_IMAGES, LARGE_PX)
    yield from pair.commands(f"{LARGE_IMAGES} photographs of 12 megapixels to relu4_1", f"data.dir={large}", "layers=[relu4_1]")


def loader(pair: Pair) -> Iterator[Line]:
    """The loader alone, 500 x 375 px JPEGs resized to 224 px."""
    photographs = str(make_photographs(pair.folder / "photographs", IMAGES))
    yield from pair.sides("loader alone, resized", "images/s", "reading:ours", float, photographs=photographs, resize=True)


def writing(pair: Pair) -> Iterator[Line]:
    """The writer alone."""
    path = pair.folder / "activations.npy"
    with Side("storing:activations", path=str(path), inputs=str(make_inputs(pair.folder))):
        pass
    for compression in ("gzip", "none"):
        arguments = {"path": str(path), "folder": str(pair.folder / "written"), "compression": compression}
        yield from pair.sides(f"writing, {compression}", "1/s", "storing:ours", lambda turn: 1 / turn[0], **arguments)  # type: ignore[index]


def reading(pair: Pair) -> Iterator[Line]:
    """Shuffled reading of compressed rows, each checkout its own file."""
    photographs = make_photographs(pair.folder / "epoch", 192)
    runs = {}
    for name, repository in pair.repositories.items():
        runs[name] = pair.folder / f"epoch-{name}"
        run_ours(runs[name], f"data.dir={photographs}", "layers=[relu4_1]", repository=repository)
    for cold in (False, True):
        with ExitStack() as stack:
            of = {
                name: stack.enter_context(Side("training:ours", repository, path=str(runs[name]), shuffled=True, cold=cold))
                for name, repository in pair.repositories.items()
            }
            figures = interleave({name: side.turn for name, side in of.items()}, pair.turns)
        where = "disk" if cold else "memory"
        yield Line(f"shuffled reading from {where}", "rows/s", figures["this"], figures["other"])


ROWS = {
    "whole-job": whole_job,
    "all-layers": all_layers,
    "large-images": large_images,
    "loader": loader,
    "writing": writing,
    "reading": reading,
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.checkouts", description="Measure against another checkout.")
    parser.add_argument("other", type=Path, help="its folder, e.g. made by: git worktree add ../before COMMIT")
    parser.add_argument("--turns", type=int, default=5, help="of each side (5)")
    parser.add_argument("--only", nargs="+", choices=ROWS, help="what to measure")
    given = parser.parse_args()
    if not (given.other / "pipeline").is_dir():
        parser.error(f"{given.other} is no checkout of this project")
    print("\n".join(f"{name}: {text}" for name, text in describe_machine().items()), flush=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="checkouts-") as folder:
        pair = Pair(given.other.resolve(), given.turns, Path(folder))
        for name, measure in ROWS.items():
            if not given.only or name in given.only:
                lines += measure(pair)
                print(format_table(lines), file=sys.stderr, flush=True)
    print(format_table(lines))


if __name__ == "__main__":
    main()
