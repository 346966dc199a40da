"""Baseline JPEGs as no encoder makes them: of any Huffman codes, any runs, any block ends; for tests."""

from __future__ import annotations

import random
from collections.abc import Sequence

# 16 numbers of codes, by length, and their symbols.
Codes = tuple[list[int], list[int]]
END, ZEROS = 0x00, 0xF0


def words_of(codes: Codes) -> dict[int, str]:
    """Gives symbol -> its code, in 0 and 1."""
    words, code, place = {}, 0, 0
    for length, count in enumerate(codes[0], 1):
        for symbol in codes[1][place : place + count]:
            words[symbol] = format(code, f"0{length}b")
            code += 1
        place += count
        code <<= 1
    return words


def random_codes(choose: random.Random, symbols: Sequence[int]) -> Codes:
    """Gives codes of random lengths for these symbols, none of them all ones."""
    while True:
        counts, left, room = [0] * 16, len(symbols), 1
        for length in range(16):
            room *= 2
            most = min(left, room - 1)
            count = left if length == 15 else min(most, choose.choice((0, 0, 1, 1, 2, most, choose.randint(0, most))))
            # As many must be to spare as the others need.
            while 0 < count < left and (room - count) * 2 ** (15 - length) - 1 < left - count:
                count -= 1
            if count > room - 1:
                break
            counts[length] = count
            left, room = left - count, room - count
            if not left:
                return counts, choose.sample(list(symbols), len(symbols))


def jpeg_of(
    width: int,
    height: int,
    dc: Codes,
    ac: Codes,
    segments: Sequence[str],
    *,
    factor: int = 1,
    interval: int = 0,
    sampling: tuple[int, int] | None = None,
) -> bytes:
    """Gives a file of these bits.

    Args:
        width: In px.
        height: In px.
        dc: Codes of all components.
        ac: Likewise.
        segments: Bits, 0 and 1, from one restart to the next.
        factor: All factors of quantisation.
        interval: MCUs from restart to restart.
        sampling: Columns and rows of luma for one of chroma; None: grey.
    """

    def marker(code: int, body: bytes) -> bytes:
        return bytes([0xFF, code]) + (2 + len(body)).to_bytes(2, "big") + body

    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    parts = [(1, 1)] if sampling is None else [sampling, (1, 1), (1, 1)]
    frame = b"".join(bytes([number, across << 4 | down, 0]) for number, (across, down) in enumerate(parts, 1))
    file = b"\xff\xd8" + (b"" if sampling is None else marker(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"))
    file += marker(0xDB, b"\0" + bytes([factor] * 64)) + marker(0xC0, b"\x08" + sides + bytes([len(parts)]) + frame)
    file += b"".join(marker(0xC4, bytes([kind, *counts, *symbols])) for kind, (counts, symbols) in ((0, dc), (16, ac)))
    if interval:
        file += marker(0xDD, interval.to_bytes(2, "big"))
    file += marker(0xDA, bytes([len(parts)]) + b"".join(bytes([number, 0]) for number in range(1, len(parts) + 1)) + b"\0\x3f\0")
    for number, bits in enumerate(segments):
        if number:
            file += bytes([0xFF, 0xD0 + (number - 1) % 8])
        size = -(-len(bits) // 8)
        file += int(bits.ljust(8 * size, "1") or "0", 2).to_bytes(size, "big").replace(b"\xff", b"\xff\x00")
    return file + b"\xff\xd9"


def random_jpeg(choose: random.Random) -> bytes:
    """Gives a small file of random codes and blocks, sometimes with some bits turned."""
    large = choose.choice((2, 4, 10, 15))
    others = [symbol for symbol in range(256) if symbol not in (END, ZEROS, 1) and symbol & 15 <= large]
    some = choose.sample(others, min(len(others), choose.choice((2, 3, 6, 10, 30, 100))))
    symbols = [1, END, *some, *([ZEROS] if choose.random() < 0.7 else [])]
    dc, ac = random_codes(choose, choose.sample(range(12), choose.choice((2, 3, 5, 12)))), random_codes(choose, symbols)
    sampling = choose.choice((None, None, (1, 1), (2, 1), (1, 2), (2, 2)))
    across, down = sampling or (1, 1)
    width, height = choose.randint(1, 40), choose.randint(1, 40)
    mcus = -(-width // (8 * across)) * -(-height // (8 * down))
    interval, is_full = choose.choice((0, 0, 1, 2, 3)), choose.random() < 0.5
    segments = [""]
    for mcu in range(mcus):
        if interval and mcu and mcu % interval == 0:
            segments.append("")
        for _ in range(1 if sampling is None else across * down + 2):
            segments[-1] += _random_block(choose, words_of(dc), words_of(ac), is_full)
    if choose.random() < 0.3:
        number = choose.randrange(len(segments))
        bits = list(segments[number])
        for _ in range(choose.randint(1, 3)):
            place = choose.randrange(len(bits))
            bits[place] = "10"[int(bits[place])]
        segments[number] = "".join(bits)
    # Nothing can overflow where all factors are 0.
    factor = choose.choice((0, 0, 1, 3))
    return jpeg_of(width, height, dc, ac, segments, factor=factor, interval=interval, sampling=sampling)


def _random_block(choose: random.Random, dc: dict[int, str], ac: dict[int, str], is_full: bool) -> str:
    def value(size: int) -> str:
        return "".join(choose.choice("01") for _ in range(size))

    first = choose.choice(list(dc))
    bits, place = dc[first] + value(first), 0
    while place < 63:
        fitting = [symbol for symbol in ac if symbol & 15 and place + (symbol >> 4) + 1 <= 63]
        if ZEROS in ac and place + 16 <= 63:
            fitting.append(ZEROS)
        symbol = choose.choice(fitting)
        if not is_full and choose.random() < 0.1:
            return bits + ac[END]
        bits += ac[symbol] + value(symbol & 15)
        place += (symbol >> 4) + 1
    return bits
