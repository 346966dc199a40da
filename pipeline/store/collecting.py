"""What the index has of each shard: tables, checksums, statistics; of very many shards read by several processes.

HDF5 lets one thread in at a time, and to look at a shard with care takes it milliseconds: of a million shards, hours. So others
help where there is enough to do: ``python -m pipeline.store.collecting`` is one of them, which gets and gives pickles.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..machine import usable_cores
from ..records import RunSpec, ShardSpec
from ..statistics import LayerStatistics, join_statistics
from . import format, remote, summaries, tables
from .regular import require_own_shards
from .tables import Column

# That one process is given at a time: some seconds of work, some megabytes to hand over.
SHARDS_A_TASK = 500

_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Collected:
    """What neighbouring shards hold besides features.

    Attributes:
        columns: Of ``/images``, name -> (rows,).
        checksums: Layer -> (rows,).
        statistics: Layer -> those of all rows.
        shards_with: Column -> in how many of the shards it is.
    """

    columns: Mapping[str, Column]
    checksums: Mapping[str, NDArray[np.uint32]]
    statistics: Mapping[str, LayerStatistics]
    shards_with: Mapping[str, int]


# Run folder, digest that the shards of each part have, names of layers, shards.
_Task = tuple[Path, Sequence[str], Sequence[str], Sequence[ShardSpec]]


def collect(folder: Path, spec: RunSpec, processes: int | None = None) -> Collected:
    """Gives what all shards of a run hold besides features, in order, having held each to the run.

    Args:
        folder: The run folder.
        spec: The run.
        processes: That work; None: as many as there are cores, where there is enough to do.

    Raises:
        StoreError: A shard is missing, damaged or of another run.
    """
    require_own_shards(folder)
    shards, digests = spec.shards(), [part.digest for part in spec.parts]
    layers = [feature.layer.name for feature in spec.features]
    tasks: list[_Task] = [
        (folder, digests, layers, shards[first : first + SHARDS_A_TASK]) for first in range(0, len(shards), SHARDS_A_TASK)
    ]
    count = min(len(tasks), usable_cores() if processes is None else processes)
    found = _joined(list(_done_by(count, tasks)) if count > 1 else [_look_into(*task) for task in tasks])
    for name, there in found.shards_with.items():
        if there != len(shards):
            raise StoreError(
                f"{folder}: column {name!r} is missing in some shards, got it in {there}. Expected it in all {len(shards)}. "
                f"Use output.existing=replace to make them all again."
            )
    return found


def _look_into(folder: Path, digests: Sequence[str], layers: Sequence[str], shards: Sequence[ShardSpec]) -> Collected:
    columns: dict[str, list[Column]] = {}
    checksums: dict[str, list[NDArray[np.uint32]]] = {}
    statistics: dict[str, LayerStatistics] = {}
    paths = remote.ahead(folder / format.SHARD_FOLDER / shard.file_name for shard in shards)
    for shard, path in zip(shards, paths, strict=True):
        with tables.open_file(path) as file:
            tables.check_shard(file, path, digests[shard.part], shard)
            try:
                for name in file["images"]:
                    columns.setdefault(name, []).append(tables.read_column(file, path, name))
                for layer in layers:
                    checksums.setdefault(layer, []).append(tables.read_checksums(file, path, layer))
                # One by one, so that those of thousands of shards do not lie in memory.
                for layer, of_layer in summaries.read_statistics(file, path).items():
                    before = [statistics[layer]] if layer in statistics else []
                    statistics[layer] = join_statistics([*before, of_layer])
            except tables.HDF5_READ_ERRORS as error:
                raise tables.damaged(path, "a table", error) from error
    counts = {name: len(parts) for name, parts in columns.items()}
    return Collected(_concatenated(columns), _concatenated(checksums), statistics, counts)


def _joined(parts: Sequence[Collected]) -> Collected:
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, list[Column]] = {}
    checksums: dict[str, list[NDArray[np.uint32]]] = {}
    statistics: dict[str, list[LayerStatistics]] = {}
    counts: dict[str, int] = {}
    for part in parts:
        for name, column in part.columns.items():
            columns.setdefault(name, []).append(column)
            counts[name] = counts.get(name, 0) + part.shards_with[name]
        for layer, values in part.checksums.items():
            checksums.setdefault(layer, []).append(values)
        for layer, of_layer in part.statistics.items():
            statistics.setdefault(layer, []).append(of_layer)
    return Collected(
        _concatenated(columns),
        _concatenated(checksums),
        {layer: join_statistics(of_layer) for layer, of_layer in statistics.items()},
        counts,
    )


def _concatenated(parts: Mapping[str, list[NDArray]]) -> dict[str, NDArray]:  # type: ignore[type-arg]
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _done_by(count: int, tasks: Sequence[_Task]) -> Iterator[Collected]:
    """Has tasks done by so many processes, and gives the results in the order of the tasks.

    Raises:
        StoreError: Of the first task that failed; or a process has ended by itself.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(tasks)):
        waiting.put(number)
    results: dict[int, Collected | BaseException] = {}
    helpers = [_start() for _ in range(count)]

    def drive(helper: subprocess.Popen[bytes]) -> None:
        assert helper.stdin is not None
        assert helper.stdout is not None
        with suppress(queue.Empty):
            while True:
                number = waiting.get_nowait()
                try:
                    pickle.dump(tasks[number], helper.stdin)
                    helper.stdin.flush()
                    results[number] = pickle.load(helper.stdout)
                except (OSError, EOFError, pickle.UnpicklingError):
                    folder = tasks[number][0]
                    results[number] = StoreError(
                        f"{folder}: a process that read shards has ended by itself, got exit code {helper.wait()}. Expected what "
                        f"is in {tasks[number][3][0].file_name} and those after it. Verify the run, then run the command again."
                    )
                    return

    threads = [threading.Thread(target=drive, args=(helper,), name="collect", daemon=True) for helper in helpers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        # Also for Ctrl-C, which must not wait for anything.
        for helper in helpers:
            helper.kill()
            helper.wait()
            for pipe in (helper.stdin, helper.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
    for number in range(len(tasks)):
        # Missing only where all processes have ended by themselves, and the first of those that is here says so.
        result = results.get(number) or next(found for found in results.values() if isinstance(found, BaseException))
        if isinstance(result, BaseException):
            raise result
        yield result


def _start() -> subprocess.Popen[bytes]:
    home = str(Path(__file__).parent.parent.parent)
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", f"{_PACKAGE}.store.collecting"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    while True:
        try:
            task: _Task = pickle.load(requests)
        except EOFError:
            return
        reply: Any
        try:
            reply = _look_into(*task)
        except StoreError as error:
            reply = error
        pickle.dump(reply, replies, pickle.HIGHEST_PROTOCOL)
        replies.flush()


def main() -> None:
    """Serves requests from stdin until it ends."""
    # Ctrl-C is for whoever started this process, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not come between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    # Not as __main__, whose classes nobody could unpickle.
    from pipeline.store import collecting

    collecting.main()
