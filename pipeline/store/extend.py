"""Of which parts a run consists: those that a folder holds, compared with what is asked for now, and the one of new images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import Manifest, RunSpec
from ..sharding import ShardSpec, plan_shards
from . import format, tables
from .damage import DamagedError
from .run_contents import PartManifest, RunContents, join_images, make_images

# Images that a message names of each kind, and characters of a key, label or column.
NAMED, LONGEST_QUOTE = 3, 300

_NONE = np.zeros(0, np.int64)
_REPLACE = "Choose another folder with name=..., or use output.existing=replace to discard what is there."


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run and its parts.

    Attributes:
        spec: The run with all its parts.
        parts: The manifest of each.
        kept: How many of them are those that were found; at most one more is new.
        removed: (r,) int64, rows of the run whose images are no longer there.
    """

    spec: RunSpec
    parts: tuple[PartManifest, ...]
    kept: int = 0
    removed: NDArray[np.int64] = field(default_factory=lambda: _NONE)

    @property
    def added(self) -> int:
        """Rows that the run gets besides those it had."""
        return len(self.spec.manifest) - self.spec.first_row if 0 < self.kept < len(self.parts) else 0

    def up_to(self, part: int) -> RunSpec:
        """Return the run as it is with this part, and none after it."""
        if part == len(self.spec.before):
            return self.spec
        whole, stop, images = self.spec.manifest, self.spec.before[part].stop, self.parts[part].images
        assert images is not None
        manifest = replace(
            whole,
            keys=whole.keys[:stop],
            labels=whole.labels[:stop],
            file_bytes=whole.file_bytes[:stop],
            metadata={name: values[:stop] for name, values in whole.metadata.items()},
            digest=images.digest,
        )
        return replace(self.spec, manifest=manifest, before=self.spec.before[:part])


def plan_new_run(spec: RunSpec) -> RunPlan:
    """Return the plan of a run that has one part, the images that are there now."""
    return RunPlan(spec, (PartManifest(spec.identity, 0, _NONE, spec.manifest),))


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
    return plan_new_run(spec)


def _known_parts(spec: RunSpec, contents: RunContents) -> list[PartManifest]:
    """Return the manifests of all parts; one that is lost is made of the images now that no other has.

    Whether these were its images, the digests in its shards tell, and the manifest of the next part.
    """
    parts, now = list[PartManifest](), spec.manifest
    there = [manifest for manifest in contents.manifests.values() if manifest]
    others = {key for manifest in there if manifest.images for key in manifest.images.keys}
    rows = np.array([row for row, key in enumerate(now.keys) if key not in others], np.int64)
    for number in range(max(contents.begun, len(contents.planned))):
        manifest = contents.manifests.get(format.manifest_name(number))
        if manifest is None and len(rows):
            images = _select(now, rows)
            options = {name: value for name, value in there[0].identity.items() if name != "extends"} if there else spec.options
            extends = {"extends": str(parts[-1].part)} if parts else {}
            identity = {**options, "images": f"{len(images)} rows, digest {images.digest}", **extends}
            manifest = PartManifest(identity, parts[-1].part.stop if parts else 0, _NONE, images)
        if manifest is None or not manifest.follows(parts):
            raise StoreError(
                f"{contents.path}: {contents.lost} is missing, damaged or of another run, so the images of the run are not "
                f"known, got {len(now)} images now that are not those of its shards. Expected these. "
                f"Put the file back, or {_REPLACE[0].lower()}{_REPLACE[1:]}"
            )
        parts.append(manifest)
    return parts


def _select(images: Manifest, rows: NDArray[np.int64]) -> Manifest:
    """Return some rows of a manifest, without what reads them."""
    keys, labels = (tuple(column[row] for row in rows.tolist()) for column in (images.keys, images.labels))
    metadata = {name: tuple(values[row] for row in rows.tolist()) for name, values in images.metadata.items()}
    return make_images(keys, labels, images.file_bytes[rows], metadata)


def _go_on(folder: Path, spec: RunSpec, parts: Sequence[PartManifest], extend: bool, begun: bool) -> RunPlan:
    """Plan the run on from these parts; ``begun``: whether the last one has shards."""
    there = parts[-1].identity
    spec = _with_choices(spec, there)
    if len(parts) == 1 and spec.identity == there:
        return RunPlan(spec, tuple(parts), kept=1)
    run, now = join_images(parts), spec.manifest
    row_of = {key: row for row, key in enumerate(run.keys)}
    # For each image now its row in the run; -1 where it has none.
    rows = np.array([row_of.get(key, -1) for key in now.keys], np.int64)
    added, removed = np.flatnonzero(rows < 0), np.setdiff1d(np.arange(len(run)), rows)
    # What was not there any more when the last part was planned need not be there now.
    newly_removed = np.setdiff1d(removed, parts[-1].gone)
    stops = tuple(part.part.stop for part in parts)
    refused = _changes(run, _as_read(folder, run, now, rows, plan_shards(stops, spec.images_per_shard)), rows, stops)
    if refused:
        remedy = _REPLACE
    elif len(newly_removed):
        and_new = ", and append the new ones" if len(added) else ""
        remedy = f"{_REPLACE[:-1]}, or output.existing=extend to keep the rows of removed images as they are{and_new}."
    else:
        remedy = "Use output.existing=extend to append the new ones, or another folder with name=..., or output.existing=replace."
    # Rows of a part that has no shard yet are not worth keeping without their images.
    if not extend or (not begun and (removed >= parts[-1].first_row).any()):
        refused = [
            *_counted("added", len(added), [_quoted(now.keys[row]) for row in added[:NAMED].tolist()]),
            *_counted("removed", len(newly_removed), [_quoted(run.keys[row]) for row in newly_removed[:NAMED].tolist()]),
            *refused,
        ]
    if differing := _differing(spec, there, run):
        raise StoreError(
            f"{folder}: the folder holds a run with other options, got {', '.join(differing + refused)}. Expected the same "
            f"options, to go on with that run. {_REPLACE}"
        )
    if refused:
        raise StoreError(
            f"{folder}: the images are not those of the run in the folder, got {', '.join(refused)}. Expected its {len(run)} "
            f"images. {remedy}"
        )
    return _extend(folder, spec, parts, rows, removed)


def _as_read(folder: Path, run: Manifest, now: Manifest, rows: NDArray[np.int64], shards: Sequence[ShardSpec]) -> Manifest:
    """Return the images now with the sizes of the run where that is no change of what is stored.

    The image failed, so that its file may be mended; was read with its new size; or has none, since nothing is found there now.
    ``rows``: as of :func:`_changes`.
    """
    sizes = now.file_bytes.copy()
    others = np.flatnonzero((rows >= 0) & (run.file_bytes[rows] != sizes))
    for shard in shards:
        path, mine = folder / format.shard_path(shard.file_name), others[np.isin(rows[others], range(shard.first, shard.stop))]
        if not len(mine) or not path.exists():
            continue
        with suppress(DamagedError), tables.open_file(path) as file:
            errors, read = (tables.read_column(file, path, name)[rows[mine] - shard.first] for name in ("error", "bytes"))
            mine = mine[(errors != "") | (read == sizes[mine]) | (sizes[mine] == 0)]
            sizes[mine] = run.file_bytes[rows[mine]]
    return replace(now, file_bytes=sizes)


def _changes(run: Manifest, now: Manifest, rows: NDArray[np.int64], stops: Sequence[int]) -> list[str]:
    """Return what is said of images that are others now, ``2 changed ('b': bytes 99, before 1234, ...)``, and of their order.

    Columns that only one of both has are not compared. ``rows``: (N,) for each of ``now`` its row in the run, -1 where it has
    none; ``stops``: index after the last row of each part of the run.
    """
    columns: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
        "bytes": (run.file_bytes.tolist(), now.file_bytes.tolist()),
        "label": (run.labels, now.labels),
        **{name: (run.metadata[name], now.metadata[name]) for name in run.metadata if name in now.metadata},
    }
    known = np.flatnonzero(rows >= 0)
    there = rows[known]
    changed: dict[int, str] = {}
    for name, (before, after) in columns.items():
        for row, place in zip(there.tolist(), known.tolist(), strict=True):
            # What was not there yet when the run was planned has no size that could differ.
            if before[row] != after[place] and before[row] != 0:
                words = f"{_quoted(run.keys[row])}: {name} {_quoted(after[place])}, before {_quoted(before[row])}"
                changed.setdefault(row, words)
    said = _counted("changed", len(changed), [changed[row] for row in sorted(changed)[:NAMED]])
    # Each part has the order in which its images were listed; a later list may have new ones between them.
    parts = np.searchsorted(np.array(stops), there, side="right")
    if (np.diff(there[np.argsort(parts, kind="stable")]) < 0).any():
        said.append("the same ones in another order")
    return said


def _quoted(value: Any) -> str:
    return "none" if value is None else repr(value[:LONGEST_QUOTE] if isinstance(value, str) else value)


def _counted(word: str, count: int, names: Sequence[str]) -> list[str]:
    """Return ``3 added ('a.jpg', 'b.jpg', 'c.jpg')``, or nothing."""
    more = ", ..." if count > len(names) else ""
    return [f"{count} {word} ({', '.join(names)}{more})"] if count else []


def _extend(
    folder: Path, spec: RunSpec, parts: Sequence[PartManifest], rows: NDArray[np.int64], removed: NDArray[np.int64]
) -> RunPlan:
    """Return the run with the parts that are there, and one more for what is new; ``rows``: as of :func:`_changes`."""
    now, kept, added, first = spec.manifest, len(parts), np.flatnonzero(rows < 0), parts[-1].part.stop
    if len(added) and kept > format.LARGEST_PART:
        raise StoreError(
            f"{folder}: the run has been extended too often, got {kept - 1} times. Expected at most {format.LARGEST_PART}. "
            f"{_REPLACE}"
        )
    rows = rows.copy()
    rows[added] = np.arange(first, first + len(added))
    if len(added):
        # Its identity is that of the run with it, below.
        parts = [*parts, PartManifest({}, first, removed, _select(now, added))]
    run, places = join_images(parts), None
    if now.places is not None:
        places = np.full(len(run), -1, np.int64)
        places[rows] = now.places
    paths = {int(rows[place]): path for place, path in now.paths.items()}
    manifest = replace(run, root=now.root, paths=paths, skipped=now.skipped, source=now.source, places=places)
    spec = replace(spec, manifest=manifest, before=tuple(part.part for part in parts[:-1]))
    return RunPlan(spec, (*parts[:-1], replace(parts[-1], identity=spec.identity)), kept, removed)


def _with_choices(spec: RunSpec, there: Mapping[str, str]) -> RunSpec:
    """Return the run with what the program chose itself as it was chosen for the run that is there."""
    kept = {name: there[name] for name in spec.chosen if name in there}
    counts = {name.split(".")[1]: int(text) for name, text in kept.items() if name.endswith(".n_components")}
    has_auto_density = spec.options.get("reduction.srp.density") == "auto"
    return replace(
        spec,
        options={**spec.options, **kept},
        images_per_shard=int({**spec.options, **kept}["output.images_per_shard"]),
        features=tuple(feature.with_components(counts, has_auto_density) for feature in spec.features),
    )


def _differing(spec: RunSpec, there: Mapping[str, str], run: Manifest) -> list[str]:
    """Return each option, and the columns of the list, in which a run is not the one that is there."""
    columns, columns_there = (",".join(sorted(images.metadata)) or None for images in (spec.manifest, run))
    ours: Mapping[str, str | None] = {**spec.options, "columns of data.list": columns}
    theirs: Mapping[str, str | None] = {**there, "columns of data.list": columns_there}
    names = sorted({*ours, *theirs} - {"images", "extends"})
    return [
        f"{name} {_quoted(ours.get(name))} (in the folder {_quoted(theirs.get(name))})"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]
