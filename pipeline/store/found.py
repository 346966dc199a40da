"""What an earlier run has left in a run folder: its files, the run that each is of, and the images of that run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from ..records import Manifest, digest_identity, digest_images
from . import disk, format, remote, tables
from .damage import reading
from .identity import read_identity, rows_of
from .listing import Listing, read_listing

_SHARD = re.compile(f"{format.SHARD_NAME.pattern}|{format.PARTIAL_SHARD_NAME.pattern}")


@dataclass(frozen=True, slots=True)
class Result:
    """A shard or an index under its own name.

    Attributes:
        path: Where.
        identity: Of the run that it is of; None if it is damaged.
        part: Of a shard, the part that its name says; of the index, the last one it holds.
    """

    path: Path
    identity: Mapping[str, str] | None
    part: int


@dataclass(frozen=True, slots=True)
class FoundPart:
    """A part of a run of which something is there.

    Attributes:
        identity: Of the run with this part.
        listing_path: Where the list of its images is, or was.
        shards: Its shards that are there.
        begun: Whether more than the list is there.
    """

    identity: Mapping[str, str]
    listing_path: Path
    shards: tuple[Path, ...]
    begun: bool

    def listing(self) -> Listing | None:
        """Gives what the part was planned for: as its list says, else as its shards say; None if not all of them are there."""
        listing = read_listing(self.listing_path)
        if listing is not None and listing.identity == self.identity:
            return listing
        images = self.finished_images()
        if self.identity["images"] != f"{len(images)} rows, digest {images.digest}":
            return None
        return Listing(self.identity, images, np.zeros(0, np.int64))

    def finished_images(self) -> Manifest:
        """Gives the images in the shards that are there; sizes are those of the files as read."""
        columns: dict[str, list[str]] = {}
        for path in self.shards:
            with reading(path, "the tree"), tables.open_file(path) as file:
                for name in file["images"]:
                    columns.setdefault(name, []).extend(tables.read_column(file, path, name).tolist())
        keys, labels = tuple(columns.pop("key", ())), tuple(columns.pop("label", ()))
        sizes = np.array(columns.pop("bytes", ()), np.int64)
        own = {*format.TEXT_COLUMNS, *format.NUMBER_COLUMNS}
        metadata = {name: tuple(values) for name, values in columns.items() if name not in own}
        return Manifest("", keys, labels, sizes, {}, metadata, {}, digest_images(keys, labels, sizes, metadata))


def result_paths(folder: Path) -> list[Path]:
    """Gives what the store has written in a folder, whole or partial: shards in order, then the index."""
    return [*(folder / format.shard_path(name) for name in shard_names(folder)), *index_paths(folder)]


def index_paths(folder: Path) -> list[Path]:
    """Gives the index and what is to become it, as far as they are there."""
    index = folder / format.INDEX_NAME
    return [path for path in (index, disk.partial_path(index)) if path.is_file()]


def shard_names(folder: Path) -> list[str]:
    """Gives the names of shards in a run folder, whole or partial, in order; links to files too."""
    return sorted(entry.name for entry in _shard_entries(folder) if entry.is_file())


def shard_links(folder: Path) -> list[Path]:
    """Gives the links to files among them."""
    return sorted(Path(entry.path) for entry in _shard_entries(folder) if entry.is_symlink() and entry.is_file())


def _shard_entries(folder: Path) -> list[Any]:
    try:
        # The system tells what a name is while it lists it. Asking for each of a million takes seconds, of a server minutes.
        with remote.scan(folder / format.SHARD_FOLDER) as entries:
            return [entry for entry in entries if _SHARD.fullmatch(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def listing_paths(folder: Path) -> list[Path]:
    """Gives the lists of images in a folder, in the order of the parts."""
    return sorted(
        (path for path in folder.iterdir() if format.MANIFEST_NAME.fullmatch(path.name) and path.is_file()),
        key=lambda path: _part(format.MANIFEST_NAME.fullmatch(path.name)),
    )


def read_result(path: Path) -> Result:
    """Says which run a shard or index is of.

    Raises:
        StoreError: The file is in use, cannot be read, is of another program or of a later version: perhaps good, and not ours
            to remove.
    """
    shard = format.SHARD_NAME.fullmatch(path.name)
    try:
        # No more than is needed: what a user has added to a file is no reason to call it damaged, and to remove it.
        with reading(path, "the root"), tables.open_file(path, all_nodes=False) as file:
            part = len(tables.read_parts(file, path)) - 1
            return Result(path, read_identity(file.attrs["identity"]), _part(shard) if shard else part)
    except tables.DamagedError:
        return Result(path, None, _part(shard))


def find_parts(folder: Path, results: Sequence[Result]) -> list[FoundPart]:
    """Gives the parts of the run that a folder holds, in order.

    Raises:
        StoreError: Files are of different runs, or nothing is left of a part that a later one extends.
    """
    lists = {_part(format.MANIFEST_NAME.fullmatch(path.name)): path for path in listing_paths(folder)}
    whole = [result for result in results if result.identity is not None]
    last = max([*lists, *(result.part for result in whole)], default=-1)
    parts: list[FoundPart] = []
    for number in range(last + 1):
        path = folder / format.manifest_name(number)
        own = [result for result in whole if result.part == number]
        shards = tuple(result.path for result in own if result.path.parent != folder)
        if own:
            identity = own[0].identity
        else:
            listing = read_listing(path)
            identity = listing.identity if listing else None
        belongs = identity is not None and identity.get("extends") == _extends(parts)
        if not belongs and not own and number == last:
            break  # a list that is damaged or of an earlier run, and nothing else: no part was begun
        if identity is None:
            raise StoreError(
                f"{folder}: nothing is left of a part of the run, got neither {path.name} nor a shard of part {number}, which "
                f"part {last} follows. Expected one of them. Put it back, or use output.existing=replace to start again."
            )
        if not belongs:
            raise StoreError(
                f"{own[0].path if own else path}: of another run than the parts before, got one that extends "
                f"{identity.get('extends')!r}. Expected {_extends(parts)!r}. Move it away, or use output.existing=replace."
            )
        parts.append(FoundPart(identity, path, shards, bool(own)))
    return parts


def _extends(parts: Sequence[FoundPart]) -> str | None:
    """Gives what the identity of the next part says that it extends."""
    if not parts:
        return None
    rows = sum(rows_of(part.identity) for part in parts)
    return f"{rows} rows, digest {digest_identity(parts[-1].identity)}"


def _part(name: re.Match[str] | None) -> int:
    """Gives the part that the name of a file says."""
    return int(name[1] or 0) if name else 0
