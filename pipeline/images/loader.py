"""Manifest rows, in; batches of decoded images with one status a row, out. A tf.data pipeline on the host's CPU.

Stands between the manifest and the preprocessing. A bad image is a failed status here and never an exception: rows are
neither lost nor reordered.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..records import Batch, ImageStatus, Manifest
from .decode import MAX_PIXELS, ImageDecodeError, decode_image

# No photograph is larger; reading on would risk the memory for a disk image that somebody named .tif.
MAX_FILE_BYTES = 2**30

# Larger images share MAX_PIXELS among them: each worker may decode a photograph, but not each a decompression bomb.
LARGE_PIXELS = 2**25

# Batches that wait, whole, for the consumer. One is enough: the next is being filled meanwhile.
_PREFETCHED_BATCHES = 1

# What a row hands from the worker's thread to the batch besides its pixels; the order of the int64 vector.
_NUMBERS = ("height_px", "width_px", "rows_px", "columns_px", "source_rows_px", "source_columns_px", "file_bytes")
_TEXTS = ("error", "sha256")
# What no one waits for any more.
_NOTHING = np.empty(0, np.uint8), np.zeros(len(_NUMBERS), np.int64), np.array(["", ""], np.object_)


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
    waits), as large as ``reduce`` leaves them; besides, each worker may hold one image at full
    size, and all those above :data:`LARGE_PIXELS` together no more than one image may have. Closing the generator stops the
    workers and frees all of this.

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

    # Pixels go round TensorFlow, from the workers to the batch: numpy_function would copy them into a tensor, and
    # Dataset.ragged_batch, which would make the flat buffer, takes three times as long as decoding. A call of its own for each
    # image would take as long as decoding too, and leave the workers waiting for each other: one call makes a batch.
    room = _Room(MAX_PIXELS)
    buffers: dict[int, NDArray[np.uint8]] = {}
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")

    def load(index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.object_]]:
        if stopped.is_set():
            return _NOTHING
        return _load_row(manifest[int(index)].path, room, reduce, ratio_for)

    def load_batch(first: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
        rows = list(pool.map(load, indices[first : first + batch_size]))
        pixels, numbers, texts = zip(*rows, strict=True)
        buffers[int(first)] = np.concatenate(pixels)
        return np.stack(numbers), np.stack(texts)

    def load_in_graph(first: Any) -> Any:
        numbers, texts = tf.numpy_function(load_batch, [first], (tf.int64, tf.string))
        return first, tf.ensure_shape(numbers, [None, len(_NUMBERS)]), tf.ensure_shape(texts, [None, len(_TEXTS)])

    options = tf.data.Options()
    options.deterministic = True
    # Autotuning would grow the buffers, and the graph's own rewriting (a further prefetch) would add some: the bound on memory
    # that is promised above would not hold.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    # A thread of its own: the batch must not queue behind the network's operations in TensorFlow's common pool.
    options.threading.private_threadpool_size = 1
    try:
        # The device is set around calls, never across a yield: the setting belongs to the thread, which is the consumer's.
        with tf.device("/CPU:0"):
            firsts = tf.data.Dataset.range(0, len(indices), batch_size)
            dataset = firsts.map(tf.autograph.experimental.do_not_convert(load_in_graph)).prefetch(_PREFETCHED_BATCHES)
            elements = iter(dataset.with_options(options))
        while True:
            with tf.device("/CPU:0"):
                element = next(elements, None)
            if element is None:
                return
            first, numbers, texts = (np.asarray(tensor) for tensor in element)
            yield _batch(indices[first : first + batch_size], buffers.pop(int(first)), numbers, texts)
    finally:
        stopped.set()
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


def _batch(
    indices: NDArray[np.int64], pixels: NDArray[np.uint8], numbers: NDArray[np.int64], texts: NDArray[np.object_]
) -> Batch:
    statuses = tuple(
        ImageStatus(int(index), error.decode(), int(height), int(width), int(file_bytes), sha256.decode())
        for index, (height, width, *_, file_bytes), (error, sha256) in zip(indices, numbers, texts, strict=True)
    )
    sides = numbers.astype(np.int32)
    first = _NUMBERS.index("rows_px")
    return Batch(statuses, pixels, sides[:, first], sides[:, first + 1], sides[:, first + 2 : first + 4])


def _load_row(
    path: str,
    room: _Room,
    reduce: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None,
    ratio_for: Callable[[int, int], int] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.object_]]:
    """Gives the flat pixels of one image, its :data:`_NUMBERS` and its :data:`_TEXTS`. Raises nothing but signals."""
    error, sha256, data = "", "", b""
    height = width = 0
    pixels = decoded = np.empty((0, 0, 3), np.uint8)
    try:
        data = read_file(path)
        sha256 = hashlib.sha256(data).hexdigest()
        with room.for_one_image() as take:
            decoded, (height, width) = decode_image(data, ratio_for, take)
            reduced = decoded if reduce is None else reduce(decoded)
        assert reduced.dtype == np.uint8, reduced.dtype
        assert reduced.shape[2:] == (3,), reduced.shape
        pixels = reduced
    except ImageError as problem:
        error = str(problem)
    except (FileNotFoundError, NotADirectoryError):
        error = "missing: file not found"
    except OSError as problem:
        error = f"unreadable: {(problem.strerror or type(problem).__name__).lower()}"
    except MemoryError:
        error = "out of memory: the image does not fit"
    except Exception as problem:  # Whatever one image does to a caller's function, the other rows are still wanted.
        error = f"internal: {type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
    rows, columns, _ = pixels.shape
    numbers = np.array([height, width, rows, columns, *decoded.shape[:2], len(data)], np.int64)
    return pixels.reshape(-1), numbers, np.array([error, sha256], np.object_)


def read_file(path: str) -> bytes:
    """Reads a regular file whole.

    Raises:
        ImageDecodeError: It is not a regular file, is larger than :data:`MAX_FILE_BYTES`, or changes while it is read.
        OSError: It is missing or cannot be read.
    """
    # Before it is opened: opening a device can have effects. After it: the name may mean another file by then, and a
    # pipe opened without O_NONBLOCK would wait for a writer for ever.
    _require_regular(Path(path).stat())
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 (Path.open takes no descriptor)
        before = os.fstat(file.fileno())
        size = _require_regular(before)
        # None: a file of the kernel that calls itself regular and has nothing yet, which without O_NONBLOCK would be waited for.
        data = file.read(size + 1) or b""
        after = os.fstat(file.fileno())
    if len(data) != size or (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
        raise ImageDecodeError("unreadable: the file changed while it was read")
    return data


def _require_regular(info: os.stat_result) -> int:
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe" if stat.S_ISFIFO(info.st_mode) else "a device or socket"
        raise ImageDecodeError(f"not a regular file: {kind}")
    if info.st_size > MAX_FILE_BYTES:
        raise ImageDecodeError(f"too large: {info.st_size} bytes, limit {MAX_FILE_BYTES} bytes")
    return info.st_size
