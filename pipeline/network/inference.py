"""From a batch of images to features of those that did not fail, by either backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..images.resize import NO_IMAGE, ResizeSpec, place_image, resize_batch
from ..records import Batch, FeatureBatch
from .vgg import FirstStep

# Inputs -> (name, activations) of one layer after the other, computed when asked for: see :class:`~pipeline.network.vgg.Network`.
Layers = Callable[..., Iterable[tuple[str, Any]]]


def infer_on_device(batch: Batch, network: Layers, resize: ResizeSpec | None, fill_to: int) -> Iterator[FeatureBatch]:
    """Run the device functions on a batch's canvas, resize, subtract the mean, network; yield the features of the good rows.

    Args:
        batch: Of the loader.
        network: Whose first segment takes canvas and geometry; at native size the canvas alone.
        resize: Of the run; None at native size, where a batch is one image.
        fill_to: Rows that every step has, the last ones of no image: a device sees one shape, and its arithmetic is the same
            however many rows a batch has. 0: as many as there are.

    Raises:
        NetworkError: The device is out of memory.
    """
    good = batch.good
    if not len(good):
        return
    inputs: tuple[NDArray[Any], ...] = (batch.images,)
    if resize is not None:
        canvas, missing = batch.images, max(0, fill_to - len(batch))
        geometry = [place_image(int(height), int(width), resize) for height, width in batch.sizes_px] + [NO_IMAGE] * missing
        if missing:
            canvas = np.concatenate([canvas, np.zeros((missing, *canvas.shape[1:]), np.uint8)])
        inputs = canvas, np.array(geometry, np.float64)
    for name, values in network(*inputs):
        found = np.asarray(values)
        yield FeatureBatch(name, batch.indices[good], found if len(good) == len(found) else found[good])
        del found


def infer_on_host(batch: Batch, network: Layers, mean_pixel: NDArray[np.float64] | None) -> Iterator[FeatureBatch]:
    """Run the network's own CPU engine on images that the loader has brought to size; yield the features of the good rows.

    Args:
        batch: Of the loader.
        network: On the CPU.
        mean_pixel: (3,), R, G, B in 0..255: to be subtracted at native size. None: the loader has done so.

    Raises:
        NetworkError: There is too little memory.
    """
    good = batch.good
    if not len(good):
        return
    images = batch.images if len(good) == len(batch) else batch.images[good]
    if mean_pixel is not None:
        images = images.astype(np.float32) - mean_pixel.astype(np.float32)
    layers = network(images)
    # While a layer is stored the next one is computed; at native size that would keep one layer more of a large image.
    for name, values in _one_behind(layers) if mean_pixel is None else layers:
        yield FeatureBatch(name, batch.indices[good], np.asarray(values))
        del values


def _one_behind(layers: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield each item after the one behind it has been asked for."""
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
