"""Rows of RGB from rows of JPEG's samples: chroma brought to the size of the image, then changed to red, green and blue.

Bit for bit libjpeg-turbo's "fancy" upsampling, each sample a mean of its neighbours weighted by nearness, and its fixed-point
conversion. Chroma lies woven: a byte of blue's, a byte of red's. Even and odd columns are computed apart, so that doubling the
columns needs no interleaving; all that is shuffled are the bytes of the result.

Source: libjpeg-turbo, jdsample.c and jdcolor.c; ITU-R BT.601 for the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..vector_code import INTEGER, POINTER, Code, Processor, integer, new_function
from .jpeg_geometry import COLOURS, LINE_BYTES, PAIR_BYTES
from .jpeg_lanes import BYTE, DOUBLE, LANE_BYTES, LANE_DOUBLES, QUAD, WORD, Words, copy_bytes

# luma; chroma or a line of it; the row of chroma next to it; output; as many bytes as a step writes; width
ROW = [POINTER, POINTER, POINTER, POINTER, POINTER, INTEGER]
# two rows of chroma, the line nearer to each, pairs
LINES = [POINTER, POINTER, POINTER, POINTER, INTEGER]

# Weights of a near and a far neighbour are 3 and 1.
_NEAR = 3
_CENTRE = 128
# Chroma is doubled, since all factors of 16 bits behind the point are then of 15, and exact: 1.772 and 1.402 rounded so that
# the results for all 256 values are the table's; for green 0.34414 and 0.71414, where only the sum is rounded.
_BLUE, _RED = 29033, 22971
_GREEN_OF_BLUE, _GREEN_OF_RED = -11277, -23401
_GREEN_HALF = 1 << 15

# Even words of what was twice as many, and odd ones, each twice: luma for the two colours of a pixel.
_EVEN_TWICE, _ODD_TWICE = (0, 0, 2, 2, 4, 4, 6, 6), (1, 1, 3, 3, 5, 5, 7, 7)

Chroma = Callable[[Any], tuple[Any, Any]]


def add_rows(module: Any, processor: Processor) -> None:
    """Adds functions that write one row of RGB each.

    ``jpeg_grey`` has no chroma; ``jpeg_same`` has it for each pixel; ``jpeg_twice`` and ``jpeg_wide`` have it for two, repeated
    or interpolated; ``jpeg_upper`` and ``jpeg_lower`` interpolate towards the row above or below; ``jpeg_both`` interpolates
    lines of ``jpeg_lines``. All read up to a step beyond the width, ``jpeg_wide`` and ``jpeg_both`` also a pair before and one
    behind the chroma.
    """
    _add_grey(module, processor)
    for name, add in (
        ("jpeg_same", _same),
        ("jpeg_twice", _twice),
        ("jpeg_wide", _wide),
        ("jpeg_upper", _between(1)),
        ("jpeg_lower", _between(2)),
        ("jpeg_both", _both),
    ):
        _add_colour(module, processor, name, add)
    _add_lines(module, processor)


def step_pixels(words: Words) -> int:
    """Gives how many pixels are written at once: a register of bytes for each colour."""
    return words.lanes * LANE_BYTES


def _add_grey(module: Any, processor: Processor) -> None:
    function = new_function(module, "jpeg_grey", ROW)
    luma, _, _, output, spare, width = function.args
    code = Code(function, 1)
    words = Words(code, processor)
    parts = [[place // COLOURS for place in range(part * LANE_BYTES, (part + 1) * LANE_BYTES)] for part in range(COLOURS)]

    def step(pixel: Any) -> list[Any]:
        levels = words.load(luma, pixel, words.vector(BYTE))
        return _in_order(words, [words.choose_in_lanes(levels, None, part) for part in parts])

    _each_step(code, words, output, spare, width, step)
    code.builder.ret_void()


def _add_colour(module: Any, processor: Processor, name: str, add: Callable[[Words, Any, Any], Chroma]) -> None:
    function = new_function(module, name, ROW)
    luma, chroma, other, output, spare, width = function.args
    code = Code(function, 1)
    words = Words(code, processor)
    chroma_at = add(words, chroma, other)

    def step(pixel: Any) -> list[Any]:
        halves = []
        for half in (0, 1):
            first = code.builder.add(pixel, integer(half * words.words))
            halves.append(_colours(words, *chroma_at(first), words.load_widened(luma, first)))
        (left, left_green), (right, right_green) = halves
        return _interleaved(words, left, right, words.pack_unsigned(left_green, right_green))

    _each_step(code, words, output, spare, width, step)
    code.builder.ret_void()


def _each_step(code: Code, words: Words, output: Any, spare: Any, width: Any, step: Callable[[Any], list[Any]]) -> None:
    """Writes what a body gives for each step; what of the last would lie beyond the row goes to spare memory first."""
    builder, pixels = code.builder, step_pixels(words)
    rest = builder.srem(width, integer(pixels))
    whole = builder.sub(width, rest)
    with code.loop(0, width, pixels) as pixel:
        values = step(pixel)
        inside = builder.icmp_signed("<", pixel, whole)
        target = builder.select(inside, words.at(output, builder.mul(pixel, integer(COLOURS))), spare)
        for part, value in enumerate(values):
            words.store(value, target, part * words.lanes * LANE_BYTES)
    last = words.at(output, builder.mul(whole, integer(COLOURS)))
    copy_bytes(code, spare, last, builder.mul(rest, integer(COLOURS)))


def _colours(words: Words, even: Any, odd: Any, luma: Any) -> tuple[Any, Any]:
    """Gives blue and red of pixels, as bytes, in each lane those of even ones first; and green of all, as words.

    Args:
        words: Where to write.
        even: Chroma of even pixels, blue's and red's: less 128, times 2.
        odd: Of odd ones.
        luma: Of both.
    """
    builder = words.builder
    outer = [
        builder.add(words.multiply_rounded(chroma, words.constant(WORD, _BLUE, _RED)), words.choose_in_lanes(luma, None, twice))
        for chroma, twice in ((even, _EVEN_TWICE), (odd, _ODD_TWICE))
    ]
    greens = [
        builder.add(words.multiply_pairs(chroma, _GREEN_OF_BLUE, _GREEN_OF_RED), words.constant(DOUBLE, _GREEN_HALF))
        for chroma in (even, odd)
    ]
    lower = builder.lshr(greens[0], words.constant(DOUBLE, 16))
    upper = builder.and_(greens[1], words.constant(DOUBLE, -1 << 16))
    green = builder.add(words.as_type(builder.or_(lower, upper), WORD), luma)
    return words.pack_unsigned(*outer), green


def _interleaved(words: Words, left: Any, right: Any, green: Any) -> list[Any]:
    """Gives RGB of a step in three registers, from blue and red of its halves and green as it was packed."""
    lanes = words.lanes
    if words.has_byte_permutes:
        return _interleaved_at_once(words, left, right, green)
    # So that a lane holds 16 pixels that follow each other.
    first = words.choose_lanes(left, right, range(0, 2 * lanes, 2))
    second = words.choose_lanes(left, right, range(1, 2 * lanes, 2))
    groups = [group % lanes * 2 + group // lanes for group in range(2 * lanes)]
    green = words.as_type(words.choose(words.as_type(green, QUAD), None, groups), BYTE)
    parts = []
    for part in range(COLOURS):
        places, greens = [], []
        for byte in range(part * LANE_BYTES, (part + 1) * LANE_BYTES):
            pixel, colour = divmod(byte, COLOURS)
            is_green = colour == 1
            places.append(None if is_green else _outer_place(pixel, colour, LANE_BYTES))
            greens.append(LANE_BYTES + pixel if is_green else byte % LANE_BYTES)
        parts.append(words.choose_in_lanes(words.choose_in_lanes(first, second, places), green, greens))
    return _in_order(words, parts)


def _outer_place(pixel: int, colour: int, second: int) -> int:
    """Gives where blue or red of one of 16 pixels is in a lane, the last 8 of them in another."""
    return pixel // 8 * second + pixel % 2 * 8 + pixel % 8 // 2 * 2 + (colour == 0)


def _interleaved_at_once(words: Words, left: Any, right: Any, green: Any) -> list[Any]:
    pixels = step_pixels(words)
    results = []
    for part in range(COLOURS):
        places: list[int | None] = []
        greens = []
        for byte in range(part * pixels, (part + 1) * pixels):
            pixel, colour = divmod(byte, COLOURS)
            side, group = divmod(pixel // 8, words.lanes)
            is_green = colour == 1
            places.append(None if is_green else side * pixels + group * LANE_BYTES + _outer_place(pixel % 8, colour, 0))
            greens.append(pixels + group * LANE_BYTES + side * 8 + pixel % 8 if is_green else byte % pixels)
        results.append(words.choose(words.choose(left, right, places), green, greens))
    return results


def _in_order(words: Words, parts: Sequence[Any]) -> list[Any]:
    """Gives three registers in memory's order from the three parts of each lane's 48 bytes."""
    lanes = words.lanes
    results = []
    for register in range(COLOURS):
        wanted = [divmod(place, COLOURS) for place in range(register * lanes, (register + 1) * lanes)]
        two = [None if part == 2 else part * lanes + lane for lane, part in wanted]
        both = words.choose_lanes(parts[0], parts[1], two)
        results.append(
            words.choose_lanes(both, parts[2], [place if part < 2 else lanes + lane for place, (lane, part) in enumerate(wanted)])
        )
    return results


def _doubled(words: Words, level: Any) -> Any:
    """Gives twice chroma less 128."""
    builder = words.builder
    return builder.sub(builder.shl(level, words.constant(WORD, 1)), words.constant(WORD, 2 * _CENTRE))


def _same(words: Words, chroma: Any, _: Any) -> Chroma:
    def at(pixel: Any) -> tuple[Any, Any]:
        even, odd = _even_and_odd(words, chroma, pixel)
        return _doubled(words, even), _doubled(words, odd)

    return at


def _even_and_odd(words: Words, chroma: Any, pixel: Any) -> tuple[Any, Any]:
    """Gives pairs of even and of odd pixels as words."""
    pairs = words.load(chroma, words.builder.mul(pixel, integer(PAIR_BYTES)), words.vector(BYTE))
    nothing = words.constant(BYTE, 0)
    sides = []
    for first in (0, PAIR_BYTES):
        places = [
            place for pair in range(LANE_DOUBLES) for byte in range(PAIR_BYTES) for place in (4 * pair + first + byte, LANE_BYTES)
        ]
        sides.append(words.as_type(words.choose_in_lanes(pairs, nothing, places), WORD))
    return sides[0], sides[1]


def _twice(words: Words, chroma: Any, _: Any) -> Chroma:
    def at(pixel: Any) -> tuple[Any, Any]:
        level = _doubled(words, words.load_widened(chroma, pixel))
        return level, level

    return at


def _between(halves: int) -> Callable[[Words, Any, Any], Chroma]:
    """Interpolates between rows; what is added before dividing by 4 differs from row to row, so that no side is favoured."""

    def add(words: Words, chroma: Any, other: Any) -> Chroma:
        def at(pixel: Any) -> tuple[Any, Any]:
            near, far = (_even_and_odd(words, row, pixel) for row in (chroma, other))
            even, odd = (_interpolated(words, *pair, halves, 2) for pair in zip(near, far, strict=True))
            return even, odd

        return at

    return add


def _interpolated(words: Words, near: Any, far: Any, halves: int, bits: int) -> Any:
    """Gives (3 near + far + halves) / 2**bits, less 128, times 2."""
    builder = words.builder
    less = words.constant(WORD, halves - (_CENTRE << bits))
    total = builder.add(builder.add(builder.mul(near, words.constant(WORD, _NEAR)), less), far)
    return builder.and_(builder.ashr(total, words.constant(WORD, bits - 1)), words.constant(WORD, -2))


def _wide(words: Words, chroma: Any, _: Any) -> Chroma:
    # A pair of bytes stands for two pixels.
    def at(pixel: Any) -> tuple[Any, Any]:
        before, here, behind = (
            words.load_widened(chroma, words.builder.add(pixel, integer(pairs * PAIR_BYTES))) for pairs in (-1, 0, 1)
        )
        return _interpolated(words, here, before, 1, 2), _interpolated(words, here, behind, 2, 2)

    return at


def _both(words: Words, line: Any, _: Any) -> Chroma:
    def at(pixel: Any) -> tuple[Any, Any]:
        place = words.builder.mul(pixel, integer(LINE_BYTES // 2))
        before, here, behind = (
            words.load(line, words.builder.add(place, integer(pairs * LINE_BYTES)), words.vector(WORD)) for pairs in (-1, 0, 1)
        )
        return _interpolated(words, here, before, 8, 4), _interpolated(words, here, behind, 7, 4)

    return at


def _add_lines(module: Any, processor: Processor) -> None:
    """Adds ``jpeg_lines``: 3 near + far of two rows of chroma, either as the near one, the first and last pair repeated."""
    function = new_function(module, "jpeg_lines", LINES)
    *rows, upper, lower, pairs = function.args
    code = Code(function, 1)
    words, builder = Words(code, processor), code.builder
    count = builder.mul(pairs, integer(PAIR_BYTES))
    with code.loop(0, count, words.words) as place:
        above, below = (words.load_widened(row, place) for row in rows)
        total = builder.add(above, below)
        for value, line in ((above, upper), (below, lower)):
            near = builder.add(total, builder.shl(value, words.constant(WORD, 1)))
            words.store(near, line, builder.mul(place, integer(PAIR_BYTES)))
    end = builder.mul(pairs, integer(LINE_BYTES))
    for line in (upper, lower):
        words.store(words.load(line, 0, DOUBLE), line, -LINE_BYTES)
        words.store(words.load(line, builder.sub(end, integer(LINE_BYTES)), DOUBLE), line, end)
    builder.ret_void()
