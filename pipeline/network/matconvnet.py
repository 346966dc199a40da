"""Reads MatConvNet's SimpleNN files (``.mat``) of all three generations, by field names, never by position.

Kernels are stored [row, column, channel in, channel out], which is TensorFlow's HWIO, for RGB input; they are used as they are.
Source: print-outs in public readers; vlfeat/matconvnet ``utils/import-caffe.py`` (beta7 to beta25), ``vl_simplenn_tidy.m``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..machine import read_in_child
from .architectures import MEAN_PIXEL_RGB
from .known_weights import Wanted, Weights, WrongFileError

# A mean stored in single precision differs by 4e-6 from the same constant in double.
_SAME_MEAN = 1e-5
# Kind of layer -> fields and the number that all of their values are, which files may leave out. Another dilation or stride is
# another network, whose kernels may have the same shapes.
_FIELDS = {
    "conv": {"pad": 1, "stride": 1, "dilate": 1},
    "fc": {"pad": 0, "stride": 1, "dilate": 1},
    "pool": {"pool": 2, "stride": 2},
}
# ``[top bottom left right]`` of a pooling layer -> how odd sides are rounded, up or down. MATLAB has one number for equal ones.
_ROUNDING = {(0, 1, 0, 1): "same", (0, 0, 0, 0): "valid", (0,): "valid"}


def read_matconvnet(path: Path, wanted: Wanted) -> Weights:
    """Read the wanted layers of a MATLAB 5 file, compressed or not.

    In another process: SciPy 1.17 crashes on types that the format does not have, so on the zeros of a download that was cut off
    after its file was allocated; and it reads the whole file, of which the classifier is most.

    Raises:
        WrongFileError: The file is of another kind or network, lacks a layer, or is found to be damaged.
        Exception: Of any type, by what the damage leads to.
    """
    return read_in_child(_read, path, wanted)


def _read(path: Path, wanted: Wanted) -> Weights:
    # Late: the process that waits does without.
    from scipy.io import loadmat

    # Structs are dictionaries, a cell array of structs is a list, and axes of length one are gone.
    data = loadmat(path, simplify_cells=True)
    layers = _layers(data)
    pools = {name: layer for name, layer in layers.items() if layer.get("type") == "pool"}
    found = [name for name, layer in layers.items() if layer.get("type") == "conv"]
    kernels, biases = wanted.take(found, lambda name: _parameters(layers[name]))
    for name in [*wanted.shapes, *pools]:
        kind = "pool" if name in pools else name.rstrip("0123456789_")
        for field, expected in _FIELDS[kind].items():
            stored = np.ravel(layers[name].get(field, expected))
            if (stored != expected).any():
                raise WrongFileError(f"has another {field} in {name} (expected {expected})", str(stored[:9].tolist()))
    pads = {tuple(np.ravel(layer.get("pad", 0)).tolist()) for layer in pools.values()}
    paddings = {_ROUNDING.get(pad, "") for pad in pads} or {"same"}
    if len(paddings) > 1 or "" in paddings:
        raise WrongFileError("has other pads in its pooling layers (expected [0 1 0 1] or zeros in all)", str(sorted(pads)[:9]))
    return Weights(wanted.network, kernels, biases, _mean_pixel(data), paddings.pop(), "MatConvNet")


def _layers(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the layers by their names."""
    layers, is_graph = data.get("layers"), data.keys() >= {"layers", "params", "vars"}
    if is_graph or not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        simple = "is a MATLAB file, but no MatConvNet network with structs in a cell array 'layers'"
        what = "is a DagNN file (a network as a graph), which is not read" if is_graph else simple
        raise WrongFileError(what, f"the variables {', '.join(name for name in data if not name.startswith('__')) or '(none)'}")
    return {str(layer.get("name")): layer for layer in layers}


def _parameters(layer: dict[str, Any]) -> Any:
    """Return kernel and bias."""
    # The second: the generation before beta11.
    return layer["weights"] if "weights" in layer else (layer["filters"], layer["biases"])


def _mean_pixel(data: dict[str, Any]) -> NDArray[np.float64]:
    """Return the mean colour, R, G, B: as stored, or averaged over the positions of a mean image."""
    known = np.array(MEAN_PIXEL_RGB, dtype=np.float64)
    # Up to beta16 there is no ``meta``.
    image = np.asarray(data.get("meta", data).get("normalization", {}).get("averageImage", ()), np.float64)
    if not image.size:
        return known
    mean = image.reshape(-1, image.shape[-1]).mean(axis=0)
    if mean.shape != (3,) or not ((mean >= 0) & (mean <= 255)).all():
        raise WrongFileError("has an average image that is not RGB in 0..255", f"{image.shape}, {mean[:4]}")
    return known if np.allclose(mean, known, rtol=0, atol=_SAME_MEAN) else mean
