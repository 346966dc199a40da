"""The run folder: who may write it, what of an earlier run is kept, and what is left to make."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import RunSpec, ShardSpec, digest_identity
from ..storage.remote_path import RemotePath
from . import disk, format, remote, tables
from .border import own_node
from .chain import Chain, another_run, settle_parts
from .damage import extra_file
from .digests import Digests
from .found import Result, find_parts, listing_paths, read_result, result_paths
from .listing import write_listing
from .lock import Lock, take_lock
from .repair import complete_digests, forget_missing
from .strangers import refuse_foreign_folder, refuse_strangers, stranger

REPLACE, FAIL, EXTEND = "replace", "fail", "extend"

_log = logging.getLogger(__name__)


class RunFolder:
    """A run folder held by this process until :meth:`close`, or the end of the process however it comes.

    Attributes:
        path: The folder.
        spec: The run with all its parts, those that are there and the one that is to be added.
        finished: The shards that are there and belong to the run.
        missing: The others, in order: those to make.
        replaced: Files of an earlier run that :meth:`make_room` will remove.
        added: Rows of the part that is new.
        removed: (r,) int64, rows of the run whose images are no longer there.
    """

    def __init__(self, path: Path, lock: Lock, finished: frozenset[ShardSpec], chain: Chain, replaced: Sequence[Path]) -> None:
        self.path = path
        self.spec = chain.spec
        self.replaced = tuple(replaced)
        self.finished = finished
        self.missing: tuple[ShardSpec, ...] = tuple(shard for shard in chain.spec.shards() if shard not in finished)
        self.added = chain.added
        self.removed: NDArray[np.int64] = chain.removed
        self._chain = chain
        self._lock = lock

    def parts(self) -> Iterator[tuple[RunSpec, tuple[ShardSpec, ...]]]:
        """Gives the run up to each part of which shards are missing, and these shards."""
        for part in sorted({shard.part for shard in self.missing}):
            yield self._chain.up_to(part), tuple(shard for shard in self.missing if shard.part == part)

    def make_room(self) -> None:
        """Removes what is to be replaced, and lists the images of each part that is new, or whose list is missing or damaged.

        Not done before everything that could still refuse the run has agreed.

        Raises:
            StoreError: The disk refuses.
        """
        disk.remove_all(self.replaced)
        forget_missing(self.path)
        digests = Digests(self.path)
        for part in range(len(self.spec.parts)):
            path = self.path / format.manifest_name(part)
            if not digests.agrees(path.name):
                write_listing(path, self._chain.up_to(part), self._chain.gone[part])

    def drop_partial_files(self) -> None:
        """Removes what is unfinished, beside threads that may still be writing it; never raises for a file that is gone."""
        for path in _all_files(self.path):
            if path.name.endswith(format.PARTIAL_SUFFIX):
                path.unlink(missing_ok=True)

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
        spec: The run, as it would be in an empty folder.
        existing: ``resume``: keep finished shards of the same run, refuse those of another; ``extend``: likewise, but images
            that the run does not have are added to it, and rows of those that are no longer there stay; ``replace``: what this
            program has written there, and nothing else, is removed by :meth:`RunFolder.make_room`; ``fail``: refuse a folder
            that holds results.

    Raises:
        LockedError: A live process writes the folder.
        StoreError: It holds another run, or results where ``fail`` allows none, or something else under a name that the run
            needs; the disk refuses.
    """
    shards = folder / format.SHARD_FOLDER
    count = -(-len(spec.manifest) // spec.images_per_shard)
    if count > format.MOST_SHARDS or len(spec.manifest) > format.MOST_ROWS:
        raise StoreError(
            f"{folder}: the run is too large, got {len(spec.manifest)} images in {count} shards. Expected at most "
            f"{format.MOST_ROWS} in {format.MOST_SHARDS}. Raise output.images_per_shard, or divide the images."
        )
    try:
        if isinstance(folder, RemotePath):
            folder.mirror.refresh()
        refuse_foreign_folder(folder)
        disk.make_folder(shards)
    except OSError as error:
        raise disk.write_error(folder, error) from error
    lock = take_lock(folder)
    try:
        return _settle(folder, lock, spec, existing, mends=True)
    except BaseException:
        lock.release()
        raise


def preview_folder(folder: Path, spec: RunSpec, existing: str) -> RunFolder:
    """Gives what :func:`open_folder` would give, and refuses what it would refuse, but changes nothing and holds no lock.

    Shards without a digest count as finished: what :func:`open_folder` would find in them takes as long as reading them.

    Raises:
        LockedError: As there.
        StoreError: As there.
    """
    refuse_foreign_folder(folder)
    disk.refuse_unwritable(folder)
    lock: Lock
    if isinstance(folder, RemotePath):
        lock = remote.look_on(folder)
    else:
        lock = FileLock(folder / format.LOCK_NAME)
        if (folder / format.LOCK_NAME).exists():
            take_lock(folder).release()
    if not folder.is_dir():
        return RunFolder(folder, lock, frozenset(), settle_parts(folder, spec, (), extend=False), ())
    return _settle(folder, lock, spec, existing, mends=False)


def _settle(folder: Path, lock: Lock, spec: RunSpec, existing: str, mends: bool) -> RunFolder:
    """Says what is kept, replaced and made in a folder that is there; ``mends``: whether useless files are removed at once."""
    if existing == REPLACE:
        replaced, chain = _all_files(folder), settle_parts(folder, spec, (), extend=False)
        run_folder = RunFolder(folder, lock, frozenset(), chain, replaced)
    else:
        paths = result_paths(folder)
        if existing == FAIL and paths:
            raise StoreError(
                f"{folder}: the folder holds results, got {len(paths)} files from {paths[0].name} on. Expected none, since "
                f"output.existing=fail. Use output.existing=resume or replace, or another name=..."
            )
        run_folder = _go_on(folder, lock, spec, paths, existing == EXTEND, mends)
    refuse_strangers(folder, run_folder.missing, len(run_folder.spec.parts), run_folder.replaced)
    return run_folder


def expected_bytes(spec: RunSpec, shards: tuple[ShardSpec, ...]) -> int | None:
    """Gives the size of these shards' activations before compression; None at native size, where nobody knows it."""
    shapes = [feature.shape for feature in spec.features]
    if None in shapes:
        return None
    return sum(shard.rows for shard in shards) * format.row_bytes(spec.features, spec.dtype)


def _all_files(folder: Path) -> list[Path]:
    """Gives everything this program has written in a folder, in the order in which to remove it."""
    # The index first: while it is there, a reader takes the run for whole.
    results = [path for path in reversed(result_paths(folder)) if _is_partial(path) or not tables.is_foreign(path)]
    companions = [*(folder / name for name in format.COMPANION_NAMES), *listing_paths(folder)]
    partial = [*map(disk.partial_path, companions), *_partial_listings(folder)]
    written = dict.fromkeys([*results, *companions, *partial])
    # This program makes no links: what one leads to is somebody else's, and so is the link.
    return [path for path in written if path.is_file() and not path.is_symlink()]


def _partial_listings(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if _is_partial(path) and path.is_file() and format.MANIFEST_NAME.fullmatch(path.name.removesuffix(format.PARTIAL_SUFFIX))
    ]


def _is_partial(path: Path) -> bool:
    return path.name.endswith(format.PARTIAL_SUFFIX)


def _go_on(folder: Path, lock: Lock, spec: RunSpec, paths: Sequence[Path], extend: bool, mends: bool) -> RunFolder:
    """Keeps finished shards; where it ``mends``, removes partial and damaged files, once all others prove to be of this run."""
    links = [path for path in paths if path.is_symlink()]
    if links:
        # A finished shard behind one too: what it leads to may change, and vanish, without anybody knowing here.
        raise stranger(links[0])
    useless = dict.fromkeys([path for path in paths if _is_partial(path)] + _partial_listings(folder), "unfinished")
    results = [read_result(path) for path in paths if path not in useless]
    chain = settle_parts(folder, spec, find_parts(folder, results), extend)
    plan = {shard.file_name: shard for shard in chain.spec.shards()}
    digests = [part.digest for part in chain.spec.parts]
    finished: set[ShardSpec] = set()
    for result in results:
        path, shard = result.path, plan.get(result.path.name)
        if result.identity is not None and digest_identity(result.identity) != digests[result.part]:
            raise another_run(path, chain.spec, result.identity)
        if path.name == format.INDEX_NAME:
            continue
        if shard is None:
            # Perhaps somebody else's; what this run would never write over is not for it to remove.
            raise extra_file(path, next(iter(plan)), len(plan))
        if _is_whole(result, chain.spec, digests[shard.part], shard):
            finished.add(shard)
        else:
            useless[path] = "damaged"
    if mends:
        useless |= complete_digests(folder, finished)
    finished = {shard for shard in finished if folder / format.shard_path(shard.file_name) not in useless}
    index = next((result for result in results if result.path.name == format.INDEX_NAME), None)
    if index and (reason := _why_useless(index, chain.spec, finished)):
        useless[index.path] = reason
    for path, reason in useless.items():
        _log.warning("%s: %s, since it is %s", path, "removed" if mends else "to be removed", reason)
        if mends:
            disk.remove(path)
    if mends:
        forget_missing(folder)
    # A list of a part that is not of this run, or is planned anew.
    kept = {folder / format.manifest_name(part) for part in range(chain.kept)}
    replaced = [path for path in listing_paths(folder) if path not in kept]
    if not mends:
        replaced += [path for path in useless if not path.is_symlink()]
    return RunFolder(folder, lock, frozenset(finished), chain, replaced)


def _why_useless(index: Result, spec: RunSpec, finished: set[ShardSpec]) -> str:
    """Says why an index is to be removed; nothing if it is right, for all rows or for those before an extension."""
    if index.identity is None:
        return "damaged"
    if any(shard.part <= index.part and shard not in finished for shard in spec.shards()):
        return "an index of shards that are to be made again"
    return ""


def _is_whole(result: Result, spec: RunSpec, digest: str, shard: ShardSpec) -> bool:
    if result.identity is None:
        return False
    try:
        with tables.open_file(result.path, all_nodes=False) as file:
            tables.check_shard(file, result.path, digest, shard)
            for feature in spec.features:
                own_node(file, result.path, "features", feature.layer.name)
            return True
    except (StoreError, *tables.HDF5_READ_ERRORS):
        return False
