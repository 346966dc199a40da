"""One shard file while it is written: ``<name>.partial``, until all of it is there and on the disk."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np

# h5py's one lock around HDF5, which is not made for threads. Releases up to 2025 forget it for direct chunks: writes fail or
# crash when another thread is in HDF5. It may be taken twice. Source: h5py pull request 2764, December 2025.
from h5py._objects import phil
from numpy.typing import NDArray

from ..errors import NetworkError, StoreError
from ..records import FeatureBatch, FeatureSpec, ImageStatus, RunSpec
from ..sharding import ShardSpec
from . import codec, disk, format, tables
from .digests import Digests
from .statistics import LayerStatistics, Tally, write_statistics

# (rows, h, w, c) or (rows, d).
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a layer that become one chunk.

    Attributes:
        rows: Rows in the shard that it holds values of, ascending.
        first_row: Row in the shard of its first row, present or not.
        band: Which band of its row it is; 0 for whole rows.
        values: (r, h, w, c) or (r, d), float32: r rows from ``first_row`` on, NaN where absent. The last band of a row may be
            lower than the chunk.
        chunk: Shape of the chunk.
    """

    rows: tuple[int, ...]
    first_row: int
    band: int
    values: NDArray[np.float32]
    chunk: Shape


class Cutter:
    """Cuts the rows of one layer in one shard into chunks of this shape: several rows, one row, or a band of one."""

    def __init__(self, chunk: Shape) -> None:
        self._chunk = chunk
        self._rows: list[int] = []
        self._values: NDArray[np.float32] | None = None

    def put(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> Iterator[Piece]:
        """Return the pieces that are complete.

        A piece of one row refers to ``values``, which must stay as they are until it is written; small rows are copied.

        Args:
            rows: (n,) rows in the shard, ascending, after all that were put before; failed ones are never put.
            values: (n, h, w, c) or (n, d).
        """
        if self._chunk[0] == 1:
            for row, value in zip(rows.tolist(), values, strict=True):
                for band, start in enumerate(range(0, len(value), self._chunk[1])):
                    yield Piece((row,), row, band, value[None, start : start + self._chunk[1]], self._chunk)
            return
        numbers = rows // self._chunk[0]
        for number in np.unique(numbers).tolist():
            first_row = number * self._chunk[0]
            if self._rows and self._rows[0] < first_row:
                yield from self.flush()
            if self._values is None:
                self._values = np.full(self._chunk, np.nan, np.float32)
            among = numbers == number
            self._values[rows[among] - first_row] = values[among]
            self._rows += rows[among].tolist()

    def flush(self) -> Iterator[Piece]:
        """Return the piece that is begun, if any: no more of its rows will come."""
        if self._values is not None:
            first_row = self._rows[0] // self._chunk[0] * self._chunk[0]
            piece = Piece(tuple(self._rows), first_row, 0, self._values, self._chunk)
            self._rows, self._values = [], None
            yield piece


class OpenShard:
    """A shard while it is made: an open ``.partial`` file with the datasets of its layers, and what has come of its rows.

    Args:
        folder: The run's folder; ``shards`` in it must exist.
        spec: The run.
        shard: Which rows.
        mark: Of this writer, where another process might write the same shard.

    Raises:
        StoreError: The disk refuses; here and in every method that writes.

    Attributes:
        shard: As given.
        tasks: That encode and write its pieces.
        broken: Some of it could not be encoded or written; it is to be dropped.
    """

    def __init__(self, folder: Path, spec: RunSpec, shard: ShardSpec, mark: str = "") -> None:
        self.shard = shard
        self.tasks: list[Future[None]] = []
        self.broken = False
        self._path = folder / format.SHARD_FOLDER / shard.file_name
        self._partial = disk.partial_path(self._path, mark)
        self._spec = spec
        self._dtype = np.dtype(format.STORED_DTYPES[spec.dtype])
        # By row in the shard.
        self._statuses: dict[int, ImageStatus] = {}
        self._rows_ok = 0
        # The others by layer: how many rows have come, and where those of a fixed shape are cut.
        self._rows_put = {feature.name: 0 for feature in spec.features}
        self._cutters: dict[str, Cutter] = {}
        self._tallies = {feature.name: Tally(feature.channels) for feature in spec.features}
        self._nodes: dict[str, h5py.Dataset | h5py.Group] = {}
        # (layer, row) -> band -> (CRC-32, bytes): threads finish the bands of a row in any order.
        self._checksums: dict[tuple[str, int], dict[int, tuple[int, int]]] = {}
        self._bytes: Any = None
        self._file: Any = None
        try:
            with self._writing():
                self._bytes = RawFile(self._partial)
                self._file = h5py.File(self._bytes, "w")
                self._bytes.hide_refusals()
                group = self._file.create_group("features")
                for feature in spec.features:
                    if feature.shape is None:
                        node = group.create_group(feature.name)
                    else:
                        rows, *row = format.chunk_shape(feature.shape, self._dtype.itemsize)
                        chunk = (min(rows, shard.rows), *row)
                        node = self._create_dataset(group, feature.name, (shard.rows, *feature.shape), chunk)
                        self._cutters[feature.name] = Cutter(chunk)
                    write_layer(node, feature, spec.dtype)
                    self._nodes[feature.name] = node
        except BaseException:
            self.drop()
            raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except disk.HDF5_ERRORS as error:
            raise disk.write_error(self._partial, error) from error

    def _create_dataset(self, group: h5py.Group, name: str, shape: Shape, chunk: Shape) -> h5py.Dataset:
        filters = {"compression": "gzip", "compression_opts": codec.STORED_LEVEL} if self._spec.compression == "gzip" else {}
        return group.create_dataset(name, shape, self._dtype, chunks=chunk, fillvalue=np.nan, **filters)

    def add_status(self, status: ImageStatus) -> None:
        """Note what became of an image."""
        row = status.index - self.shard.first
        assert row not in self._statuses, f"two statuses for row {status.index}"
        self._statuses[row] = status
        self._rows_ok += not status.error

    @property
    def complete(self) -> bool:
        """Whether every row has a status, and every row that is ok has come of every layer."""
        return len(self._statuses) == self.shard.rows and all(rows == self._rows_ok for rows in self._rows_put.values())

    def cut(self, features: FeatureBatch) -> Iterator[tuple[h5py.Dataset, Piece]]:
        """Return the pieces that are complete with these rows, and which dataset each is of."""
        layer, rows, node = features.layer, features.indices - self.shard.first, self._nodes[features.layer]
        if layer in self._cutters:
            yield from ((node, piece) for piece in self._cutters[layer].put(rows, features.values))
        else:
            # At native size a dataset an image, without an axis of images.
            shape = features.values.shape[1:]
            chunk = format.band_shape(shape, self._dtype.itemsize)
            for number, row in enumerate(features.indices.tolist()):
                with self._writing():
                    dataset = self._create_dataset(node, format.native_name(row), shape, chunk)
                some = slice(number, number + 1)
                yield from ((dataset, piece) for piece in Cutter((1, *chunk)).put(rows[some], features.values[some]))
        self._rows_put[layer] += len(rows)

    def flush(self) -> Iterator[tuple[str, h5py.Dataset, Piece]]:
        """Return the pieces that are begun: layer, dataset, piece."""
        for layer, cutter in self._cutters.items():
            yield from ((layer, self._nodes[layer], piece) for piece in cutter.flush())

    def encode(self, layer: str, piece: Piece) -> tuple[bytes | NDArray[np.uint8], int]:
        """Return the chunk's bytes, and how many the values had; note the checksum and the statistics of each row.

        Raises:
            NetworkError: A value cannot be stored.
        """
        stored = codec.converted(piece.values, self._dtype)
        rows = [row - piece.first_row for row in piece.rows]
        there = stored if len(rows) == len(stored) else stored[rows]
        if not self._tallies[layer].add(there.astype(np.float32, copy=False)):
            wrong = next(row for row in rows if not np.isfinite(stored[row]).all())
            raise value_error(self._spec, self.shard.first + piece.first_row + wrong, layer, piece.values[wrong])
        for row, values in zip(piece.rows, there, strict=True):
            self._checksums.setdefault((layer, row), {})[piece.band] = codec.checksum(values), values.nbytes
        raw_bytes = stored.nbytes
        if stored.shape != piece.chunk:
            # HDF5 stores the chunk at the edge of a dataset in full.
            whole = np.full(piece.chunk, np.nan, self._dtype)
            whole[:, : stored.shape[1]] = stored
            stored = whole
        return codec.encode(stored, self._spec.compression), raw_bytes

    def write(self, dataset: h5py.Dataset, piece: Piece, data: bytes | NDArray[np.uint8]) -> None:
        """Write the bytes of a chunk; threads may do that at the same time."""
        # Without an axis of images at native size.
        offset = (piece.first_row, piece.band * piece.chunk[1], *(0 for _ in piece.chunk[2:]))[-dataset.id.rank :]
        with self._writing():
            with phil:
                place = self._bytes.locate(data, lambda: dataset.id.write_direct_chunk(offset, data))
            if place is not None:
                self._bytes.write_at(data, place)
            self._bytes.check()

    def finish(self, digests: Digests) -> None:
        """Add the tables, close the file, and give it its final name and its digest once it is on the disk."""
        checksums = {layer: np.zeros(self.shard.rows, np.uint32) for layer in self._nodes}
        for (layer, row), bands in self._checksums.items():
            checksums[layer][row] = codec.join_checksums([bands[band] for band in sorted(bands)])
        statistics = {layer: tally.statistics(self._rows_ok) for layer, tally in self._tallies.items()}
        columns = _image_columns(self._spec, self.shard, [self._statuses[row] for row in range(self.shard.rows)])
        try:
            with self._writing():
                write_tables(self._file, self._spec, self.shard, columns, checksums, statistics)
                self._file.close()
                self._bytes.check()
                self._bytes.close()
                digests.publish(self._path, self._partial)
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


def value_error(spec: RunSpec, index: int, layer: str, values: NDArray[np.float32]) -> NetworkError:
    """Return the one line for a row with a value that cannot be stored."""
    got = codec.first_unstorable(values, spec.dtype)
    where = f"{spec.manifest.keys[index]}: layer {layer}"
    # What a device has made float16 is infinite.
    if np.isfinite(got) or (values.dtype == np.float16 and np.isinf(got)):
        return NetworkError(
            f"{where} has a value that float16 cannot hold, got {got:g}. Expected values from -65504 to 65504. "
            f"Use output.dtype=float32, or output.overflow=row, which fails that image alone."
        )
    return NetworkError(
        f"{where} has a value that is not finite, got {got:g}. Expected finite numbers. Check network.weights and the image."
    )


def _image_columns(spec: RunSpec, shard: ShardSpec, statuses: Sequence[ImageStatus]) -> dict[str, tables.Column]:
    """Return the columns of a shard's ``/images``; ``statuses``: one for each of its rows, in order."""
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


def write_tables(
    file: h5py.File,
    spec: RunSpec,
    shard: ShardSpec | None,
    columns: Mapping[str, tables.Column],
    checksums: Mapping[str, NDArray[np.uint32]],
    statistics: Mapping[str, LayerStatistics],
) -> None:
    """Write all of a shard or index but its layers, which are there.

    Args:
        file: Open for writing.
        spec: The run.
        shard: Which rows the file holds; None: all, of the index.
        columns: Of ``/images``, name -> (rows,).
        checksums: Layer -> (rows,), 0 for failed rows.
        statistics: Layer -> those of its rows.
    """
    group = file.create_group("images")
    for name, column in columns.items():
        dtype = format.NUMBER_COLUMNS.get(name, h5py.string_dtype("utf-8"))
        # The reader holds it to this checksum.
        group.create_dataset(name, data=column, dtype=dtype).attrs["crc32"] = np.uint32(tables.column_checksum(column))
    group = file.create_group("checksums")
    for layer, values in checksums.items():
        group.create_dataset(layer, data=values, dtype="<u4")
    write_statistics(file, statistics)
    _write_dimensions(file, spec, len(columns["key"]))
    attributes: dict[str, Any] = {
        **{name: value if isinstance(value, np.ndarray) else format.plain_text(value) for name, value in spec.attributes.items()},
        "format": format.FORMAT,
        "format_version": np.int64(format.FORMAT_VERSION),
        "file_kind": format.SHARD if shard else format.INDEX,
        "run_digest": spec.digest,
        "identity": json.dumps(dict(spec.identity), sort_keys=True),
        "manifest_digest": spec.manifest.digest,
        "first_row": np.int64(shard.first if shard else 0),
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


def _write_dimensions(file: h5py.File, spec: RunSpec, rows: int) -> None:
    """Write the dimensions as scales at the root, and attach them to all arrays, which are there."""
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
        """Have HDF5 find a place for a chunk, which ``store`` gives to it. One thread at a time.

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
                rest = rest[os.write(self.fileno(), rest) :]
        except BaseException as error:
            self._refusal = error
        return size_bytes

    def _truncate(self, size: int | None = None) -> int:
        try:
            if self._refusal is None:
                os.ftruncate(self.fileno(), self.tell() if size is None else size)
        except BaseException as error:
            self._refusal = error
        return size or 0


def _whereabouts(data: Any) -> tuple[int, int]:
    values = np.frombuffer(data, np.uint8)
    return int(values.ctypes.data), len(values)
