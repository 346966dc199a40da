"""A network of Keras on the device: one graph that gives all wanted layers at once. Keras drops what they do not need."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..errors import ImageError, WeightsError
from ..records import FeatureSpec, Transform
from . import host_reductions
from .device import HOST, LARGEST_CHANNELS, memory_errors, refuse_too_large
from .device_reductions import on_device
from .keras_models import COLOURS, REMEDY, KerasWeights, graph_of, in_fresh_thread
from .reductions import prepare


class KerasNetwork:
    """A network of Keras that gives the activations of some of its layers; see :class:`.vgg.Network`.

    Args:
        weights: Graph and variables.
        wanted: What to give of which layers.
        device: TensorFlow's name of the device.
        size_px: (height, width) of all inputs; None where they differ.
        dtype: Of the values that are given, ``float32`` or ``float16``.
        first: What is done before the first layer: resize, mean, scale.
        threads: That reduce on the CPU, at native size.
        transforms: Of reductions that are fitted, as of :class:`~pipeline.records.RunSpec`.
    """

    def __init__(
        self,
        weights: KerasWeights,
        wanted: Sequence[FeatureSpec],
        *,
        device: str,
        size_px: tuple[int, int] | None,
        dtype: str,
        first: Any,
        threads: int,
        transforms: Mapping[str, Transform],
    ) -> None:
        self._wanted, self._device, self._is_native = wanted, device, size_px is None
        self._reducing = ThreadPoolExecutor(threads, "reduce")
        names = list(dict.fromkeys(feature.layer.name for feature in wanted))
        self._tapped, constants = in_fresh_thread(
            lambda: _build(weights, names, size_px or (None, None)),
            lambda words: WeightsError(f"network.model: cannot be built, got: {words}. Expected a graph of Keras'. {REMEDY}"),
        )
        outputs: list[tuple[int, Any]] = []
        self._on_host = []
        for feature in wanted:
            place, operation, reducer = names.index(feature.layer.name), tf.identity, None
            shape = tuple(self._tapped.outputs[place].shape)[1:]
            if not self._is_native:
                operation = prepare(feature, shape, on_device, transforms)
            elif feature.reductions:
                # Every image has another shape there: a reduction on the device would be traced for each.
                reducer = prepare(feature, None if len(shape) == 3 else shape, host_reductions.on_host, transforms)
            outputs.append((place, operation))
            self._on_host.append(reducer)

        @functools.lru_cache(4096)
        def refuses(height: int, width: int) -> bool:
            try:
                found = self._tapped.compute_output_shape((1, height, width, COLOURS))
            except Exception:  # of any type, as the layer likes
                return True
            return any(0 in shape for shape in found)

        self._refuses = refuses

        def compute(*inputs: tf.Tensor) -> Any:
            images = first.function(*inputs)
            images = images[..., ::-1] if weights.is_bgr else images
            # Constants let TensorFlow fold the normalisations, and a GPU compute bias and activation with the convolution.
            trainable, fixed = (
                [tf.constant(constants[id(variable)]) for variable in variables]
                for variables in (self._tapped.trainable_variables, self._tapped.non_trainable_variables)
            )
            found, _ = self._tapped.stateless_call(trainable, fixed, images, training=False)
            found = tf.nest.flatten(found)  # of one output Keras makes no list
            given = [tf.cast(reducer(tf.cast(found[place], tf.float32)), dtype) for place, reducer in outputs]
            # As of the VGG networks: through memory that is pinned.
            with tf.device(HOST):
                return [tf.identity(values) for values in given]

        self._function = tf.function(compute, input_signature=first.signature, autograph=False)

    def __call__(self, *inputs: Any) -> Iterator[tuple[str, Any]]:
        """Return (name, values (n, h, w, c) or (n, d) in the dtype) of each wanted feature, in the host's memory.

        Raises:
            DeviceMemoryError: The device is out of memory, in upload, resize, network or download.
        """
        with memory_errors(self._wanted[-1].layer.name, inputs), tf.device(self._device):
            found = self._function(*inputs)
        for feature, values, reducer in zip(self._wanted, found, self._on_host, strict=True):
            if reducer:
                values = host_reductions.reduce_rows(reducer, np.asarray(values), self._reducing)
            yield feature.name, values

    def check_native_size(self, pixels: NDArray[np.uint8], memory_bytes: int) -> NDArray[np.uint8]:
        """Return an image, (h, w, 3) uint8, that the network can take at its own size.

        Raises:
            ImageError: It is too small for a layer, or would not fit into memory.
        """
        height, width = pixels.shape[:2]
        if self._refuses(height, width):
            raise ImageError(f"too small: {height} x {width} px, for layers of the network")
        refuse_too_large(height, width, height * width * LARGEST_CHANNELS, memory_bytes)
        return pixels


def _build(weights: KerasWeights, names: Sequence[str], size_px: tuple[int | None, int | None]) -> tuple[Any, dict[int, Any]]:
    """Return a ``keras.Model`` with these layers as outputs, and the values of its variables by ``id``."""
    import keras

    with tf.device(HOST):
        graph = graph_of(weights.graph, size_px)
        graph.set_weights([values for _, values in weights.arrays])
        _finish(graph)
        tapped = keras.Model(graph.inputs, [graph.get_layer(name).output for name in names])
        return tapped, {id(variable): np.asarray(variable) for variable in tapped.variables}


def _finish(layer: Any) -> None:
    """Have layers take over what they compute of their variables once: ``Normalization`` does so when it is loaded."""
    if hasattr(layer, "finalize_state"):
        layer.finalize_state()
    for inner in getattr(layer, "layers", ()):
        _finish(inner)
