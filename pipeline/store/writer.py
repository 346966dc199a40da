"""From activations to finished shards, in the background: cut, encode in threads, write, finish. The loop's sink."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NetworkError, StoreError
from ..records import FeatureBatch, FeatureSpec, ImageStatus, RunSpec
from ..sharding import ShardSpec
from . import codec, disk, format
from .cutter import Cutter, Piece
from .digests import Digests
from .shard import ShardFile
from .statistics import LayerStatistics, Tally

# What may wait where the network is faster than the disk: so many rows, but no less and no more than these bytes. A large image's
# first layers come faster than they are stored, and its last ones slower: they are stored meanwhile.
WAITING_ROWS = 256
LEAST_WAITING_BYTES, WAITING_BYTES = 1 << 27, 1 << 30

# Shards that are hashed, synced and named at the same time; as many wait for it, at most, in the system's cache.
MOST_FINISHERS = 4


class OpenShard:
    """A shard while it is made: its file, and what has come of its rows.

    Args:
        file: Open.
        shard: Which rows.
        features: The layers.

    Attributes:
        rows_put: Layer -> how many rows have come.
        cutters: Layer -> where its rows are cut, for layers of fixed shape.
        parts: (layer, row) -> band -> (CRC-32, bytes). Threads finish the bands of a row in any order.
        tallies: Layer -> what has been gathered of its values.
        tasks: That encode and write its pieces.
        broken: Some of it could not be encoded or written; it is to be dropped.
    """

    def __init__(self, file: ShardFile, shard: ShardSpec, features: Sequence[FeatureSpec]) -> None:
        self.file = file
        self.shard = shard
        self.rows_put = {feature.name: 0 for feature in features}
        self.cutters = {feature.name: Cutter(file.chunk(feature.shape)) for feature in features if feature.shape is not None}
        self.parts: dict[tuple[str, int], dict[int, tuple[int, int]]] = {}
        self.tallies = {feature.name: Tally(feature.channels) for feature in features}
        self.tasks: list[Future[None]] = []
        self.broken = False
        self._statuses: list[ImageStatus | None] = [None] * shard.rows
        self._statuses_missing = shard.rows
        self._rows_ok = 0

    def add_status(self, status: ImageStatus) -> None:
        """Note what became of an image."""
        row = status.index - self.shard.first
        assert self._statuses[row] is None, f"two statuses for row {status.index}"
        self._statuses[row] = status
        self._statuses_missing -= 1
        self._rows_ok += not status.error

    @property
    def complete(self) -> bool:
        """Whether every row has a status, and every row that is ok has come of every layer."""
        return not self._statuses_missing and all(rows == self._rows_ok for rows in self.rows_put.values())

    def statuses(self) -> list[ImageStatus]:
        """Return the statuses that have come, in order."""
        return [status for status in self._statuses if status]

    def statistics(self) -> dict[str, LayerStatistics]:
        """Return layer -> statistics of its rows."""
        return {layer: tally.statistics(self._rows_ok) for layer, tally in self.tallies.items()}

    def checksums(self) -> dict[str, NDArray[np.uint32]]:
        """Return layer -> (rows,) CRC-32 of each row; 0 for failed ones."""
        values = {layer: np.zeros(self.shard.rows, np.uint32) for layer in self.rows_put}
        for (layer, row), bands in self.parts.items():
            values[layer][row] = codec.join_checksums([bands[band] for band in sorted(bands)])
        return values


class Writer:
    """Writes the shards of a run's last part that are still to make.

    Rows of a layer must come in ascending order, those of failed images not at all; an image's features and its status may
    come in either order. A shard is finished in the background as soon as all of it has come. Arrays that are put must not be
    changed afterwards. One thread puts.

    Args:
        folder: The run's folder, opened by :func:`pipeline.store.run_folder.open_folder`.
        spec: The run, up to the part that the shards are of.
        shards: Those to make.
        workers: Threads that encode.
        waiting_bytes: ``put_features`` blocks while more bytes of activations than this wait to be written; one task always
            may. None: those of some hundred rows, at most 1 GiB.
        digests: Where finished shards get their lines. None: in ``SHA256SUMS``, as only the holder of the folder's lock may;
            another process gives one with a writer's name, and its unfinished files have names of their own.

    Attributes:
        bytes_raw: Activations written so far, before compression.
        bytes_stored: The same, after.
        encode_seconds: Spent on encoding, summed over threads.
        write_seconds: Spent on writing and on finishing files.
        shards_done: Shards that have their final name.
    """

    def __init__(
        self,
        folder: Path,
        spec: RunSpec,
        shards: Sequence[ShardSpec],
        workers: int,
        waiting_bytes: int | None = None,
        *,
        digests: Digests | None = None,
    ) -> None:
        self.bytes_raw = self.bytes_stored = self.shards_done = 0
        self.encode_seconds = self.write_seconds = 0.0
        self._folder = folder
        self._digests = Digests(folder) if digests is None else digests
        # Two processes may come to write the same shard, where locks do not work or one was taken for dead: each writes all of
        # it, and either is the whole one.
        self._mark = f"{self._digests.writer}-{secrets.token_hex(4)}" if self._digests.writer else ""
        self._spec = spec
        self._dtype = np.dtype(format.STORED_DTYPES[spec.dtype])
        self._shapes = {feature.name: feature.shape for feature in spec.features}
        self._unfinished = {shard.number: shard for shard in shards}
        self._to_make = dict(self._unfinished)
        self._open: dict[int, OpenShard] = {}
        row_bytes = format.row_bytes(spec.features, "float32") if all(self._shapes.values()) else WAITING_BYTES
        chosen = max(LEAST_WAITING_BYTES, min(WAITING_BYTES, WAITING_ROWS * row_bytes))
        self._waiting_bytes = chosen if waiting_bytes is None else waiting_bytes
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes_waiting = 0
        self._finishing: list[Future[None]] = []
        self._most_finishing = disk.most_finishing(folder, MOST_FINISHERS)
        self._error: BaseException | None = None
        # Of the counters, and of the shards that are open.
        self._lock = threading.Lock()
        self._locating = threading.Lock()
        self._encoders = ThreadPoolExecutor(max(1, workers), "encode")
        # Of its own, so that a disk that takes seconds to sync a shard does not stop the encoding of the next; several, since
        # each hashes its shard on one core. With one worker they are finished in order.
        self._finishers = ThreadPoolExecutor(MOST_FINISHERS if workers > 1 else 1, "finish")

    def put_statuses(self, statuses: Sequence[ImageStatus]) -> None:
        """Take what became of some images, each once.

        Raises:
            PipelineError: What went wrong in the background.
        """
        self.check()
        for status in statuses:
            shard = self._shard((status.index - self._spec.first_row) // self._spec.images_per_shard)
            shard.add_status(status)
            self._finish_if_complete(shard)

    def put_features(self, features: FeatureBatch) -> None:
        """Take activations of one layer; return before they are stored, and block while too much is waiting.

        Raises:
            PipelineError: What went wrong in the background: a value that is not finite or does not fit, a full disk.
        """
        self.check()
        numbers = (features.indices - self._spec.first_row) // self._spec.images_per_shard
        for number in np.unique(numbers).tolist():
            shard, among = self._shard(number), numbers == number
            # A slice, since a mask would copy.
            first, count = int(among.argmax()), int(among.sum())
            rows = features.indices[first : first + count] - shard.shard.first
            self._put_rows(shard, features.layer, rows, features.values[first : first + count])
            shard.rows_put[features.layer] += count
            self._finish_if_complete(shard)

    def _put_rows(self, shard: OpenShard, layer: str, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        assert values.shape[1:] == self._shapes[layer] or self._shapes[layer] is None, f"{layer} has shape {values.shape}"
        if layer in shard.cutters:
            self._submit(shard, layer, shard.cutters[layer].put(rows, values), shard.file.dataset(layer))
            return
        for number, row in enumerate(rows.tolist()):
            dataset, chunk = shard.file.add_native(layer, row, values.shape[1:])
            self._submit(shard, layer, Cutter(chunk).put(rows[number : number + 1], values[number : number + 1]), dataset)

    def _shard(self, number: int) -> OpenShard:
        if number not in self._open:
            while len(self._finishing) >= self._most_finishing:
                self._finishing = [*wait(self._finishing, return_when=FIRST_COMPLETED).not_done]
            self.check()
            shard = self._to_make.pop(number)
            self._open[number] = OpenShard(ShardFile(self._folder, self._spec, shard, self._mark), shard, self._spec.features)
        return self._open[number]

    def _submit(self, shard: OpenShard, layer: str, pieces: Iterable[Piece], dataset: Any) -> None:
        """Have pieces of one dataset stored."""
        for piece in pieces:
            while self._waiting and self._bytes_waiting + piece.values.nbytes > self._waiting_bytes:
                wait([self._waiting[0][0]])
                self._bytes_waiting -= self._waiting.popleft()[1]
            self.check()
            task = self._encoders.submit(self._guarded, shard, self._store, layer, piece, dataset)
            shard.tasks.append(task)
            self._waiting.append((task, piece.values.nbytes))
            self._bytes_waiting += piece.values.nbytes

    def _store(self, shard: OpenShard, layer: str, piece: Piece, dataset: Any) -> None:
        started = time.perf_counter()
        data, raw_bytes = self._encode(shard, layer, piece)
        encode_seconds = time.perf_counter() - started
        # HDF5 lets one thread in at a time. Waiting for it is nobody's work, so the clock starts after.
        with self._locating:
            started = time.perf_counter()
            position = shard.file.locate(dataset, piece.offset, data)
        shard.file.write(position, data)
        write_seconds = time.perf_counter() - started
        with self._lock:
            self.bytes_raw += raw_bytes
            self.bytes_stored += len(data)
            self.encode_seconds += encode_seconds
            self.write_seconds += write_seconds

    def _encode(self, shard: OpenShard, layer: str, piece: Piece) -> tuple[bytes | NDArray[np.uint8], int]:
        """Return the chunk's bytes, and how many the values had; note the checksum and the statistics of each row."""
        stored = codec.converted(piece.values, self._dtype)
        tally, are_counted = shard.tallies[layer], False
        if stored.ndim == 2 and piece.chunk[0] > 1:
            are_counted = tally.add_vectors(stored[np.array(piece.rows) - piece.first_row].astype(np.float32, copy=False))
        for row in piece.rows:
            values = stored[row - piece.first_row]
            if not are_counted and not tally.add(values.astype(np.float32, copy=False)):
                raise value_error(self._spec, shard.shard.first + row, layer, piece.row_values(row))
            shard.parts.setdefault((layer, row), {})[piece.band] = codec.checksum(values), values.nbytes
        raw_bytes = stored.nbytes
        if stored.shape != piece.chunk:
            # HDF5 stores the chunk at the edge of a dataset in full.
            whole = np.full(piece.chunk, np.nan, self._dtype)
            whole[:, : stored.shape[1]] = stored
            stored = whole
        return codec.encode(stored, self._spec.compression), raw_bytes

    def _finish_if_complete(self, shard: OpenShard) -> None:
        if not shard.complete:
            return
        for layer, cutter in shard.cutters.items():
            self._submit(shard, layer, cutter.flush(), shard.file.dataset(layer))
        self._finishing.append(self._finishers.submit(self._guarded, shard, self._finish))

    def _finish(self, shard: OpenShard) -> None:
        wait(shard.tasks)
        if shard.broken:
            return
        started = time.perf_counter()
        shard.file.finish(shard.statuses(), shard.checksums(), shard.statistics(), self._digests)
        with self._lock:
            self.write_seconds += time.perf_counter() - started
            self.shards_done += 1
            del self._open[shard.shard.number], self._unfinished[shard.shard.number]

    def _guarded(self, shard: OpenShard, work: Callable[..., None], *arguments: Any) -> None:
        """Do background work on a shard, unless some of it has failed; keep the first error for the next call of the loop.

        Other shards go on: one of which all has come can still be finished and kept.
        """
        if shard.broken:
            return
        try:
            work(shard, *arguments)
        except BaseException as error:
            shard.broken = True
            if isinstance(error, MemoryError):
                error = StoreError(
                    f"{self._folder}: out of memory while encoding, got {self._waiting_bytes} bytes allowed to wait. "
                    f"Expected memory for them. Lower batch_size or data.size, then run again with output.existing=resume: "
                    "finished shards are kept."
                )
            self._error = self._error or error

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._error:
            raise self._error

    def close(self) -> None:
        """Wait until every shard has its final name.

        Raises:
            PipelineError: What went wrong in the background; partial files are removed, finished shards kept.
        """
        try:
            assert not self._to_make, f"nothing came for shards {sorted(self._to_make)}"
            with self._lock:
                assert all(shard.complete for shard in self._open.values())
            wait(self._finishing)
            self.check()
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop what is unfinished, leaving no partial file behind; shards of which all has come are finished first."""
        self._encoders.shutdown(wait=True)
        self._finishers.shutdown(wait=True)
        for shard in self._open.values():
            shard.file.drop()
        self._open.clear()
        # Ctrl-C comes anywhere, also after a file has been made and before anybody knows of it.
        for spec in self._unfinished.values():
            with suppress(OSError):
                disk.partial_path(self._folder / format.SHARD_FOLDER / spec.file_name, self._mark).unlink()


class DryWriter:
    """Takes what a writer takes, encodes every row by itself, counts, and keeps nothing.

    Args:
        spec: The run.
        workers: Threads that encode.

    Attributes:
        statuses: Of the images that were put.
        raw_bytes: Layer -> activations before compression.
        stored_bytes: Layer -> the same, after.
    """

    def __init__(self, spec: RunSpec, workers: int) -> None:
        self.statuses: list[ImageStatus] = []
        self.raw_bytes = {feature.name: 0 for feature in spec.features}
        self.stored_bytes = dict(self.raw_bytes)
        self._spec = spec
        self._dtype = np.dtype(format.STORED_DTYPES[spec.dtype])
        self._encoders = ThreadPoolExecutor(max(1, workers), "encode")
        self._encoding: list[Future[None]] = []
        self._lock = threading.Lock()

    def put_statuses(self, statuses: Sequence[ImageStatus]) -> None:
        """Take what became of some images."""
        self.statuses += statuses

    def put_features(self, features: FeatureBatch) -> None:
        """Take activations; return before they are encoded, once all that were put before are.

        Raises:
            NetworkError: A value cannot be stored.
        """
        self._wait()
        rows = zip(features.indices.tolist(), features.values, strict=True)
        self._encoding = [self._encoders.submit(self._encode, features.layer, index, values) for index, values in rows]

    def _encode(self, layer: str, index: int, values: NDArray[np.float32]) -> None:
        stored = codec.converted(values, self._dtype)
        if not np.isfinite(stored).all():
            raise value_error(self._spec, index, layer, values)
        encoded = codec.encode(stored, self._spec.compression)
        with self._lock:
            self.raw_bytes[layer] += stored.nbytes
            self.stored_bytes[layer] += len(encoded)

    def _wait(self) -> None:
        for task in self._encoding:
            task.result()

    def close(self) -> None:
        """Wait until all is encoded.

        Raises:
            NetworkError: A value cannot be stored.
        """
        self._wait()
        self._encoders.shutdown()

    def abort(self) -> None:
        """Encode no more."""
        self._encoders.shutdown(cancel_futures=True)


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
