"""Writing alone: real activations, computed once, handed over as fast as they are taken."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bare_network import make_inputs
from .rows import Bench, Line, interleave, row
from .sides import Side, usable_cores

LAYER = "relu4_1"
# 256 rows are 411 MB. Without compression as many are written in a fifth of a second; there are more, so that hashing the last
# shard, which nothing is left to do beside, counts for no more than in a job.
ROWS = {"gzip": 256, "none": 1024}
BATCH = 8


def activations(path: str, inputs: str) -> tuple[dict[str, Any], Callable[[], None]]:
    """A side that measures nothing: writes relu4_1 of photographs, (n, 28, 28, 512) float32."""
    from pipeline.network.architectures import VggTable
    from pipeline.network.winograd import prepare_segments

    from .rivals import seeded_weights

    wanted = VggTable("vgg19").resolve([LAYER])
    parts = prepare_segments(seeded_weights(), wanted, pooling="max", kernel_order="hwio", threads=usable_cores())
    np.save(path, np.asarray(parts[LAYER](np.load(inputs))))
    return {}, lambda: None


def ours(path: str, folder: str, compression: str) -> tuple[dict[str, Any], Callable[[], list[float]]]:
    """The program's writer with all cores, from the first row put to the last shard synced and named."""
    from pipeline.records import FeatureBatch, ImageStatus
    from pipeline.sharding import plan_images_per_shard
    from pipeline.store.run_folder import open_folder
    from pipeline.store.writer import Writer
    from tests.stored_runs import make_spec

    rows = ROWS[compression]
    values = _rows(path, rows)
    step = plan_images_per_shard(values[0].nbytes, rows)
    spec = make_spec(rows, {LAYER: values.shape[1:]}, compression=compression, images_per_shard=step)

    def turn() -> list[float]:
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        with open_folder(Path(folder), spec, "resume") as run_folder:
            began = time.perf_counter()
            writer = Writer(Path(folder), spec, run_folder.missing, usable_cores())
            for first in range(0, rows, BATCH):
                indices = np.arange(first, first + BATCH)
                writer.put_statuses([ImageStatus(int(index), "", 375, 500, 1, f"{index:064x}") for index in indices])
                writer.put_features(FeatureBatch(LAYER, indices, values[first : first + BATCH]))
            writer.close()
            return [time.perf_counter() - began, writer.bytes_stored]

    return {}, turn


def h5py_rows(path: str, folder: str, compression: str) -> tuple[dict[str, Any], Callable[[], list[float]]]:
    """h5py, one row a chunk, gzip of level 4 or none; closed and synced."""
    import h5py

    rows = ROWS[compression]
    values = _rows(path, rows)
    Path(folder).mkdir(exist_ok=True)
    file_path = Path(folder, "features.h5")
    filters = {} if compression == "none" else {"compression": "gzip", "compression_opts": 4}

    def turn() -> list[float]:
        file_path.unlink(missing_ok=True)
        os.sync()
        began = time.perf_counter()
        with h5py.File(file_path, "w") as file:
            dataset = file.create_dataset("features", (rows, *values.shape[1:]), "f4", chunks=(1, *values.shape[1:]), **filters)
            for first in range(0, rows, BATCH):
                dataset[first : first + BATCH] = values[first : first + BATCH]
        _sync(file_path)
        return [time.perf_counter() - began, file_path.stat().st_size]

    return {}, turn


@row(
    "writing",
    f"{ROWS['gzip']} or {ROWS['none']} rows of relu4_1 handed over as fast as they are taken, MB a second before compression",
)
def measure(bench: Bench) -> Iterator[Line]:
    """Against h5py, in speed and, compressed, in size."""
    path = bench.folder / "activations.npy"
    with Side("storing:activations", path=str(path), inputs=str(make_inputs(bench.folder))):
        pass
    functions = {"ours": "ours", "h5py": "h5py_rows"}
    row_megabytes = np.load(path, mmap_mode="r")[0].nbytes / 1e6
    stored: dict[str, list[float]] = {}
    for compression, goal in (("gzip", 8.0), ("none", None)):
        with ExitStack() as stack:

            def side(name: str, function: str, compression: str = compression) -> Callable[[], float]:
                folder = str(bench.folder / f"storing {name} {compression}")
                arguments = {"path": str(path), "folder": folder, "compression": compression}
                process = stack.enter_context(Side(f"storing:{function}", **arguments))

                def turn() -> float:
                    seconds, stored_bytes = process.turn()
                    stored[name] = [stored_bytes / 1e6]
                    return ROWS[compression] * row_megabytes / seconds

                return turn

            figures = interleave({name: side(name, function) for name, function in functions.items()}, bench.turns)
        notes = "each side syncs its file to the disk, within the time; activations of photographs by untrained weights"
        yield Line(f"writing, {compression}: h5py", "MB/s", figures["ours"], figures["h5py"], goal=goal, notes=notes)
        if compression == "gzip":
            notes = f"of {ROWS['gzip'] * row_megabytes:.0f} MB"
            yield Line("size, gzip: h5py, gzip 4", "MB", stored["ours"], stored["h5py"], more_is_better=False, notes=notes)


def _rows(path: str, rows: int) -> NDArray[np.float32]:
    """Gives so many rows: the images there are, over and over, but each in memory of its own, so that none is in a cache."""
    values = np.load(path)
    return np.concatenate([values] * -(-rows // len(values)))[:rows]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
