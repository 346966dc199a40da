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
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, PipelineError
from ..records import Batch, ImageStatus, Manifest
from .batch_queue import BatchQueue
from .decode import MAX_PIXELS, decode_image
from .reading import words_for
from .reading_ahead import ReadAhead

# Larger images share MAX_PIXELS among them: each worker may decode a photograph, but not each a decompression bomb.
LARGE_PIXELS = 2**25

_NO_PIXELS = np.empty((0, 0, 3), np.uint8)

Pixels = NDArray[np.uint8]


class Resizer(Protocol):
    """Where the host brings images to one size, by the worker that has decoded them, into the memory of their batch."""

    def memory(self, count: int) -> NDArray[np.float32]:
        """Gives room for so many images: (count, H, W, 3)."""

    def resize(self, pixels: Pixels, result: NDArray[np.float32]) -> None:
        """Writes what becomes of an image (h, w, 3) into (H, W, 3)."""


def load_batches(
    manifest: Manifest,
    indices: NDArray[np.int64],
    *,
    batch_size: int,
    workers: int,
    reduce: Callable[[Pixels], Pixels] | None = None,
    resizer: Resizer | None = None,
    ratio_for: Callable[[int, int], int] | None = None,
) -> Generator[Batch, None, None]:
    """Reads, hashes and decodes these rows, in this order, ahead of the consumer.

    At most ``2 * batch_size`` images are decoded and not yet handed over (the batch that is being filled and the one that
    waits), as large as ``reduce`` leaves or ``resizer`` makes them; besides, each worker may hold one image at full size, and
    all those above :data:`LARGE_PIXELS` together no more than one image may have. Closing the
    generator stops the workers and frees all of this.

    The errors in the statuses begin with a stable word: ``missing``, ``unreadable``, ``not a regular file``, ``too large``,
    ``internal`` (``reduce``, ``resizer`` or ``ratio_for`` raised something else than an ``ImageError``), or one of
    :class:`~pipeline.images.decode.ImageDecodeError`'s.

    Args:
        manifest: The rows of the run.
        indices: (N,) int64, which of them to load.
        batch_size: Rows a batch; the last may have fewer.
        workers: Images read and decoded at the same time.
        reduce: (h, w, 3) uint8 RGB -> (h', w', 3) uint8, applied to each image in the worker. None: as decoded.
        resizer: What makes images of one size of them instead. None: their sizes differ.
        ratio_for: As for :func:`~pipeline.images.decode.decode_image`.

    Yields:
        Batches whose statuses follow ``indices``.
    """
    import tensorflow as tf  # Late: the doors must be able to refuse a wrong option without it.

    # Images go round TensorFlow, from the workers to the batch: numpy_function would copy them into a tensor, and
    # Dataset.ragged_batch, which would make the flat buffer, takes three times as long as decoding. Nor do workers wait for it:
    # they take row after row, as far ahead as they may, and the dataset says which batch is wanted.
    ahead = ReadAhead(manifest)
    load = _Loading(_Room(MAX_PIXELS), reduce, resizer, ratio_for)

    def begin(wanted: NDArray[np.int64]) -> _Filling:
        return _Filling(wanted.tolist(), ahead.begin(wanted.tolist()), load)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    queue: BatchQueue[_Filling] | None = None
    options = tf.data.Options()
    # A thread of TensorFlow's own that would look for something to tune, and a search for something to rewrite, where nothing is.
    options.autotune.enabled = options.experimental_optimization.apply_default_optimizations = False
    try:
        queue = BatchQueue(indices, batch_size, begin)
        for _ in range(workers):
            pool.submit(queue.work)
        # The device is set around calls, never across a yield: the setting belongs to the thread, which is the consumer's.
        with tf.device("/CPU:0"):
            numbers = tf.data.Dataset.range(-(-len(indices) // batch_size))
            elements = numbers.with_options(options).as_numpy_iterator()
        while True:
            with tf.device("/CPU:0"):
                number = next(elements, None)
            if number is None:
                return
            yield queue.take(int(number)).batch()
    finally:
        if queue is not None:
            queue.stop()
        ahead.close()
        pool.shutdown(wait=False)


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


class _Loading(NamedTuple):
    """What is done to each image, in whatever worker."""

    room: _Room
    reduce: Callable[[Pixels], Pixels] | None
    resizer: Resizer | None
    ratio_for: Callable[[int, int], int] | None

    def finish(self, decoded: Pixels, slot: NDArray[np.float32] | None) -> Pixels:
        """Gives the pixels to hand over, none where they go into a batch's memory."""
        if self.resizer is not None and slot is not None:
            self.resizer.resize(decoded, slot)
            return _NO_PIXELS
        reduced = np.ascontiguousarray(decoded if self.reduce is None else self.reduce(decoded))
        assert reduced.dtype == np.uint8, reduced.dtype
        assert reduced.shape[2:] == (3,), reduced.shape
        return reduced


class _Filling:
    """A batch in the making.

    Args:
        indices: Rows of the run.
        reads: What gives the bytes of each.
        loading: What is done to them.
    """

    def __init__(self, indices: Sequence[int], reads: Sequence[Callable[[], bytes]], loading: _Loading) -> None:
        self._indices = indices
        self._reads = reads
        self._loading = loading
        self._memory = None if loading.resizer is None else loading.resizer.memory(len(indices))
        self._statuses: list[ImageStatus | None] = [None] * len(indices)
        self._images = [_NO_PIXELS] * len(indices)
        self._sources_px = np.zeros((len(indices), 2), np.int32)

    def load(self, place: int) -> None:
        """Reads one image. Raises nothing but signals, and what ends the run: a storage that does not answer."""
        error, sha256, data = "", "", b""
        height = width = 0
        slot = None if self._memory is None else self._memory[place]
        loading = self._loading
        try:
            data = self._reads[place]()
            sha256 = hashlib.sha256(data).hexdigest()
            with loading.room.for_one_image() as take:
                decoded, (height, width) = decode_image(data, loading.ratio_for, take)
                self._sources_px[place] = decoded.shape[:2]
                self._images[place] = loading.finish(decoded, slot)
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
        if error and slot is not None:
            slot.fill(0.0)
        self._statuses[place] = ImageStatus(self._indices[place], error, height, width, len(data), sha256)

    def batch(self) -> Batch:
        """Gives the batch, all of whose rows have been loaded."""
        statuses = tuple(status for status in self._statuses if status is not None)
        return Batch(statuses, tuple(self._images) if self._memory is None else self._memory, self._sources_px)
