"""Reading stored features as a training loop does: one shuffled epoch in batches, from the disk and from memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from .photographs import make_photographs
from .rows import Bench, Line, interleave, row
from .sides import Side, run_ours

LAYER = "relu4_1"
# 308 MB of 28 x 28 x 512 float32, each of another cut of a photograph.
ROWS = 192
BATCH = 32

# Side -> function below, what it reads, and the goal from disk.
RIVALS = {
    "h5py, the same file": ("h5py_rows", "gzip/features.h5", 4.0),
    ".npy memory map, uncompressed": ("memory_map", "all.npy", 0.5),
}
COLD = (
    "before each turn the files' pages are dropped from the system's cache (fsync, then posix_fadvise DONTNEED); what a disk, or "
    "the host of a virtual machine, keeps of its own is not"
)
WARM = "the files are in the system's cache"


def ours(path: str, shuffled: bool, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """``run.batches``."""
    from pipeline import open_run

    epoch = open_run(path).batches(LAYER, BATCH, shuffle=shuffled)
    return {}, _passing(lambda: (len(features) for features, _ in epoch), sorted(Path(path).rglob("*.h5")) if cold else [])


def h5py_rows(path: str, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """h5py, a row at a time, into a batch that is used again."""
    import h5py

    dataset = h5py.File(path, "r")[f"features/{LAYER}"]
    return {}, _passing(lambda: _rows(dataset), sorted(Path(path).parent.rglob("shard*.h5")) if cold else [])


def memory_map(path: str, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """NumPy's memory map, likewise; mapped anew each turn, since pages that are mapped are not dropped."""
    return {}, _passing(lambda: _rows(np.load(path, mmap_mode="r")), [Path(path)] if cold else [])


def write_map(run: str, path: str) -> tuple[dict[str, Any], Callable[[], None]]:
    """A side that measures nothing: writes the rows of a run as one array."""
    from pipeline import open_run

    np.save(path, open_run(run).to_numpy(LAYER))
    return {}, lambda: None


@row("training", f"{ROWS} rows of {LAYER} read in batches of {BATCH}, shuffled, rows a second")
def measure(bench: Bench) -> Iterator[Line]:
    """From disk and from memory, against h5py and a memory map."""
    folder = bench.folder / "training"
    folder.mkdir()
    photographs = make_photographs(bench.folder / "for training", ROWS)
    run_ours(folder / "gzip", f"data.dir={photographs}", f"layers=[{LAYER}]")
    with Side("training:write_map", run=str(folder / "gzip"), path=str(folder / "all.npy")):
        pass
    for cold in (True, False):
        with ExitStack() as stack:
            sides = {"ours": stack.enter_context(Side("training:ours", path=str(folder / "gzip"), shuffled=True, cold=cold))}
            for name, (function, file, _) in RIVALS.items():
                sides[name] = stack.enter_context(Side(f"training:{function}", path=str(folder / file), cold=cold))
            figures = interleave({name: side.turn for name, side in sides.items()}, bench.turns)
        for name, (_, _, goal) in RIVALS.items():
            what = f"features shuffled, {'from disk' if cold else 'from memory'}: {name}"
            notes = COLD if cold else WARM
            yield Line(what, "rows/s", figures["ours"], figures[name], goal=goal if cold else None, notes=notes)


def _rows(values: Any) -> Iterator[int]:
    batch = np.empty((BATCH, *values.shape[1:]), np.float32)
    for place, index in enumerate(np.random.default_rng().permutation(len(values)).tolist()):
        batch[place % BATCH] = values[index]
        yield 1


def _passing(epoch: Callable[[], Iterable[int]], cold: list[Path]) -> Callable[[], float]:
    """Gives what times a pass over an epoch, after one that is not timed."""

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
