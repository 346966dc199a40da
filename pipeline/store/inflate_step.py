"""The slow and sure way to decode: one symbol of any deflated block, bit by bit. For what :mod:`~.inflate_code` has no entry for.

Source: RFC 1951, sections 3.2.2 and 3.2.5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from ..vector_code import INTEGER, POINTER
from .inflate_tables import (
    COUNTS,
    END,
    ENDED,
    INPUT_END,
    LARGEST_BITS,
    ORDERS,
    OUTPUT,
    OUTPUT_END,
    OUTPUT_START,
    POSITION,
    REFUSED,
    give,
    range_of,
)
from .integer_code import BYTE, IntegerCode, private_function

# Bytes that are looked at for one symbol, of the first of which a part may be gone.
READ_BYTES = 8


class _Bits(NamedTuple):
    """What is left of the bits that were looked at, and how many there are of the whole stream."""

    bits: Any
    left: Any


def add_step(module: Any) -> Any:
    """Takes one symbol of any stream, bit by bit; or says in the state what came of it."""
    function = private_function(module, "step", ir.VoidType(), [POINTER, POINTER])
    memory, ranges = function.args
    code = IntegerCode(function)
    builder = code.builder

    position, end = code.load(memory, POSITION), code.load(memory, INPUT_END)
    source, end_bit = code.lshr(position, 3), code.shl(end, 3)

    def more(place: Any, bits: Any) -> list[Any]:
        byte = code.load_from(code.add(source, place), BYTE)
        return [code.add(place, 1), code.or_(bits, code.shl(byte, code.shl(place, 3)))]

    def is_there(place: Any, _: Any) -> Any:
        return code.every(code.is_(place, "<", READ_BYTES), builder.icmp_unsigned("<", code.add(source, place), end))

    # The longest length with its distance and the further bits of both takes 11 + 5 + 11 + 13.
    _, bits = code.repeat([0, 0], is_there, more)
    state = _Bits(code.lshr(bits, code.and_(position, 7)), code.sub(end_bit, position))

    def without(state: _Bits, count: Any) -> _Bits:
        left = code.sub(state.left, count)
        with code.when(code.is_(left, "<", 0)):
            give(code, REFUSED, memory)
        return _Bits(code.lshr(state.bits, count), left)

    def symbol_of(alphabet: int, state: _Bits) -> tuple[Any, _Bits]:
        def longer(length: Any, word: Any, first: Any, rank: Any, _: Any) -> list[Any]:
            word = code.or_(code.shl(word, 1), code.and_(code.lshr(state.bits, length), 1))
            length = code.add(length, 1)
            many = code.load(memory, code.add(length, COUNTS[alphabet]))
            place = code.sub(word, first)
            found = code.is_(place, "<", many)
            following = code.shl(code.add(first, many), 1)
            return [length, word, following, code.add(rank, code.select(found, place, many)), builder.zext(found, INTEGER)]

        # Codes are complete, so that one is found; the length ends it all the same.
        start = [0, 0, 0, code.load(memory, COUNTS[alphabet]), 0]
        length, _, _, rank, found = code.repeat(
            start, lambda length, *rest: code.every(code.is_(length, "<", LARGEST_BITS), code.is_(rest[-1], "==", 0)), longer
        )
        with code.when(code.is_(found, "==", 0)):
            give(code, REFUSED, memory)
        return code.load(memory, code.add(rank, ORDERS[alphabet])), without(state, length)

    def size_of(alphabet: int, symbol: Any, state: _Bits) -> tuple[Any, _Bits]:
        base, further = range_of(code, alphabet, symbol, ranges)
        size = code.add(base, code.and_(state.bits, code.sub(code.shl(1, further), 1)))
        return size, without(state, further)

    def keep(state: _Bits, target: Any) -> None:
        code.store(code.sub(end_bit, state.left), memory, POSITION)
        code.store(target, memory, OUTPUT)

    symbol, state = symbol_of(0, state)
    target = code.load(memory, OUTPUT)
    room = code.sub(code.load(memory, OUTPUT_END), target)
    with code.when(code.is_(symbol, "==", END)):
        keep(state, target)
        give(code, ENDED, memory)
    with code.when(code.is_(room, "<=", 0)):
        give(code, REFUSED, memory)
    with code.when(code.is_(symbol, "<", END)):
        builder.store(builder.trunc(symbol, BYTE), code.pointer(target), align=1)
        keep(state, code.add(target, 1))
        builder.ret_void()
    length, state = size_of(0, symbol, state)
    symbol, state = symbol_of(1, state)
    distance, state = size_of(1, symbol, state)
    behind = code.sub(target, code.load(memory, OUTPUT_START))
    with code.when(builder.or_(code.is_(length, ">", room), code.is_(distance, ">", behind))):
        give(code, REFUSED, memory)

    def copy(place: Any) -> list[Any]:
        byte = builder.load(code.pointer(code.sub(place, distance)), typ=BYTE, align=1)
        builder.store(byte, code.pointer(place), align=1)
        return [code.add(place, 1)]

    stop = code.add(target, length)
    code.repeat([target], lambda place: builder.icmp_unsigned("<", place, stop), copy)
    keep(state, stop)
    builder.ret_void()
    return function
