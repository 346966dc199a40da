"""One shard file while it is written: ``<name>.partial``, until all of it is there and on the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

# h5py's one lock around HDF5, which is not made for threads. Releases up to 2025 forget it for direct chunks: writes fail or
# crash when another thread is in HDF5. It may be taken twice. Source: h5py pull request 2764, December 2025.
from h5py._objects import phil
from numpy.typing import NDArray

from ..records import FeatureSpec, ImageStatus, RunSpec, ShardSpec
from ..statistics import LayerStatistics
from . import codec, disk, format, summaries, tables
from .cutter import Shape4
from .publication import Publisher
from .steady import SteadyFile


class ShardFile:
    """An open ``.partial`` file with the datasets of its layers, empty.

    Args:
        folder: The run's folder; ``shards`` in it must exist.
        spec: The run.
        shard: Which rows.
        mark: Of this writer, where another process might write the same shard.

    Raises:
        StoreError: The disk refuses; here and in every method.
    """

    def __init__(self, folder: Path, spec: RunSpec, shard: ShardSpec, mark: str = "") -> None:
        self.path = folder / format.SHARD_FOLDER / shard.file_name
        self._spec = spec
        self._shard = shard
        self._dtype = np.dtype(format.STORED_DTYPES[spec.dtype])
        self._partial = disk.partial_path(self.path, mark)
        self._nodes: dict[str, h5py.Dataset | h5py.Group] = {}
        try:
            self._bytes = SteadyFile(self._partial)
            with contextlib.ExitStack() as on_error:
                on_error.enter_context(self._bytes)
                self._file = h5py.File(self._bytes, "w")
                self._bytes.hide_refusals()
                on_error.pop_all()
        except disk.HDF5_ERRORS as error:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)
            raise disk.write_error(self._partial, error) from error
        try:
            group = self._file.create_group("features")
            for feature in spec.features:
                self._nodes[feature.layer.name] = self._create_layer(group, feature)
        except disk.HDF5_ERRORS as error:
            self.drop()
            raise disk.write_error(self._partial, error) from error

    def _create_layer(self, group: h5py.Group, feature: FeatureSpec) -> h5py.Dataset | h5py.Group:
        name = feature.layer.name
        if feature.shape is None:
            node = group.create_group(name)
        else:
            node = self._create_dataset(group, name, (self._shard.rows, *feature.shape), self.chunk(feature.shape))
        tables.write_layer(node, feature, self._spec.dtype)
        return node

    def _create_dataset(self, group: h5py.Group, name: str, shape: tuple[int, ...], chunk: tuple[int, ...]) -> h5py.Dataset:
        filters = {"compression": "gzip", "compression_opts": codec.STORED_LEVEL} if self._spec.compression == "gzip" else {}
        return group.create_dataset(name, shape, self._dtype, chunks=chunk, fillvalue=np.nan, **filters)

    def chunk(self, shape: tuple[int, int, int]) -> Shape4:
        """Gives the chunk of a layer whose rows have this shape; it is never longer than the shard."""
        chunk = format.chunk_shape(shape, self._dtype.itemsize)
        return (min(chunk[0], self._shard.rows), *chunk[1:])

    def add_native(self, layer: str, row: int, shape: tuple[int, int, int]) -> tuple[h5py.Dataset, Shape4]:
        """Makes the dataset of one image at native size.

        Returns:
            The dataset, and its chunk with an axis of length 1 before it.
        """
        chunk = format.band_shape(shape, self._dtype.itemsize)
        try:
            name = format.native_name(self._shard.first + row)
            return self._create_dataset(self._nodes[layer], name, shape, chunk), (1, *chunk)
        except disk.HDF5_ERRORS as error:
            raise disk.write_error(self._partial, error) from error

    def dataset(self, layer: str) -> h5py.Dataset:
        """Gives the dataset of a layer of fixed shape."""
        return self._nodes[layer]

    def locate(self, dataset: h5py.Dataset, offset: Shape4, data: bytes | NDArray[np.uint8]) -> int | None:
        """Gives where in the file a ready chunk is to be written by :meth:`write`; None where it has been. A thread at a time."""
        try:
            with phil:
                # A dataset of native size has no axis of images.
                return self._bytes.locate(data, lambda: dataset.id.write_direct_chunk(offset[-dataset.id.rank :], data))
        except disk.HDF5_ERRORS as error:
            raise disk.write_error(self._partial, error) from error

    def write(self, place: int | None, data: bytes | NDArray[np.uint8]) -> None:
        """Writes a ready chunk to the place that it has got; threads may do that at the same time."""
        try:
            if place is not None:
                self._bytes.write_at(data, place)
            self._bytes.check()
        except disk.HDF5_ERRORS as error:
            raise disk.write_error(self._partial, error) from error

    def finish(
        self,
        statuses: Sequence[ImageStatus],
        checksums: Mapping[str, NDArray[np.uint32]],
        statistics: Mapping[str, LayerStatistics],
        digests: Publisher,
    ) -> None:
        """Adds the tables, closes the file, and gives it its final name and its digest once it is on the disk.

        Args:
            statuses: One for each row, in order.
            checksums: Layer -> (rows,), 0 for failed rows.
            statistics: Layer -> those of its rows.
            digests: Gives the file its final name.
        """
        try:
            tables.write_columns(self._file, tables.image_columns(self._spec, self._shard, statuses))
            group = self._file.create_group("checksums")
            for layer, values in checksums.items():
                group.create_dataset(layer, data=values, dtype="<u4")
            summaries.write_statistics(self._file, statistics)
            tables.write_root(self._file, self._spec, format.SHARD, self._shard.first)
            self._file.close()
            self._bytes.check()
            self._bytes.close()
            digests.publish(self.path, self._partial)
        except disk.HDF5_ERRORS as error:
            self.drop()
            raise disk.write_error(self._partial, error) from error

    def drop(self) -> None:
        """Removes the file, whatever state it is in; never raises."""
        with contextlib.suppress(*disk.HDF5_ERRORS):
            self._file.close()
        with contextlib.suppress(OSError):
            self._bytes.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)
