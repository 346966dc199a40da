"""The VGG networks on the device, cut where the user wants activations.

Takes float32 (n, H, W, 3) with the mean removed; gives one layer's activations after the other. Between two layers that
are wanted lies a *segment*, compiled once; what a segment gives leaves the device before the next one runs, so memory
holds a few of the largest layers and never their sum. Nothing is computed past the deepest layer wanted, and nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..errors import NetworkError
from ..records import LayerSpec
from .convolution import DIRECT, WINOGRAD, suits
from .layers import layer_table, output_shapes
from .weights import Weights
from .winograd import compiled_convolve, transform_kernel

Operation = Callable[[Any], Any]

POOL_SIDE = 2
POOL_STRIDE = 2


class Network:
    """A VGG network that gives the activations of some of its layers.

    On a CPU, with the same number of images a call, a row's bits depend on its image alone.

    Args:
        weights: Kernels (HWIO, RGB), biases and the padding of the pooling layers.
        wanted: Layers to give, in network order.
        pooling: ``max`` or ``avg``.
        kernel_order: ``hwio``: kernels as stored. ``whio``: their first two axes swapped, which reproduces scripts that
            do so by mistake.
        device: TensorFlow's name of the device.
        size_px: (height, width) of all inputs; None where they differ.
        convolution: ``direct``, or ``winograd`` for the layers that suit it: on a CPU, at a fixed size, one image a call.
    """

    def __init__(
        self,
        weights: Weights,
        wanted: Sequence[LayerSpec],
        *,
        pooling: str,
        kernel_order: str,
        device: str,
        size_px: tuple[int, int] | None,
        convolution: str = DIRECT,
    ) -> None:
        assert convolution == DIRECT or size_px is not None
        self._convolution = convolution
        self._weights = weights
        self._pooling = pooling
        self._kernel_order = kernel_order
        self._device = device
        self._shapes = output_shapes(weights.network, size_px, weights.pool_padding) if size_px else {}
        self._segments: list[tuple[str, Any]] = []
        table = layer_table(weights.network)
        # Compiled code has the number of images in it.
        images = None if convolution == DIRECT else 1
        input_shape: tuple[int | None, ...] = (images, *(size_px or (None, None)), 3)
        done = 0
        with tf.device(device):
            for layer in wanted:
                part = table[done : layer.network_index + 1]
                self._segments.append((layer.name, self._compile(part, input_shape)))
                input_shape = (images, *self._shapes.get(layer.name, (None, None, layer.channels)))
                done = layer.network_index + 1

    def __call__(self, images: Any) -> Iterator[tuple[str, Any]]:
        """Gives (name, activations (n, h, w, c) float32 on the device) for each wanted layer, computed when asked for.

        Raises:
            NetworkError: The device is out of memory.
        """
        values = images
        for name, segment in self._segments:
            try:
                with tf.device(self._device):
                    values = segment(values)
            except tf.errors.ResourceExhaustedError as error:
                shape = " x ".join(map(str, values.shape))
                raise NetworkError(
                    f"{name}: the device is out of memory, got an input of {shape} float32. Expected room for it. "
                    "Lower batch_size or data.size, or use runtime.device=cpu."
                ) from error
            yield name, values

    def _compile(self, layers: Sequence[LayerSpec], input_shape: tuple[int | None, ...]) -> Any:
        operations = self._operations(layers)

        def segment(values: tf.Tensor) -> tf.Tensor:
            for operation in operations:
                values = operation(values)
            return values

        # One trace serves every number of images, and at native size every height and width.
        return tf.function(segment, input_signature=[tf.TensorSpec(input_shape, tf.float32)], autograph=False)

    def _operations(self, layers: Sequence[LayerSpec]) -> list[Operation]:
        operations = []
        left = list(layers)
        while left:
            layer = left.pop(0)
            if self._by_winograd(layer):
                # In one pass over memory with the ReLU, where no one asks for what is between them.
                with_relu = bool(left) and left[0].kind == "relu"
                left = left[1:] if with_relu else left
                operations.append(self._winograd_operation(layer, with_relu))
            else:
                operations.append(self._operation(layer))
        return operations

    def _by_winograd(self, layer: LayerSpec) -> bool:
        if self._convolution != WINOGRAD or layer.kind != "conv":
            return False
        assert layer.kernel_shape is not None
        return suits(*self._shapes[layer.name][:2], layer.kernel_shape)

    def _winograd_operation(self, layer: LayerSpec, with_relu: bool) -> Operation:
        kernel = tf.constant(transform_kernel(self._ordered(self._weights.kernels[layer.name])))
        bias = tf.constant(self._weights.biases[layer.name])
        return lambda values: compiled_convolve(values, kernel, bias, with_relu)

    def _operation(self, layer: LayerSpec) -> Operation:
        if layer.kind == "relu":
            return lambda values: tf.nn.relu(values)
        if layer.kind == "softmax":
            return lambda values: tf.nn.softmax(values)
        if layer.kind == "pool":
            return self._pool
        kernel = tf.constant(self._ordered(self._weights.kernels[layer.name]))
        bias = tf.constant(self._weights.biases[layer.name])
        if layer.kind == "fc":
            return lambda values: tf.nn.bias_add(_fully_connected(values, kernel), bias)
        return lambda values: tf.nn.bias_add(tf.nn.conv2d(values, kernel, 1, "SAME"), bias)

    def _pool(self, values: tf.Tensor) -> tf.Tensor:
        # SAME ignores what lies outside the map, in the maximum and in the average: Caffe's and MatConvNet's rule.
        pool = tf.nn.max_pool2d if self._pooling == "max" else tf.nn.avg_pool2d
        return pool(values, POOL_SIDE, POOL_STRIDE, self._weights.pool_padding.upper())

    def _ordered(self, kernel: NDArray[np.float32]) -> NDArray[np.float32]:
        return kernel if self._kernel_order == "hwio" else np.ascontiguousarray(kernel.transpose(1, 0, 2, 3))


def _fully_connected(values: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves without padding; as a matrix product where the kernel covers the map or is one pixel."""
    height, width, inputs, outputs = kernel.shape
    if (height, width) == (1, 1):
        return tf.matmul(values, kernel[0, 0])
    if tuple(values.shape[1:3]) == (height, width):
        flat = tf.reshape(values, [-1, height * width * inputs])
        return tf.reshape(tf.matmul(flat, tf.reshape(kernel, [-1, outputs])), [-1, 1, 1, outputs])
    return tf.nn.conv2d(values, kernel, 1, "VALID")
