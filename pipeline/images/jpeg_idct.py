"""The inverse transform of JPEG: coefficients of blocks of 8 x 8 in, samples of 0 to 255 out.

Bit for bit that of libjpeg-turbo's accurate integer method. As many blocks as a register has lanes are transformed
together, each in a lane of its own: first along the columns, a column a word, then along the rows.

Source: libjpeg-turbo, jidctint.c, after C. Loeffler, A. Ligtenberg and G. Moschytz, "Practical Fast 1-D DCT Algorithms with 11
Multiplications", ICASSP 1989.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, Code, Processor, integer, new_function
from .jpeg_geometry import SIDE
from .jpeg_lanes import BYTE, DOUBLE, LANE_BYTES, LANE_DOUBLES, QUAD, WORD, Words

BLOCK_BYTES = SIDE * SIDE * 2

# samples of a block in each direction; coefficients of a row of blocks; from one of a block to the next, how far each block goes;
# blocks; samples, bytes from one row of samples to the next
BLOCKS = [INTEGER, POINTER, INTEGER, POINTER, INTEGER, POINTER, INTEGER]

# Numbers of 13 bits behind the point; the first pass leaves 2 of them.
POINT, KEPT = 13, 2
_ONE = 1 << POINT
# Each of the two passes makes numbers larger by the square root of 8.
_SHIFT_COLUMNS, _SHIFT_ROWS = POINT - KEPT, POINT + KEPT + 3
_0_298, _0_390, _0_541, _0_765, _0_899, _1_175 = 2446, 3196, 4433, 6270, 7373, 9633
_1_501, _1_847, _1_961, _2_053, _2_562, _3_072 = 12299, 15137, 16069, 16819, 20995, 25172

# The order of columns after which the halves of a lane, each packed, are pairs for the second pass.
_PAIRED_COLUMNS = (0, 4, 2, 6, 7, 1, 3, 5)
# Turns 4 columns of 4 bytes into 4 rows.
TURN = [column * 4 + row for row in range(4) for column in range(4)]
CENTRE = 128


def add_full_blocks(module: Any, processor: Processor) -> str:
    """Adds a function that transforms a row of blocks; gives its name.

    It reads coefficients of, and writes samples for, a multiple of the lanes of a register in blocks.
    """
    function = new_function(module, "jpeg_blocks_8", BLOCKS)
    _, coefficients, _, furthest, count, samples, stride = function.args
    code = Code(function, 1)
    words, builder = Words(code, processor), code.builder
    lanes = words.lanes
    rows = [builder.mul(stride, integer(row)) for row in range(SIDE)]
    with code.loop(0, count, lanes) as block:
        source = words.at(coefficients, builder.mul(block, integer(BLOCK_BYTES)))
        target = words.at(samples, builder.mul(block, integer(SIDE)))
        ends = words.load(furthest, block, ir.IntType(8 * lanes))
        with builder.if_else(builder.icmp_unsigned("==", ends, ir.Constant(ends.type, 0))) as (flat, other):
            with flat:
                level = _flat_samples(words, source)
                for row in rows:
                    words.store(level, target, row)
            with other:
                for row, value in zip(rows, _samples(words, source), strict=True):
                    words.store(value, target, row)
    builder.ret_void()
    return "jpeg_blocks_8"


def _flat_samples(words: Words, source: Any) -> Any:
    """Gives 8 equal bytes for each block from its first coefficient."""
    builder, wide = words.builder, ir.VectorType(QUAD, words.lanes)
    first = ir.Constant(ir.VectorType(WORD, words.lanes), ir.Undefined)
    for lane in range(words.lanes):
        value = words.load(source, lane * BLOCK_BYTES, WORD)
        first = builder.insert_element(first, value, ir.Constant(DOUBLE, lane))

    def each(kind: Any, value: int) -> Any:
        return ir.Constant(ir.VectorType(kind, words.lanes), [value] * words.lanes)

    # Wraps, as in a column of nothing else.
    level = builder.sext(builder.shl(first, each(WORD, KEPT)), ir.VectorType(DOUBLE, words.lanes))
    level = builder.ashr(builder.add(level, each(DOUBLE, 1 << (KEPT + 2))), each(DOUBLE, KEPT + 3))
    level = builder.add(level, each(DOUBLE, CENTRE))
    level = builder.select(builder.icmp_signed("<", level, each(DOUBLE, 0)), each(DOUBLE, 0), level)
    level = builder.select(builder.icmp_signed(">", level, each(DOUBLE, 255)), each(DOUBLE, 255), level)
    return builder.mul(builder.zext(level, wide), each(QUAD, 0x0101010101010101))


def _samples(words: Words, source: Any) -> list[Any]:
    """Gives 8 rows of samples, 8 bytes for each block."""
    builder = words.builder
    inputs = _paired_rows(words, source)
    total, difference = builder.add(inputs[0], inputs[4]), builder.sub(inputs[0], inputs[4])
    sums = builder.add(inputs[7], inputs[3]), builder.add(inputs[1], inputs[5])
    halves = []
    for interleave in (words.interleave_low, words.interleave_high):
        centre = interleave(total, difference)
        starts = words.multiply_pairs(centre, _ONE, 0), words.multiply_pairs(centre, 0, _ONE)
        pairs = [interleave(inputs[first], inputs[second]) for first, second in ((2, 6), (7, 1), (3, 5))]
        halves.append(_transform(words, starts, pairs, interleave(*sums), _SHIFT_COLUMNS))
    rows = []
    for quarter in (0, 4):
        pairs = []
        for half in halves:
            upper, lower = (words.pack_words(half[row], half[row + 1]) for row in (quarter, quarter + 2))
            both = words.as_type(upper, DOUBLE), words.as_type(lower, DOUBLE)
            pairs += [words.as_type(words.choose_in_lanes(*both, places), WORD) for places in ([0, 2, 4, 6], [1, 3, 5, 7])]
        rows += _rows_of_quarter(words, pairs)
    return rows


def _paired_rows(words: Words, source: Any) -> list[Any]:
    """Gives 8 rows of coefficients, a block a lane, the columns of each so ordered that they make pairs."""
    lanes = words.lanes
    rows = []
    for first in range(0, SIDE, lanes):
        found = [
            words.load(source, block * BLOCK_BYTES + first * LANE_BYTES, words.vector(WORD)) for block in range(lanes)
        ]  # a row a lane
        rows += _turned_lanes(words, found)
    return [words.choose_in_lanes(row, None, _PAIRED_COLUMNS) for row in rows]


def _turned_lanes(words: Words, found: list[Any]) -> list[Any]:
    if len(found) == 1:
        return found
    if len(found) == 2:
        return [words.choose_lanes(found[0], found[1], lanes) for lanes in ([0, 2], [1, 3])]
    left, right = found[:2], found[2:]
    result = []
    for pair in ([0, 1, 4, 5], [2, 3, 6, 7]):
        upper, lower = (words.choose_lanes(two[0], two[1], pair) for two in (left, right))
        result += [words.choose_lanes(upper, lower, lanes) for lanes in ([0, 2, 4, 6], [1, 3, 5, 7])]
    return result


def _transform(words: Words, starts: Sequence[Any], pairs: Sequence[Any], sums: Any, shift: int) -> list[Any]:
    """Gives the 8 outputs of inputs along one direction.

    Args:
        words: Where to write.
        starts: Inputs 0 + 4 and 0 - 4, times :data:`_ONE`.
        pairs: Of inputs (2, 6), (7, 1), (3, 5).
        sums: Pairs of inputs (7 + 3, 1 + 5).
        shift: By how many bits outputs are divided, rounded.
    """
    builder = words.builder
    halves_up = words.constant(DOUBLE, 1 << (shift - 1))
    centre, near = (builder.add(start, halves_up) for start in starts)
    even, ends, middle = pairs
    outer = words.multiply_pairs(even, _0_541 + _0_765, _0_541)
    inner = words.multiply_pairs(even, _0_541, _0_541 - _1_847)
    evens = builder.add(centre, outer), builder.add(near, inner), builder.sub(near, inner), builder.sub(centre, outer)
    third = words.multiply_pairs(sums, _1_175 - _1_961, _1_175)
    fourth = words.multiply_pairs(sums, _1_175, _1_175 - _0_390)
    odds = (
        builder.add(words.multiply_pairs(ends, -_0_899, _1_501 - _0_899), fourth),
        builder.add(words.multiply_pairs(middle, _3_072 - _2_562, -_2_562), third),
        builder.add(words.multiply_pairs(middle, -_2_562, _2_053 - _2_562), fourth),
        builder.add(words.multiply_pairs(ends, _0_298 - _0_899, -_0_899), third),
    )
    outputs = [builder.add(even, odd) for even, odd in zip(evens, odds, strict=True)]
    outputs += [builder.sub(even, odd) for even, odd in zip(evens[::-1], odds[::-1], strict=True)]
    return [builder.ashr(output, words.constant(DOUBLE, shift)) for output in outputs]


def _rows_of_quarter(words: Words, pairs: Sequence[Any]) -> list[Any]:
    """Gives 4 rows of samples from pairs of columns (0, 4), (2, 6), (7, 1), (3, 5), a pair of a row in 32 bits."""
    builder = words.builder
    centre = pairs[0]
    swapped = words.choose_in_lanes(centre, None, [1, 0, 3, 2, 5, 4, 7, 6])
    starts = [words.multiply_pairs(combine(centre, swapped), _ONE, 0) for combine in (builder.add, builder.sub)]
    outputs = _transform(words, starts, pairs[1:], builder.add(pairs[2], pairs[3]), _SHIFT_ROWS)
    turned = []
    for first in (0, LANE_DOUBLES):
        left, right = (words.pack_words(outputs[column], outputs[column + 1]) for column in (first, first + 2))
        centred = builder.xor(words.pack_signed(left, right), words.constant(BYTE, CENTRE))
        turned.append(words.as_type(words.choose_in_lanes(centred, None, TURN), DOUBLE))
    rows = []
    for interleave in (words.interleave_low, words.interleave_high):
        two = words.as_type(interleave(*turned), QUAD)
        rows += [words.choose(two, None, range(row, two.type.count, 2)) for row in (0, 1)]
    return rows
