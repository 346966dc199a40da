"""Vector code of a whole JPEG: bytes of the file in, pixels out, in one call, for all of its pixels or for fewer."""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, Code, MachineCode, compiled_once, integer, new_function, this_processor
from .jpeg_codes import BYTE, LOW_TABLE_NUMBERS, SHORT, TABLE_NUMBERS, WORD, add_build_table, at, load, store
from .jpeg_pixels import add_pixels
from .jpeg_planes import add_dequantise_planes
from .jpeg_scan import FAILED, IS_WHOLE, SEGMENTS, add_dequantise, add_row, add_unstuff
from .jpeg_skipping import add_build_skips


class Job(NamedTuple):
    """What the code is told: 64-bit numbers in this order, first of this file, then of all with the same header.

    All but :data:`NUMBERS` are addresses.

    Attributes:
        file: The file.
        state: Of the scan.
        pixels: The image.
        bytes: Those of the scan without stuffing.
        ends: Of segments.
        tables: Of the Huffman codes.
        coefficients: Of a row of MCUs.
        lasts: The last place of each block.
        window: For samples.
        stop: Bytes of the file.
        order: Zigzag place -> where a coefficient is kept.
        blocks: Of an MCU.
        geometry: Where samples are.
        codes: Of each table: place of its 16 counts and its symbols in the file; 1 for AC.
        parts: Of each component: where it begins among the coefficients; its blocks, or from a plane to the next; address of
            the factors; planes, 0 where blocks lie one after the other.
        first: Bytes of the file before the scan.
        most_segments: Room for ``ends``.
        table_count: How many.
        block_count: Of an MCU.
        across: MCUs of a row.
        down: Rows of MCUs.
        part_count: Components.
        coefficient_count: Numbers.
    """

    file: Any
    state: Any
    pixels: Any
    bytes: Any
    ends: Any
    tables: Any
    coefficients: Any
    lasts: Any
    window: Any
    stop: Any
    order: Any
    blocks: Any
    geometry: Any
    codes: Any
    parts: Any
    first: Any
    most_segments: Any
    table_count: Any
    block_count: Any
    across: Any
    down: Any
    part_count: Any
    coefficient_count: Any


NUMBERS = frozenset(Job._fields[Job._fields.index("first") :]) | {"stop"}
_CODE_NUMBERS, _PART_NUMBERS = 2, 4
_DECODE = [POINTER]


@compiled_once
def compiled_decoder() -> MachineCode:
    """Gives ``jpeg_decode``, for all pixels."""
    return _compiled(is_reduced=False)


@compiled_once
def compiled_reduced_decoder() -> MachineCode:
    """Gives ``jpeg_decode``, for sides divided by 2, 4 or 8."""
    return _compiled(is_reduced=True)


def _compiled(is_reduced: bool) -> MachineCode:
    processor, module = this_processor(), ir.Module()
    for add in (add_unstuff, add_build_table, add_dequantise):
        add(module)
    if is_reduced:
        add_build_skips(module)
        add_dequantise_planes(module)
    add_row(module, is_reduced)
    add_pixels(module, processor, is_reduced)
    _add_decode(module, is_reduced)
    return MachineCode(module, processor, {"jpeg_decode": _DECODE})


def _add_decode(module: Any, is_reduced: bool) -> None:
    """Adds ``jpeg_decode``: a whole job. Its state tells whether it went well."""
    function = new_function(module, "jpeg_decode", _DECODE)
    code = Code(function, 1)
    builder = code.builder
    told = {name: load(builder, function.args[0], place) for place, name in enumerate(Job._fields)}
    job = Job(**{name: field if name in NUMBERS else builder.inttoptr(field, POINTER) for name, field in told.items()})
    failed = at(builder, job.state, FAILED)

    def require(condition: Any) -> None:
        with builder.if_then(builder.not_(condition)):
            store(builder, 1, failed, 0)
            builder.ret_void()

    def call(name: str, *arguments: Any) -> None:
        builder.call(module.globals[name], [integer(argument) for argument in arguments])

    with code.loop(0, job.table_count) as number:
        codes = at(builder, job.codes, builder.mul(number, integer(_CODE_NUMBERS)))
        numbers = LOW_TABLE_NUMBERS if is_reduced else TABLE_NUMBERS
        table = at(builder, job.tables, builder.mul(number, integer(numbers)), WORD)
        counts, is_ac = at(builder, job.file, load(builder, codes, 0), BYTE), load(builder, codes, 1)
        call("jpeg_build_table", counts, table, is_ac, failed)
        require(builder.icmp_signed("==", load(builder, failed, 0), integer(0)))
        if is_reduced:
            with builder.if_then(builder.icmp_signed("!=", is_ac, integer(0))):
                call("jpeg_build_skips", table)
    found = at(builder, job.state, SEGMENTS)
    call("jpeg_unstuff", job.file, job.first, job.stop, job.bytes, job.ends, job.most_segments, found)
    require(builder.icmp_signed(">", load(builder, found, 0), integer(0)))
    with code.loop(0, job.down) as row:
        if is_reduced:
            _clear(builder, job.coefficients, builder.mul(job.coefficient_count, integer(2)))
        scan = job.bytes, job.ends, job.state, job.tables, job.order, job.blocks
        call("jpeg_row", *scan, job.block_count, job.across, job.coefficients, job.lasts)
        require(builder.icmp_signed("==", load(builder, failed, 0), integer(0)))
        with code.loop(0, job.part_count) as component:
            part = at(builder, job.parts, builder.mul(component, integer(_PART_NUMBERS)))
            place, count, factors, planes = (load(builder, part, number) for number in range(_PART_NUMBERS))
            first, factors = at(builder, job.coefficients, place, SHORT), builder.inttoptr(factors, POINTER)
            if is_reduced:
                with builder.if_else(builder.icmp_signed("==", planes, integer(0))) as (whole, low):
                    with whole:
                        call("jpeg_dequantise", first, count, factors, failed)
                    with low:
                        call("jpeg_dequantise_planes", first, count, planes, factors)
            else:
                call("jpeg_dequantise", first, count, factors, failed)
        require(builder.icmp_signed("==", load(builder, failed, 0), integer(0)))
        call("jpeg_pixels", job.coefficients, job.lasts, job.geometry, job.window, job.pixels, row)
    require(builder.icmp_signed("==", load(builder, job.state, IS_WHOLE), integer(1)))
    builder.ret_void()


def _clear(builder: Any, place: Any, size_bytes: Any) -> None:
    byte, bit = ir.IntType(8), ir.IntType(1)
    kind = ir.FunctionType(ir.VoidType(), [POINTER, byte, INTEGER, bit])
    function = ir.Function(builder.module, kind, "llvm.memset.p0.i64")
    builder.call(function, [place, ir.Constant(byte, 0), size_bytes, ir.Constant(bit, 0)])
