"""Walks through a MATLAB 5 file without keeping any data, to find out whether it is whole before SciPy reads it.

``scipy.io.loadmat`` reads everything, and allocates what sizes in the file declare. A damaged or malicious file must not make it
take more memory than a weights file can need, so each declared size is held against the bytes that are really there; nor make it
crash, as SciPy 1.17 does on data types that the format does not have, so each type is held against those that it has.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

# A full VGG with its average image has 575.9 MB; twice that leaves room for files saved in double precision.
LARGEST_BYTES = 1_500_000_000

# Source: MAT-File Format (MathWorks), tables 1-1 (data types) and 1-3 (array types).
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_NUMBER_TYPES = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 12, 13))
_TEXT_TYPES = _NUMBER_TYPES | {16, 17, 18}
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBER_CLASSES = range(6, 16)
_COMPLEX_FLAG = 0x0800

_HEADER_BYTES = 128
_BLOCK_BYTES = 1 << 18
# Nesting of the deepest published file: layers > struct > weights > kernel.
_DEEPEST = 12
# The classes' names and descriptions are 2,000; the layers have some hundred.
_MOST_ARRAYS = 100_000
_MOST_AXES = 32
# Names, types and the classes' descriptions. SciPy takes up to 16 bytes of memory for a byte of text.
_LONGEST_TEXT = 1_000_000


class OutlineError(Exception):
    """Words for what is wrong with a file; ends in ``", got ..."``'s value as second argument."""


def variable_names(path: Path) -> tuple[str, ...]:
    """Gives the names of a file's variables, having made sure that the file is whole and not absurdly large.

    Raises:
        OutlineError: It is truncated, damaged or too large; arguments: what happened, what was found.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise OutlineError(f"is too large for a weights file (limit {LARGEST_BYTES:,} bytes)", f"{size:,} bytes")
        order = "<" if file.read(_HEADER_BYTES)[126:128] == b"IM" else ">"
        names: list[str] = []
        place, declared = _HEADER_BYTES, 0
        while place < size:
            file.seek(place)
            tag = file.read(8)
            if len(tag) < 8:
                raise OutlineError("is damaged: bytes that belong to no variable", f"{len(tag)} bytes at {place:,}")
            kind, length = struct.unpack(f"{order}II", tag)
            if place + 8 + length > size:
                raise OutlineError(f"is truncated: a variable reaches to byte {place + 8 + length:,}", f"{size:,} bytes")
            with _as_damage(place):
                name, inner = _variable(file, kind, length, order, LARGEST_BYTES - declared)
            names.append(name)
            declared += inner
            place += 8 + length
    return tuple(names)


@contextmanager
def _as_damage(place: int) -> Iterator[None]:
    try:
        yield
    except (struct.error, zlib.error, UnicodeError) as error:
        raise OutlineError(f"is damaged in the variable at byte {place:,}", str(error)) from error


def _variable(file: BinaryIO, kind: int, length: int, order: str, limit: int) -> tuple[str, int]:
    """Gives name and declared size in bytes of one variable."""
    source: _Source = _Plain(file)
    if kind == _COMPRESSED:
        source = _Inflated(file, length)
        kind, length = struct.unpack(f"{order}II", source.read(8))
        if length > limit:
            raise OutlineError(f"is too large unpacked (limit {LARGEST_BYTES:,} bytes)", f"a variable of {length:,} bytes")
    if kind != _MATRIX:
        raise OutlineError("is damaged: expected an array", f"data type {kind}")
    walk = _Walk(source, order)
    name = walk.array(length, 0)
    if isinstance(source, _Inflated) and source.has_more():
        raise OutlineError("is damaged: compressed data go on after the end of a variable", f"more than {length:,} bytes")
    return name, length


class _Source(Protocol):
    def read(self, count: int) -> bytes: ...

    def skip(self, count: int) -> None: ...


class _Plain:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._file.seek(count, 1)


class _Inflated:
    """A compressed variable, inflated a block at a time."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file, self._left = file, length
        self._inflate = zlib.decompressobj()
        self._ready = b""

    def _more(self) -> bytes:
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail
            if not packed:
                packed = self._file.read(min(self._left, _BLOCK_BYTES))
                self._left -= len(packed)
                if not packed:
                    raise zlib.error("compressed data end early")
            block = self._inflate.decompress(packed, _BLOCK_BYTES)
            if block:
                return block
        return b""

    def read(self, count: int) -> bytes:
        while len(self._ready) < count and (block := self._more()):
            self._ready += block
        taken, self._ready = self._ready[:count], self._ready[count:]
        return taken

    def skip(self, count: int) -> None:
        while count > len(self._ready):
            count -= len(self._ready)
            self._ready = self._more()
            if not self._ready:
                raise zlib.error("compressed data end early")
        self._ready = self._ready[count:]

    def has_more(self) -> bool:
        return bool(self._ready or self._more())


class _Walk:
    """One variable, array by array; no declared size may exceed what its parent has left."""

    def __init__(self, source: _Source, order: str) -> None:
        self._source, self._order = source, order
        self._arrays = 0

    def _tag(self, allowed: Collection[int]) -> tuple[int, bytes | None]:
        """Gives an element's length, and its data where they are inside the tag (the format's small elements)."""
        tag = self._source.read(8)
        kind, length = struct.unpack(f"{self._order}II", tag)
        inside = None
        if kind >> 16:
            kind, length = kind & 0xFFFF, kind >> 16
            inside = tag[4 : 4 + length]
            self._fits(length, 4)
        if kind not in allowed:
            raise OutlineError("is damaged: a data type in a place where the format has no such", str(kind))
        return length, inside

    def _data(self, allowed: int, left: int, most: int) -> tuple[bytes, int]:
        """Gives a short element's data, and the bytes it takes up."""
        length, inside = self._tag((allowed,))
        if inside is not None:
            return inside, 8
        self._fits(length, min(left - 8, most))
        data = self._source.read(length)
        self._source.skip(-length % 8)
        return data, 8 + length + -length % 8

    def _pass_over(self, allowed: Collection[int], left: int) -> tuple[int, int]:
        """Skips an element; gives the length of its data, and the bytes it takes up."""
        length, inside = self._tag(allowed)
        if inside is not None:
            return length, 8
        self._fits(length, left - 8)
        # MATLAB leaves the padding off at the very end of a variable.
        padding = min(-length % 8, left - 8 - length)
        self._source.skip(length + padding)
        return length, 8 + length + padding

    def _fits(self, needed: int, available: int) -> None:
        if needed > available:
            raise OutlineError("is damaged: an array is larger than what contains it", f"{needed:,} of {available:,} bytes")

    def array(self, length: int, depth: int) -> str:
        """Walks through one array of a declared length in bytes; gives its name."""
        self._arrays += 1
        if depth > _DEEPEST or self._arrays > _MOST_ARRAYS:
            raise OutlineError(
                "is too deeply nested or has too many arrays for a weights file", f"{self._arrays:,} arrays, depth {depth}"
            )
        if length == 0:
            return ""
        flags, used = self._data(_UINT32, length, 8)
        flag, _ = struct.unpack(f"{self._order}II", flags)
        left = length - used
        shape, used = self._data(_INT32, left, 4 * _MOST_AXES)
        left -= used
        sides = struct.unpack(f"{self._order}{len(shape) // 4}i", shape)
        if len(sides) < 2 or min(sides) < 0:
            raise OutlineError("is damaged: an array of impossible shape", str(sides))
        count = math.prod(sides)
        name, used = self._data(_INT8, left, 4096)
        left -= used
        kind = flag & 0xFF
        if kind in (_CELL, _STRUCT):
            left -= self._children(kind, count, left, depth)
        elif kind == _CHAR or kind in _NUMBER_CLASSES:
            left -= self._values(kind, count, left, bool(flag & _COMPLEX_FLAG))
        else:
            raise OutlineError("has a sparse array, an object or a function, as no weights file has", f"array class {kind}")
        self._source.skip(left)
        return name.decode("latin-1")

    def _children(self, kind: int, count: int, left: int, depth: int) -> int:
        used_in_all = 0
        if kind == _STRUCT:
            width, used = self._data(_INT32, left, 4)
            used_in_all += used
            names, used = self._data(_INT8, left - used_in_all, 1 << 16)
            used_in_all += used
            (characters,) = struct.unpack(f"{self._order}i", width)
            if characters < 1 or len(names) % characters:
                raise OutlineError(
                    "is damaged: field names of impossible length", f"{len(names)} bytes in pieces of {characters}"
                )
            count *= len(names) // characters
        self._fits(8 * count, left - used_in_all)
        for _ in range(count):
            length, inside = self._tag((_MATRIX,))
            used_in_all += 8
            self._fits(length, 0 if inside else left - used_in_all)
            self.array(length, depth + 1)
            used_in_all += length
        return used_in_all

    def _values(self, kind: int, count: int, left: int, is_complex: bool) -> int:
        used_in_all, bytes_of_data = 0, 0
        for _ in range(1 + is_complex):
            length, used = self._pass_over(_TEXT_TYPES if kind == _CHAR else _NUMBER_TYPES, left - used_in_all)
            used_in_all += used
            bytes_of_data += length
        # Blank text may be stored without data; anything else has at least a byte an element.
        if count > bytes_of_data and (kind != _CHAR or count > 4096):
            raise OutlineError(
                "is damaged: an array has fewer data than elements", f"{bytes_of_data:,} bytes for {count:,} elements"
            )
        if kind == _CHAR and max(count, bytes_of_data) > _LONGEST_TEXT:
            raise OutlineError(f"has a text too long for a weights file (limit {_LONGEST_TEXT:,})", f"{count:,} characters")
        return used_in_all
