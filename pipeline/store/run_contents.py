"""What lies in a run folder, in one record: its files, manifests, parts, shards planned and present.

Everything that needs to know what a run consists of asks here: resume, extend, replace, verify, repair, index and show. The
manifests are the plan: parts, rows and shards of a run follow from them alone. ``manifest.jsonl.gz`` is written before the first
shard of its part, then only read; what is in it: :mod:`pipeline.store.format`.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
import stat
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..formatting import counted
from ..records import Manifest, RunSpec, digest_identity, digest_images, part_identity
from ..sharding import Part, ShardSpec, Share, plan_shards
from . import disk, format
from .damage import READ_ERRORS, UnreadableError, damaged, require_own_shards
from .digests import Digests

# A line of a manifest of so many rows is some megabytes: one of millions never lies in memory twice.
ROWS_A_LINE = 1 << 15
# The fastest of zlib's: higher ones take several times as long for a tenth less.
LEVEL = 1

# Names of files in a run folder, whole or with the suffix of those that are not; and of those in its folder of shards.
_NAMES = [re.escape(name) for name in (*format.COMPANION_NAMES, format.INDEX_NAME)]
_NAMES += [name.pattern for name in (format.MANIFEST_NAME, format.PART_COMPANION_NAME, format.WRITER_DIGESTS_NAME)]
_IN_FOLDER = re.compile(f"(?:{'|'.join(_NAMES)})(?:{re.escape(format.PARTIAL_SUFFIX)})?")
_IN_SHARDS = re.compile(f"{format.SHARD_NAME.pattern}|{format.PARTIAL_SHARD_NAME.pattern}")

# Images that a message names of each kind.
NAMED = 3
_REPLACE = "Choose another folder with name=..., or use output.existing=replace to discard what is there."
_EXTEND = f"Use output.existing=extend to append new images and keep the rows of removed ones. {_REPLACE}"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PartManifest:
    """What a part of a run is planned for."""

    identity: Mapping[str, str]  # of the run with this part, option -> value
    first_row: int  # of the part, in the run
    gone: NDArray[np.int64]  # (g,) rows before the part whose images were no longer there when it was planned
    images: Manifest | None = None  # of this part alone: row 0 is its first; None where only the first line was read

    @property
    def part(self) -> Part:
        """Digest of the run with this part, and the row after its last."""
        return Part(digest_identity(self.identity), self.first_row + int(self.identity["images"].split(" ")[0]))

    def follows(self, before: Sequence[PartManifest]) -> bool:
        """Tell whether this is the part that comes after these."""
        return self.identity.get("extends") == (str(before[-1].part) if before else None)


@dataclass(frozen=True)
class RunContents:
    """What a run folder holds, by names and manifests."""

    path: Path
    files: Sequence[str]  # as of list_files, likewise the next
    special: Sequence[str]
    manifests: Mapping[str, PartManifest | None]  # file name -> what it says, None: damaged; in the order of the parts

    @cached_property
    def shards(self) -> frozenset[str]:
        """Names of finished shards."""
        names = (name.removeprefix(format.shard_path("")) for name in self.files)
        return frozenset(filter(format.SHARD_NAME.fullmatch, names))

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
        return plan_shards(tuple(part.stop for part in self.parts), int(self.planned[-1].identity["output.images_per_shard"]))


def read_run_contents(folder: Path, images: bool = True) -> RunContents:
    """Read what a run folder holds; ``images``: whether manifests are read and checked whole, or their first lines alone."""
    files, special = list_files(folder)
    names = sorted(filter(format.MANIFEST_NAME.fullmatch, files), key=part_number)
    return RunContents(folder, files, special, {name: read_manifest(folder / name, images) for name in names})


def list_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return what lies in a run folder under names that this program gives, as sorted paths from the folder.

    First regular files, whole or not; then links, folders and pipes: this program makes none, so they are somebody else's.
    """
    require_own_shards(folder)
    files, special = list[str](), list[str]()
    for where, prefix, names in ((folder, "", _IN_FOLDER), (folder / format.SHARD_FOLDER, format.shard_path(""), _IN_SHARDS)):
        for name in filter(names.fullmatch, disk.names_in(where)):
            # What has just gone is of neither kind.
            with suppress(FileNotFoundError):
                is_file = stat.S_ISREG((where / name).lstat().st_mode)
                (files if is_file else special).append(prefix + name)
    return sorted(files), sorted(special)


def partial_files(files: Sequence[str], share: Share | None) -> list[str]:
    """Return the files that are not whole, by their names: those of a share alone, or all there are."""

    def is_own(name: str) -> bool:
        if share is None or not name.startswith(format.shard_path("")):
            return share is None or f"-{share.mark}." in name
        return share.has(format.shard_number(name))

    return [name for name in files if name.endswith(format.PARTIAL_SUFFIX) and is_own(name)]


def part_number(name: str) -> int:
    """Return the part that the name of a shard or a manifest says."""
    found = re.match(r"(?:shard|manifest)-part(\d{3,})", name)
    return int(found[1]) if found else 0


def write_manifest(folder: Path, number: int, manifest: PartManifest) -> None:
    """Write the manifest of a part of a run, with its images, and its line in ``SHA256SUMS``; ``number``: of the part, from 0."""
    images = manifest.images
    assert images is not None
    header = {
        "format": format.MANIFEST_FORMAT,
        "format_version": format.FORMAT_VERSION,
        "part": number,
        "first_row": manifest.first_row,
        "rows": len(images),
        "identity": dict(sorted(manifest.identity.items())),
        "gone": manifest.gone.tolist(),
    }
    content = io.BytesIO()
    # Neither a name nor a time in it: the same images make the same file.
    with gzip.GzipFile("", "wb", LEVEL, content, mtime=0) as file:
        # With escapes for what is not ASCII: UTF-8 has none for half a surrogate pair.
        file.write(json.dumps(header).encode() + b"\n")
        for first in range(0, len(images), ROWS_A_LINE):
            rows = slice(first, first + ROWS_A_LINE)
            line = {
                "key": images.keys[rows],
                "bytes": images.file_bytes[rows].tolist(),
                "label": images.labels[rows],
                "columns": {name: values[rows] for name, values in images.metadata.items()},
            }
            file.write(json.dumps(line).encode() + b"\n")
    disk.write_file(folder / format.manifest_name(number), content.getvalue(), Digests(folder).publish)


def read_manifest(path: Path, images: bool = True) -> PartManifest | None:
    """Return what :func:`write_manifest` has written, with its images or without; None if it is not as it was written."""
    try:
        with path.open("rb") as raw, gzip.open(raw) as file:
            header = json.loads(file.readline())
            if (header["format"], header["format_version"]) != (format.MANIFEST_FORMAT, format.FORMAT_VERSION):
                return None
            manifest = PartManifest(header["identity"], int(header["first_row"]), np.array(header["gone"], np.int64))
            if not images:
                return manifest
            lines = [json.loads(line) for line in file]
        keys, labels, sizes = ([value for line in lines for value in line[name]] for name in ("key", "label", "bytes"))
        columns = {name: tuple(value for line in lines for value in line["columns"][name]) for name in lines[0]["columns"]}
        found = make_images(tuple(keys), tuple(labels), np.array(sizes, np.int64), columns)
        # The digest is in the run's, which is in every shard: a manifest that agrees with it is the right one.
        is_right = manifest.identity["images"] == f"{len(found)} rows, digest {found.digest}"
        return replace(manifest, images=found) if is_right else None
    except (*READ_ERRORS, EOFError, zlib.error) as error:
        unread = damaged(path, "the manifest", error)
        # One that unpacks to more than the memory holds is as likely a damaged one.
        if type(unread) is UnreadableError:
            raise unread from error
        return None


def make_images(
    keys: Sequence[str], labels: Sequence[str], file_bytes: NDArray[np.int64], metadata: Mapping[str, Sequence[str]]
) -> Manifest:
    """Return the images of a part, without what reads them."""
    return Manifest("", keys, labels, file_bytes, {}, metadata, {}, digest_images(keys, labels, file_bytes, metadata))


def join_images(parts: Sequence[PartManifest]) -> Manifest:
    """Return the images of all parts, one after the other; the digest is that of the last part's."""
    images = [part.images for part in parts if part.images]
    return replace(
        images[-1],
        keys=tuple(key for part in images for key in part.keys),
        labels=tuple(label for part in images for label in part.labels),
        file_bytes=np.concatenate([part.file_bytes for part in images]),
        metadata={name: tuple(value for part in images for value in part.metadata[name]) for name in images[0].metadata},
    )


# -- Of which parts a run consists: those that a folder holds, compared with what is asked for now, and the one of new images

# A run with all its parts, and the manifest of each.
Plan: TypeAlias = tuple[RunSpec, Sequence[PartManifest]]


def plan_new_run(spec: RunSpec) -> Plan:
    """Return the plan of a run that has one part, the images that are there now."""
    return spec, [PartManifest(spec.identity, 0, np.zeros(0, np.int64), spec.manifest)]


def up_to(spec: RunSpec, parts: Sequence[PartManifest], part: int) -> RunSpec:
    """Return a run as it is with this part, and none after it."""
    if part == len(parts) - 1:
        return spec
    images, now = join_images(parts[: part + 1]), spec.manifest
    manifest = replace(images, root=now.root, paths=now.paths, skipped=now.skipped, source=now.source, places=now.places)
    return replace(spec, manifest=manifest, before=spec.before[:part])


def plan_parts(spec: RunSpec, contents: RunContents, extend: bool) -> Plan:
    """Return of which parts a run consists, so that what a folder holds fits into it.

    ``spec``: as it would be in an empty folder; ``extend``: whether images that the run does not have become a part of it.

    Raises:
        StoreError: The folder holds another run, or its images are not known.
    """
    # A part without a shard holds nobody up: where it is not that of the images now, it is planned anew.
    if len(contents.planned) > contents.begun:
        with suppress(StoreError):
            return _go_on(contents.path, spec, contents.planned, extend=False)
    if contents.lost and contents.begun > 1:
        happened = f"{contents.lost} is missing, damaged or of another run, got shards of {contents.begun} parts"
        raise StoreError(f"{contents.path}: {happened}. Expected the manifest of each. Put it back. {_REPLACE}")
    if contents.lost or not contents.begun:
        # Whether the images of a lost manifest were these, the digests in its shards tell.
        return plan_new_run(spec)
    return _go_on(contents.path, spec, contents.planned[: contents.begun], extend)


def _go_on(folder: Path, spec: RunSpec, parts: Sequence[PartManifest], extend: bool) -> Plan:
    """Plan the run on from these parts; ``extend``: with a further one for what is new, else refused as it is for changes."""
    there = parts[-1].identity
    spec = _with_choices(spec, there)
    if len(parts) == 1 and spec.identity == there:
        return spec, parts
    run, now = join_images(parts), spec.manifest
    row_of = {key: row for row, key in enumerate(run.keys)}
    # (N,) for each image now its row in the run; -1 where it has none.
    rows = np.array([row_of.get(key, -1) for key in now.keys], np.int64)
    added, removed = np.flatnonzero(rows < 0), np.setdiff1d(np.arange(len(run)), rows)
    differences = [*_differing_options(spec, there, run), *_differing_images(run, now, rows, parts)]
    remedy = _REPLACE if differences else _EXTEND
    if not extend:
        # What was not there any more when the last part was planned need not be there now.
        differences += _counted("added", now, added) + _counted("removed", run, np.setdiff1d(removed, parts[-1].gone))
    if differences:
        happened = f"the folder holds another run, got {', '.join(differences)}"
        raise StoreError(f"{folder}: {happened}. Expected the same options and images, to go on with it. {remedy}")
    if len(added):
        keys, labels, *columns = (
            tuple(column[row] for row in added.tolist()) for column in (now.keys, now.labels, *now.metadata.values())
        )
        images = make_images(keys, labels, now.file_bytes[added], dict(zip(now.metadata, columns, strict=True)))
        identity = part_identity(spec.options, len(images), images.digest, [part.part for part in parts])
        parts = [*parts, PartManifest(identity, len(run), removed, images)]
        rows[added] = np.arange(len(run), len(run) + len(added))
        run = join_images(parts)
    if len(removed):
        words = f"{counted(len(removed), 'image')} of the run no longer there, e.g. {run.keys[int(removed[0])]!r}"
        _log.warning("extend: %s: finished rows are kept, others will fail", words)
    places = None
    if now.places is not None:
        places = np.full(len(run), -1, np.int64)
        places[rows] = now.places
    paths = {int(rows[place]): path for place, path in now.paths.items()}
    manifest = replace(run, root=now.root, paths=paths, skipped=now.skipped, source=now.source, places=places)
    return replace(spec, manifest=manifest, before=tuple(part.part for part in parts[:-1])), parts


def _with_choices(spec: RunSpec, there: Mapping[str, str]) -> RunSpec:
    """Return the run with what the program chose itself as it was chosen for the run that is there."""
    options = {**spec.options, **{name: there[name] for name in spec.chosen if name in there}}
    counts = {name.split(".")[1]: int(options[name]) for name in spec.chosen if name.endswith(".n_components")}
    has_auto_density = options.get("reduction.srp.density") == "auto"
    features = tuple(feature.with_components(counts, has_auto_density) for feature in spec.features)
    return replace(spec, options=options, images_per_shard=int(options["output.images_per_shard"]), features=features)


def _differing_options(spec: RunSpec, there: Mapping[str, str], run: Manifest) -> list[str]:
    """Return each option, and the columns of the list, in which a run is not the one that is there."""
    columns, columns_there = (",".join(sorted(images.metadata)) or "none" for images in (spec.manifest, run))
    ours = {**spec.options, "columns of data.list": columns}
    theirs = {**there, "columns of data.list": columns_there}
    names = [name for name in sorted({*ours, *theirs} - {"images", "extends"}) if ours.get(name) != theirs.get(name)]
    return [f"{name} {ours.get(name, 'none')} (in the folder {theirs.get(name, 'none')})" for name in names]


def _differing_images(run: Manifest, now: Manifest, rows: NDArray[np.int64], parts: Sequence[PartManifest]) -> list[str]:
    """Return what is said of images with another label or column now, and of their order; ``rows``: as in :func:`_go_on`.

    Columns that only one of both has are not compared; contents are, when the run goes on, with those of finished shards.
    """
    known = np.flatnonzero(rows >= 0)
    there = rows[known]
    columns = [(run.labels, now.labels)]
    columns += [(run.metadata[name], now.metadata[name]) for name in run.metadata if name in now.metadata]
    pairs = list(zip(there.tolist(), known.tolist(), strict=True))
    changed = {row for before, after in columns for row, place in pairs if before[row] != after[place]}
    differences = _counted("with another label or column", run, sorted(changed))
    # Each part has the order in which its images were listed; a later list may have new ones between them.
    of_parts = np.searchsorted([part.part.stop for part in parts], there, side="right")
    if (np.diff(there[np.argsort(of_parts, kind="stable")]) < 0).any():
        differences.append("another order of images")
    return differences


def _counted(word: str, images: Manifest, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """Return ``5 added ('a.jpg', 'b.jpg', 'c.jpg', ...)``, or nothing."""
    names = ", ".join(repr(images.keys[row]) for row in rows[:NAMED]) + ", ..." * (len(rows) > NAMED)
    return [f"{len(rows)} {word} ({names})"] if len(rows) else []
