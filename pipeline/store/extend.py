"""Of which parts a run consists: those that a folder holds, compared with what is asked for now, and the one of new images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..formatting import counted
from ..records import Manifest, RunSpec, part_identity
from .run_contents import PartManifest, RunContents, join_images, make_images

_log = logging.getLogger(__name__)

# Images that a message names of each kind.
NAMED = 3

_REPLACE = "Choose another folder with name=..., or use output.existing=replace to discard what is there."
_EXTEND = f"Use output.existing=extend to append new images and keep the rows of removed ones. {_REPLACE}"


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
        raise StoreError(
            f"{contents.path}: {contents.lost} is missing, damaged or of another run, so the images of the run are not known, "
            f"got shards of {contents.begun} parts. Expected the manifest of each. Put the file back. {_REPLACE}"
        )
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
        raise StoreError(
            f"{folder}: the folder holds another run, got {', '.join(differences)}. Expected the same options and images, to go "
            f"on with it. {remedy}"
        )
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
