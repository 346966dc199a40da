"""Baseline JPEGs to pixels in one call of vector code: the same bits as libjpeg-turbo, in two thirds of its time.

Or fewer pixels, from the lowest frequencies alone, in half of that. Takes what :mod:`~pipeline.images.jpeg_header` finds plain
enough. Everything else, and every file in which anything is not exactly as it should be, is left to libraries. Nothing is read or
written out of bounds, whatever the file says.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jpeg_block import BLOCK, ORDER, SPARE_BYTES, ZIGZAG
from .jpeg_codes import LOW_TABLE_NUMBERS, TABLE_NUMBERS
from .jpeg_geometry import COLOURS, SIDE, SPARE_BLOCKS, Geometry, geometry_of
from .jpeg_header import Header
from .jpeg_job import Job, compiled_decoder, compiled_reduced_decoder
from .jpeg_planes import LOW_SIDES
from .jpeg_scan import BLOCK_NUMBERS, FAILED, INTERVAL, LEFT, LOW_BLOCK_NUMBERS, STATE_NUMBERS

# A component has two tables.
_MOST_TABLES = 6
# What a thread keeps for the next image, at most.
_KEPT_BYTES = 2**26


class _Scratch(threading.local):
    """Memory of a thread."""

    def __init__(self) -> None:
        self._arrays: dict[str, tuple[NDArray[Any], int]] = {}

    def take(self, name: str, count: int, dtype: type) -> tuple[NDArray[Any], int]:
        """Gives (count,) or more of whatever values, and their address."""
        found = self._arrays.get(name)
        if found is None or len(found[0]) < count:
            array: NDArray[Any] = np.empty(count, dtype)
            found = array, array.ctypes.data
            if array.nbytes <= _KEPT_BYTES:
                self._arrays[name] = found
        return found


_scratch = _Scratch()
_NATURAL = np.argsort(ZIGZAG)
_SIDES = (SIDE, *LOW_SIDES)
# Of the samples that a block becomes in each direction: the last place in the zigzag that is wanted for them.
_KEPT = {
    side: max(place for place, natural in enumerate(ZIGZAG) if natural // SIDE < side and natural % SIDE < side)
    for side in _SIDES
}


def _order(side: int) -> NDArray[np.uint8]:
    """Gives where each place in the zigzag is kept, in a block or as which plane."""
    if side == SIDE:
        return np.array(ORDER, np.uint8)
    row, column = np.divmod(ZIGZAG, SIDE)
    order = np.full(len(ORDER), side * side, np.uint8)
    order[:BLOCK] = np.where((row < side) & (column < side), row * side + column, side * side)
    return order


_ORDERS = np.concatenate([_order(side) for side in _SIDES])


def is_prepared() -> bool:
    """Tells whether :func:`prepare_decoder` has come to its end: for a few images, libraries are as good."""
    return bool(_prepared)


def prepare_decoder() -> None:
    """Compiles the code for all pixels, in a quarter of a second, for all threads."""
    compiled_decoder()
    _prepared.append(True)


def prepare_reduced_decoder() -> None:
    """Compiles the code for fewer, which is used in any case, so that no image has to wait for it."""
    compiled_reduced_decoder()


_prepared: list[bool] = []


def decode_baseline(
    data: bytes, header: Header, ratio: int = 1, buffer: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8] | None:
    """Decodes a JPEG; None where its scan is not exactly as the standard has it.

    Args:
        data: The whole file.
        header: Of it; must be decodable.
        ratio: 1, 2, 4 or 8, by which both sides are divided, rounded up.
        buffer: (n,) uint8, of as many bytes or more, for the pixels to lie in.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    layout = _laid_out(header, ratio)
    count = layout.pixels
    if (
        buffer is None
        or buffer.size < count
        or buffer.dtype != np.uint8
        or not (buffer.flags.c_contiguous and buffer.flags.writeable)
    ):
        buffer = np.empty(count, np.uint8)
    pixels = buffer.reshape(-1)[:count]
    source, state = np.frombuffer(data, np.uint8), layout.state.copy()
    room = [_scratch.take("bytes", len(data) - header.scan + SPARE_BYTES, np.uint8)]
    room += [_scratch.take(name, *needed) for name, needed in layout.scratch.items()]
    addresses = [source.ctypes.data, state.ctypes.data, pixels.ctypes.data, *(address for _, address in room)]
    told = np.array([*addresses, len(data), *layout.told], np.int64)
    layout.code["jpeg_decode"](told.ctypes.data)
    return None if state[FAILED] else pixels.reshape(layout.shape)


class _Layout:
    """What the code is told of all files with one header.

    Args:
        header: Of the file.
        ratio: By which sides are divided.
    """

    def __init__(self, header: Header, ratio: int) -> None:
        sampling = None if len(header.components) == 1 else header.components[0].sampling
        geometry = geometry_of(header.width, header.height, sampling, ratio)
        across, down = _mcus(header, sampling)
        most = -(-across * down // header.restart_interval) if header.restart_interval else 1
        blocks, tables = _blocks(header, geometry, across, ratio > 1)
        codes = np.array([(place, is_ac) for is_ac, place in tables], np.int64)
        factors = [_factors(part.factors, side) for part, side in zip(header.components, _sides(geometry), strict=True)]
        parts = np.array(
            [(*part, factor.ctypes.data, planes) for (*part, planes), factor in zip(_parts(geometry), factors, strict=True)],
            np.int64,
        )
        # The code holds their addresses.
        self._arrays = arrays = {"blocks": blocks, "geometry": geometry.array(), "codes": codes, "parts": parts}
        self._factors = factors
        self.code = compiled_decoder() if ratio == 1 else compiled_reduced_decoder()
        self.shape = geometry.height, geometry.width, COLOURS
        self.pixels = math.prod(self.shape)
        self.state = np.zeros(STATE_NUMBERS, np.int64)
        self.state[[INTERVAL, LEFT]] = header.restart_interval
        # Of each thread: numbers and their type. In the order of the job.
        self.scratch: dict[str, tuple[int, type]] = {
            "ends": (most, np.int64),
            "tables": (_MOST_TABLES * LOW_TABLE_NUMBERS, np.uint32),
            "coefficients": (geometry.coefficients, np.int16),
            "lasts": (geometry.blocks + SPARE_BLOCKS, np.uint8),
            "window": (geometry.window_bytes, np.uint8),
        }
        known = {
            **{name: array.ctypes.data for name, array in arrays.items()},
            "order": _ORDERS.ctypes.data,
            "first": header.scan,
            "most_segments": most,
            "table_count": len(codes),
            "block_count": len(blocks),
            "across": across,
            "down": down,
            "part_count": len(parts),
            "coefficient_count": geometry.coefficients,
        }
        self.told = [known[name] for name in Job._fields[-len(known) :]]


@functools.lru_cache(256)
def _laid_out(header: Header, ratio: int) -> _Layout:
    return _Layout(header, ratio)


def _mcus(header: Header, sampling: tuple[int, int] | None) -> tuple[int, int]:
    across, down = sampling or (1, 1)
    return -(-header.width // (8 * across)), -(-header.height // (8 * down))


def _sides(geometry: Geometry) -> list[int]:
    """Gives the samples of a block in each direction, of each component."""
    return [geometry.luma_side, *([geometry.chroma_side] * 2 if geometry.chroma_across else [])]


def _factors(zigzag: bytes, side: int) -> NDArray[np.int16]:
    """Gives the factors of a component, of all coefficients or those that are wanted."""
    factors = np.frombuffer(zigzag, np.uint8, BLOCK)[_NATURAL].astype(np.int16)
    return factors if side == SIDE else np.ascontiguousarray(factors.reshape(SIDE, SIDE)[:side, :side]).reshape(-1)


def _parts(geometry: Geometry) -> list[tuple[int, int, int]]:
    """Gives, of each component: where it begins among the coefficients; its blocks, or from a plane to the next; planes."""
    blocks = [geometry.blocks_across * geometry.blocks_down, geometry.chroma_across, geometry.chroma_across]
    planes = [geometry.luma_plane, geometry.chroma_plane, geometry.chroma_plane]
    starts = [0, geometry.blue, geometry.red]
    return [
        (starts[number], blocks[number], 0) if side == SIDE else (starts[number], planes[number], side * side)
        for number, side in enumerate(_sides(geometry))
    ]


def _blocks(header: Header, geometry: Geometry, across: int, is_reduced: bool) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """Gives the blocks of an MCU, and the Huffman codes: (1 for AC, place in the file)."""
    tables: dict[tuple[int, int], int] = {}
    blocks: list[tuple[int, ...]] = []
    base, size = 0, LOW_TABLE_NUMBERS if is_reduced else TABLE_NUMBERS
    units = geometry.luma_unit, geometry.chroma_unit, geometry.chroma_unit
    planes = geometry.luma_plane, geometry.chroma_plane, geometry.chroma_plane
    starts = 0, geometry.blue, geometry.red
    for number, (part, side) in enumerate(zip(header.components, _sides(geometry), strict=True)):
        places = [tables.setdefault(key, len(tables)) * size for key in ((0, part.dc_codes), (1, part.ac_codes))]
        columns, rows = (1, 1) if len(header.components) == 1 else part.sampling
        low = starts[number] - units[number] * base, units[number], planes[number], _KEPT[side], _SIDES.index(side) * len(ORDER)
        rest = low if is_reduced else ()
        for row in range(rows):
            first = base + row * across * columns
            blocks += [(number, *places, first + column, columns, *rest) for column in range(columns)]
        base += across * columns * rows
    found = np.array(blocks, np.int64)
    assert found.shape[1] == (LOW_BLOCK_NUMBERS if is_reduced else BLOCK_NUMBERS)
    assert len(tables) <= _MOST_TABLES
    return found, list(tables)
