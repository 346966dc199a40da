"""From activations to finished shards, in the background: cut, encode in threads, write, finish. The loop's sink."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import FeatureBatch, ImageStatus, RunSpec, ShardSpec
from ..statistics import gather
from . import codec, disk, format, remote
from .cutter import Cutter, Piece, grouped
from .digests import Digests
from .progress import Progress
from .publication import Publisher
from .shard import ShardFile
from .unstorable import value_error

# What may wait where the network is faster than the disk: so many rows, but no less and no more than these bytes. A large image's
# first layers come faster than they are stored, and its last ones slower: they are stored meanwhile.
WAITING_ROWS = 256
LEAST_WAITING_BYTES, WAITING_BYTES = 1 << 27, 1 << 30

# Of pieces that one thread is given at a time: of small ones many, not each as a task of its own.
TASK_BYTES = 1 << 22

# Shards that are hashed, synced and named at the same time; as many wait for it, at most, in the system's cache.
MOST_FINISHERS = 4


class Writer:
    """Writes the shards of a run's last part that are still to make; a :class:`~pipeline.records.Sink`.

    Rows of a layer must come in ascending order, those of failed images not at all; an image's features and its status may
    come in either order. A shard is finished in the background as soon as all of it has come. Arrays that are put must not be
    changed afterwards. One thread puts.

    Args:
        folder: The run's folder, opened by :func:`pipeline.store.folder.open_folder`.
        spec: The run, up to the part that the shards are of.
        shards: Those to make; further ones are told by :meth:`expect`.
        workers: Threads that encode.
        waiting_bytes: ``put_features`` blocks while more bytes of activations than this wait to be written; one chunk always
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
        digests: Publisher | None = None,
    ) -> None:
        self.bytes_raw = self.bytes_stored = self.shards_done = 0
        self.encode_seconds = self.write_seconds = 0.0
        self._folder = folder
        self._digests: Publisher = Digests(folder) if digests is None else digests
        # Two processes may come to write the same shard, where locks do not work or one was taken for dead: each writes all of
        # it, and either is the whole one.
        self._mark = f"{self._digests.writer}-{secrets.token_hex(4)}" if self._digests.writer else ""
        self._spec = spec
        self._dtype = np.dtype(format.STORED_DTYPES[spec.dtype])
        self._shapes = {feature.layer.name: feature.shape for feature in spec.features}
        self._unfinished = {shard.number: shard for shard in shards}
        self._to_make = dict(self._unfinished)
        self._open: dict[int, Progress] = {}
        row_bytes = format.row_bytes(spec.features, "float32") if all(self._shapes.values()) else WAITING_BYTES
        chosen = max(LEAST_WAITING_BYTES, min(WAITING_BYTES, WAITING_ROWS * row_bytes))
        self._waiting_bytes = chosen if waiting_bytes is None else waiting_bytes
        # So that there is something for every thread, and nearly always for all twice.
        self._task_bytes = min(TASK_BYTES, self._waiting_bytes // (4 * max(1, workers)))
        self._bytes_waiting = 0
        self._finishing, self._most_finishing = 0, disk.most_finishing(folder, MOST_FINISHERS)
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._locating = threading.Lock()
        self._encoders = ThreadPoolExecutor(max(1, workers), "encode")
        # Of its own, so that a disk that takes seconds to sync a shard does not stop the encoding of the next; several, since
        # each hashes its shard on one core. With one worker they are finished in order.
        self._finishers = ThreadPoolExecutor(MOST_FINISHERS if workers > 1 else 1, "finish")

    def put_statuses(self, statuses: Sequence[ImageStatus]) -> None:
        """Takes what became of some images, each once.

        Raises:
            PipelineError: What went wrong in the background.
        """
        self.check()
        for status in statuses:
            progress = self._progress((status.index - self._spec.first_row) // self._spec.images_per_shard)
            progress.add_status(status)
            self._finish_if_complete(progress)

    def put_features(self, features: FeatureBatch) -> None:
        """Takes activations of one layer; returns before they are stored, and blocks while too much is waiting.

        Raises:
            PipelineError: What went wrong in the background: a value that is not finite or does not fit, a full disk.
        """
        self.check()
        numbers = (features.indices - self._spec.first_row) // self._spec.images_per_shard
        for number in np.unique(numbers).tolist():
            progress, among = self._progress(number), numbers == number
            # A slice, since a mask would copy.
            first, count = int(among.argmax()), int(among.sum())
            rows = features.indices[first : first + count] - progress.shard.first
            self._put_rows(progress, features.layer, rows, features.values[first : first + count])
            progress.rows_put[features.layer] += count
            self._finish_if_complete(progress)

    def _put_rows(self, progress: Progress, layer: str, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        assert values.shape[1:] == self._shapes[layer] or self._shapes[layer] is None, f"{layer} has shape {values.shape}"
        if layer in progress.cutters:
            self._submit(progress, layer, progress.cutters[layer].put(rows, values), progress.file.dataset(layer))
            return
        for place, row in enumerate(rows.tolist()):
            dataset, chunk = progress.file.add_native(layer, row, values.shape[1:])
            self._submit(progress, layer, Cutter(chunk).put(rows[place : place + 1], values[place : place + 1]), dataset)

    def _progress(self, number: int) -> Progress:
        if number not in self._open:
            with self._changed:
                self._changed.wait_for(lambda: self._error or self._finishing < self._most_finishing)
                self.check()
            shard = self._to_make.pop(number)
            self._open[number] = Progress(ShardFile(self._folder, self._spec, shard, self._mark), shard, self._spec.features)
        return self._open[number]

    def _submit(self, progress: Progress, layer: str, pieces: Iterable[Piece], dataset: Any) -> None:
        """Has pieces of one dataset stored, some at a time."""
        for some in grouped(pieces, self._task_bytes):
            size_bytes = sum(piece.values.nbytes for piece in some)
            with self._changed:
                while not (self._error or not self._bytes_waiting or self._bytes_waiting + size_bytes <= self._waiting_bytes):
                    self._changed.wait()
                self.check()
                self._bytes_waiting += size_bytes
                progress.tasks_waiting += 1
            self._encoders.submit(self._store, progress, layer, some, size_bytes, dataset)

    def _store(self, progress: Progress, layer: str, pieces: Sequence[Piece], size_bytes: int, dataset: Any) -> None:
        def work() -> None:
            started = time.perf_counter()
            encoded = [self._encode(progress, layer, piece) for piece in pieces]
            encode_seconds = time.perf_counter() - started
            # HDF5 lets one thread in at a time. Waiting for it is nobody's work, so the clock starts after.
            with self._locating:
                started = time.perf_counter()
                places = [
                    progress.file.locate(dataset, piece.offset, data) for piece, (data, _) in zip(pieces, encoded, strict=True)
                ]
            for place, (data, _) in zip(places, encoded, strict=True):
                progress.file.write(place, data)
            write_seconds = time.perf_counter() - started
            with self._changed:
                self.bytes_raw += sum(raw_bytes for _, raw_bytes in encoded)
                self.bytes_stored += sum(len(data) for data, _ in encoded)
                self.encode_seconds += encode_seconds
                self.write_seconds += write_seconds

        self._guarded(progress, work)
        with self._changed:
            self._bytes_waiting -= size_bytes
            progress.tasks_waiting -= 1
            self._finish_if_written(progress)
            self._changed.notify_all()

    def _encode(self, progress: Progress, layer: str, piece: Piece) -> tuple[bytes | NDArray[np.uint8], int]:
        """Gives the chunk's bytes, and how many the values had; notes the checksum and the statistics of each row."""
        stored = codec.converted(piece.values, self._dtype)
        for row in piece.rows:
            values = stored[row - piece.first_row]
            found = gather(values.astype(np.float32, copy=False))
            if not found.is_finite:
                raise value_error(self._spec, progress.shard.first + row, layer, piece.row_values(row))
            progress.tallies[layer].add(found)
            progress.parts.setdefault((layer, row), {})[piece.band] = codec.checksum(values), values.nbytes
        raw_bytes = stored.nbytes
        if stored.shape != piece.chunk:
            # HDF5 stores the chunk at the edge of a dataset in full.
            whole = np.full(piece.chunk, np.nan, self._dtype)
            whole[:, : stored.shape[1]] = stored
            stored = whole
        return codec.encode(stored, self._spec.compression), raw_bytes

    def _finish_if_complete(self, progress: Progress) -> None:
        if not progress.complete:
            return
        for layer, cutter in progress.cutters.items():
            self._submit(progress, layer, cutter.flush(), progress.file.dataset(layer))
        with self._changed:
            progress.all_put = True
            self._finishing += 1
            self._finish_if_written(progress)

    def _finish_if_written(self, progress: Progress) -> None:
        """Finish a shard of which all has been written; called with the lock held, by whoever sees that first."""
        if progress.all_put and not progress.tasks_waiting and not progress.broken:
            # In this order, so that an interrupt in between does not leave a whole shard unfinished.
            self._finishers.submit(self._finish, progress)
            progress.all_put = False

    def _finish(self, progress: Progress) -> None:
        def work() -> None:
            started = time.perf_counter()
            progress.file.finish(progress.statuses(), progress.checksums(), progress.statistics(), self._digests)
            with self._changed:
                self.write_seconds += time.perf_counter() - started
                self.shards_done += 1
                del self._open[progress.shard.number], self._unfinished[progress.shard.number]

        self._guarded(progress, work)
        with self._changed:
            self._finishing -= 1
            self._changed.notify_all()

    def _guarded(self, progress: Progress, work: Callable[[], None]) -> None:
        """Does background work on a shard, unless some of it has failed; keeps the first error for the next call of the loop.

        Other shards go on: one of which all has come can still be finished and kept.
        """
        if progress.broken:
            return
        try:
            work()
        except BaseException as error:
            progress.broken = True
            if isinstance(error, MemoryError):
                error = StoreError(
                    f"{self._folder}: out of memory while encoding, got {self._waiting_bytes} bytes allowed to wait. "
                    f"Expected room for them. Lower batch_size or data.size, then run again with output.existing=resume: "
                    "finished shards are kept."
                )
            self._error = self._error or error

    def check(self) -> None:
        """Raises what went wrong in the background, if anything did."""
        if self._error:
            raise self._error

    def close(self) -> None:
        """Waits until every shard has its final name.

        Raises:
            PipelineError: What went wrong in the background; partial files are removed, finished shards kept.
        """
        try:
            with self._changed:
                assert not self._to_make, f"nothing came for shards {sorted(self._to_make)}"
                assert all(progress.complete for progress in self._open.values())
                self._changed.wait_for(lambda: self._error or not self._open)
            self.check()
            remote.settle(self._folder)
        finally:
            self.abort()

    def abort(self) -> None:
        """Drops what is unfinished, leaving no partial file behind; shards of which all has come are finished first."""
        self._encoders.shutdown(wait=True)
        self._finishers.shutdown(wait=True)
        for progress in self._open.values():
            progress.file.drop()
        self._open.clear()
        # Ctrl-C comes anywhere, also after a file has been made and before anybody knows of it.
        for shard in self._unfinished.values():
            with suppress(OSError):
                disk.partial_path(self._folder / format.SHARD_FOLDER / shard.file_name, self._mark).unlink()
