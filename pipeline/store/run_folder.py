"""The run folder: who may write it, what of an earlier run is kept, and what is left to make in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from ..errors import LockedError, StoreError
from ..records import RunSpec, Transform
from ..sharding import ShardSpec, Share
from ..storage import read_ahead, refresh
from . import damage, disk, format, tables
from .damage import DamagedError
from .digests import Digests, digest_of
from .lock import Hold
from .run_contents import Plan, list_files, partial_files, plan_new_run, plan_parts, read_run_contents, up_to, write_manifest
from .verification import complete_digests

_log = logging.getLogger(__name__)

REPLACE, FAIL, EXTEND = "replace", "fail", "extend"


class RunFolder(AbstractContextManager["RunFolder"]):
    """A run folder held by this process until :meth:`close`, or the end of the process however it comes.

    Attributes:
        path: The folder.
        spec: The run with all its parts, those that are there and the one that is to be added.
        share: What of it this process makes, beside others that hold the folder too; None: all of it, alone.
        own: The shards of this share, in order.
        finished: Those of them that are there and belong to the run.
        replaced: Files of an earlier run that :meth:`prepare` will remove.
    """

    def __init__(
        self,
        path: Path,
        plan: Plan,
        hold: Hold | None,
        share: Share | None,
        finished: Collection[ShardSpec] = (),
        replaced: Collection[Path] = (),
        indexed_rows: int = 0,
    ) -> None:
        self.spec, self._parts = plan
        self.path, self.share, self.replaced = path, share, replaced
        self.own = tuple(shard for shard in self.spec.shards() if share is None or share.has(shard.number))
        self.finished = frozenset(finished)
        self._hold, self._indexed_rows = hold, indexed_rows
        self._digests: Digests | None = None
        self._transforms = b""

    @property
    def missing(self) -> tuple[ShardSpec, ...]:
        """The others of its own, in order: those to make."""
        return tuple(shard for shard in self.own if shard not in self.finished)

    def parts(self) -> Iterator[tuple[RunSpec, tuple[ShardSpec, ...]]]:
        """Yield the run up to each part of which shards are missing, and these shards."""
        for part in sorted({shard.part for shard in self.missing}):
            yield up_to(self.spec, self._parts, part), tuple(shard for shard in self.missing if shard.part == part)

    def digests(self) -> Digests:
        """Return what finished shards get their lines in."""
        self._digests = Digests(self.path, self.share.mark if self.share else "")
        return self._digests

    def alone(self) -> AbstractContextManager[None]:
        """Keep other processes from opening the folder, or from writing its index, during the block; not in a preview."""
        return self._hold.alone() if self._hold else nullcontext()

    def give_transforms(self, transforms: Mapping[str, Transform], digest: str, content: bytes) -> None:
        """Add fitted transforms to the run, with the SHA-256 of their file, whose content, if any, :meth:`prepare` will write."""
        self._transforms = content
        attributes = {**self.spec.attributes, "transforms_sha256": digest}
        self.spec = replace(self.spec, transforms=transforms, attributes=attributes)

    def make_again(self, shards: Collection[ShardSpec]) -> None:
        """Count finished shards as missing; the file of each stays until the new one takes its name. Not for a share."""
        self.finished -= frozenset(shards)

    def prepare(self) -> None:
        """Remove what is to be replaced, write the manifest of each part that has none, or a damaged one, and the transforms.

        Not done before everything that could still refuse the run has agreed; of a share at once, so that others see the plan.
        """
        with self.alone():
            if any(shard.stop <= self._indexed_rows for shard in self.missing):
                # Its tables are those of the shards as they were. While it is there, a reader takes the run for whole.
                disk.remove(self.path / format.INDEX_NAME)
            disk.remove(*self.replaced)
            digests = Digests(self.path)
            # A kill must leave no line that is not true of a shard: none of one that is made again.
            digests.drop_missing(besides=[format.shard_path(shard.file_name) for shard in self.missing])
            for number, part in enumerate(self._parts):
                if not digests.agrees(format.manifest_name(number)):
                    write_manifest(self.path, number, part)
            if self._transforms:
                disk.write_file(self.path / format.TRANSFORMS_NAME, self._transforms, Digests(self.path).publish)

    def is_extended(self) -> bool:
        """Tell whether another process has extended the run since it was opened here; to be asked :meth:`alone`."""
        return (self.path / format.manifest_name(len(self._parts))).exists()

    def lacking(self) -> list[ShardSpec]:
        """Return the shards that are not there, those of other processes too; to be asked :meth:`alone`."""
        with suppress(OSError):
            # A change of its own makes an NFS client ask for what others have changed.
            os.utime(self.path / format.SHARD_FOLDER)
        there = {*list_files(self.path)[0]}
        return [shard for shard in self.spec.shards() if format.shard_path(shard.file_name) not in there]

    def gather_digests(self) -> None:
        """Do as :func:`gather_digests`, all shards being there; :meth:`alone`."""
        assert self._hold is not None
        gather_digests(self.path, self.spec, self._hold.living)

    def drop_partial_files(self) -> None:
        """Remove what is unfinished, beside threads that may still be writing it; never raises for a file that is gone."""
        if self._digests:
            self._digests.close()
        # By their names alone: to open what is finished takes minutes, and a signal waits for this.
        for name in partial_files(list_files(self.path)[0], self.share):
            (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let others write the folder."""
        if self._hold is not None:
            self._hold.release()

    def __exit__(self, *_: object) -> None:
        self.close()


def open_folder(folder: Path, spec: RunSpec, existing: str, share: Share | None = None, *, preview: bool = False) -> RunFolder:
    """Make a run folder, or open one to go on where a run has stopped.

    Args:
        folder: Where the run is written; made if missing.
        spec: The run, as it would be in an empty folder.
        existing: ``resume``: keep finished shards of the same run, refuse those of another; ``extend``: likewise, but images
            that the run does not have are added to it, and rows of those that are no longer there stay; ``replace``: what this
            program has written there, and nothing else, is removed by :meth:`RunFolder.prepare`; ``fail``: refuse results.
        share: What of the run this process makes; others may open the folder for other shares at any time. Not with
            ``replace`` and ``fail``, which would mean what the others have made.
        preview: Whether nothing is changed and no lock is held after this. Shards without a digest then count as finished: to
            find out takes as long as reading them.

    Raises:
        LockedError: A live process writes the folder, or makes the same share, or one of another division.
        StoreError: It holds what ``existing`` does not allow, or files of somebody else; the disk refuses.
    """
    count = -(-len(spec.manifest) // spec.images_per_shard)
    if count > format.MOST_SHARDS or len(spec.manifest) > format.MOST_ROWS:
        expected = f"{format.MOST_ROWS} in {format.MOST_SHARDS}. Raise output.images_per_shard, or divide the images."
        raise StoreError(f"{folder}: too large, got {len(spec.manifest)} images in {count} shards. Expected at most {expected}")
    with disk.writing(folder):
        refresh(folder)
        _refuse_foreign_files(folder)
        if not preview:
            disk.make_folder(folder / format.SHARD_FOLDER)
        else:
            disk.refuse_unwritable(folder)
            if (folder / format.LOCK_NAME).exists():
                Hold(folder, share).release()
    hold = None if preview else Hold(folder, share)
    try:
        run_folder = _find_finished(folder, hold, spec, existing, share)
        if hold and share:
            run_folder.prepare()
            hold.let_others()
        return run_folder
    except BaseException as error:
        if hold:
            hold.release()
        if isinstance(error, OSError):
            raise damage.damaged(Path(error.filename or folder), "", error) from error
        raise


def gather_digests(folder: Path, spec: RunSpec, living: Collection[Share] = ()) -> None:
    """Take the digests of all processes into ``SHA256SUMS``, and add those that a kill has left out.

    The folder is locked, and all shards are there. ``living``: shares that other processes make, or have made just now.
    """
    Digests(folder).fold(living)
    for error in complete_digests(folder, spec.shards()).values():
        raise error
    digests = Digests(folder)
    for name in map(format.manifest_name, range(len(spec.parts))):
        if name not in digests.by_name:
            digests.add(name, digest_of(folder / name))


def _refuse_foreign_files(folder: Path) -> None:
    """Refuse links, folders and pipes under names of a run, which would be followed or waited for, and somebody else's folder."""
    files, special = list_files(folder)
    for name in special:
        damage.require_file(folder / name)
    names = [name for name in files if name in format.COMPANION_NAMES]
    is_run = any(name.startswith((format.SHARD_FOLDER, format.INDEX_NAME, "manifest")) for name in files)
    if names and not is_run and not (folder / format.LOCK_NAME).exists():
        happened = f"not a run folder, got {', '.join(names)} of somebody else. Expected an empty folder, or a run's"
        raise StoreError(f"{folder}: {happened}. Choose another by name=... or output.dir=...")


def _find_finished(folder: Path, hold: Hold | None, spec: RunSpec, existing: str, share: Share | None) -> RunFolder:
    """Say what is kept, replaced and made in a folder; where it is held, remove what is useless.

    Of a share no more is looked at, and removed, than its own files: even where locks do not tell who lives, nobody loses any.
    """
    contents = read_run_contents(folder)
    results = [name for name in contents.files if name.startswith((format.SHARD_FOLDER, format.INDEX_NAME))]
    if existing == FAIL and results:
        happened = f"the folder holds results, got {len(results)} files, e.g. {results[0]}"
        raise StoreError(
            f"{folder}: {happened}. Expected none, since output.existing=fail. Use resume or replace, or another name."
        )
    if existing == REPLACE:
        for name in results:
            if name.endswith(".h5") and tables.is_foreign(folder / name):
                raise damage.foreign(folder / name, "not a file of the run, got one of another program", "nothing of this name")
        # The index first: while it is there, a reader takes the run for whole.
        replaced = [folder / name for name in sorted(contents.files, key=lambda name: name != format.INDEX_NAME)]
        return RunFolder(folder, plan_new_run(spec), hold, share, replaced=replaced)
    if hold:
        Digests(folder).fold(hold.living)
    spec, manifests = plan_parts(spec, contents, existing == EXTEND)
    useless = {folder / name: "unfinished" for name in partial_files(contents.files, share)}
    parts = {format.manifest_name(number): manifest.part for number, manifest in enumerate(manifests)}
    others = [name for name, found in contents.manifests.items() if name not in parts or (found and found.part != parts[name])]
    if others and hold and hold.living:
        happened = f"other parts make a run of other images or options, got part {min(map(str, hold.living))} of it"
        remedy = "Wait for them, then run the parts again with output.existing=extend."
        raise LockedError(f"{folder}: {happened}. Expected the same of all parts. {remedy}")
    useless |= {folder / name: "the plan of a part that has no shards" for name in others}
    shards, digests = {shard.file_name: shard for shard in spec.shards()}, [part.digest for part in spec.parts]
    own = sorted(name for name in contents.shards if share is None or share.has(format.shard_number(name)))
    finished: set[ShardSpec] = set()
    for path in read_ahead(folder / format.shard_path(name) for name in own):
        if path.name not in shards:
            # Perhaps somebody else's; what this run would never write over is not for it to remove.
            raise damage.foreign(path, f"not in this run's plan of {len(shards)} shards, got an extra file", "a shard of it")
        shard = shards[path.name]
        try:
            with tables.open_file(path) as file:
                tables.check_shard(file, path, digests[shard.part], shard)
                for name in ("error", "bytes", "sha256"):  # which pipeline.job.check_finished reads
                    tables.read_column(file, path, name)
            finished.add(shard)
        except DamagedError:
            useless[path] = "damaged"
    for path, error in (complete_digests(folder, finished) if hold else {}).items():
        useless[path] = f"damaged: {error}"
        finished.remove(shards[path.name])
    indexed_rows = 0
    if format.INDEX_NAME in contents.files:
        index = folder / format.INDEX_NAME
        try:
            with tables.open_file(index) as file:
                digest, indexed_rows = tables.read_plan(file, index)[0][-1]
            if (digest, indexed_rows) not in spec.parts:
                raise damage.of_another_run(index, digest, spec.digest)
        except DamagedError:
            useless[index] = "damaged"
    for path, reason in useless.items():
        _log.warning("%s: %s, since it is %s", path, "removed" if hold else "to be removed", reason)
        if hold:
            disk.remove(path)
    return RunFolder(folder, (spec, manifests), hold, share, finished, indexed_rows=indexed_rows)
