"""A run as its files say that it is: what there is to know of it without images, weights and options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import FeatureSpec, LayerSpec, Manifest, Part, RunSpec, ShardSpec, Share, digest_identity, plan_shards
from . import damage, format, tables
from .file_checks import require_own_shards
from .found import FoundPart, shard_names
from .identity import read_identity
from .listing import read_header, read_listing

# Missing shards that are named.
NAMED = 3
# Attributes of the root that are written for each file, by :func:`pipeline.store.tables.write_root`.
_OF_THE_FILE = {
    *("format", "format_version", "file_kind", "run_digest", "identity", "manifest_digest", "first_row", "rows", "created"),
    *("images_per_shard", "part_stops", "part_digests", format.STATISTICS_CHECKSUMS),
}


def recall_run(folder: Path) -> RunSpec:
    """Gives the run that a folder holds, all of whose shards are there.

    Args:
        folder: The run folder.

    Raises:
        StoreError: There is no run, or shards of it are missing; or what speaks for it is damaged, or of different runs.
    """
    require_own_shards(folder)
    names = [name for name in shard_names(folder) if format.SHARD_NAME.fullmatch(name)]
    if not names:
        raise damage.no_run(folder, format.INDEX_NAME)
    # The last one knows all parts of which there is a shard.
    path = folder / format.shard_path(names[-1])
    with tables.open_file(path) as file:
        try:
            spec = _spec_of(file, path)
        except tables.HDF5_READ_ERRORS as error:
            raise tables.damaged(path, "the root", error) from error
    plan = plan_shards([*(part.stop for part in spec.parts), *_stops_after(folder, spec.parts)], spec.images_per_shard)
    there = {*names}
    if missing := [shard for shard in plan if shard.file_name not in there]:
        raise _lacking(folder, missing, len(plan))
    return spec


def divided_by(folder: Path) -> int | None:
    """Gives the number of processes among which a run was divided last, as their logs tell; None where there are none."""
    names = [path for path in folder.iterdir() if format.PART_COMPANION_NAME.fullmatch(path.name)]
    logs = [path for path in names if path.suffix == ".log"]
    if not logs:
        return None
    last = format.PART_COMPANION_NAME.fullmatch(max(logs, key=lambda path: path.stat().st_mtime).name)
    share = Share.of_text(last[1]) if last else None
    return share.count if share else None


def _spec_of(file: h5py.File, path: Path) -> RunSpec:
    """Gives the run, up to its own part, that a shard is of."""
    attributes, parts = dict(file.attrs), tables.read_parts(file, path)
    identity = read_identity(str(attributes["identity"]))
    if identity is None or digest_identity(identity) != parts[-1].digest:
        raise ValueError("an identity that is not that of its run")
    shapes = {name: file["features"][name] for name in tables.layer_names(file)}
    return RunSpec(
        manifest=_manifest(path.parent.parent, file, parts),
        features=tuple(_feature(name, node) for name, node in shapes.items()),
        dtype=str(next(iter(shapes.values())).attrs["dtype"]),
        compression=str(attributes.get("compression", "gzip")),
        images_per_shard=int(attributes["images_per_shard"]),
        options={name: value for name, value in identity.items() if name not in ("images", "extends")},
        attributes={name: value for name, value in attributes.items() if name not in _OF_THE_FILE},
        before=parts[:-1],
    )


def _feature(name: str, node: Any) -> FeatureSpec:
    found = {key: int(node.attrs[key]) for key in ("network_index", "channels", "stride_px")}
    shape = None if isinstance(node, h5py.Group) else (int(node.shape[1]), int(node.shape[2]), int(node.shape[3]))
    # What the network's own table says besides is in no file, and asked for by nobody who only reads.
    kind = re.sub(r"[0-9_]+$", "", name)
    return FeatureSpec(LayerSpec(name, kind, found["network_index"], 0, None, found["channels"], found["stride_px"]), shape)


def _manifest(folder: Path, file: h5py.File, parts: tuple[Part, ...]) -> Manifest:
    """Gives the images of all parts: as their lists say, or else as their shards do."""
    keys: list[str] = []
    labels: list[str] = []
    sizes: list[NDArray[np.int64]] = []
    for number, part in enumerate(parts):
        path = folder / format.manifest_name(number)
        listing = read_listing(path)
        if listing is not None and digest_identity(listing.identity) == part.digest:
            images = listing.images
        else:
            shards = tuple(folder / format.shard_path(name) for name in shard_names(folder) if _part_of(name) == number)
            images = FoundPart({}, path, shards, begun=True).finished_images()
        keys += images.keys
        labels += images.labels
        sizes.append(images.file_bytes)
    if len(keys) != parts[-1].stop:
        raise ValueError(f"{len(keys)} images of {parts[-1].stop}")
    root, digest = str(file.attrs["data_root"]), str(file.attrs["manifest_digest"])
    return Manifest(root, tuple(keys), tuple(labels), np.concatenate(sizes), {}, {}, {}, digest)


def _part_of(name: str) -> int:
    found = format.SHARD_NAME.fullmatch(name)
    return int(found[1] or 0) if found else -1


def _stops_after(folder: Path, parts: tuple[Part, ...]) -> list[int]:
    """Gives the rows of the run after each part of which there is no more than a list of images yet."""
    stops, last = [part.stop for part in parts], parts[-1]
    while (header := read_header(folder / format.manifest_name(len(stops)))) is not None:
        if header.identity.get("extends") != f"{last.stop} rows, digest {last.digest}":
            break  # of an earlier run
        last = Part(digest_identity(header.identity), last.stop + header.rows)
        stops.append(last.stop)
    return stops[len(parts) :]


def _lacking(folder: Path, missing: Sequence[ShardSpec], count: int) -> StoreError:
    names = ", ".join(shard.file_name for shard in missing[:NAMED]) + ", ..." * (len(missing) > NAMED)
    advice = "Run the extraction again, which makes them and then the index."
    if processes := divided_by(folder):
        makers = sorted({shard.number % processes + 1 for shard in missing})
        which = ", ".join(f"{number}/{processes}" for number in makers[:NAMED]) + ", ..." * (len(makers) > NAMED)
        advice = f"Run again, with part={which}: the one that finishes last writes the index."
    return StoreError(
        f"{folder}: shards are missing, got {count - len(missing)} of {count}, without {names}. Expected all. {advice}"
    )
