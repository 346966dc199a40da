"""Which parts the run in a folder has, as its files say.

A shard or index names the parts up to its own, a list of images the run that its part extends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..records import Part, digest_identity
from . import format
from .listing import read_listing


class Listed(NamedTuple):
    """What a list of images says of its part. ``extends``: the run before it, as the identity has it; None: there is none."""

    digest: str
    extends: str | None
    rows: int


def read_listed(path: Path) -> Listed | None:
    """Reads a list of images; None if it is not as it was written.

    Raises:
        UnreadableError: The system does not let us read it.
    """
    listing = read_listing(path)
    if listing is None:
        return None
    return Listed(digest_identity(listing.identity), listing.identity.get("extends"), len(listing.images))


def extends(before: tuple[Part, ...]) -> str | None:
    """Gives what the identity of the part after these says that it extends."""
    return f"{before[-1].stop} rows, digest {before[-1].digest}" if before else None


def find_run(files: Iterable[tuple[Part, ...]], listed: Mapping[str, Listed | None]) -> tuple[Part, ...]:
    """Gives the parts of the run that most files are of, and those that have no more than a list of images yet.

    Args:
        files: The parts that each shard or index names.
        listed: Name -> what the list of images says.

    Returns:
        The parts in order; none where no file tells.
    """
    counts = Counter(files)
    if not counts:
        return ()
    run = max(counts, key=lambda parts: (sum(n for other, n in counts.items() if is_of(other, parts)), len(parts)))
    while (found := listed.get(format.manifest_name(len(run)))) and found.extends == extends(run):
        run += (Part(found.digest, run[-1].stop + found.rows),)
    return run


def is_of(parts: tuple[Part, ...], run: tuple[Part, ...]) -> bool:
    """Tells whether a file that names these parts is of this run, which may have been extended since."""
    return parts == run[: len(parts)]
