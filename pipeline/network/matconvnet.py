"""Reads MatConvNet's SimpleNN files (``.mat``) of all three generations, by field names, never by position.

Kernels are stored [row, column, channel in, channel out], which is TensorFlow's HWIO, for RGB input; they are used as they are.
Source: print-outs in public readers; vlfeat/matconvnet ``utils/import-caffe.py`` (beta7 to beta25), ``vl_simplenn_tidy.m``.

The arrays are parsed here: SciPy 1.17 crashes on types that the format does not have, so on the zeros of a download that was
allocated and not finished, and allocates whatever sizes are declared.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from .architectures import MEAN_PIXEL_RGB
from .known_weights import Wanted, Weights, WrongFileError

# Fields of a struct: numbers are arrays, text is str, a cell array is a list, a struct a dictionary, several structs a tuple.
Struct = dict[str, Any]

# VGG-Face has VGG-16's layers, but tells 2,622 persons apart. Source: Parkhi et al., "Deep Face Recognition", BMVC 2015.
_FACES = 2622
# A mean stored in single precision differs by 4e-6 from the same constant in double.
_SAME_MEAN = 1e-5
# A full VGG with its average image has 575.9 MB; twice that, and some, is enough for files saved in double precision.
_LARGEST_BYTES = 1_500_000_000

_HEADER_BYTES = 128
# Source: MAT-File Format (MathWorks), tables 1-1 (data types) and 1-3 (array types).
_STORED_AS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_ENCODINGS = {4: "utf-16", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBERS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}

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
    """Read the wanted layers of a MatConvNet file.

    Args:
        path: A MATLAB 5 file, compressed or not.
        wanted: Which layers, of which shapes. Other layers are not looked at.

    Raises:
        WrongFileError: The file is of another kind or network, lacks a layer, or is found to be damaged.
        Exception: Of any type, by what the damage leads to.
    """
    data = read_variables(path)
    layers = _layers(data)
    if "fc8" in layers and _parameters(layers["fc8"])[1].size == _FACES:
        raise WrongFileError("is a VGG-Face file", f"{_FACES} classes in fc8")
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
    is_old = any("filters" in layer for layer in layers.values())
    generation = "before beta11" if is_old else "to beta16" if "normalization" in data else "from beta17"
    return Weights(wanted.network, kernels, biases, _mean_pixel(data), paddings.pop(), f"MatConvNet {generation}")


def _layers(data: dict[str, Any]) -> dict[str, Struct]:
    found, stored = f"the variables {', '.join(data) or '(none)'}", data.get("layers")
    if data.keys() >= {"layers", "params", "vars"} or isinstance(stored, (dict, tuple)):
        raise WrongFileError("is a DagNN file (a network as a graph), which is not read", found)
    if not isinstance(stored, list) or not all(isinstance(layer, dict) for layer in stored):
        raise WrongFileError("is a MATLAB file, but no MatConvNet network with structs in a cell array 'layers'", found)
    return {layer.get("name", ""): layer for layer in stored}


def _parameters(layer: Struct) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return kernel and bias; empty arrays where the struct has none."""
    # The second: the generation before beta11.
    kernel, bias = layer["weights"] if "weights" in layer else (layer.get("filters"), layer.get("biases"))
    return np.asarray(kernel), np.asarray(bias)


def _mean_pixel(data: dict[str, Any]) -> NDArray[np.float64]:
    """Return the mean colour, R, G, B: as stored, or averaged over the positions of a mean image."""
    known = np.array(MEAN_PIXEL_RGB, dtype=np.float64)
    try:
        stored = data["normalization"] if "normalization" in data else data["meta"]["normalization"]
        image = np.asarray(stored["averageImage"], np.float64)
    except KeyError:  # Neither is there.
        return known
    if not image.size:
        return known
    # A column of three, (3, 1), is a colour too.
    colours = image.reshape(-1, 3 if image.size == 3 else image.shape[-1])
    # The mean of equal numbers need not be that number in floating point.
    mean = colours[0] if (colours == colours[0]).all() else colours.mean(axis=0)
    if mean.shape != (3,) or not ((mean >= 0) & (mean <= 255)).all():
        raise WrongFileError("has an average image that is not RGB in 0..255", f"{image.shape}, {mean[:4]}")
    return known if np.allclose(mean, known, rtol=0, atol=_SAME_MEAN) else np.array(mean)


# -- MATLAB 5 ------------------------------------------------------------------------------------------------------------------


def read_variables(path: Path) -> Struct:
    """Return name -> value of all variables of a MATLAB 5 file; as much is allocated as the file holds, not as it declares.

    Raises:
        WrongFileError: The file is damaged or too large.
        Exception: Of any type, by what the damage leads to.
    """
    size = path.stat().st_size
    if size > _LARGEST_BYTES:
        raise WrongFileError(f"is too large for a weights file (limit {_LARGEST_BYTES:,} bytes)", f"{size:,} bytes")
    content = memoryview(path.read_bytes())
    order = "<" if bytes(content[126:128]) == b"IM" else ">"
    variables = {}
    for kind, element in _elements(content[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            inflate = isal_zlib.decompressobj()
            unpacked = memoryview(inflate.decompress(element, _LARGEST_BYTES))
            if not inflate.eof:
                raise WrongFileError("is damaged: compressed data end early or do not end", f"{len(unpacked):,} bytes")
            kind, element = next(_elements(unpacked, order))
        name, value = _array(kind, element, order)
        variables[name] = value
    return variables


def _array(kind: int, content: memoryview, order: str) -> tuple[str, Any]:
    """Return name and value of an array, as :data:`Struct` has it."""
    if kind != _MATRIX:
        raise ValueError(f"data type {kind} where an array should be")
    if not content:
        return "", np.empty(0)
    kinds, parts = zip(*_elements(content, order), strict=True)
    array_class = struct.unpack_from(f"{order}I", parts[0])[0] & 0xFF
    if array_class not in (_CELL, _STRUCT, _CHAR, *_NUMBERS):
        raise WrongFileError("has a sparse array, an object or a function, as no weights file has", f"array class {array_class}")
    # Lengths have a sign in the format; without, -1 is no length that NumPy would choose.
    sides = np.frombuffer(parts[1], f"{order}u4").tolist()
    name = bytes(parts[2]).decode()
    if array_class == _CHAR:
        encoding = _ENCODINGS.get(kinds[3], "utf-8")
        return name, bytes(parts[3]).decode(encoding + {"<": "-le", ">": "-be"}[order] * (encoding != "utf-8"), "replace")
    if array_class in _NUMBERS:
        (stored,) = parts[3:]
        values = np.frombuffer(stored, order + _STORED_AS[kinds[3]]).astype(_NUMBERS[array_class], copy=False)
        return name, values.reshape(sides, order="F")
    fields, first = [""], 3
    if array_class == _STRUCT:
        width = struct.unpack(f"{order}i", parts[3])[0]
        fields, first = np.frombuffer(parts[4], f"S{width}").astype(str).tolist(), 5
    items = [_array(*part, order)[1] for part in zip(kinds[first:], parts[first:], strict=True)]
    if len(items) != math.prod(sides) * len(fields):
        raise ValueError(f"{len(items)} entries in an array of {sides}")
    if array_class == _CELL:
        return name, items
    structs = [dict(zip(fields, items[at : at + len(fields)], strict=True)) for at in range(0, len(items), len(fields) or 1)]
    return name, structs[0] if len(structs) == 1 else tuple(structs)


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and data of each element of a file or of an array."""
    place = 0
    while place < len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        data, available = place + 8, len(content) - place - 8
        if kind >> 16:  # A small element: up to 4 bytes of data, inside the tag.
            kind, length, data, available = kind & 0xFFFF, kind >> 16, place + 4, 4
        if length > available:
            raise ValueError(f"an element of {length:,} bytes where {available:,} are left")
        yield kind, content[data : data + length]
        # Each begins at a multiple of 8 bytes, but behind compressed ones.
        place = data + length + (0 if kind == _COMPRESSED else -(data + length) % 8)
