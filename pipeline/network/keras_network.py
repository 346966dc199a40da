"""A network of Keras on the device: one graph that gives all wanted layers at once. Keras drops what they do not need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ..errors import WeightsError
from ..records import FeatureSpec, Transform
from .device import HOST, memory_errors
from .device_reductions import on_device
from .keras_models import REMEDY, KerasWeights, graph_of, in_fresh_thread
from .reductions import prepare


def build_network(
    weights: KerasWeights,
    wanted: Sequence[FeatureSpec],
    *,
    device: str,
    size_px: tuple[int, int],
    dtype: str,
    first: Any,
    transforms: Mapping[str, Transform],
) -> Callable[..., Iterator[tuple[str, Any]]]:
    """Return a function that gives the activations of some layers, as :class:`.vgg.Network`, which has these arguments too."""
    names = list(dict.fromkeys(feature.layer.name for feature in wanted))
    tapped, constants = in_fresh_thread(
        lambda: _build(weights, names, size_px),
        lambda words: WeightsError(f"network.model: cannot be built, got: {words}. Expected a graph of Keras'. {REMEDY}"),
    )
    places = [names.index(feature.layer.name) for feature in wanted]
    reducers = [
        prepare(feature, tuple(tapped.outputs[place].shape)[1:], on_device, transforms)
        for feature, place in zip(wanted, places, strict=True)
    ]

    def compute(*inputs: tf.Tensor) -> Any:
        images = first.python_function(*inputs)
        images = images[..., ::-1] if weights.is_bgr else images
        # Constants let TensorFlow fold the normalisations, and a GPU compute bias and activation with the convolution.
        trainable, fixed = (
            [tf.constant(constants[id(variable)]) for variable in variables]
            for variables in (tapped.trainable_variables, tapped.non_trainable_variables)
        )
        found, _ = tapped.stateless_call(trainable, fixed, images, training=False)
        found = tf.nest.flatten(found)  # of one output Keras makes no list
        given = [
            tf.cast(reducer(tf.cast(found[place], tf.float32)), dtype) for place, reducer in zip(places, reducers, strict=True)
        ]
        # As of the VGG networks: through memory that is pinned.
        with tf.device(HOST):
            return [tf.identity(values) for values in given]

    function = tf.function(compute, input_signature=first.input_signature, autograph=False)

    def layers_of(*inputs: Any) -> Iterator[tuple[str, Any]]:
        with memory_errors(wanted[-1].layer.name, inputs), tf.device(device):
            found = function(*inputs)
        return zip((feature.name for feature in wanted), found, strict=True)

    return layers_of


def _build(weights: KerasWeights, names: Sequence[str], size_px: tuple[int, int]) -> tuple[Any, dict[int, Any]]:
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
