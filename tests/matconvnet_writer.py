"""Writes MatConvNet's SimpleNN files in the form of each of their three generations, with the fields that are read.

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


def write_matconvnet(path: Path, weights: Weights, generation: str = "new") -> None:
    """Write weights as a MatConvNet file. Reading it back gives the same arrays, mean and padding.

    ``generation``: ``old``: to beta16, as scipy wrote it in 2015; ``new``: from beta17; ``pre11``: before beta11, ``filters`` and
    ``biases``. The network ends at pool5 where the weights have no classifier.
    """
    new, table = generation == "new", layer_table(weights.network)
    last = table[-1] if "fc8" in weights.kernels else next(layer for layer in table if layer.name == "pool5")
    layers = _cell(*(_layer(layer, weights, generation) for layer in table[: last.network_index + 1]))
    # A dictionary becomes a struct.
    mean = weights.mean_pixel.astype(np.float64).reshape(1, 1, 3)
    normalization = {"averageImage": mean if new else np.broadcast_to(mean, (224, 224, 3)), "interpolation": "bilinear"}
    of_input: Any = {"meta": {"normalization": normalization}} if new else {"normalization": normalization}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"layers": layers, **of_input}, appendmat=False, oned_as="column" if new else "row", do_compression=new)


def _layer(layer: LayerSpec, weights: Weights, generation: str) -> dict[str, Any]:
    name, new = layer.name, generation == "new"
    # [top bottom left right]
    pad = _row(1, 1, 1, 1) if layer.kind == "conv" else _row(0, 0, 0, 0)
    if layer.kernel_shape is not None:
        kernel, bias = weights.kernels[name], weights.biases[name].reshape((-1, 1) if new else (1, -1))
        both = {"filters": kernel, "biases": bias} if generation == "pre11" else {"weights": _cell(kernel, bias)}
        dilate = {"dilate": _row(1)} if new else {}
        return {"name": name, "type": "conv", **both, "pad": pad, "stride": _row(1, 1), **dilate}
    if layer.kind == "pool":
        pad = _row(0, 1, 0, 1) if weights.pool_padding == "same" else pad
        return {"name": name, "type": "pool", "method": "max", "pool": _row(2, 2), "stride": _row(2, 2), "pad": pad}
    return {"name": name, "type": layer.kind, "weights": _cell()}


def _cell(*items: Any) -> NDArray[Any]:
    # Filled one by one: np.array would merge items of equal shape into one array.
    cell = np.empty((1, len(items)), dtype=object)
    for position, item in enumerate(items):
        cell[0, position] = item
    return cell


def _row(*numbers: float) -> NDArray[np.float64]:
    return np.array([numbers], dtype=np.float64)
