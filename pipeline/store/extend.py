"""Of which parts a run consists: those that a folder holds, held to what is asked for now, and the one that new images make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import Manifest, RunSpec, digest_images
from . import format, tables
from .damage import reading
from .manifest_file import PartManifest, extends_words, images_words, join_images, parse_identity
from .run_contents import RunContents, part_number

# Images that a message names of each kind, and characters of a key, label or column.
NAMED, LONGEST_QUOTE = 3, 300

_NONE = np.zeros(0, np.int64)
_REPLACE = "Choose another folder with name=..., or use output.existing=replace to discard what is there."


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run and its parts.

    Attributes:
        spec: The run with all its parts.
        images_digests: Of the images of each part.
        gone: Rows before each part whose images were no longer there when it was planned.
        kept: How many of the parts are those that were found.
        added: Rows of the part that is new.
        removed: (r,) int64, rows of the run whose images are no longer there.
    """

    spec: RunSpec
    images_digests: tuple[str, ...]
    gone: tuple[NDArray[np.int64], ...] = (_NONE,)
    kept: int = 0
    added: int = 0
    removed: NDArray[np.int64] = field(default_factory=lambda: _NONE)

    def up_to(self, part: int) -> RunSpec:
        """Return the run as it is with this part, and none after it."""
        if part == len(self.spec.before):
            return self.spec
        whole, stop = self.spec.manifest, self.spec.before[part].stop
        manifest = replace(
            whole,
            keys=whole.keys[:stop],
            labels=whole.labels[:stop],
            file_bytes=whole.file_bytes[:stop],
            metadata={name: values[:stop] for name, values in whole.metadata.items()},
            digest=self.images_digests[part],
        )
        return replace(self.spec, manifest=manifest, before=self.spec.before[:part])


@dataclass(frozen=True, slots=True)
class Changes:
    """How the images that are there now differ from those of a run.

    Attributes:
        run: The images of the run.
        now: Those that are there now.
        rows: (N,) int64, for each image now its row in the run; -1 if it has none.
        removed: (r,) int64, rows of the run whose images are not there.
        changed: (c,) int64, rows of the run whose size, label or column of the list is another now.
        reordered: Whether images of one part come in another order now.
    """

    run: Manifest
    now: Manifest
    rows: NDArray[np.int64]
    removed: NDArray[np.int64]
    changed: NDArray[np.int64]
    reordered: bool

    @property
    def added(self) -> NDArray[np.int64]:
        """(a,) int64, rows of ``now`` that the run does not have, in their order."""
        return np.flatnonzero(self.rows < 0).astype(np.int64)

    def words_of_added(self) -> list[str]:
        """Return ``3 added ('a.jpg', 'b.jpg', 'c.jpg')``, or nothing."""
        return _counted("added", len(self.added), [_quoted(self.now.keys[row]) for row in self.added[:NAMED].tolist()])

    def words_of_removed(self, removed: NDArray[np.int64]) -> list[str]:
        """Return the same of these rows of the run."""
        return _counted("removed", len(removed), [_quoted(self.run.keys[row]) for row in removed[:NAMED].tolist()])

    def words_of_changed(self) -> list[str]:
        """Return the same of what has changed, and of the order."""
        named = [self._difference(row) for row in self.changed[:NAMED].tolist()]
        return _counted("changed", len(self.changed), named) + ["the same ones in another order"] * self.reordered

    def _difference(self, row: int) -> str:
        place = int(np.flatnonzero(self.rows == row)[0])
        key, then, now = _quoted(self.run.keys[row]), int(self.run.file_bytes[row]), int(self.now.file_bytes[place])
        if then != now:
            return f"{key}: {now} bytes, before {then}"
        columns = _compared_columns(self.run, self.now)
        name = next(name for name, (before, after) in columns.items() if before[row] != after[place])
        before, after = columns[name]
        return f"{key}: {name} {_quoted(after[place])}, before {_quoted(before[row])}"


def compare_images(run: Manifest, stops: Sequence[int], now: Manifest) -> Changes:
    """Compare the images that are there now with those of a run, by key.

    Columns that only one of them has are not compared.

    Args:
        run: Those of the run.
        stops: Index after the last row of each of its parts.
        now: Those that are there.
    """
    row_of = {key: row for row, key in enumerate(run.keys)}
    rows = np.array([row_of.get(key, -1) for key in now.keys], np.int64)
    known = np.flatnonzero(rows >= 0)
    there = rows[known]
    # What was not there yet when the run was planned has no size that could differ.
    differs = (run.file_bytes[there] != now.file_bytes[known]) & (run.file_bytes[there] > 0)
    for before, after in _compared_columns(run, now).values():
        pairs = zip(there.tolist(), known.tolist(), strict=True)
        differs |= np.fromiter((before[row] != after[place] for row, place in pairs), bool, len(known))
    present = np.zeros(len(run), bool)
    present[there] = True
    # Each part has the order in which its images were listed; a later list may have new ones between them.
    parts = np.searchsorted(np.array(stops), there, side="right")
    reordered = any(bool((np.diff(there[parts == part]) < 0).any()) for part in np.unique(parts).tolist())
    return Changes(run, now, rows, np.flatnonzero(~present).astype(np.int64), np.sort(there[differs]), reordered)


def _compared_columns(run: Manifest, now: Manifest) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    shared = {name: (run.metadata[name], now.metadata[name]) for name in run.metadata if name in now.metadata}
    return {"label": (run.labels, now.labels), **shared}


def _quoted(text: str) -> str:
    return repr(text[:LONGEST_QUOTE])


def _counted(word: str, count: int, names: Sequence[str]) -> list[str]:
    more = ", ..." if count > len(names) else ""
    return [f"{count} {word} ({', '.join(names)}{more})"] if count else []


def plan_parts(spec: RunSpec, contents: RunContents, extend: bool) -> RunPlan:
    """Say of which parts a run consists, so that what is there already fits into it.

    Args:
        spec: The run as it would be in an empty folder.
        contents: What the folder holds.
        extend: Whether images that the run does not have become a further part of it.

    Raises:
        StoreError: The folder holds a run with other options or, as far as they are not to be added, other images; a manifest
            is lost and is not that of these images.
    """
    parts = _known_parts(spec, contents)
    while parts:
        try:
            return _go_on(contents.path, spec, parts, extend, len(parts) <= contents.begun)
        except StoreError:
            # A part without a shard holds nobody up: it is planned anew.
            if len(parts) <= contents.begun:
                raise
            parts.pop()
    return RunPlan(spec, (spec.manifest.digest,))


def _known_parts(spec: RunSpec, contents: RunContents) -> list[PartManifest]:
    """Return the manifests of all parts; one that is lost is told from the images that are there now.

    Raises:
        StoreError: They do not tell.
    """
    folder, parts = contents.path, list(contents.planned)
    if not contents.lost:
        return parts
    known = {number: contents.manifests.get(format.manifest_name(number)) for number in range(contents.begun)}
    others = {key for manifest in known.values() if manifest and manifest.images for key in manifest.images.keys}
    for number in range(len(parts), contents.begun):
        name = format.manifest_name(number)
        identity = _identity_of_shard(contents, number)
        manifest = known[number]
        if manifest is None or (identity is not None and manifest.identity != identity):
            manifest = _told_by_images(spec, parts, identity, others)
        if identity is None or manifest is None:
            # What speaks against the run as a whole is said first.
            if identity is not None and (differing := _differing_options(_with_choices(spec, identity).options, identity)):
                raise _other_options(folder, differing)
            raise _lost(folder, spec, name, identity)
        if not manifest.follows(parts):
            raise StoreError(
                f"{folder}: of another run than the parts before, got {name} or shards of part {number} that extend "
                f"{manifest.identity.get('extends')!r}. Expected {extends_words([part.part for part in parts])!r}. "
                f"Move them away, or use output.existing=replace."
            )
        parts.append(manifest)
    return parts


def _identity_of_shard(contents: RunContents, part: int) -> Mapping[str, str] | None:
    """Return the identity that a shard of a part has; None where none can tell."""
    for name in sorted(name for name in contents.shards if part_number(name) == part):
        path = contents.path / format.shard_path(name)
        try:
            with reading(path, "the root"), tables.open_file(path, all_nodes=False) as file:
                return parse_identity(str(file.attrs["identity"]))
        except tables.DamagedError:
            continue
    return None


def _told_by_images(
    spec: RunSpec, before: Sequence[PartManifest], identity: Mapping[str, str] | None, others: set[str]
) -> PartManifest | None:
    """Return the part of the images that no other manifest has, if that is what its shards are of."""
    if identity is None:
        return None
    now = spec.manifest
    rows = np.array([row for row, key in enumerate(now.keys) if key not in others], np.int64)
    images = _selected(now, rows)
    if identity["images"] != images_words(images):
        return None
    return PartManifest(identity, before[-1].part.stop if before else 0, len(images), _NONE, images)


def _selected(images: Manifest, rows: NDArray[np.int64]) -> Manifest:
    """Return some rows of a manifest, without what reads them."""
    places = rows.tolist()
    keys, labels = (tuple(column[row] for row in places) for column in (images.keys, images.labels))
    metadata = {name: tuple(values[row] for row in places) for name, values in images.metadata.items()}
    sizes = images.file_bytes[rows]
    return Manifest("", keys, labels, sizes, {}, metadata, {}, digest_images(keys, labels, sizes, metadata))


def _go_on(folder: Path, spec: RunSpec, parts: Sequence[PartManifest], extend: bool, begun: bool) -> RunPlan:
    """Plan the run on from these parts; ``begun``: whether the last one has shards."""
    there = parts[-1].identity
    spec = _with_choices(spec, there)
    if len(parts) == 1 and spec.identity == there:
        return RunPlan(spec, (spec.manifest.digest,), kept=1)
    differing = _differing_options(spec.options, there)
    run = join_images([part.images for part in parts if part.images])
    stops = [part.part.stop for part in parts]
    differing += _differing_columns(run, spec.manifest)
    changes = compare_images(run, stops, spec.manifest)
    # What was not there any more when the last part was planned need not be there now.
    newly_removed = np.setdiff1d(changes.removed, parts[-1].gone)
    # Rows of a part that has no shard yet are not worth keeping without their images.
    unwanted = not begun and bool((changes.removed >= parts[-1].first_row).any())
    refused = changes.words_of_changed()
    if not extend or unwanted:
        refused = changes.words_of_added() + changes.words_of_removed(newly_removed) + refused
    if differing:
        raise _other_options(folder, differing + refused)
    if refused:
        raise _other_images(folder, len(run), changes, refused, len(newly_removed))
    return _extended(folder, spec, parts, changes)


def _extended(folder: Path, spec: RunSpec, parts: Sequence[PartManifest], changes: Changes) -> RunPlan:
    """Return the run with the parts that are there, and one more for what is new."""
    run, now, added = changes.run, changes.now, changes.added
    rows = changes.rows.copy()
    rows[added] = np.arange(len(run), len(run) + len(added))
    new = _selected(now, added)
    before = tuple(part.part for part in parts)
    digests = tuple(part.images.digest for part in parts if part.images)
    gone = tuple(part.gone for part in parts)
    if len(added):
        if len(parts) > format.LARGEST_PART:
            raise StoreError(
                f"{folder}: the run has been extended too often, got {len(parts) - 1} times. Expected at most "
                f"{format.LARGEST_PART}. {_REPLACE}"
            )
        digests, gone = (*digests, new.digest), (*gone, changes.removed)
    else:
        before = before[:-1]
    places = None
    if now.places is not None:
        places = np.full(len(run) + len(added), -1, np.int64)
        places[rows] = now.places
    manifest = replace(
        join_images([run, new]) if len(added) else run,
        root=now.root,
        paths={int(rows[place]): path for place, path in now.paths.items()},
        skipped=now.skipped,
        digest=digests[-1],
        source=now.source,
        places=places,
    )
    return RunPlan(replace(spec, manifest=manifest, before=before), digests, gone, len(parts), len(added), changes.removed)


def _with_choices(spec: RunSpec, there: Mapping[str, str]) -> RunSpec:
    """Return the run with what the program chose itself as it was chosen for the run that is there."""
    kept = {name: there[name] for name in spec.chosen if name in there}
    step = kept.get("output.images_per_shard")
    return replace(spec, options={**spec.options, **kept}, images_per_shard=int(step) if step else spec.images_per_shard)


def _differing_options(now: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    names = {name for name in {*there, *now} - {"images", "extends"} if there.get(name) != now.get(name)}
    return [f"{name} {_short(now.get(name))} (in the folder {_short(there.get(name))})" for name in sorted(names)]


def _differing_columns(run: Manifest, now: Manifest) -> list[str]:
    if set(run.metadata) == set(now.metadata):
        return []
    ours, theirs = (",".join(sorted(images.metadata)) or None for images in (now, run))
    return [f"columns of data.list {_short(ours)} (in the folder {_short(theirs)})"]


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return repr(value if len(value) <= 60 else f"{value[:57]}...")


def another_run(path: Path, spec: RunSpec, there: Mapping[str, str]) -> StoreError:
    """Return the one line for a file of a run with other options, or other images, than the one in its folder."""
    differing = _differing_options(spec.options, there) or [f"images {_short(there['images'])}"]
    return StoreError(
        f"{path}: of another run than other files beside it, got {', '.join(differing)}. Expected files of one run. "
        f"Move it away, or use output.existing=replace to discard all that is there."
    )


def _other_options(folder: Path, differing: Sequence[str]) -> StoreError:
    return StoreError(
        f"{folder}: the folder holds a run with other options, got {', '.join(differing)}. Expected the same options, to go on "
        f"with that run. {_REPLACE}"
    )


def _other_images(folder: Path, rows: int, changes: Changes, refused: Sequence[str], removed: int) -> StoreError:
    if len(changes.changed) or changes.reordered:
        remedy = _REPLACE
    elif removed:
        and_new = ", and append the new ones" if len(changes.added) else ""
        remedy = f"{_REPLACE[:-1]}, or output.existing=extend to keep the rows of removed images as they are{and_new}."
    else:
        remedy = "Use output.existing=extend to append the new ones, or another folder with name=..., or output.existing=replace."
    return StoreError(
        f"{folder}: the images are not those of the run in the folder, got {', '.join(refused)}. Expected its {rows} images. "
        f"{remedy}"
    )


def _lost(folder: Path, spec: RunSpec, name: str, identity: Mapping[str, str] | None) -> StoreError:
    had = identity["images"].partition(",")[0] if identity else "unknown images"
    return StoreError(
        f"{folder}: {name} is missing or damaged, so the images of the run are not known, got {len(spec.manifest)} images now "
        f"that are not the {had} of its shards. Expected these. Put the file back, or {_REPLACE[0].lower()}{_REPLACE[1:]}"
    )
