"""Attributes with checksums: HDF5 keeps none of its own over them, and a name of one letter less is still a name."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import StoreError
from . import format
from .border import check_attribute_sizes
from .damage import HDF5_READ_ERRORS, damaged

_ATTRIBUTE_ERRORS = (*HDF5_READ_ERRORS, MemoryError)


def write_attributes(node: h5py.Group | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """Writes attributes, and the checksums of all attributes that the node has then.

    Args:
        node: The root, or a layer.
        attributes: Name -> text, number or array.
    """
    for name, value in attributes.items():
        node.attrs[name] = value
    checksums = {name: _checksum(node.attrs[name]) for name in node.attrs if name != format.ATTRIBUTE_CHECKSUMS}
    node.attrs[format.ATTRIBUTE_CHECKSUMS] = json.dumps(checksums, sort_keys=True)


def damaged_attributes(node: h5py.Group | h5py.Dataset, path: Path, of: str) -> Iterator[StoreError]:
    """Gives an error for each attribute that is not as it was written; none for a node without checksums, another program's.

    Args:
        node: The root, or a layer.
        path: Of the file, for messages.
        of: Whose attributes they are: ``the root``, ``layer relu4_1``.
    """
    try:
        check_attribute_sizes(node, path, of)
    except StoreError as error:
        # Too large to be held to their checksums.
        yield error
        return
    except _ATTRIBUTE_ERRORS as error:
        yield damaged(path, f"the attributes of {of}", error)
        return
    for name, got in _wrong_attributes(node):
        yield damaged(path, f"attribute {name!r} of {of}", got)


def check_attributes(node: h5py.Group | h5py.Dataset, path: Path, of: str) -> None:
    """Holds the attributes of the root or a layer to their checksums; arguments as :func:`damaged_attributes`.

    Raises:
        StoreError: One is damaged.
    """
    for error in damaged_attributes(node, path, of):
        raise error


def _wrong_attributes(node: h5py.Group | h5py.Dataset) -> Iterator[tuple[str, object]]:
    """Gives the name of each, and what is there instead."""
    try:
        text = node.attrs.get(format.ATTRIBUTE_CHECKSUMS)
        expected: Any = {} if text is None else json.loads(text)
        there = set(node.attrs)
    except _ATTRIBUTE_ERRORS as error:
        yield format.ATTRIBUTE_CHECKSUMS, error
        return
    if not isinstance(expected, dict):
        yield format.ATTRIBUTE_CHECKSUMS, text
        return
    for name, checksum in expected.items():
        if name not in there:
            yield name, "no such attribute"
            continue
        try:
            value = node.attrs[name]
            if _checksum(value) != checksum:
                yield name, repr(value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value)
        except _ATTRIBUTE_ERRORS as error:
            yield name, error


def _checksum(value: Any) -> int:
    """Gives the CRC-32 of a text in UTF-8, of texts each ended by a NUL byte, or of a number's or array's little-endian bytes."""
    if isinstance(value, str):
        return zlib.crc32(value.encode())
    array = np.asarray(value)
    if array.dtype == object:
        return zlib.crc32("".join(f"{text}\0" for text in array.ravel()).encode())
    return zlib.crc32(array.astype(array.dtype.newbyteorder("<")).tobytes())
