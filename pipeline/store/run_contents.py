"""What lies in a run folder, in one record: its files, manifests, parts, shards planned and present. Nothing is changed.

Everything that needs to know what a run consists of asks here: resume, extend, replace, verify, repair, index and show.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..sharding import Part, ShardSpec, Share, plan_shards
from ..storage import RemotePath
from . import format
from .damage import UnreadableError, require_own_shards
from .manifest_file import PartManifest, read_manifest

# Names of files in a run folder, whole or with the suffix of those that are not; and of those in its folder of shards.
_NAMES = (*map(re.escape, (*format.COMPANION_NAMES, format.INDEX_NAME)), format.MANIFEST_NAME.pattern)
_NAMES_OF_PARTS = (format.PART_COMPANION_NAME.pattern, format.WRITER_DIGESTS_NAME.pattern)
_IN_FOLDER = re.compile(f"(?:{'|'.join([*_NAMES, *_NAMES_OF_PARTS])})(?:{re.escape(format.PARTIAL_SUFFIX)})?")
_IN_SHARDS = re.compile(f"{format.SHARD_NAME.pattern}|{format.PARTIAL_SHARD_NAME.pattern}")


@dataclass(frozen=True)
class RunContents:
    """What a run folder holds, by names and manifests.

    Attributes:
        path: The folder.
        files: As of :func:`list_files`; likewise ``special``.
        manifests: File name -> what it says, None for one that is damaged; in the order of the parts.
        unreadable: File name -> why the system does not let us read that manifest.
    """

    path: Path
    files: Sequence[str]
    special: Sequence[str]
    manifests: Mapping[str, PartManifest | None]
    unreadable: Mapping[str, UnreadableError]

    @cached_property
    def shards(self) -> frozenset[str]:
        """Names of finished shards."""
        return frozenset(finished_shards(self.files))

    @cached_property
    def planned(self) -> tuple[PartManifest, ...]:
        """Manifests of the parts, from the first on as far as each is whole and extends the one before."""
        found: list[PartManifest] = []
        while (manifest := self.manifests.get(format.manifest_name(len(found)))) and manifest.follows(found):
            found.append(manifest)
        return tuple(found)

    @cached_property
    def begun(self) -> int:
        """How many parts there are of which shards exist, and parts before those."""
        return max((part_number(name) + 1 for name in self.shards), default=0)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those of :attr:`planned`."""
        return tuple(manifest.part for manifest in self.planned)

    @property
    def lost(self) -> str:
        """Name of the first manifest that is missing, damaged or of another run though shards of its part exist; "": none."""
        return format.manifest_name(len(self.planned)) if len(self.planned) < self.begun else ""

    @cached_property
    def plan(self) -> tuple[ShardSpec, ...]:
        """Shards of all :attr:`parts`, in order."""
        if not self.planned:
            return ()
        return plan_shards([part.stop for part in self.parts], int(self.planned[-1].identity["output.images_per_shard"]))


def read_run_contents(folder: Path, images: bool = True) -> RunContents:
    """Read what a run folder holds.

    Args:
        folder: A folder.
        images: Whether the manifests are read and checked whole, or their first lines alone.

    Raises:
        StoreError: A link in place of the folder of shards leads out of it.
        OSError: The folder cannot be listed.
    """
    require_own_shards(folder)
    files, special = list_files(folder)
    manifests: dict[str, PartManifest | None] = {}
    unreadable: dict[str, UnreadableError] = {}
    for name in sorted(filter(format.MANIFEST_NAME.fullmatch, files), key=part_number):
        try:
            manifests[name] = read_manifest(folder / name, images)
        except UnreadableError as error:
            manifests[name], unreadable[name] = None, error
    return RunContents(folder, files, special, manifests, unreadable)


def list_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return what lies in a run folder under names that this program gives, as sorted paths from the folder.

    Returns:
        Regular files, whole or not; and links, folders and pipes. This program makes none, so they are somebody else's.
    """
    files, special = [], []
    for where, prefix, names in ((folder, "", _IN_FOLDER), (folder / format.SHARD_FOLDER, format.shard_path(""), _IN_SHARDS)):
        for entry in _entries(where):
            is_link = entry.is_symlink()
            if prefix + entry.name == format.SHARD_FOLDER and (is_link or not entry.is_dir()):
                special.append(entry.name)
            elif names.fullmatch(entry.name) and not is_link and entry.is_file():
                files.append(prefix + entry.name)
            # What has just gone is of neither kind.
            elif names.fullmatch(entry.name) and (is_link or (where / entry.name).exists()):
                special.append(prefix + entry.name)
    return sorted(files), sorted(special)


def _entries(folder: Path) -> Iterator[Any]:
    try:
        # The system tells what a name is while it lists it. Asking for each of a million takes seconds, of a server minutes.
        with nullcontext(folder.iterdir()) if isinstance(folder, RemotePath) else os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def finished_shards(files: Sequence[str]) -> list[str]:
    """Return the names of the finished shards among such files, in order."""
    names = (name.removeprefix(format.shard_path("")) for name in files)
    return [name for name in names if format.SHARD_NAME.fullmatch(name)]


def shard_names(folder: Path) -> list[str]:
    """Return the names of the finished shards of a run folder, in order."""
    return finished_shards(list_files(folder)[0])


def partial_files(files: Sequence[str], share: Share | None, alone: bool = True) -> list[str]:
    """Return the files that are not whole, by their names.

    Args:
        files: As of :func:`list_files`.
        share: Whose shards and report; None: all there are.
        alone: Whether nobody else opens the folder or writes its index now. Else only what is of the share.
    """

    def is_own(name: str) -> bool:
        if name.startswith(format.shard_path("")):
            return share is None or share.has(format.shard_number(name))
        whole = name.removesuffix(format.PARTIAL_SUFFIX)
        if whole == format.INDEX_NAME or format.MANIFEST_NAME.fullmatch(whole):
            return alone
        return share is None or whole == format.report_name(share.mark)

    return [name for name in files if name.endswith(format.PARTIAL_SUFFIX) and is_own(name)]


def part_number(name: str) -> int:
    """Return the part that the name of a shard or a manifest says."""
    found = re.match(r"(?:shard|manifest)-part(\d{3})", name)
    return int(found[1]) if found else 0
