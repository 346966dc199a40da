"""Vector code of a JPEG's Huffman codes: from the lengths and symbols that a file names to tables that are looked up in.

A symbol's length decides where the next one begins, so each waits for the one before. One look gives as much as there is in the
next bits: a code, its value, and of AC coefficients the next code and value as well, where both are short.

Source: ITU T.81 (JPEG), annexes C and F.2.2.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, Code, integer, new_function

# Bits that are looked up at once; longer codes, of which there are few, are searched for.
LOOK_BITS = 10
LONGEST_CODE = 16
_ENTRIES = 1 << LOOK_BITS

# A table, in 32-bit numbers: a symbol for each of the bits that are looked up; of the codes of each length (0 to 16) the first
# left-justified 16-bit code that is longer, and what to add to a code to have its symbol's place; the symbols, each a number; of
# AC tables two symbols, where two fit, for each of the bits that are looked up.
_LIMITS, _OFFSETS, _SYMBOLS = _ENTRIES, _ENTRIES + LONGEST_CODE + 1, _ENTRIES + 2 * (LONGEST_CODE + 1)
MOST_SYMBOLS = 256
# To where 64-bit numbers may be.
PAIRS = -(-(_SYMBOLS + MOST_SYMBOLS) // 2) * 2
TABLE_NUMBERS = PAIRS + 2 * _ENTRIES
# Where only some coefficients are wanted, what :mod:`~pipeline.images.jpeg_skipping` passes over, for each of more bits, two in a
# number.
SKIPS, SKIP_BITS = TABLE_NUMBERS, 12
LOW_TABLE_NUMBERS = SKIPS + (1 << SKIP_BITS) // 2

# An entry of 32 bits. Where a code and its value's bits are looked up at once: their number; places to go on in the zigzag; the
# value. Where not: bits of the code; INDIRECT; the symbol, and a mark that it is known; where a code is longer than that, 0.
STEP_AT, VALUE_AT, KNOWN_AT = 8, 16, 24
# An entry of 64 bits: number of bits, of both symbols; places to go on, by the first; likewise by both; bits of the first; its
# value; the second's. Where there is one alone, both are that one.
BOTH_STEPS_AT, FIRST_LENGTH_AT, FIRST_VALUE_AT, SECOND_VALUE_AT = 16, 24, 32, 48
# Steps beyond every block, that can be told apart wherever in a block they begin.
INDIRECT, END_OF_BLOCK = 64, 128
# Of a value's bits, which are the lower half of a symbol's.
_SIZE_BITS = 4
LARGEST_SIZE = (1 << _SIZE_BITS) - 1

# numbers of codes of each length (16 bytes), then their symbols; table; 1 for AC; result: 1 where it is no code
BUILD = [POINTER, POINTER, INTEGER, POINTER]

BYTE, SHORT, WORD = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def at(builder: Any, pointer: Any, place: Any, kind: Any = INTEGER) -> Any:
    """Gives a pointer so many numbers of a kind further."""
    return builder.gep(pointer, [integer(place)], source_etype=kind)


def load(builder: Any, pointer: Any, place: Any, kind: Any = INTEGER) -> Any:
    """Loads a number, made 64 bits long by zeros."""
    value = builder.load(at(builder, pointer, place, kind), typ=kind, align=kind.width // 8)
    return value if kind is INTEGER else builder.zext(value, INTEGER)


def store(builder: Any, value: Any, pointer: Any, place: Any, kind: Any = INTEGER) -> None:
    """Stores the lower bits of a number."""
    value = integer(value)
    short = value if kind is INTEGER else builder.trunc(value, kind)
    builder.store(short, at(builder, pointer, place, kind), align=kind.width // 8)


def field(builder: Any, entry: Any, place: int) -> Any:
    """Gives a byte of an entry."""
    return builder.and_(builder.lshr(entry, integer(place)), integer(255))


def add_build_table(module: Any) -> Any:
    """Adds ``jpeg_build_table``: from the lengths and symbols of a Huffman code to a table to look it up in."""
    function = new_function(module, "jpeg_build_table", BUILD)
    codes, table, is_ac, result = function.args
    code = Code(function, 1)
    builder = code.builder
    store(builder, 0, result, 0)
    # What no code leads to is put to the search, which fails.
    with code.loop(0, _ENTRIES) as place:
        store(builder, INDIRECT << STEP_AT, table, place, WORD)
    any_run = builder.mul(is_ac, integer(LARGEST_SIZE))
    next_code, next_symbol = builder.alloca(INTEGER), builder.alloca(INTEGER)
    builder.store(integer(0), next_code)
    builder.store(integer(0), next_symbol)
    with code.loop(1, LONGEST_CODE + 1) as length:
        begin, first_symbol = builder.load(next_code, typ=INTEGER), builder.load(next_symbol, typ=INTEGER)
        count = load(builder, codes, builder.sub(length, integer(1)), BYTE)
        store(builder, builder.sub(first_symbol, begin), table, builder.add(length, integer(_OFFSETS)), WORD)
        stop = builder.add(begin, count)
        # Source: ITU T.81, C.2 and K.3: no code is all ones, so there is one to spare at every length.
        too_many = builder.icmp_signed(">=", stop, builder.shl(integer(1), length))
        with builder.if_then(builder.and_(too_many, builder.icmp_signed(">", count, integer(0)))):
            store(builder, 1, result, 0)
            builder.ret_void()
        with code.loop(0, count) as number:
            symbol = load(builder, codes, builder.add(builder.add(first_symbol, number), integer(LONGEST_CODE)), BYTE)
            store(builder, symbol, table, builder.add(builder.add(first_symbol, number), integer(_SYMBOLS)), WORD)
            # Of DC there is a size and nothing else.
            with builder.if_then(builder.icmp_unsigned(">", builder.lshr(symbol, integer(_SIZE_BITS)), any_run)):
                store(builder, 1, result, 0)
                builder.ret_void()
            with builder.if_then(builder.icmp_signed("<=", length, integer(LOOK_BITS))):
                spread = builder.sub(integer(LOOK_BITS), length)
                low = builder.shl(builder.add(begin, number), spread)
                _fill(builder, code, table, low, length, spread, symbol)
        limit = builder.shl(stop, builder.sub(integer(LONGEST_CODE), length))
        store(builder, limit, table, builder.add(length, integer(_LIMITS)), WORD)
        builder.store(builder.shl(stop, integer(1)), next_code)
        builder.store(builder.add(first_symbol, count), next_symbol)
    with builder.if_then(builder.icmp_unsigned("!=", is_ac, integer(0))):
        pairs = at(builder, table, PAIRS, WORD)
        with code.loop(0, _ENTRIES) as place:
            store(builder, _pair(builder, table, place), pairs, place)
    builder.ret_void()
    return function


def _pair(builder: Any, table: Any, place: Any) -> Any:
    """Gives the entry of 64 bits: of the symbol that these bits begin with and, where it is whole, of the next."""
    first = load(builder, table, place, WORD)
    length, step = builder.and_(first, integer(255)), field(builder, first, STEP_AT)
    left = builder.and_(builder.shl(place, builder.and_(length, integer(63))), integer(_ENTRIES - 1))
    second = load(builder, table, left, WORD)
    both = builder.add(length, builder.and_(second, integer(255)))
    other_step = field(builder, second, STEP_AT)
    is_followed = builder.icmp_unsigned("<", step, integer(INDIRECT))
    is_whole = builder.icmp_unsigned("<=", both, integer(LOOK_BITS))
    is_known = builder.icmp_unsigned("!=", other_step, integer(INDIRECT))
    goes_on = builder.and_(is_followed, builder.and_(is_whole, is_known))
    total = builder.select(goes_on, both, length)
    steps = builder.select(goes_on, builder.add(step, other_step), step)
    last = builder.select(goes_on, second, first)
    entry = builder.or_(total, builder.and_(first, integer(255 << STEP_AT)))
    values = builder.lshr(first, integer(VALUE_AT)), builder.lshr(last, integer(VALUE_AT))
    places = BOTH_STEPS_AT, FIRST_LENGTH_AT, FIRST_VALUE_AT, SECOND_VALUE_AT
    for value, place_of in zip((steps, length, *values), places, strict=True):
        entry = builder.or_(entry, builder.shl(value, integer(place_of)))
    return entry


def _fill(builder: Any, code: Code, table: Any, low: Any, length: Any, spread: Any, symbol: Any) -> None:
    """Writes the entries of one code: of each of the values whose bits are looked up with it, those that lie together."""
    size = builder.and_(symbol, integer(LARGEST_SIZE))
    entries = builder.shl(integer(1), spread)
    direct = builder.icmp_signed("<=", size, spread)
    with builder.if_else(direct) as (at_once, later):
        with at_once:
            rest = builder.sub(spread, size)
            step = step_of(builder, symbol)
            head = builder.or_(builder.add(length, size), builder.shl(step, integer(STEP_AT)))
            half = builder.lshr(builder.shl(integer(1), size), integer(1))
            with code.loop(0, builder.shl(integer(1), size)) as written:
                # Source: ITU T.81, F.2.2.1, EXTEND.
                negative = builder.sub(written, builder.sub(builder.shl(integer(1), size), integer(1)))
                value = builder.select(builder.icmp_unsigned("<", written, half), negative, written)
                entry = builder.or_(head, builder.shl(value, integer(VALUE_AT)))
                first = builder.add(low, builder.shl(written, rest))
                with code.loop(first, builder.add(first, builder.shl(integer(1), rest))) as place:
                    store(builder, entry, table, place, WORD)
        with later:
            # A mark beyond the symbol's byte: there are symbols that are 0.
            entry = builder.or_(builder.or_(length, integer(INDIRECT << STEP_AT)), builder.shl(symbol, integer(VALUE_AT)))
            entry = builder.or_(entry, integer(1 << KNOWN_AT))
            with code.loop(low, builder.add(low, entries)) as place:
                store(builder, entry, table, place, WORD)


def step_of(builder: Any, symbol: Any) -> Any:
    """Gives how far a symbol goes in the zigzag: over a run of zeros to its value, or to the end of the block."""
    size, run = builder.and_(symbol, integer(LARGEST_SIZE)), builder.lshr(symbol, integer(_SIZE_BITS))
    # 15 zeros without a value are 16 zeros; fewer end the block.
    ends = builder.and_(builder.icmp_unsigned("==", size, integer(0)), builder.icmp_unsigned("!=", run, integer(LARGEST_SIZE)))
    return builder.select(ends, integer(END_OF_BLOCK), builder.add(run, integer(1)))


def add_search(module: Any) -> Any:
    """Adds ``jpeg_search``: length and symbol (from the 8th bit on) of the code that bits begin with; 0 where there is none."""
    function = ir.Function(module, ir.FunctionType(INTEGER, [POINTER, INTEGER, INTEGER]), "jpeg_search")
    table, waiting, entry = function.args
    code = Code(function, 1)
    builder = code.builder
    known = builder.and_(builder.lshr(entry, integer(KNOWN_AT)), integer(1))
    with builder.if_then(builder.icmp_unsigned("!=", known, integer(0))):
        symbol = builder.and_(builder.lshr(entry, integer(VALUE_AT)), integer(255))
        builder.ret(builder.or_(builder.and_(entry, integer(255)), builder.shl(symbol, integer(8))))
    bits = builder.lshr(waiting, integer(64 - LONGEST_CODE))
    with code.loop(LOOK_BITS + 1, LONGEST_CODE + 1) as length:
        limit = load(builder, table, builder.add(length, integer(_LIMITS)), WORD)
        with builder.if_then(builder.icmp_unsigned("<", bits, limit)):
            number = builder.lshr(bits, builder.sub(integer(LONGEST_CODE), length))
            place = builder.add(number, load(builder, table, builder.add(length, integer(_OFFSETS)), WORD))
            # A code that is shorter than those searched for cannot come here: it is in the table.
            symbol = load(builder, table, builder.add(builder.and_(place, integer(255)), integer(_SYMBOLS)), WORD)
            builder.ret(builder.or_(length, builder.shl(symbol, integer(8))))
    builder.ret(integer(0))
    return function
