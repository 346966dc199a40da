"""Vector code of a block of a JPEG of which only the lowest frequencies are wanted: the others are passed over, several a look.

A coefficient that is not wanted is still coded, and its length still decides where the next one begins; but its value need not be
made nor its place be known, so that one look passes over as many as there are whole ones in twelve bits.

Source: ITU T.81 (JPEG), annex F.2.
"""

from __future__ import annotations

from typing import Any

from ..vector_code import INTEGER, POINTER, Code, integer, new_function
from .jpeg_block import FILLED_BITS, LAST, LOOKS, Bits, Block, joined
from .jpeg_codes import (
    BYTE,
    END_OF_BLOCK,
    INDIRECT,
    KNOWN_AT,
    LARGEST_SIZE,
    LOOK_BITS,
    SHORT,
    SKIP_BITS,
    SKIPS,
    STEP_AT,
    VALUE_AT,
    WORD,
    at,
    field,
    load,
    step_of,
    store,
)  # fmt: skip

_ENTRIES = 1 << SKIP_BITS
# An entry of 16 bits: bits of the symbols that are passed over; places that they go on, END_OF_BLOCK more where the last of them
# ends the block, _NOTHING where not even one is whole.
_BITS, _STEPS_AT = 63, 6
_NOTHING = 256
# Each branch may be foretold wrongly, and then costs as much as two looks: fewer of them, though one look may be for nothing.
_SKIPS_A_FILLING, _SKIPS_A_BRANCH = FILLED_BITS // SKIP_BITS, 2

# table
BUILD_SKIPS = [POINTER]


def add_build_skips(module: Any) -> Any:
    """Adds ``jpeg_build_skips``: to a table of AC what can be passed over at once."""
    function = new_function(module, "jpeg_build_skips", BUILD_SKIPS)
    (table,) = function.args
    code = Code(function, 1)
    builder = code.builder
    skips = at(builder, table, SKIPS, WORD)
    with code.loop(0, _ENTRIES) as bits:
        before = builder.block
        head, known, whole, ends, go_on, done = (builder.append_basic_block() for _ in range(6))
        builder.branch(head)
        builder.position_at_end(head)
        used, steps = (builder.phi(INTEGER) for _ in range(2))
        for phi in (used, steps):
            phi.add_incoming(integer(0), before)
        rest = builder.and_(builder.shl(bits, used), integer(_ENTRIES - 1))
        entry = load(builder, table, builder.lshr(rest, integer(SKIP_BITS - LOOK_BITS)), WORD)
        is_direct = builder.icmp_unsigned("!=", field(builder, entry, STEP_AT), integer(INDIRECT))
        is_known = builder.icmp_unsigned("!=", builder.lshr(entry, integer(KNOWN_AT)), integer(0))
        builder.cbranch(builder.or_(is_direct, is_known), known, done)

        # Of a code without its value there is the symbol.
        builder.position_at_end(known)
        symbol = field(builder, entry, VALUE_AT)
        size = builder.and_(symbol, integer(LARGEST_SIZE))
        length = builder.and_(entry, integer(255))
        length = builder.select(is_direct, length, builder.add(length, size))
        step = builder.select(is_direct, field(builder, entry, STEP_AT), step_of(builder, symbol))
        after = builder.add(used, length)
        builder.cbranch(builder.icmp_unsigned("<=", after, integer(SKIP_BITS)), whole, done)
        builder.position_at_end(whole)
        reached = builder.add(steps, step)
        builder.cbranch(builder.icmp_unsigned(">=", step, integer(END_OF_BLOCK)), ends, go_on)
        builder.position_at_end(ends)
        builder.branch(done)
        builder.position_at_end(go_on)
        for phi, value in zip((used, steps), (after, reached), strict=True):
            phi.add_incoming(value, go_on)
        # Beyond this, not even where a block begins could so much be passed over; and wherever in a block it is, no more than
        # this can be told from an end.
        is_inside = builder.icmp_unsigned("<", reached, integer(LAST))
        capped = builder.select(is_inside, reached, integer(LAST))
        builder.cbranch(is_inside, head, done)
        builder.position_at_end(done)
        short = [used, steps]
        used, steps = joined(builder, [(head, short), (known, short), (ends, [after, reached]), (go_on, [after, capped])])
        steps = builder.select(builder.icmp_unsigned("==", used, integer(0)), integer(_NOTHING), steps)
        store(builder, builder.or_(used, builder.shl(steps, integer(_STEPS_AT))), skips, bits, SHORT)
    builder.ret_void()
    return function


class LowBlock(Block):
    """Writes the code that decodes the lowest frequencies of one block.

    Coefficients are kept apart by their frequency: a plane of each, and one more for what is not wanted. They must be 0 before.

    Args:
        builder: As for :class:`Block`, and so on.
        bits: Likewise.
        search: Likewise.
        fail: Likewise.
        order: Zigzag place -> plane.
        nowhere: What may be written to.
        target: The block's place in the first plane.
        plane: From a plane to the next (numbers).
        kept: The last place in the zigzag that is wanted; 63: none is passed over.
    """

    def __init__(
        self, builder: Any, bits: Bits, search: Any, fail: Any, order: Any, nowhere: Any, target: Any, plane: Any, kept: Any
    ) -> None:
        super().__init__(builder, bits, search, fail, order, nowhere, target)
        self._plane, self._kept = plane, kept

    def _clear(self) -> None:
        pass

    def _where(self, place: Any) -> Any:
        number = load(self._builder, self._order, place, BYTE)
        return at(self._builder, self._target, self._builder.mul(number, self._plane), SHORT)

    def _others(self, reader: list[Any], table: Any) -> tuple[list[Any], Any]:
        builder = self._builder
        lead, skip, out, ended, head, special, done = self._new(7)
        state: list[Any] = [integer(0), *reader]
        start = builder.block
        specials: list[tuple[Any, list[Any]]] = []
        leads, skipped = [(start, state)], [(start, state)]
        builder.cbranch(self._is_enough(integer(0)), skip, lead)

        builder.position_at_end(lead)
        phis = joined(builder, leads)
        state = [phis[0], *self._bits.filled(phis[1:])]
        # Mostly one is too few and three are enough; after which of them nobody could foretell.
        for _ in range(LOOKS):
            state = self._look(table, special, specials, state)
        for phi, value in zip(phis, state, strict=True):
            phi.add_incoming(value, builder.block)
        skipped.append((builder.block, state))
        builder.cbranch(self._is_enough(state[0]), skip, lead)

        builder.position_at_end(skip)
        phis = joined(builder, skipped)
        state = [phis[0], *self._bits.filled(phis[1:])]
        outs: list[tuple[Any, list[Any]]] = []
        for _ in range(_SKIPS_A_FILLING // _SKIPS_A_BRANCH):
            tried: list[list[Any]] = []
            for _ in range(_SKIPS_A_BRANCH):
                place, *now = state
                entry = load(builder, at(builder, table, SKIPS, WORD), builder.lshr(now[0], integer(64 - SKIP_BITS)), SHORT)
                reached = builder.add(place, builder.lshr(entry, integer(_STEPS_AT)))
                after = [reached, *self._bits.taken(now, builder.and_(entry, integer(_BITS)))]
                tried.append([*state, *after])
                state = after
            which, following = self._new(2)
            builder.cbranch(builder.icmp_unsigned(">=", state[0], integer(LAST)), which, following)
            # The first of them that reached the last place: what was looked up after it means nothing.
            builder.position_at_end(which)
            found = tried.pop()
            while tried:
                earlier = tried.pop()
                is_earlier = builder.icmp_unsigned(">=", earlier[len(state)], integer(LAST))
                found = [builder.select(is_earlier, *pair) for pair in zip(earlier, found, strict=True)]
            outs.append((which, found))
            builder.branch(out)
            builder.position_at_end(following)
        for phi, value in zip(phis, state, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(skip)

        # Where the end comes with the last place or behind it, what was passed over may belong to the block after: all over
        # again, one by one. So too with what could not be passed over.
        builder.position_at_end(out)
        *before, reached, first, second, third = joined(builder, outs)
        beyond = builder.sub(reached, integer(END_OF_BLOCK))
        builder.cbranch(builder.icmp_unsigned("<", beyond, integer(LAST)), ended, head)
        builder.position_at_end(ended)
        builder.branch(done)

        generic, last = self._to_the_end(table, head, special, [(out, before)], specials)
        whole = builder.block
        builder.branch(done)
        builder.position_at_end(done)
        last, *reader = joined(builder, [(ended, [integer(LAST), first, second, third]), (whole, [last, *generic])])
        return reader, last

    def _is_enough(self, place: Any) -> Any:
        return self._builder.icmp_unsigned(">=", place, self._kept)
