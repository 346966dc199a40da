"""Reading stored features as a training loop does: one shuffled epoch in batches, from the disk and from memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .photographs import make_photographs
from .sides import REPOSITORY, in_process, measure_sides, missing, run_ours
from .table import Bench, Line

LAYER, SHAPE = "relu4_1", (28, 28, 512)
# 308 MB of 28 x 28 x 512 float32, each of another cut of a photograph.
ROWS = 192
BATCH = 32

# Where `make bench` installs the newest h5py, which is newer than TensorFlow allows.
NEWEST = REPOSITORY / ".venv/h5py"

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
    sys.path.insert(0, str(NEWEST))
    import h5py

    dataset = h5py.File(run / "features.h5", "r")[f"features/{LAYER}"]
    return {"version": h5py.__version__}, _passing(lambda: _rows(dataset), sorted(run.rglob("shard*.h5")) if cold else [])


def lance_rows(path: Path, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """Lance's ``take`` of the rows of each batch, by its own threads."""
    import lance

    dataset = lance.dataset(path)

    def epoch() -> Iterator[int]:
        order = np.random.default_rng().permutation(ROWS)
        for start in range(0, ROWS, BATCH):
            column = dataset.take(order[start : start + BATCH].tolist())["row"].combine_chunks()
            yield len(column.flatten().to_numpy().reshape(-1, *SHAPE))

    return {"version": lance.__version__}, _passing(epoch, sorted(path.rglob("*.lance")) if cold else [])


def webdataset_rows(path: Path, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """WebDataset: read in order, mixed in a buffer of two batches, which is no permutation of all rows."""
    import webdataset

    dataset = webdataset.WebDataset(str(path), shardshuffle=False).shuffle(2 * BATCH).decode().to_tuple("npy").batched(BATCH)
    return {"version": webdataset.__version__}, _passing(lambda: (len(rows) for (rows,) in dataset), [path] if cold else [])


def write_lance(run: Path, path: Path) -> None:
    """Writes the rows of a run as Lance stores vectors."""
    import lance
    import pyarrow

    from pipeline import open_run

    rows = open_run(run).to_numpy(LAYER)
    kind = pyarrow.list_(pyarrow.float32(), int(rows[0].size))
    batches = (pyarrow.record_batch({"row": pyarrow.FixedSizeListArray.from_arrays(row.ravel(), type=kind)}) for row in rows)
    schema = pyarrow.schema([("row", kind)])
    lance.write_dataset(pyarrow.RecordBatchReader.from_batches(schema, batches), path)


def write_webdataset(run: Path, path: Path) -> None:
    """Writes the rows of a run as a tar file of .npy files."""
    import webdataset

    from pipeline import open_run

    with webdataset.TarWriter(str(path)) as tar:
        for number, row in enumerate(open_run(run)[LAYER]):
            tar.write({"__key__": f"{number:06}", "npy": row})


# Rival -> its package, what copies the rows for it, what is measured.
COPIES: dict[str, tuple[str, Callable[[Path, Path], None], Callable[..., Any]]] = {
    "Lance, uncompressed": ("lance", write_lance, lance_rows),
    "WebDataset, uncompressed": ("webdataset", write_webdataset, webdataset_rows),
}


def measure(bench: Bench) -> Iterator[Line]:
    """192 rows of relu4_1 read in batches of 32, shuffled, rows a second: from disk and from memory."""
    run = bench.folder / "training/gzip"
    run_ours(run, f"data.dir={make_photographs(bench.folder / 'for training', ROWS)}", f"layers=[{LAYER}]")
    rivals: dict[str, Callable[[bool], Any]] = {"h5py, the same file": partial(h5py_rows, run)}
    for name, (package, copy, read) in COPIES.items():
        if missing([package]):
            yield Line(f"features shuffled: {name}", notes="not installed: `make bench` does so")
            continue
        path = bench.folder / f"training/rows.{package}"
        in_process(copy, run, path)
        rivals[name] = partial(read, path)
    for cold in (True, False):
        sides = {name: partial(prepare, cold) for name, prepare in {"ours": partial(ours, run), **rivals}.items()}
        figures, facts = measure_sides(sides, bench.turns)
        for name in rivals:
            what = f"features shuffled, {'from disk' if cold else 'from memory'}: {name} {facts[name].get('version', '')}".strip()
            goal = 3.0 if cold and name.startswith("h5py") else None
            yield Line(what, "rows/s", figures["ours"], figures[name], goal=goal, notes=COLD if cold else WARM)


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
