"""Whether a run folder is whole and unchanged: reads every file of it, some at a time.

HDF5 opens no file in this process; see :mod:`pipeline.store.guard`. What is made of it all: :mod:`pipeline.store.judgement`.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import Any

from ..errors import StoreError
from . import damage, format, remote
from .digests import Digests
from .disk import file_digest
from .examination import WAITING_BYTES
from .file_checks import require_file, require_own_shards
from .guard import SILENCE_SECONDS, Examination, Guard, make_finding, renamed
from .judgement import Digest, Judge, Verdict
from .reader import no_such_run
from .succession import Listed, read_listed


def verify_folder(
    folder: Path,
    workers: int,
    progress: Callable[[int], None] = lambda size_bytes: None,
    silence_seconds: float = SILENCE_SECONDS,
) -> Verdict:
    """Checks a run folder, and writes nothing.

    Args:
        folder: A run folder.
        workers: Files that are read at a time, and threads over all of them.
        progress: Called with the size of each file that has been checked.
        silence_seconds: See :class:`Guard`.

    Raises:
        StoreError: There is no such folder, or nothing of a run in it.
    """
    names = files_to_check(folder)
    digests = Digests(folder)
    with remote.lending_scratch(folder):
        found, examined = _read_all(folder, names, workers, progress, silence_seconds)
    listed: dict[str, Listed | None] = {}
    for name in filter(format.MANIFEST_NAME.fullmatch, names):
        try:
            listed[name] = read_listed(folder / name)
        except damage.UnreadableError as error:
            listed[name], found[name] = None, error
    return Judge(folder, digests, found, examined, listed).judge()


def files_to_check(folder: Path) -> list[str]:
    """Gives the files of a run that are there, as paths from its folder.

    Raises:
        StoreError: There is no such folder, or nothing of a run in it.
    """
    try:
        is_folder, exists = folder.is_dir(), _is_there(folder)
        names = _names(folder) if is_folder else []
    except (OSError, ValueError) as error:
        raise damage.unreadable(folder, error) from error
    if not exists:
        raise no_such_run(folder)
    if not is_folder:
        raise damage.no_folder(folder)
    if not any(name.endswith(".h5") for name in names):
        raise damage.no_run(folder, format.INDEX_NAME)
    return names


def _names(folder: Path) -> list[str]:
    require_own_shards(folder)
    shards = folder / format.SHARD_FOLDER
    there = sorted(path.name for path in shards.iterdir()) if shards.is_dir() else []
    names = [format.shard_path(name) for name in there if format.SHARD_NAME.fullmatch(name)]
    names += sorted(path.name for path in folder.iterdir() if format.MANIFEST_NAME.fullmatch(path.name))
    names += format.DIGESTED_NAMES
    # Links, pipes and folders of these names too, which are not opened and are findings.
    return [name for name in names if _is_there(folder / name)]


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _read_all(
    folder: Path, names: list[str], workers: int, progress: Callable[[int], None], silence_seconds: float
) -> tuple[dict[str, Digest], dict[str, Examination]]:
    """Gives each file's digest, and what came of each HDF5 file."""
    hdf5 = [name for name in names if name.endswith(".h5")]
    count = min(workers, len(hdf5))
    guards = [Guard(max(1, workers // len(hdf5)), silence_seconds, WAITING_BYTES // count) for _ in range(count)]
    idle: queue.SimpleQueue[Guard] = queue.SimpleQueue()
    for guard in guards:
        idle.put(guard)
    stop = Event()
    # Of an address each is downloaded once.
    copies = remote.Copies(lambda path: 2 if path.name.endswith(".h5") else 1)

    def digest(name: str) -> Digest:
        try:
            require_file(folder / name)
            with copies.here(folder / name) as here:
                return file_digest(here, stop)
        except (OSError, StoreError) as error:
            return error

    def examine(name: str) -> Examination:
        guard = idle.get()
        try:
            with copies.here(folder / name) as here:
                return renamed(guard.examine(here), here, folder / name)
        except StoreError as error:  # the storage at an address
            return Examination((make_finding(error),), 0, None)
        finally:
            idle.put(guard)

    pool = ThreadPoolExecutor(workers, "verify")
    try:
        # Digest and rows of a file one after the other, so that the second finds the file in the system's cache.
        tasks: dict[Future[Any], str] = {}
        for name in names:
            tasks[pool.submit(digest, name)] = name
            if name in hdf5:
                tasks[pool.submit(examine, name)] = name
        found: dict[str, Digest] = {}
        examined: dict[str, Examination] = {}
        for task in as_completed(tasks):
            name, result = tasks[task], task.result()
            if isinstance(result, Examination):
                examined[name] = result
            else:
                found[name] = result
            if name in found and (name in examined or name not in hdf5):
                progress((folder / name).lstat().st_size)
        # In the order of the names, not in that in which they were done.
        return {name: found[name] for name in names}, {name: examined[name] for name in hdf5}
    finally:
        # Also for Ctrl-C, which must not wait for a file of terabytes.
        stop.set()
        for guard in guards:
            guard.stop()
        pool.shutdown(cancel_futures=True)
        for guard in guards:
            guard.close()
