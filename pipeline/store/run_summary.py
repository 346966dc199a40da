"""What a run folder holds, finished or not, without reading a feature: counts, errors, layers and sizes."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import Any

from . import damage, format, tables
from .damage import DamagedError, ForeignError, own_node
from .run_contents import read_run_contents


def summarise_run(path: Path) -> dict[str, Any]:
    """Say what a run folder, or the run of a ``features.h5`` or of a shard, holds.

    Returns:
        ``path`` of the run folder; ``state``: in words; ``rows`` as planned, ``rows_finished``: those in finished shards;
        ``errors``: a text for each row that failed; ``shards`` as planned, ``shards_finished``, ``images_per_shard``; ``parts``:
        rows of each; ``layers`` in network order: ``name``, ``shape`` (h, w, c) or (d,) of a row, None at native size or where
        no file tells, ``dtype`` as stored, ``channels`` and ``stride_px``, 0 where no file tells, ``bytes_raw``: activations of
        the good images in finished shards, None without a shape; ``bytes_stored``: finished shards as they lie on the disk;
        ``attributes`` of the root, none without a finished shard; ``identity``: all that can change a number, option -> value;
        ``unreadable``: names of files that are damaged or no files.

    Raises:
        StoreError: There is no run, or its manifest is damaged; the system does not let us read.
    """
    try:
        if not path.exists():
            raise damage.no_such_run(path)
        folder = path
        if not path.is_dir():
            # What the caller has named is followed; what lies in a run folder is not.
            path = path.resolve() if path.is_symlink() else path
            folder = path.parent.parent if format.SHARD_NAME.fullmatch(path.name) else path.parent
        contents = read_run_contents(folder, images=False)
        sizes = {name: (folder / format.shard_path(name)).stat().st_size for name in contents.shards}
    except OSError as error:  # a name too long, a folder that is another user's
        raise damage.damaged(Path(error.filename or path), "", error) from error
    if not contents.planned:
        if not (contents.shards or contents.manifests or format.INDEX_NAME in contents.files):
            raise damage.no_run(folder)
        name = format.manifest_name(0)
        raise damage.damaged(folder / name, "the manifest", "none that agrees with its own digest")
    unreadable = [*contents.special, *(name for name, manifest in contents.manifests.items() if manifest is None)]
    attributes, layers, known = dict[str, Any](), dict[str, dict[str, Any]](), list[str]()
    if format.INDEX_NAME in contents.files:
        try:
            attributes, layers, known = _read_file(folder / format.INDEX_NAME)
        except DamagedError:
            unreadable.append(format.INDEX_NAME)
    finished = [shard for shard in contents.plan if shard.file_name in contents.shards]
    errors: list[str] = []
    for shard in finished:
        if shard.stop <= len(known):
            errors += known[shard.first : shard.stop]
            continue
        name = format.shard_path(shard.file_name)
        try:
            found = _read_file(folder / name)
        except (DamagedError, ForeignError):
            unreadable.append(name)
        else:
            attributes, layers = attributes or found[0], layers or found[1]
            errors += found[2]
    identity, rows, indexed = contents.planned[-1].identity, contents.planned[-1].part.stop, len(known)
    unknown = {"shape": None, "dtype": identity["output.dtype"], "channels": 0, "stride_px": 0}
    told = [{"name": name, **layers.get(name, unknown)} for name in identity["layers"].split(",")]
    for layer in told:
        values = errors.count("") * math.prod(layer["shape"] or ())
        layer["bytes_raw"] = values * format.ITEMSIZE_BYTES[layer["dtype"]] if layer["shape"] else None
    state = "finished" if indexed == rows else "an extension is not finished" if indexed else "not finished"
    if any(shard.stop <= indexed and shard not in finished for shard in contents.plan):
        state = "shards are missing"
    return {
        "path": folder,
        "state": state,
        "rows": rows,
        "rows_finished": sum(shard.rows for shard in finished),
        "errors": [error for error in errors if error],
        "shards": len(contents.plan),
        "shards_finished": len(finished),
        "images_per_shard": int(identity["output.images_per_shard"]),
        "parts": [sum(shard.rows for shard in of_part) for _, of_part in groupby(contents.plan, lambda shard: shard.part)],
        "layers": told,
        "bytes_stored": sum(sizes[shard.file_name] for shard in finished),
        "attributes": attributes,
        "identity": identity,
        "unreadable": unreadable,
    }


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[str]]:
    """Return what a shard or the index tells: attributes, layers by name, and why each row failed, "" for the good ones."""
    with tables.open_file(path) as file, damage.reading(path, "the tree"):
        layers = {}
        for name in tables.layer_names(file):
            node = own_node(file["features"], name)
            # At native size it is a group.
            shape = [int(side) for side in node.shape[1:]] if hasattr(node, "shape") else None
            numbers = {key: int(node.attrs[key]) for key in ("channels", "stride_px")}
            layers[name] = {"shape": shape, "dtype": str(node.attrs["dtype"]), **numbers}
        return dict(file.attrs), layers, tables.read_column(file, path, "error").tolist()
