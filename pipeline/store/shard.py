"""One shard file while it is written: ``<name>.partial``, until all of it is there and on the disk."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np

# h5py's one lock around HDF5, which is not made for threads. Releases up to 2025 forget it for direct chunks: writes fail or
# crash when another thread is in HDF5. It may be taken twice. Source: h5py pull request 2764, December 2025.
from h5py._objects import phil
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import FeatureSpec, ImageStatus, RunSpec
from ..sharding import ShardSpec
from . import codec, disk, format, tables
from .cutter import Shape
from .digests import Digests
from .statistics import LayerStatistics, write_statistics


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
        self._bytes: Any = None
        self._file: Any = None
        try:
            with self._writing():
                self._bytes = RawFile(self._partial)
                self._file = h5py.File(self._bytes, "w")
                self._bytes.hide_refusals()
                group = self._file.create_group("features")
                for feature in spec.features:
                    self._nodes[feature.name] = self._create_layer(group, feature)
        except BaseException:
            self.drop()
            raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except disk.HDF5_ERRORS as error:
            raise disk.write_error(self._partial, error) from error

    def _create_layer(self, group: h5py.Group, feature: FeatureSpec) -> h5py.Dataset | h5py.Group:
        name = feature.name
        if feature.shape is None:
            node = group.create_group(name)
        else:
            node = self._create_dataset(group, name, (self._shard.rows, *feature.shape), self.chunk(feature.shape))
        write_layer(node, feature, self._spec.dtype)
        return node

    def _create_dataset(self, group: h5py.Group, name: str, shape: tuple[int, ...], chunk: tuple[int, ...]) -> h5py.Dataset:
        filters = {"compression": "gzip", "compression_opts": codec.STORED_LEVEL} if self._spec.compression == "gzip" else {}
        return group.create_dataset(name, shape, self._dtype, chunks=chunk, fillvalue=np.nan, **filters)

    def chunk(self, shape: tuple[int, ...]) -> Shape:
        """Return the chunk of a layer whose rows have this shape; it is never longer than the shard."""
        chunk = format.chunk_shape(shape, self._dtype.itemsize)
        return (min(chunk[0], self._shard.rows), *chunk[1:])

    def add_native(self, layer: str, row: int, shape: tuple[int, int, int]) -> tuple[h5py.Dataset, Shape]:
        """Make the dataset of one image at native size.

        Returns:
            The dataset, and its chunk with an axis of length 1 before it.
        """
        chunk = format.band_shape(shape, self._dtype.itemsize)
        with self._writing():
            name = format.native_name(self._shard.first + row)
            return self._create_dataset(self._nodes[layer], name, shape, chunk), (1, *chunk)

    def dataset(self, layer: str) -> h5py.Dataset:
        """Return the dataset of a layer of fixed shape."""
        return self._nodes[layer]

    def locate(self, dataset: h5py.Dataset, offset: Shape, data: bytes | NDArray[np.uint8]) -> int | None:
        """Return where a ready chunk is to be written by :meth:`write`; None where it has been. One thread at a time."""
        with self._writing(), phil:
            # A dataset of native size has no axis of images.
            place: int | None = self._bytes.locate(data, lambda: dataset.id.write_direct_chunk(offset[-dataset.id.rank :], data))
            return place

    def write(self, place: int | None, data: bytes | NDArray[np.uint8]) -> None:
        """Write a ready chunk to the place that it has got; threads may do that at the same time."""
        with self._writing():
            if place is not None:
                self._bytes.write_at(data, place)
            self._bytes.check()

    def finish(
        self,
        statuses: Sequence[ImageStatus],
        checksums: Mapping[str, NDArray[np.uint32]],
        statistics: Mapping[str, LayerStatistics],
        digests: Digests,
    ) -> None:
        """Add the tables, close the file, and give it its final name and its digest once it is on the disk.

        Args:
            statuses: One for each row, in order.
            checksums: Layer -> (rows,), 0 for failed rows.
            statistics: Layer -> those of its rows.
            digests: Gives the file its final name.
        """
        try:
            with self._writing():
                columns = image_columns(self._spec, self._shard, statuses)
                write_tables(self._file, self._spec, format.SHARD, self._shard.first, columns, checksums, statistics)
                self._file.close()
                self._bytes.check()
                self._bytes.close()
                digests.publish(self.path, self._partial)
        except StoreError:
            self.drop()
            raise

    def drop(self) -> None:
        """Remove the file, whatever state it is in; never raises."""
        for file in (self._file, self._bytes):
            with contextlib.suppress(*disk.HDF5_ERRORS):
                if file is not None:
                    file.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)


def write_tables(
    file: h5py.File,
    spec: RunSpec,
    kind: str,
    first_row: int,
    columns: Mapping[str, tables.Column],
    checksums: Mapping[str, NDArray[np.uint32]],
    statistics: Mapping[str, LayerStatistics],
) -> None:
    """Write all of a shard or index but its layers, which are there.

    Args:
        file: Open for writing.
        spec: The run.
        kind: ``shard`` or ``index``.
        first_row: Row in the run of the file's first row.
        columns: Of ``/images``, name -> (rows,).
        checksums: Layer -> (rows,), 0 for failed rows.
        statistics: Layer -> those of its rows.
    """
    write_columns(file, columns)
    group = file.create_group("checksums")
    for layer, values in checksums.items():
        group.create_dataset(layer, data=values, dtype="<u4")
    write_statistics(file, statistics)
    write_dimensions(file, spec, len(columns["key"]))
    write_root(file, spec, kind, first_row)


def write_root(file: h5py.File, spec: RunSpec, kind: str, first_row: int) -> None:
    """Write the attributes of the root.

    Args:
        file: Open for writing.
        spec: The run.
        kind: ``shard`` or ``index``.
        first_row: Row in the run of the file's first row.
    """
    attributes: dict[str, Any] = {
        **{name: value if isinstance(value, np.ndarray) else format.plain_text(value) for name, value in spec.attributes.items()},
        "format": format.FORMAT,
        "format_version": np.int64(format.FORMAT_VERSION),
        "file_kind": kind,
        "run_digest": spec.digest,
        "identity": json.dumps(dict(spec.identity), sort_keys=True),
        "manifest_digest": spec.manifest.digest,
        "first_row": np.int64(first_row),
        "rows": np.int64(len(spec.manifest)),
        "images_per_shard": np.int64(spec.images_per_shard),
        "created": spec.attributes.get("created") or datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if spec.before:
        attributes["part_stops"] = np.array([part.stop for part in spec.parts], np.int64)
        attributes["part_digests"] = np.array([part.digest for part in spec.parts], object)
    file.attrs.update(attributes)


def write_layer(node: h5py.Dataset | h5py.Group, feature: FeatureSpec, dtype: str) -> None:
    """Write the attributes of ``/features/<layer>``."""
    attributes = {
        "axes": ",".join(format.NATIVE_AXES if feature.shape is None else format.AXES[len(feature.shape)]),
        "channels": np.int64(feature.channels),
        "stride_px": np.int64(feature.layer.stride_px),
        "network_index": np.int64(feature.layer.network_index),
        "dtype": dtype,
    }
    if feature.reductions:
        steps = [{"name": reduction.name, **reduction.parameters} for reduction in feature.reductions]
        attributes |= {"layer": feature.layer.name, "reductions": json.dumps(steps)}
    node.attrs.update(attributes)


def write_dimensions(file: h5py.File, spec: RunSpec, rows: int) -> None:
    """Write the dimensions as scales at the root, and attach them to all arrays, which are there.

    Args:
        file: Open for writing.
        spec: The run.
        rows: Of the file.
    """
    image = _make_scale(file, format.IMAGE_DIMENSION, rows)
    for node in (*file["images"].values(), *file["checksums"].values()):
        node.dims[0].attach_scale(image)
    for feature in spec.features:
        if feature.shape is None:
            continue
        name, sizes = feature.name, feature.shape
        names = (f"{axis}_{name}" for axis in format.AXES[len(sizes)][1:])
        scales = [_make_scale(file, scale, size) for scale, size in zip(names, sizes, strict=True)]
        for dimension, scale in zip(file["features"][name].dims, (image, *scales), strict=True):
            dimension.attach_scale(scale)
        for statistic in ("channel_minimum", "channel_maximum"):
            file["statistics"][name][statistic].dims[0].attach_scale(scales[-1])


def _make_scale(file: h5py.File, name: str, size: int) -> h5py.Dataset:
    # As netCDF makes it: nothing is stored of its values.
    scale = file.create_dataset(name, (size,), ">f4")
    scale.make_scale(format.DIMENSION_TITLE.format(size))
    return scale


def image_columns(spec: RunSpec, shard: ShardSpec, statuses: Sequence[ImageStatus]) -> dict[str, tables.Column]:
    """Return the columns of a shard's ``/images``.

    Args:
        spec: The run.
        shard: Which rows.
        statuses: One for each of these rows, in order.
    """
    rows, manifest = slice(shard.first, shard.stop), spec.manifest
    columns: dict[str, tables.Column] = {
        "key": _texts(manifest.keys[rows]),
        "status": _texts([status.word for status in statuses]),
        "error": _texts([status.error for status in statuses]),
        "label": _texts(manifest.labels[rows]),
        "height": np.array([status.height_px for status in statuses], np.int32),
        "width": np.array([status.width_px for status in statuses], np.int32),
        "bytes": np.array([status.file_bytes for status in statuses], np.int64),
        "sha256": _texts([status.sha256 for status in statuses]),
    }
    for name, stored in format.column_names(manifest.metadata).items():
        columns[stored] = _texts(manifest.metadata[name][rows])
    return columns


def _texts(texts: Sequence[str]) -> NDArray[np.object_]:
    return np.array([*map(format.plain_text, texts), None], object)[:-1]  # the None keeps NumPy from guessing a dtype


def write_columns(file: h5py.File, columns: Mapping[str, tables.Column]) -> None:
    """Write ``/images``, each column with the checksum that :func:`.tables.read_column` holds it to."""
    group = file.create_group("images")
    for name, values in columns.items():
        dtype = format.NUMBER_COLUMNS.get(name, h5py.string_dtype("utf-8"))
        dataset = group.create_dataset(name, data=values, dtype=dtype)
        dataset.attrs["crc32"] = np.uint32(tables.column_checksum(values))


class RawFile(io.FileIO):
    """A new file that HDF5 writes through, and that never tells HDF5 that the disk refuses.

    HDF5 does not survive that: what it could not write it cannot forget, so closing fails, and the process dies of a segmentation
    fault when the file's objects are cleared away. Here the first refusal is kept for whoever writes the shard, and all that HDF5
    writes after it goes nowhere; the file is dropped anyway.

    Args:
        path: Emptied if it is there.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._refusal: BaseException | None = None
        # Bytes that are not to be written yet: where they are in memory, how many; and where HDF5 wants them in the file.
        self._awaited: tuple[int, int] | None = None
        self._place: int | None = None

    def hide_refusals(self) -> None:
        """Hide from HDF5 what the disk refuses from now on.

        Not from the start: HDF5 makes a file in the main thread, which calls no Python of ours in the meantime this way, so no
        Ctrl-C can come into the middle of that. A file that cannot be made is an error that HDF5 survives.
        """
        self.write = self._write  # type: ignore[method-assign]
        self.truncate = self._truncate  # type: ignore[method-assign]

    def check(self) -> None:
        """Raise what has been hidden.

        Raises:
            OSError: The disk has refused a write.
        """
        if self._refusal is not None:
            raise self._refusal

    def locate(self, data: bytes | NDArray[np.uint8], store: Callable[[], Any]) -> int | None:
        """Have HDF5 find a place for a chunk. One thread at a time.

        Args:
            data: The chunk.
            store: Gives it to HDF5.

        Returns:
            Where :meth:`write_at` is to write it; None where HDF5 has written it already.
        """
        # HDF5 hands a ready chunk through from where it is.
        self._awaited = _whereabouts(data) if hasattr(os, "pwrite") else None
        self._place = None
        try:
            store()
        finally:
            self._awaited = None
        return self._place

    def write_at(self, data: bytes | NDArray[np.uint8], place: int) -> None:
        """Write a chunk to its place, while other threads are in HDF5 or write others; what is refused, :meth:`check` says."""
        rest = memoryview(data)  # type: ignore[arg-type]
        try:
            while rest and self._refusal is None:
                count = os.pwrite(self.fileno(), rest, place)
                rest, place = rest[count:], place + count
        except BaseException as error:
            self._refusal = error

    def __del__(self) -> None:
        # Ctrl-C can take a file away from its writer before anybody knows of it; no reason for a warning.
        with contextlib.suppress(OSError):
            self.close()

    def _write(self, data: Any) -> int:
        rest = memoryview(data)
        size_bytes = len(rest)
        if self._awaited is not None and _whereabouts(rest) == self._awaited:
            self._place = self.tell()
            return size_bytes
        try:
            # The system may take a part only, up to a limit for instance.
            while rest and self._refusal is None:
                rest = rest[super().write(rest) :]
        except BaseException as error:
            self._refusal = error
        return size_bytes

    def _truncate(self, size: int | None = None) -> int:
        try:
            if self._refusal is None:
                super().truncate(size)
        except BaseException as error:
            self._refusal = error
        return size or 0


def _whereabouts(data: Any) -> tuple[int, int]:
    values = np.frombuffer(data, np.uint8)
    return int(values.ctypes.data), len(values)
