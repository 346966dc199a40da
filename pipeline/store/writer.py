"""From activations to finished shards, in the background: cut, encode in threads, write, finish. The loop's sink."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from ..errors import StoreError
from ..records import FeatureBatch, ImageStatus, RunSpec
from ..sharding import ShardSpec
from . import disk, format
from .digests import Digests
from .shard import OpenShard, Piece

# What may wait where the network is faster than the disk. A large image's first layers come faster than they are stored, and its
# last ones slower: they are stored meanwhile.
WAITING_BYTES = 1 << 30

# Shards that are hashed, synced, uploaded and named at the same time, each on one core; another one is begun when one of them is
# done, as they take space in the system's cache, or in the scratch folder of a run at an address.
MOST_FINISHING = 4


class Writer:
    """Writes the shards of a run's last part that are still to make.

    Rows of a layer come in ascending order, those of failed images not at all; an image's features and its status in either
    order. A shard is finished in the background as soon as all of it has come. Arrays that are put may not be copied: they must
    not be changed afterwards. One thread puts. All methods raise, as a ``PipelineError``, what went wrong in the background: a
    value that cannot be stored, a disk that refuses.

    Args:
        folder: The run's folder, opened by :func:`pipeline.store.run_folder.open_folder`.
        spec: The run, up to the part that the shards are of.
        shards: Those to make.
        workers: Threads that encode.
        digests: Where finished shards get their lines. Unfinished files have names of their own if it has a writer's name.
    """

    def __init__(self, folder: Path, spec: RunSpec, shards: Sequence[ShardSpec], workers: int, digests: Digests) -> None:
        self.bytes_raw = self.bytes_stored = 0  # activations written so far, before and after compression
        self.encode_seconds = self.write_seconds = 0.0  # on encoding, and on writing and finishing files, summed over threads
        self._folder, self._spec, self._digests = folder, spec, digests
        # Two processes may come to write the same shard, where locks do not work or one was taken for dead: each writes all of
        # it, and either is the whole one.
        self._mark = f"{digests.writer}-{secrets.token_hex(4)}" if digests.writer else ""
        self._shards = {shard.number: shard for shard in shards}
        self._open: dict[int, OpenShard] = {}
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes_waiting = 0
        self._finishing: list[Future[None]] = []
        self._error: BaseException | None = None
        self._lock = threading.Lock()  # of the counters, and of the shards that are open
        self._encoders = ThreadPoolExecutor(max(1, workers), "encode")
        # Of its own, so that a disk that takes seconds to sync a shard does not stop the encoding of the next. With one worker
        # they are finished in order.
        self._finishers = ThreadPoolExecutor(MOST_FINISHING if workers > 1 else 1, "finish")

    def put_statuses(self, statuses: Sequence[ImageStatus]) -> None:
        """Take what became of some images, each once."""
        self.check()
        for status in statuses:
            shard = self._shard(status.index)
            shard.add_status(status)
            self._finish_if_complete(shard)

    def put_features(self, features: FeatureBatch) -> None:
        """Take activations of one layer; return before they are stored, and block while too much is waiting."""
        self.check()
        for index, values in zip(features.indices.tolist(), features.values, strict=True):
            shard = self._shard(index)
            for piece in shard.layers[features.layer].put(index, values):
                self._submit(shard, piece)
            self._finish_if_complete(shard)

    def _shard(self, index: int) -> OpenShard:
        """Return the shard of a row of the run, and begin it if it is new."""
        number = (index - self._spec.first_row) // self._spec.images_per_shard
        if number not in self._open:
            while len(self._finishing) >= MOST_FINISHING:
                self._finishing = [*wait(self._finishing, return_when=FIRST_COMPLETED).not_done]
            self.check()
            self._open[number] = OpenShard(self._folder, self._spec, self._shards[number], self._mark)
        return self._open[number]

    def _submit(self, shard: OpenShard, piece: Piece) -> None:
        while self._waiting and self._bytes_waiting + piece.values.nbytes > WAITING_BYTES:
            wait([self._waiting[0][0]])
            self._bytes_waiting -= self._waiting.popleft()[1]
        self.check()
        task = self._encoders.submit(self._store, shard, piece)
        task.add_done_callback(self._note_error)
        shard.tasks.append(task)
        self._waiting.append((task, piece.values.nbytes))
        self._bytes_waiting += piece.values.nbytes

    def _store(self, shard: OpenShard, piece: Piece) -> None:
        began = time.perf_counter()
        data = piece.layer.encode(piece)
        encoded = time.perf_counter()
        shard.write(piece, data)
        with self._lock:
            self.bytes_raw += piece.values.size * format.ITEMSIZE_BYTES[self._spec.dtype]
            self.bytes_stored += len(data)
            self.encode_seconds += encoded - began
            self.write_seconds += time.perf_counter() - encoded

    def _finish_if_complete(self, shard: OpenShard) -> None:
        if shard.complete:
            for layer in shard.layers.values():
                for piece in layer.flush():
                    self._submit(shard, piece)
            task = self._finishers.submit(self._finish, shard)
            task.add_done_callback(self._note_error)
            self._finishing.append(task)

    def _finish(self, shard: OpenShard) -> None:
        for task in shard.tasks:
            task.result()
        began = time.perf_counter()
        shard.finish(self._digests)
        with self._lock:
            self.write_seconds += time.perf_counter() - began
            del self._open[shard.shard.number]

    def _note_error(self, task: Future[None]) -> None:
        """Keep the first error for the next call of the loop. Shards of which all has come are finished nevertheless."""
        error = task.exception()
        if isinstance(error, MemoryError):
            error = StoreError(
                f"{self._folder}: out of memory while encoding, got {WAITING_BYTES >> 20} MiB that may wait. Expected memory for "
                "them. Lower batch_size or data.size, then run again with output.existing=resume: finished shards are kept."
            )
        self._error = self._error or error

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._error:
            raise self._error

    def close(self) -> None:
        """Wait until every shard has its final name; where one cannot, remove partial files and keep finished shards."""
        try:
            self._encoders.shutdown()
            self._finishers.shutdown()
            self.check()
            assert not self._open, f"rows are missing of shards {sorted(self._open)}"
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop what is unfinished, leaving no partial file behind; shards of which all has come are finished first."""
        self._encoders.shutdown()
        self._finishers.shutdown()
        for shard in self._open.values():
            shard.close()
        self._open.clear()
        # Of all: Ctrl-C comes anywhere, also after a file has been made and before anybody knows of it.
        for spec in self._shards.values():
            with suppress(OSError):
                disk.partial_path(self._folder / format.SHARD_FOLDER / spec.file_name, self._mark).unlink()
