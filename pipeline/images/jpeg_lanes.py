"""Vectors of 16-bit words, for :mod:`~pipeline.images.jpeg_idct` and :mod:`~pipeline.images.jpeg_colour`.

A register is some lanes of 128 bits. What x86 does within a lane (interleave, pack, multiply pairs) is one instruction there;
other processors have registers of one lane, and LLVM finds their instructions from what the operation means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, Code, Processor, integer

LANE_BYTES = 16
# What fills a lane.
LANE_WORDS, LANE_DOUBLES, LANE_QUADS = 8, 4, 2

BYTE, WORD, DOUBLE, QUAD = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def lanes_of(processor: Processor) -> int:
    """Gives the lanes of a register in which a processor computes words."""
    features = set(processor.features.split(","))
    # Without permutations of bytes, longer registers are no faster here, and take LLVM twice as long.
    longest = {"+avx512bw", "+avx512vbmi"} <= features
    return 4 if longest else 2 if "+avx2" in features else 1


class Words:
    """Short names for operations on vectors of words, written where a builder stands.

    Args:
        code: Of the function.
        processor: Which it is made for.
    """

    def __init__(self, code: Code, processor: Processor) -> None:
        features = set(processor.features.split(","))
        self.builder = code.builder
        self.lanes = lanes_of(processor)
        self.words = self.lanes * LANE_WORDS
        self.has_byte_permutes = self.lanes == 4
        self._x86 = "+ssse3" in features

    def vector(self, kind: Any) -> Any:
        """Gives the type of a register of such integers."""
        return ir.VectorType(kind, self.lanes * LANE_BYTES * 8 // kind.width)

    def constant(self, kind: Any, *values: int) -> Any:
        """Gives a register that repeats these values."""
        vector = self.vector(kind)
        return ir.Constant(vector, [*values] * (vector.count // len(values)))

    def at(self, pointer: Any, offset: Any) -> Any:
        """Gives a pointer so many bytes further."""
        return self.builder.gep(pointer, [integer(offset)], source_etype=BYTE)

    def load(self, pointer: Any, offset: Any, kind: Any) -> Any:
        """Loads a vector, or a number, of a type, from anywhere; the offset counts bytes."""
        return self.builder.load(self.at(pointer, offset), typ=kind, align=1)

    def load_widened(self, pointer: Any, offset: Any = 0) -> Any:
        """Loads bytes as words."""
        return self.builder.zext(self.load(pointer, offset, ir.VectorType(BYTE, self.words)), self.vector(WORD))

    def store(self, value: Any, pointer: Any, offset: Any = 0) -> None:
        """Stores a vector anywhere; the offset counts bytes."""
        self.builder.store(value, self.at(pointer, offset), align=1)

    def as_type(self, value: Any, kind: Any) -> Any:
        """Gives the same bits as a register of other integers."""
        return self.builder.bitcast(value, self.vector(kind))

    def choose(self, first: Any, second: Any, places: Sequence[int | None]) -> Any:
        """Gives elements of two vectors by their places, the second's after the first's; None: one that does not matter."""
        # LLVM sees by itself what is not used.
        chosen = [number % first.type.count if place is None else place for number, place in enumerate(places)]
        second = ir.Constant(first.type, ir.Undefined) if second is None else second
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(DOUBLE, len(chosen)), chosen))

    def choose_in_lanes(self, first: Any, second: Any, places: Sequence[int | None]) -> Any:
        """Does the same in each lane by places within it."""
        count, size = first.type.count, len(places)
        found: list[int | None] = []
        for start in range(0, count, size):
            found += [
                None if place is None else start + place if place < size else count + start + place - size for place in places
            ]
        return self.choose(first, second, found)

    def choose_lanes(self, first: Any, second: Any, lanes: Sequence[int | None]) -> Any:
        """Gives whole lanes of two vectors, of the first's type."""
        size = first.type.count // self.lanes
        places = [None if lane is None else lane * size + place for lane in lanes for place in range(size)]
        return self.choose(first, second, places)

    def interleave_low(self, first: Any, second: Any) -> Any:
        """Gives, in each lane, the lower elements of two vectors in turn."""
        size = first.type.count // self.lanes
        return self.choose_in_lanes(first, second, [place + size * side for place in range(size // 2) for side in (0, 1)])

    def interleave_high(self, first: Any, second: Any) -> Any:
        """Gives the higher ones."""
        size = first.type.count // self.lanes
        return self.choose_in_lanes(first, second, [place + size * side for place in range(size // 2, size) for side in (0, 1)])

    def multiply_pairs(self, pairs: Any, *factors: int) -> Any:
        """Gives, of each pair of words, the sum of both, each times its factor, in 32 bits, which may wrap.

        Factors are of a pair, or of as many pairs as they repeat after.
        """
        if self._x86:
            names = {4: "avx512.pmaddw.d.512", 2: "avx2.pmadd.wd", 1: "sse2.pmadd.wd"}
            return self._intrinsic(names, DOUBLE, pairs, self.constant(WORD, *factors))
        builder, products = self.builder, []
        for side in (0, 1):
            value = builder.sext(self.choose(pairs, None, range(side, self.words, 2)), self.vector(DOUBLE))
            products.append(builder.mul(value, self.constant(DOUBLE, *factors[side::2])))
        return builder.add(*products)

    def multiply_rounded(self, value: Any, factors: Any) -> Any:
        """Gives words x words / 2**15, rounded, halves up."""
        if self._x86:
            names = {4: "avx512.pmul.hr.sw.512", 2: "avx2.pmul.hr.sw", 1: "ssse3.pmul.hr.sw.128"}
            return self._intrinsic(names, WORD, value, factors)
        builder, wide = self.builder, ir.VectorType(DOUBLE, self.words)
        product = builder.mul(builder.sext(value, wide), builder.sext(factors, wide))
        rounded = builder.add(product, ir.Constant(wide, [1 << 14] * self.words))
        return builder.trunc(builder.ashr(rounded, ir.Constant(wide, [15] * self.words)), self.vector(WORD))

    def pack_words(self, low: Any, high: Any) -> Any:
        """Gives 32-bit integers as words, cut off at what words hold: in each lane those of the first, then of the second."""
        names = {4: "avx512.packssdw.512", 2: "avx2.packssdw", 1: "sse2.packssdw.128"}
        return self._pack(names, WORD, low, high, -(1 << 15), (1 << 15) - 1)

    def pack_signed(self, low: Any, high: Any) -> Any:
        """Likewise words as bytes from -128 to 127."""
        return self._pack({4: "avx512.packsswb.512", 2: "avx2.packsswb", 1: "sse2.packsswb.128"}, BYTE, low, high, -128, 127)

    def pack_unsigned(self, low: Any, high: Any) -> Any:
        """Likewise words as bytes from 0 to 255."""
        return self._pack({4: "avx512.packuswb.512", 2: "avx2.packuswb", 1: "sse2.packuswb.128"}, BYTE, low, high, 0, 255)

    def _pack(self, names: dict[int, str], narrow: Any, low: Any, high: Any, least: int, largest: int) -> Any:
        if self._x86:
            return self._intrinsic(names, narrow, low, high)
        # In the one lane of other processors.
        builder = self.builder
        both = self.choose(low, high, range(2 * low.type.count))
        floor, ceiling = (ir.Constant(both.type, [limit] * both.type.count) for limit in (least, largest))
        both = builder.select(builder.icmp_signed("<", both, floor), floor, both)
        both = builder.select(builder.icmp_signed(">", both, ceiling), ceiling, both)
        return builder.trunc(both, self.vector(narrow))

    def _intrinsic(self, names: dict[int, str], result: Any, *operands: Any) -> Any:
        name, module = f"llvm.x86.{names[self.lanes]}", self.builder.module
        kind = ir.FunctionType(self.vector(result), [operand.type for operand in operands])
        return self.builder.call(module.globals.get(name) or ir.Function(module, kind, name), operands)


def copy_bytes(code: Code, source: Any, target: Any, count: Any) -> None:
    """Copies bytes between places that do not overlap."""
    module, pointer, bit = code.builder.module, source.type, ir.IntType(1)
    name = "llvm.memcpy.p0.p0.i64"
    kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, INTEGER, bit])
    function = module.globals.get(name) or ir.Function(module, kind, name)
    code.builder.call(function, [target, source, integer(count), ir.Constant(bit, 0)])
