"""Machine code of :mod:`~pipeline.store.deflate`: counts what a code is made from, and writes float32 values by a code.

Values are taken :data:`GROUP` at a time. In a group, a value is four literals, a zero is a match with the last zero before it,
and the zeros that follow it are one match together. Whether a value or zeros come next decides no branch, since nothing could
foretell it: both tokens are made, one is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, Code, MachineCode, compiled_once, integer, new_function, this_processor

# One bit of a word for each; as a match they are just not too long.
GROUP = 64
# Zeros that begin a match with one at most so many values before; the last place stands for all that are further.
LARGEST_GAP = 64
GAPS = LARGEST_GAP + 2
# Runs by their zeros, the first place unused; and a zero without another near before it.
FAR = GROUP + 1
RUNS = FAR + 1

# Groups of a part that is counted.
PART_GROUPS = 8

# Bytes of a float.
BYTES = 4
BYTE_VALUES = 256

# Where the counts are: of the bytes at each place in a value, of runs, of gaps before runs, of values that equal a neighbour.
RUN_COUNTS = BYTES * BYTE_VALUES
GAP_COUNTS = RUN_COUNTS + RUNS
EQUAL_COUNT = GAP_COUNTS + GAPS
COUNTS = EQUAL_COUNT + 1

# values, parts, values from one part to the next, values back to the neighbour; counts, int64
COUNT = [POINTER, INTEGER, INTEGER, INTEGER, POINTER]
# Where the codes are, in one table of int64: of byte values, of runs, of gaps. Each is its bits times 256, and how many.
RUN_CODES = BYTE_VALUES
GAP_CODES = RUN_CODES + RUNS
CODES = GAP_CODES + GAPS
LENGTH_BITS = 8

# values, how many, table of codes, output, state
ENCODE = [POINTER, INTEGER, POINTER, POINTER, POINTER]
# State between calls, int64: bits that are no whole byte yet, how many, bytes written.
STATE = 3

_WORD = ir.IntType(32)
_BYTE = ir.IntType(8)


@compiled_once
def compiled_deflate() -> MachineCode:
    """Gives ``count``, ``encode_groups`` (of a multiple of :data:`GROUP` values) and ``encode_literals`` (of the rest)."""
    module = ir.Module()
    _add_count(module)
    _add_encode_groups(module)
    _add_encode_literals(module)
    functions = {"count": COUNT, "encode_groups": ENCODE, "encode_literals": ENCODE}
    return MachineCode(module, this_processor(), functions)


class _Token:
    """What comes next in a group: a value, or zeros.

    Attributes:
        place: Of the value, from the group's first.
        value: Its 32 bits.
        one: 1 where it is zero, else 0.
        run: Of zeros, their place in the tables of runs.
        gap: Likewise in those of gaps.
    """

    def __init__(self, builder: Any, values: Any, zeros: Any, place: Any, gap_before: Any) -> None:
        self.place = place
        self.value = _load(builder, values, place, _WORD)
        left = builder.lshr(zeros, place)
        self.one = builder.and_(left, integer(1))
        before = builder.and_(zeros, builder.sub(builder.shl(integer(1), place), integer(1)))
        last = builder.sub(integer(GROUP - 1), _zeros_of_word(builder, "ctlz", before))
        gap = builder.sub(place, builder.select(builder.icmp_unsigned("==", before, integer(0)), builder.neg(gap_before), last))
        is_far = builder.icmp_unsigned(">", gap, integer(LARGEST_GAP))
        self.gap = builder.select(is_far, integer(GAPS - 1), gap)
        # After other values only one zero matches the last one: what comes after that one is not zero.
        follows = builder.icmp_unsigned("==", gap, integer(1))
        # Beyond the group nothing is zero, so the run ends there.
        run = builder.select(follows, _zeros_of_word(builder, "cttz", builder.not_(left)), integer(1))
        self.run = builder.select(is_far, integer(FAR), run)


def _each_token(
    builder: Any, values: Any, gap: Any, carried: list[Any], body: Callable[[_Token, list[Any]], list[Any]]
) -> list[Any]:
    """Writes a body for each token of a group; where tokens begin is known before the first, so that none waits for another.

    Args:
        builder: Of the function.
        values: Where the group begins.
        gap: How far before it the last zero is.
        carried: From body to body.
        body: (token, carried) -> carried.

    Returns:
        The gap before the next group, and what the last body gave.
    """
    vector = ir.VectorType(_WORD, GROUP)
    found = builder.load(values, typ=vector, align=BYTES)
    zeros = builder.bitcast(builder.icmp_unsigned("==", found, ir.Constant(vector, [0] * GROUP)), INTEGER)
    follows = builder.zext(builder.icmp_unsigned("==", gap, integer(1)), INTEGER)
    # No token begins at a zero after two others, or after one in this group and the last of the group before.
    after_one = builder.or_(builder.shl(zeros, integer(1)), follows)
    after_two = builder.or_(builder.shl(zeros, integer(2)), builder.shl(follows, integer(1)))
    starts = builder.not_(builder.and_(zeros, builder.and_(after_one, after_two)))
    entry = builder.block
    inside, after = builder.append_basic_block(), builder.append_basic_block()
    builder.branch(inside)
    builder.position_at_end(inside)
    begin = [starts, *carried]
    phis = [builder.phi(INTEGER) for _ in begin]
    for phi, value in zip(phis, begin, strict=True):
        phi.add_incoming(value, entry)
    starts, *carried = phis
    carried = body(_Token(builder, values, zeros, _zeros_of_word(builder, "cttz", starts), gap), carried)
    following = [builder.and_(starts, builder.sub(starts, integer(1))), *carried]
    for phi, value in zip(phis, following, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_unsigned("!=", following[0], integer(0)), inside, after)
    builder.position_at_end(after)
    further = builder.add(gap, integer(GROUP))
    further = builder.select(builder.icmp_unsigned("<", further, integer(GAPS - 1)), further, integer(GAPS - 1))
    last = builder.add(_zeros_of_word(builder, "ctlz", zeros), integer(1))
    return [builder.select(builder.icmp_unsigned("==", zeros, integer(0)), further, last), *carried]


def _zeros_of_word(builder: Any, name: str, word: Any) -> Any:
    """Gives how many bits from the lowest (``cttz``) or the highest (``ctlz``) are 0."""
    kind = ir.FunctionType(INTEGER, [INTEGER, ir.IntType(1)])
    function = builder.module.declare_intrinsic(f"llvm.{name}", [INTEGER], kind)
    return builder.call(function, [word, ir.Constant(ir.IntType(1), 0)])


def _either(builder: Any, mask: Any, value: Any, other: Any) -> Any:
    """Gives the value where all bits of the mask are set, the other where none is; a select might become a branch."""
    return builder.xor(other, builder.and_(builder.xor(value, other), mask))


def _load(builder: Any, pointer: Any, place: Any, kind: Any = INTEGER) -> Any:
    value = builder.load(builder.gep(pointer, [integer(place)], source_etype=kind), typ=kind, align=kind.width // 8)
    return value if kind is INTEGER else builder.zext(value, INTEGER)


def _store(builder: Any, value: Any, pointer: Any, place: Any) -> None:
    builder.store(value, builder.gep(pointer, [integer(place)], source_etype=INTEGER), align=INTEGER.width // 8)


def _bytes_of(builder: Any, value: Any) -> list[Any]:
    shifted = [builder.lshr(value, integer(8 * place)) for place in range(BYTES)]
    return [builder.and_(part, integer(BYTE_VALUES - 1)) for part in shifted]


def _add_count(module: Any) -> None:
    function = new_function(module, "count", COUNT)
    values, parts, distance, neighbour, counts = function.args
    code = Code(function, 1)
    builder = code.builder

    def add(place: Any, increment: Any) -> None:
        _store(builder, builder.add(_load(builder, counts, place), increment), counts, place)

    with code.loop(0, parts) as number:
        part = builder.gep(values, [builder.mul(number, distance)], source_etype=_WORD)

        def group(first: Any, carried: list[Any], part: Any = part) -> list[Any]:
            gap, equal = carried
            here = builder.gep(part, [first], source_etype=_WORD)

            def count(token: _Token, carried: list[Any]) -> list[Any]:
                other = builder.sub(integer(1), token.one)
                before = _load(builder, here, builder.sub(token.place, neighbour), _WORD)
                alike = builder.zext(builder.icmp_unsigned("==", token.value, before), INTEGER)
                # Each byte of a value has counts of its own: the next would wait for the last one's to be stored.
                for number, byte in enumerate(_bytes_of(builder, token.value)):
                    add(builder.add(byte, integer(number * BYTE_VALUES)), other)
                add(builder.add(token.run, integer(RUN_COUNTS)), token.one)
                add(builder.add(token.gap, integer(GAP_COUNTS)), token.one)
                return [builder.add(carried[0], builder.and_(other, alike))]

            return _each_token(builder, here, gap, [equal], count)

        start = [integer(GAPS - 1), integer(0)]
        _, equal = code.accumulate(integer(PART_GROUPS * GROUP), GROUP, start, group)
        add(integer(EQUAL_COUNT), equal)
    builder.ret_void()


class _Writer:
    """Puts tokens together to bytes. The state: bits that are no whole byte yet, how many, bytes written."""

    def __init__(self, builder: Any, function: Any) -> None:
        self.values, self.how_many, self._table, self._output, self._state = function.args
        self._builder = builder

    def begin(self) -> list[Any]:
        return [_load(self._builder, self._state, place) for place in range(STATE)]

    def end(self, state: list[Any]) -> None:
        for place, value in enumerate(state):
            _store(self._builder, value, self._state, place)
        self._builder.ret_void()

    def joined(self, *places: Any) -> tuple[Any, Any]:
        """Gives bits and length of entries of the table, one after the other."""
        builder = self._builder
        codes = [_load(builder, self._table, place) for place in places]
        bits, total = builder.lshr(codes[-1], integer(LENGTH_BITS)), codes[-1]
        # From the last to the first, so that each moves up by the bits of one code.
        for code in reversed(codes[:-1]):
            # The processor looks at no more of a shift than these bits, so it needs not take them out.
            moved = builder.shl(bits, builder.and_(code, integer(INTEGER.width - 1)))
            bits = builder.or_(builder.lshr(code, integer(LENGTH_BITS)), moved)
            total = builder.add(total, code)
        return bits, builder.and_(total, integer((1 << LENGTH_BITS) - 1))

    def literals(self, value: Any) -> tuple[Any, Any]:
        return self.joined(*_bytes_of(self._builder, value))

    def zeros(self, run: Any, gap: Any) -> tuple[Any, Any]:
        builder = self._builder
        return self.joined(builder.add(run, integer(RUN_CODES)), builder.add(gap, integer(GAP_CODES)))

    def write(self, bits: Any, length: Any, state: list[Any]) -> list[Any]:
        """Stores eight bytes, of which those count that are whole."""
        builder = self._builder
        waiting, count, target = state
        waiting = builder.or_(waiting, builder.shl(bits, count))
        count = builder.add(count, length)
        builder.store(waiting, builder.gep(self._output, [target], source_etype=_BYTE), align=1)
        target = builder.add(target, builder.lshr(count, integer(3)))
        waiting = builder.lshr(waiting, builder.and_(count, integer(56)))
        return [waiting, builder.and_(count, integer(7)), target]


def _add_encode_groups(module: Any) -> None:
    function = new_function(module, "encode_groups", ENCODE)
    code = Code(function, 1)
    builder = code.builder
    writer = _Writer(builder, function)

    def group(first: Any, carried: list[Any]) -> list[Any]:
        def write(token: _Token, state: list[Any]) -> list[Any]:
            tokens, is_zero = (writer.zeros(token.run, token.gap), writer.literals(token.value)), builder.neg(token.one)
            bits, length = (_either(builder, is_zero, *both) for both in zip(*tokens, strict=True))
            return writer.write(bits, length, state)

        gap, *state = carried
        return _each_token(builder, builder.gep(writer.values, [first], source_etype=_WORD), gap, state, write)

    _, *state = code.accumulate(writer.how_many, GROUP, [integer(GAPS - 1), *writer.begin()], group)
    writer.end(state)


def _add_encode_literals(module: Any) -> None:
    function = new_function(module, "encode_literals", ENCODE)
    code = Code(function, 1)
    writer = _Writer(code.builder, function)

    def one(place: Any, state: list[Any]) -> list[Any]:
        return writer.write(*writer.literals(_load(code.builder, writer.values, place, _WORD)), state)

    writer.end(code.accumulate(writer.how_many, 1, writer.begin(), one))
