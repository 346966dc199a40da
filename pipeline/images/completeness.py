"""Whether all pixels that a header promises are in the file. For formats whose readers fill in what is missing and say nothing.

Stands beside :mod:`~pipeline.images.decode`. Readers of the other formats refuse a file without its end; tests hold them to that.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin as tiff

# Of what is inflated only to be counted, before and after: what is left of a longer input would be copied each time.
_PIECE_BYTES = 1 << 20

# Source: PNG specification (W3C), 8.2: first column and row, and steps between columns and rows, of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Source: the same, 11.2.2: colour type -> values a pixel.
_PNG_VALUES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_SIGNATURE_BYTES = 8

# Source: TIFF 6.0, section 15 and the planar configuration; technical note 2.
_JPEG_IN_TIFF, _SEPARATE_PLANES = 7, 2
_END_OF_JPEG = b"\xff\xd9"
# Where the end of a strip's JPEG is looked for: what a program may have put behind it, so that the next one begins evenly.
_TAIL_BYTES = 1024

# Source: ITU T.800, annex A: start of the code stream, size, start of a tile-part, end.
_J2K_START, _J2K_SIZE, _J2K_TILE, _J2K_END = b"\xff\x4f", b"\xff\x51", b"\xff\x90", b"\xff\xd9"
# A second's walk; 65,535 tiles of sixteen parts.
_MOST_MARKERS = 1 << 20


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
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    expected = sum(
        _rows_bytes(-(-(width - left) // step), -(-(height - top) // step_down), bits * _PNG_VALUES[colour])
        for left, top, step, step_down in passes
    )
    found = _inflated_bytes(data, expected)
    return f"{found} of {expected} bytes of pixels" if found < expected else ""


def _rows_bytes(width: int, height: int, bits: int) -> int:
    """Return the bytes of rows, each with the byte that says how it is filtered; a pass without columns has no rows."""
    return max(0, height) * (1 + (width * bits + 7) // 8) if width > 0 else 0


def _inflated_bytes(data: bytes, most: int) -> int:
    """Return how many bytes a PNG's pixels inflate to, and stop at so many: a bomb may hold a million times that."""
    stream, found, place, begun = zlib.decompressobj(), 0, _PNG_SIGNATURE_BYTES, False
    while place + 8 <= len(data) and not stream.eof and found < most:
        size, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            begun, stop = True, min(place + 8 + size, len(data))
            for at in range(place + 8, stop, _PIECE_BYTES):
                packed = data[at : min(at + _PIECE_BYTES, stop)]
                while packed and not stream.eof and found < most:
                    found += len(stream.decompress(packed, _PIECE_BYTES))
                    packed = stream.unconsumed_tail
                if stream.eof or found >= most:
                    break
        elif begun:
            break
        place += 12 + size
    return found


def _missing_strips(image: Any, data: bytes) -> str:
    tags = image.tag_v2
    is_tiled = tiff.TILEOFFSETS in tags
    width, height = int(tags.get(tiff.IMAGEWIDTH, 0)), int(tags.get(tiff.IMAGELENGTH, 0))
    if is_tiled:
        across, down = int(tags.get(tiff.TILEWIDTH) or width), int(tags.get(tiff.TILELENGTH) or height)
    else:
        across, down = width, min(int(tags.get(tiff.ROWSPERSTRIP) or height), height)
    planes = int(tags.get(tiff.SAMPLESPERPIXEL, 1)) if tags.get(tiff.PLANAR_CONFIGURATION) == _SEPARATE_PLANES else 1
    offsets = _numbers(tags.get(tiff.TILEOFFSETS if is_tiled else tiff.STRIPOFFSETS))
    sizes = _numbers(tags.get(tiff.TILEBYTECOUNTS if is_tiled else tiff.STRIPBYTECOUNTS))
    if not offsets or not across or not down:
        return ""  # for the reader to refuse, or of the old kind that is one JPEG
    count = -(-width // across) * -(-height // down) * planes
    words = "tiles" if is_tiled else "strips"
    # Nowhere: programs leave out what has no data, as if it were black.
    there = sum(offset > 0 for offset in offsets[:count])
    if there < count:
        return f"{there} of {count} {words}"
    if tags.get(tiff.COMPRESSION) == _JPEG_IN_TIFF:
        # libtiff fills in the rest of a JPEG that ends early, and only warns.
        ends = ((max(at, at + size - _TAIL_BYTES), at + size) for at, size in zip(offsets[:count], sizes, strict=False))
        ended = sum(data.rfind(_END_OF_JPEG, first, stop) >= 0 for first, stop in ends)
        return f"{ended} of {count} {words}" if ended < count else ""
    return ""


def _numbers(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, tuple) else (int(value),)


def _missing_tiles(data: bytes) -> str:
    """Walk from tile to tile; what is no code stream is for the reader to refuse."""
    place = data.find(_J2K_START + _J2K_SIZE)
    if place < 0 or len(data) < place + 42:
        return ""
    right, bottom, _, _, across, down, left, top = struct.unpack_from(">8I", data, place + 8)
    if not across or not down:
        return ""
    count = -(-(right - left) // across) * -(-(bottom - top) // down)
    parts: dict[int, int] = {}
    announced: dict[int, int] = {}
    place += len(_J2K_START)
    for _ in range(_MOST_MARKERS):
        marker = data[place : place + 2]
        if place + 12 > len(data) or marker == _J2K_END:
            break
        if marker != _J2K_TILE:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
            continue
        tile, size, _, of = struct.unpack_from(">HIBB", data, place + 4)
        if size and place + size > len(data):
            break
        parts[tile] = parts.get(tile, 0) + 1
        announced[tile] = max(of, announced.get(tile, 0))
        if not size:  # as far as the end
            break
        place += max(size, 12)
    whole = sum(parts[tile] >= announced[tile] for tile in parts)
    return f"{whole} of {count} tiles" if whole < count else ""
