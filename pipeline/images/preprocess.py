"""From batches to what the network reads: float32, mean removed, at one size or at each image's own; and the way back.

Takes the loader's :class:`~pipeline.records.Batch`; gives :class:`Step`. The resizing itself is done by
:mod:`~pipeline.images.resize_device` on a GPU, and by :mod:`~pipeline.images.resize_host` where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

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
            if pixels.size:
                with tf.device(self._device):
                    image = tf.cast(tf.constant(pixels[np.newaxis]), tf.float32) - self._mean
                yield Step(np.array([status.index], np.int64), image)


class FixedSize:
    """Brings the images of a batch to one size and removes the mean colour, a batch at a time.

    Row i of the result depends on image i alone: neither its neighbours nor the size of the batch change a bit of it.
    A pixel is within 1 grey level of Pillow's ``resize`` with the same filter, before Pillow rounds.

    Args:
        resize: Batch -> (B, H, W, 3) float32 where the network wants it, mean removed; rows of failed images are of any value.
        step_images: Images that the network takes at a time. Every step has this many rows, so that the network's
            arithmetic is the same however many images a batch has. None: all of the batch, where it is the same anyway.
    """

    def __init__(self, resize: Callable[[Batch], Any], step_images: int | None) -> None:
        self._resize = resize
        self._step_images = step_images

    def __call__(self, batch: Batch) -> Iterator[Step]:
        """Gives the images that did not fail, ``step_images`` at a time; the last step is filled up with repeats."""
        good = np.flatnonzero([image.size for image in batch.images])
        if not len(good):
            return
        images = self._resize(batch)
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


def restore_image(values: NDArray[np.float32], mean_pixel: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Gives the picture that the network saw: adds the mean colour, rounds, clips to 0..255.

    Args:
        values: (..., 3) float32, mean removed.
        mean_pixel: (3,) float64, R, G, B in 0..255.

    Returns:
        Same shape, uint8 RGB.
    """
    return np.clip(np.rint(values + mean_pixel), 0, 255).astype(np.uint8)


def save_image(values: NDArray[np.float32], mean_pixel: NDArray[np.float64], path: Path) -> None:
    """Writes one preprocessed image (h, w, 3) as a picture; the suffix of ``path`` chooses the format."""
    Image.fromarray(restore_image(values, mean_pixel)).save(path)
