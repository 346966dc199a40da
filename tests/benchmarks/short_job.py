"""A short job, start to exit: what starting up costs, and what running it again costs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from .photographs import make_photographs
from .rows import Bench, Line, interleave, row
from .sides import run_ours

IMAGES = 50


@row("short-job", f"relu4_1 of {IMAGES} JPEGs, start to exit, seconds")
def measure(bench: Bench) -> Iterator[Line]:
    """Auto against the TensorFlow backend; and the same command a second time, when everything is there."""
    photographs = make_photographs(bench.folder / "short job", IMAGES)
    output = bench.folder / "short"

    def run(*overrides: str, fresh: bool = True) -> float:
        if fresh:
            shutil.rmtree(output, ignore_errors=True)
        return run_ours(output, f"data.dir={photographs}", "layers=[relu4_1]", *overrides).seconds

    # In this order the last one finds the finished run of auto.
    sides = {
        "tensorflow": lambda: run("runtime.backend=tensorflow"),
        "auto": run,
        "again": lambda: run(fresh=False),
    }
    figures = interleave(sides, bench.turns)
    yield Line(
        f"{IMAGES} images, start to exit: runtime.backend=tensorflow",
        "s",
        figures["auto"],
        figures["tensorflow"],
        False,
        goal=1.0,
    )
    yield Line(
        f"{IMAGES} images, the same command again: its first run",
        *("s", figures["again"], figures["auto"], False),
        goal=1.0,
        notes="the second run finds all shards finished and computes nothing",
    )
