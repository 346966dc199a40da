"""Baseline JPEGs to pixels in one call of vector code: the same bits as libjpeg-turbo, in two thirds of its time.

Takes what :mod:`~pipeline.images.jpeg_header` finds plain enough. Everything else, and every file in which anything is not
exactly as it should be, is left to libraries. Nothing is read or written out of bounds, whatever the file says.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from ..vector_code import POINTER, Code, MachineCode, compiled_once, integer, new_function, this_processor
from .jpeg_block import BLOCK, ORDER, SPARE_BYTES, ZIGZAG
from .jpeg_codes import SHORT, TABLE_NUMBERS, WORD, add_build_table, at, load, store
from .jpeg_geometry import COLOURS, SPARE_BLOCKS, Geometry, geometry_of
from .jpeg_header import Header
from .jpeg_pixels import add_pixels
from .jpeg_scan import (
    BLOCK_NUMBERS,
    FAILED,
    INTERVAL,
    IS_WHOLE,
    LEFT,
    SEGMENTS,
    STATE_NUMBERS,
    add_dequantise,
    add_row,
    add_unstuff,
)  # fmt: skip

# A job, in 64-bit numbers. Addresses: the file; its bytes without stuffing; ends of segments; state; tables; ORDER; blocks of an
# MCU; coefficients; last places; geometry; window; pixels; codes (address of 16 counts and the symbols, 1 for AC, of each table);
# parts (first block, blocks, address of the factors, of each component). Then numbers: bytes of the file before the scan, and of
# all; most segments; tables; blocks of an MCU; MCUs of a row; rows of MCUs; components.
_FILE, _BYTES, _ENDS, _STATE, _TABLES, _ORDER, _BLOCKS, _COEFFICIENTS, _LASTS, _GEOMETRY, _WINDOW = range(11)
_PIXELS, _CODES, _PARTS, _FIRST, _STOP, _MOST_SEGMENTS, _TABLE_COUNT, _BLOCK_COUNT, _ACROSS, _DOWN, _PART_COUNT = range(11, 22)
_JOB_NUMBERS = 22
_DECODE = [POINTER]
_ADDRESSES = _FIRST

# A component has two tables.
_MOST_TABLES = 6
# What a thread keeps for the next image, at most.
_KEPT_BYTES = 2**26


class _Scratch(threading.local):
    """Memory of a thread."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def take(self, name: str, count: int, dtype: Any) -> NDArray[Any]:
        """Gives (count,) of whatever values."""
        array = self._arrays.get(name)
        if array is None or len(array) < count:
            array = np.empty(count, dtype)
            if array.nbytes <= _KEPT_BYTES:
                self._arrays[name] = array
        return array


_scratch = _Scratch()
_ORDER_BYTES = np.array(ORDER, np.uint8)
_NATURAL = np.argsort(ZIGZAG)


def is_prepared() -> bool:
    """Tells whether :func:`prepare_decoder` has come to its end: for a few images, libraries are as good."""
    return bool(_prepared)


def prepare_decoder() -> None:
    """Compiles the code, in a quarter of a second, for all threads."""
    compiled_decoder()
    _prepared.append(True)


_prepared: list[bool] = []


@compiled_once
def compiled_decoder() -> MachineCode:
    """Gives ``jpeg_decode``."""
    processor, module = this_processor(), ir.Module()
    for add in (add_unstuff, add_build_table, add_dequantise, add_row):
        add(module)
    add_pixels(module, processor)
    _add_decode(module)
    return MachineCode(module, processor, {"jpeg_decode": _DECODE})


def _add_decode(module: Any) -> None:
    """Adds ``jpeg_decode``: a whole job. Its state tells whether it went well."""
    function = new_function(module, "jpeg_decode", _DECODE)
    (job,) = function.args
    code = Code(function, 1)
    builder = code.builder
    fields = [load(builder, job, place) for place in range(_JOB_NUMBERS)]
    for place in range(_ADDRESSES):
        fields[place] = builder.inttoptr(fields[place], POINTER)
    state, coefficients = fields[_STATE], fields[_COEFFICIENTS]

    def require(condition: Any) -> None:
        with builder.if_then(builder.not_(condition)):
            store(builder, 1, state, FAILED)
            builder.ret_void()

    def call(name: str, *arguments: Any) -> None:
        builder.call(module.globals[name], [integer(argument) for argument in arguments])

    with code.loop(0, fields[_TABLE_COUNT]) as number:
        codes = at(builder, fields[_CODES], builder.mul(number, integer(2)))
        table = at(builder, fields[_TABLES], builder.mul(number, integer(TABLE_NUMBERS)), WORD)
        counts = builder.inttoptr(load(builder, codes, 0), POINTER)
        call("jpeg_build_table", counts, table, load(builder, codes, 1), at(builder, state, FAILED))
        require(builder.icmp_signed("==", load(builder, state, FAILED), integer(0)))
    found = at(builder, state, SEGMENTS)
    source = fields[_FILE], fields[_FIRST], fields[_STOP]
    call("jpeg_unstuff", *source, fields[_BYTES], fields[_ENDS], fields[_MOST_SEGMENTS], found)
    require(builder.icmp_signed(">", load(builder, found, 0), integer(0)))
    with code.loop(0, fields[_DOWN]) as row:
        scan = fields[_BYTES], fields[_ENDS], state, fields[_TABLES], fields[_ORDER], fields[_BLOCKS]
        call("jpeg_row", *scan, fields[_BLOCK_COUNT], fields[_ACROSS], coefficients, fields[_LASTS])
        require(builder.icmp_signed("==", load(builder, state, FAILED), integer(0)))
        with code.loop(0, fields[_PART_COUNT]) as component:
            part = at(builder, fields[_PARTS], builder.mul(component, integer(3)))
            first = at(builder, coefficients, builder.mul(load(builder, part, 0), integer(BLOCK)), SHORT)
            factors = builder.inttoptr(load(builder, part, 2), POINTER)
            call("jpeg_dequantise", first, load(builder, part, 1), factors, at(builder, state, FAILED))
        require(builder.icmp_signed("==", load(builder, state, FAILED), integer(0)))
        image = fields[_GEOMETRY], fields[_WINDOW], fields[_PIXELS]
        call("jpeg_pixels", coefficients, fields[_LASTS], *image, row)
    require(builder.icmp_signed("==", load(builder, state, IS_WHOLE), integer(1)))
    builder.ret_void()


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
    sampling = None if len(header.components) == 1 else header.components[0].sampling
    geometry = geometry_of(header.width, header.height, sampling, ratio)
    across, down = _mcus(header, sampling)
    count = geometry.height * geometry.width * COLOURS
    if (
        buffer is None
        or buffer.size < count
        or buffer.dtype != np.uint8
        or not (buffer.flags.c_contiguous and buffer.flags.writeable)
    ):
        buffer = np.empty(count, np.uint8)
    pixels = buffer.reshape(-1)[:count]
    blocks, tables = _blocks(header, across)
    most = -(-across * down // header.restart_interval) if header.restart_interval else 1
    take = _scratch.take
    state = np.zeros(STATE_NUMBERS, np.int64)
    state[[INTERVAL, LEFT]] = header.restart_interval
    source = np.frombuffer(data, np.uint8)
    codes = np.array([(source.ctypes.data + place, is_ac) for is_ac, place in tables], np.int64)
    factors = [np.frombuffer(data, np.uint8, BLOCK, part.factors)[_NATURAL].astype(np.int16) for part in header.components]
    parts = np.array([(*run, factor.ctypes.data) for run, factor in zip(_runs(geometry), factors, strict=False)], np.int64)
    fields = geometry.array()
    coefficients = take("coefficients", (geometry.blocks + SPARE_BLOCKS) * BLOCK, np.int16)
    arrays = (
        *(source, take("bytes", len(data) - header.scan + SPARE_BYTES, np.uint8), take("ends", most, np.int64), state),
        *(take("tables", _MOST_TABLES * TABLE_NUMBERS, np.uint32), _ORDER_BYTES, blocks, coefficients),
        *(take("lasts", geometry.blocks + SPARE_BLOCKS, np.uint8), fields, take("window", geometry.window_bytes, np.uint8)),
        *(pixels, codes, parts),
    )
    numbers = (header.scan, len(data), most, len(codes), len(blocks), across, down, len(parts))
    job = np.array([*(array.ctypes.data for array in arrays), *numbers], np.int64)
    compiled_decoder()["jpeg_decode"](job.ctypes.data)
    return None if state[FAILED] else pixels.reshape(geometry.height, geometry.width, COLOURS)


def _mcus(header: Header, sampling: tuple[int, int] | None) -> tuple[int, int]:
    across, down = sampling or (1, 1)
    return -(-header.width // (8 * across)), -(-header.height // (8 * down))


def _runs(geometry: Geometry) -> list[tuple[int, int]]:
    """Gives the first block of each component in a row of MCUs, and how many there are."""
    luma = geometry.blocks_across * geometry.blocks_down
    chroma = geometry.chroma_across
    return [(0, luma), *([(luma, chroma), (luma + chroma, chroma)] if chroma else [])]


def _blocks(header: Header, across: int) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """Gives the blocks of an MCU, and the Huffman codes: (1 for AC, place in the file)."""
    tables: dict[tuple[int, int], int] = {}
    blocks: list[tuple[int, ...]] = []
    base = 0
    for number, part in enumerate(header.components):
        places = [tables.setdefault(key, len(tables)) * TABLE_NUMBERS for key in ((0, part.dc_codes), (1, part.ac_codes))]
        columns, rows = (1, 1) if len(header.components) == 1 else part.sampling
        for row in range(rows):
            blocks += [(number, *places, base + row * across * columns + column, columns) for column in range(columns)]
        base += across * columns * rows
    found = np.array(blocks, np.int64)
    assert found.shape[1] == BLOCK_NUMBERS
    assert len(tables) <= _MOST_TABLES
    return found, list(tables)
