"""The VGG networks on the device, cut where the user wants activations.

Takes float32 (n, H, W, 3), standardised as the weights want, or what its own first step makes such images of; gives one layer's
activations after the other, and vectors that reductions make of them. Between two layers that are wanted lies a *segment*; what
a segment gives leaves the device before the next one runs, so memory holds a few of the largest layers and never their sum.
Nothing is computed past the deepest layer wanted, and nothing twice.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..errors import DeviceMemoryError, ImageError
from ..images.resize import NO_IMAGE, ResizeSpec, place_image, resize_batch, standardise
from ..records import Batch, FeatureBatch, FeatureSpec, LayerSpec, Transform
from .architectures import CLASSIFIER_BLOCK, POOL_SIDE, POOL_STRIDE, layer_table, output_shapes, smallest_side_px
from .device import BFLOAT, FLOAT32, FLOAT_BYTES, HOST, LAYERS_IN_MEMORY, memory_errors
from .device_reductions import on_device
from .host_reductions import on_host, reduce_rows
from .known_weights import Weights
from .reductions import prepare
from .winograd import Pending

Function = Callable[..., Any]
# Inputs -> (name, values) of one feature after the other, computed when asked for: see :class:`Network`.
Layers = Callable[..., Iterable[tuple[str, Any]]]


class Segment(NamedTuple):
    """Layers up to the next one whose activations are needed as a whole."""

    name: str  # of its last layer
    function: Function  # inputs -> the last layer's activations, which the next segment takes, or None; values of the features
    features: Sequence[FeatureSpec]


@dataclass
class Network:
    """A VGG network that gives the activations of some of its layers.

    Attributes:
        weights: Kernels (HWIO, RGB), biases and the padding of the pooling layers.
        wanted: What to give of which layers, in network order.
        pooling: ``max`` or ``avg``.
        device: TensorFlow's name of the device.
        size_px: (height, width) of all inputs; None where they differ.
        parts: Of the layers before the classifier, from :func:`~pipeline.network.winograd.prepare_segments`: then a row's bits
            depend on its image alone. None: TensorFlow's convolutions, where they depend on the number of images a call too.
        precision: Of TensorFlow's products, one of :data:`~pipeline.network.device.TOLERANCES`. With ``bfloat16`` kernels are
            kept so too, and what passes from layer to layer.
        dtype: Of the values that are given, ``float32`` or ``float16``; where ``parts`` are given always float32.
        first: What is done before the first layer, by :func:`first_step`. None: the network is called with images.
        threads: That reduce on the CPU.
        transforms: Of reductions that are fitted, as of :class:`~pipeline.records.RunSpec`.
    """

    weights: Weights
    wanted: Sequence[FeatureSpec]
    _: KW_ONLY
    pooling: str
    device: str
    size_px: tuple[int, int] | None
    parts: Mapping[str, Function] | None = None
    precision: str = FLOAT32
    dtype: str = FLOAT32
    first: Any = None
    threads: int = 1
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        network, size_px, parts = self.weights.network, self.size_px, self.parts or {}
        self._shapes = output_shapes(network, size_px, self.weights.pool_padding) if size_px else {}
        self._computed = tf.bfloat16 if self.precision == BFLOAT else tf.float32
        self._reducing = ThreadPoolExecutor(self.threads, "reduce")
        input_shape: tuple[int | None, ...] = (*(size_px or (None, None)), 3)
        layers: list[LayerSpec] = []
        wanted = {feature.layer.name for feature in self.wanted}
        with memory_errors("network"), tf.device(self.device):
            for layer in layer_table(network)[: self.wanted[-1].layer.network_index + 1]:
                layers.append(layer)
                if layer.name not in (wanted if self.parts is None or layer.block >= CLASSIFIER_BLOCK else parts):
                    continue
                features = [feature for feature in self.wanted if feature.layer in layers]
                if layer.name in parts:
                    function = self._in_engine(parts[layer.name], features)
                else:
                    function = self._in_tensorflow(layers, input_shape, features)
                self.segments.append(Segment(layer.name, function, features))
                input_shape, layers = self._shapes.get(layer.name, (None, None, layer.channels)), []

    def __call__(self, *inputs: Any) -> Iterator[tuple[str, Any]]:
        """Return (name, values (n, h, w, c) or (n, d) in the dtype) of each wanted feature, computed when asked for.

        The values are in the host's memory; the inputs are images, or what the first step takes.

        Raises:
            DeviceMemoryError: The device is out of memory, in upload, resize, network or download.
        """
        values = inputs
        for segment in self.segments:
            with memory_errors(segment.name, values), tf.device(self.device):
                kept, given = segment.function(*values)
            values = (kept,)
            del kept
            yield from zip((feature.name for feature in segment.features), given, strict=True)
            del given

    def check_native_size(self, pixels: NDArray[np.uint8], memory_bytes: int) -> NDArray[np.uint8]:
        """Return an image, (h, w, 3) uint8, that the network can take at its own size.

        Raises:
            ImageError: It is too small for the deepest layer, or its layers do not fit into so much memory.
        """
        height, width = pixels.shape[:2]
        network, padding, layer = self.weights.network, self.weights.pool_padding, self.wanted[-1].layer
        shapes = output_shapes(network, (height, width), padding)
        if layer.name not in shapes:
            smallest = smallest_side_px(network, layer, padding)
            raise ImageError(f"too small: {height} x {width} px, layer {layer.name} needs sides of {smallest} px")
        needed = max(map(math.prod, shapes.values())) * FLOAT_BYTES * LAYERS_IN_MEMORY
        if needed > memory_bytes:
            raise ImageError(
                f"too large for memory: {height} x {width} px need {needed / 1e9:.0f} GB at native size, "
                f"{memory_bytes / 1e9:.0f} GB may be used; set data.size"
            )
        return pixels

    def _in_engine(self, part: Any, features: Sequence[FeatureSpec]) -> Function:
        """Return the function of a segment that the CPU's engine computes; its threads reduce what they have just computed."""
        reduced = [feature for feature in features if feature.reductions]
        reducers = [prepare(each, self._shapes.get(each.layer.name), on_host, self.transforms) for each in reduced]

        def segment(images: Any) -> tuple[Any, list[Any]]:
            vectors = {feature.name: np.empty((images.shape[0], feature.channels), np.float32) for feature in reduced}

            def reduce(row: int, values: NDArray[np.float32], means: Mapping[str, NDArray[np.float32]]) -> None:
                for feature, reducer in zip(reduced, reducers, strict=True):
                    # The mean of a layer on the way is a map of one position, of which "avg" changes nothing.
                    vectors[feature.name][row] = reducer(means.get(feature.layer.name, values))

            kept = part(images, reduce if reduced else None)
            return kept, [Pending(vectors[one.name], kept.groups) if one.reductions else kept for one in features]

        return segment

    def _in_tensorflow(
        self, layers: Sequence[LayerSpec], input_shape: tuple[int | None, ...], features: Sequence[FeatureSpec]
    ) -> Function:
        """Return the function of a segment in TensorFlow, given the shape of an image's activations before it."""
        graph = self._graph(layers, input_shape, [self._reducer(feature) for feature in features])

        def image_by_image(maps: Any) -> tuple[Any, list[Any]]:
            # The classifier on a CPU: its matrices are read once an image, which is all the work, and TensorFlow does that as
            # fast. One by one: its sums depend on the number of images.
            maps = np.asarray(maps)
            kept, given = zip(*(graph(maps[place : place + 1]) for place in range(len(maps))), strict=True)
            is_last = kept[0] is None
            return None if is_last else np.concatenate(kept), [np.concatenate(rows) for rows in zip(*given, strict=True)]

        return graph if self.parts is None else image_by_image

    def _reducer(self, feature: FeatureSpec) -> Function:
        """Return what makes a feature of its layer's maps in a graph."""
        shape = self._shapes.get(feature.layer.name)
        if not feature.reductions or (shape and self.parts is None):
            return prepare(feature, shape, on_device, self.transforms)
        # At native size every image has another shape, for each of which a reduction on the device would be traced.
        reducer = prepare(feature, shape, on_host, self.transforms)

        def by_numpy(maps: tf.Tensor) -> tf.Tensor:
            with tf.device(HOST):
                return tf.numpy_function(lambda values: reduce_rows(reducer, values, self._reducing), [maps], tf.float32)

        return by_numpy

    def _graph(self, layers: Sequence[LayerSpec], input_shape: tuple[int | None, ...], reducers: Sequence[Function]) -> Function:
        """Return a function of layers in TensorFlow: inputs -> activations, None if last, and what reducers make of them."""
        operations = [self._operation(layer) for layer in layers]
        first, is_last = None if self.segments else self.first, layers[-1] == self.wanted[-1].layer

        def segment(*inputs: tf.Tensor) -> Any:
            values = tf.cast(first.python_function(*inputs) if first else inputs[0], self._computed)
            for operation in operations:
                values = operation(values)
            full = tf.cast(values, tf.float32)
            given = [tf.cast(reducer(full), self.dtype) for reducer in reducers]
            # Between a GPU and the memory that TensorFlow keeps for it on the host, which is pinned: ten times as fast as a copy
            # into pageable memory, and it waits for this batch alone. What the next segment takes stays on the device.
            with tf.device(HOST):
                given = [tf.identity(one) for one in given]
            return None if is_last else values, given

        # One trace serves every number of images, and at native size every height and width.
        taken = self._computed if self.segments else tf.float32
        signature = first.input_signature if first else [tf.TensorSpec((None, *input_shape), taken)]
        graph: Function = tf.function(segment, input_signature=signature, autograph=False)
        return graph

    def _operation(self, layer: LayerSpec) -> Function:
        if layer.kind == "relu":
            return lambda values: tf.nn.relu(values)
        if layer.kind == "softmax":
            return lambda values: tf.nn.softmax(tf.cast(values, tf.float32))
        if layer.kind == "pool":
            return self._pool
        stored = self.weights.kernels[layer.name], self.weights.biases[layer.name]
        kernel, bias = (tf.cast(values, self._computed) for values in stored)
        if layer.kind == "fc":
            return lambda values: tf.nn.bias_add(_fully_connected(values, kernel), bias)
        # Constants of the graph, not inputs: on a GPU convolution, bias and ReLU become one kernel only where these are known.
        factors, addends = kernel.numpy(), bias.numpy()
        return lambda values: tf.nn.bias_add(tf.nn.conv2d(values, tf.constant(factors), 1, "SAME"), tf.constant(addends))

    def _pool(self, values: tf.Tensor) -> tf.Tensor:
        # SAME ignores what lies outside the map, in the maximum and in the average: Caffe's and MatConvNet's rule.
        pool = tf.nn.max_pool2d if self.pooling == "max" else tf.nn.avg_pool2d
        return pool(values, POOL_SIDE, POOL_STRIDE, self.weights.pool_padding.upper())


def _fully_connected(values: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolve without padding; as a matrix product where the kernel covers the map or is one pixel."""
    height, width, inputs, outputs = kernel.shape
    if (height, width) == (1, 1):
        return tf.matmul(values, kernel[0, 0])
    if tuple(values.shape[1:3]) == (height, width):
        flat = tf.reshape(values, [-1, height * width * inputs])
        return tf.reshape(tf.matmul(flat, tf.reshape(kernel, [-1, outputs])), [-1, 1, 1, outputs])
    return tf.nn.conv2d(values, kernel, 1, "VALID")


# -- From a batch of images to features of those that did not fail -------------------------------------------------------------


@dataclass
class DeviceFunctions:
    """Run the device functions on a batch's canvas, resize, standardise, network; yield the features of the good rows.

    A step that does not fit into the device's memory is halved and run again, and no later one has as many rows. Safe in threads.

    Attributes:
        network: Whose first segment takes canvas and geometry; at native size the canvas alone.
        resize: Of the run; None at native size, where all images of a batch have one height and width.
        fills: Whether every step has as many rows as a whole batch, the last ones of no image: a device sees one shape, and its
            arithmetic is the same however many rows a batch has.
        warn: Told when a step is halved.
    """

    network: Layers
    resize: ResizeSpec | None
    fills: bool = False
    warn: Callable[[str], object] = print
    most_rows: int = field(default=sys.maxsize, init=False)  # of a step
    _tuned: set[int] = field(default_factory=set, init=False)
    _tuning: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __call__(self, batch: Batch) -> Iterator[FeatureBatch]:
        """Yield the features of the good rows: of each layer in ascending order.

        Raises:
            DeviceMemoryError: The device is out of memory for one image.
        """
        return self._rows(batch, 0, len(batch), 0)

    def _rows(self, batch: Batch, first: int, stop: int, given: int) -> Iterator[FeatureBatch]:
        """Yield the features of some rows, but for the layers that have been given."""
        size = min(self.most_rows, max(batch.full_rows, len(batch)))
        if stop - first > size:
            for start in range(first, stop, size):
                yield from self._rows(batch, start, min(start + size, stop), given)
            return
        try:
            found: Iterable[FeatureBatch] = self._step(batch, first, stop, size)
            if self.fills and size not in self._tuned:
                # A GPU's first step of a size times cuDNN's algorithms, which steps beside it would disturb.
                with self._tuning:
                    found = [*found]
                self._tuned.add(size)
            for features in itertools.islice(found, given, None):
                yield features
                given += 1
                del features
            return
        except DeviceMemoryError:
            if size == 1:
                raise
            self.most_rows = min(self.most_rows, size - size // 2)
        self.warn(f"device: out of memory with {size} images a step, {self.most_rows} from now on")
        yield from self._rows(batch, first, stop, given)

    def _step(self, batch: Batch, first: int, stop: int, size: int) -> Iterator[FeatureBatch]:
        good = batch.good[(batch.good >= first) & (batch.good < stop)]
        if not len(good):
            return
        inputs: list[NDArray[Any]] = [batch.images[first:stop]]
        if self.resize is not None:
            geometry = [place_image(height, width, self.resize) for height, width in batch.sizes_px[first:stop].tolist()]
            if self.fills and (missing := size - len(geometry)):
                inputs[0] = np.pad(inputs[0], ((0, missing), (0, 0), (0, 0), (0, 0)))
                geometry += [NO_IMAGE] * missing
            inputs.append(np.array(geometry, np.float64))
        # TensorFlow's threads upload what is on the host when a function is called. Tensors made on a GPU are uploaded one after
        # the other, each when all that is queued there is done, and hold Python's lock until then (TensorFlow 2.21).
        with tf.device(HOST):
            arguments = [tf.constant(values) for values in inputs]
        for name, values in self.network(*arguments):
            found = np.asarray(values)
            yield FeatureBatch(name, batch.indices[good], found if len(good) == len(found) else found[good - first])
            del values, found


def infer_on_host(
    batch: Batch, network: Layers, mean_pixel: NDArray[np.float64] | None, scale_pixel: NDArray[np.float64] | None = None
) -> Iterator[FeatureBatch]:
    """Run the network's own CPU engine on images that the loader has brought to size; yield the features of the good rows.

    At native size the mean colour, (3,), is subtracted here, and divided by the scale if there is one; else the loader has done
    so, and it is None.

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


def first_step(resize: ResizeSpec | None, mean_pixel: NDArray[np.float64], scale_pixel: NDArray[np.float64] | None = None) -> Any:
    """Return what a device does to a canvas before the first layer, a ``tf.function``: resize, but at native size, standardise.

    It gives (n, H, W, 3) float32.
    """
    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8)]
    if resize:
        signature.append(tf.TensorSpec((None, len(NO_IMAGE)), tf.float64))

    def standardised(canvas: tf.Tensor, geometry: Any = None) -> tf.Tensor:
        # What an operation of the host makes for a GPU lies in pinned memory: no other is copied while the GPU computes.
        with tf.device(HOST):
            canvas = tf.raw_ops.DeepCopy(x=canvas)
        if resize:
            return resize_batch(canvas, geometry, resize, mean_pixel, scale_pixel)
        return standardise(tf.cast(canvas, tf.float32), mean_pixel, scale_pixel)

    return tf.function(standardised, input_signature=signature, autograph=False)
