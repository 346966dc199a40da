"""What a run folder holds, finished or not, without reading a feature: counts, errors, and the sizes that HDF5 keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import h5py

from ..sharding import Part, ShardSpec, plan_shards
from . import damage, format, tables
from .damage import own_node
from .reader import no_such_run, open_run
from .run_contents import finished_shards, parse_identity, read_run_contents

# Shards that are asked for the sizes of their layers, spread over the run: at native size that takes 0.1 ms an image.
SHARDS_ASKED = 16

FINISHED = "finished"
UNFINISHED = "not finished"
EXTENDING = "an extension is not finished"
LACKING = "shards are missing"
ONE_SHARD = "one shard of a run"


def summarise_run(path: Path) -> dict[str, Any]:
    """Say what a run folder, the run of a ``features.h5``, or one shard holds.

    Returns:
        ``path`` of the run folder, or the shard; ``state``: :data:`FINISHED` or one of its neighbours; ``first_row`` of the
        shard, 0 of a run; ``rows`` as planned, or of the shard; ``rows_finished``: those in finished shards; ``errors``: a text
        for each row that failed; ``shards`` as planned, ``shards_finished``, ``images_per_shard``; ``parts``: rows of each;
        ``layers`` in network order: ``name``, ``shape`` (h, w, c) or (d,) of a row, None at native size or where no file tells,
        ``dtype`` as stored, ``channels`` and ``stride_px``, 0 where no file tells, ``bytes_raw`` and ``bytes_stored``:
        activations of the good images in finished shards before compression and as they lie on the disk;
        ``bytes_are_estimated``: whether from a part of the shards; ``attributes`` of the root, none without a finished shard;
        ``identity``: all that can change a number, option -> value; ``unreadable``: names of files that are damaged.

    Raises:
        StoreError: There is no run; the shard that was asked for is damaged; the system does not let us read.
    """
    try:
        is_folder, exists = path.is_dir(), path.exists()
        if not exists:
            raise no_such_run(path)
        if not is_folder and path.is_symlink():
            # What the caller has named is followed; what lies in a run folder is not.
            path = path.resolve()
        if is_folder or path.name == format.INDEX_NAME:
            return _summarise_folder(path if is_folder else path.parent)
    except OSError as error:  # a name too long, a folder that is another user's
        raise damage.unreadable(Path(error.filename or path), error) from error
    with open_run(path) as run:  # for its refusals
        shards = run.shards
    head = _read_file(path)
    return _summarise(path, head, shards, dict.fromkeys(shards, path), parse_identity(str(head.attributes["identity"])), [])


def _summarise_folder(folder: Path) -> dict[str, Any]:
    contents = read_run_contents(folder, images=False)
    damaged = [name for name, manifest in contents.manifests.items() if manifest is None]
    # Links too: what is none of this program's files is named as damaged.
    names = [*contents.files, *contents.special]
    there = {*finished_shards(names)}
    telling = [name for name in names if name == format.INDEX_NAME]
    telling += [format.shard_path(name) for name in sorted(there, reverse=True)]
    if not (telling or contents.manifests):
        raise damage.no_run(folder)
    # What tells of the run besides its manifests: the file that knows most of its parts.
    head, refusal = None, None
    for name in telling:
        try:
            head = _read_file(folder / name)
            break
        except (damage.DamagedError, damage.ForeignError) as error:
            # It may be the whole run that is of another program or version; of shards there may be others.
            if name == format.INDEX_NAME and isinstance(error, damage.ForeignError):
                raise
            refusal = error
            damaged.append(name)
    if not head and not contents.planned:
        manifest = folder / format.manifest_name(0)
        if damaged:
            raise refusal or damage.damaged(manifest, "the manifest", "none that agrees with its own digest")
        raise refusal or damage.missing_file(manifest, "manifest", "no such file")
    identity = parse_identity(str(head.attributes["identity"])) if head else contents.planned[-1].identity
    parts = max(head.parts if head else (), contents.parts, key=len)
    plan = plan_shards(tuple(part.stop for part in parts), int(identity["output.images_per_shard"]))
    files = {shard: folder / format.shard_path(shard.file_name) for shard in plan if shard.file_name in there}
    return _summarise(folder, head, plan, files, identity, damaged)


def _summarise(
    path: Path,
    head: _File | None,
    plan: Sequence[ShardSpec],
    files: Mapping[ShardSpec, Path],
    identity: Mapping[str, str],
    damaged: list[str],
) -> dict[str, Any]:
    """Return what :func:`summarise_run` does: from the index as far as it goes, then from the finished shards."""
    index = head if head and head.attributes["file_kind"] == format.INDEX else None
    indexed = int(index.attributes["rows"]) if index else 0
    sample = {*[*files][:: -(-len(files) // SHARDS_ASKED) or 1]}
    errors: list[str] = []
    asked: list[_File] = []
    for shard, shard_path in files.items():
        known = index.errors[shard.first : shard.stop] if index and shard.stop <= indexed else []
        if not known or shard in sample:
            try:
                found = _read_file(shard_path, has_layers=shard in sample)
                if len(found.errors) != shard.rows:
                    raise damage.damaged(shard_path, "the table /images", f"{len(found.errors)} rows in place of {shard.rows}")
                known = known or found.errors
                asked += [found] * (shard in sample)
            except (damage.DamagedError, damage.ForeignError):
                damaged.append(format.shard_path(shard.file_name))
        errors += known
    good, names = sum(file.errors.count("") for file in asked), identity["layers"].split(",")
    unknown = {"shape": None, "dtype": identity["output.dtype"], "channels": 0, "stride_px": 0}
    layers = [dict(layer) for layer in head.layers] if head else [{"name": name, **unknown} for name in names]
    for layer in layers:
        of_files = [found for file in asked for found in file.layers if found["name"] == layer["name"]]
        for size in ("bytes_raw", "bytes_stored"):
            layer[size] = round(sum(found[size] for found in of_files) * errors.count("") / max(1, good))
    state = FINISHED if indexed == plan[-1].stop else EXTENDING if indexed else UNFINISHED
    if any(shard.stop <= indexed and shard not in files for shard in plan):
        state = LACKING
    return {
        "path": path,
        "state": state if path.is_dir() else ONE_SHARD,
        "first_row": plan[0].first,
        "rows": sum(shard.rows for shard in plan),
        "rows_finished": sum(shard.rows for shard in files),
        "errors": [error for error in errors if error],
        "shards": len(plan),
        "shards_finished": len(files),
        "images_per_shard": int(identity["output.images_per_shard"]),
        "parts": [sum(shard.rows for shard in of_part) for _, of_part in groupby(plan, lambda shard: shard.part)],
        "layers": layers,
        "bytes_are_estimated": len(sample) < len(files),
        "attributes": head.attributes if head else {},
        "identity": identity,
        "unreadable": [*dict.fromkeys(damaged)],
    }


@dataclass(frozen=True, slots=True)
class _File:
    """What a shard or the index tells: attributes, parts, why each row failed ("" for the good ones), and its layers."""

    attributes: Mapping[str, Any]
    parts: tuple[Part, ...]
    errors: list[str]
    layers: Sequence[Mapping[str, Any]]


def _read_file(path: Path, has_layers: bool = True) -> _File:
    """Read a shard or the index; ``has_layers``: whether its layers are asked for too, which takes longer."""
    with tables.open_file(path) as file, damage.reading(path, "the tree"):
        errors = tables.read_column(file, path, "error").tolist()
        # What the index shows of layers is in the shards.
        good = errors.count("") / len(errors) if file.attrs["file_kind"] == format.SHARD else 0.0
        names = tables.layer_names(file) if has_layers else ()
        layers = [_read_layer(name, own_node(file["features"], name), good) for name in names]
        return _File(dict(file.attrs), tables.read_parts(file, path), errors, layers)


def _read_layer(name: str, node: Any, good: float) -> dict[str, Any]:
    """Return a layer and the bytes of one shard, from its dataset, or at native size the group of them.

    ``good`` is the share of the shard's rows that have not failed.
    """
    is_native = isinstance(node, h5py.Group)
    if is_native:
        # By h5py's lower half, which takes a tenth of the time. What a link leads to is not in this file.
        hard = (row for row in (node.id if good else ()) if node.id.links.get_info(row).type == h5py.h5l.TYPE_HARD)
        datasets = [h5py.h5d.open(node.id, row) for row in hard]
    else:
        datasets = [node.id]
    raw = sum(math.prod(dataset.shape) * dataset.dtype.itemsize for dataset in datasets)
    return {
        "name": name,
        "shape": None if is_native else [int(side) for side in node.shape[1:]],
        "dtype": str(node.attrs["dtype"]),
        "channels": int(node.attrs["channels"]),
        "stride_px": int(node.attrs["stride_px"]),
        "bytes_raw": raw if is_native else round(raw * good),
        "bytes_stored": sum(dataset.get_storage_size() for dataset in datasets),
    }
