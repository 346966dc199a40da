"""The index, ``features.h5``: all shards as one file. It is written last, so its presence says that the run is whole."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import OK, FeatureSpec, RunSpec, ShardSpec
from ..statistics import LayerStatistics, join_statistics
from . import disk, format, remote, summaries, tables
from .digests import Digests
from .regular import require_own_shards
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
    columns, checksums, statistics = _gather(folder, spec)
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
            for layer, values in checksums.items():
                group.create_dataset(layer, data=values, dtype="<u4")
            summaries.write_statistics(file, statistics)
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


def _gather(folder: Path, spec: RunSpec) -> tuple[dict[str, Column], dict[str, NDArray[np.uint32]], dict[str, LayerStatistics]]:
    """Gives the tables, checksums and statistics of all shards, joined, having held each to the run."""
    digests = [part.digest for part in spec.parts]
    columns: dict[str, list[Column]] = {}
    checksums: dict[str, list[NDArray[np.uint32]]] = {}
    statistics: dict[str, LayerStatistics] = {}
    require_own_shards(folder)
    paths = remote.ahead(folder / format.SHARD_FOLDER / shard.file_name for shard in spec.shards())
    for shard, path in zip(spec.shards(), paths, strict=True):
        with tables.open_file(path) as file:
            tables.check_shard(file, path, digests[shard.part], shard)
            try:
                for name in file["images"]:
                    columns.setdefault(name, []).append(tables.read_column(file, path, name))
                for feature in spec.features:
                    layer = feature.layer.name
                    checksums.setdefault(layer, []).append(tables.read_checksums(file, path, layer))
                # One by one, so that those of thousands of shards do not lie in memory.
                for layer, of_layer in summaries.read_statistics(file, path).items():
                    before = [statistics[layer]] if layer in statistics else []
                    statistics[layer] = join_statistics([*before, of_layer])
            except tables.HDF5_READ_ERRORS as error:
                raise tables.damaged(path, "a table", error) from error
    for name, parts in columns.items():
        if len(parts) != len(spec.shards()):
            raise StoreError(
                f"{folder}: column {name!r} is missing in some shards, got it in {len(parts)}. Expected it in all "
                f"{len(spec.shards())}. Use output.existing=replace to make them all again."
            )
    return _joined(columns), _joined(checksums), statistics


def _joined(parts: Mapping[str, list[NDArray]]) -> dict[str, NDArray]:  # type: ignore[type-arg]
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


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
