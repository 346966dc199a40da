"""Vector code of one block of a JPEG: its bits, in; its coefficients, out.

Sources: ITU T.81 (JPEG), annex F.2; F. Giesen, "Reading bits in far too many ways", 2018 (filling without a branch).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, integer
from .jpeg_codes import (
    BOTH_STEPS_AT,
    BYTE,
    END_OF_BLOCK,
    FIRST_LENGTH_AT,
    FIRST_VALUE_AT,
    INDIRECT,
    LARGEST_SIZE,
    LONGEST_CODE,
    LOOK_BITS,
    PAIRS,
    SECOND_VALUE_AT,
    SHORT,
    STEP_AT,
    VALUE_AT,
    WORD,
    at,
    field,
    load,
    step_of,
    store,
)  # fmt: skip

BLOCK = 64
LAST = BLOCK - 1
COEFFICIENT_LANES = 32
# An MCU has at most so many blocks. Source: ITU T.81, B.2.3.
MOST_BLOCKS = 10
# The buffer is filled by 8 bytes at a time, and has so many bits then, or more.
FILLING_BYTES, FILLED_BITS = 8, 56
# Looks for each filling: their bits, and a code and its value, are there.
LOOKS = 3
assert (LOOKS - 1) * LOOK_BITS + LONGEST_CODE + LARGEST_SIZE <= FILLED_BITS
# That may be read past the end before it is seen: what an MCU can take at most, and some fillings of the buffer.
SPARE_BYTES = MOST_BLOCKS * BLOCK * (LONGEST_CODE + LARGEST_SIZE) // 8 + 8 * FILLING_BYTES

# Source: ITU T.81, figure A.6: natural place of each coefficient in the order in which they are coded.
ZIGZAG = (
    *(0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28),
    *(35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55),
    *(62, 63),
)  # fmt: skip
# Places that are looked up without having been checked: up to two blocks beyond a block's.
ORDER = ZIGZAG + (0,) * (4 * BLOCK - len(ZIGZAG))


class Bits:
    """The bits that wait, from the highest on: their buffer, their number, and the place of the bytes after them."""

    def __init__(self, builder: Any, bytes_: Any) -> None:
        self._builder = builder
        self._bytes = bytes_
        kind = ir.FunctionType(INTEGER, [INTEGER])
        self._swap = builder.module.declare_intrinsic("llvm.bswap", [INTEGER], kind)

    def filled(self, state: list[Any]) -> list[Any]:
        """Gives the state with 56 bits or more."""
        builder = self._builder
        waiting, count, place = state
        raw = builder.load(at(builder, self._bytes, place, BYTE), typ=INTEGER, align=1)
        waiting = builder.or_(waiting, builder.lshr(builder.call(self._swap, [raw]), builder.and_(count, integer(63))))
        place = builder.add(place, builder.lshr(builder.xor(count, integer(63)), integer(3)))
        return [waiting, builder.or_(count, integer(56)), place]

    def taken(self, state: list[Any], entry: Any) -> list[Any]:
        """Gives the state after a symbol."""
        builder = self._builder
        waiting, count, place = state
        left = builder.sub(count, builder.and_(entry, integer(255)))
        return [builder.shl(waiting, builder.and_(entry, integer(63))), left, place]

    def value(self, waiting: Any, length: Any, size: Any) -> Any:
        """Gives the value whose bits come after a code. Source: ITU T.81, F.2.2.1, EXTEND."""
        builder = self._builder
        bits = builder.shl(waiting, length)
        written = builder.lshr(builder.lshr(bits, integer(1)), builder.sub(integer(63), size))
        less = builder.sub(integer(1), builder.shl(integer(1), size))
        return builder.add(written, builder.and_(less, builder.not_(builder.ashr(bits, integer(63)))))


def joined(builder: Any, incoming: list[tuple[Any, list[Any]]]) -> list[Any]:
    """Gives the values that come from whichever block was before."""
    results = [builder.phi(INTEGER) for _ in incoming[0][1]]
    for block, values in incoming:
        for phi, value in zip(results, values, strict=True):
            phi.add_incoming(value, block)
    return results


class Block:
    """Writes the code that decodes one block.

    Args:
        builder: Of the row's function.
        bits: They come from here.
        search: For codes that are not in the table.
        fail: Where to go with what is no block.
        order: Zigzag place -> natural place.
        nowhere: What may be written to.
        target: The block's coefficients.
    """

    def __init__(self, builder: Any, bits: Bits, search: Any, fail: Any, order: Any, nowhere: Any, target: Any) -> None:
        self._builder, self._bits, self._search, self._fail = builder, bits, search, fail
        self._order, self._nowhere, self._target = order, nowhere, target

    def decode(self, reader: list[Any], prediction: Any, dc_table: Any, ac_table: Any) -> tuple[list[Any], Any]:
        """Gives the bits after the block, and the last place in the zigzag that may not be zero."""
        self._clear()
        return self._others(self._first(reader, prediction, dc_table), ac_table)

    def _clear(self) -> None:
        wide = ir.VectorType(SHORT, COEFFICIENT_LANES)
        for part in range(0, BLOCK, COEFFICIENT_LANES):
            self._builder.store(ir.Constant(wide, None), at(self._builder, self._target, part, SHORT), align=2)

    def _where(self, place: Any) -> Any:
        """Gives where the coefficient of a place in the zigzag is kept."""
        return at(self._builder, self._target, load(self._builder, self._order, place, BYTE), SHORT)

    def _new(self, count: int) -> list[Any]:
        return [self._builder.function.append_basic_block() for _ in range(count)]

    def _store(self, value: Any, place: Any) -> None:
        store(self._builder, value, self._where(place), 0, SHORT)

    def _found(self, table: Any, waiting: Any, entry: Any) -> tuple[Any, Any, Any]:
        """Searches for a code that is not looked up with its value: gives its bits with the value's, its symbol, the value."""
        builder = self._builder
        searched = builder.call(self._search, [table, waiting, entry])
        (known,) = self._new(1)
        builder.cbranch(builder.icmp_unsigned("==", searched, integer(0)), self._fail, known)
        builder.position_at_end(known)
        length, symbol = builder.and_(searched, integer(255)), builder.lshr(searched, integer(8))
        size = builder.and_(symbol, integer(LARGEST_SIZE))
        return builder.add(length, size), symbol, self._bits.value(waiting, length, size)

    def _first(self, reader: list[Any], prediction: Any, table: Any) -> list[Any]:
        """Writes the first coefficient, a difference to that of the block before."""
        builder = self._builder
        reader = self._bits.filled(reader)
        entry = load(builder, table, builder.lshr(reader[0], integer(64 - LOOK_BITS)), WORD)
        before = builder.block
        search, after = self._new(2)
        builder.cbranch(builder.icmp_unsigned("==", field(builder, entry, STEP_AT), integer(INDIRECT)), search, after)
        builder.position_at_end(search)
        length, _, value = self._found(table, reader[0], entry)
        searched = builder.block
        builder.branch(after)
        builder.position_at_end(after)
        with builder.goto_block(before):
            # 16 bits, with their sign.
            looked_up = builder.ashr(builder.shl(entry, integer(64 - 2 * VALUE_AT)), integer(64 - VALUE_AT))
            its_length = builder.and_(entry, integer(255))
        length, value = joined(builder, [(before, [its_length, looked_up]), (searched, [length, value])])
        value = builder.add(builder.load(prediction, typ=INTEGER), value)
        builder.store(value, prediction)
        store(builder, value, self._target, 0, SHORT)
        return self._bits.taken(reader, length)

    def _others(self, reader: list[Any], table: Any) -> tuple[list[Any], Any]:
        """Writes the other coefficients."""
        head, special = self._new(2)
        start = self._builder.block
        self._builder.branch(head)
        return self._to_the_end(table, head, special, [(start, [integer(0), *reader])], [])

    def _look(self, table: Any, special: Any, specials: list[tuple[Any, list[Any]]], state: list[Any]) -> list[Any]:
        """Writes the coefficients of a look, mostly two; gives the place after them, and the bits.

        Args:
            table: Of AC.
            special: Where to go with whatever reaches the last place or the end.
            specials: Whence it is gone to, and with what; added to.
            state: The place before, and the bits.
        """
        builder = self._builder
        place, *now = state
        entry = load(builder, at(builder, table, PAIRS, WORD), builder.lshr(now[0], integer(64 - LOOK_BITS)))
        first = builder.add(place, field(builder, entry, STEP_AT))
        reached = builder.add(place, field(builder, entry, BOTH_STEPS_AT))
        specials.append((builder.block, [place, *now, entry, first, reached]))
        (use,) = self._new(1)
        builder.cbranch(builder.icmp_unsigned(">=", reached, integer(LAST)), special, use)
        builder.position_at_end(use)
        self._store(builder.lshr(entry, integer(FIRST_VALUE_AT)), first)
        self._store(builder.lshr(entry, integer(SECOND_VALUE_AT)), reached)
        return [reached, *self._bits.taken(now, entry)]

    def _to_the_end(
        self, table: Any, head: Any, special: Any, starts: list[tuple[Any, list[Any]]], specials: list[tuple[Any, list[Any]]]
    ) -> tuple[list[Any], Any]:
        """Writes all that is left of a block, up to six coefficients for each filling of the buffer.

        Args:
            table: Of AC.
            head: Where to begin.
            special: As for :meth:`_look`.
            starts: Whence it is begun, with place and bits.
            specials: As for :meth:`_look`.
        """
        builder, bits = self._builder, self._bits
        ended, others, last_first, direct, search, after = self._new(6)
        builder.position_at_end(head)
        phis = joined(builder, starts)
        state = [phis[0], *bits.filled(phis[1:])]
        for _ in range(LOOKS):
            state = self._look(table, special, specials, state)
        for phi, value in zip(phis, state, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)

        # The end of the block, the last place, or what takes a second look.
        builder.position_at_end(special)
        place, *now, entry, first, reached = joined(builder, specials)
        value = builder.lshr(entry, integer(FIRST_VALUE_AT))
        one_taken, both_taken = bits.taken(now, builder.lshr(entry, integer(FIRST_LENGTH_AT))), bits.taken(now, entry)
        builder.cbranch(builder.icmp_unsigned(">=", reached, integer(END_OF_BLOCK)), ended, others)

        # One symbol that ends the block, or one before it. Which of them nobody could foretell, so there is no branch.
        builder.position_at_end(ended)
        is_inside = builder.icmp_unsigned("<=", first, integer(LAST))
        builder.store(builder.trunc(value, SHORT), builder.select(is_inside, self._where(first), self._nowhere), align=2)
        last_of_ended = builder.select(is_inside, first, place)
        # With the last place a block ends by itself: what follows is another's.
        is_full = builder.icmp_unsigned("==", first, integer(LAST))
        taken_of_ended = [builder.select(is_full, *pair) for pair in zip(one_taken, both_taken, strict=True)]
        is_beyond = builder.icmp_unsigned("==", builder.lshr(first, integer(6)), integer(1))
        builder.cbranch(is_beyond, self._fail, after)

        builder.position_at_end(others)
        is_indirect = builder.icmp_unsigned("==", field(builder, entry, STEP_AT), integer(INDIRECT))
        builder.cbranch(is_indirect, search, direct)
        builder.position_at_end(direct)
        # The first symbol reaches the last place, or the second does, or a value lies beyond.
        (inner,) = self._new(1)
        builder.cbranch(builder.icmp_unsigned("<", first, integer(LAST)), inner, last_first)
        builder.position_at_end(inner)
        self._store(value, first)
        self._store(builder.lshr(entry, integer(SECOND_VALUE_AT)), integer(LAST))
        builder.cbranch(builder.icmp_unsigned("==", reached, integer(LAST)), after, self._fail)

        builder.position_at_end(search)
        length, symbol, found_value = self._found(table, now[0], _of_pair(builder, entry))
        found_reached, found_taken = builder.add(place, step_of(builder, symbol)), bits.taken(now, length)
        store_found, found_last = self._new(2)
        builder.cbranch(builder.icmp_unsigned("<", found_reached, integer(LAST)), store_found, found_last)
        builder.position_at_end(store_found)
        self._store(found_value, found_reached)
        for phi, given in zip(phis, (found_reached, *found_taken), strict=True):
            phi.add_incoming(given, store_found)
        builder.branch(head)
        builder.position_at_end(found_last)
        found_ends = builder.icmp_unsigned(">=", found_reached, integer(END_OF_BLOCK))
        (not_end,) = self._new(1)
        builder.cbranch(found_ends, after, not_end)
        builder.position_at_end(not_end)
        builder.branch(last_first)

        builder.position_at_end(last_first)
        reached_last, value_last, *reader_last = joined(
            builder, [(direct, [first, value, *one_taken]), (not_end, [found_reached, found_value, *found_taken])]
        )
        self._store(value_last, integer(LAST))
        builder.cbranch(builder.icmp_unsigned("==", reached_last, integer(LAST)), after, self._fail)

        builder.position_at_end(after)
        last, *reader = joined(
            builder,
            [
                (ended, [last_of_ended, *taken_of_ended]),
                (inner, [integer(LAST), *both_taken]),
                (found_last, [place, *found_taken]),
                (last_first, [integer(LAST), *reader_last]),
            ],
        )
        return reader, last


def _of_pair(builder: Any, entry: Any) -> Any:
    """Gives the entry of 32 bits that the first half of one of 64 was made from."""
    lower = builder.and_(entry, integer((1 << VALUE_AT) - 1))
    upper = builder.and_(builder.lshr(entry, integer(FIRST_VALUE_AT)), integer((1 << VALUE_AT) - 1))
    return builder.or_(lower, builder.shl(upper, integer(VALUE_AT)))
