"""Reading stored features as a training loop does: one shuffled epoch in batches, from the disk and from memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .photographs import make_photographs
from .sides import in_process, measure_sides, run_ours
from .table import Bench, Line

LAYER = "relu4_1"
# 308 MB of 28 x 28 x 512 float32, each of another cut of a photograph.
ROWS = 192
BATCH = 32

COLD = (
    "before each turn the files' pages are dropped from the system's cache (fsync, then posix_fadvise DONTNEED); what a disk, or "
    "the host of a virtual machine, keeps of its own is not"
)
WARM = "the files are in the system's cache"


def ours(run: Path, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """``run.batches``."""
    from pipeline import open_run

    epoch = open_run(run).batches(LAYER, BATCH, shuffle=True)
    return {}, _passing(lambda: (len(features) for features, _ in epoch), sorted(run.rglob("*.h5")) if cold else [])


def h5py_rows(run: Path, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """h5py, a row at a time, into a batch that is used again."""
    import h5py

    dataset = h5py.File(run / "features.h5", "r")[f"features/{LAYER}"]
    return {}, _passing(lambda: _rows(dataset), sorted(run.rglob("shard*.h5")) if cold else [])


def memory_map(path: Path, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """NumPy's memory map, likewise; mapped anew each turn, since pages that are mapped are not dropped."""
    return {}, _passing(lambda: _rows(np.load(path, mmap_mode="r")), [path] if cold else [])


def write_map(run: Path, path: Path) -> None:
    """Writes the rows of a run as one array."""
    from pipeline import open_run

    np.save(path, open_run(run).to_numpy(LAYER))


def measure(bench: Bench) -> Iterator[Line]:
    """192 rows of relu4_1 read in batches of 32, shuffled, rows a second: from disk and from memory."""
    run, array = bench.folder / "training/gzip", bench.folder / "training/all.npy"
    run_ours(run, f"data.dir={make_photographs(bench.folder / 'for training', ROWS)}", f"layers=[{LAYER}]")
    in_process(write_map, run, array)
    # Rival -> its goal from disk.
    goals = {"h5py, the same file": 4.0, ".npy memory map, uncompressed": 0.5}
    for cold in (True, False):
        rivals = dict(zip(goals, (partial(h5py_rows, run, cold), partial(memory_map, array, cold)), strict=True))
        figures, _ = measure_sides({"ours": partial(ours, run, cold), **rivals}, bench.turns)
        for name, goal in goals.items():
            what = f"features shuffled, {'from disk' if cold else 'from memory'}: {name}"
            notes = COLD if cold else WARM
            yield Line(what, "rows/s", figures["ours"], figures[name], goal=goal if cold else None, notes=notes)


def _rows(values: Any) -> Iterator[int]:
    batch = np.empty((BATCH, *values.shape[1:]), np.float32)
    for place, index in enumerate(np.random.default_rng().permutation(len(values)).tolist()):
        batch[place % BATCH] = values[index]
        yield 1


def _passing(epoch: Callable[[], Iterable[int]], cold: Sequence[Path]) -> Callable[[], float]:
    """Gives what times a pass over an epoch, after one that is not timed; ``cold``: files that are dropped from the cache."""

    def turn() -> float:
        for path in cold:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        rows = sum(epoch())
        return rows / (time.perf_counter() - began)

    turn()
    return turn
