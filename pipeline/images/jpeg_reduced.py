"""The inverse transform of JPEG to fewer samples: 4 x 4, 2 x 2 or 1 for a block, for images that are wanted smaller.

As :mod:`~pipeline.images.jpeg_idct`, bit for bit libjpeg-turbo in its form for x86: its reduced outputs are the means of two or
four of those of the full transform.

Source: libjpeg-turbo, jidctred.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, Code, Processor, integer, new_function
from .jpeg_geometry import SIDE
from .jpeg_idct import BLOCK_BYTES, BLOCKS, CENTRE, KEPT, POINT, TURN, add_full_blocks, paired_rows, wrapped_where_alone
from .jpeg_lanes import BYTE, DOUBLE, LANE_DOUBLES, LANE_WORDS, WORD, Words

# How many samples a block becomes in each direction.
SIDES = (1, 2, 4, SIDE)

# Numbers of 13 bits behind the point.
_0_211, _0_509, _0_601, _0_720, _0_765, _0_850, _0_899 = 1730, 4176, 4926, 5906, 6270, 6967, 7373
_1_061, _1_272, _1_451, _1_847, _2_172, _2_562, _3_624 = 8697, 10426, 11893, 15137, 17799, 20995, 29692

# What libjpeg-turbo looks samples up by: of larger numbers the higher bits do not count.
_BITS_OF_LEVEL = 10


def add_blocks(module: Any, processor: Processor) -> str:
    """Adds a function that transforms a row of blocks, told first to how many samples a side; gives its name.

    As :func:`~pipeline.images.jpeg_idct.add_full_blocks` otherwise; any other number of samples does nothing.
    """
    names = [
        _add_reduced(module, processor, 1, _one),
        _add_reduced(module, processor, 2, _two),
        _add_reduced(module, processor, 4, _four),
        add_full_blocks(module, processor),
    ]
    function = new_function(module, "jpeg_blocks", [INTEGER, *BLOCKS])
    side, *arguments = function.args
    builder = Code(function, 1).builder
    end = builder.append_basic_block()
    switch = builder.switch(side, end)
    for number, name in zip(SIDES, names, strict=True):
        block = builder.append_basic_block()
        switch.add_case(ir.Constant(INTEGER, number), block)
        builder.position_at_end(block)
        builder.call(module.globals[name], arguments)
        builder.branch(end)
    builder.position_at_end(end)
    builder.ret_void()
    return "jpeg_blocks"


def _add_reduced(module: Any, processor: Processor, side: int, samples_of: Callable[[Words, Any], list[Any]]) -> str:
    name = f"jpeg_blocks_{side}"
    function = new_function(module, name, BLOCKS)
    coefficients, _, count, samples, stride = function.args
    code = Code(function, 1)
    words, builder = Words(code, processor), code.builder
    rows = [builder.mul(stride, integer(row)) for row in range(side)]
    with code.loop(0, count, words.lanes) as block:
        source = words.at(coefficients, builder.mul(block, integer(BLOCK_BYTES)))
        target = words.at(samples, builder.mul(block, integer(side)))
        for row, value in zip(rows, samples_of(words, source), strict=True):
            words.store(value, target, row)
    builder.ret_void()
    return name


def _four(words: Words, source: Any) -> list[Any]:
    rows = paired_rows(words, source)
    rows[0] = wrapped_where_alone(words, [*rows[:4], *rows[5:]])
    halves = []
    for interleave in (words.interleave_low, words.interleave_high):
        pairs = [interleave(rows[first], rows[second]) for first, second in ((0, 0), (2, 6), (7, 1), (3, 5))]
        halves.append(_transform_to_four(words, pairs, POINT - KEPT + 1))
    pairs = []
    for half in halves:
        upper, lower = (words.as_type(words.pack_words(half[row], half[row + 1]), DOUBLE) for row in (0, 2))
        pairs += [words.as_type(words.choose_in_lanes(upper, lower, places), WORD) for places in ([0, 2, 4, 6], [1, 3, 5, 7])]
    columns = _transform_to_four(words, pairs, POINT + KEPT + 4)
    left, right = (words.pack_words(columns[column], columns[column + 1]) for column in (0, 2))
    turned = words.as_type(words.choose_in_lanes(_bytes_of(words, left, right), None, TURN), DOUBLE)
    return [words.choose(turned, None, range(row, turned.type.count, LANE_DOUBLES)) for row in range(4)]


def _transform_to_four(words: Words, pairs: Sequence[Any], shift: int) -> list[Any]:
    """Gives 4 outputs along one direction from pairs of inputs (0, any), (2, 6), (7, 1), (3, 5)."""
    builder = words.builder
    first, even, ends, middle = pairs
    start = builder.add(words.multiply_pairs(first, 2 << POINT, 0), words.constant(DOUBLE, 1 << (shift - 1)))
    even = words.multiply_pairs(even, _1_847, -_0_765)
    outer = builder.add(words.multiply_pairs(ends, -_0_509, _2_562), words.multiply_pairs(middle, _0_899, -_0_601))
    inner = builder.add(words.multiply_pairs(ends, -_0_211, _1_061), words.multiply_pairs(middle, -_2_172, _1_451))
    total, difference = builder.add(start, even), builder.sub(start, even)
    outputs = builder.add(total, outer), builder.add(difference, inner), builder.sub(difference, inner), builder.sub(total, outer)
    return [builder.ashr(output, words.constant(DOUBLE, shift)) for output in outputs]


def _two(words: Words, source: Any) -> list[Any]:
    builder = words.builder
    rows = paired_rows(words, source)

    def divided(value: Any, shift: int) -> Any:
        rounded = builder.add(value, words.constant(DOUBLE, 1 << (shift - 1)))
        return builder.ashr(rounded, words.constant(DOUBLE, shift))

    halves = []
    for interleave in (words.interleave_low, words.interleave_high):
        start = words.as_type(interleave(words.constant(WORD, 0), rows[0]), DOUBLE)
        start = builder.ashr(start, words.constant(DOUBLE, 16 - POINT - 2))
        odd = builder.add(
            words.multiply_pairs(interleave(rows[7], rows[1]), -_0_720, _3_624),
            words.multiply_pairs(interleave(rows[3], rows[5]), -_1_272, _0_850),
        )
        outputs = builder.add(start, odd), builder.sub(start, odd)
        halves.append([divided(output, POINT - KEPT + 2) for output in outputs])
    # The first column comes first of the lower half; the higher half is columns 7, 1, 3, 5. Each twice, then the second row.
    firsts, others = halves
    start = builder.shl(words.choose_in_lanes(firsts[0], firsts[1], [0, 0, 4, 4]), words.constant(DOUBLE, POINT + 2))
    odd = words.multiply_pairs(words.pack_words(*others), -_0_720, _3_624, -_1_272, _0_850)
    odd = builder.add(odd, words.choose_in_lanes(odd, None, [1, 0, 3, 2]))
    outputs = words.choose_in_lanes(builder.add(start, odd), builder.sub(start, odd), [0, 5, 2, 7])
    outputs = words.pack_words(*[divided(outputs, POINT + KEPT + 5)] * 2)
    pairs = words.as_type(_bytes_of(words, outputs, outputs), WORD)
    return [words.choose(pairs, None, range(row, pairs.type.count, LANE_WORDS)) for row in (0, 1)]


def _one(words: Words, source: Any) -> list[Any]:
    builder, lanes = words.builder, words.lanes
    level = ir.Constant(ir.VectorType(WORD, lanes), ir.Undefined)
    for lane in range(lanes):
        level = builder.insert_element(level, words.load(source, lane * BLOCK_BYTES, WORD), ir.Constant(DOUBLE, lane))
    wide = ir.VectorType(DOUBLE, lanes)

    def each(value: int) -> Any:
        return ir.Constant(wide, [value] * lanes)

    level = builder.ashr(builder.add(builder.sext(level, wide), each(4)), each(3))
    unused = each(32 - _BITS_OF_LEVEL)
    level = builder.add(builder.ashr(builder.shl(level, unused), unused), each(CENTRE))
    level = builder.select(builder.icmp_signed("<", level, each(0)), each(0), level)
    level = builder.select(builder.icmp_signed(">", level, each(255)), each(255), level)
    return [builder.trunc(level, ir.VectorType(BYTE, lanes))]


def _bytes_of(words: Words, left: Any, right: Any) -> Any:
    return words.builder.xor(words.pack_signed(left, right), words.constant(BYTE, CENTRE))
