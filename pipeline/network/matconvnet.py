"""Reads MatConvNet's SimpleNN files (``.mat``) of all three generations, by field names, never by position.

Kernels are stored [row, column, channel in, channel out], which is TensorFlow's HWIO, for RGB input; they are used as they are.
Source: print-outs in public readers; vlfeat/matconvnet ``utils/import-caffe.py`` (beta7 to beta25), ``vl_simplenn_tidy.m``.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from .architectures import MEAN_PIXEL_RGB
from .known_weights import Wanted, Weights, WrongFileError

Struct = np.void

# VGG-Face has VGG-16's layers, but tells 2,622 persons apart. Source: Parkhi et al., "Deep Face Recognition", BMVC 2015.
_FACES = 2622
# A mean stored in single precision differs by 4e-6 from the same constant in double.
_SAME_MEAN = 1e-5
# A full VGG with its average image has 575.9 MB; twice that, and some, is enough for files saved in double precision.
_LARGEST_BYTES = 1_500_000_000

_HEADER_BYTES = 128
# Source: MAT-File Format (MathWorks), tables 1-1 (data types) and 1-3 (array types).
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_NUMBERS = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 12, 13))
_TEXTS = _NUMBERS | {16, 17, 18}
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBER_CLASSES = range(6, 16)
_COMPLEX = 0x0800
# Blank text may be stored without data.
_BLANKS = 4096


def read_matconvnet(path: Path, wanted: Wanted) -> Weights:
    """Read the wanted layers of a MatConvNet file.

    Args:
        path: A MATLAB 5 file, compressed or not.
        wanted: Which layers, of which shapes. Other layers are not looked at; SciPy still reads them.

    Raises:
        WrongFileError: The file is of another kind or network, lacks a layer, or is found to be damaged.
        Exception: Of any type, as SciPy raises what the damage leads to.
    """
    data = read_variables(path)
    layers = _layers(data)
    wanted.check_names({name for name, layer in layers.items() if _text(layer, "type") == "conv"})
    if "fc8" in layers and _parameters(layers["fc8"])[1].size == _FACES:
        raise WrongFileError("is a VGG-Face file", f"{_FACES} classes in fc8")
    kernels, biases = {}, {}
    for name in wanted.shapes:
        # MATLAB writes one number for equal ones.
        for field, expected in (("pad", 1.0 if name.startswith("conv") else 0.0), ("stride", 1.0), ("dilate", 1.0)):
            _check_numbers(layers[name], name, field, expected)
        kernels[name], biases[name] = wanted.accept(name, *_parameters(layers[name]))
    before_beta11 = any("filters" in (layer.dtype.names or ()) for layer in layers.values())
    generation = "before beta11" if before_beta11 else "to beta16" if "normalization" in data else "from beta17"
    return Weights(wanted.network, kernels, biases, _mean_pixel(data), _pool_padding(layers), f"MatConvNet {generation}")


def _layers(data: dict[str, Any]) -> dict[str, Struct]:
    found = f"the variables {', '.join(data) or '(none)'}"
    if {"layers", "params", "vars"} <= set(data) or ("layers" in data and data["layers"].dtype.names is not None):
        raise WrongFileError("is a DagNN file (a network as a graph), which is not read", found)
    if "layers" not in data:
        raise WrongFileError("is a MATLAB file, but no MatConvNet network with a variable 'layers'", found)
    layers: dict[str, Struct] = {}
    for cell in data["layers"].ravel():
        if not isinstance(cell, np.ndarray) or cell.dtype.names is None or cell.size != 1:
            raise WrongFileError("is no MatConvNet network: an entry of 'layers' is not one struct", type(cell).__name__)
        layer = cell.reshape(-1)[0]
        name = _text(layer, "name")
        if name in layers:
            raise WrongFileError("is damaged: two layers of the same name", name)
        layers[name] = layer
    return layers


def _field(layer: Struct, name: str) -> NDArray[Any]:
    """Return a field's values, an empty array where there is no such field."""
    return np.asarray(layer[name]) if name in (layer.dtype.names or ()) else np.empty(0)


def _text(layer: Struct, name: str) -> str:
    value = _field(layer, name)
    return str(value.reshape(-1)[0]) if value.size else ""


def _check_numbers(layer: Struct, name: str, field: str, expected: float) -> None:
    """Check that the layer does what this program's layer of that name does."""
    values = _field(layer, field)
    if values.dtype.kind in "fiu" and (values != expected).any():
        got = values.reshape(-1).astype(float).tolist()
        raise WrongFileError(f"has another {field} in {name} (expected {expected:g})", str(got[:16]))


def _parameters(layer: Struct) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return kernel and bias; empty arrays where the struct has none."""
    weights = _field(layer, "weights")
    if weights.size == 2 and weights.dtype == object:
        kernel, bias = weights.reshape(-1)
        return np.asarray(kernel), np.asarray(bias)
    # Generation before beta11.
    return _field(layer, "filters"), _field(layer, "biases")


def _pool_padding(layers: dict[str, Struct]) -> str:
    """Return how an odd side is rounded: ``[top bottom left right]`` of 0 1 0 1 means up, of zeros down."""
    found: set[str] = set()
    for name, layer in layers.items():
        if _text(layer, "type") == "pool":
            for field in ("pool", "stride"):
                _check_numbers(layer, name, field, 2.0)
            pad = _field(layer, "pad").reshape(-1).tolist()
            if pad != [0, 1, 0, 1] and any(pad):
                raise WrongFileError(f"has another pad in {name} (expected [0 1 0 1] or [0 0 0 0])", str(pad[:16]))
            found.add("same" if any(pad) else "valid")
    if len(found) > 1:
        raise WrongFileError("pads some pooling layers and not others", "pads of both kinds")
    return found.pop() if found else "same"


def _mean_pixel(data: dict[str, Any]) -> NDArray[np.float64]:
    """Return the mean colour, R, G, B: as stored, or averaged over the positions of a mean image."""
    known = np.array(MEAN_PIXEL_RGB, dtype=np.float64)
    try:
        root = data["normalization"] if "normalization" in data else _field(data["meta"].reshape(-1)[0], "normalization")
        image = _field(root.reshape(-1)[0], "averageImage").astype(np.float64)
        if not image.size:
            return known
        # A column of three, (3, 1), is a colour too.
        colours = image.reshape(-1, 3 if image.size == 3 else image.shape[-1])
    except KeyError:  # Neither is there.
        return known
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise WrongFileError("has a normalisation that cannot be read", str(error)) from error
    # The mean of equal numbers need not be that number in floating point.
    mean = colours[0] if (colours == colours[0]).all() else colours.mean(axis=0)
    if mean.shape != (3,) or not ((mean >= 0) & (mean <= 255)).all():
        raise WrongFileError("has an average image that is not RGB in 0..255", f"{image.shape}, {mean[:4]}")
    return known if np.allclose(mean, known, rtol=0, atol=_SAME_MEAN) else np.array(mean)


def read_variables(path: Path) -> dict[str, Any]:
    """Return name -> value of all variables, as SciPy reads them once the file is found whole.

    Raises:
        WrongFileError: The file is truncated, damaged or too large.
    """
    # Late: random weights, and those of Keras, are loaded without it.
    from scipy.io import loadmat

    content = _unpacked(path)
    with warnings.catch_warnings():
        # SciPy warns of doubled variables and of unreadable ones, and goes on.
        warnings.simplefilter("error")
        found = loadmat(content)
    return {name: value for name, value in found.items() if not name.startswith("__")}


def _unpacked(path: Path) -> io.BytesIO:
    """Return the file without compression, every type being one of the format's and every size bounded by what contains it."""
    # SciPy 1.17 crashes on types that the format does not have, so on the zeros of a download that was allocated and not
    # finished, and allocates whatever sizes are declared. All of it has to be looked at: isal unpacks it once, faster than zlib.
    size = path.stat().st_size
    if size > _LARGEST_BYTES:
        raise WrongFileError(f"is too large for a weights file (limit {_LARGEST_BYTES:,} bytes)", f"{size:,} bytes")
    content = memoryview(path.read_bytes())
    order = "<" if bytes(content[126:128]) == b"IM" else ">"
    whole = io.BytesIO()
    whole.write(content[:_HEADER_BYTES])
    for kind, element in _elements(content[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            inflate = isal_zlib.decompressobj()
            unpacked = memoryview(inflate.decompress(element, _LARGEST_BYTES))
            if not inflate.eof:
                raise WrongFileError("is damaged: compressed data end early or do not end", f"{len(unpacked):,} bytes")
            kind, element = next(_elements(unpacked, order))
        if kind != _MATRIX:
            raise WrongFileError("is damaged: expected an array", f"data type {kind}")
        _check_array(element, order)
        whole.write(struct.pack(f"{order}II", kind, len(element)))
        whole.write(element)
    whole.seek(0)
    return whole


def _check_array(content: memoryview, order: str) -> None:
    """Check one array and those inside it. SciPy reads on behind an array that has too few elements, so they are counted."""
    if not content:
        return
    kinds, parts = zip(*_elements(content, order), strict=True)
    if kinds[:3] != (_UINT32, _INT32, _INT8) or len(parts[0]) != 8:
        raise WrongFileError("is damaged: an array does not begin as one", f"data types {kinds[:3]}")
    flags = struct.unpack_from(f"{order}I", parts[0])[0]
    array_class = flags & 0xFF
    sides = struct.unpack(f"{order}{len(parts[1]) // 4}i", parts[1])
    count, first = math.prod(sides), 3
    if array_class in (_CELL, _STRUCT):
        if array_class == _STRUCT:
            width = struct.unpack(f"{order}i", parts[3])[0]
            count, first = count * (len(parts[4]) // max(width, 1)), 5
        allowed, expected = frozenset((_MATRIX,)), count
        for part in parts[first:]:
            _check_array(part, order)
    elif array_class == _CHAR or array_class in _NUMBER_CLASSES:
        _check_fits(count, max(sum(map(len, parts[3:])), _BLANKS if array_class == _CHAR else 0))
        allowed, expected = _TEXTS if array_class == _CHAR else _NUMBERS, 2 if flags & _COMPLEX else 1
    else:
        raise WrongFileError("has a sparse array, an object or a function, as no weights file has", f"array class {array_class}")
    if len(sides) < 2 or min(sides) < 0 or len(parts) - first != expected or not allowed.issuperset(kinds[first:]):
        raise WrongFileError("is damaged: an array has other elements than it says", f"class {array_class}, sides {sides[:8]}")


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and data of each element of a file or of an array."""
    place = 0
    while place < len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        data = place + 8
        if kind >> 16:  # A small element: up to 4 bytes of data, inside the tag.
            kind, length, data = kind & 0xFFFF, kind >> 16, place + 4
            _check_fits(length, 4)
        _check_fits(length, len(content) - data)
        yield kind, content[data : data + length]
        # Each begins at a multiple of 8 bytes, but behind compressed ones.
        place = data + length + (0 if kind == _COMPRESSED else -(data + length) % 8)


def _check_fits(needed: int, available: int) -> None:
    if needed > available:
        raise WrongFileError("is damaged: an array is larger than what contains it", f"{needed:,} of {available:,}")
