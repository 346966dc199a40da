"""Manifest rows, in; batches of decoded images with one status a row, out. A tf.data pipeline on the host's CPU.

Stands between the manifest and the preprocessing. A bad image is a failed status here and never an exception: rows are
neither lost nor reordered.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    # Dataset.ragged_batch, which would make the flat buffer, takes three times as long as decoding. A call of its own for each
    # image would take as long as decoding too, and leave the workers waiting for each other: one call makes a batch.
    room = _Room(MAX_PIXELS)
    loaded: dict[int, list[_Row]] = {}
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")

    kept = _Kept()

    ahead = ReadAhead(manifest)
    # What ends the run, and is no fault of one image: TensorFlow would make an error of its own of it.
    failures: list[PipelineError] = []

    def load(read: Callable[[], bytes]) -> _Row:
        if stopped.is_set():
            return _NOTHING
        try:
            return _load_row(read, room, kept, reduce, ratio_for)
        except PipelineError as error:
            failures.append(error)
            stopped.set()
            return _NOTHING

    def load_batch(first: NDArray[np.int64]) -> NDArray[np.int64]:
        wanted = ahead.begin(indices[first : first + batch_size].tolist())
        rows = [_NOTHING] * len(wanted)
        places = iter(range(len(wanted)))

        def load_some() -> None:
            # Whoever is free takes the next one: a task for each image would cost a fifth of its decoding.
            for place in places:
                rows[place] = load(wanted[place])

        for task in [pool.submit(load_some) for _ in range(min(workers, len(wanted)))]:
            task.result()
        loaded[int(first)] = rows
        return first

    def load_in_graph(first: Any) -> Any:
        return tf.numpy_function(load_batch, [first], tf.int64)

    options = tf.data.Options()
    options.deterministic = True
    # Autotuning would grow the buffers, and the graph's own rewriting (a further prefetch) would add some: the bound on memory
    # that is promised above would not hold.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    # Threads of its own: the batches must not queue behind the network's operations in TensorFlow's common pool.
    options.threading.private_threadpool_size = _BATCHES_AHEAD
    try:
        # The device is set around calls, never across a yield: the setting belongs to the thread, which is the consumer's.
        with tf.device("/CPU:0"):
            firsts = tf.data.Dataset.range(0, len(indices), batch_size)
            in_graph = tf.autograph.experimental.do_not_convert(load_in_graph)
            dataset = firsts.map(in_graph, num_parallel_calls=_BATCHES_AHEAD)
            elements = iter(dataset.with_options(options))
        while True:
            with tf.device("/CPU:0"):
                element = next(elements, None)
            if failures:
                raise failures[0]
            if element is None:
                return
            first = int(element)
            yield _batch(indices[first : first + batch_size], loaded.pop(first))
    finally:
        stopped.set()
        ahead.close()
        pool.shutdown(wait=False, cancel_futures=True)


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
