"""What of an earlier run is kept in a run folder, and what is in the way: judged with the folder's lock held."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LockedError, StoreError
from ..records import RunSpec, ShardSpec, Share, digest_identity
from . import disk, format, remote, tables
from .chain import Chain, another_run, settle_parts
from .damage import DamagedError, ForeignError, extra_file, reading
from .digests import Digests, digest_of
from .file_checks import own_node
from .foreign_files import foreign_file
from .found import Result, find_parts, index_paths, listing_paths, read_result, shard_links, shard_names
from .listing import read_listing
from .repair import complete_digests, forget_missing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a folder holds of a run.

    Attributes:
        chain: The run with all its parts.
        finished: The shards that are there, of those that this process is to make.
        replaced: Files of an earlier run that are to be removed.
    """

    chain: Chain
    finished: frozenset[ShardSpec]
    replaced: tuple[Path, ...]


def go_on(folder: Path, spec: RunSpec, extend: bool, share: Share | None, living: Collection[Share], mends: bool) -> Settled:
    """Keeps finished shards; where it ``mends``, removes partial and damaged files, once all others prove to be of this run.

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
        _fold(folder, living)
    links = [*shard_links(folder), *(path for path in index_paths(folder) if path.is_symlink())]
    if links:
        # A finished shard behind one too: what it leads to may change, and vanish, without anybody knowing here.
        raise foreign_file(links[0])
    names = shard_names(folder)
    mine = [name for name in names if share is None or share.has(format.shard_number(name))]
    others = [] if share is None else sorted({*names} - {*mine})
    paths = [*(folder / format.shard_path(name) for name in mine), *index_paths(folder)]
    useless = dict.fromkeys([*filter(is_partial, paths), *partial_companions(folder, share)], "unfinished")
    results = [read_result(path) for path in remote.ahead(path for path in paths if path not in useless)]
    chain = settle_parts(folder, spec, find_parts(folder, [*results, *_witnesses(folder, results, others)]), extend)
    plan = {shard.file_name: shard for shard in chain.spec.shards()}
    digests = [part.digest for part in chain.spec.parts]
    finished: set[ShardSpec] = set()
    for result, path in zip(results, remote.ahead(result.path for result in results), strict=True):
        shard = plan.get(result.path.name)
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
    elsewhere = {*others}
    if index and (reason := _why_useless(index, chain.spec, lambda shard: shard in finished or shard.file_name in elsewhere)):
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
    if replaced and living:
        raise other_images(folder, living)
    if not mends:
        replaced += [path for path in useless if not path.is_symlink()]
    return Settled(chain, frozenset(finished), tuple(replaced))


def other_images(folder: Path, living: Collection[Share]) -> LockedError:
    """Gives the one line for a process that would make another run than those that live."""
    beside = min(living, key=lambda share: share.number) if living else "another"
    return LockedError(
        f"{folder}: other parts make a run of other images or options, got part {beside} of it. Expected all parts with the "
        f"same images and options. Wait for them, then run the parts again with output.existing=extend."
    )


def gather_digests(folder: Path, spec: RunSpec, living: Iterable[Share] = ()) -> None:
    """Takes the digests of all processes into ``SHA256SUMS``, and adds those that a kill has left out.

    Args:
        folder: The run folder, locked; all shards are there.
        spec: The run.
        living: Shares that other processes make, or have made just now.

    Raises:
        StoreError: A shard without a digest is damaged; the disk refuses.
    """
    _fold(folder, living)
    for reason in complete_digests(folder, spec.shards()).values():
        raise StoreError(reason.removeprefix("damaged: "))
    digests = Digests(folder)
    try:
        for number, part in enumerate(spec.parts):
            name = format.manifest_name(number)
            listing = read_listing(folder / name) if name not in digests.by_name else None
            if listing is not None and digest_identity(listing.identity) == part.digest:
                digests.add(name, digest_of(folder / name))
    except OSError as error:
        raise disk.write_error(digests.path, error) from error


def _fold(folder: Path, living: Iterable[Share]) -> None:
    digests = Digests(folder)
    try:
        digests.fold([share.mark for share in living])
    except OSError as error:
        raise disk.write_error(digests.path, error) from error


def is_partial(path: Path) -> bool:
    """Tells whether a file is not whole, by its name."""
    return path.name.endswith(format.PARTIAL_SUFFIX)


def partial_companions(folder: Path, share: Share | None = None) -> list[Path]:
    """Gives the lists of images, and the reports of parts, that are not whole; of a share its own."""
    found: list[Path] = []
    for path in folder.iterdir():
        name = path.name.removesuffix(format.PARTIAL_SUFFIX)
        is_own = name == format.report_name(share.mark) if share else format.PART_COMPANION_NAME.fullmatch(name)
        if is_partial(path) and path.is_file() and (is_own or format.MANIFEST_NAME.fullmatch(name)):
            found.append(path)
    return found


def _witnesses(folder: Path, results: Sequence[Result], others: Sequence[str]) -> list[Result]:
    """Gives a shard of each part of the run of which this process has none: it tells of which run the others are."""
    known = {result.part for result in results if result.identity is not None}
    found: list[Result] = []
    for name in others:
        shard = format.SHARD_NAME.fullmatch(name)
        if shard is None or int(shard[1] or 0) in known:
            continue
        result = read_result(folder / format.shard_path(name))
        if result.identity is not None:
            found.append(result)
            known.add(result.part)
    return found


def _why_useless(index: Result, spec: RunSpec, is_there: Callable[[ShardSpec], bool]) -> str:
    """Says why an index is to be removed; nothing if it is right, for all rows or for those before an extension."""
    if index.identity is None:
        return "damaged"
    if any(shard.part <= index.part and not is_there(shard) for shard in spec.shards()):
        return "an index of shards that are to be made again"
    return ""


def _is_whole(result: Result, spec: RunSpec, digest: str, shard: ShardSpec) -> bool:
    """Tells whether a shard that is there is one of the run.

    Raises:
        UnreadableError: It is in use, or the system does not let us read it.
    """
    if result.identity is None:
        return False
    try:
        with reading(result.path, "the tree"), tables.open_file(result.path, all_nodes=False) as file:
            tables.check_shard(file, result.path, digest, shard)
            for feature in spec.features:
                own_node(file["features"], feature.layer.name)
            return True
    except (DamagedError, ForeignError):
        return False
