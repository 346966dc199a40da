"""Listing and planning many files: seconds and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .rows import Bench, Line, interleave, row
from .sides import Side

LISTED, LISTED_SLOW = 100_000, 1_000_000

FILES_A_FOLDER = 1000


@row("listing", "a folder of 100,000 files (1,000,000 with --slow) listed and planned: seconds and memory")
def measure_listing(bench: Bench) -> Iterator[Line]:
    """Against what a script does to know the same: all paths sorted, and the size of each."""
    count = LISTED_SLOW if bench.slow else LISTED
    folder = _empty_images(bench.folder / "many", count)
    listed = bench.folder / "many.txt"
    listed.write_text("".join(f"many/{number // FILES_A_FOLDER:04d}/{number:07d}.jpg\n" for number in range(count)))
    memory: dict[str, list[float]] = {}

    def side(function: str, **arguments: str) -> Callable[[], float]:
        def turn() -> float:
            # A fresh process each time: memory is its growth.
            with Side(f"scale:{function}", **arguments) as process:
                seconds, grown_bytes = process.turn()
            memory.setdefault(f"{function} {sorted(arguments)}", []).append(grown_bytes / 1e6)
            return float(seconds)

        return turn

    sides = {
        "folder": side("listing", folder=str(folder)),
        "script": side("script", folder=str(folder)),
        "list": side("listing", listed=str(listed)),
    }
    figures = interleave(sides, bench.turns)
    of_folder, of_script, of_list = memory.values()
    notes = "the script: sorted(Path.rglob), the size of each; ours knows labels, keys, a digest and the shards besides"
    what = f"{count:,} files listed and planned"
    yield Line(f"{what}, data.dir: script", "s", figures["folder"], figures["script"], False, goal=1.0, notes=notes)
    yield Line(f"{what}, data.dir, memory: script", "MB", of_folder, of_script, False, goal=1.0, notes=notes)
    yield Line(f"{what}, data.list", "s", figures["list"], more_is_better=False)
    yield Line(f"{what}, data.list, memory", "MB", of_list, more_is_better=False)


def listing(folder: str | None = None, listed: str | None = None) -> tuple[dict[str, Any], Callable[[], list[float]]]:
    """Lists a folder or a list and plans the run."""
    from pipeline.config import check_options
    from pipeline.images.folder import list_folder
    from pipeline.images.lists import read_list
    from pipeline.plan import plan_run

    from .rivals import seeded_weights

    weights = seeded_weights()
    options = check_options(_values(folder, listed))

    def turn() -> list[float]:
        before, began = _resident_bytes(), time.perf_counter()
        manifest = list_folder(Path(folder)) if folder else read_list(Path(str(listed)), None)
        spec = plan_run(options, manifest, weights)
        shards = spec.shards()
        seconds = time.perf_counter() - began
        assert sum(shard.rows for shard in shards) == len(manifest)
        return [seconds, _resident_bytes() - before]

    return {}, turn


def script(folder: str) -> tuple[dict[str, Any], Callable[[], list[float]]]:
    """What scripts do."""

    def turn() -> list[float]:
        before, began = _resident_bytes(), time.perf_counter()
        paths = sorted(Path(folder).rglob("*.jpg"))
        sizes = [path.stat().st_size for path in paths]
        seconds = time.perf_counter() - began
        assert len(sizes) == len(paths)
        return [seconds, _resident_bytes() - before]

    return {}, turn


def _values(folder: str | None, listed: str | None) -> Any:
    from pipeline.config import defaults, nested

    return nested({**defaults(), "data.dir": folder, "data.list": listed, "network.weights": "random"})


def _resident_bytes() -> int:
    # Source: proc(5): the second number is the resident pages.
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _empty_images(folder: Path, count: int) -> Path:
    for number in range(count):
        if number % FILES_A_FOLDER == 0:
            part = folder / f"{number // FILES_A_FOLDER:04d}"
            part.mkdir(parents=True)
        (part / f"{number:07d}.jpg").touch()
    return folder
