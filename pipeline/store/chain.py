"""The parts of a run: those that a folder holds, held to what is asked for now, and the one that new images make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import Manifest, Part, RunSpec, digest_identity, digest_images
from . import format
from .changes import Changes, compare_images
from .found import FoundPart
from .listing import Listing
from .read_errors import UnreadableError

_NONE = np.zeros(0, np.int64)
_REPLACE = "Choose another folder with name=..., or use output.existing=replace to discard what is there."


@dataclass(frozen=True, slots=True)
class Chain:
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
    gone: tuple[NDArray[np.int64], ...]
    kept: int = 0
    added: int = 0
    removed: NDArray[np.int64] = field(default_factory=lambda: _NONE)

    def up_to(self, part: int) -> RunSpec:
        """Gives the run as it is with this part, and none after it."""
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


def settle_parts(folder: Path, spec: RunSpec, found: Sequence[FoundPart], extend: bool) -> Chain:
    """Says of which parts a run consists, so that what is there already fits into it.

    Args:
        folder: The run folder, for messages.
        spec: The run as it would be in an empty folder.
        found: What the folder holds.
        extend: Whether images that the run does not have become a further part of it.

    Raises:
        StoreError: The folder holds a run with other options or, as far as they are not to be added, other images; a list of
            images cannot be read.
    """
    found = list(found)
    while found:
        try:
            return _go_on(folder, spec, found, extend)
        except UnreadableError:
            raise
        except StoreError:
            # A part of which there is only a list of images holds nobody up: it is planned anew.
            if found[-1].begun:
                raise
            found.pop()
    return Chain(spec, (spec.manifest.digest,), (_NONE,))


def _go_on(folder: Path, spec: RunSpec, found: Sequence[FoundPart], extend: bool) -> Chain:
    there = found[-1].identity
    spec = _with_choices(spec, there)
    if len(found) == 1 and spec.identity == there:
        return Chain(spec, (spec.manifest.digest,), (_NONE,), kept=1)
    differing = _differing_options(spec.options, there)
    listings = [part.listing() for part in found]
    whole = [listing for listing in listings if listing is not None]
    if len(whole) < len(listings):
        raise _other_options(folder, differing) if differing else _unknown_images(folder, spec, found[listings.index(None)])
    run = _joined([listing.images for listing in whole])
    stops = np.cumsum([len(listing.images) for listing in whole]).tolist()
    differing += _differing_columns(run, spec.manifest)
    changes = compare_images(run, stops, spec.manifest)
    # What was not there any more when the last part was planned need not be there now.
    newly_removed = np.setdiff1d(changes.removed, whole[-1].gone)
    # Rows of a part that has no shard yet are not worth keeping without their images.
    unwanted = not found[-1].begun and bool((changes.removed >= (stops[-2] if len(stops) > 1 else 0)).any())
    refused = changes.words_of_changed()
    if not extend or unwanted:
        refused = changes.words_of_added() + changes.words_of_removed(newly_removed) + refused
    if differing:
        raise _other_options(folder, differing + refused)
    if refused:
        raise _other_images(folder, len(run), changes, refused, len(newly_removed))
    parts = tuple(Part(digest_identity(part.identity), stop) for part, stop in zip(found, stops, strict=True))
    return _joined_chain(folder, spec, parts, whole, changes)


def _joined_chain(folder: Path, spec: RunSpec, parts: tuple[Part, ...], whole: Sequence[Listing], changes: Changes) -> Chain:
    """Gives the run with the parts that are there, and one more for what is new."""
    run, now, added = changes.run, changes.now, changes.added
    rows = changes.rows.copy()
    rows[added] = np.arange(len(run), len(run) + len(added))
    new_keys, new_labels = (tuple(column[row] for row in added.tolist()) for column in (now.keys, now.labels))
    new_columns = {name: tuple(values[row] for row in added.tolist()) for name, values in now.metadata.items()}
    new_bytes = now.file_bytes[added]
    digests = tuple(listing.images.digest for listing in whole)
    gone = tuple(listing.gone for listing in whole)
    if len(added):
        if len(parts) > format.LARGEST_PART:
            raise StoreError(
                f"{folder}: the run has been extended too often, got {len(parts) - 1} times. Expected at most "
                f"{format.LARGEST_PART}. {_REPLACE}"
            )
        digests += (digest_images(new_keys, new_labels, new_bytes, new_columns),)
        gone += (changes.removed,)
    places = None
    if now.places is not None:
        places = np.full(len(run) + len(added), -1, np.int64)
        places[rows] = now.places
    manifest = Manifest(
        root=now.root,
        keys=(*run.keys, *new_keys),
        labels=(*run.labels, *new_labels),
        file_bytes=np.concatenate([run.file_bytes, new_bytes]),
        paths={int(rows[place]): path for place, path in now.paths.items()},
        metadata={name: (*run.metadata[name], *new_columns[name]) for name in now.metadata},
        skipped=now.skipped,
        digest=digests[-1],
        source=now.source,
        places=places,
    )
    before = parts if len(added) else parts[:-1]
    return Chain(replace(spec, manifest=manifest, before=before), digests, gone, len(parts), len(added), changes.removed)


def _joined(images: Sequence[Manifest]) -> Manifest:
    """Gives the images of all parts, one after the other."""
    return Manifest(
        root="",
        keys=tuple(key for part in images for key in part.keys),
        labels=tuple(label for part in images for label in part.labels),
        file_bytes=np.concatenate([part.file_bytes for part in images]),
        paths={},
        metadata={name: tuple(value for part in images for value in part.metadata[name]) for name in images[0].metadata},
        skipped={},
        digest="",
    )


def _with_choices(spec: RunSpec, there: Mapping[str, str]) -> RunSpec:
    """Gives the run with what the program chose itself as it was chosen for the run that is there."""
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
    """Gives the one line for a file of a run with other options, or other images, than its neighbours."""
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


def _unknown_images(folder: Path, spec: RunSpec, part: FoundPart) -> StoreError:
    """Says as much as the finished shards of a part allow, where the list of its images is missing."""
    seen = part.finished_images()
    changes = compare_images(seen, [len(seen)], spec.manifest)
    known = (
        ", ".join(changes.words_of_removed(changes.removed) + changes.words_of_changed()) or "none of these removed or changed"
    )
    return StoreError(
        f"{folder}: the images of the run in the folder are not known, since {part.listing_path.name} is missing or damaged, got "
        f"{len(spec.manifest)} images now; against the {len(seen)} that are finished, of {part.identity['images']}: {known}. "
        f"Expected those of the run. Put the file back, or {_REPLACE[0].lower()}{_REPLACE[1:]}"
    )
