"""What is taken out of a run folder, so that the extraction makes it again, and what is added to its digests on a resume."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from ..errors import StoreError
from ..records import ShardSpec
from . import disk, format, remote
from .digests import Digests, digest_of
from .found import shard_names
from .guard import DAMAGED, Guard, renamed
from .judgement import Verdict

_log = logging.getLogger(__name__)


def repair(verdict: Verdict) -> list[str]:
    """Removes the shards and the index that are damaged, and the lines of ``SHA256SUMS`` that are wrong; nothing else.

    Where a file is in use or could not be read, nothing is removed: what others say of it may be wrong too. Whoever calls it
    holds the folder's lock, and has held it since before the verdict.

    Args:
        verdict: Of the folder.

    Returns:
        What was removed: paths from the run folder, and ``SHA256SUMS: <name>`` for a line.

    Raises:
        StoreError: The disk refuses.
    """
    if verdict.unread:
        return []
    folder, index = verdict.folder, format.INDEX_NAME
    # This program makes no links: what one leads to is somebody else's, and so is the link.
    names = [name for name in verdict.damaged if not (folder / name).is_symlink()]
    if index not in names and (folder / index).is_file() and (verdict.indexed & {*names} or _lacks_shards(verdict)):
        # While it is there, a reader takes all rows that it has for whole.
        names.append(index)
    digests = Digests(folder)
    lines = [name for name in digests.by_name if name in {*names, *verdict.distrusted}]
    removed = [*names, *(f"{format.DIGESTS_NAME}: line {number}" for number, _ in digests.unreadable)]
    removed += [f"{format.DIGESTS_NAME}: {name}" for name in lines]
    try:
        # First: a kill in between leaves lines missing, never wrong ones.
        digests.drop(lines)
    except OSError as error:
        raise disk.write_error(digests.path, error) from error
    for name in sorted(names, key=lambda name: name != index):
        disk.remove(folder / name)
    return removed


def _lacks_shards(verdict: Verdict) -> bool:
    return any(name in verdict.indexed and not (verdict.folder / name).exists() for name in verdict.findings)


def complete_digests(folder: Path, finished: Iterable[ShardSpec]) -> dict[Path, str]:
    """Adds the lines that a killed run has left out, once rows and columns of those shards have been checked.

    Args:
        folder: The run folder, locked.
        finished: The shards that are there and belong to the run.

    Returns:
        Those of them that are damaged, and have got no line -> what is wrong.

    Raises:
        StoreError: The disk refuses; a shard can neither be trusted nor removed: it is in use, cannot be read, is of another run.
    """
    digests = Digests(folder)
    names = sorted(format.shard_path(shard.file_name) for shard in finished)
    without = [name for name in names if name not in digests.by_name]
    if without:
        _log.info("%s: %d finished shards have no line yet; checking them", digests.path, len(without))
    damaged: dict[Path, str] = {}
    guard, copies = Guard(threads=1), remote.Copies(lambda path: 1)
    try:
        for name in without:
            with copies.here(folder / name) as here:
                found = renamed(guard.examine(here), here, folder / name).findings
                digest = "" if found else digest_of(here)
            if others := [finding for finding in found if finding.kind != DAMAGED]:
                # Whatever this is, it is no leftover of a kill.
                raise StoreError(others[0].line)
            if found:
                damaged[folder / name] = f"damaged: {found[0].line}"
            else:
                digests.add(name, digest)
    except OSError as error:
        raise disk.write_error(digests.path, error) from error
    finally:
        guard.close()
    return damaged


def forget_missing(folder: Path) -> None:
    """Removes the lines of ``SHA256SUMS`` whose files are not there any more, and those that are torn.

    What is to be forgotten of writers must have been folded in; of those that live it is theirs.

    Raises:
        StoreError: The disk refuses.
    """
    digests = Digests(folder)
    try:
        digests.drop_missing({*shard_names(folder)})
    except OSError as error:
        raise disk.write_error(digests.path, error) from error
