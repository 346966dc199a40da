"""Machine code of :mod:`~pipeline.store.inflate`: takes back what :mod:`~.deflate_code` writes, several streams at a time.

In a stream every code waits for the one before, so most of a processor stands still: four streams side by side take hardly longer
than two one after the other. As in writing, nothing could foretell whether a value or zeros come next, so no branch asks: four
codes are looked up, the last two of which count for nothing where the first was a length. What is not four literals, nor zeros
after zeros, is left to :mod:`~.inflate_step`, which takes one symbol of any stream and is slow.

Whatever a stream holds, nothing is read or written but what its state names, and each step takes bits: there is an end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, MachineCode, compiled_once, integer, new_function, this_processor
from .inflate_step import READ_BYTES, add_step
from .inflate_tables import (
    BITS_TAKEN,
    ENTRIES,
    FLOAT_BYTES,
    FLOATS,
    FLOATS_OF_LENGTH,
    INPUT_END,
    LARGEST_BYTES,
    LITERAL,
    MORE_ZEROS,
    NOTHING,
    ONE_ZERO,
    OUTPUT,
    OUTPUT_END,
    OUTPUT_START,
    POSITION,
    PREPARE,
    SLOW,
    STATUS,
    WORKING,
    add_prepare,
)
from .integer_code import BYTE, WORD, IntegerCode, private_function

# More fill the processor's first cache, and gain nothing.
MOST_STREAMS = 4
# Rounds after which it is looked whether all was as expected.
_ROUNDS = 8
# Bytes that are stored at once.
_STORED = 64
# What must have been written before tables are used: the floats of an entry, seen as a distance, reach so far back.
_BEHIND = FLOAT_BYTES * (FLOATS_OF_LENGTH + 1)
# Turns of so many rounds, where there is no limit.
_ENDLESS = 1 << 62

_FOUR = ir.VectorType(WORD, 4)
_SIXTEEN = ir.VectorType(BYTE, 16)
_NO_BYTES = ir.Constant(_SIXTEEN, [0] * 16)
_ZEROS = ir.Constant(ir.VectorType(BYTE, _STORED), [0] * _STORED)


@compiled_once
def compiled_inflate() -> MachineCode:
    """Gives ``prepare``, and ``inflate_1`` to ``inflate_4`` (memory of each stream, ranges), which end when one stream has."""
    module = ir.Module()
    add_prepare(module)
    functions: dict[str, Sequence[Any]] = {"prepare": PREPARE}
    step = add_step(module)
    begin, alone = _add_begin(module, step), _add_fast(module, 1, 1)
    one = _add_one(module, begin, step, alone)
    parts = _Parts(begin, step, alone, one)
    made = [one, *(_add_several(module, parts, streams) for streams in range(2, MOST_STREAMS + 1))]
    functions |= {function.name: [POINTER] * (streams + 1) for streams, function in enumerate(made, 1)}
    return MachineCode(module, this_processor(), functions)


def _has_room(code: IntegerCode, memory: Any, position: Any, target: Any, rounds: int) -> Any:
    """Gives whether a stream has input and room for so many rounds: one takes at most 7 bytes, and reads 8."""
    read = code.add(code.lshr(position, 3), READ_BYTES * rounds)
    written = code.add(target, LARGEST_BYTES * rounds)
    return code.every(
        code.builder.icmp_unsigned("<=", read, code.load(memory, INPUT_END)),
        code.builder.icmp_unsigned("<=", written, code.load(memory, OUTPUT_END)),
    )


def _add_fast(module: Any, streams: int, rounds: int) -> Any:
    """Takes from each stream in turn a value, or zeros, in turns of so many rounds, as long as there is room and nothing else.

    ``limit`` is how many turns at most. The states are those after the last turn in which there was nothing else; gives whether
    that ended it. At least :data:`_BEHIND` bytes must have been written of each stream.
    """
    function = private_function(module, f"fast_{streams}", INTEGER, [*[POINTER] * streams, INTEGER])
    *memories, limit = function.args
    code = IntegerCode(function)
    builder = code.builder

    def lanes(values: Sequence[Any]) -> Iterator[tuple[Any, Any, Any]]:
        return zip(memories, values[::2], values[1::2], strict=True)

    def keep(values: Sequence[Any]) -> None:
        for memory, position, target in lanes(values):
            code.store(position, memory, POSITION)
            code.store(target, memory, OUTPUT)

    def goes_on(bad: Any, turns: Any, *values: Any) -> Any:
        rooms = [_has_room(code, memory, position, target, rounds) for memory, position, target in lanes(values)]
        return code.every(code.is_(bad, "==", 0), code.is_(turns, "!=", 0), *rooms)

    def some(_: Any, turns: Any, *values: Any) -> list[Any]:
        keep(values)

        def once(number: Any, seen: Any, copied: Any, *values: Any) -> list[Any]:
            results = []
            for memory, position, target in lanes(values):
                entries, source, *after = _take(code, memory, position, target)
                seen, copied = builder.or_(seen, entries), builder.or_(copied, source)
                results += after
            return [code.sub(number, 1), seen, copied, *results]

        start = [rounds, ir.Constant(_FOUR, [0] * 4), ir.Constant(WORD, 0), *values]
        holds = lambda number, *_: code.is_(number, "!=", 0)  # noqa: E731
        _, seen, copied, *results = code.repeat(start, holds, once, at_least_once=True)
        wrong = SLOW | ONE_ZERO | MORE_ZEROS
        seen = builder.and_(seen, ir.Constant(_FOUR, [SLOW, wrong, wrong, wrong]))
        bits = ir.IntType(32 * 4)
        bad = builder.or_(builder.bitcast(seen, bits), builder.zext(copied, bits))
        return [builder.zext(builder.icmp_unsigned("!=", bad, ir.Constant(bits, 0)), INTEGER), code.sub(turns, 1), *results]

    begin = [code.load(memory, place) for memory in memories for place in (POSITION, OUTPUT)]
    bad, _, *values = code.repeat([0, limit, *begin], goes_on, some)
    with code.when(code.is_(bad, "==", 0)):
        keep(values)
    builder.ret(bad)
    return function


def _take(code: IntegerCode, memory: Any, position: Any, target: Any) -> list[Any]:
    """Takes a value or zeros: gives the four entries, what zeros were copied from, and the next position and target."""
    builder = code.builder
    table = code.at(code.at(memory, NOTHING), 1, WORD)
    bits = code.lshr(code.load_from(code.lshr(position, 3)), code.and_(position, 7))

    def entry_of(table: Any, place: Any) -> Any:
        return builder.sext(builder.load(code.at(table, place, WORD), typ=WORD, align=4), INTEGER)

    def after(bits: Any, entry: Any) -> Any:
        # The processor looks at no more bits of a shift than these.
        return code.lshr(bits, code.and_(entry, 63))

    mask = ENTRIES - 1
    first = entry_of(table, code.and_(bits, mask))
    bits = after(bits, first)
    second = entry_of(table, code.or_(code.and_(bits, mask), code.and_(first, ONE_ZERO | MORE_ZEROS)))
    bits = after(bits, second)
    # After a length and a distance nothing more is taken: the entry before the first is 0.
    is_length = code.ashr(first, 31)
    mask = code.and_(code.xor(is_length, -1), mask)
    table = code.at(table, is_length, WORD)
    third = entry_of(table, code.and_(bits, mask))
    fourth = entry_of(table, code.and_(after(bits, third), mask))
    taken = code.and_(code.add(code.add(first, second), code.add(third, fourth)), BITS_TAKEN)

    entries = ir.Constant(_FOUR, [0] * 4)
    for place, entry in enumerate((first, second, third, fourth)):
        entries = builder.insert_element(entries, builder.trunc(entry, WORD), ir.Constant(WORD, place))
    # The literals, of which a length has none, and zeros for all that may come.
    literals = [LITERAL // 8 + FLOAT_BYTES * place for place in range(FLOAT_BYTES)]
    value = _shuffled(builder, builder.bitcast(entries, _SIXTEEN), [*literals, *[16] * 12])
    builder.store(_shuffled(builder, value, [*range(16), *[16] * (_STORED - 16)]), code.pointer(target), align=1)
    floats = code.and_(code.lshr(first, FLOATS), FLOATS_OF_LENGTH)
    with code.when(code.is_(floats, ">", _STORED // FLOAT_BYTES)):
        for further in range(_STORED, LARGEST_BYTES, _STORED):
            builder.store(_ZEROS, code.pointer(code.add(target, further)), align=1)
    # Where zeros come from must be zero. After a value, the float behind it has just been made so.
    copied = builder.load(code.at(code.pointer(target), code.ashr(second, FLOATS), WORD), typ=WORD, align=1)
    return [entries, copied, code.add(position, taken), code.add(target, code.shl(floats, 2))]


def _shuffled(builder: Any, sixteen: Any, places: list[int]) -> Any:
    """Gives some of sixteen bytes in another order; place 16 is 0."""
    return builder.shuffle_vector(sixteen, _NO_BYTES, ir.Constant(ir.VectorType(WORD, len(places)), places))


def _works(code: IntegerCode, memory: Any) -> Any:
    return code.is_(code.load(memory, STATUS), "==", WORKING)


class _Parts(NamedTuple):
    """What takes the first symbols of a stream, one symbol, what tables tell of it, and all of it."""

    begin: Any
    step: Any
    alone: Any
    one: Any


def _add_begin(module: Any, step: Any) -> Any:
    """Takes the first symbols of a stream, until tables may be used."""
    function = private_function(module, "begin", ir.VoidType(), [POINTER, POINTER])
    memory, ranges = function.args
    code = IntegerCode(function)

    def is_short() -> Any:
        written = code.sub(code.load(memory, OUTPUT), code.load(memory, OUTPUT_START))
        return code.every(_works(code, memory), code.is_(written, "<", _BEHIND))

    def further() -> list[Any]:
        code.builder.call(step, [memory, ranges])
        return []

    code.repeat([], is_short, further)
    code.builder.ret_void()
    return function


def _add_one(module: Any, begin: Any, step: Any, alone: Any) -> Any:
    """Inflates a stream that is prepared, until it has ended or is refused."""
    function = new_function(module, "inflate_1", [POINTER] * 2)
    memory, ranges = function.args
    code = IntegerCode(function)

    def further() -> list[Any]:
        code.builder.call(alone, [memory, integer(_ENDLESS)])
        code.builder.call(step, [memory, ranges])
        return []

    code.builder.call(begin, [memory, ranges])
    code.repeat([], lambda: _works(code, memory), further)
    code.builder.ret_void()
    return function


def _add_several(module: Any, parts: _Parts, streams: int) -> Any:
    """Likewise of several streams, until one of them has ended or is refused: another may take its place."""
    fast = _add_fast(module, streams, _ROUNDS)
    function = new_function(module, f"inflate_{streams}", [POINTER] * (streams + 1))
    *memories, ranges = function.args
    code = IntegerCode(function)
    builder = code.builder
    for memory in memories:
        builder.call(parts.begin, [memory, ranges])

    def all_go_on(bad: Any) -> Any:
        return code.every(code.is_(bad, "!=", 0), *(_works(code, memory) for memory in memories))

    def together(_: Any) -> list[Any]:
        bad = builder.call(fast, [*memories, integer(_ENDLESS)])
        with code.when(code.is_(bad, "!=", 0)):
            # One by one they come past what was bad in one of them.
            for memory in memories:
                found = builder.call(parts.alone, [memory, integer(_ROUNDS)])
                with code.when(code.is_(found, "!=", 0)):
                    builder.call(parts.step, [memory, ranges])
        return [bad]

    code.repeat([1], all_go_on, together)
    # Whichever is near its end goes there alone.
    for memory in memories:
        position, target = code.load(memory, POSITION), code.load(memory, OUTPUT)
        with code.when(builder.not_(_has_room(code, memory, position, target, _ROUNDS))):
            builder.call(parts.one, [memory, ranges])
    builder.ret_void()
    return function
