"""What lies in a run folder, in one record: manifests, parts, shards planned and present. Nothing is changed.

Everything that needs to know what a run consists of asks here: resume, extend, replace, verify, repair, index and show.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py

from ..errors import StoreError
from ..records import FeatureSpec, LayerSpec, Part, RunSpec, ShardSpec, Share, plan_shards
from ..storage import RemotePath
from . import damage, disk, format, tables
from .damage import UnreadableError
from .file_checks import require_own_shards
from .manifest_file import PartManifest, join_images, read_manifest

# Missing shards that are named.
NAMED = 3
# Attributes of the root that are written for each file, by :func:`pipeline.store.tables.write_root`.
_OF_THE_FILE = {
    *("format", "format_version", "file_kind", "run_digest", "identity", "manifest_digest", "first_row", "rows", "created"),
    *("images_per_shard", "part_stops", "part_digests"),
}
# Names of files beside the index, once or once a part.
_OF_A_RUN = re.compile(
    "|".join(
        [
            *map(re.escape, format.COMPANION_NAMES),
            *(name.pattern for name in (format.MANIFEST_NAME, format.PART_COMPANION_NAME, format.WRITER_DIGESTS_NAME)),
        ]
    )
)
_SHARD = re.compile(f"{format.SHARD_NAME.pattern}|{format.PARTIAL_SHARD_NAME.pattern}")


@dataclass(frozen=True)
class RunContents:
    """What a run folder holds, by names and manifests.

    Attributes:
        path: The folder.
        manifests: File name -> what it says, None for one that is damaged; in the order of the parts.
        unreadable: File name -> why the system does not let us read that manifest.
        shards: Names of finished shards.
        special: Names of shards under which there is a link, a folder, a pipe; of links to files the others have them too.
        has_index: Whether something is there under the index' name.
    """

    path: Path
    manifests: Mapping[str, PartManifest | None]
    unreadable: Mapping[str, UnreadableError]
    shards: frozenset[str]
    special: frozenset[str]
    has_index: bool

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
    entries = _shard_entries(folder)
    names = {entry.name for entry in entries if entry.is_file()}
    manifests: dict[str, PartManifest | None] = {}
    unreadable: dict[str, UnreadableError] = {}
    for path in manifest_paths(folder):
        try:
            manifests[path.name] = read_manifest(path, images)
        except UnreadableError as error:
            manifests[path.name], unreadable[path.name] = None, error
    index = folder / format.INDEX_NAME
    return RunContents(
        folder,
        manifests,
        unreadable,
        frozenset(name for name in names if not name.endswith(format.PARTIAL_SUFFIX)),
        frozenset(
            entry.name
            for entry in entries
            if format.SHARD_NAME.fullmatch(entry.name) and (entry.is_symlink() or not entry.is_file())
        ),
        index.is_symlink() or index.exists(),
    )


def read_run_spec(folder: Path) -> RunSpec:
    """Return the run that a folder holds, all of whose shards are there: from its manifests, and the attributes of a shard.

    Raises:
        StoreError: There is no run; a manifest or shards are missing; the shard is damaged or of another run.
    """
    contents = read_run_contents(folder)
    if not contents.shards:
        raise damage.no_run(folder)
    if contents.lost:
        raise next(iter(contents.unreadable.values()), damage.missing_manifest(folder / contents.lost))
    missing = [shard.file_name for shard in contents.plan if shard.file_name not in contents.shards]
    if missing:
        names = ", ".join(missing[:NAMED]) + ", ..." * (len(missing) > NAMED)
        raise StoreError(
            f"{folder}: shards are missing, got {len(contents.plan) - len(missing)} of {len(contents.plan)}, without {names}. "
            f"Expected all. Run the extraction again, which makes them and then the index."
        )
    path, identity = folder / format.shard_path(contents.plan[-1].file_name), contents.planned[-1].identity
    with damage.reading(path, "the root"), tables.open_file(path) as file:
        tables.check_shard(file, path, contents.parts[-1].digest, contents.plan[-1])
        attributes = dict(file.attrs)
        shapes = {name: file["features"][name] for name in tables.layer_names(file)}
        features = tuple(_feature(name, node) for name, node in shapes.items())
    images = [manifest.images for manifest in contents.planned if manifest.images]
    return RunSpec(
        manifest=replace(join_images(images), root=str(attributes["data_root"]), digest=images[-1].digest),
        features=features,
        dtype=identity["output.dtype"],
        compression=str(attributes.get("compression", "gzip")),
        images_per_shard=int(identity["output.images_per_shard"]),
        options={name: value for name, value in identity.items() if name not in ("images", "extends")},
        attributes={name: value for name, value in attributes.items() if name not in _OF_THE_FILE},
        before=contents.parts[:-1],
    )


def _feature(name: str, node: Any) -> FeatureSpec:
    found = {key: int(node.attrs[key]) for key in ("network_index", "channels", "stride_px")}
    shape = None if isinstance(node, h5py.Group) else (int(node.shape[1]), int(node.shape[2]), int(node.shape[3]))
    # What the network's own table says besides is in no file, and asked for by nobody who only reads.
    kind = re.sub(r"[0-9_]+$", "", name)
    return FeatureSpec(LayerSpec(name, kind, found["network_index"], 0, None, found["channels"], found["stride_px"]), shape)


def result_paths(folder: Path) -> list[Path]:
    """Return what the store has written in a folder, whole or partial: shards in order, then the index."""
    index = folder / format.INDEX_NAME
    there = [path for path in (index, disk.partial_path(index)) if path.is_file()]
    return [*(folder / format.shard_path(name) for name in shard_names(folder)), *there]


def partial_files(folder: Path, share: Share | None = None, alone: bool = True) -> list[Path]:
    """Return the files that are not whole, by their names.

    Args:
        folder: The run folder.
        share: Whose shards and report; None: all there are.
        alone: Whether nobody else opens the folder or writes its index now. Else only what is of the share.
    """
    names = [name for name in shard_names(folder) if name.endswith(format.PARTIAL_SUFFIX)]
    found = [folder / format.shard_path(name) for name in names if share is None or share.has(format.shard_number(name))]
    own = _OF_A_RUN.pattern if share is None else re.escape(format.report_name(share.mark))
    if alone:
        own = f"{own}|{re.escape(format.INDEX_NAME)}|{format.MANIFEST_NAME.pattern}"
    for path in folder.iterdir():
        if path.name.endswith(format.PARTIAL_SUFFIX) and re.fullmatch(own, path.name.removesuffix(format.PARTIAL_SUFFIX)):
            found.append(path)
    # This program makes no links: what one leads to is somebody else's, and so is the link.
    return [path for path in found if path.is_file() and not path.is_symlink()]


def companion_paths(folder: Path) -> list[Path]:
    """Return the manifests, digests, options, reports and logs of a run folder that are whole."""
    return [path for path in folder.iterdir() if _OF_A_RUN.fullmatch(path.name) and path.is_file()]


def shard_names(folder: Path) -> list[str]:
    """Return the names of shards in a run folder, whole or partial, in order; links to files too."""
    return sorted(entry.name for entry in _shard_entries(folder) if entry.is_file())


def shard_links(folder: Path) -> list[Path]:
    """Return the links to files among them."""
    return sorted(Path(entry.path) for entry in _shard_entries(folder) if entry.is_symlink() and entry.is_file())


def _shard_entries(folder: Path) -> list[Any]:
    try:
        # The system tells what a name is while it lists it. Asking for each of a million takes seconds, of a server minutes.
        shards = folder / format.SHARD_FOLDER
        with nullcontext(shards.iterdir()) if isinstance(shards, RemotePath) else os.scandir(shards) as entries:
            return [entry for entry in entries if _SHARD.fullmatch(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def manifest_paths(folder: Path) -> list[Path]:
    """Return the manifests in a folder, in the order of the parts."""
    names = (path for path in folder.iterdir() if format.MANIFEST_NAME.fullmatch(path.name))
    return sorted((path for path in names if path.is_file()), key=lambda path: part_number(path.name))


def part_number(name: str) -> int:
    """Return the part that the name of a shard or a manifest says."""
    found = format.SHARD_NAME.match(name) or format.MANIFEST_NAME.fullmatch(name)
    return int(found[1] or 0) if found else 0
