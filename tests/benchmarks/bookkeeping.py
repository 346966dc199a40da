"""What a run costs besides its images: planning, dividing, digests, settling and the index, against the number of shards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np

from pipeline.machine import peak_memory_bytes, usable_cores
from pipeline.records import FeatureBatch, FeatureSpec, ImageStatus, LayerSpec, Manifest, RunSpec, Share, digest_images
from pipeline.store import disk, format
from pipeline.store.digests import Digests
from pipeline.store.index_file import build_index
from pipeline.store.reader import open_run
from pipeline.store.run_contents import shard_names
from pipeline.store.run_folder import open_folder
from pipeline.store.writer import Writer

from .rows import Bench, Line, row

Result = TypeVar("Result")

PLANNED = 1_000_000
WORKERS = 1000
# Real files, tiny: with one image each, 2 x 2 x 4 values.
WRITTEN, WRITTEN_SLOW = (100, 1_000), (100, 1_000, 10_000)
# Virtual datasets over shards of which there is none: HDF5 asks for them when rows are read.
MAPPED, MAPPED_SLOW = (1_000, 10_000, 30_000), (1_000, 10_000, 30_000, 100_000)
ROWS_A_SHARD = 14


@row("bookkeeping", "planning, digests, settling and index, against the number of shards; up to 1,000,000", asked_for_only=True)
def measure(bench: Bench) -> Iterator[Line]:
    """Seconds of each step, once: what grows with the square of anything shows in the factor of ten alone."""
    yield from _planned(bench.folder / "planned")
    for count in WRITTEN_SLOW if bench.slow else WRITTEN:
        yield from _written(bench.folder / f"written {count}", count)
    for count in MAPPED_SLOW if bench.slow else MAPPED:
        yield from _mapped(bench.folder / f"mapped {count}.h5", count)


def _timed(what: str, work: Callable[[], Result], lines: list[Line], notes: str = "") -> Result:
    began = time.perf_counter()
    result = work()
    lines.append(Line(what, "s", [time.perf_counter() - began], more_is_better=False, notes=notes))
    return result


def _planned(folder: Path) -> list[Line]:
    lines: list[Line] = []
    of = f"{PLANNED:,} shards"
    spec = _timed(
        f"{of}: a manifest of {PLANNED * ROWS_A_SHARD // 10**6} million rows", lambda: _spec(PLANNED, ROWS_A_SHARD), lines
    )
    shards = _timed(f"{of}: planned", spec.shards, lines)
    share = Share(500, WORKERS)
    own = _timed(f"{of}: the share of one of {WORKERS:,} processes", lambda: [s for s in shards if share.has(s.number)], lines)
    assert len(own) == PLANNED // WORKERS
    (folder / format.SHARD_FOLDER).mkdir(parents=True)
    names = [format.shard_path(shard.file_name) for shard in shards]
    # As the processes have left them: each a file of its own.
    for number in range(WORKERS):
        text = "".join(f"{place:064x}  {names[place]}\n" for place in range(number, PLANNED, WORKERS))
        (folder / format.digests_name(f"{number + 1}-of-{WORKERS}")).write_text(text)
    digests = _timed(f"{of}: digests of {WORKERS:,} processes read", lambda: Digests(folder), lines)
    _timed(f"{of}: digests folded into one file", digests.fold, lines)
    size = (folder / format.DIGESTS_NAME).stat().st_size / 1e6
    _timed(f"{of}: that file read", lambda: Digests(folder), lines, f"{size:.0f} MB")
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
    there = _timed(f"{of}: listed", lambda: {*shard_names(folder)}, lines)
    assert len(there) == PLANNED
    _timed(f"{of}: found to be all there", lambda: [s for s in shards if s.file_name not in there], lines)
    lines.append(Line(f"{of}: peak memory of all this", "MB", [peak_memory_bytes() / 1e6], more_is_better=False))
    return lines


def _written(folder: Path, count: int) -> list[Line]:
    lines: list[Line] = []
    of, spec = f"{count:,} real shards", _spec(count, 1)
    sync = disk.sync_folder, os.fsync
    disk.sync_folder, os.fsync = (lambda path: None), (lambda handle: None)
    try:
        with open_folder(folder, spec, "resume") as opened:
            opened.prepare()
            writer, values = Writer(folder, spec, opened.missing, usable_cores()), np.ones((1, 2, 2, 4), np.float32)

            def put() -> None:
                for index in range(count):
                    writer.put_statuses([ImageStatus(index, "", 300, 400, 1234, f"{index:064x}")])
                    writer.put_features(FeatureBatch("relu4_1", np.array([index]), values))
                writer.close()

            _timed(f"{of}: written", put, lines, "not forced to the disk")
    finally:
        disk.sync_folder, os.fsync = sync
    _timed(f"{of}: settled by a whole run that goes on", lambda: open_folder(folder, spec, "resume").close(), lines)
    share = Share(3, 10)
    _timed(f"{of}: settled by one of 10 parts", lambda: open_folder(folder, spec, "resume", share).close(), lines)
    _timed(f"{of}: index written", lambda: build_index(folder, spec), lines)
    index = folder / format.INDEX_NAME
    lines.append(Line(f"{of}: bytes of index a shard", "B", [index.stat().st_size / count], more_is_better=False))
    run = _timed(f"{of}: opened by open_run", lambda: open_run(folder), lines)
    _timed(f"{of}: first row by open_run", lambda: run["relu4_1"][count // 2], lines)
    run.close()
    with h5py.File(index) as file:
        _timed(f"{of}: first row by h5py", lambda: file["features/relu4_1"][count // 2], lines)
    return lines


def _mapped(path: Path, count: int) -> list[Line]:
    lines: list[Line] = []
    of, shape = f"virtual dataset over {count:,} shards", (2, 2, 4)

    def write() -> None:
        layout = h5py.VirtualLayout((count, *shape), "<f4")
        for number in range(count):
            name = format.shard_path(f"shard-{number:05d}-of-{count:05d}.h5")
            layout[number : number + 1] = h5py.VirtualSource(name, "features/relu4_1", (1, *shape), "<f4")
        with h5py.File(path, "w") as file:
            file.create_virtual_dataset("relu4_1", layout, fillvalue=np.nan)

    _timed(f"{of}: written", write, lines)
    with h5py.File(path) as file:
        dataset = _timed(f"{of}: opened", lambda: file["relu4_1"], lines)
        _timed(f"{of}: first row", lambda: dataset[count // 2], lines)
    return lines


def _spec(shards: int, rows_a_shard: int) -> RunSpec:
    count = shards * rows_a_shard
    keys = tuple(f"{number // 1000:05d}/{number:08d}.jpg" for number in range(count))
    labels, sizes = tuple(key[:5] for key in keys), np.full(count, 1234, np.int64)
    manifest = Manifest("/data", keys, labels, sizes, {}, {}, {}, digest_images(keys, labels, sizes, {}))
    feature = FeatureSpec(LayerSpec("relu4_1", "relu", 20, 4, None, 4, 8), (2, 2, 4))
    options = {"layers": "relu4_1", "output.dtype": "float32", "network": "vgg19"}
    attributes: dict[str, str | np.ndarray] = {"network": "vgg19", "mean_pixel": np.array([123.68, 116.779, 103.939])}  # type: ignore[type-arg]
    return RunSpec(manifest, (feature,), "float32", "gzip", rows_a_shard, options, attributes)
