"""Check, convert, compress and checksum chunks. Bytes and arrays only; no HDF5, no threads.

The bytes are those of HDF5's own deflate filter, so that every HDF5 program reads them. ISA-L makes and reads them several times
faster than zlib, and releases the interpreter's lock: threads encode and decode in parallel.
"""

from __future__ import annotations

import math

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

# Measured on relu4_1 of photographs (28 x 28 x 512 float32, 47 % zeros), one core: level 2 takes 5.2 ms for 0.580 of the size,
# 1 takes 5.6 ms for 0.583, 0 about as long for 0.680, 3 nearly 10 ms for 0.582; zlib's level 4, which h5py takes for "gzip",
# 56 ms for 0.570. Bytes are not shuffled: that takes 2 ms more and 6 % more space, since whole zeros are what compresses here.
LEVEL = 2
# Level named in the file; readers ignore it. The nearest of zlib's.
STORED_LEVEL = 4

# Half way between the largest float16, 65504, and the next step: from here on a conversion rounds to infinity.
FLOAT16_LIMIT = 65520.0

# isal's type information has an instance in place of the class.
DecodeError: type[Exception] = isal_zlib.IsalError  # type: ignore[assignment]


def converted(values: NDArray[np.float32], dtype: np.dtype[np.floating]) -> NDArray[np.floating]:
    """Return the values in the stored dtype, C order; one that does not fit becomes infinite, without a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values.astype(dtype, copy=False))


def checksum(values: NDArray[np.floating]) -> int:
    """Return the CRC-32 of the values' bytes, little-endian in C order."""
    return int(isal_zlib.crc32(_bytes(values)))


def join_checksums(parts: list[tuple[int, int]]) -> int:
    """Return the CRC-32 of bytes joined end to end from (CRC-32, number of bytes) of each part."""
    joined = 0
    for crc, length_bytes in parts:
        joined = int(isal_zlib.crc32_combine(joined, crc, length_bytes))
    return joined


def encode(values: NDArray[np.floating], compression: str) -> bytes | NDArray[np.uint8]:
    """Return a whole chunk of the stored dtype as HDF5 stores it: by ``gzip`` a zlib stream, by ``none`` its own bytes."""
    raw = _bytes(values)
    return bytes(isal_zlib.compress(raw, LEVEL)) if compression == "gzip" else raw


def decode(
    data: bytes | NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[np.floating], deflated: bool
) -> NDArray[np.floating]:
    """Return the chunk that :func:`encode` was given, or any HDF5 program's deflated one, read-only.

    Raises:
        DecodeError: The stream is damaged.
        ValueError: It has another length.
    """
    raw = data
    if deflated:
        length_bytes = math.prod(shape) * dtype.itemsize
        stream = isal_zlib.decompressobj()
        # Memory for no more than one byte too many, whatever the stream holds.
        raw = stream.decompress(data, length_bytes + 1)
        if not stream.eof or len(raw) != length_bytes:
            raise ValueError(f"a stream of {'more' if len(raw) > length_bytes else 'fewer'} than {length_bytes} bytes")
    return np.frombuffer(raw, dtype).reshape(shape)


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
