"""The run folder: who may write it, and what is left to make in it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import RunSpec, ShardSpec, Share
from ..storage import refresh
from . import disk, format, resume, tables
from .damage import unreadable
from .digests import Digests
from .extend import RunPlan
from .foreign_files import refuse_foreign_files, refuse_foreign_folder
from .lock import Hold, take_lock
from .manifest_file import read_manifest, write_manifest
from .resume import Kept
from .run_contents import companion_paths, partial_files, result_paths, shard_names
from .verification import forget_missing

REPLACE, FAIL, EXTEND = "replace", "fail", "extend"


class RunFolder:
    """A run folder held by this process until :meth:`close`, or the end of the process however it comes.

    Attributes:
        path: The folder.
        spec: The run with all its parts, those that are there and the one that is to be added.
        share: What of it this process makes, beside others that hold the folder too; None: all of it, alone.
        own: The shards of this share, in order.
        finished: Those of them that are there and belong to the run.
        missing: The others, in order: those to make.
        unread: Of finished shards the rows whose images were missing or could not be read.
        replaced: Files of an earlier run that :meth:`prepare` will remove; none of a share.
        added: Rows of the part that is new.
        removed: (r,) int64, rows of the run whose images are no longer there.
    """

    def __init__(self, path: Path, hold: Hold | None, share: Share | None, kept: Kept) -> None:
        plan = kept.plan
        self.path = path
        self.spec = plan.spec
        self.share = share
        self.own = tuple(shard for shard in plan.spec.shards() if share is None or share.has(shard.number))
        self.replaced = kept.replaced
        self.finished = kept.finished
        self.unread = kept.unread
        self.missing: tuple[ShardSpec, ...] = tuple(shard for shard in self.own if shard not in self.finished)
        self.added = plan.added
        self.removed: NDArray[np.int64] = plan.removed
        self._plan = plan
        self._hold = hold
        self._again: frozenset[ShardSpec] = frozenset()

    def parts(self) -> Iterator[tuple[RunSpec, tuple[ShardSpec, ...]]]:
        """Yield the run up to each part of which shards are missing, and these shards."""
        for part in sorted({shard.part for shard in self.missing}):
            yield self._plan.up_to(part), tuple(shard for shard in self.missing if shard.part == part)

    def digests(self) -> Digests:
        """Return what finished shards get their lines in."""
        return Digests(self.path, self.share.mark if self.share else "")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from opening the folder, or from writing its index, during the block.

        Raises:
            LockedError: One of them does not let go.
        """
        assert self._hold is not None
        with self._hold.alone():
            yield

    def make_again(self, shards: Collection[ShardSpec]) -> None:
        """Count finished shards as missing; the file of each stays until the new one takes its name. Not for a share."""
        self._again = frozenset(shards)
        self.finished -= self._again
        self.missing = tuple(shard for shard in self.own if shard not in self.finished)

    def prepare(self) -> None:
        """Remove what is to be replaced, and write the manifest of each part that has none, or a damaged one.

        Not done before everything that could still refuse the run has agreed.

        Raises:
            StoreError: The disk refuses; another process has begun another run meanwhile.
        """
        with self.alone():
            if self.share is not None:
                self._refuse_other_manifests()
            if self._again:
                # Its tables are those of the shards as they are. While it is there, a reader takes the run for whole.
                disk.remove(self.path / format.INDEX_NAME)
            disk.remove_all(self.replaced)
            # A kill must leave no line that is not true of a shard: none of one that is made again.
            forget_missing(self.path, {shard.file_name for shard in self._again})
            digests = Digests(self.path)
            for part in range(len(self.spec.parts)):
                path = self.path / format.manifest_name(part)
                if not digests.agrees(path.name):
                    write_manifest(path, self._plan.up_to(part), self._plan.gone[part])

    def _refuse_other_manifests(self) -> None:
        assert self._hold is not None
        for part in range(len(self.spec.parts)):
            # What was there when the folder was opened is gone: this is what another process has written since.
            manifest = read_manifest(self.path / format.manifest_name(part), images=False)
            if manifest is not None and manifest.identity != self._plan.up_to(part).identity:
                raise resume.other_images(self.path, self._hold.living)

    def is_extended(self) -> bool:
        """Tell whether another process has extended the run since it was opened here; to be asked :meth:`alone`."""
        return (self.path / format.manifest_name(len(self.spec.parts))).exists()

    def lacking(self) -> list[ShardSpec]:
        """Return the shards that are not there, those of other processes too; to be asked :meth:`alone`."""
        with suppress(OSError):
            # A change of its own makes an NFS client ask for what others have changed.
            os.utime(self.path / format.SHARD_FOLDER)
        there = {*shard_names(self.path)}
        return [shard for shard in self.spec.shards() if shard.file_name not in there]

    def gather_digests(self) -> None:
        """Take the digests of all processes into ``SHA256SUMS``, all shards being there; to be done :meth:`alone`.

        Raises:
            StoreError: A shard without one, as a kill leaves it, is damaged; the disk refuses.
        """
        assert self._hold is not None
        resume.gather_digests(self.path, self.spec, self._hold.living)

    def drop_partial_files(self) -> None:
        """Remove what is unfinished, beside threads that may still be writing it; never raises for a file that is gone."""
        # By their names alone: to open what is finished takes minutes, and a signal waits for this.
        for path in partial_files(self.path, self.share, alone=self.share is None):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others write the folder."""
        if self._hold is not None:
            self._hold.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_folder(folder: Path, spec: RunSpec, existing: str, share: Share | None = None) -> RunFolder:
    """Make a run folder, or open one to go on where a run has stopped.

    Args:
        folder: Where the run is written; made if missing.
        spec: The run, as it would be in an empty folder.
        existing: ``resume``: keep finished shards of the same run, refuse those of another; ``extend``: likewise, but images
            that the run does not have are added to it, and rows of those that are no longer there stay; ``replace``: what this
            program has written there, and nothing else, is removed by :meth:`RunFolder.prepare`; ``fail``: refuse a folder
            that holds results.
        share: What of the run this process makes; others may open the folder for other shares at any time. Not with
            ``replace`` and ``fail``, which would mean what the others have made.

    Raises:
        LockedError: A live process writes the folder, or makes the same share, or one of another division.
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
        refresh(folder)
        refuse_foreign_folder(folder)
        disk.make_folder(shards)
    except OSError as error:
        raise disk.write_error(folder, error) from error
    hold = take_lock(folder, share)
    try:
        run_folder = _open(folder, hold, spec, existing, share)
        hold.let_others()
        return run_folder
    except BaseException:
        hold.release()
        raise


def preview_folder(folder: Path, spec: RunSpec, existing: str, share: Share | None = None) -> RunFolder:
    """Return what :func:`open_folder` would, and refuse what it would refuse, but change nothing and hold no lock.

    Shards without a digest count as finished: what :func:`open_folder` would find in them takes as long as reading them.

    Raises:
        LockedError: As there.
        StoreError: As there.
    """
    try:
        refresh(folder)
        refuse_foreign_folder(folder)
        disk.refuse_unwritable(folder)
        is_locked, is_new = (folder / format.LOCK_NAME).exists(), not folder.is_dir()
    except OSError as error:
        raise unreadable(folder, error) from error
    if is_locked:
        take_lock(folder, share).release()
    if is_new:
        return RunFolder(folder, None, share, Kept(_new_plan(spec), frozenset(), {}, ()))
    return _open(folder, None, spec, existing, share)


def _open(folder: Path, hold: Hold | None, spec: RunSpec, existing: str, share: Share | None) -> RunFolder:
    """Say what is kept, replaced and made in a folder that is there; remove useless files if the folder is held.

    Raises:
        UnreadableError: A finished file is in use, or the system does not let us read it or ask for it.
    """
    try:
        kept = _keep(folder, hold, spec, existing, share)
        run_folder = RunFolder(folder, hold, share, kept)
        refuse_foreign_files(folder, run_folder.missing, len(run_folder.spec.parts), run_folder.replaced)
    except OSError as error:
        raise unreadable(Path(error.filename or folder), error) from error
    if hold is not None and share is not None and kept.replaced:
        # Manifests that no shard is of. At once: whoever opens the folder next would take them for those of a part that lives.
        disk.remove_all(run_folder.replaced)
        forget_missing(folder)
        run_folder.replaced = ()
    return run_folder


def _keep(folder: Path, hold: Hold | None, spec: RunSpec, existing: str, share: Share | None) -> Kept:
    if existing == REPLACE:
        return Kept(_new_plan(spec), frozenset(), {}, tuple(_all_files(folder)))
    if existing == FAIL and (paths := result_paths(folder)):
        raise StoreError(
            f"{folder}: the folder holds results, got {len(paths)} files from {paths[0].name} on. Expected none, since "
            f"output.existing=fail. Use output.existing=resume or replace, or another name=..."
        )
    return resume.keep_finished(folder, spec, existing == EXTEND, share, hold.living if hold else (), mends=hold is not None)


def _new_plan(spec: RunSpec) -> RunPlan:
    return RunPlan(spec, (spec.manifest.digest,))


def expected_bytes(spec: RunSpec, shards: tuple[ShardSpec, ...]) -> int | None:
    """Return the size of these shards' activations before compression; None at native size, where nobody knows it."""
    shapes = [feature.shape for feature in spec.features]
    if None in shapes:
        return None
    return sum(shard.rows for shard in shards) * format.row_bytes(spec.features, spec.dtype)


def _all_files(folder: Path) -> list[Path]:
    """Return everything this program has written in a folder, in the order in which to remove it."""
    partial = partial_files(folder)
    results = [path for path in result_paths(folder) if path not in partial and not tables.is_foreign(path)]
    # This program makes no links: what one leads to is somebody else's, and so is the link.
    own = [path for path in [*results, *companion_paths(folder), *partial] if not path.is_symlink()]
    # The index first: while it is there, a reader takes the run for whole.
    return sorted(own, key=lambda path: path.name != format.INDEX_NAME)
