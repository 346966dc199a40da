"""The index, ``features.h5``: all shards as one file. It is written last, so its presence says that the run is whole."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from ..records import OK, FeatureSpec, RunSpec, ShardSpec
from . import disk, format, summaries, tables
from .collecting import collect
from .digests import Digests
from .tables import Column


def build_index(folder: Path, spec: RunSpec) -> Path:
    """Writes the index over the finished shards of a run.

    It names the shards by paths relative to itself, so it opens from any working directory and after the folder has moved.

    Args:
        folder: The run's folder.
        spec: The run.

    Returns:
        Its path.

    Raises:
        StoreError: A shard is missing, damaged or of another run; the disk refuses.
    """
    gathered = collect(folder, spec)
    columns = gathered.columns
    path = folder / format.INDEX_NAME
    partial = disk.partial_path(path)
    try:
        # In memory: a disk that refuses is more than HDF5 survives, see SteadyFile; and the tables are in memory already.
        with h5py.File(partial, "w", driver="core", backing_store=False) as file:
            group = file.create_group("features")
            for feature in spec.features:
                if feature.shape is None:
                    node = _link_images(group, feature, spec, columns["status"])
                else:
                    node = _map_layer(group, feature, spec)
                tables.write_layer(node, feature, spec.dtype)
            tables.write_columns(file, columns)
            group = file.create_group("checksums")
            for layer, values in gathered.checksums.items():
                group.create_dataset(layer, data=values, dtype="<u4")
            summaries.write_statistics(file, gathered.statistics)
            tables.write_root(file, spec, format.INDEX, 0)
            file.flush()
            content = file.id.get_file_image()
        partial.write_bytes(content)
        Digests(folder).publish(path)
    except BaseException as error:  # Ctrl-C too
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, disk.HDF5_ERRORS):
            raise disk.write_error(partial, error) from error
        raise
    return path


def _source_path(shard: ShardSpec) -> str:
    # HDF5 takes a relative path from the folder of the file that holds it.
    return format.shard_path(shard.file_name)


def _map_layer(group: h5py.Group, feature: FeatureSpec, spec: RunSpec) -> h5py.Dataset:
    assert feature.shape is not None
    layer, dtype = feature.layer.name, np.dtype(format.STORED_DTYPES[spec.dtype])
    layout = h5py.VirtualLayout((len(spec.manifest), *feature.shape), dtype)
    for shard in spec.shards():
        source = h5py.VirtualSource(_source_path(shard), f"features/{layer}", (shard.rows, *feature.shape), dtype)
        layout[shard.first : shard.stop] = source
    return group.create_virtual_dataset(layer, layout, fillvalue=np.nan)


def _link_images(group: h5py.Group, feature: FeatureSpec, spec: RunSpec, statuses: Column) -> h5py.Group:
    layer = feature.layer.name
    node = group.create_group(layer)
    for shard in spec.shards():
        for index in range(shard.first, shard.stop):
            if statuses[index] == OK:
                name = format.native_name(index)
                node[name] = h5py.ExternalLink(_source_path(shard), f"/features/{layer}/{name}")
    return node
