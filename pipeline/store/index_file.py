"""The index, ``features.h5``: all shards as one file. It is written last, so its presence says that the run is whole."""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..records import OK, FeatureSpec, LayerSpec, Reduction, RunSpec
from ..storage import read_ahead
from . import damage, disk, format, tables
from .damage import require_own_shards
from .digests import Digests
from .run_contents import join_images, read_run_contents
from .shard import hdf5_alone, write_layer, write_tables
from .statistics import LayerStatistics, join_statistics, read_statistics
from .tables import Column

# Attributes of the root that are written for each file, by :func:`pipeline.store.shard.write_tables`.
_OF_THE_FILE = {
    *("format", "format_version", "file_kind", "run_digest", "identity", "manifest_digest", "first_row", "rows", "created"),
    *("images_per_shard", "part_stops", "part_digests"),
}


def build_index(folder: Path, spec: RunSpec) -> Path:
    """Write the index over the finished shards of a run, by paths relative to itself.

    Raises:
        StoreError: A shard is missing, damaged or of another run; the disk refuses.
    """
    require_own_shards(folder)
    names = (*format.TEXT_COLUMNS, *format.NUMBER_COLUMNS, *format.column_names(spec.manifest.metadata).values())
    columns: dict[str, list[Column]] = {name: [] for name in names}
    checksums: dict[str, list[NDArray[np.uint32]]] = {feature.name: [] for feature in spec.features}
    statistics: dict[str, LayerStatistics] = {}
    devices: defaultdict[str, set[str]] = defaultdict(set)
    paths = read_ahead(folder / format.shard_path(shard.file_name) for shard in spec.shards())
    for shard, path in zip(spec.shards(), paths, strict=True):
        with tables.open_file(path) as file, damage.reading(path, "a table"):
            tables.check_shard(file, path, spec.parts[shard.part].digest, shard)
            for name in file.attrs.keys() & format.DEVICE_ATTRIBUTES:
                devices[name].add(str(file.attrs[name]))
            for name, of_shards in columns.items():
                of_shards.append(tables.read_column(file, path, name))
            for layer, parts in checksums.items():
                parts.append(tables.read_checksums(file, path, layer))
            # One by one, so that those of thousands of shards do not lie in memory.
            for layer, found in read_statistics(file, path, checksums).items():
                statistics[layer] = join_statistics([statistics[layer], found]) if layer in statistics else found
    joined: dict[str, Any] = {name: np.concatenate(of_shards) for name, of_shards in columns.items()}
    arrays = {layer: np.concatenate(parts) for layer, parts in checksums.items()}
    spec = replace(spec, attributes={**spec.attributes, **{name: "; ".join(sorted(found)) for name, found in devices.items()}})
    # In memory: a disk that refuses is more than HDF5 survives, see ShardFile; and the tables are in memory already.
    content = io.BytesIO()
    with hdf5_alone(), h5py.File(content, "w") as file:
        group = file.create_group("features")
        for feature in spec.features:
            write_layer(_map_layer(group, feature, spec, joined["status"]), feature, spec.dtype)
        write_tables(file, spec, None, joined, arrays, statistics)
    path = folder / format.INDEX_NAME
    disk.write_file(path, content.getbuffer(), Digests(folder).publish)
    return path


def _map_layer(group: h5py.Group, feature: FeatureSpec, spec: RunSpec, statuses: Column) -> h5py.Dataset | h5py.Group:
    """Return a layer of the index: a virtual dataset, or at native size a link to the dataset of each image that is ok."""
    name, shape, dtype = feature.name, feature.shape, np.dtype(format.STORED_DTYPES[spec.dtype])
    # HDF5 takes a relative path from the folder of the file that holds it.
    shards = [(shard, format.shard_path(shard.file_name)) for shard in spec.shards()]
    if shape is None:
        node = group.create_group(name)
        for shard, path in shards:
            for row in range(shard.first, shard.stop):
                if statuses[row] == OK:
                    image = format.native_name(row)
                    node[image] = h5py.ExternalLink(path, f"/features/{name}/{image}")
        return node
    layout = h5py.VirtualLayout((len(spec.manifest), *shape), dtype)
    for shard, path in shards:
        layout[shard.first : shard.stop] = h5py.VirtualSource(path, f"features/{name}", (shard.rows, *shape), dtype)
    return group.create_virtual_dataset(name, layout, fillvalue=np.nan)


def read_run_spec(folder: Path) -> RunSpec:
    """Return the run that a folder holds, all of whose shards are there: from its manifests, and the attributes of a shard.

    Raises:
        StoreError: There is no run; a manifest or shards are missing; the shard is damaged or of another run.
    """
    contents = read_run_contents(folder)
    if not contents.shards:
        raise damage.no_run(folder)
    if contents.lost:
        raise damage.missing_file(folder / contents.lost, "shards of its part")
    missing = [shard.file_name for shard in contents.plan if shard.file_name not in contents.shards]
    if missing:
        got = f"{len(contents.plan) - len(missing)} of {len(contents.plan)} shards"
        raise damage.missing_file(folder / format.shard_path(missing[0]), got)
    path, identity = folder / format.shard_path(contents.plan[-1].file_name), contents.planned[-1].identity
    with damage.reading(path, "the root"), tables.open_file(path) as file:
        tables.check_shard(file, path, contents.parts[-1].digest, contents.plan[-1])
        attributes = dict(file.attrs)
        features = tuple(_feature(name, file["features"][name]) for name in tables.layer_names(file))
    return RunSpec(
        manifest=replace(join_images(contents.planned), root=str(attributes["data_root"])),
        features=features,
        dtype=identity["output.dtype"],
        compression=str(attributes.get("compression", "gzip")),
        images_per_shard=int(identity["output.images_per_shard"]),
        options={name: value for name, value in identity.items() if name not in ("images", "extends")},
        attributes={name: value for name, value in attributes.items() if name not in _OF_THE_FILE},
        before=contents.parts[:-1],
    )


def _feature(name: str, node: Any) -> FeatureSpec:
    index, channels, stride = (int(node.attrs[key]) for key in ("network_index", "channels", "stride_px"))
    shape = None if isinstance(node, h5py.Group) else node.shape[1:]
    layer = str(node.attrs.get("layer", name))
    steps = json.loads(str(node.attrs.get("reductions", "[]")))
    reductions = tuple(Reduction(step.pop("name"), step) for step in steps)
    # What the network's own table says besides is in no file, and asked for by nobody who only reads.
    return FeatureSpec(LayerSpec(layer, re.sub(r"[0-9_]+$", "", layer), index, 0, None, channels, stride), shape, reductions)
