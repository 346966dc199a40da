"""Vector code of a JPEG's entropy coding: the bytes of a baseline scan, in; coefficients of one row of MCUs at a time, out.

Written for speed and for safety: nothing is read or written out of bounds whatever the bytes are, and whatever is not exactly
as the standard has it makes the scan fail, so that a library with more patience can have a try.

Sources: ITU T.81 (JPEG), annex F.2; F. Giesen, "Reading bits in far too many ways", 2018 (filling without a branch).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, Code, integer, new_function
from .jpeg_block import BLOCK, COEFFICIENT_LANES, FILLING_BYTES, Bits, Block, joined
from .jpeg_codes import BYTE, SHORT, WORD, add_search, at, load, store
from .jpeg_skipping import LowBlock

# The state of a scan, in 64-bit numbers, written from the outside before the first row: 1 once it has failed; bits that wait,
# how many, where the next come from; segments there are; the one at hand; MCUs from restart to restart (0: none), and left of
# them; what the bytes at hand end; a place that is written and never read; the predictions of the components.
FAILED, WAITING, COUNT, PLACE, SEGMENTS, SEGMENT, INTERVAL, LEFT, IS_WHOLE, NOWHERE, PREDICTIONS = range(11)
STATE_NUMBERS = PREDICTIONS + 3

# A block of an MCU, in 64-bit numbers: component; its tables' places, DC and AC (numbers from the first table); where the first
# MCU's block begins among the coefficients (blocks), and how far the next one's is away.
COMPONENT, DC_TABLE, AC_TABLE, FIRST_BLOCK, NEXT_BLOCK = range(5)
BLOCK_NUMBERS = 5
# Where only the lowest frequencies are wanted, five more: where block 0 would begin among the coefficients (numbers), from a
# block to the next, from a coefficient to the next; the last place in the zigzag that is wanted; ORDER of its own begins where.
OFFSET, UNIT, PLANE, KEPT, ORDER_AT = range(5, 10)
LOW_BLOCK_NUMBERS = 10

# source, its first byte and the one after the last; target; where each segment ends in it; most segments; result: segments, or 0
# where it is no scan that ends
UNSTUFF = [POINTER, INTEGER, INTEGER, POINTER, POINTER, INTEGER, POINTER]
# bytes, without stuffing, and the segments' ends; state; tables; ORDER, as bytes; blocks of an MCU, how many; MCUs of a row;
# coefficients (int16), last places (bytes)
ROW = [POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, INTEGER, INTEGER, POINTER, POINTER]
# coefficients (int16), blocks, factors in natural order (int16); failed: 1 where numbers are too large
DEQUANTISE = [POINTER, INTEGER, POINTER, POINTER]

# Of the absolute coefficients of a block together: no step of the transform can overflow then, in any library's way of doing it
# (words, after two more bits, of sums of at most 1.4 times as much). Larger ones, of noise between black and white or made by
# nobody's encoder, are decoded by the library that comes with the machine.
MOST_OF_BLOCK = 2**15 * 10 // (4 * 14)

_UNSTUFF_LANES = 32


def add_unstuff(module: Any) -> Any:
    """Adds ``jpeg_unstuff``: copies a scan without the zeros after its FFs, up to the end of the image; notes the restarts."""
    function = new_function(module, "jpeg_unstuff", UNSTUFF)
    source, first, stop, target, ends, most, result = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    entry = builder.block
    head, many, some, vector_done, single, one, other, found, marker, is_zero, restart, go_on, finish, fail = (
        builder.append_basic_block() for _ in range(14)
    )
    vector = ir.VectorType(BYTE, _UNSTUFF_LANES)
    builder.branch(head)

    builder.position_at_end(head)
    place, filled, segments = (builder.phi(INTEGER) for _ in range(3))
    for phi, start in zip((place, filled, segments), (first, integer(0), integer(0)), strict=True):
        phi.add_incoming(start, entry)
    room = builder.icmp_signed("<=", builder.add(place, integer(_UNSTUFF_LANES)), stop)
    builder.cbranch(room, many, single)

    builder.position_at_end(many)
    values = builder.load(at(builder, source, place, BYTE), typ=vector, align=1)
    builder.store(values, at(builder, target, filled, BYTE), align=1)
    mask = builder.icmp_unsigned("==", values, ir.Constant(vector, [255] * _UNSTUFF_LANES))
    bits = builder.zext(builder.bitcast(mask, ir.IntType(_UNSTUFF_LANES)), INTEGER)
    builder.cbranch(builder.icmp_unsigned("==", bits, integer(0)), some, vector_done)
    builder.position_at_end(some)
    far = [builder.add(number, integer(_UNSTUFF_LANES)) for number in (place, filled)]
    for phi, value in zip((place, filled, segments), (*far, segments), strict=True):
        phi.add_incoming(value, some)
    builder.branch(head)
    builder.position_at_end(vector_done)
    kind = ir.FunctionType(INTEGER, [INTEGER, ir.IntType(1)])
    count = builder.call(module.declare_intrinsic("llvm.cttz", [INTEGER], kind), [bits, ir.Constant(ir.IntType(1), 0)])
    after_mask = [builder.add(number, count) for number in (place, filled)]
    builder.branch(found)

    builder.position_at_end(single)
    builder.cbranch(builder.icmp_signed("<", place, stop), one, fail)
    builder.position_at_end(one)
    value = load(builder, source, place, BYTE)
    builder.cbranch(builder.icmp_unsigned("==", value, integer(255)), found, other)
    builder.position_at_end(other)
    store(builder, value, target, filled, BYTE)
    near = [builder.add(number, integer(1)) for number in (place, filled)]
    for phi, value in zip((place, filled, segments), (*near, segments), strict=True):
        phi.add_incoming(value, other)
    builder.branch(head)

    # At an FF.
    builder.position_at_end(found)
    here, there = (builder.phi(INTEGER) for _ in range(2))
    for phi, masked, single_value in zip((here, there), after_mask, (place, filled), strict=True):
        phi.add_incoming(masked, vector_done)
        phi.add_incoming(single_value, one)
    following = builder.add(here, integer(1))
    builder.cbranch(builder.icmp_signed("<", following, stop), marker, fail)
    builder.position_at_end(marker)
    code = load(builder, source, following, BYTE)
    past = builder.add(here, integer(2))
    builder.cbranch(builder.icmp_unsigned("==", code, integer(0)), is_zero, restart)
    builder.position_at_end(is_zero)
    store(builder, 255, target, there, BYTE)
    for phi, value in zip((place, filled, segments), (past, builder.add(there, integer(1)), segments), strict=True):
        phi.add_incoming(value, is_zero)
    builder.branch(head)
    builder.position_at_end(restart)
    store(builder, there, ends, segments)
    more = builder.add(segments, integer(1))
    expected = builder.add(builder.and_(segments, integer(7)), integer(0xD0))
    is_end = builder.icmp_unsigned("==", code, integer(0xD9))
    is_next = builder.and_(builder.icmp_unsigned("==", code, expected), builder.icmp_signed("<", more, most))
    switch = builder.append_basic_block()
    builder.cbranch(is_end, finish, switch)
    builder.position_at_end(switch)
    builder.cbranch(is_next, go_on, fail)
    builder.position_at_end(go_on)
    for phi, value in zip((place, filled, segments), (past, there, more), strict=True):
        phi.add_incoming(value, go_on)
    builder.branch(head)
    builder.position_at_end(finish)
    store(builder, more, result, 0)
    builder.ret_void()
    builder.position_at_end(fail)
    store(builder, 0, result, 0)
    builder.ret_void()
    return function


def add_dequantise(module: Any) -> Any:
    """Adds ``jpeg_dequantise``: multiplies blocks by the factors of their component; fails where numbers might overflow later."""
    function = new_function(module, "jpeg_dequantise", DEQUANTISE)
    coefficients, blocks, factors, failed = function.args
    code = Code(function, 1)
    builder = code.builder
    vector, wide = ir.VectorType(SHORT, COEFFICIENT_LANES), ir.VectorType(WORD, COEFFICIENT_LANES)
    absolute = ir.Function(module, ir.FunctionType(wide, [wide, ir.IntType(1)]), f"llvm.abs.v{COEFFICIENT_LANES}i32")
    total = ir.Function(module, ir.FunctionType(WORD, [wide]), f"llvm.vector.reduce.add.v{COEFFICIENT_LANES}i32")
    parts = range(0, BLOCK, COEFFICIENT_LANES)
    loaded = [builder.load(at(builder, factors, part, SHORT), typ=vector, align=2) for part in parts]

    def each(block: Any, carried: list[Any]) -> list[Any]:
        sums = []
        for part, factor in zip(parts, loaded, strict=True):
            place = at(builder, coefficients, builder.add(builder.mul(block, integer(BLOCK)), integer(part)), SHORT)
            found = builder.load(place, typ=vector, align=2)
            builder.store(builder.mul(found, factor), place, align=2)
            products = builder.mul(builder.sext(found, wide), builder.sext(factor, wide))
            sums.append(builder.call(absolute, [products, ir.Constant(ir.IntType(1), 0)]))
        of_block = builder.zext(builder.call(total, [builder.add(*sums)]), INTEGER)
        is_larger = builder.icmp_unsigned(">", of_block, carried[0])
        return [builder.select(is_larger, of_block, carried[0])]

    (largest,) = code.accumulate(blocks, 1, [integer(0)], each)
    with builder.if_then(builder.icmp_unsigned(">", largest, integer(MOST_OF_BLOCK)), likely=False):
        store(builder, 1, failed, 0)
    builder.ret_void()
    return function


def add_row(module: Any, is_reduced: bool) -> Any:
    """Adds ``jpeg_row``: decodes the next row of MCUs, the lowest frequencies or all; the coefficients are not dequantised."""
    search = add_search(module)
    function = new_function(module, "jpeg_row", ROW)
    source, ends, state, tables, order, blocks, how_many, across, coefficients, lasts = function.args
    code = Code(function, 1)
    builder = code.builder
    bits = Bits(builder, source)
    fail = function.append_basic_block()

    def require(condition: Any) -> None:
        good = function.append_basic_block()
        builder.cbranch(condition, good, fail)
        builder.position_at_end(good)

    def is_used_up(now: list[Any], segment: Any) -> Any:
        # Whole bytes that wait have not been used.
        used = builder.sub(now[2], builder.lshr(now[1], integer(3)))
        return builder.icmp_signed("==", used, load(builder, ends, segment))

    interval, segments = load(builder, state, INTERVAL), load(builder, state, SEGMENTS)
    source_end = load(builder, ends, builder.sub(segments, integer(1)))

    def mcu(number: Any, carried: list[Any]) -> list[Any]:
        segment, left = carried[3:]
        before, renew, go_on = builder.block, function.append_basic_block(), function.append_basic_block()
        is_due = builder.and_(builder.icmp_signed("==", left, integer(0)), builder.icmp_signed(">", interval, integer(0)))
        builder.cbranch(is_due, renew, go_on)
        builder.position_at_end(renew)
        following = builder.add(segment, integer(1))
        require(builder.icmp_signed("<", following, segments))
        require(is_used_up(carried, segment))
        end_before = load(builder, ends, segment)
        for component in range(3):
            store(builder, 0, state, PREDICTIONS + component)
        renewed = builder.block
        builder.branch(go_on)
        builder.position_at_end(go_on)
        *reader, segment, left = joined(
            builder, [(before, carried), (renewed, [integer(0), integer(0), end_before, following, interval])]
        )
        require(builder.icmp_signed("<=", reader[2], builder.add(source_end, integer(FILLING_BYTES))))

        def block(which: Any, reader: list[Any]) -> list[Any]:
            numbers = LOW_BLOCK_NUMBERS if is_reduced else BLOCK_NUMBERS
            entry = builder.mul(which, integer(numbers))
            told = [load(builder, blocks, builder.add(entry, integer(place))) for place in range(numbers)]
            target_number = builder.add(told[FIRST_BLOCK], builder.mul(number, told[NEXT_BLOCK]))
            how = builder, bits, search, fail
            nowhere = at(builder, state, NOWHERE)
            if is_reduced:
                place = builder.add(told[OFFSET], builder.mul(target_number, told[UNIT]))
                target, its_order = at(builder, coefficients, place, SHORT), at(builder, order, told[ORDER_AT], BYTE)
                made: Block = LowBlock(*how, its_order, nowhere, target, told[PLANE], told[KEPT])
            else:
                target = at(builder, coefficients, builder.mul(target_number, integer(BLOCK)), SHORT)
                made = Block(*how, order, nowhere, target)
            reader, last = made.decode(
                reader,
                at(builder, state, builder.add(told[COMPONENT], integer(PREDICTIONS))),
                at(builder, tables, told[DC_TABLE], WORD),
                at(builder, tables, told[AC_TABLE], WORD),
            )
            store(builder, last, lasts, target_number, BYTE)
            return reader

        reader = code.accumulate(how_many, 1, reader, block)
        return [*reader, segment, builder.sub(left, integer(1))]

    names = (WAITING, COUNT, PLACE, SEGMENT, LEFT)
    final = code.accumulate(across, 1, [load(builder, state, name) for name in names], mcu)
    for name, value in zip(names, final, strict=True):
        store(builder, value, state, name)
    is_last = builder.icmp_signed("==", builder.add(final[3], integer(1)), segments)
    is_whole = builder.and_(is_last, is_used_up(final, final[3]))
    store(builder, builder.zext(is_whole, INTEGER), state, IS_WHOLE)
    builder.ret_void()
    builder.position_at_end(fail)
    store(builder, 1, state, FAILED)
    builder.ret_void()
    return function
