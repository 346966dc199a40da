"""Reading stored features as a training loop does: one epoch in batches, in order and shuffled, from the disk and from memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .photographs import make_photographs
from .rows import Bench, Line, interleave, missing, row
from .sides import Side, run_ours

LAYER = "relu4_1"
# 308 MB of 28 x 28 x 512 float32, each of another cut of a photograph.
ROWS = 192
BATCH = 32
# Of h5py's own chunks, which hold pieces of 32 rows: reading a row inflates hundreds of them.
ROWS_OF_GUESSED = 8

# Side -> function below and what it reads, of `_make`.
RIVALS = {
    "h5py, the same file": ("h5py_rows", "gzip/features.h5"),
    "h5py, gzip 4, a row a chunk": ("h5py_rows", "row.h5"),
    "h5py, gzip 4, h5py's chunks": ("h5py_rows", "guessed.h5"),
    ".npy memory map, uncompressed": ("memory_map", "all.npy"),
}
GOALS = dict.fromkeys(RIVALS, 4.0) | {".npy memory map, uncompressed": 0.5}

COLD = (
    "before each turn the files' pages are dropped from the system's cache (fsync, then posix_fadvise DONTNEED); what a disk, or "
    "the host of a virtual machine, keeps of its own is not"
)
WARM = "the files are in the system's cache"
WRAPPED = "the same rows through the library's own loop; in turns with run.batches"


class Mode(NamedTuple):
    """How an epoch is read."""

    shuffled: bool
    cold: bool

    def __str__(self) -> str:
        return f"{'shuffled' if self.shuffled else 'in order'}, {'from disk' if self.cold else 'from memory'}"


def ours(path: str, shuffled: bool, cold: bool, how: str = "batches") -> tuple[dict[str, Any], Callable[[], float]]:
    """``run.batches``, or a dataset of PyTorch or TensorFlow over it."""
    from pipeline import open_run

    run = open_run(path)
    if how == "torch":
        from torch.utils.data import DataLoader

        epoch: Any = DataLoader(run.torch_dataset(LAYER, shuffle=shuffled, batch_size=BATCH), batch_size=None)
    elif how == "tensorflow":
        epoch = run.tf_dataset(LAYER, shuffle=shuffled, batch_size=BATCH)
    else:
        epoch = run.batches(LAYER, BATCH, shuffle=shuffled)

    def rows() -> Iterator[int]:
        for batch in epoch:
            yield len(batch[0] if isinstance(batch, tuple) else batch)

    return {}, _passing(lambda: rows(), sorted(Path(path).rglob("*.h5")) if cold else [])


def h5py_rows(path: str, shuffled: bool, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """h5py: a slice a batch, or shuffled a row at a time, into a batch that is used again."""
    import h5py

    file = h5py.File(path, "r")
    dataset = file[LAYER if LAYER in file else f"features/{LAYER}"]
    files = sorted(Path(path).parent.rglob("shard*.h5")) or [Path(path)]
    return {}, _passing(lambda: _batches(dataset, shuffled, Path(path).name == "guessed.h5"), files if cold else [])


def memory_map(path: str, shuffled: bool, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """NumPy's memory map, likewise; mapped anew each turn, since pages that are mapped are not dropped."""
    return {}, _passing(lambda: _batches(np.load(path, mmap_mode="r"), shuffled, False), [Path(path)] if cold else [])


def workers(path: str, shuffled: bool, cold: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """What users of PyTorch write: a dataset that opens the file by h5py in each of two worker processes."""
    import h5py
    from torch.utils.data import DataLoader, Dataset

    class Rows(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return ROWS

        def __getitem__(self, index: int) -> Any:
            if not hasattr(self, "dataset"):
                self.dataset = h5py.File(path, "r")[f"features/{LAYER}"]
            return self.dataset[index]

    loader = DataLoader(Rows(), BATCH, shuffle=shuffled, num_workers=2, persistent_workers=True)
    return {}, _passing(lambda: map(len, loader), sorted(Path(path).parent.rglob("shard*.h5")) if cold else [])


def write_rivals(run: str, folder: str) -> tuple[dict[str, Any], Callable[[], None]]:
    """A side that measures nothing: writes the rows of a run as others do."""
    import h5py

    from pipeline import open_run

    values = open_run(run).to_numpy(LAYER)
    for name, chunks in (("row.h5", (1, *values.shape[1:])), ("guessed.h5", True)):
        with h5py.File(Path(folder, name), "w") as file:
            file.create_dataset(LAYER, data=values, chunks=chunks, compression="gzip", compression_opts=4)
    np.save(Path(folder, "all.npy"), values)
    return {}, lambda: None


@row("training", f"{ROWS} rows of {LAYER} read in batches of {BATCH}, in order and shuffled, rows a second")
def measure(bench: Bench) -> Iterator[Line]:
    """From disk and from memory against h5py and a memory map; then what PyTorch and TensorFlow add."""
    folder = bench.folder / "training"
    _make(folder, make_photographs(bench.folder / "for training", ROWS))
    for mode in (Mode(True, True), Mode(False, True), Mode(True, False), Mode(False, False)):
        sides = {"ours": ("ours", "gzip"), **RIVALS, "ours, uncompressed": ("ours", "none")}
        figures = _measure(bench, folder, mode, sides)
        notes = COLD if mode.cold else WARM
        for rival in RIVALS:
            # Of a memory map from memory nothing is asked: it is memory.
            goal = GOALS[rival] if mode.shuffled and (mode.cold or rival.startswith("h5py")) else None
            yield Line(f"features {mode}: {rival}", "rows/s", figures["ours"], figures[rival], goal=goal, notes=notes)
        map_name = ".npy memory map, uncompressed"
        yield Line(
            f"features {mode}, uncompressed: .npy memory map",
            "rows/s",
            figures["ours, uncompressed"],
            figures[map_name],
            notes=notes,
        )
    mode = Mode(True, False)
    for name, how, needs in (("PyTorch", "torch", ("torch",)), ("tf.data", "tensorflow", ())):
        if absent := missing(needs):
            yield Line(f"features {mode}, run.batches: {name}", notes=absent)
            continue
        sides = {"ours": ("ours", "gzip"), name: (f"ours {how}", "gzip")}
        if how == "torch":
            sides["workers"] = ("workers", "gzip/features.h5")
        figures = _measure(bench, folder, mode, sides)
        yield Line(f"features {mode}, run.batches: its {name} dataset", "rows/s", figures["ours"], figures[name], notes=WRAPPED)
        if how == "torch":
            what = f"features {mode}, PyTorch dataset: DataLoader, 2 workers, h5py"
            yield Line(what, "rows/s", figures[name], figures["workers"], goal=1.0, notes=WARM)


def _measure(bench: Bench, folder: Path, mode: Mode, sides: dict[str, tuple[str, str]]) -> dict[str, list[float]]:
    with ExitStack() as stack:
        turns = {}
        for name, (function, file) in sides.items():
            function, _, how = function.partition(" ")
            further = {"how": how} if how else {}
            process = Side(f"training:{function}", path=str(folder / file), **mode._asdict(), **further)
            turns[name] = stack.enter_context(process).turn
        return interleave(turns, bench.turns)


def _make(folder: Path, photographs: Path) -> None:
    """Extracts features, compressed and not, and writes them as others do."""
    folder.mkdir()
    for compression in ("gzip", "none"):
        run_ours(folder / compression, f"data.dir={photographs}", f"layers=[{LAYER}]", f"output.compression={compression}")
    with Side("training:write_rivals", run=str(folder / "gzip"), folder=str(folder)):
        pass


def _batches(values: Any, shuffled: bool, few: bool) -> Iterator[int]:
    batch: NDArray[np.float32] = np.empty((BATCH, *values.shape[1:]), np.float32)
    if not shuffled:
        for start in range(0, ROWS, BATCH):
            batch[:] = values[start : start + BATCH]
            yield BATCH
        return
    order = np.random.default_rng().permutation(ROWS)[: ROWS_OF_GUESSED if few else ROWS]
    for place, index in enumerate(order.tolist()):
        batch[place % BATCH] = values[index]
        yield 1


def _passing(epoch: Callable[[], Iterable[int]], cold: list[Path]) -> Callable[[], float]:
    """Gives what times a pass over an epoch, after one that is not timed."""

    def turn() -> float:
        for path in cold:
            _drop(path)
        began = time.perf_counter()
        rows = sum(epoch())
        return rows / (time.perf_counter() - began)

    turn()
    return turn


def _drop(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
