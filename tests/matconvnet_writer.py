"""Writes MatConvNet's SimpleNN files in the form of each of their three generations.

Field orders matter: many public readers take fields by position.
Source: print-outs of the published files; vlfeat/matconvnet ``utils/import-caffe.py``, ``utils/tidy_ref_models.m``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from pipeline.network.architectures import layer_table
from pipeline.network.known_weights import Weights
from pipeline.records import LayerSpec

# ``old``: to beta16, as scipy wrote it in 2015; ``new``: from beta17; ``pre11``: before beta11, ``filters`` and ``biases``.
GENERATIONS = ("old", "new", "pre11")

_SIDE_PX = 224


def write_matconvnet(path: Path, weights: Weights, generation: str) -> None:
    """Write weights as a MatConvNet file of one of :data:`GENERATIONS`. Reading it back gives the same arrays, mean and padding.

    The network ends at pool5 where the weights have no classifier. Classes are left without names.
    """
    assert generation in GENERATIONS
    new = generation == "new"
    savemat(path, _root(weights, generation), appendmat=False, oned_as="column" if new else "row", do_compression=new)


def _root(weights: Weights, generation: str) -> dict[str, Any]:
    classifier = "fc8" in weights.kernels
    layers = [layer for layer in layer_table(weights.network) if classifier or layer.network_index <= _last_pool(weights.network)]
    cells = _cell(
        *(_new_layer(layer, weights) if generation == "new" else _old_layer(layer, weights, generation) for layer in layers)
    )
    classes = _struct(name=_cell(), description=_cell())
    if generation == "new":
        normalization = _struct(
            imageSize=_row(_SIDE_PX, _SIDE_PX, 3, 10),
            keepAspect=np.array([[1]], dtype=np.uint8),
            averageImage=weights.mean_pixel.astype(np.float64).reshape(1, 1, 3),
            border=_row(32, 32),
            cropSize=_row(0.875, 0.875),
            interpolation="bilinear",
        )
        inputs = _struct(name="data", size=_row(_SIDE_PX, _SIDE_PX, 3, 10))
        return {"layers": cells, "meta": _struct(inputs=inputs, classes=classes, normalization=normalization)}
    normalization = _struct(
        averageImage=np.broadcast_to(weights.mean_pixel.astype(np.float64), (_SIDE_PX, _SIDE_PX, 3)),
        keepAspect=np.array([[1]], dtype=np.uint8),
        border=_row(0, 0),
        imageSize=_row(_SIDE_PX, _SIDE_PX, 3),
        interpolation="bilinear",
    )
    return {"layers": cells, "classes": classes, "normalization": normalization}


def _last_pool(network: str) -> int:
    return max(layer.network_index for layer in layer_table(network) if layer.kind == "pool")


def _old_layer(layer: LayerSpec, weights: Weights, generation: str) -> NDArray[Any]:
    if layer.kernel_shape is not None:
        pad, kernel, bias = _pad(layer, weights), weights.kernels[layer.name], weights.biases[layer.name].reshape(1, -1)
        if generation == "pre11":
            return _struct(name=layer.name, type="conv", filters=kernel, biases=bias, pad=pad, stride=_row(1, 1))
        return _struct(weights=_cell(kernel, bias), pad=pad, type="conv", name=layer.name, stride=_row(1, 1))
    if layer.kind == "pool":
        return _struct(name=layer.name, stride=_row(2, 2), pad=_pad(layer, weights), type="pool", method="max", pool=_row(2, 2))
    return _struct(type=layer.kind, name=layer.name)


def _new_layer(layer: LayerSpec, weights: Weights) -> NDArray[Any]:
    precious = np.array([[0]], dtype=np.uint8)
    if layer.kernel_shape is not None:
        return _struct(
            name=layer.name,
            type="conv",
            weights=_cell(weights.kernels[layer.name], weights.biases[layer.name].reshape(-1, 1)),
            size=_row(*layer.kernel_shape),
            pad=_pad(layer, weights),
            stride=_row(1, 1),
            precious=precious,
            dilate=_row(1),
            opts=_cell(),
        )
    if layer.kind == "pool":
        return _struct(
            name=layer.name,
            type="pool",
            method="max",
            pool=_row(2, 2),
            stride=_row(2, 2),
            pad=_pad(layer, weights),
            weights=_cell(),
            precious=precious,
            opts=_cell(),
        )
    if layer.kind == "relu":
        return _struct(name=layer.name, type="relu", leak=_row(0), weights=_cell(), precious=precious)
    return _struct(name=layer.name, type=layer.kind, weights=_cell(), precious=precious)


def _pad(layer: LayerSpec, weights: Weights) -> NDArray[np.float64]:
    """Gives ``[top bottom left right]``."""
    if layer.kind == "conv":
        return _row(1, 1, 1, 1)
    return _row(0, 1, 0, 1) if layer.kind == "pool" and weights.pool_padding == "same" else _row(0, 0, 0, 0)


def _struct(**fields: Any) -> NDArray[Any]:
    struct = np.empty((1, 1), dtype=[(name, object) for name in fields])
    for name, value in fields.items():
        struct[name][0, 0] = value
    return struct


def _cell(*items: Any) -> NDArray[Any]:
    # Filled one by one: np.array would merge items of equal shape into one array.
    cell = np.empty((1, len(items)), dtype=object)
    for position, item in enumerate(items):
        cell[0, position] = item
    return cell


def _row(*numbers: float) -> NDArray[np.float64]:
    return np.array([numbers], dtype=np.float64)
