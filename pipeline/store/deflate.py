"""Activations as a zlib stream, faster and shorter than by a library that knows nothing of them. Bytes out; no HDF5.

What compresses in float32 activations are zeros, where a ReLU has been, and the bytes of exponents. So zeros are matches with
the last zero, every other value four literals, and one code, made for the chunk, is all the rest. What that would
serve badly is left to the library: values that repeat their neighbour's (flat colour), layers with hardly any zeros or with
little else, and very small chunks.

Source: RFC 1950 (the stream), RFC 1951 (its blocks).
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from .deflate_code import (
    BYTE_VALUES,
    BYTES,
    CODES,
    COUNTS,
    EQUAL_COUNT,
    FAR,
    GAP_CODES,
    GAP_COUNTS,
    GAPS,
    GROUP,
    LENGTH_BITS,
    PART_GROUPS,
    RUN_CODES,
    RUN_COUNTS,
    compiled_deflate,
)
from .prefix_codes import LARGEST_LENGTH, PrefixCode, make_code

# Below this a code costs more than it gains.
SMALLEST_VALUES = 1 << 12
# Counted is each eighth part of a chunk; more where those would be few, and less where they would be many.
COUNTED_SHARE = 8
FEWEST_PARTS, LARGEST_PARTS = 64, 1024
# Above this share of values that equal their neighbour the library finds more.
LARGEST_EQUAL_SHARE = 1 / 64
# Below the first share of zeros the library is as fast; above the second its longer matches save more.
SMALLEST_ZERO_SHARE, LARGEST_ZERO_SHARE = 1 / 16, 0.97
# Scratch up to this size is kept by its thread.
KEPT_BYTES = 1 << 24

# Source: RFC 1951, 3.2.5: symbols of literals and lengths, the end of a block, and those of distances.
SYMBOLS, END, DISTANCES = 286, 256, 30
# What is not seen in the parts that are counted may still come.
UNSEEN = 0.25

# Source: RFC 1950, 2.2: deflate with a window of 32 KiB; the second byte makes the pair a multiple of 31.
_ZLIB_HEADER = np.array([0x78, 0x5E], np.uint8)


class _Ranges(NamedTuple):
    """Numbers as a symbol and further bits: the smallest number of each symbol, and how many bits follow it."""

    bases: tuple[int, ...]
    further: tuple[int, ...]

    @classmethod
    def growing(cls, symbols: int, first: int, step: int) -> _Ranges:
        """Gives ranges that double every ``step`` symbols, from the second such step on."""
        further = tuple(max(0, symbol // step - 1) for symbol in range(symbols))
        return cls(tuple(first + sum(1 << bits for bits in further[:symbol]) for symbol in range(symbols)), further)

    def of(self, number: int) -> tuple[int, int, int]:
        """Gives symbol, further bits and how many."""
        symbol = max(place for place, base in enumerate(self.bases) if base <= number)
        return symbol, number - self.bases[symbol], self.further[symbol]


def _table(ranges: _Ranges, numbers: list[int]) -> NDArray[np.int64]:
    return np.array([ranges.of(number) for number in numbers])


# For each literal, run and gap: symbol, further bits, how many. The first run and gap are never used. A zero without another near
# before it is a literal that is repeated at once.
_LITERALS = np.array([(byte, 0, 0) for byte in range(BYTE_VALUES)])
_LENGTHS = _Ranges.growing(28, 3, 4)
_RUNS = _table(_LENGTHS, [*(BYTES * max(1, zeros) for zeros in range(FAR)), BYTES - 1])
_RUNS[:, 0] += END + 1
_DISTANCES = _Ranges.growing(DISTANCES, 1, 2)
_GAPS = _table(_DISTANCES, [BYTES * max(1, gap) for gap in range(GAPS - 1)] + [1])


# Of all lengths, the longest of which has a symbol of its own, and of all distances.
LENGTH_RANGES = _Ranges((*_LENGTHS.bases, 258), (*_LENGTHS.further, 0))
DISTANCE_RANGES = _DISTANCES


def compress(values: NDArray[np.float32], neighbour: int) -> bytes | None:
    """Gives the zlib stream of the values' bytes, little-endian in C order; None where the library serves better.

    Args:
        values: (n,) float32, C-contiguous.
        neighbour: How many values before each one lies that which it equals where an image is flat: the channels.
    """
    parts = (len(values) - neighbour) // (PART_GROUPS * GROUP)
    if len(values) < neighbour + SMALLEST_VALUES:
        return None
    counted = min(parts, max(FEWEST_PARTS, min(LARGEST_PARTS, parts // COUNTED_SHARE)))
    counts = np.zeros(COUNTS, np.int64)
    start, distance = values.ctypes.data + BYTES * neighbour, parts // counted * PART_GROUPS * GROUP
    compiled_deflate()["count"](start, counted, distance, neighbour, counts.ctypes.data)
    literals = counts[:RUN_COUNTS].reshape(BYTES, BYTE_VALUES)
    seen = counted * PART_GROUPS * GROUP
    zeros = seen - int(literals[0].sum())
    if counts[EQUAL_COUNT] > seen * LARGEST_EQUAL_SHARE or not seen * SMALLEST_ZERO_SHARE <= zeros <= seen * LARGEST_ZERO_SHARE:
        return None
    return _write(values, *_codes(literals.sum(axis=0), counts[RUN_COUNTS:GAP_COUNTS], counts[GAP_COUNTS:EQUAL_COUNT]))


def _codes(literals: NDArray[np.int64], runs: NDArray[np.int64], gaps: NDArray[np.int64]) -> tuple[PrefixCode, PrefixCode]:
    """Gives the code of literals and lengths, and that of distances: whatever may come has one."""
    symbols, distances = np.zeros(SYMBOLS), np.zeros(DISTANCES)
    symbols[:BYTE_VALUES] = literals + UNSEEN
    symbols[0] += runs[FAR]
    symbols[END] = 1.0
    np.add.at(symbols, _RUNS[:, 0], runs + UNSEEN)
    np.add.at(distances, _GAPS[:, 0], gaps + UNSEEN)
    return make_code(symbols), make_code(distances)


# What precedes the lengths of both codes, four bits each, in the header of a last block.
# Source: RFC 1951, 3.2.7: 16, 17 and 18, which repeat, come first; then the sixteen lengths.
_FIELDS = [(1, 1), (2, 2), (SYMBOLS - 257, 5), (DISTANCES - 1, 5), (19 - 4, 4), *[(0, 3)] * 3, *[(4, 3)] * 16]
_HEAD = np.concatenate([value >> np.arange(bits) & 1 for value, bits in _FIELDS]).astype(np.uint8)
# So begins every stream; with the bit at which the lengths begin.
STREAM_BEGINNING = _ZLIB_HEADER.tobytes() + np.packbits(_HEAD, bitorder="little").tobytes()
LENGTHS_BIT = 8 * _ZLIB_HEADER.size + _HEAD.size


def _write(values: NDArray[np.float32], symbols: PrefixCode, distances: PrefixCode) -> bytes | None:
    table = np.zeros(CODES, np.int64)
    table[:RUN_CODES] = _codes_of(symbols, _LITERALS)
    table[RUN_CODES:GAP_CODES] = _codes_of(symbols, _RUNS)
    table[GAP_CODES:] = _codes_of(distances, _GAPS)
    far, literal = (divmod(int(code), 1 << LENGTH_BITS) for code in table[[RUN_CODES + FAR, 0]])
    table[RUN_CODES + FAR] = (literal[0] | far[0] << literal[1]) << LENGTH_BITS | literal[1] + far[1]

    header = _header(symbols, distances)
    in_bytes = header.size // 8 * 8
    beginning = np.concatenate([_ZLIB_HEADER, np.packbits(header[:in_bytes], bitorder="little")])
    rest = header[in_bytes:]
    # At the worst every byte has the longest code; eight are stored at a time.
    output = _scratch(beginning.size + values.size * BYTES * LARGEST_LENGTH // 8 + 16)
    output[: beginning.size] = beginning
    state = np.array([int(rest @ (1 << np.arange(rest.size))), rest.size, beginning.size], np.int64)
    in_groups = values.size // GROUP * GROUP
    for name, first, stop in (("encode_groups", 0, in_groups), ("encode_literals", in_groups, values.size)):
        if stop > first:
            addresses = [array.ctypes.data for array in (table, output, state)]
            compiled_deflate()[name](values.ctypes.data + BYTES * first, stop - first, *addresses)
    waiting, count, written = state.tolist()
    # What is less than a byte, and the end of the block.
    end_bits = int(waiting) | int(symbols.bits[END]) << count
    end = end_bits.to_bytes(8, "little")[: -(-(count + int(symbols.lengths[END])) // 8)]
    raw = values.view(np.uint8)
    if written + len(end) >= raw.size:
        return None
    adler = int(isal_zlib.adler32(raw))
    stream: bytes = output[:written].tobytes() + end + adler.to_bytes(4, "big")
    return stream


def _codes_of(code: PrefixCode, table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Gives what is written for each entry of a table of symbols with further bits, as machine code wants it."""
    symbols, further, count = table.T
    lengths = code.lengths[symbols]
    codes: NDArray[np.int64] = (code.bits[symbols] | further << lengths) << LENGTH_BITS | lengths + count
    return codes


def _header(symbols: PrefixCode, distances: PrefixCode) -> NDArray[np.uint8]:
    """Gives the bits of a last block's header: the lengths of both codes, four bits each.

    The code of the lengths is the simplest that is complete: those from 0 to 15 by themselves, no repetitions.
    """
    # A code begins with its highest bit.
    body = np.concatenate([symbols.lengths, distances.lengths])[:, None] >> np.arange(3, -1, -1) & 1
    return np.concatenate([_HEAD, body.reshape(-1)]).astype(np.uint8)


_kept = threading.local()


def _scratch(size_bytes: int) -> NDArray[np.uint8]:
    if size_bytes > KEPT_BYTES:
        return np.empty(size_bytes, np.uint8)
    memory: NDArray[np.uint8] | None = getattr(_kept, "memory", None)
    if memory is None or memory.size < size_bytes:
        memory = _kept.memory = np.empty(size_bytes, np.uint8)
    return memory
