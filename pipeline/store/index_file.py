"""The index, ``features.h5``: all shards as one file. It is written last, so its presence says that the run is whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import OK, FeatureSpec, RunSpec, ShardSpec
from ..storage import read_ahead
from . import disk, format, tables
from .digests import Digests
from .file_checks import require_own_shards
from .shard import write_tables
from .statistics import LayerStatistics, join_statistics, read_statistics
from .tables import Column


def build_index(folder: Path, spec: RunSpec) -> Path:
    """Write the index over the finished shards of a run.

    It names the shards by paths relative to itself, so it opens from any working directory and after the folder has moved.

    Args:
        folder: The run's folder.
        spec: The run.

    Returns:
        Its path.

    Raises:
        StoreError: A shard is missing, damaged or of another run; the disk refuses.
    """
    gathered = _read_shards(folder, spec)
    path = folder / format.INDEX_NAME
    with disk.writing(path, disk.HDF5_ERRORS) as partial:
        # In memory: a disk that refuses is more than HDF5 survives, see RawFile; and the tables are in memory already.
        with h5py.File(partial, "w", driver="core", backing_store=False) as file:
            group = file.create_group("features")
            for feature in spec.features:
                if feature.shape is None:
                    node = _link_images(group, feature, spec, gathered.columns["status"])
                else:
                    node = _map_layer(group, feature, spec)
                tables.write_layer(node, feature, spec.dtype)
            write_tables(file, spec, format.INDEX, 0, gathered.columns, gathered.checksums, gathered.statistics)
            file.flush()
            content = file.id.get_file_image()
        partial.write_bytes(content)
        Digests(folder).publish(path)
    return path


@dataclass(frozen=True, slots=True)
class _Gathered:
    """What all shards hold besides features, rows in order.

    Attributes:
        columns: Of ``/images``, name -> (rows,).
        checksums: Layer -> (rows,).
        statistics: Layer -> those of all rows.
    """

    columns: Mapping[str, Column]
    checksums: Mapping[str, NDArray[np.uint32]]
    statistics: Mapping[str, LayerStatistics]


def _read_shards(folder: Path, spec: RunSpec) -> _Gathered:
    """Return what all shards of a run hold besides features, having compared each with the run.

    Raises:
        StoreError: A shard is missing, damaged or of another run.
    """
    require_own_shards(folder)
    shards, digests = spec.shards(), [part.digest for part in spec.parts]
    columns: dict[str, list[Column]] = {}
    checksums: dict[str, list[NDArray[np.uint32]]] = {feature.layer.name: [] for feature in spec.features}
    statistics: dict[str, LayerStatistics] = {}
    paths = read_ahead(folder / format.SHARD_FOLDER / shard.file_name for shard in shards)
    for shard, path in zip(shards, paths, strict=True):
        with tables.open_file(path) as file:
            tables.check_shard(file, path, digests[shard.part], shard)
            try:
                for name in file["images"]:
                    columns.setdefault(name, []).append(tables.read_column(file, path, name))
                for layer, parts in checksums.items():
                    parts.append(tables.read_checksums(file, path, layer))
                # One by one, so that those of thousands of shards do not lie in memory.
                for layer, of_layer in read_statistics(file, path, checksums).items():
                    before = [statistics[layer]] if layer in statistics else []
                    statistics[layer] = join_statistics([*before, of_layer])
            except tables.HDF5_READ_ERRORS as error:
                raise tables.damaged(path, "a table", error) from error
    for name, of_shards in columns.items():
        if len(of_shards) != len(shards):
            raise StoreError(
                f"{folder}: column {name!r} is missing in some shards, got it in {len(of_shards)}. Expected it in all "
                f"{len(shards)}. Use output.existing=replace to make them all again."
            )
    joined: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    return _Gathered(
        joined,
        {layer: np.concatenate(parts) for layer, parts in checksums.items()},
        statistics,
    )


def _map_layer(group: h5py.Group, feature: FeatureSpec, spec: RunSpec) -> h5py.Dataset:
    assert feature.shape is not None
    layer, dtype = feature.layer.name, np.dtype(format.STORED_DTYPES[spec.dtype])
    layout = h5py.VirtualLayout((len(spec.manifest), *feature.shape), dtype)
    for shard in spec.shards():
        # HDF5 takes a relative path from the folder of the file that holds it.
        path = format.shard_path(shard.file_name)
        layout[shard.first : shard.stop] = h5py.VirtualSource(path, f"features/{layer}", (shard.rows, *feature.shape), dtype)
    return group.create_virtual_dataset(layer, layout, fillvalue=np.nan)


def _link_images(group: h5py.Group, feature: FeatureSpec, spec: RunSpec, statuses: Column) -> h5py.Group:
    node = group.create_group(feature.layer.name)
    for name, (path, inner) in _links(feature.layer.name, spec.shards(), statuses).items():
        node[name] = h5py.ExternalLink(path, inner)
    return node


def _links(layer: str, plan: Sequence[ShardSpec], statuses: Column) -> dict[str, tuple[str, str]]:
    """Return name -> (shard, path in it) of each image that is ok, at native size."""
    return {
        (name := format.native_name(index)): (format.shard_path(shard.file_name), f"/features/{layer}/{name}")
        for shard in plan
        for index in range(shard.first, shard.stop)
        if statuses[index] == OK
    }
