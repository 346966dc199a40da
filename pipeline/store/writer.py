"""From activations to finished shards, in the background: cut, encode in threads, write, finish. The loop's sink."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from ..records import FeatureBatch, ImageStatus, RunSpec
from ..sharding import ShardSpec
from ..storage import RemotePath
from . import codec, disk, format
from .digests import Digests
from .shard import OpenShard, Piece, value_error

# What may wait where the network is faster than the disk: so many rows, but no less and no more than these bytes. A large image's
# first layers come faster than they are stored, and its last ones slower: they are stored meanwhile.
WAITING_ROWS = 256
LEAST_WAITING_BYTES, WAITING_BYTES = 1 << 27, 1 << 30

# Shards that are hashed, synced and named at the same time; as many wait for it, at most, in the system's cache, each with a
# file open. Of a run at an address, shards that are whole and being uploaded: they must not fill up scratch.
MOST_FINISHERS = 4
REMOTE_FINISHING = 4


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
        self._unfinished = {shard.number: shard for shard in shards}
        self._to_make = dict(self._unfinished)
        self._open: dict[int, OpenShard] = {}
        is_native = any(feature.shape is None for feature in spec.features)
        row_bytes = WAITING_BYTES if is_native else format.row_bytes(spec.features, "float32")
        chosen = max(LEAST_WAITING_BYTES, min(WAITING_BYTES, WAITING_ROWS * row_bytes))
        self._waiting_bytes = chosen if waiting_bytes is None else waiting_bytes
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes_waiting = 0
        self._finishing: list[Future[None]] = []
        self._most_finishing = REMOTE_FINISHING if isinstance(folder, RemotePath) else 2 * MOST_FINISHERS
        self._error: BaseException | None = None
        # Of the counters, and of the shards that are open.
        self._lock = threading.Lock()
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
            some = slice(first, first + count)
            batch = FeatureBatch(features.layer, features.indices[some], features.values[some])
            for dataset, piece in shard.cut(batch):
                self._submit(shard, features.layer, dataset, piece)
            self._finish_if_complete(shard)

    def _shard(self, number: int) -> OpenShard:
        if number not in self._open:
            while len(self._finishing) >= self._most_finishing:
                self._finishing = [*wait(self._finishing, return_when=FIRST_COMPLETED).not_done]
            self.check()
            self._open[number] = OpenShard(self._folder, self._spec, self._to_make.pop(number), self._mark)
        return self._open[number]

    def _submit(self, shard: OpenShard, layer: str, dataset: Any, piece: Piece) -> None:
        """Have a piece stored; wait while too much is waiting."""
        while self._waiting and self._bytes_waiting + piece.values.nbytes > self._waiting_bytes:
            wait([self._waiting[0][0]])
            self._bytes_waiting -= self._waiting.popleft()[1]
        self.check()
        task = self._encoders.submit(self._guarded, shard, self._store, layer, dataset, piece)
        shard.tasks.append(task)
        self._waiting.append((task, piece.values.nbytes))
        self._bytes_waiting += piece.values.nbytes

    def _store(self, shard: OpenShard, layer: str, dataset: Any, piece: Piece) -> None:
        began = time.perf_counter()
        data, raw_bytes = shard.encode(layer, piece)
        encoded = time.perf_counter()
        shard.write(dataset, piece, data)
        with self._lock:
            self.bytes_raw += raw_bytes
            self.bytes_stored += len(data)
            self.encode_seconds += encoded - began
            self.write_seconds += time.perf_counter() - encoded

    def _finish_if_complete(self, shard: OpenShard) -> None:
        if not shard.complete:
            return
        for piece in shard.flush():
            self._submit(shard, *piece)
        self._finishing.append(self._finishers.submit(self._guarded, shard, self._finish))

    def _finish(self, shard: OpenShard) -> None:
        wait(shard.tasks)
        if shard.broken:
            return
        started = time.perf_counter()
        shard.finish(self._digests)
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
            shard.drop()
        self._open.clear()
        # Ctrl-C comes anywhere, also after a file has been made and before anybody knows of it.
        for spec in self._unfinished.values():
            with suppress(OSError):
                disk.partial_path(self._folder / format.SHARD_FOLDER / spec.file_name, self._mark).unlink()


class DryWriter:
    """Takes what a writer takes, encodes every row by itself, counts, and keeps nothing.

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
        self._encoders = ThreadPoolExecutor(max(1, workers), "encode")
        self._encoding: list[tuple[str, Future[tuple[int, int]]]] = []

    def put_statuses(self, statuses: Sequence[ImageStatus]) -> None:
        """Take what became of some images."""
        self.statuses += statuses

    def put_features(self, features: FeatureBatch) -> None:
        """Take activations; return before they are encoded, once all that were put before are.

        Raises:
            NetworkError: A value cannot be stored.
        """
        self._wait()
        for row in zip(features.indices.tolist(), features.values, strict=True):
            self._encoding.append((features.layer, self._encoders.submit(self._encode, features.layer, *row)))

    def _encode(self, layer: str, index: int, values: NDArray[np.float32]) -> tuple[int, int]:
        stored = codec.converted(values, np.dtype(format.STORED_DTYPES[self._spec.dtype]))
        if not np.isfinite(stored).all():
            raise value_error(self._spec, index, layer, values)
        return stored.nbytes, len(codec.encode(stored, self._spec.compression))

    def _wait(self) -> None:
        for layer, task in self._encoding:
            raw_bytes, stored_bytes = task.result()
            self.raw_bytes[layer] += raw_bytes
            self.stored_bytes[layer] += stored_bytes
        self._encoding.clear()

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
