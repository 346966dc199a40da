"""Writing alone: real activations, computed once, handed over as fast as they are taken."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.machine import usable_cores

from .bare_network import make_inputs
from .sides import in_process, measure_sides
from .table import Bench, Line

LAYER = "relu4_1"
# 256 rows are 411 MB. Without compression as many are written in a fifth of a second; there are more, so that hashing the last
# shard, which nothing is left to do beside, counts for no more than in a job.
ROWS = {"gzip": 256, "none": 1024}
BATCH = 8


def write_activations(path: Path, inputs: Path) -> None:
    """Writes relu4_1 of photographs, (n, 28, 28, 512) float32."""
    from pipeline.network.architectures import VggTable
    from pipeline.network.winograd import prepare_segments

    from .rivals import seeded_weights

    wanted = VggTable("vgg19").resolve([LAYER])
    parts = prepare_segments(seeded_weights(), wanted, pooling="max", kernel_order="hwio", threads=usable_cores())
    np.save(path, np.asarray(parts[LAYER](np.load(inputs))))


def ours(path: Path, folder: Path, compression: str) -> tuple[dict[str, Any], Callable[[], tuple[float, int]]]:
    """The program's writer with all cores, from the first row put to the last shard synced and named."""
    from pipeline.records import FeatureBatch
    from pipeline.sharding import plan_images_per_shard
    from pipeline.store.run_folder import open_folder
    from pipeline.store.writer import Writer
    from tests.stored_runs import make_spec, make_statuses

    values = _rows(path, compression)
    step = plan_images_per_shard(values[0].nbytes, len(values))
    spec = make_spec(len(values), {LAYER: values.shape[1:]}, compression=compression, images_per_shard=step)
    statuses = make_statuses(spec)

    def turn() -> tuple[float, int]:
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        with open_folder(folder, spec, "resume") as run_folder:
            began = time.perf_counter()
            writer = Writer(folder, spec, run_folder.missing, usable_cores())
            for first in range(0, len(values), BATCH):
                writer.put_statuses(statuses[first : first + BATCH])
                indices = np.arange(first, first + BATCH)
                writer.put_features(FeatureBatch(LAYER, indices, values[first : first + BATCH]))
            writer.close()
            return time.perf_counter() - began, writer.bytes_stored

    return {}, turn


def h5py_rows(path: Path, file_path: Path, compression: str) -> tuple[dict[str, Any], Callable[[], tuple[float, int]]]:
    """h5py, one row a chunk, gzip of level 4 or none; closed and synced."""
    values = _rows(path, compression)
    filters = {} if compression == "none" else {"compression": "gzip", "compression_opts": 4}

    def turn() -> tuple[float, int]:
        file_path.unlink(missing_ok=True)
        os.sync()
        began = time.perf_counter()
        with h5py.File(file_path, "w") as file:
            dataset = file.create_dataset("features", values.shape, "f4", chunks=(1, *values.shape[1:]), **filters)
            for first in range(0, len(values), BATCH):
                dataset[first : first + BATCH] = values[first : first + BATCH]
        with file_path.open("rb") as written:
            os.fsync(written.fileno())
        return time.perf_counter() - began, file_path.stat().st_size

    return {}, turn


def measure(bench: Bench) -> Iterator[Line]:
    """Rows of relu4_1 handed over as fast as they are taken, MB a second before compression, and MB on the disk."""
    path, folder = bench.folder / "activations.npy", bench.folder / "storing"
    in_process(write_activations, path, make_inputs(bench.folder))
    for compression, goal in (("gzip", 8.0), ("none", None)):
        sides = {
            "ours": partial(ours, path, folder, compression),
            "h5py": partial(h5py_rows, path, path.with_suffix(".h5"), compression),
        }
        figures, _ = measure_sides(sides, bench.turns)
        megabytes = ROWS[compression] * np.load(path, mmap_mode="r")[0].nbytes / 1e6
        rates = [[megabytes / seconds for seconds, _ in figures[name]] for name in sides]
        stored = [[stored_bytes / 1e6 for _, stored_bytes in figures[name]] for name in sides]
        notes = "each side syncs its file to the disk, within the time; activations of photographs by untrained weights"
        yield Line(f"writing, {compression}: h5py", "MB/s", *rates, goal=goal, notes=notes)
        if compression == "gzip":
            yield Line("size, gzip: h5py, gzip 4", "MB", *stored, more_is_better=False, notes=f"of {megabytes:.0f} MB")


def _rows(path: Path, compression: str) -> NDArray[np.float32]:
    """Gives the images there are, over and over, but each in memory of its own, so that none is in a cache."""
    values, rows = np.load(path), ROWS[compression]
    return np.concatenate([values] * -(-rows // len(values)))[:rows]
