"""Whether all pixels that a header promises are in the file. For formats whose readers fill in what is missing and say nothing.

Stands beside :mod:`~pipeline.images.decode`. Readers of the other formats refuse a file without its end; tests hold them to that.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin as tiff

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Of what is inflated only to be counted, at a time.
_PIECE_BYTES = 1 << 24
# Source: PNG specification (W3C), 8.2: first column and row, and steps between columns and rows, of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Source: the same, 11.2.2: colour type -> values a pixel.
_PNG_VALUES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

# Source: TIFF 6.0, section 15 and the planar configuration; technical note 2.
_JPEG_IN_TIFF, _SEPARATE_PLANES = 7, 2
_END_OF_JPEG = b"\xff\xd9"
# Where the end of a strip's JPEG is looked for: what a program may have put behind it, so that the next one begins evenly.
_TAIL_BYTES = 1024

# Source: ITU T.800, annex A: start of the code stream and size; start of a tile-part, end.
J2K_START = b"\xff\x4f\xff\x51"
_J2K_TILE, _J2K_END = b"\xff\x90", b"\xff\xd9"


def missing_parts(image: Image.Image, data: bytes) -> str:
    """Say what of an image that has been opened, and not loaded yet, is not in its file; nothing where all seems there.

    Args:
        image: Opened by Pillow.
        data: The whole file.
    """
    if image.format == "TIFF":
        return _missing_strips(image, data)
    if image.format == "JPEG2000":
        return _missing_tiles(data)
    return ""


def missing_rows(image: Image.Image, data: bytes) -> str:
    """Say what of an image that has been loaded was not in its file; nothing where all was there.

    Args:
        image: Loaded, not yet turned or converted.
        data: The whole file.
    """
    if image.format != "PNG":
        return ""
    width, height, bits, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    # Pillow takes the end of the stream for that of the picture and leaves zeros: where the last row has others, all are there.
    if not interlace and np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any():
        return ""
    expected = 0
    for left, top, across, down in _ADAM7 if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            # A byte before each row says how it is filtered.
            expected += rows * (1 + (columns * bits * _PNG_VALUES[colour] + 7) // 8)
    stream, found = zlib.decompressobj(), 0
    # Those behind another chunk Pillow does not read.
    behind = itertools.dropwhile(lambda chunk: chunk[0] != b"IDAT", png_chunks(data))
    for _, start, stop in itertools.takewhile(lambda chunk: chunk[0] == b"IDAT", behind):
        packed = data[start + 8 : stop - 4]
        # No further than that: a bomb may hold a million times as much.
        while packed and not stream.eof and found < expected:
            found += len(stream.decompress(packed, _PIECE_BYTES))
            packed = stream.unconsumed_tail
    return f"{found} of {expected} bytes of pixels" if found < expected else ""


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, place and end of each chunk of a PNG; the last may end behind the file."""
    place = len(PNG_SIGNATURE)
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        yield kind, place, place + 12 + size
        place += 12 + size


def _missing_strips(image: Any, data: bytes) -> str:
    tags, words = image.tag_v2, "strips"
    sides = tiff.IMAGEWIDTH, tiff.ROWSPERSTRIP
    places = tiff.STRIPOFFSETS, tiff.STRIPBYTECOUNTS
    if tiff.TILEOFFSETS in tags:
        words, sides, places = "tiles", (tiff.TILEWIDTH, tiff.TILELENGTH), (tiff.TILEOFFSETS, tiff.TILEBYTECOUNTS)
    width, height = int(tags.get(tiff.IMAGEWIDTH, 0)), int(tags.get(tiff.IMAGELENGTH, 0))
    across, down = int(tags.get(sides[0]) or width), min(int(tags.get(sides[1]) or height), height)
    offsets, sizes = (_numbers(tags.get(place)) for place in places)
    if not offsets or not across or not down:
        return ""  # for the reader to refuse, or of the old kind that is one JPEG
    planes = int(tags.get(tiff.SAMPLESPERPIXEL, 1)) if tags.get(tiff.PLANAR_CONFIGURATION) == _SEPARATE_PLANES else 1
    count = -(-width // across) * -(-height // down) * planes
    # Nowhere: programs leave out what has no data, as if it were black.
    there = sum(offset > 0 for offset in offsets[:count])
    if there == count and tags.get(tiff.COMPRESSION) == _JPEG_IN_TIFF:
        # libtiff fills in the rest of a JPEG that ends early, and only warns.
        ends = ((max(at, at + size - _TAIL_BYTES), at + size) for at, size in zip(offsets[:count], sizes, strict=False))
        there = sum(data.rfind(_END_OF_JPEG, first, stop) >= 0 for first, stop in ends)
    return f"{there} of {count} {words}" if there < count else ""


def _numbers(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, tuple) else (int(value),)


def _missing_tiles(data: bytes) -> str:
    """Walk from tile to tile; what is no code stream is for the reader to refuse."""
    place = data.find(J2K_START)
    if place < 0 or len(data) < place + 42:
        return ""
    right, bottom, _, _, across, down, left, top = struct.unpack_from(">8I", data, place + 8)
    if not across or not down:
        return ""
    count = -(-(right - left) // across) * -(-(bottom - top) // down)
    # Tile -> its parts that are there, and how many it says that it has.
    parts: dict[int, int] = {}
    announced: dict[int, int] = {}
    place += 2
    while place + 12 <= len(data) and data[place] == 0xFF and (marker := data[place : place + 2]) != _J2K_END:
        if marker != _J2K_TILE:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
            continue
        tile, size, _, of = struct.unpack_from(">HIBB", data, place + 4)
        if place + size > len(data):
            break
        parts[tile] = parts.get(tile, 0) + 1
        announced[tile] = max(of, announced.get(tile, 0))
        # 0: as far as the end.
        place += max(size, 12) if size else len(data)
    whole = sum(parts[tile] >= announced[tile] for tile in parts)
    return f"{whole} of {count} tiles" if whole < count else ""
