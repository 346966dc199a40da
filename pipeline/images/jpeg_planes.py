"""The inverse transform of JPEG to fewer samples: 4 x 4, 2 x 2 or 1 for a block, for images that are wanted smaller.

So many of the lowest frequencies, transformed as a block of that size, are the picture that has these frequencies and no others.
Measured, that is as near to reducing the whole picture as libjpeg-turbo's means of neighbouring samples, and nearer where these
are furthest (the README says by how much); and no higher frequency is needed.

Coefficients lie in planes, one of each frequency, so that neighbouring blocks are transformed by the same instructions. Numbers
too large for them wrap: damaged files come to something, and everywhere to the same.

Source: R. Dugad and N. Ahuja, "A Fast Scheme for Image Size Change in the Compressed Domain", IEEE Transactions on Circuits and
Systems for Video Technology 11 (4), 2001.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, Code, Processor, integer, new_function
from .jpeg_geometry import SIDE
from .jpeg_idct import BLOCKS, CENTRE, add_full_blocks
from .jpeg_lanes import BYTE, DOUBLE, WORD

# How many samples a block becomes in each direction, other than all.
LOW_SIDES = (1, 2, 4)
# Bytes of a row that are made at once.
_STEP_BYTES = 64

# Numbers of 13 bits behind the point, of which the first pass leaves 2: the square root of 2 times the cosine of one and three
# eighths of a right angle. A transform of 4 makes numbers larger by 2 in each direction, and means are a half of those of 8.
_POINT, _KEPT = 13, 2
_1_307, _0_541 = 10703, 4433
# Of a block of 8 x 8, a mean is an eighth of its first coefficient.
_EIGHTH = 3

# planes, numbers of each, of which there is a multiple of 64; how many; a factor of each
DEQUANTISE_PLANES = [POINTER, INTEGER, INTEGER, POINTER]


def add_dequantise_planes(module: Any) -> Any:
    """Adds ``jpeg_dequantise_planes``: multiplies each plane by its factor."""
    function = new_function(module, "jpeg_dequantise_planes", DEQUANTISE_PLANES)
    planes, count, how_many, factors = function.args
    code = Code(function, 1)
    builder = code.builder
    lanes = _STEP_BYTES // 2
    vector = ir.VectorType(WORD, lanes)

    def at(pointer: Any, place: Any) -> Any:
        return builder.gep(pointer, [place], source_etype=WORD)

    with code.loop(0, how_many) as number:
        factor = _everywhere(builder, builder.load(at(factors, number), typ=WORD, align=2), lanes)
        start = builder.mul(number, count)
        with code.loop(0, count, lanes) as place:
            here = at(planes, builder.add(start, place))
            builder.store(builder.mul(builder.load(here, typ=vector, align=2), factor), here, align=2)
    builder.ret_void()
    return function


def add_low_blocks(module: Any, processor: Processor) -> str:
    """Adds a function that transforms a row of blocks, told to how many samples a side; gives its name.

    As :func:`~pipeline.images.jpeg_idct.add_full_blocks` for blocks of all samples. Any other number of samples than 1, 2, 4
    and 8 does nothing.
    """
    names = [_add_low(module, 1, _one), _add_low(module, 2, _two), _add_low(module, 4, _four), add_full_blocks(module, processor)]
    function = new_function(module, "jpeg_low_blocks", BLOCKS)
    builder = Code(function, 1).builder
    end = builder.append_basic_block()
    switch = builder.switch(function.args[0], end)
    for number, name in zip((*LOW_SIDES, SIDE), names, strict=True):
        block = builder.append_basic_block()
        switch.add_case(ir.Constant(INTEGER, number), block)
        builder.position_at_end(block)
        builder.call(module.globals[name], function.args)
        builder.branch(end)
    builder.position_at_end(end)
    builder.ret_void()
    return "jpeg_low_blocks"


def _add_low(module: Any, side: int, samples_of: Callable[[_Numbers, Sequence[Any]], list[list[Any]]]) -> str:
    name = f"jpeg_low_blocks_{side}"
    function = new_function(module, name, BLOCKS)
    _, coefficients, plane, _, count, samples, stride = function.args
    code = Code(function, 1)
    builder, lanes = code.builder, _STEP_BYTES // side
    numbers = _Numbers(builder, lanes)
    starts = [builder.mul(plane, integer(number)) for number in range(side * side)]
    rows = [builder.mul(stride, integer(row)) for row in range(side)]
    with code.loop(0, count, lanes) as block:
        found = [numbers.load(coefficients, builder.add(start, block)) for start in starts]
        target = builder.gep(samples, [builder.mul(block, integer(side))], source_etype=BYTE)
        for row, values in zip(rows, samples_of(numbers, found), strict=True):
            # Side by side: the first in the lowest bits.
            together = ir.VectorType(ir.IntType(8 * side), lanes)
            joined = None
            for place, value in enumerate(values):
                byte = builder.zext(numbers.sample(value), together) if side > 1 else numbers.sample(value)
                byte = builder.shl(byte, ir.Constant(together, [8 * place] * lanes)) if place else byte
                joined = byte if joined is None else builder.or_(joined, byte)
            builder.store(joined, builder.gep(target, [row], source_etype=BYTE), align=1)
    builder.ret_void()
    return name


class _Numbers:
    """Vectors of 32-bit numbers, one of each block."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self._lanes = builder, lanes
        self._type = ir.VectorType(DOUBLE, lanes)

    def constant(self, value: int) -> Any:
        return ir.Constant(self._type, [value] * self._lanes)

    def load(self, planes: Any, place: Any) -> Any:
        """Loads coefficients."""
        where = self.builder.gep(planes, [place], source_etype=WORD)
        return self.builder.sext(self.builder.load(where, typ=ir.VectorType(WORD, self._lanes), align=2), self._type)

    def divided(self, value: Any, bits: int) -> Any:
        """Gives value / 2**bits, rounded, halves up."""
        return self.builder.ashr(self.builder.add(value, self.constant(1 << (bits - 1))), self.constant(bits))

    def sample(self, value: Any) -> Any:
        """Gives bytes, cut off at 0 and 255, of numbers around 0."""
        builder = self.builder
        value = builder.add(value, self.constant(CENTRE))
        value = builder.select(builder.icmp_signed("<", value, self.constant(0)), self.constant(0), value)
        value = builder.select(builder.icmp_signed(">", value, self.constant(255)), self.constant(255), value)
        return builder.trunc(value, ir.VectorType(BYTE, self._lanes))


def _one(numbers: _Numbers, planes: Sequence[Any]) -> list[list[Any]]:
    return [[numbers.divided(planes[0], _EIGHTH)]]


def _two(numbers: _Numbers, planes: Sequence[Any]) -> list[list[Any]]:
    builder = numbers.builder
    mean, across, down, both = planes
    columns = [(combine(mean, across), combine(down, both)) for combine in (builder.add, builder.sub)]
    return [[numbers.divided(combine(*column), _EIGHTH) for column in columns] for combine in (builder.add, builder.sub)]


def _four(numbers: _Numbers, planes: Sequence[Any]) -> list[list[Any]]:
    columns = [_transform_to_four(numbers, planes[column::4], _POINT - _KEPT) for column in range(4)]
    return [_transform_to_four(numbers, row, _POINT + _KEPT + _EIGHTH) for row in zip(*columns, strict=True)]


def _transform_to_four(numbers: _Numbers, inputs: Sequence[Any], shift: int) -> list[Any]:
    """Gives 4 outputs along one direction."""
    builder = numbers.builder

    def times(value: Any, factor: int) -> Any:
        return builder.mul(value, numbers.constant(factor))

    mean, first, second, third = inputs
    outer, inner = (times(combine(mean, second), 1 << _POINT) for combine in (builder.add, builder.sub))
    far = builder.add(times(first, _1_307), times(third, _0_541))
    near = builder.sub(times(first, _0_541), times(third, _1_307))
    outputs = builder.add(outer, far), builder.add(inner, near), builder.sub(inner, near), builder.sub(outer, far)
    return [numbers.divided(output, shift) for output in outputs]


def _everywhere(builder: Any, value: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(DOUBLE, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(DOUBLE, lanes), [0] * lanes))
