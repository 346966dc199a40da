"""One shard file while it is written: ``<name>.partial``, until all of it is there and on the disk."""

from __future__ import annotations

import gc
import io
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

# h5py's one lock around HDF5, which is not made for threads. Releases up to 2025 forget it for direct chunks: writes fail or
# crash when another thread is in HDF5. It may be taken twice. Source: h5py pull request 2764, December 2025.
from h5py._objects import phil
from numpy.typing import NDArray

from ..errors import NetworkError
from ..records import FeatureSpec, ImageStatus, RunSpec
from ..sharding import ShardSpec
from . import codec, disk, format, tables
from .digests import Digests
from .statistics import LayerStatistics, Tally, write_statistics

# What HDF5 keeps between chunks lies in blocks of 2 KiB; its tables at the end are in one piece.
PAGE_BYTES = 4096

# (rows, h, w, c) or (rows, d).
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Values that become one chunk: rows of a layer, or a band of one row."""

    layer: OpenLayer
    dataset: h5py.Dataset  # that the chunk is of; at native size an image's own, without an axis of images
    rows: tuple[int, ...]  # of the shard, ascending: those that it holds values of
    top: int  # first map row of the band; 0 for whole rows
    # (r, h, w, c) or (r, d), as many rows as a chunk has, NaN where absent; row i of the shard is i modulo r. The last band of a
    # row may be lower than the chunk.
    values: NDArray[np.float32]

    @property
    def offset(self) -> Shape:
        """Where the chunk lies in the dataset."""
        first_row = self.rows[0] - self.rows[0] % len(self.values)
        return (first_row, self.top, *(0 for _ in self.values.shape[2:]))[-self.dataset.ndim :]


class OpenLayer:
    """One layer of a shard while it is made: its rows are cut into chunks, and these encoded."""

    def __init__(self, group: h5py.Group, spec: RunSpec, feature: FeatureSpec, shard: ShardSpec) -> None:
        self.rows_put = 0
        self._spec, self._shard, self._name = spec, shard, feature.name
        self._dtype = np.dtype(format.STORED_DTYPES[spec.dtype])
        self._tally = Tally(feature.channels)
        # (row in the shard, first map row of a band) -> (CRC-32, bytes): threads finish the bands of a row in any order.
        self._checksums: dict[tuple[int, int], tuple[int, int]] = {}
        # Rows of the chunk that is begun, where it holds several.
        self._rows: list[int] = []
        self._values = np.empty(0, np.float32)
        # Empty at native size.
        self._chunk: Shape = ()
        if feature.shape is None:
            self._node = group.create_group(feature.name)
        else:
            rows, *row = format.chunk_shape(feature.shape, self._dtype.itemsize)
            self._chunk = (min(rows, shard.rows), *row)
            self._node = self._create_dataset(group, feature.name, (shard.rows, *feature.shape), self._chunk)
        write_layer(self._node, feature, spec.dtype)

    def _create_dataset(self, group: h5py.Group, name: str, shape: Shape, chunk: Shape) -> h5py.Dataset:
        filters = {"compression": "gzip", "compression_opts": codec.STORED_LEVEL} if self._spec.compression == "gzip" else {}
        with hdf5_alone():
            return group.create_dataset(name, shape, self._dtype, chunks=chunk, fillvalue=np.nan, **filters)

    def put(self, index: int, values: NDArray[np.float32]) -> Iterator[Piece]:
        """Yield the pieces that are complete with this row of the run, (h, w, c) or (d,); rows come in order, failed ones never.

        A piece of one row refers to ``values``, which must stay as they are until it is written; small rows are copied.
        """
        self.rows_put += 1
        row, dataset, chunk = index - self._shard.first, self._node, self._chunk
        if not chunk:
            band = format.band_shape(values.shape, self._dtype.itemsize)
            dataset, chunk = self._create_dataset(self._node, format.native_name(index), values.shape, band), (1, *band)
        if chunk[0] == 1:
            for top in range(0, len(values), chunk[1]):
                yield Piece(self, dataset, (row,), top, values[None, top : top + chunk[1]])
            return
        if self._rows and row // chunk[0] != self._rows[0] // chunk[0]:
            yield from self.flush()
        if not self._rows:
            self._values = np.full(chunk, np.nan, np.float32)
        self._values[row % chunk[0]] = values
        self._rows.append(row)

    def flush(self) -> Iterator[Piece]:
        """Yield the piece that is begun, if any: no more of its rows will come."""
        if self._rows:
            yield Piece(self, self._node, tuple(self._rows), 0, self._values)
            self._rows = []

    def encode(self, piece: Piece) -> bytes | NDArray[np.uint8]:
        """Return the chunk's bytes; note checksums and statistics. Raise a ``NetworkError`` if a value cannot be stored."""
        stored = codec.converted(piece.values, self._dtype)
        places = [row % len(stored) for row in piece.rows]
        there = stored if len(places) == len(stored) else stored[places]
        if not self._tally.add(there.astype(np.float32, copy=False)):
            for row, place in zip(piece.rows, places, strict=True):
                _require_storable(self._spec, self._name, self._shard.first + row, piece.values[place], stored[place])
        for row, values in zip(piece.rows, there, strict=True):
            self._checksums[row, piece.top] = codec.checksum(values), values.nbytes
        missing = piece.dataset.chunks[1 - stored.ndim] - stored.shape[1]
        if missing:
            # HDF5 stores the chunk at the edge of a dataset in full.
            stored = np.pad(stored, [(0, 0), (0, missing), (0, 0), (0, 0)], constant_values=np.nan)
        return codec.encode(stored, self._spec.compression)

    def finish(self) -> tuple[NDArray[np.uint32], LayerStatistics]:
        """Return the checksums of all rows, and their statistics, all pieces being encoded."""
        checksums = np.zeros(self._shard.rows, np.uint32)
        for row, bands in groupby(sorted(self._checksums.items()), lambda band: band[0][0]):
            checksums[row] = codec.join_checksums([checksum for _, checksum in bands])
        return checksums, self._tally.statistics(self.rows_put)


class OpenShard:
    """A shard while it is made: an open ``.partial`` file with its layers, and what became of its images.

    ``mark``: of this writer, where another might write the same shard. Methods raise a ``StoreError`` if the disk refuses.
    """

    def __init__(self, folder: Path, spec: RunSpec, shard: ShardSpec, mark: str = "") -> None:
        self.shard = shard
        self.tasks: list[Future[None]] = []  # that encode and write its pieces
        self._spec = spec
        self._path = folder / format.SHARD_FOLDER / shard.file_name
        self._partial = disk.partial_path(self._path, mark)
        self._statuses: dict[int, ImageStatus] = {}
        self._rows_ok = 0
        with disk.writing(self._partial):
            self._file = ShardFile(self._partial.open("wb", buffering=0))
        with hdf5_alone():
            self._hdf5 = h5py.File(self._file, "w")
            group = self._hdf5.create_group("features")
            self.layers = {feature.name: OpenLayer(group, spec, feature, shard) for feature in spec.features}

    def add_status(self, status: ImageStatus) -> None:
        """Note what became of an image."""
        assert status.index not in self._statuses, f"two statuses for row {status.index}"
        self._statuses[status.index] = status
        self._rows_ok += not status.error

    @property
    def complete(self) -> bool:
        """Whether every row has a status, and every row that is ok has come of every layer."""
        has_statuses = len(self._statuses) == self.shard.rows
        return has_statuses and all(layer.rows_put == self._rows_ok for layer in self.layers.values())

    def write(self, piece: Piece, data: bytes | NDArray[np.uint8]) -> None:
        """Write the bytes of a chunk; threads may do that at the same time."""
        with disk.writing(self._partial):
            self._file.write_chunk(piece.dataset, piece.offset, data)

    def finish(self, digests: Digests) -> None:
        """Add the tables, close the file, and give it its final name and its digest once it is on the disk."""
        checksums, statistics = {}, {}
        for name, layer in self.layers.items():
            checksums[name], statistics[name] = layer.finish()
        columns = _image_columns(self._spec, self.shard, [status for _, status in sorted(self._statuses.items())])
        with hdf5_alone():
            write_tables(self._hdf5, self._spec, self.shard, columns, checksums, statistics)
            self._hdf5.close()
        with disk.writing(self._partial):
            self._file.write_rest()
            self._file.close()
            digests.publish(self._path, self._partial)

    def close(self) -> None:
        """Close the file, whatever state it is in."""
        with hdf5_alone():
            self._hdf5.close()
        with suppress(OSError):
            self._file.close()


def encoded_bytes(spec: RunSpec, layer: str, index: int, values: NDArray[np.float32]) -> tuple[int, int]:
    """Return the bytes of one image's activations before compression and after; a ``NetworkError`` if they cannot be stored."""
    stored = codec.converted(values, np.dtype(format.STORED_DTYPES[spec.dtype]))
    _require_storable(spec, layer, index, values, stored)
    return stored.nbytes, len(codec.encode(stored, spec.compression))


def _require_storable(spec: RunSpec, layer: str, index: int, values: NDArray[np.float32], stored: NDArray[np.floating]) -> None:
    """Raise a NetworkError for a row of which a value is not finite once it has the stored dtype."""
    wrong = values[~np.isfinite(stored)]
    if wrong.size:
        raise NetworkError(
            f"{spec.manifest.keys[index]}: layer {layer} has a value that {spec.dtype} cannot hold, got {wrong[0]:g}. Expected "
            "finite numbers, of float16 from -65504 to 65504. Use output.dtype=float32 or output.overflow=row for a larger one, "
            "else check network.weights and the image."
        )


def _image_columns(spec: RunSpec, shard: ShardSpec, statuses: Sequence[ImageStatus]) -> dict[str, tables.Column]:
    """Return the columns of a shard's ``/images``; ``statuses``: one for each of its rows, in order."""
    rows, manifest = slice(shard.first, shard.stop), spec.manifest
    columns: dict[str, Sequence[Any]] = {
        "key": manifest.keys[rows],
        "status": [status.word for status in statuses],
        "error": [status.error for status in statuses],
        "label": manifest.labels[rows],
        "height": [status.height_px for status in statuses],
        "width": [status.width_px for status in statuses],
        "bytes": [status.file_bytes for status in statuses],
        "sha256": [status.sha256 for status in statuses],
    }
    columns |= {stored: manifest.metadata[name][rows] for name, stored in format.column_names(manifest.metadata).items()}
    return {
        name: np.array(values, format.NUMBER_COLUMNS[name])
        if name in format.NUMBER_COLUMNS
        else np.array([*map(format.plain_text, values)], object)
        for name, values in columns.items()
    }


def write_tables(
    file: h5py.File,
    spec: RunSpec,
    shard: ShardSpec | None,
    columns: Mapping[str, tables.Column],
    checksums: Mapping[str, NDArray[np.uint32]],
    statistics: Mapping[str, LayerStatistics],
) -> None:
    """Write all of a shard, or for None of the index, but its layers, which are there.

    ``columns``: of ``/images``; ``checksums`` and ``statistics``: by layer.
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
        "axes": ",".join(format.AXES[3][1:] if feature.shape is None else format.AXES[len(feature.shape)]),
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
    image = _make_scale(file, "image", rows)
    for node in (*file["images"].values(), *file["checksums"].values()):
        node.dims[0].attach_scale(image)
    for feature in spec.features:
        if feature.shape is not None:
            sizes = zip(format.AXES[len(feature.shape)][1:], feature.shape, strict=True)
            scales = [_make_scale(file, f"{axis}_{feature.name}", size) for axis, size in sizes]
            for dimension, scale in zip(file["features"][feature.name].dims, (image, *scales), strict=True):
                dimension.attach_scale(scale)
            for statistic in ("channel_minimum", "channel_maximum"):
                file["statistics"][feature.name][statistic].dims[0].attach_scale(scales[-1])


def _make_scale(file: h5py.File, name: str, size: int) -> h5py.Dataset:
    # As netCDF makes it: nothing is stored of its values.
    scale = file.create_dataset(name, (size,), ">f4")
    scale.make_scale(format.DIMENSION_TITLE.format(size))
    return scale


@contextmanager
def hdf5_alone() -> Iterator[None]:
    """Let nothing else call HDF5 during the block, in which it writes a file that is a Python object.

    Neither other threads nor the garbage collector: were it to close HDF5's objects inside such a call, HDF5 would lose count of
    them ("can't remove ID node from hash table").
    """
    with phil:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()


class ShardFile(io.RawIOBase):
    """The file of a shard as HDF5 sees it: in memory until it is complete, but for the chunks, which go to the disk as they come.

    So HDF5 never meets a disk that refuses. It does not survive that: what it could not write it cannot forget, so closing
    fails, and the process dies when the file's objects are cleared away; and where it finds other bytes than it has written, or
    none, it follows references that are not there. What it keeps besides chunks is small.

    ``disk``: empty and open for writing, without a buffer; closed with this.
    """

    def __init__(self, disk: IO[bytes]) -> None:
        self._disk, self._writing = disk, threading.Lock()
        self._pages: defaultdict[int, bytearray] = defaultdict(partial(bytearray, PAGE_BYTES))
        self._place = self._size_bytes = 0
        # First byte and the one after the last of the chunks on the disk; and where the one that is awaited is in memory.
        self._chunks: list[tuple[int, int]] = []
        self._awaited: int | None = None

    def write_chunk(self, dataset: h5py.Dataset, offset: Shape, data: bytes | NDArray[np.uint8]) -> None:
        """Write the bytes of a chunk, as several threads may at the same time; an ``OSError`` if the disk refuses."""
        with hdf5_alone():
            count, self._awaited = len(self._chunks), _address(data)
            dataset.id.write_direct_chunk(offset, data)
            self._awaited = None
            # HDF5 hands a ready chunk through from where it is, and need not wait until it is written.
            places = self._chunks[count:]
        for place, _ in places:
            self._write_at(data, place)

    def write_rest(self) -> None:
        """Write what lies between the chunks, HDF5 having closed the file; an ``OSError`` if the disk refuses."""
        end = 0
        for start, stop in [*sorted(self._chunks), (self._size_bytes, self._size_bytes)]:
            self.seek(end)
            self._write_at(self.read(start - end) or b"", end)
            end = stop

    def _write_at(self, data: bytes | NDArray[np.uint8], place: int) -> None:
        rest = memoryview(data)  # type: ignore[arg-type]
        with self._writing:
            self._disk.seek(place)
            while rest:
                # The system may take a part only, up to a limit for instance.
                rest = rest[self._disk.write(rest) :]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        self._place = offset + (0, self._place, self._size_bytes)[whence]
        return self._place

    def write(self, data: Any) -> int:
        """Keep bytes in memory, or the place of the chunk that is awaited."""
        size_bytes = len(data)
        if _address(data) == self._awaited:
            self._chunks.append((self._place, self._place + size_bytes))
            self._place += size_bytes
        else:
            for page, inside, part in self._parts(size_bytes):
                page[inside] = memoryview(data)[part]
        self._size_bytes = max(self._size_bytes, self._place)
        return size_bytes

    def readinto(self, buffer: Any) -> int:
        """Give bytes back from memory; zeros where there are none."""
        for page, inside, part in self._parts(len(buffer)):
            memoryview(buffer)[part] = page[inside]
        return len(buffer)

    def truncate(self, size: int | None = None) -> int:
        """Set how long the file will be."""
        self._size_bytes = self._place if size is None else size
        return self._size_bytes

    def close(self) -> None:
        """Close the file on the disk too."""
        self._disk.close()
        super().close()

    def _parts(self, size_bytes: int) -> Iterator[tuple[bytearray, slice, slice]]:
        """Yield pages from the present place on, the part of each, and which of the bytes these are; go on behind them."""
        done = 0
        while done < size_bytes:
            number, start = divmod(self._place, PAGE_BYTES)
            count = min(size_bytes - done, PAGE_BYTES - start)
            yield self._pages[number], slice(start, start + count), slice(done, done + count)
            done, self._place = done + count, self._place + count


def _address(data: Any) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)
