"""What a stream is decoded by, made by machine code from its header: codes in order, and tables that say at once what comes next.

The memory of a stream holds its state, then these; :mod:`~.inflate_code` decodes with it.

Source: RFC 1951, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, integer, new_function
from .integer_code import WORD, IntegerCode

# Longest code that is taken: so short, the tables of all streams at once stay in a processor's first cache.
LARGEST_BITS = 11
# Symbols of both alphabets, as many as a header of ours names.
SYMBOLS, DISTANCES, END = 286, 30, 256
ALPHABETS = (SYMBOLS, DISTANCES)
# Bytes of a float, and of the longest run of zeros and the furthest distance that have entries.
FLOAT_BYTES = 4
LARGEST_BYTES = 256

# State of a stream, int64: the bit that is next, counted from address 0; addresses where input ends, output is next, begins and
# ends; what came of it.
POSITION, INPUT_END, OUTPUT, OUTPUT_START, OUTPUT_END, STATUS = range(6)
STATE = 6
WORKING, ENDED, REFUSED = range(3)
# After the state, likewise: the length of each symbol's code, of both alphabets; where the symbols of each length begin in the
# order of their codes; then of each alphabet how many have each length, and the symbols in that order.
LENGTHS = (STATE, STATE + SYMBOLS)
LENGTHS_KNOWN = 16
STARTS = LENGTHS[1] + DISTANCES
COUNTS = (STARTS + LENGTHS_KNOWN, STARTS + 2 * LENGTHS_KNOWN)
ORDERS = (COUNTS[1] + LENGTHS_KNOWN, COUNTS[1] + LENGTHS_KNOWN + SYMBOLS)
# Then three tables of 32-bit entries, after one that is 0: of literals and lengths, of distances of one zero, of more zeros.
NOTHING = ORDERS[1] + DISTANCES
ENTRIES = 1 << LARGEST_BITS
MEMORY = NOTHING + (3 * ENTRIES + 2) // 2

# Ranges of symbols, int64: smallest size and further bits, of lengths, then of distances; what leads from a symbol to its own.
RANGES = (-END - 1, SYMBOLS - END - 1)

# An entry: bits that it takes; flags; the literal; how many floats, 1 for a literal, from -1 down for a distance.
SLOW = 1 << 8  # left to the slow way
ONE_ZERO, MORE_ZEROS = ENTRIES, 2 * ENTRIES  # what is added to a place in the first table to find one in the others
LITERAL = 16
FLOATS = 24
IS_LENGTH = -1 << 31
BITS_TAKEN, FLOATS_OF_LENGTH = 255, 127

# memory, header, its bit where the lengths begin, ranges
PREPARE = [POINTER, POINTER, INTEGER, POINTER]
# Bits of a length in a header of ours.
FIELD_BITS = 4


def add_prepare(module: Any) -> None:
    """Adds ``prepare``, which makes all this of a stream of ours, or refuses it: codes too long, too many or not all that fit."""
    function = new_function(module, "prepare", PREPARE)
    memory, header, first_bit, ranges = function.args
    code = IntegerCode(function)
    header = code.builder.ptrtoint(header, INTEGER)

    def read(symbol: Any) -> list[Any]:
        bit = code.add(first_bit, code.mul(symbol, FIELD_BITS))
        pair = code.load_from(code.add(header, code.lshr(bit, 3)), ir.IntType(16))
        field = code.lshr(pair, code.and_(bit, 7))
        # A length is written with its highest bit first.
        length = integer(0)
        for place in range(FIELD_BITS):
            length = code.or_(length, code.shl(code.and_(code.lshr(field, place), 1), FIELD_BITS - 1 - place))
        code.store(length, memory, code.add(symbol, LENGTHS[0]))
        return [code.add(symbol, 1)]

    code.repeat([0], lambda symbol: code.is_(symbol, "<", sum(ALPHABETS)), read)
    for alphabet in range(2):
        _sort_symbols(code, memory, alphabet)
    code.builder.store(ir.Constant(WORD, 0), code.at(memory, NOTHING), align=4)
    for alphabet in range(2):
        _fill_tables(code, memory, alphabet, ranges)
    give(code, WORKING, memory)


def give(code: IntegerCode, status: int, memory: Any) -> None:
    """Writes what came of a stream, and leaves the function."""
    code.store(status, memory, STATUS)
    code.builder.ret_void()


def range_of(code: IntegerCode, alphabet: int, symbol: Any, ranges: Any) -> tuple[Any, Any]:
    """Gives the smallest size that a symbol stands for, and how many further bits it has."""
    place = code.mul(code.add(symbol, RANGES[alphabet]), 2)
    return code.load(ranges, place), code.load(ranges, code.add(place, 1))


def _sort_symbols(code: IntegerCode, memory: Any, alphabet: int) -> None:
    """Counts the symbols of each length and puts them in the order of their codes, behind those that have none."""
    symbols, counts, order = ALPHABETS[alphabet], COUNTS[alphabet], ORDERS[alphabet]
    for length in range(LENGTHS_KNOWN):
        code.store(0, memory, counts + length)

    def each_symbol(body: Callable[[Any, Any], None]) -> None:
        def of_symbol(symbol: Any) -> list[Any]:
            body(symbol, code.load(memory, code.add(symbol, LENGTHS[alphabet])))
            return [code.add(symbol, 1)]

        code.repeat([0], lambda symbol: code.is_(symbol, "<", symbols), of_symbol)

    def count(_: Any, length: Any) -> None:
        place = code.add(length, counts)
        code.store(code.add(code.load(memory, place), 1), memory, place)

    each_symbol(count)

    def start(length: Any, place: Any, taken: Any) -> list[Any]:
        code.store(place, memory, code.add(length, STARTS))
        many = code.load(memory, code.add(length, counts))
        # Each takes its share of all; one that is too long takes more than there is.
        fits = code.is_(length, "<=", LARGEST_BITS)
        space = code.shl(many, code.select(fits, code.sub(LENGTHS_KNOWN - 1, length), LENGTHS_KNOWN))
        space = code.select(code.is_(length, "==", 0), 0, space)
        return [code.add(length, 1), code.add(place, many), code.add(taken, space)]

    _, _, taken = code.repeat([0, 0, 0], lambda length, *_: code.is_(length, "<", LENGTHS_KNOWN), start)
    with code.when(code.is_(taken, "!=", 1 << (LENGTHS_KNOWN - 1))):
        give(code, REFUSED, memory)

    def put(symbol: Any, length: Any) -> None:
        start = code.add(length, STARTS)
        place = code.load(memory, start)
        code.store(code.add(place, 1), memory, start)
        code.store(symbol, memory, code.add(place, order))

    each_symbol(put)


def _fill_tables(code: IntegerCode, memory: Any, alphabet: int, ranges: Any) -> None:
    """Makes the entry of each place: of the code that it begins with, and of the further bits if they are in it."""
    beginning = code.at(memory, NOTHING)
    tables = [code.at(beginning, 1 + number * ENTRIES, WORD) for number in ((0,), (1, 2))[alphabet]]

    def fill(rank: Any, bits: Any) -> list[Any]:
        symbol = code.load(memory, code.add(rank, ORDERS[alphabet]))
        length = code.load(memory, code.add(symbol, LENGTHS[alphabet]))
        # The first bit of a code is the lowest of a place.
        reverse = code.builder.module.declare_intrinsic("llvm.bitreverse", [INTEGER])
        first = code.lshr(code.builder.call(reverse, [bits]), 64 - LARGEST_BITS)
        entries_of = (_run_entries, _distance_entries)[alphabet](code, symbol, length, ranges)

        def put(place: Any) -> list[Any]:
            for table, entry in zip(tables, entries_of(place), strict=True):
                code.builder.store(code.builder.trunc(entry, WORD), code.at(table, place, WORD), align=4)
            return [code.add(place, code.shl(1, length))]

        code.repeat([first], lambda place: code.is_(place, "<", ENTRIES), put)
        return [code.add(rank, 1), code.add(bits, code.shl(1, code.sub(LARGEST_BITS, length)))]

    start = [code.load(memory, COUNTS[alphabet]), 0]
    code.repeat(start, lambda rank, _: code.is_(rank, "<", ALPHABETS[alphabet]), fill)


def _sizes(code: IntegerCode, alphabet: int, symbol: Any, length: Any, ranges: Any) -> Callable[[Any], tuple[Any, Any, Any]]:
    """Gives what tells for a place: the size that a symbol stands for, bits taken, whether that can be an entry."""
    base, further = range_of(code, alphabet, symbol, ranges)
    taken = code.add(length, further)

    def size_of(place: Any) -> tuple[Any, Any, Any]:
        size = code.add(base, code.and_(code.lshr(place, length), code.sub(code.shl(1, further), 1)))
        whole = code.is_(code.and_(size, FLOAT_BYTES - 1), "==", 0)
        fits = code.every(whole, code.is_(size, "<=", LARGEST_BYTES), code.is_(taken, "<=", LARGEST_BITS))
        return size, taken, fits

    return size_of


def _run_entries(code: IntegerCode, symbol: Any, length: Any, ranges: Any) -> Callable[[Any], list[Any]]:
    is_literal = code.is_(symbol, "<", END)
    # Of a literal there is no range; it has that of the first length, and makes nothing of it.
    size_of = _sizes(code, 0, code.select(code.is_(symbol, "<=", END), END + 1, symbol), length, ranges)
    literal = code.or_(code.or_(length, 1 << FLOATS), code.shl(symbol, LITERAL))

    def entries_of(place: Any) -> list[Any]:
        size, taken, fits = size_of(place)
        fits = code.every(fits, code.is_(symbol, "!=", END))
        kind = code.select(code.is_(size, "==", FLOAT_BYTES), ONE_ZERO | IS_LENGTH, MORE_ZEROS | IS_LENGTH)
        run = code.or_(code.or_(taken, kind), code.shl(code.lshr(size, 2), FLOATS))
        return [code.select(is_literal, literal, code.select(fits, run, SLOW))]

    return entries_of


def _distance_entries(code: IntegerCode, symbol: Any, length: Any, ranges: Any) -> Callable[[Any], list[Any]]:
    size_of = _sizes(code, 1, symbol, length, ranges)

    def entries_of(place: Any) -> list[Any]:
        size, taken, fits = size_of(place)
        distance = code.or_(taken, code.shl(code.sub(0, code.lshr(size, 2)), FLOATS))
        # One zero may come from anywhere; more are all the same only after the last one.
        fits_more = code.every(fits, code.is_(size, "==", FLOAT_BYTES))
        return [code.select(condition, distance, SLOW) for condition in (fits, fits_more)]

    return entries_of
