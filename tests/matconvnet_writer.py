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
_FLAG = np.array([[0]], np.uint8)


def write_matconvnet(path: Path, weights: Weights, generation: str) -> None:
    """Write weights as a MatConvNet file of one of :data:`GENERATIONS`. Reading it back gives the same arrays, mean and padding.

    The network ends at pool5 where the weights have no classifier. Classes are left without names.
    """
    new, table = generation == "new", layer_table(weights.network)
    last = table[-1] if "fc8" in weights.kernels else next(layer for layer in table if layer.name == "pool5")
    layers = _cell(*(_layer(layer, weights, generation) for layer in table[: last.network_index + 1]))
    mean, classes = weights.mean_pixel.astype(np.float64), {"name": _cell(), "description": _cell()}
    # A dictionary becomes a struct.
    normalization: dict[str, Any] = {"averageImage": np.broadcast_to(mean, (224, 224, 3)), "keepAspect": _FLAG + 1}
    normalization |= {"border": _row(0, 0), "imageSize": _row(224, 224, 3), "interpolation": "bilinear"}
    root = {"layers": layers, "classes": classes, "normalization": normalization}
    if new:
        normalization = {"imageSize": _row(224, 224, 3, 10), "keepAspect": _FLAG + 1, "averageImage": mean.reshape(1, 1, 3)}
        normalization |= {"border": _row(32, 32), "cropSize": _row(0.875, 0.875), "interpolation": "bilinear"}
        inputs = {"name": "data", "size": _row(224, 224, 3, 10)}
        root = {"layers": layers, "meta": {"inputs": inputs, "classes": classes, "normalization": normalization}}
    savemat(path, root, appendmat=False, oned_as="column" if new else "row", do_compression=new)


def _layer(layer: LayerSpec, weights: Weights, generation: str) -> dict[str, Any]:
    name, new = layer.name, generation == "new"
    # [top bottom left right]
    pad = _row(1, 1, 1, 1) if layer.kind == "conv" else _row(0, 0, 0, 0)
    if layer.kernel_shape is not None:
        kernel, bias = weights.kernels[name], weights.biases[name].reshape((-1, 1) if new else (1, -1))
        if generation == "pre11":
            return {"name": name, "type": "conv", "filters": kernel, "biases": bias, "pad": pad, "stride": _row(1, 1)}
        both = _cell(kernel, bias)
        if not new:
            return {"weights": both, "pad": pad, "type": "conv", "name": name, "stride": _row(1, 1)}
        sides = {"size": _row(*layer.kernel_shape), "pad": pad, "stride": _row(1, 1)}
        return {"name": name, "type": "conv", "weights": both, **sides, "precious": _FLAG, "dilate": _row(1), "opts": _cell()}
    if layer.kind == "pool":
        pad = _row(0, 1, 0, 1) if weights.pool_padding == "same" else pad
        if not new:
            return {"name": name, "stride": _row(2, 2), "pad": pad, "type": "pool", "method": "max", "pool": _row(2, 2)}
        sides = {"method": "max", "pool": _row(2, 2), "stride": _row(2, 2), "pad": pad}
        return {"name": name, "type": "pool", **sides, "weights": _cell(), "precious": _FLAG, "opts": _cell()}
    if not new:
        return {"type": layer.kind, "name": name}
    leak = {"leak": _row(0)} if layer.kind == "relu" else {}
    return {"name": name, "type": layer.kind, **leak, "weights": _cell(), "precious": _FLAG}


def _cell(*items: Any) -> NDArray[Any]:
    # Filled one by one: np.array would merge items of equal shape into one array.
    cell = np.empty((1, len(items)), dtype=object)
    for position, item in enumerate(items):
        cell[0, position] = item
    return cell


def _row(*numbers: float) -> NDArray[np.float64]:
    return np.array([numbers], dtype=np.float64)
