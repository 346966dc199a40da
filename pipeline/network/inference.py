"""From a batch of images to features of those that did not fail, by either backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..images.resize import NO_IMAGE, ResizeSpec, place_image, resize_batch
from ..records import Batch, FeatureBatch
from .vgg import FirstStep, Network


class DeviceInference:
    """Runs the device functions on a batch's canvas: resize, subtract the mean, network.

    Args:
        network: Whose first segment takes canvas and geometry; at native size the canvas alone.
        resize: Of the run; None at native size, where a batch is one image.
        fill_to: Rows that every step has, the last ones of no image: a device sees one shape, and its arithmetic is the same
            however many rows a batch has. None: as many as there are.
    """

    def __init__(self, network: Network, resize: ResizeSpec | None, fill_to: int | None) -> None:
        self._network = network
        self._resize = resize
        self._fill_to = fill_to

    def __call__(self, batch: Batch) -> Iterator[FeatureBatch]:
        """Return the features of the good rows, one layer after the other.

        Raises:
            NetworkError: The device is out of memory.
        """
        good = batch.good
        if not len(good):
            return
        for name, values in self._network(*self._inputs(batch)):
            found = np.asarray(values)
            yield FeatureBatch(name, batch.indices[good], found if len(good) == len(found) else found[good])
            del found

    def _inputs(self, batch: Batch) -> tuple[NDArray[np.uint8] | NDArray[np.float64], ...]:
        canvas = batch.images
        if self._resize is None:
            return (canvas,)
        geometry = [place_image(int(height), int(width), self._resize) for height, width in batch.sizes_px]
        missing = max(0, (self._fill_to or 0) - len(batch))
        if missing:
            canvas = np.concatenate([canvas, np.zeros((missing, *canvas.shape[1:]), np.uint8)])
            geometry += [NO_IMAGE] * missing
        return canvas, np.array(geometry, np.float64)


class HostInference:
    """Runs the network's own CPU engine on images that the loader has brought to size.

    Args:
        network: On the CPU.
        mean_pixel: (3,) float64, R, G, B in 0..255: subtracted at native size, elsewhere the loader has done so.
        is_native: Whether images keep their own size.
    """

    def __init__(self, network: Network, mean_pixel: NDArray[np.float64], is_native: bool) -> None:
        self._network = network
        self._mean_pixel = mean_pixel.astype(np.float32)
        self._is_native = is_native

    def __call__(self, batch: Batch) -> Iterator[FeatureBatch]:
        """Return the features of the good rows, one layer after the other.

        Raises:
            NetworkError: There is too little memory.
        """
        good = batch.good
        if not len(good):
            return
        images = batch.images if len(good) == len(batch) else batch.images[good]
        if self._is_native:
            images = images.astype(np.float32) - self._mean_pixel
        layers = self._network(images)
        # While a layer is stored the next one is computed; at native size that would keep one layer more of a large image.
        for name, values in layers if self._is_native else _one_behind(layers):
            yield FeatureBatch(name, batch.indices[good], np.asarray(values))
            del values


def _one_behind(layers: Iterable[tuple[str, NDArray[np.float32]]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Return each item after the one behind it has been asked for."""
    waiting = None
    for following in layers:
        if waiting is not None:
            yield waiting
        waiting = following
    if waiting is not None:
        yield waiting


def first_step(resize: ResizeSpec | None, mean_pixel: NDArray[np.float64]) -> FirstStep:
    """Return what a device does to a canvas before the first layer: resize and subtract the mean colour.

    Args:
        resize: Of the run; None at native size, where only the mean is subtracted.
        mean_pixel: (3,) R, G, B in 0..255.
    """
    canvas = tf.TensorSpec((None, None, None, 3), tf.uint8)
    if resize is None:
        return FirstStep(lambda images: tf.cast(images, tf.float32) - tf.constant(mean_pixel, tf.float32), [canvas])
    geometry = tf.TensorSpec((None, len(NO_IMAGE)), tf.float64)
    return FirstStep(lambda images, places: resize_batch(images, places, resize, mean_pixel), [canvas, geometry])
