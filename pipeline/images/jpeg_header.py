"""The header of a JPEG as most have it, read in a tenth of the time that Pillow takes; all others are Pillow's.

Sources: ITU T.81, B.2; Pillow, JpegImagePlugin.py, for what it makes of each segment.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np

# Cameras and programs write some ten. Each scan costs a pass over all pixels, and 31 bytes are enough for one.
# Source: libtiff, tif_jpeg.c, JPEG_MAX_ALLOWED_SCAN_NUMBER.
MAX_JPEG_SCANS = 100

END_OF_JPEG = b"\xff\xd9"
_START_OF_SCAN = b"\xff\xda"
# Source: ITU T.81, B.1.1: after FF comes 00 in coded data; D0 to D7 divide it; FF itself only fills; 01 has no length either.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")

_START = b"\xff\xd8"
_CODES, _QUANTISATION, _RESTARTS, _COMMENT = 0xC4, 0xDB, 0xDD, 0xFE
_APP, _APPS, _ADOBE = 0xE0, range(0xE0, 0xF0), 0xEE
_JFIF_WORD, _SHORTEST_JFIF = b"JFIF\x00", 14
# The first part of it; libjpeg warns of others.
_JFIF_VERSION = 1
_FRAMES, _SCAN = (0xC0, 0xC1), 0xDA
_BITS = 8
# Source: libjpeg, jmorecfg.h, JPEG_MAX_DIMENSION.
_LONGEST_SIDE = 65500
# Grey, and YCbCr: four are CMYK.
_COMPONENTS = (1, 3)
_FACTORS = 64
# Bytes of a header that may be kept for the next file.
_LONGEST_KNOWN = 4096
_COUNTS = 16
_MOST_SYMBOLS = 256
# All coefficients, whole: what follows the components of a scan that is not one of several.
_WHOLE_SCAN = b"\x00\x3f\x00"
# Columns and rows of luma for one of chroma that vector code knows.
_SAMPLINGS = frozenset({0x11, 0x12, 0x21, 0x22})
_SINGLE = 0x11
# What components are called where nothing says which colours they are, and they are YCbCr. Source: libjpeg, jdapimin.c.
_USUAL_NAMES = [1, 2, 3]


class Component(NamedTuple):
    """A component of the picture.

    Attributes:
        sampling: Columns and rows of its blocks in an MCU.
        factors: Its 64 factors of quantisation in zigzag order.
        dc_codes: Where the Huffman code of its first coefficients is: 16 counts, then the symbols.
        ac_codes: Of the others.
    """

    sampling: tuple[int, int]
    factors: bytes
    dc_codes: int
    ac_codes: int


class Header(NamedTuple):
    """What a JPEG says before its one scan of 8-bit, grey or three-coloured baseline coding.

    Attributes:
        height: In px, as stored.
        width: In px, as stored.
        is_plain: Whether there is nothing else in the file: no EXIF (which may turn it), profile, Adobe's segment, nothing odd.
        components: Grey, or Y, Cb and Cr. None where it is not known that they are, or where vector code does not know them.
        restart_interval: MCUs; 0: none.
        scan: Where the coded data begin in the file.
    """

    height: int
    width: int
    is_plain: bool
    components: tuple[Component, ...]
    restart_interval: int
    scan: int


def read_header(data: bytes) -> Header | None:
    """Reads the header of a JPEG; None of another file, another coding, or where anything has not the length that it should have.

    Args:
        data: The whole file.
    """
    scan = data.find(_START_OF_SCAN, 0, _LONGEST_KNOWN)
    length = scan + len(_START_OF_SCAN) + int.from_bytes(data[scan + 2 : scan + 4], "big")
    if scan > 0 and length <= _LONGEST_KNOWN:
        # Up to here, unless that is a thumbnail's; what is no whole header is none.
        header = _read_known(data[:length])
        if header is not None:
            return header
    return _read(data)


@functools.lru_cache(256)
def _read_known(head: bytes) -> Header | None:
    """Reads a header that others may have too: most images of a set come from few programs, in few sizes."""
    return _read(head)


def _read(data: bytes) -> Header | None:
    """Reads the header from a file, or as much of one as it says that it is long."""
    if not data.startswith(_START):
        return None
    place, frame, is_plain, colours = len(_START), 0, True, set[int]()
    tables: dict[int, int] = {}
    interval = 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        code, begin, end = data[place + 1], place + 4, place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if not begin <= end <= len(data):
            return None
        length = end - begin
        if code == _SCAN:
            return _with_scan(data, frame, begin, end, tables, is_plain, colours, interval) if frame else None
        if code == _CODES:
            if not _find_codes(data, begin, end, tables):
                return None
        elif code == _QUANTISATION:
            if length % (1 + _FACTORS) or any(data[at] > 3 for at in range(begin, end, 1 + _FACTORS)):
                return None
            tables |= {_QUANTISATION << 8 | data[at]: at + 1 for at in range(begin, end, 1 + _FACTORS)}
        elif code == _RESTARTS:
            if length != 2:
                return None
            interval = int.from_bytes(data[begin:end], "big")
        elif code in _FRAMES:
            if frame or length < 6 or data[begin] != _BITS or data[begin + 5] not in _COMPONENTS:
                return None
            if length != 6 + 3 * data[begin + 5]:
                return None
            frame = begin
        elif code in _APPS:
            is_jfif = code == _APP and length >= _SHORTEST_JFIF and data.startswith(_JFIF_WORD, begin)
            if is_jfif and data[begin + len(_JFIF_WORD)] != _JFIF_VERSION:
                return None
            is_plain = is_plain and is_jfif
            colours |= {_APP} if is_jfif else {_ADOBE} if code in (_APP, _ADOBE) else set()
        elif code != _COMMENT:
            return None
        place = end
    return None


def _find_codes(data: bytes, place: int, end: int, tables: dict[int, int]) -> bool:
    """Notes where the Huffman codes of a segment are."""
    while place < end:
        kind, begin = data[place], place + 1
        count = sum(data[begin : begin + _COUNTS])
        place = begin + _COUNTS + count
        if kind & 0xEC or count > _MOST_SYMBOLS or place > end:
            return False
        tables[_CODES << 8 | kind] = begin
    return True


def _with_scan(
    data: bytes, frame: int, begin: int, end: int, tables: dict[int, int], is_plain: bool, colours: set[int], interval: int
) -> Header | None:
    height, width = int.from_bytes(data[frame + 1 : frame + 3], "big"), int.from_bytes(data[frame + 3 : frame + 5], "big")
    count = data[frame + 5]
    if not 0 < height <= _LONGEST_SIDE or not 0 < width <= _LONGEST_SIDE or end - begin != 4 + 2 * count or data[begin] != count:
        return None
    if data[end - len(_WHOLE_SCAN) : end] != _WHOLE_SCAN:
        return None
    parts = [data[frame + 6 + 3 * number : frame + 9 + 3 * number] for number in range(count)]
    chosen = [data[begin + 1 + 2 * number : begin + 3 + 2 * number] for number in range(count)]
    samplings = [part[1] for part in parts]
    is_known = [part[0] for part in parts] == [choice[0] for choice in chosen]
    # Of one component alone they mean nothing, but must be some. Source: libjpeg, jdinput.c.
    is_known &= all(1 <= side <= 4 for sampling in samplings for side in (sampling >> 4, sampling & 0xF))
    if count > 1:
        # Source: libjpeg, jdapimin.c: JFIF is YCbCr; Adobe's segment says what it is; else names tell.
        is_known &= _ADOBE not in colours and (_APP in colours or [part[0] for part in parts] == _USUAL_NAMES)
        is_known &= samplings[0] in _SAMPLINGS and samplings[1:] == [_SINGLE] * 2
    components = []
    for part, choice in zip(parts, chosen, strict=True):
        wanted = _QUANTISATION << 8 | part[2], _CODES << 8 | choice[1] >> 4, _CODES << 8 | 0x10 | (choice[1] & 0xF)
        places = [tables.get(key) for key in wanted]
        if None in places:
            is_known = False
            break
        factors, dc_codes, ac_codes = (place or 0 for place in places)
        values = data[factors : factors + _FACTORS]
        components.append(Component((part[1] >> 4, part[1] & 0xF), values, dc_codes, ac_codes))
    return Header(height, width, is_plain, tuple(components) if is_known else (), interval, end)


def has_endless_scans(data: bytes) -> bool:
    """Tells whether a JPEG has more scans than any program writes, so that a few kilobytes would take hours."""
    values = np.frombuffer(data, np.uint8)
    # The two bytes anywhere, five times as fast as bytes.count; they may stand in thumbnails, and in films behind the picture.
    found = (values[:-1] == _START_OF_SCAN[0]) & (values[1:] == _START_OF_SCAN[1])
    return int(np.count_nonzero(found)) > MAX_JPEG_SCANS and _walk_finds_endless_scans(data)


def _walk_finds_endless_scans(data: bytes) -> bool:
    place, scans = len(_START_OF_SCAN), 0
    while marker := _MARKER.search(data, place):
        if marker[0] == END_OF_JPEG:
            return False
        scans += marker[0] == _START_OF_SCAN
        if scans > MAX_JPEG_SCANS:
            return True
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
