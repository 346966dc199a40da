"""Reads MatConvNet's SimpleNN files (``.mat``) of all three generations, by field names, never by position.

Kernels are stored [row, column, channel in, channel out], which is TensorFlow's HWIO, for RGB input; they are used as they are.
MATLAB's format is read here: SciPy 1.17 crashes on types that the format does not have, so on the zeros of a download that was
allocated and not finished, and a check before it would have to walk through the whole file as well.
Source: print-outs in public readers; vlfeat/matconvnet ``utils/import-caffe.py`` (beta7 to beta25), ``vl_simplenn_tidy.m``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from .known_weights import StoredWeights, Wanted, WrongFileError
from .layers import MEAN_PIXEL_RGB

# A struct: field -> value. A cell is a list, text a str, and numbers are an array.
Struct = dict[str, Any]

# VGG-Face has VGG-16's layers, but tells 2,622 persons apart. Source: Parkhi et al., "Deep Face Recognition", BMVC 2015.
_FACES = 2622
# A mean stored in single precision differs by 4e-6 from the same constant in double.
_SAME_MEAN = 1e-5
# A full VGG with its average image has 575.9 MB; twice that, and some, is enough for files saved in double precision.
_LARGEST_BYTES = 1_500_000_000

# Source: MAT-File Format (MathWorks), tables 1-1 (data types) and 1-3 (array types).
_HEADER_BYTES, _MATRIX, _COMPRESSED = 128, 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBER_CLASSES = dict(zip(range(6, 16), ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"), strict=True))


def read_matconvnet(path: Path, wanted: Wanted) -> StoredWeights:
    """Read the wanted layers of a MatConvNet file.

    Args:
        path: A MATLAB 5 file, compressed or not.
        wanted: Which layers, of which shapes. Other layers are not looked at.

    Raises:
        WrongFileError: The file is of another kind or network, lacks a layer, or is found to be damaged.
        Exception: Of any type, whatever the damage leads to.
    """
    data = read_variables(path)
    layers = _layers(data)
    with_kernels = {name for name, layer in layers.items() if layer.get("type") == "conv"}
    if {"lrn", "normalize"} & {str(layer.get("type")) for layer in layers.values()}:
        found = f"normalisation layers, {len(with_kernels)} layers with kernels"
        raise WrongFileError("is a VGG-F, VGG-M, VGG-S or AlexNet file", found)
    wanted.check_names(with_kernels)
    if "fc8" in layers and _parameters(layers["fc8"])[1].size == _FACES:
        raise WrongFileError("is a VGG-Face file", f"{_FACES} classes in fc8")
    kernels, biases = {}, {}
    for name in wanted.shapes:
        # MATLAB writes one number for equal ones.
        for field, expected in (("pad", 1.0 if name.startswith("conv") else 0.0), ("stride", 1.0), ("dilate", 1.0)):
            _check_numbers(layers[name], name, field, expected)
        kernels[name], biases[name] = wanted.accept(name, *_parameters(layers[name]))
    before_beta11 = any("filters" in layer for layer in layers.values())
    generation = "before beta11" if before_beta11 else "to beta16" if "normalization" in data else "from beta17"
    return StoredWeights(kernels, biases, _mean_pixel(data), _pool_padding(layers), f"MatConvNet {generation}")


def _layers(data: Struct) -> dict[str, Struct]:
    found = f"the variables {', '.join(data) or '(none)'}"
    layers = data.get("layers")
    if {"layers", "params", "vars"} <= set(data) or isinstance(layers, (dict, tuple)):
        raise WrongFileError("is a DagNN file (a network as a graph), which is not read", found)
    if "net" in data and layers is None:
        raise WrongFileError("has all under one variable 'net', as the original VGG-Face package, which is not read", found)
    if layers is None:
        raise WrongFileError("is a MATLAB file, but no MatConvNet network", found)
    by_name: dict[str, Struct] = {}
    for layer in layers:
        if not isinstance(layer, dict):
            raise WrongFileError("is no MatConvNet network: an entry of 'layers' is not one struct", type(layer).__name__)
        name = str(layer.get("name", ""))
        if name in by_name:
            raise WrongFileError("is damaged: two layers of the same name", name)
        by_name[name] = layer
    return by_name


def _check_numbers(layer: Struct, name: str, field: str, expected: float) -> None:
    """Check that the layer does what this program's layer of that name does."""
    values = layer.get(field)
    if isinstance(values, np.ndarray) and (values != expected).any():
        got = values.reshape(-1)[:16].astype(float).tolist()
        raise WrongFileError(f"has another {field} in {name} (expected {expected:g})", str(got))


def _parameters(layer: Struct) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return kernel and bias; empty arrays where the struct has none."""
    # Generation before beta11: two fields.
    pair = layer["weights"] if "weights" in layer else [layer.get("filters"), layer.get("biases")]
    arrays = [value for value in pair if isinstance(value, np.ndarray)]
    return (arrays[0], arrays[1]) if len(arrays) == 2 else (np.empty(0), np.empty(0))


def _pool_padding(layers: dict[str, Struct]) -> str:
    """Return how an odd side is rounded: ``[top bottom left right]`` of 0 1 0 1 means up, of zeros down."""
    found: dict[str, str] = {}
    for name, layer in layers.items():
        if layer.get("type") != "pool":
            continue
        for field in ("pool", "stride"):
            _check_numbers(layer, name, field, 2.0)
        pad = layer["pad"].reshape(-1).tolist() if "pad" in layer else []
        if pad != [0, 1, 0, 1] and any(pad):
            raise WrongFileError(f"has another pad in {name} (expected [0 1 0 1] or [0 0 0 0])", str(pad[:16]))
        found[name] = "same" if any(pad) else "valid"
    if len(set(found.values())) > 1:
        raise WrongFileError("pads some pooling layers and not others", str(found))
    return next(iter(found.values()), "same")


def _mean_pixel(data: Struct) -> NDArray[np.float64]:
    """Return the mean colour, R, G, B: as stored, or averaged over the positions of a mean image."""
    known = np.array(MEAN_PIXEL_RGB, dtype=np.float64)
    root = data["normalization"] if "normalization" in data else data.get("meta", {}).get("normalization", {})
    image = root.get("averageImage", np.empty(0))
    if not isinstance(image, np.ndarray):
        raise WrongFileError("has a normalisation that cannot be read", repr(image)[:100])
    if not image.size:
        return known
    # A column of three, (3, 1), is a colour too.
    if image.size != 3 and image.shape[-1] != 3:
        raise WrongFileError("has an average image that is not RGB", str(image.shape))
    colours = image.astype(np.float64).reshape(-1, 3)
    # The mean of equal numbers need not be that number in floating point.
    mean = colours[0] if (colours == colours[0]).all() else colours.mean(axis=0)
    if not (np.isfinite(mean).all() and (mean >= 0).all() and (mean <= 255).all()):
        raise WrongFileError("has an average image outside 0..255", str(mean))
    return known if np.allclose(mean, known, rtol=0, atol=_SAME_MEAN) else np.array(mean)


def read_variables(path: Path) -> Struct:
    """Return name -> value of all variables of a file.

    Raises:
        WrongFileError: The file is truncated, damaged or too large.
    """
    size = path.stat().st_size
    if size > _LARGEST_BYTES:
        raise WrongFileError(f"is too large for a weights file (limit {_LARGEST_BYTES:,} bytes)", f"{size:,} bytes")
    content = memoryview(path.read_bytes())
    order = "<" if bytes(content[126:128]) == b"IM" else ">"
    variables: Struct = {}
    for kind, element in _elements(content[_HEADER_BYTES:], order, pads_to=1):
        if kind == _COMPRESSED:
            inflate = isal_zlib.decompressobj()
            unpacked = memoryview(inflate.decompress(element, _LARGEST_BYTES))
            if not inflate.eof:
                raise WrongFileError("is damaged: compressed data end early or do not end", f"{len(unpacked):,} bytes")
            ((kind, element),) = _elements(unpacked, order)
        if kind != _MATRIX:
            raise WrongFileError("is damaged: expected an array", f"data type {kind}")
        name, value = _read_array(element, order)
        variables[name] = value
    return variables


def _read_array(content: memoryview, order: str) -> tuple[str, Any]:
    """Return the name and the value of an array. Its numbers are not copied."""
    if not content:
        return "", np.empty(0)
    (_, flags), (_, sides), (_, name), *parts = _elements(content, order)
    array_class, shape = flags[0 if order == "<" else 3], struct.unpack(f"{order}{len(sides) // 4}i", sides)
    count = int(np.prod(shape, dtype=object))
    value: Any
    if array_class == _CELL:
        value = [_read_array(part, order)[1] for _, part in parts]
    elif array_class == _STRUCT:
        (_, width), (_, names), *values = parts
        size = struct.unpack(f"{order}i", width)[0]
        fields = [bytes(names[at : at + size]).split(b"\0")[0].decode(errors="replace") for at in range(0, len(names), size)]
        cells = [_read_array(part, order)[1] for _, part in values]
        rows = [dict(zip(fields, cells[at : at + len(fields)], strict=True)) for at in range(0, len(cells), max(len(fields), 1))]
        value = rows[0] if len(rows) == 1 else tuple(rows)
        count, parts = count * len(fields), values
    elif array_class == _CHAR:
        codec = {"utf-16": "utf-16-le" if order == "<" else "utf-16-be"}
        value = "".join(bytes(part).decode(codec.get(_TEXTS[kind], _TEXTS[kind]), "replace") for kind, part in parts)
    elif array_class in _NUMBER_CLASSES:
        # Of complex numbers, the real part.
        kind, part = parts[0]
        value = np.frombuffer(part, order + _NUMBERS[kind]).reshape(shape, order="F")
        value = value.astype(_NUMBER_CLASSES[array_class], copy=False)
    else:
        raise WrongFileError("has a sparse array, an object or a function, as no weights file has", f"array class {array_class}")
    if array_class in (_CELL, _STRUCT) and len(parts) != count:
        raise WrongFileError("is damaged: an array has not all of its elements", f"{len(parts)} of {count}")
    return bytes(name).decode(errors="replace"), value


def _elements(content: memoryview, order: str, pads_to: int = 8) -> Iterator[tuple[int, memoryview]]:
    """Yield type and data of each element."""
    place = 0
    while place < len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        start, stop = place + 8, place + 8 + length
        place = stop + -length % pads_to
        if kind >> 16:  # A small element: up to 4 bytes of data, inside the tag.
            place, start, stop = start, start - 4, start - 4 + (kind >> 16)
            kind &= 0xFFFF
        if stop > len(content):
            raise WrongFileError("is truncated or damaged: an array is larger than what contains it", f"{length:,} bytes")
        yield kind, content[start:stop]
