"""A tf.data pipeline: rows of a manifest in; batches of images, each with one status a row, out.

``from_tensor_slices(rows) -> map(read, hash, decode, prepare) -> padded_batch -> prefetch``. Its elements carry the images:

=========== ==================== =========================================================================================
``image``   (B, h, w, 3) uint8   the batch's canvas, as large as its largest sides: image i fills the top left corner of row
                                 i, zero beside it; or, where the loader resizes, (B, H, W, 3) float32 of one size, mean removed
``numbers`` (B, 6) int64         row of the run; height and width in px after EXIF orientation, before resizing; bytes of the
                                 file; height and width of what the canvas holds
``texts``   (B, 2) string        why the row failed, ``""`` if it has not; SHA-256 of the file, hex
=========== ==================== =========================================================================================

A bad image is a failed status and never an exception, which would take its row out of the dataset without a word. Whatever else
goes wrong stops the run. Runs on the host's CPU, also where there is a GPU.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..errors import DatasetError, ImageError
from ..records import Batch, ImageStatus, Manifest
from .decode import MAX_PIXELS, decode_image
from .reading import READS_AT_ONCE, RemoteImages, read_image, words_for

# tf.data bounds how many images it holds, not how large they are. Above this number of pixels they share MAX_PIXELS among them:
# each thread may decode a photograph, but not each a decompression bomb.
LARGE_PIXELS = 2**25
# Local files that are read at the same time, at least: one on another machine takes some 10 to 100 ms.
LOCAL_READS = 8

Pixels = NDArray[np.uint8]

_CPU = "/CPU:0"


@dataclass(eq=False)
class ImageLoader:
    """Reads, hashes and decodes rows, in their order, ahead of whoever iterates over it.

    One batch waits, one is being filled, and each thread holds a file more, or what ``prepare`` leaves of its image. Errors in
    the statuses begin with a stable word: ``missing``, ``unreadable``, ``not a regular file``, or one of
    :func:`~pipeline.images.decode.decode_image`'s.

    Attributes:
        manifest: The rows of the run.
        indices: (N,) int64, which of them to load.
        batch_size: Rows a batch; the last may have fewer. None: native size, a batch's images have one height and width.
        workers: Images decoded at the same time. More are read, but not at native size, where no more may fit into memory.
        prepare: (h, w, 3) uint8 RGB -> what the batch holds of it, in the worker; may raise ``ImageError``. It must bound the
            sides, since a batch's canvas is as large as the largest.
        size_px: (H, W) where ``prepare`` gives (H, W, 3) float32. None: it gives (h', w', 3) uint8.
        ratio_for: As for :func:`~pipeline.images.decode.decode_image`.
        native_rows: At native size (height, width) -> rows of a batch of such images, at most.
        dataset: The ``tf.data.Dataset``; what it gives is above.
    """

    manifest: Manifest
    indices: NDArray[np.int64]
    _: KW_ONLY
    batch_size: int | None
    workers: int
    prepare: Callable[[Pixels], NDArray[Any]] = lambda pixels: pixels
    size_px: tuple[int, int] | None = None
    ratio_for: Callable[[int, int], int] | None = None
    native_rows: Callable[[int, int], int] = lambda height, width: 1
    dataset: tf.data.Dataset = field(init=False)

    def __post_init__(self) -> None:
        self._decoding = _PixelSemaphore(self.workers)
        self._error: BaseException | None = None
        reads = READS_AT_ONCE if isinstance(self.manifest.source, RemoteImages) else LOCAL_READS
        calls = max(self.workers, reads) if self.batch_size else self.workers
        options = tf.data.Options()
        # No thread that looks for something to tune: the numbers above are meant.
        options.autotune.enabled = False
        options.threading.private_threadpool_size = calls
        # AutoGraph would find nothing to convert, and writes files that a kill leaves in the folder for temporary ones.
        element = tf.autograph.experimental.do_not_convert(self._element)
        with tf.device(_CPU):
            rows = tf.data.Dataset.from_tensor_slices(np.asarray(self.indices, np.int64))
            images = rows.map(element, num_parallel_calls=calls, deterministic=True)
            if self.batch_size:
                images = images.batch(self.batch_size) if self.size_px else images.padded_batch(self.batch_size)
            self.dataset = images.prefetch(1).with_options(options)

    def _element(self, row: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the element of a row; at native size it is a batch already."""
        image = tf.float32 if self.size_px else tf.uint8
        found = tf.numpy_function(self._load_or_stop, [row], (image, tf.int64, tf.string))
        # Known beforehand: tf.ensure_shape would be an operation more for each image.
        for tensor, shape in zip(found, ((*(self.size_px or (None, None)), 3), (6,), (2,)), strict=True):
            tensor.set_shape(shape)
        element = dict(zip(("image", "numbers", "texts"), found, strict=True))
        # No copy: the image may be as large as the memory allows.
        return element if self.batch_size else {name: value[None] for name, value in element.items()}

    def _load_or_stop(self, row: np.int64) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.object_]]:
        try:
            return self._load(int(row))
        except BaseException as error:
            # TensorFlow makes text of it.
            self._error = self._error or error
            raise

    def _load(self, row: int) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.object_]]:
        """Return image, numbers and texts of a row. Runs in tf.data's threads."""
        image = None
        data, error, sha256, (height, width) = b"", "", "", (0, 0)
        try:
            data = read_image(self.manifest[row])
            sha256 = hashlib.sha256(data).hexdigest()
            with self._decoding.room_for(1, 0), ExitStack() as large:

                def admit(pixels: int) -> None:
                    if pixels > LARGE_PIXELS:
                        large.enter_context(self._decoding.room_for(0, pixels))

                decoded, (height, width) = decode_image(data, self.ratio_for, admit)
                image = self.prepare(decoded)
        except (ImageError, OSError, MemoryError) as problem:
            error = words_for(problem)
        if image is None:
            # Not before: an array that is made for each image and dropped costs a millisecond of page faults.
            image = np.zeros((*self.size_px, 3), np.float32) if self.size_px else np.empty((0, 0, 3), np.uint8)
        numbers = np.array([row, height, width, len(data), *image.shape[:2]], np.int64)
        return image, numbers, np.array([error.encode(), sha256.encode()], np.object_)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Give the batches. Closing the generator stops the workers and frees what they hold.

        Raises:
            BaseException: What went wrong, and was no bad image: a storage that does not answer, a fault of the program.
        """
        return self._batches() if self.batch_size else _join_equal_sizes(self._batches(), self.native_rows)

    def _batches(self) -> Generator[Batch, None, None]:
        # The device is set around calls, never across a yield: the setting belongs to the thread, which is the caller's.
        with tf.device(_CPU):
            elements = self.dataset.as_numpy_iterator()
        while True:
            try:
                with tf.device(_CPU):
                    element = next(elements, None)
            except tf.errors.ResourceExhaustedError:
                raise DatasetError(
                    "data: out of memory, got a batch of images that does not fit. Expected memory for it. Lower batch_size."
                ) from None
            except tf.errors.OpError as error:
                raise self._error or error from None
            if element is None:
                return
            yield _batch(element, self.batch_size or 1)
            del element


def _batch(element: dict[str, Any], full_rows: int) -> Batch:
    numbers = element["numbers"]
    statuses = tuple(
        ImageStatus(row, error.decode(), height, width, file_bytes, sha256.decode())
        for (row, height, width, file_bytes), (error, sha256) in zip(numbers[:, :4].tolist(), element["texts"], strict=True)
    )
    return Batch(statuses, element["image"], numbers[:, 4:].astype(np.int32), full_rows)


def _join_equal_sizes(batches: Iterable[Batch], most_rows: Callable[[int, int], int]) -> Generator[Batch, None, None]:
    """Join batches of one image each that follow one another and have one height and width; a failed row has none.

    Images of unequal size stay apart: padded to one size they would need a mask after every layer.
    """
    for (height, width), equal in itertools.groupby(batches, lambda batch: batch.images.shape[1:3]):
        while some := list(itertools.islice(equal, most_rows(height, width) if height else 1)):
            if len(some) == 1:
                # No copy, as above.
                yield some[0]
            else:
                statuses = tuple(status for batch in some for status in batch.statuses)
                images = np.concatenate([batch.images for batch in some])
                yield Batch(statuses, images, np.concatenate([batch.sizes_px for batch in some]))


class _PixelSemaphore:
    """Bounds how many images are decoded at the same time, and the pixels of the large ones among them."""

    def __init__(self, images: int) -> None:
        self._images, self._pixels, self._changed = images, MAX_PIXELS, threading.Condition()

    @contextmanager
    def room_for(self, images: int, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._images >= images and self._pixels >= pixels)
            self._images, self._pixels = self._images - images, self._pixels - pixels
        try:
            yield
        finally:
            with self._changed:
                self._images, self._pixels = self._images + images, self._pixels + pixels
                self._changed.notify_all()
