"""How an array of a shard or index is stored, held to what it declares before HDF5 unpacks or gathers any of it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from . import codec

# A chunk may be larger than a small array in it.
_CHUNK_SPARE_BYTES = 1 << 20
# Source: RFC 1951: 258 bytes from 2 bits at the most.
DEFLATE_FACTOR = 1032

# Source: HDF5, H5Zpublic.h: deflate, shuffle and Fletcher's checksum, which need no plug-in and but for the first do not unpack.
_DEFLATE, _FILTERS = 1, frozenset((1, 2, 3))
_CHECKSUM_BYTES = 64

# Source: HDF5 file format, III.K: a text is stored as its length and the place of its bytes in a heap.
TEXT_PLACE = np.dtype([("bytes", "<u4"), ("heap", "<u8"), ("index", "<u4")])


def filters_of(properties: Any) -> list[int]:
    """Gives the filters of an array, by their numbers.

    Raises:
        ValueError: They need a plug-in, or unpack more than once.
    """
    filters = [properties.get_filter(place)[0] for place in range(properties.get_nfilters())]
    if not _FILTERS.issuperset(filters) or filters.count(_DEFLATE) > 1:
        raise ValueError(f"filters {filters} in place of gzip")
    return filters


def stored_bytes(dataset: h5py.Dataset) -> int:
    """Gives the bytes of an element as it is stored; of a text, of the place that says where it is."""
    kind = dataset.id.get_type()
    is_text = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    return TEXT_PLACE.itemsize if is_text else int(kind.get_size())


def check_table(dataset: h5py.Dataset, path: Path) -> None:
    """Makes sure that a table is stored as a whole, and that its texts are not longer together than the file.

    Args:
        dataset: (N,), of the kinds that :func:`check_tree` lets through; or a single number.
        path: Of the file.

    Raises:
        ValueError: Some of it is not there.
    """
    if not dataset.size:
        return
    itemsize_bytes = stored_bytes(dataset)
    raw = _stored_bytes(dataset, path, int(dataset.size) * itemsize_bytes, itemsize_bytes)
    if dataset.dtype.kind != "O":
        return
    if raw is None:
        raise ValueError("texts in the header of their array")
    places: NDArray[Any] = np.frombuffer(raw, TEXT_PLACE)
    size_bytes = int(places["bytes"].sum(dtype=np.uint64))
    if size_bytes > path.stat().st_size:
        # Many rows may name the same place in the heap; this program gives each text its own.
        raise ValueError(f"texts of {size_bytes} bytes in a file of {path.stat().st_size}")


def _stored_bytes(dataset: h5py.Dataset, path: Path, size_bytes: int, itemsize_bytes: int) -> bytes | None:
    """Gives the elements of a column as they are stored, chunks in any order; None where they lie in the array's header."""
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.COMPACT:
        return None
    if properties.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        if offset is None:
            raise ValueError(f"{dataset.size} rows of which none is stored")
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size_bytes)
        if len(data) < size_bytes:
            raise ValueError(f"{dataset.size} rows of which {len(data) // itemsize_bytes} are stored")
        return data
    (step,) = dataset.chunks
    chunk_bytes, count = step * itemsize_bytes, dataset.id.get_num_chunks()
    if count != -(-len(dataset) // step) or chunk_bytes > size_bytes + _CHUNK_SPARE_BYTES:
        raise ValueError(f"{count} chunks of {step} rows for {len(dataset)}")
    filters = filters_of(properties)
    if dataset.dtype.kind == "O" and set(filters) - {_DEFLATE}:
        raise ValueError(f"texts with filters {filters} in place of gzip")
    places = (dataset.id.get_chunk_info(number).chunk_offset for number in range(count))
    return b"".join(_unpacked(dataset, place, chunk_bytes, filters) for place in places)


def _unpacked(dataset: h5py.Dataset, place: tuple[int, ...], chunk_bytes: int, filters: list[int]) -> bytes:
    """Gives a chunk, inflated; what other filters have made of it stays.

    Raises:
        ValueError: It has another length.
    """
    mask, data = dataset.id.read_direct_chunk(place)
    if mask:
        raise ValueError(f"filter mask {mask:#x}")
    spare_bytes = _CHECKSUM_BYTES if set(filters) - {_DEFLATE} else 0
    if _DEFLATE in filters:
        # HDF5 would unpack it to the end, wherever that is.
        data = codec.inflate(data[: len(data)], chunk_bytes, spare_bytes)
    if not chunk_bytes <= len(data) <= chunk_bytes + spare_bytes:
        raise ValueError(f"a chunk of {len(data)} bytes in place of {chunk_bytes}")
    return bytes(data)


def check_chunk_size(dataset: h5py.Dataset) -> None:
    """Makes sure that a chunk is not larger than the array that it is cut from, but for a little.

    A header of some bytes may declare 4 GiB, all of which whoever reads a row has to make room for.

    Raises:
        ValueError: It is larger.
    """
    chunks = dataset.chunks
    if chunks is None:
        return
    itemsize_bytes = dataset.id.get_type().get_size()
    if math.prod(chunks) * itemsize_bytes > math.prod(dataset.shape) * itemsize_bytes + _CHUNK_SPARE_BYTES:
        raise ValueError(f"chunks {chunks} of shape {dataset.shape}")


def check_chunks(dataset: h5py.Dataset, lead: tuple[int, ...], file_bytes: int) -> None:
    """Makes sure that HDF5 may unpack the chunks in which one image's values lie.

    For arrays that another program has packed anew, of which :func:`check_chunk_size` has made sure; those of this one it does
    not read through HDF5.

    Args:
        dataset: (n, h, w, c), or (h, w, c) at native size.
        lead: (row,), or nothing at native size.
        file_bytes: Size of the file.

    Raises:
        ValueError: A chunk is missing, or unpacks to another size than it should.
    """
    if not dataset.id.get_storage_size():
        # HDF5 leaves the size of a chunk unset where there is none at all, and h5py asks for that much memory.
        raise ValueError("no values")
    chunks = dataset.chunks
    if chunks is None:
        return
    chunk_bytes = math.prod(chunks) * dataset.id.get_type().get_size()
    if chunk_bytes > file_bytes * DEFLATE_FACTOR:
        raise ValueError(f"chunks {chunks} of shape {dataset.shape} in a file of {file_bytes} bytes")
    filters = filters_of(dataset.id.get_create_plist())
    firsts = [(row - row % step,) for row, step in zip(lead, chunks, strict=False)]
    sides = zip(dataset.shape[len(lead) :], chunks[len(lead) :], strict=True)
    for place in itertools.product(*firsts, *(range(0, side, step) for side, step in sides)):
        _unpacked(dataset, place, chunk_bytes, filters)
