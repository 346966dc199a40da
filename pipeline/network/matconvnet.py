"""Reads MatConvNet's SimpleNN files (``.mat``) of all three generations, by field names, never by position.

Kernels are stored [row, column, channel in, channel out], which is TensorFlow's HWIO, for RGB input; they are used as they are.
Source: print-outs in public readers; vlfeat/matconvnet ``utils/import-caffe.py`` (beta7 to beta25), ``vl_simplenn_tidy.m``.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layers import MEAN_PIXEL_RGB
from .mat_outline import OutlineError, variable_names
from .stored import StoredWeights, Wanted

Struct = np.void

# VGG-Face has VGG-16's layers, but tells 2,622 persons apart. Source: Parkhi et al., "Deep Face Recognition", BMVC 2015.
_FACES = 2622
# Pads and strides have at most four numbers, published mean images 150,528: more would only take memory.
_MOST_NUMBERS = 16
_LARGEST_MEAN_IMAGE = 16_000_000
# A mean stored in single precision differs by 4e-6 from the same constant in double.
_SAME_MEAN = 1e-5


def read_matconvnet(path: Path, wanted: Wanted) -> StoredWeights:
    """Reads the wanted layers of a MatConvNet file.

    Args:
        path: A MATLAB 5 file, compressed or not.
        wanted: Which layers, of which shapes. Other layers are not looked at; SciPy still reads them.

    Raises:
        WeightsError: The file is damaged, of another kind or network, or lacks a layer.
    """
    data = _load(path, wanted)
    structs = _structs(path, wanted, data["layers"])
    layers: dict[str, Struct] = {}
    for struct in structs:
        name = _text(struct, "name")
        if name in layers:
            raise wanted.refusal(path, "is damaged: two layers of the same name", name)
        layers[name] = struct
    kinds = [_text(struct, "type") for struct in structs]
    with_kernels = {name: layer for name, layer in layers.items() if _text(layer, "type") == "conv"}
    if "lrn" in kinds or "normalize" in kinds:
        raise wanted.refusal(
            path, "is a VGG-F, VGG-M, VGG-S or AlexNet file", f"normalisation layers, {len(with_kernels)} layers with kernels"
        )
    wanted.check_names(path, set(with_kernels))
    if "fc8" in layers and _parameters(layers["fc8"])[1].size == _FACES:
        raise wanted.refusal(path, "is a VGG-Face file", f"{_FACES} classes in fc8")
    kernels, biases = {}, {}
    for name in wanted.shapes:
        _check_convolution(path, wanted, name, layers[name])
        kernel, bias = _parameters(layers[name])
        # MATLAB drops trailing axes of length one when it saves.
        kernel = kernel.reshape(kernel.shape + (1,) * (4 - kernel.ndim))
        wanted.check_shape(path, name, kernel.shape, bias.size)
        for values in (kernel, bias):
            if values.dtype.kind != "f":
                raise wanted.refusal(path, f"has no floating-point values in {name}", str(values.dtype))
        kernels[name] = wanted.accept(path, name, kernel)
        biases[name] = wanted.accept(path, name, bias.reshape(-1))
    pools = {name: layer for name, layer in layers.items() if _text(layer, "type") == "pool"}
    return StoredWeights(
        kernels, biases, _mean_pixel(path, wanted, data), _pool_padding(path, wanted, pools), _generation(data, layers)
    )


def _load(path: Path, wanted: Wanted) -> dict[str, Any]:
    try:
        names = variable_names(path)
    except OutlineError as error:
        raise wanted.refusal(path, error.args[0], error.args[1]) from error
    except OSError as error:
        raise wanted.refusal(path, "cannot be read", str(error)) from error
    found = f"the variables {', '.join(names) or '(none)'}"
    if "params" in names or "vars" in names:
        raise wanted.refusal(path, "is a DagNN file (a network as a graph), which is not read", found)
    if "net" in names and "layers" not in names:
        raise wanted.refusal(path, "has all under one variable 'net', as the original VGG-Face package, which is not read", found)
    if "layers" not in names:
        raise wanted.refusal(path, "is a MATLAB file, but no MatConvNet network", found)
    # Late: SciPy takes longer to import than most weights take to load from the cache.
    from scipy.io import loadmat

    wanted_names = [name for name in ("layers", "meta", "normalization") if name in names]
    try:
        with warnings.catch_warnings():
            # SciPy warns of doubled variables and of unreadable ones, and goes on.
            warnings.simplefilter("error")
            data: dict[str, Any] = loadmat(path, variable_names=wanted_names, appendmat=False)
    except Exception as error:  # SciPy documents none, and raises what the damage leads to.
        raise wanted.refusal(path, "is damaged: SciPy cannot read it", f"{type(error).__name__}: {error}") from error
    return data


def _structs(path: Path, wanted: Wanted, layers: NDArray[Any]) -> list[Struct]:
    if layers.dtype.names is not None:
        raise wanted.refusal(path, "is a DagNN file (a network as a graph), which is not read", "layers as a struct array")
    structs = []
    for cell in layers.ravel():
        if not isinstance(cell, np.ndarray) or cell.dtype.names is None or cell.size != 1:
            raise wanted.refusal(path, "is no MatConvNet network: an entry of 'layers' is not one struct", type(cell).__name__)
        structs.append(cell.reshape(-1)[0])
    return structs


def _field(struct: Struct, name: str) -> NDArray[Any] | None:
    return np.asarray(struct[name]) if name in (struct.dtype.names or ()) else None


def _text(struct: Struct, name: str) -> str:
    value = _field(struct, name)
    return "" if value is None or value.size == 0 else str(value.reshape(-1)[0])


def _numbers(struct: Struct, name: str) -> list[float] | None:
    value = _field(struct, name)
    if value is None or value.dtype.kind not in "fiu":
        return None
    return [float(number) for number in value.reshape(-1)[:_MOST_NUMBERS]]


def _parameters(struct: Struct) -> tuple[NDArray[Any], NDArray[Any]]:
    """Gives kernel and bias; empty arrays where the struct has none."""
    weights = _field(struct, "weights")
    if weights is not None and weights.size == 2 and weights.dtype == object:
        kernel, bias = weights.reshape(-1)
        return np.asarray(kernel), np.asarray(bias)
    # Generation before beta11.
    kernel, bias = _field(struct, "filters"), _field(struct, "biases")
    empty = np.empty(0)
    return (empty if kernel is None else kernel), (empty if bias is None else bias)


def _check_convolution(path: Path, wanted: Wanted, name: str, struct: Struct) -> None:
    """Makes sure that the layer does what this program's layer of that name does. MATLAB writes one number for equal ones."""
    rules = {"pad": 1.0 if name.startswith("conv") else 0.0, "stride": 1.0, "dilate": 1.0}
    for field, expected in rules.items():
        numbers = _numbers(struct, field)
        if numbers and any(number != expected for number in numbers):
            raise wanted.refusal(path, f"has another {field} in {name} (expected {expected:g})", str(numbers))


def _pool_padding(path: Path, wanted: Wanted, pools: dict[str, Struct]) -> str:
    """Gives how an odd side is rounded: ``[top bottom left right]`` of 0 1 0 1 means up, of zeros down."""
    found = set()
    for name, struct in pools.items():
        pad = _numbers(struct, "pad") or [0.0]
        for field in ("pool", "stride"):
            numbers = _numbers(struct, field)
            if numbers and any(number != 2.0 for number in numbers):
                raise wanted.refusal(path, f"has another {field} in {name} (expected 2)", str(numbers))
        if pad == [0.0, 1.0, 0.0, 1.0]:
            found.add("same")
        elif any(pad):
            raise wanted.refusal(path, f"has another pad in {name} (expected [0 1 0 1] or [0 0 0 0])", str(pad))
        else:
            found.add("valid")
    if len(found) > 1:
        raise wanted.refusal(path, "pads some pooling layers and not others", ", ".join(sorted(pools)))
    return found.pop() if found else "same"


def _mean_pixel(path: Path, wanted: Wanted, data: dict[str, Any]) -> NDArray[np.float64]:
    """Gives the mean colour, R, G, B: as stored, or averaged over the positions of a mean image."""
    known = np.array(MEAN_PIXEL_RGB, dtype=np.float64)
    root: NDArray[Any] | None = data.get("normalization")
    try:
        if root is None and "meta" in data:
            root = _field(data["meta"].reshape(-1)[0], "normalization")
        image = None if root is None else _field(root.reshape(-1)[0], "averageImage")
        if image is None or image.size == 0:
            return known
        if image.size > _LARGEST_MEAN_IMAGE:
            raise wanted.refusal(path, f"has an average image of more than {_LARGEST_MEAN_IMAGE:,} numbers", str(image.shape))
        # A column of three, (3, 1), is a colour too.
        colours = np.asarray(image, dtype=np.float64).reshape(-1, image.size if image.size == 3 else image.shape[-1])
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise wanted.refusal(path, "has a normalisation that cannot be read", str(error)) from error
    if colours.shape[1] != 3:
        raise wanted.refusal(path, "has an average image that is not RGB", str(image.shape))
    # The mean of equal numbers need not be that number in floating point.
    mean = colours[0] if (colours == colours[0]).all() else colours.mean(axis=0)
    if not (np.isfinite(mean).all() and (mean >= 0).all() and (mean <= 255).all()):
        raise wanted.refusal(path, "has an average image outside 0..255", str(mean))
    return known if np.allclose(mean, known, rtol=0, atol=_SAME_MEAN) else np.array(mean)


def _generation(data: dict[str, Any], layers: dict[str, Struct]) -> str:
    if any("filters" in (struct.dtype.names or ()) for struct in layers.values()):
        return "MatConvNet before beta11"
    return "MatConvNet to beta16" if "normalization" in data else "MatConvNet from beta17"
