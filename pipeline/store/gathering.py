"""Vector code of the statistics: one pass over the values of a row on its way to the disk, that also finds what is not finite.

Values are taken in blocks that stay in the processor's nearest memory. Of each block: sums in double precision, the code of
every value (sign and power of two) as a byte, minimum and maximum of each channel; then the bytes are counted, 64 at a time, from
the largest power of two down to where all have been counted.

Sums have the same number of lanes on every processor, and so the same bits. What is counted, and minima and maxima, do not depend
on any order.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from ..statistics import OCTAVES, SMALLEST_EXPONENT
from ..vector_code import INTEGER, POINTER, Code, MachineCode, compiled_once, integer, new_function, this_processor

LANES = 16
BYTE_LANES = 64
# A count of a lane is a byte: not more vectors of bytes than it can count.
BLOCK_VALUES = 255 * BYTE_LANES
# A sum for each lane, and one for what is left.
SUMS = BYTE_LANES + 1
# Vectors of channels whose bounds are found together.
CHANNEL_VECTORS = 4
# Codes 1 to OCTAVES, and the same with SIGN; then those that are no codes.
SIGN = 128
TINY, ZERO, CODES = 256, 257, 258

# values, pixels, channels; minima and maxima of the channels, to be lowered and raised; SUMS doubles and SUMS of squares, to be
# added to; CODES counts, likewise; scratch: a byte for each value of a block
GATHER = [POINTER, INTEGER, INTEGER, POINTER, POINTER, POINTER, POINTER, POINTER]

_BYTE, _SHORT, _WORD, _DOUBLE = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.DoubleType()
# Source: IEEE 754, binary32: a sign, 8 bits of exponent, 23 of fraction.
# The exponent of the smallest octave is stored as the first code and this.
_FRACTION_BITS, _BIAS = 23, 127 + SMALLEST_EXPONENT - 1


class Gathered(NamedTuple):
    """What one pass finds in the values of a row, or of a band of one.

    Attributes:
        sum: Of the values; not finite if one of them is not.
        sum_of_squares: Likewise.
        minima: (c,) float32, of each channel.
        maxima: (c,) float32, likewise.
        counts: (CODES,) int64, values of each code: from 1 on the positive ones by their power of two, with :data:`SIGN` the
            negative ones; at :data:`ZERO` and :data:`TINY` those that have none.
    """

    sum: float
    sum_of_squares: float
    minima: NDArray[np.float32]
    maxima: NDArray[np.float32]
    counts: NDArray[np.int64]

    @property
    def is_finite(self) -> bool:
        """Whether all values are: no float32 is so large that the sum of squares would not be."""
        return math.isfinite(self.sum_of_squares)


def gather(values: NDArray[np.float32]) -> Gathered:
    """Gathers the statistics of some values, in one pass.

    Args:
        values: (..., c) float32, C order, not empty.
    """
    channels = values.shape[-1]
    minima, maxima = np.empty(channels, np.float32), np.empty(channels, np.float32)
    minima.fill(np.inf)
    maxima.fill(-np.inf)
    sums, counts = np.zeros(2 * SUMS), np.zeros(CODES, np.int64)
    scratch = np.empty(BLOCK_VALUES + BYTE_LANES, np.uint8)
    compiled_gathering()["gather"](
        *(values.ctypes.data, values.size // channels, channels, minima.ctypes.data, maxima.ctypes.data),
        *(sums.ctypes.data, counts.ctypes.data, scratch.ctypes.data),
    )
    return Gathered(float(sums[:SUMS].sum()), float(sums[SUMS:].sum()), minima, maxima, counts)


@compiled_once
def compiled_gathering() -> MachineCode:
    """Gives ``gather``."""
    module = ir.Module()
    _add_gather(module)
    return MachineCode(module, this_processor(), {"gather": GATHER})


def _add_gather(module: Any) -> None:
    function = new_function(module, "gather", GATHER)
    values, pixels, channels, minima, maxima, sums, counts, scratch = function.args
    code = Code(function, LANES)
    builder = code.builder
    # Whole pixels, as many as fit; at least one, whose channels are then cut in blocks.
    fitting = builder.sdiv(integer(BLOCK_VALUES), channels)
    step = builder.select(builder.icmp_signed(">", fitting, integer(1)), fitting, integer(1))
    with code.loop(0, pixels, step) as pixel:
        count = code.smaller(step, builder.sub(pixels, pixel))
        block = code.at(values, builder.mul(pixel, channels))
        size = builder.mul(count, channels)
        with code.loop(0, size, BLOCK_VALUES) as place:
            left = code.smaller(integer(BLOCK_VALUES), builder.sub(size, place))
            _add_block(code, code.at(block, place), left, sums, counts, scratch)
        _add_bounds(code, block, count, channels, minima, maxima)
    builder.ret_void()


def _add_bounds(code: Code, block: Any, pixels: Any, channels: Any, minima: Any, maxima: Any) -> None:
    """Lowers minima and raises maxima: of some channels at a time, over all pixels, while they stay in registers."""
    builder = code.builder
    start = integer(0)
    for lanes, vectors in ((LANES, CHANNEL_VECTORS), (LANES, 1), (1, 1)):
        part, width = code.of_lanes(lanes), lanes * vectors
        stop = builder.sub(channels, builder.srem(channels, integer(width)))
        with part.loop(start, stop, width) as channel:
            offsets = [builder.add(channel, integer(number * lanes)) for number in range(vectors)]

            def step(pixel: Any, bounds: list[Any], part: Code = part, offsets: list[Any] = offsets) -> list[Any]:
                line = builder.mul(pixel, channels)
                found = [part.load(block, builder.add(line, offset)) for offset in offsets]
                low = [part.smallest(bound, value) for bound, value in zip(bounds, found, strict=False)]
                high = [part.largest(bound, value) for bound, value in zip(bounds[len(found) :], found, strict=True)]
                return low + high

            before = [part.load(pointer, offset) for pointer in (minima, maxima) for offset in offsets]
            after = part.accumulate(pixels, 1, before, step)
            for (pointer, offset), bound in zip(itertools.product((minima, maxima), offsets), after, strict=True):
                part.store(bound, pointer, offset)
        start = stop


def _add_block(code: Code, block: Any, count: Any, sums: Any, counts: Any, scratch: Any) -> None:
    """Adds the values of a block to the sums and to the counts."""
    builder = code.builder
    whole = builder.sub(count, builder.srem(count, integer(BYTE_LANES)))
    found = [
        _add_encoding(code.of_lanes(BYTE_LANES), block, (integer(0), whole), sums, 0, scratch),
        _add_encoding(code.of_lanes(1), block, (whole, count), sums, BYTE_LANES, scratch),
    ]
    # The last vector of bytes is filled up with a code that is not counted.
    with code.loop(count, builder.and_(builder.add(count, integer(BYTE_LANES - 1)), integer(-BYTE_LANES))) as place:
        builder.store(ir.Constant(_BYTE, 0), _byte_at(code, scratch, place))
    signs, zeros = builder.or_(found[0][0], found[1][0]), builder.add(found[0][2], found[1][2])
    first = builder.zext(_larger(builder, found[0][1], found[1][1]), INTEGER)
    _raise(builder, counts, integer(ZERO), zeros)
    rest = integer(TINY), builder.sub(count, zeros)
    with builder.if_else(builder.icmp_signed("<", signs, ir.Constant(_BYTE, 0))) as (signed, unsigned):
        with signed:
            _add_counting(code, scratch, count, counts, first, rest, [(0, 0), (0, SIGN), (1, 0), (1, SIGN)])
        with unsigned:
            _add_counting(code, scratch, count, counts, first, rest, [(below, 0) for below in range(4)])


def _add_encoding(
    code: Code, block: Any, stretch: tuple[Any, Any], sums: Any, first_sum: int, scratch: Any
) -> tuple[Any, Any, Any]:
    """Adds the values of a stretch of a block to the sums, and writes their codes.

    Returns:
        The codes or-ed (i8), the largest without the sign (i8), the number of zeros (i64).
    """
    builder, lanes = code.builder, code.lanes
    words, doubles, octets = (ir.VectorType(kind, lanes) for kind in (_WORD, _DOUBLE, _BYTE))
    places = [builder.gep(sums, [integer(first + first_sum)], source_etype=_DOUBLE) for first in (0, SUMS)]
    start, stop = stretch
    before = builder.block
    head, body, after = (builder.append_basic_block() for _ in range(3))
    starts = [builder.load(place, typ=doubles, align=8) for place in places]
    starts += [ir.Constant(octets, [0] * lanes)] * 2 + [integer(0)]
    builder.branch(head)
    builder.position_at_end(head)
    place = builder.phi(INTEGER)
    place.add_incoming(start, before)
    carried = [builder.phi(value.type) for value in starts]
    for phi, value in zip(carried, starts, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", place, stop), body, after)
    builder.position_at_end(body)
    total, squares, joined, largest, zeros = carried
    value = code.load(block, place)
    double, word = builder.fpext(value, doubles), builder.bitcast(value, words)

    def byte(shift: int) -> Any:
        return builder.trunc(builder.lshr(word, ir.Constant(words, [shift] * lanes)), octets)

    power = _intrinsic(code, "llvm.usub.sat", octets, [byte(_FRACTION_BITS), ir.Constant(octets, [_BIAS] * lanes)])
    power = _intrinsic(code, "llvm.umin", octets, [power, ir.Constant(octets, [OCTAVES] * lanes)])
    sign = builder.and_(byte(_FRACTION_BITS + 1), ir.Constant(octets, [SIGN] * lanes))
    both = builder.or_(power, sign)
    builder.store(both, _byte_at(code, scratch, place), align=1)
    is_zero = builder.bitcast(builder.fcmp_ordered("==", value, code.constant(0.0)), ir.IntType(lanes))
    ones = _intrinsic(code, "llvm.ctpop", ir.IntType(lanes), [is_zero])
    results = [
        builder.fadd(total, double),
        # The square of a float32 has its place in a double: the same bits, whether or not the processor rounds it.
        _intrinsic(code, "llvm.fmuladd", doubles, [double, double, squares]),
        builder.or_(joined, both),
        _intrinsic(code, "llvm.umax", octets, [largest, power]),
        builder.add(zeros, builder.zext(ones, INTEGER) if lanes < 64 else ones),
    ]
    place.add_incoming(builder.add(place, integer(lanes)), builder.block)
    for phi, result in zip(carried, results, strict=True):
        phi.add_incoming(result, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    for pointer, phi in zip(places, carried[:2], strict=True):
        builder.store(phi, pointer, align=8)
    return (
        _intrinsic(code, "llvm.vector.reduce.or", octets, [joined], _BYTE),
        _intrinsic(code, "llvm.vector.reduce.umax", octets, [largest], _BYTE),
        zeros,
    )


def _add_counting(
    code: Code, scratch: Any, count: Any, counts: Any, first: Any, rest: tuple[Any, Any], codes: list[tuple[int, int]]
) -> None:
    """Counts codes from the largest down, some at a time, until all values that are not zero are found or none is left.

    Args:
        code: Where.
        scratch: Bytes.
        count: Of them.
        counts: To be raised.
        first: The largest code, without the sign.
        rest: Where in ``counts`` what has no code of its own belongs, and how many values are not zero.
        codes: Counted at a time: how far below the first, and the sign.
    """
    builder = code.builder
    octets, wider = ir.VectorType(_BYTE, BYTE_LANES), ir.VectorType(_SHORT, BYTE_LANES)
    before = builder.block
    head, body, after = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    power, remaining = builder.phi(INTEGER), builder.phi(INTEGER)
    power.add_incoming(first, before)
    remaining.add_incoming(rest[1], before)
    is_more = builder.and_(builder.icmp_signed(">", remaining, integer(0)), builder.icmp_signed(">", power, integer(0)))
    builder.cbranch(is_more, body, after)
    builder.position_at_end(body)
    numbers = [builder.add(power, integer(sign - below)) for below, sign in codes]
    sought = [_everywhere(builder, builder.trunc(number, _BYTE), octets) for number in numbers]

    def step(place: Any, found: list[Any]) -> list[Any]:
        loaded = builder.load(_byte_at(code, scratch, place), typ=octets, align=1)
        # A lane that agrees is -1.
        return [
            builder.sub(number, builder.sext(builder.icmp_unsigned("==", loaded, byte), octets))
            for number, byte in zip(found, sought, strict=True)
        ]

    totals = code.accumulate(count, BYTE_LANES, [ir.Constant(octets, [0] * BYTE_LANES)] * len(codes), step)
    left = remaining
    for (below, _), number, total in zip(codes, numbers, totals, strict=True):
        found = _intrinsic(code, "llvm.vector.reduce.add", wider, [builder.zext(total, wider)], _SHORT)
        # Below the smallest code lie that of zeros, and those of the other sign.
        is_code = builder.icmp_signed(">", power, integer(below))
        found = builder.select(is_code, builder.zext(found, INTEGER), integer(0))
        _raise(builder, counts, builder.select(is_code, number, integer(0)), found)
        left = builder.sub(left, found)
    power.add_incoming(builder.sub(power, integer(max(below for below, _ in codes) + 1)), builder.block)
    remaining.add_incoming(left, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    _raise(builder, counts, rest[0], remaining)


def _raise(builder: Any, counts: Any, place: Any, by: Any) -> None:
    target = builder.gep(counts, [place], source_etype=INTEGER)
    builder.store(builder.add(builder.load(target, typ=INTEGER), by), target, align=8)


def _larger(builder: Any, left: Any, right: Any) -> Any:
    return builder.select(builder.icmp_unsigned(">", left, right), left, right)


def _byte_at(code: Code, scratch: Any, place: Any) -> Any:
    return code.builder.gep(scratch, [place], source_etype=_BYTE)


def _everywhere(builder: Any, value: Any, vector: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(_WORD, vector.count), [0] * vector.count))


def _intrinsic(code: Code, name: str, kind: Any, arguments: list[Any], result: Any = None) -> Any:
    """Calls what LLVM has for all kinds of vectors under one name."""
    of = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    element = kind.element if of else kind
    name = f"{name}.{of}{'f64' if element == _DOUBLE else f'i{element.width}'}"
    module = code.builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(result or kind, [kind] * len(arguments)), name)
    return code.builder.call(function, arguments)
