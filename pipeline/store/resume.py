"""What of an earlier run is kept in a run folder, what is refused, and what is in the way; with the folder's lock held."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py

from ..errors import LockedError, StoreError
from ..records import RunSpec, ShardSpec, Share
from ..storage import read_ahead
from . import disk, format, tables
from .damage import DamagedError, ForeignError, extra_file, reading
from .digests import Digests, digest_of
from .extend import RunPlan, another_run, plan_parts
from .file_checks import own_node
from .foreign_files import foreign_file
from .manifest_file import parse_identity, read_manifest
from .run_contents import manifest_paths, partial_files, read_run_contents, shard_links
from .verification import complete_digests, forget_missing

_log = logging.getLogger(__name__)

# How the errors of images begin that failed for a reason that may pass. See :mod:`pipeline.images.loader`.
_MAY_PASS = ("missing", "unreadable")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a folder holds of a run.

    Attributes:
        plan: The run with all its parts.
        finished: The shards that are there, of those that this process is to make.
        unread: Of finished shards the rows whose images were missing or could not be read.
        replaced: Files of an earlier run that are to be removed.
    """

    plan: RunPlan
    finished: frozenset[ShardSpec]
    unread: Mapping[ShardSpec, tuple[int, ...]]
    replaced: tuple[Path, ...]


def keep_finished(folder: Path, spec: RunSpec, extend: bool, share: Share | None, living: Collection[Share], mends: bool) -> Kept:
    """Keep finished shards of the run; where it ``mends``, remove partial and damaged files, once all others prove to be its own.

    Beside other processes that each make a share, no more is looked at, and removed, than the own share: even where locks do
    not tell who lives, nobody loses what he is at.

    Args:
        folder: The run folder, locked.
        spec: The run as it would be in an empty folder.
        extend: Whether images that the run does not have are added to it.
        share: Of this process; None: all.
        living: Shares that other processes make.
        mends: Whether useless files are removed, and digests completed.

    Raises:
        StoreError: The folder holds another run, or what is none of this program's.
        LockedError: Living processes make another run.
    """
    if mends:
        fold_digests(folder, living)
    index = folder / format.INDEX_NAME
    links = [*shard_links(folder), *(path for path in (index, disk.partial_path(index)) if path.is_symlink() and path.is_file())]
    if links:
        # A finished shard behind one too: what it leads to may change, and vanish, without anybody knowing here.
        raise foreign_file(links[0])
    contents = read_run_contents(folder)
    for error in contents.unreadable.values():
        raise error
    plan = plan_parts(spec, contents, extend)
    shards = {shard.file_name: shard for shard in plan.spec.shards()}
    useless = dict.fromkeys(partial_files(folder, share), "unfinished")
    own = sorted(name for name in contents.shards if share is None or share.has(format.shard_number(name)))
    found: dict[ShardSpec, tuple[int, ...]] = {}
    for path in read_ahead(folder / format.shard_path(name) for name in own):
        shard = shards.get(path.name)
        if shard is None:
            # Perhaps somebody else's; what this run would never write over is not for it to remove.
            raise extra_file(path, next(iter(shards)), len(shards))
        rows = _unread_rows(path, plan, shard)
        if rows is not None:
            found[shard] = rows
        else:
            useless[path] = "damaged"
    parts_indexed = _parts_of_index(index, plan) if index.is_file() else 0
    if mends:
        useless |= complete_digests(folder, found)
    finished = {shard for shard in found if folder / format.shard_path(shard.file_name) not in useless}
    there = {shard.file_name for shard in finished} | {*contents.shards}.difference(own)
    if index.is_file() and parts_indexed is None:
        useless[index] = "damaged"
    elif index.is_file() and any(
        shard.part < (parts_indexed or 0) and shard.file_name not in there for shard in plan.spec.shards()
    ):
        useless[index] = "an index of shards that are to be made again"
    for path, reason in useless.items():
        _log.warning("%s: %s, since it is %s", path, "removed" if mends else "to be removed", reason)
        if mends:
            disk.remove(path)
    if mends:
        forget_missing(folder)
    # A manifest of a part that is not of this run, or is planned anew.
    kept = {folder / format.manifest_name(part) for part in range(plan.kept)}
    replaced = [path for path in manifest_paths(folder) if path not in kept]
    if replaced and living:
        raise other_images(folder, living)
    if not mends:
        replaced += [path for path in useless if not path.is_symlink()]
    unread = {shard: rows for shard, rows in found.items() if rows and shard in finished}
    return Kept(plan, frozenset(finished), unread, tuple(replaced))


def other_images(folder: Path, living: Collection[Share]) -> LockedError:
    """Return the one line for a process that would make another run than those that live."""
    beside = min(living, key=lambda share: share.number) if living else "another"
    return LockedError(
        f"{folder}: other parts make a run of other images or options, got part {beside} of it. Expected all parts with the "
        f"same images and options. Wait for them, then run the parts again with output.existing=extend."
    )


def gather_digests(folder: Path, spec: RunSpec, living: Iterable[Share] = ()) -> None:
    """Take the digests of all processes into ``SHA256SUMS``, and add those that a kill has left out.

    Args:
        folder: The run folder, locked; all shards are there.
        spec: The run.
        living: Shares that other processes make, or have made just now.

    Raises:
        StoreError: A shard without a digest is damaged; the disk refuses.
    """
    fold_digests(folder, living)
    for reason in complete_digests(folder, spec.shards()).values():
        raise StoreError(reason.removeprefix("damaged: "))
    digests = Digests(folder)
    try:
        for number, part in enumerate(spec.parts):
            name = format.manifest_name(number)
            if name not in digests.by_name and (manifest := read_manifest(folder / name)) and manifest.part == part:
                digests.add(name, digest_of(folder / name))
    except OSError as error:
        raise disk.write_error(digests.path, error) from error


def fold_digests(folder: Path, living: Iterable[Share]) -> None:
    """Take the lines of processes that are done or dead into ``SHA256SUMS``.

    Raises:
        StoreError: The disk refuses.
    """
    digests = Digests(folder)
    try:
        digests.fold([share.mark for share in living])
    except OSError as error:
        raise disk.write_error(digests.path, error) from error


def _root(file: h5py.File) -> tuple[str, Mapping[str, str]]:
    return str(file.attrs["run_digest"]), parse_identity(str(file.attrs["identity"]))


def _parts_of_index(path: Path, plan: RunPlan) -> int | None:
    """Return how many parts of the run an index has; None where it is damaged.

    Raises:
        StoreError: It is of another run, in use, or the system does not let us read it.
    """
    try:
        with reading(path, "the root"), tables.open_file(path, all_nodes=False) as file:
            digest, identity = _root(file)
    except DamagedError:
        return None
    digests = [part.digest for part in plan.spec.parts]
    if digest not in digests:
        raise another_run(path, plan.spec, identity)
    return digests.index(digest) + 1


def _unread_rows(path: Path, plan: RunPlan, shard: ShardSpec) -> tuple[int, ...] | None:
    """Return the rows of a shard whose images were missing or could not be read; None where the file is not it, or damaged.

    Raises:
        StoreError: It is of another run, in use, or the system does not let us read it.
    """
    with suppress(DamagedError), reading(path, "the tree"), tables.open_file(path, all_nodes=False) as file:
        digest, identity = _root(file)
        if digest != plan.spec.parts[shard.part].digest:
            raise another_run(path, plan.spec, identity)
        with suppress(ForeignError):
            tables.check_shard(file, path, digest, shard)
            for feature in plan.spec.features:
                own_node(file["features"], feature.layer.name)
            errors = tables.read_column(file, path, "error").tolist()
            return tuple(row for row, error in enumerate(errors, shard.first) if error.startswith(_MAY_PASS))
    return None
