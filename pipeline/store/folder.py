"""The run folder: who may write it, what of an earlier run is kept, and what is left to make."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from ..errors import LockedError, StoreError
from ..records import RunSpec, ShardSpec
from . import disk, format, tables

REPLACE, FAIL = "replace", "fail"

_log = logging.getLogger(__name__)


class RunFolder:
    """A run folder held by this process until :meth:`close`, or the end of the process however it comes.

    Attributes:
        path: The folder.
        finished: Numbers of the shards that are there and belong to the run.
        missing: The others, in order: those to make.
        replaced: Files of an earlier run that :meth:`make_room` will remove.
    """

    def __init__(self, path: Path, lock: FileLock, finished: frozenset[int], spec: RunSpec, replaced: Sequence[Path]) -> None:
        self.path = path
        self.replaced = tuple(replaced)
        self.finished = finished
        self.missing: tuple[ShardSpec, ...] = tuple(shard for shard in spec.shards() if shard.number not in finished)
        self._lock = lock

    def make_room(self) -> None:
        """Removes what is to be replaced. Not done before everything that could still refuse the run has agreed.

        Raises:
            StoreError: The disk refuses.
        """
        for path in self.replaced:
            disk.remove(path)

    def close(self) -> None:
        """Lets others write the folder."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_folder(folder: Path, spec: RunSpec, existing: str) -> RunFolder:
    """Makes a run folder, or opens one to go on where a run has stopped.

    Args:
        folder: Where the run is written; made if missing.
        spec: The run.
        existing: ``resume``: keep finished shards of the same run, refuse those of another; ``replace``: what this program
            has written there, and nothing else, is removed by :meth:`RunFolder.make_room`; ``fail``: refuse a folder that
            holds results.

    Raises:
        LockedError: A live process writes the folder.
        StoreError: It holds another run, or results where ``fail`` allows none; the disk refuses.
    """
    shards = folder / format.SHARD_FOLDER
    try:
        shards.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk.write_error(folder, error) from error
    lock = _take_lock(folder)
    try:
        if existing == REPLACE:
            return RunFolder(folder, lock, frozenset(), spec, _all_files(folder))
        results = _results(folder)
        if existing == FAIL and results:
            raise StoreError(
                f"{folder}: the folder holds results, got {len(results)} files from {results[0].name} on. Expected none, since "
                f"output.existing=fail. Use output.existing=resume or replace, or another name=..."
            )
        return RunFolder(folder, lock, _keep(folder, spec), spec, ())
    except BaseException:
        lock.release()
        raise


def expected_bytes(spec: RunSpec, shards: tuple[ShardSpec, ...]) -> int | None:
    """Gives the size of these shards' activations before compression; None at native size, where nobody knows it."""
    shapes = [feature.shape for feature in spec.features]
    if None in shapes:
        return None
    return sum(shard.rows for shard in shards) * format.row_bytes(spec.features, spec.dtype)


def _take_lock(folder: Path) -> FileLock:
    lock = FileLock(folder / format.LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockedError(
            f"{folder}: another run writes this folder, got a lock held by a live process. Expected one run at a time. "
            f"Wait for it or stop it, or choose another folder with name=..."
        ) from error
    except (OSError, NotImplementedError) as error:  # the second is filelock's, for a file system without locks
        raise disk.write_error(folder / format.LOCK_NAME, error) from error
    return lock


def _results(folder: Path) -> list[Path]:
    """Gives what the store has written in a folder, whole or partial."""
    names = [*sorted((folder / format.SHARD_FOLDER).iterdir()), folder / format.INDEX_NAME]
    names.append(disk.partial_path(names[-1]))
    return [
        path
        for path in names
        if path.is_file()
        and (path.parent == folder or format.SHARD_NAME.fullmatch(path.name.removesuffix(format.PARTIAL_SUFFIX)))
    ]


def _all_files(folder: Path) -> list[Path]:
    """Gives everything this program has written in a folder, in the order in which to remove it."""
    # The index first: while it is there, a reader takes the run for whole.
    companions = [folder / name for name in format.COMPANION_NAMES]
    written = [*reversed(_results(folder)), *companions, *map(disk.partial_path, companions)]
    return [path for path in written if path.is_file()]


def _keep(folder: Path, spec: RunSpec) -> frozenset[int]:
    """Gives the numbers of the finished shards; removes partial and damaged files, once all others prove to be of this run."""
    plan = {shard.file_name: shard for shard in spec.shards()}
    finished: set[int] = set()
    useless: dict[Path, str] = {}
    for path in _results(folder):
        if path.name.endswith(format.PARTIAL_SUFFIX):
            useless[path] = "unfinished"
            continue
        identity = _read_identity(path)
        if identity is None:
            # Perhaps somebody else's; what this run would never write over is not for it to remove.
            if path.name != format.INDEX_NAME and path.name not in plan:
                raise _extra_file(path, plan)
            useless[path] = "damaged"
        elif identity != dict(spec.identity):
            raise _another_run(folder, identity, spec.identity)
        elif path.name == format.INDEX_NAME:
            continue
        elif path.name not in plan:
            raise _extra_file(path, plan)
        elif _is_whole(path, spec, plan[path.name]):
            finished.add(plan[path.name].number)
        else:
            useless[path] = "damaged"
    index = folder / format.INDEX_NAME
    if len(finished) < len(plan) and index.exists():
        useless[index] = "an index of shards that are to be made again"
    for path, reason in useless.items():
        _log.warning("%s: removed, since it is %s", path, reason)
        disk.remove(path)
    return frozenset(finished)


def _extra_file(path: Path, plan: Mapping[str, ShardSpec]) -> StoreError:
    return StoreError(
        f"{path}: not in this run's plan of {len(plan)} shards, got an extra file. Expected "
        f"{next(iter(plan))} and its like. Move it away, or use output.existing=replace."
    )


def _read_identity(path: Path) -> dict[str, str] | None:
    """Gives the identity of the run that a file is of; None if it is damaged.

    Raises:
        StoreError: The file cannot be opened, or is of a later version: perhaps good, and not ours to remove.
    """
    try:
        with tables.open_file(path) as file:
            identity: dict[str, str] = json.loads(file.attrs["identity"])
            return identity
    except (tables.DamagedError, *tables.HDF5_READ_ERRORS):
        return None


def _is_whole(path: Path, spec: RunSpec, shard: ShardSpec) -> bool:
    try:
        with tables.open_file(path) as file:
            tables.check_shard(file, path, spec.digest, shard)
            return all(feature.layer.name in file["features"] for feature in spec.features)
    except (StoreError, *tables.HDF5_READ_ERRORS):
        return False


def _another_run(folder: Path, there: Mapping[str, str], now: Mapping[str, str]) -> StoreError:
    names = {name for name in {*there, *now} if there.get(name) != now.get(name)}
    if "images" in names:
        # The plan of shards follows from the number of images; nobody has set it.
        names.discard("output.images_per_shard")
    differing = [f"{name} {_short(now.get(name))} (in the folder {_short(there.get(name))})" for name in sorted(names)]
    return StoreError(
        f"{folder}: the folder holds a run with other options, got {', '.join(differing)}. Expected the same options, to go on "
        f"with that run. Choose another folder with name=..., or use output.existing=replace to discard what is there."
    )


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return repr(value if len(value) <= 60 else f"{value[:57]}...")
