"""A slow, obvious reader of baseline JPEGs up to their coefficients. Shares no code with the program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import idctn

# (length, symbol) for every 16 bits that may come next.
CodeTable = list[tuple[int, int]]

# Source: ITU T.81, figure 5: the zigzag order of (row, column).
ZIGZAG = sorted(
    ((row, column) for row in range(8) for column in range(8)),
    key=lambda place: (sum(place), place[0] if sum(place) % 2 else place[1]),
)


@dataclass
class Component:
    """What one component of an image is coded as.

    Attributes:
        across: Blocks of an MCU beside each other.
        down: Blocks of an MCU above each other.
        table: (8, 8) factors of quantisation.
        blocks: (rows, columns, 8, 8) int16 coefficients, dequantised.
        furthest: (rows, columns) uint8, the place in zigzag order of each block's last coefficient that is not zero.
    """

    across: int
    down: int
    table: NDArray[np.int64]
    blocks: NDArray[np.int16]
    furthest: NDArray[np.uint8]


@dataclass
class Coefficients:
    """A JPEG as far as entropy decoding goes."""

    width: int
    height: int
    components: list[Component]

    @property
    def sampling(self) -> tuple[int, int] | None:
        """Gives columns and rows of luma for one of chroma; None for a grey image."""
        first = self.components[0]
        return (first.across, first.down) if len(self.components) == 3 else None

    def row_of_mcus(self, number: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """Gives the blocks of a row of MCUs, component by component, and how far each goes."""
        rows = [slice(number * part.down, (number + 1) * part.down) for part in self.components]
        blocks = [part.blocks[row].reshape(-1, 64) for part, row in zip(self.components, rows, strict=True)]
        furthest = [part.furthest[row].ravel() for part, row in zip(self.components, rows, strict=True)]
        return np.concatenate(blocks), np.concatenate(furthest)


def read_coefficients(data: bytes) -> Coefficients:
    """Reads a baseline JPEG of one interleaved scan, or of one component."""
    tables: dict[int, NDArray[np.int64]] = {}
    codes: dict[int, CodeTable] = {}
    place, interval = 2, 0
    while True:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + length]
        place += 2 + length
        if marker == 0xDB:
            while body:
                size = 2 if body[0] >> 4 else 1
                values = np.frombuffer(body[1 : 1 + 64 * size], f">u{size}").astype(np.int64)
                table = np.zeros((8, 8), np.int64)
                for (row, column), value in zip(ZIGZAG, values, strict=True):
                    table[row, column] = value
                tables[body[0] & 15] = table
                body = body[1 + 64 * size :]
        elif marker == 0xC4:
            while body:
                total = sum(body[1:17])
                codes[body[0]] = _code_table(body[1:17], body[17 : 17 + total])
                body = body[17 + total :]
        elif marker == 0xDD:
            interval = int.from_bytes(body, "big")
        elif marker in (0xC0, 0xC1):
            frame = body
        elif marker == 0xDA:
            return _read_scan(data[place:], frame, body, tables, codes, interval)


def _code_table(counts: bytes, symbols: bytes) -> CodeTable:
    table, code, used = [(0, 0)] * 65536, 0, 0
    for length, count in enumerate(counts, 1):
        for symbol in symbols[used : used + count]:
            step = 1 << (16 - length)
            table[code * step : (code + 1) * step] = [(length, symbol)] * step
            code += 1
        used += count
        code *= 2
    return table


class _Bits:
    """Bits of one interval, ones behind its end."""

    def __init__(self, data: bytes) -> None:
        bits = np.unpackbits(np.frombuffer(data.replace(b"\xff\x00", b"\xff") + b"\xff" * 8, np.uint8))
        windows = np.zeros(len(bits) - 16, np.int64)
        for place in range(16):
            windows = windows * 2 + bits[place : place + len(windows)]
        self._windows, self._place = windows.tolist(), 0

    def symbol(self, table: CodeTable) -> int:
        length, symbol = table[self._windows[self._place]]
        self._place += length
        return symbol

    def number(self, bits: int) -> int:
        if not bits:
            return 0
        value = self._windows[self._place] >> (16 - bits)
        self._place += bits
        return value if value >> (bits - 1) else value - (1 << bits) + 1


def _read_scan(
    data: bytes, frame: bytes, scan: bytes, tables: dict[int, NDArray[np.int64]], codes: dict[int, CodeTable], interval: int
) -> Coefficients:
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    factors = [(frame[7 + 3 * number] >> 4, frame[7 + 3 * number] & 15) for number in range(frame[5])]
    if len(factors) == 1:
        factors = [(1, 1)]  # the blocks of a scan of one component are not interleaved
    across = -(-width // (8 * max(factor[0] for factor in factors)))
    down = -(-height // (8 * max(factor[1] for factor in factors)))
    components = [
        Component(
            *factor,
            tables[frame[8 + 3 * number]],
            np.zeros((down * factor[1], across * factor[0], 8, 8), np.int16),
            np.zeros((down * factor[1], across * factor[0]), np.uint8),
        )
        for number, factor in enumerate(factors)
    ]
    chosen = [scan[2 + 2 * number] for number in range(len(components))]
    intervals = _intervals(data)
    bits, last = _Bits(intervals.pop(0)), [0] * len(components)
    for mcu in range(across * down):
        if interval and mcu and mcu % interval == 0:
            bits, last = _Bits(intervals.pop(0)), [0] * len(components)
        for number, part in enumerate(components):
            for row in range(part.down):
                for column in range(part.across):
                    place = mcu // across * part.down + row, mcu % across * part.across + column
                    last[number] += bits.number(bits.symbol(codes[chosen[number] >> 4]))
                    values, furthest = _read_block(bits, codes[16 + (chosen[number] & 15)], last[number])
                    part.blocks[place] = (values * part.table).astype(np.int16)
                    part.furthest[place] = furthest
    return Coefficients(width, height, components)


def _read_block(bits: _Bits, table: CodeTable, first: int) -> tuple[NDArray[np.int64], int]:
    values = np.zeros((8, 8), np.int64)
    values[0, 0] = first
    zigzag, furthest = 1, 0
    while zigzag < 64:
        run, size = divmod(bits.symbol(table), 16)
        if not size and run < 15:
            break
        zigzag += run
        if size:
            values[ZIGZAG[zigzag]] = bits.number(size)
            furthest = zigzag
        zigzag += 1
    return values, furthest


def _intervals(data: bytes) -> list[bytes]:
    parts, start, place = [], 0, 0
    while True:
        place = data.index(b"\xff", place)
        if data[place + 1] == 0:
            place += 2
            continue
        parts.append(data[start:place])
        if not 0xD0 <= data[place + 1] <= 0xD7:
            return parts
        start = place = place + 2


def pixels_of_low_frequencies(coefficients: Coefficients, ratio: int) -> NDArray[np.float64]:
    """Gives the picture that has these frequencies and no others, (h, w, 3) RGB, not rounded but for its samples.

    Args:
        coefficients: Of the file.
        ratio: 2, 4 or 8, by which both sides are divided, rounded up.
    """
    side = 8 // ratio
    luma, *chroma = coefficients.components
    height, width = -(-coefficients.height // ratio), -(-coefficients.width // ratio)
    grey = _low_samples(luma, side)[:height, :width]
    if not chroma:
        return np.repeat(grey[:, :, None], 3, axis=2)
    # Where both directions have half the chroma, it keeps more of its frequencies and is not enlarged.
    chroma_side = 2 * side if (luma.across, luma.down) == (2, 2) else side
    planes = []
    for part in chroma:
        shape = [
            -(-length * chroma_side // (8 * share))
            for length, share in ((coefficients.height, luma.down), (coefficients.width, luma.across))
        ]
        plane = _low_samples(part, chroma_side)[: shape[0], : shape[1]]
        for axis, share in enumerate((luma.down, luma.across)):
            if share == 2 and chroma_side == side:
                # Source: libjpeg-turbo, jdsample.c: a few columns, and samples that are a whole block, are repeated.
                plane = _twice(plane, axis, is_smooth=side > 1 and (axis == 0 or shape[1] > 2))
        planes.append(plane[:height, :width] - 128)
    blue, red = planes
    # Source: JFIF 1.02.
    rgb = grey + 1.402 * red, grey - 0.344136286 * blue - 0.714136286 * red, grey + 1.772 * blue
    return np.clip(np.stack(rgb, axis=2), 0, 255)


def _low_samples(part: Component, side: int) -> NDArray[np.float64]:
    low = part.blocks[:, :, :side, :side].astype(np.float64)
    samples = idctn(low, axes=(2, 3), norm="ortho") * (side / 8) + 128
    rows, columns = low.shape[:2]
    # Halves up.
    return np.clip(np.floor(samples + 0.5 + 1e-9), 0, 255).transpose(0, 2, 1, 3).reshape(rows * side, columns * side)


def _twice(plane: NDArray[np.float64], axis: int, is_smooth: bool) -> NDArray[np.float64]:
    if not is_smooth:
        return np.repeat(plane, 2, axis=axis)
    plane = np.moveaxis(plane, axis, 0)
    padded = np.concatenate([plane[:1], plane, plane[-1:]])
    both = np.stack([3 * plane + padded[:-2], 3 * plane + padded[2:]], axis=1) / 4
    return np.moveaxis(both.reshape(2 * len(plane), *plane.shape[1:]), 0, axis)
