"""From batches to what the network reads: float32, mean removed, at one size or at each image's own.

Takes the loader's :class:`~pipeline.records.Batch`; gives :class:`Step`. The resizing itself is done by
:mod:`~pipeline.images.resize_device` on a GPU. Where there is none, the loader's threads have done it, by
:mod:`~pipeline.images.resize_host`. The way back is :mod:`~pipeline.images.seen`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..records import Batch


class Step(NamedTuple):
    """Some images of one batch, ready for the network.

    Attributes:
        indices: (n,) int64, the rows of the run that they are; failed images are not among them.
        images: (m, H, W, 3) float32 on the device, mean removed; m >= n, rows after the n-th only fill up the step.
    """

    indices: NDArray[np.int64]
    images: Any


class NativeSize:
    """Removes the mean colour and leaves each image its own size: one step an image.

    Args:
        mean_pixel: (3,) float64, R, G, B in 0..255.
        device: TensorFlow's name of the device.
    """

    def __init__(self, mean_pixel: NDArray[np.float64], device: str) -> None:
        self._device = device
        with tf.device(device):
            self._mean = tf.constant(mean_pixel, tf.float32)

    def __call__(self, batch: Batch) -> Iterator[Step]:
        """Gives one image a step, (1, h, w, 3)."""
        for status, pixels in zip(batch.statuses, batch.images, strict=True):
            if not status.error:
                with tf.device(self._device):
                    image = tf.cast(tf.constant(pixels[np.newaxis]), tf.float32) - self._mean
                yield Step(np.array([status.index], np.int64), image)


class FixedSize:
    """Has the images of a batch brought to one size, without the mean colour, a batch at a time, unless the loader has done it.

    Row i of the result depends on image i alone: neither its neighbours nor the size of the batch change a bit of it.
    A pixel is within 1 grey level of Pillow's ``resize`` with the same filter, before Pillow rounds.

    Args:
        resize: Batch -> (B, H, W, 3) float32 where the network wants it, mean removed; rows of failed images are of any value.
            None: the images of batches are that already.
        step_images: Images that the network takes at a time. Every step has this many rows, so that the network's
            arithmetic is the same however many images a batch has. None: all of the batch, where it is the same anyway.
    """

    def __init__(self, resize: Callable[[Batch], Any] | None, step_images: int | None) -> None:
        self._resize = resize
        self._step_images = step_images

    def __call__(self, batch: Batch) -> Iterator[Step]:
        """Gives the images that did not fail, ``step_images`` at a time; the last step is filled up with repeats."""
        good = np.flatnonzero([not status.error for status in batch.statuses])
        if not len(good):
            return
        images = batch.images if self._resize is None else self._resize(batch)
        indices = np.array([status.index for status in batch.statuses], np.int64)
        count = self._step_images or len(good)
        for first in range(0, len(good), count):
            rows = good[first : first + count]
            step = images if len(rows) == count == len(batch) else _take(images, np.resize(rows, count))
            yield Step(indices[rows], step)


def _take(images: Any, rows: NDArray[np.int64]) -> Any:
    if isinstance(images, np.ndarray):
        return images[rows]
    with tf.device(images.device):
        return tf.gather(images, rows)
