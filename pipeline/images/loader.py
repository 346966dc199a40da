"""Manifest rows, in; batches of decoded images with one status a row, out. A tf.data pipeline on the host's CPU.

Stands between the manifest and the preprocessing. A bad image is a failed status here and never an exception: rows are
neither lost nor reordered.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, PipelineError
from ..records import Batch, ImageStatus, Manifest
from .decode import MAX_PIXELS, decode_image
from .reading import words_for
from .reading_ahead import ReadAhead

# Larger images share MAX_PIXELS among them: each worker may decode a photograph, but not each a decompression bomb.
LARGE_PIXELS = 2**25

# Batches that are being filled or wait, whole, for the consumer: with one alone, workers would wait for the slowest of them.
_BATCHES_AHEAD = 2

# Images of more bytes than the first, as decoded, are decoded into memory that their worker keeps for the next, since the system
# takes as long to hand out and clear so much as a seventh of the decoding; above the second it would be too much to keep.
_KEPT_FROM_BYTES = 2**22
_KEPT_BYTES = 2**26


class _Row(NamedTuple):
    """What becomes of one image: its status, its pixels as handed over, and (height, width) as decoded."""

    error: str
    height_px: int
    width_px: int
    file_bytes: int
    sha256: str
    pixels: NDArray[np.uint8]
    source_px: tuple[int, int]


_NO_PIXELS = np.empty((0, 0, 3), np.uint8)
# What no one waits for any more.
_NOTHING = _Row("", 0, 0, 0, "", _NO_PIXELS, (0, 0))


def load_batches(
    manifest: Manifest,
    indices: NDArray[np.int64],
    *,
    batch_size: int,
    workers: int,
    reduce: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    ratio_for: Callable[[int, int], int] | None = None,
) -> Generator[Batch, None, None]:
    """Reads, hashes and decodes these rows, in this order, ahead of the consumer.

    At most ``2 * batch_size`` images are decoded and not yet handed over (the batch that is being filled and the one that
    waits), as large as ``reduce`` leaves them; besides, each worker may hold one image at full size, and all those above
    :data:`LARGE_PIXELS` together no more than one image may have. A worker keeps the memory of large images for the next, up to
    64 MiB. Closing the generator stops the workers and frees all of this.

    The errors in the statuses begin with a stable word: ``missing``, ``unreadable``, ``not a regular file``, ``too large``,
    ``internal`` (``reduce`` or ``ratio_for`` raised something else than an ``ImageError``), or one of
    :class:`~pipeline.images.decode.ImageDecodeError`'s.

    Args:
        manifest: The rows of the run.
        indices: (N,) int64, which of them to load.
        batch_size: Rows a batch; the last may have fewer.
        workers: Images read and decoded at the same time.
        reduce: (h, w, 3) uint8 RGB -> (h', w', 3) uint8, applied to each image in the worker. None: as decoded.
        ratio_for: As for :func:`~pipeline.images.decode.decode_image`.

    Yields:
        Batches whose statuses follow ``indices``.
    """
    import tensorflow as tf  # Late: the doors must be able to refuse a wrong option without it.

    # Images go round TensorFlow, from the workers to the batch: numpy_function would copy them into a tensor, and
    # Dataset.ragged_batch, which would make the flat buffer, takes three times as long as decoding. Nor do workers wait for it:
    # they take row after row, as far ahead as they may, and the dataset says which batch is wanted.
    room, kept = _Room(MAX_PIXELS), _Kept()

    ahead = ReadAhead(manifest)

    def load(read: Callable[[], bytes]) -> _Row:
        return _load_row(read, room, kept, reduce, ratio_for)

    rows = _Rows(indices, batch_size, ahead.begin, load)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")

    options = tf.data.Options()
    # A thread of TensorFlow's own that would look for something to tune, where nothing is.
    options.autotune.enabled = False
    try:
        for _ in range(workers):
            pool.submit(rows.work)
        # The device is set around calls, never across a yield: the setting belongs to the thread, which is the consumer's.
        with tf.device("/CPU:0"):
            places = tf.data.Dataset.range(len(indices)).batch(batch_size)
            elements = places.with_options(options).as_numpy_iterator()
        for number in itertools.count():
            with tf.device("/CPU:0"):
                element = next(elements, None)
            if element is None:
                return
            yield _batch(indices[element], rows.take(number))
    finally:
        rows.stop()
        ahead.close()
        pool.shutdown(wait=False)


class _Rows:
    """Rows that workers load ahead of the consumer, each taking the next one when it has done with the last.

    A batch is given out as soon as all of it is there; that many rows more may be loaded then. A task for each batch, or even for
    each image, would leave workers waiting for one another for a third of their time.

    Args:
        indices: (N,) int64, which rows.
        batch_size: Rows a batch.
        begin: Rows of a batch -> what gives the bytes of each; called when they may be read.
        load: What gives the bytes of an image -> its row; raises what ends the run.
    """

    def __init__(
        self,
        indices: NDArray[np.int64],
        batch_size: int,
        begin: Callable[[Sequence[int]], Sequence[Callable[[], bytes]]],
        load: Callable[[Callable[[], bytes]], _Row],
    ) -> None:
        self._indices = indices
        self._batch_size = batch_size
        self._begin = begin
        self._load = load
        self._taken = self._allowed = 0
        self._reads: dict[int, Sequence[Callable[[], bytes]]] = {}
        self._batches: dict[int, list[_Row]] = {}
        self._left: dict[int, int] = {}
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        for _ in range(_BATCHES_AHEAD):
            self._allow_batch()

    def _allow_batch(self) -> None:
        wanted = self._indices[self._allowed : self._allowed + self._batch_size].tolist()
        number = self._allowed // self._batch_size
        if wanted:
            self._reads[number] = self._begin(wanted)
            self._batches[number], self._left[number] = [_NOTHING] * len(wanted), len(wanted)
        self._allowed += len(wanted)

    def work(self) -> None:
        """Loads rows until there are none; what each worker does."""
        try:
            place = self._next()
            while place is not None:
                number, at = divmod(place, self._batch_size)
                row = self._load(self._reads[number][at])
                place = self._next((number, at, row))
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._stopped = True
                self._changed.notify_all()

    def _next(self, done: tuple[int, int, _Row] | None = None) -> int | None:
        """Takes a row that has been loaded, and gives the place of one that may be; waits until there is one."""
        with self._changed:
            if done is not None and not self._stopped:
                number, at, row = done
                self._batches[number][at] = row
                self._left[number] -= 1
                if not self._left[number]:
                    self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._taken < self._allowed or self._taken == len(self._indices))
            if self._stopped or self._taken == len(self._indices):
                return None
            self._taken += 1
            return self._taken - 1

    def take(self, number: int) -> list[_Row]:
        """Waits for a batch, and gives it, once; raises what a worker has raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._left.get(number) == 0)
            if self._error:
                raise self._error
            del self._left[number], self._reads[number]
            rows = self._batches.pop(number)
            self._allow_batch()
            self._changed.notify_all()
            return rows

    def stop(self) -> None:
        """Has the workers stop after the rows at hand, and lets go of all that is there."""
        with self._changed:
            self._stopped = True
            self._batches.clear()
            self._changed.notify_all()


class _Room:
    """How many pixels of large images may be in memory at a time.

    Args:
        pixels: Their number; no image has more.
    """

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def for_one_image(self) -> Iterator[Callable[[int], None]]:
        """Gives what waits until there is room for an image of so many pixels. The room is free again afterwards."""
        taken = 0

        def take(pixels: int) -> None:
            nonlocal taken
            if pixels > LARGE_PIXELS:
                with self._changed:
                    self._changed.wait_for(lambda: pixels <= self._free)
                    self._free -= pixels
                    taken = pixels

        try:
            yield take
        finally:
            if taken:
                with self._changed:
                    self._free += taken
                    self._changed.notify_all()


class _Kept(threading.local):
    """Memory into which a worker decodes one large image after the other."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def buffer_for(self, size_bytes: int) -> NDArray[np.uint8] | None:
        """Gives the thread's memory, made larger where it must be; None where the image shall have its own."""
        if not _KEPT_FROM_BYTES < size_bytes <= _KEPT_BYTES:
            return None
        if self._memory.size < size_bytes:
            self._memory = np.empty(size_bytes, np.uint8)
        return self._memory

    def released(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Gives pixels that the next image does not write over."""
        return pixels.copy() if np.may_share_memory(pixels, self._memory) else pixels


def _batch(indices: NDArray[np.int64], rows: Sequence[_Row]) -> Batch:
    statuses = tuple(
        ImageStatus(index, row.error, row.height_px, row.width_px, row.file_bytes, row.sha256)
        for index, row in zip(indices.tolist(), rows, strict=True)
    )
    return Batch(statuses, tuple(row.pixels for row in rows), np.array([row.source_px for row in rows], np.int32))


def _load_row(
    read: Callable[[], bytes],
    room: _Room,
    kept: _Kept,
    reduce: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None,
    ratio_for: Callable[[int, int], int] | None,
) -> _Row:
    """Reads one image. Raises nothing but signals, and what ends the run: a storage that does not answer."""
    error, sha256, data = "", "", b""
    height = width = 0
    pixels = decoded = _NO_PIXELS
    try:
        data = read()
        sha256 = hashlib.sha256(data).hexdigest()
        with room.for_one_image() as take:
            decoded, (height, width) = decode_image(data, ratio_for, take, kept.buffer_for)
            reduced = kept.released(np.ascontiguousarray(decoded if reduce is None else reduce(decoded)))
        assert reduced.dtype == np.uint8, reduced.dtype
        assert reduced.shape[2:] == (3,), reduced.shape
        pixels = reduced
    except ImageError as problem:
        error = str(problem)
    except OSError as problem:
        error = words_for(problem)
    except MemoryError:
        error = "out of memory: the image does not fit"
    except PipelineError:
        raise
    except Exception as problem:  # Whatever one image does to a caller's function, the other rows are still wanted.
        error = f"internal: {type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
    return _Row(error, height, width, len(data), sha256, pixels, (decoded.shape[0], decoded.shape[1]))
