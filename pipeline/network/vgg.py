"""The VGG networks on the device, cut where the user wants activations.

Takes float32 (n, H, W, 3), standardised as the weights want, or what its own first step makes such images of; gives one layer's
activations after the other. Between two layers that are wanted lies a *segment*; what a segment gives leaves the device before
the next one runs, so memory holds a few of the largest layers and never their sum. Nothing is computed past the deepest layer
wanted, and nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..errors import NetworkError
from ..images.resize import NO_IMAGE, ResizeSpec, place_image, resize_batch, standardise
from ..records import Batch, FeatureBatch, LayerSpec
from .architectures import CLASSIFIER_BLOCK, POOL_SIDE, POOL_STRIDE, layer_table, output_shapes
from .device import BFLOAT, FLOAT32
from .known_weights import Weights

Segment = Callable[..., Any]
# Inputs -> (name, activations) of one layer after the other, computed when asked for: see :class:`Network`.
Layers = Callable[..., Iterable[tuple[str, Any]]]


class FirstStep(NamedTuple):
    """What is done before the first layer, in the same function.

    Attributes:
        function: Inputs -> (n, H, W, 3) float32, mean removed.
        signature: Of the inputs.
    """

    function: Callable[..., tf.Tensor]
    signature: Sequence[tf.TensorSpec]


@dataclass
class Network:
    """A VGG network that gives the activations of some of its layers.

    Attributes:
        weights: Kernels (HWIO, RGB), biases and the padding of the pooling layers.
        wanted: Layers to give, in network order.
        pooling: ``max`` or ``avg``.
        kernel_order: ``hwio``: kernels as stored. ``whio``: their first two axes swapped, which reproduces scripts that
            do so by mistake.
        device: TensorFlow's name of the device.
        size_px: (height, width) of all inputs; None where they differ.
        parts: Of the layers before the classifier, from :func:`~pipeline.network.winograd.prepare_segments`: then a row's bits
            depend on its image alone. None: TensorFlow's convolutions, where they depend on the number of images a call too.
        precision: Of TensorFlow's products, one of :data:`~pipeline.network.device.TOLERANCES`.
        first: What is done before the first layer. None: the network is called with images.
        segments: (name of the layer that it ends with, function) of each.
    """

    weights: Weights
    wanted: Sequence[LayerSpec]
    _: KW_ONLY
    pooling: str
    kernel_order: str
    device: str
    size_px: tuple[int, int] | None
    parts: Mapping[str, Segment] | None = None
    precision: str = FLOAT32
    first: FirstStep | None = None
    segments: list[tuple[str, Segment]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        network, size_px = self.weights.network, self.size_px
        shapes = output_shapes(network, size_px, self.weights.pool_padding) if size_px else {}
        table = layer_table(network)
        input_shape: tuple[int | None, ...] = (*(size_px or (None, None)), 3)
        done = 0
        with tf.device(self.device):
            for layer in self.wanted:
                first = None if self.segments else self.first
                self.segments.append((layer.name, self._segment(table[done : layer.network_index + 1], input_shape, first)))
                input_shape = shapes.get(layer.name, (None, None, layer.channels))
                done = layer.network_index + 1

    def __call__(self, *inputs: Any) -> Iterator[tuple[str, Any]]:
        """Return (name, activations (n, h, w, c) float32) for each wanted layer, computed when asked for.

        The activations are on the device, or still being computed; ``numpy.asarray`` waits for them.

        Args:
            *inputs: The images, or what the first step takes.

        Raises:
            NetworkError: The device is out of memory.
        """
        values = inputs
        for name, segment in self.segments:
            try:
                with tf.device(self.device):
                    values = (segment(*values),)
            except tf.errors.ResourceExhaustedError as error:
                shape = " x ".join(map(str, values[0].shape))
                raise NetworkError(
                    f"{name}: the device is out of memory, got an input of {shape}. Expected memory for it. "
                    "Lower batch_size or data.size, or use runtime.device=cpu."
                ) from error
            yield name, values[0]

    def _segment(self, layers: Sequence[LayerSpec], input_shape: tuple[int | None, ...], first: FirstStep | None) -> Segment:
        if self.parts is None:
            return self._graph(layers, input_shape, first)
        classifier = [layer for layer in layers if layer.block >= CLASSIFIER_BLOCK]
        maps = layers[: len(layers) - len(classifier)]
        part = self.parts[maps[-1].name] if maps else None
        if not classifier:
            assert part is not None
            return part
        # The classifier's matrices are used once an image: reading them is all the work, and TensorFlow does it as fast.
        graph = self._graph(classifier, (None, None, input_shape[2] if part is None else maps[-1].channels))

        def segment(values: Any) -> NDArray[np.float32]:
            values = np.asarray(values if part is None else part(values))
            # One by one: TensorFlow's sums depend on the number of images.
            return np.concatenate([graph(values[place : place + 1]) for place in range(len(values))])

        return segment

    def _graph(self, layers: Sequence[LayerSpec], input_shape: tuple[int | None, ...], first: FirstStep | None = None) -> Segment:
        operations = [self._operation(layer) for layer in layers]

        def segment(*inputs: tf.Tensor) -> tf.Tensor:
            values = first.function(*inputs) if first else inputs[0]
            for operation in operations:
                values = operation(values)
            return values

        # One trace serves every number of images, and at native size every height and width.
        signature = first.signature if first else [tf.TensorSpec((None, *input_shape), tf.float32)]
        graph: Segment = tf.function(segment, input_signature=signature, autograph=False)
        return graph

    def _operation(self, layer: LayerSpec) -> Segment:
        if layer.kind == "relu":
            return lambda values: tf.nn.relu(values)
        if layer.kind == "softmax":
            return lambda values: tf.nn.softmax(values)
        if layer.kind == "pool":
            return self._pool
        kernel = self.weights.kernels[layer.name]
        kernel = tf.constant(kernel if self.kernel_order == "hwio" else np.ascontiguousarray(kernel.transpose(1, 0, 2, 3)))
        bias = tf.constant(self.weights.biases[layer.name])
        if layer.kind == "fc":
            return lambda values: tf.nn.bias_add(_fully_connected(values, kernel, self.precision), bias)
        return lambda values: tf.nn.bias_add(convolve(values, kernel, "SAME", self.precision), bias)

    def _pool(self, values: tf.Tensor) -> tf.Tensor:
        # SAME ignores what lies outside the map, in the maximum and in the average: Caffe's and MatConvNet's rule.
        pool = tf.nn.max_pool2d if self.pooling == "max" else tf.nn.avg_pool2d
        return pool(values, POOL_SIDE, POOL_STRIDE, self.weights.pool_padding.upper())


def _fully_connected(values: tf.Tensor, kernel: tf.Tensor, precision: str) -> tf.Tensor:
    """Convolve without padding; as a matrix product where the kernel covers the map or is one pixel."""
    height, width, inputs, outputs = kernel.shape
    if precision == BFLOAT:
        return convolve(values, kernel, "VALID", precision)
    if (height, width) == (1, 1):
        return tf.matmul(values, kernel[0, 0])
    if tuple(values.shape[1:3]) == (height, width):
        flat = tf.reshape(values, [-1, height * width * inputs])
        return tf.reshape(tf.matmul(flat, tf.reshape(kernel, [-1, outputs])), [-1, 1, 1, outputs])
    return convolve(values, kernel, "VALID", precision)


def convolve(values: tf.Tensor, kernel: tf.Tensor, padding: str, precision: str) -> tf.Tensor:
    """Convolve with stride 1; of bfloat16 factors where the precision says so.

    Args:
        values: (n, h, w, cin) float32.
        kernel: (kh, kw, cin, cout) float32.
        padding: ``SAME`` or ``VALID``.
        precision: One of :data:`~pipeline.network.device.TOLERANCES`.

    Returns:
        (n, h', w', cout) float32.
    """
    if precision != BFLOAT:
        return tf.nn.conv2d(values, kernel, 1, padding)
    short = tf.nn.conv2d(tf.cast(values, tf.bfloat16), tf.cast(kernel, tf.bfloat16), 1, padding)
    return tf.cast(short, tf.float32)


# -- From a batch of images to features of those that did not fail -------------------------------------------------------------


def infer_on_device(batch: Batch, network: Layers, resize: ResizeSpec | None, fill_to: int) -> Iterator[FeatureBatch]:
    """Run the device functions on a batch's canvas, resize, standardise, network; yield the features of the good rows.

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


def infer_on_host(
    batch: Batch, network: Layers, mean_pixel: NDArray[np.float64] | None, scale_pixel: NDArray[np.float64] | None = None
) -> Iterator[FeatureBatch]:
    """Run the network's own CPU engine on images that the loader has brought to size; yield the features of the good rows.

    Args:
        batch: Of the loader.
        network: On the CPU.
        mean_pixel: (3,), R, G, B in 0..255: to be subtracted at native size. None: the loader has done so.
        scale_pixel: (3,), what is divided by then; None: nothing.

    Raises:
        NetworkError: There is too little memory.
    """
    good = batch.good
    if not len(good):
        return
    images = batch.images if len(good) == len(batch) else batch.images[good]
    if mean_pixel is not None:
        images = standardise(images.astype(np.float32), mean_pixel, scale_pixel)
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


def first_step(
    resize: ResizeSpec | None, mean_pixel: NDArray[np.float64], scale_pixel: NDArray[np.float64] | None = None
) -> FirstStep:
    """Return what a device does to a canvas before the first layer: resize and standardise.

    Args:
        resize: Of the run; None at native size, where nothing is resized.
        mean_pixel: As of :func:`~pipeline.images.resize.standardise`.
        scale_pixel: Likewise.
    """
    canvas = tf.TensorSpec((None, None, None, 3), tf.uint8)
    if resize is None:
        return FirstStep(lambda images: standardise(tf.cast(images, tf.float32), mean_pixel, scale_pixel), [canvas])
    geometry = tf.TensorSpec((None, len(NO_IMAGE)), tf.float64)
    return FirstStep(lambda images, places: resize_batch(images, places, resize, mean_pixel, scale_pixel), [canvas, geometry])
