"""What is in a tar file, by its headers alone: names, kinds, and where the bytes lie. Nothing is extracted.

Own reading of the format, since tarfile takes two and a half times as long for each member, of which there may be millions, and
since it goes on with what it takes for the next header where a file is damaged.

Source: POSIX.1-2024, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
# Of a long name or an extended header; a path has at most 4096 bytes on most systems.
MOST_HEADER_BYTES = 2**20
# What is read at once: a header, a label of a few bytes, and the next header.
_WINDOW_BYTES = 4096

FILE, LINK, SYMBOLIC_LINK, SPARSE, OTHER = "file", "link", "symbolic link", "sparse", "other"
_KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"1": LINK, b"2": SYMBOLIC_LINK, b"S": SPARSE}
# Characters and block devices, folders, pipes: their size is not that of bytes that follow.
_WITHOUT_BYTES = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


class TarError(ValueError):
    """A file is no tar file, or a damaged one. The text says what is wrong, and where."""


class Compressed(TarError):
    """A file is compressed, so that its members cannot be read one by one. The text names the program that made it."""

    def __init__(self, name: str, remedy: str) -> None:
        super().__init__(name)
        self.remedy = remedy


class Member(NamedTuple):
    """One member of a tar file.

    Attributes:
        name: As stored, without ``./`` before it; bytes that are not UTF-8 as surrogates.
        kind: ``FILE``, ``LINK``, ``SYMBOLIC_LINK``, ``SPARSE`` or ``OTHER`` (folders, pipes, devices).
        offset: Where its bytes begin.
        size_bytes: How many there are.
        target: Of a link, the name that it stands for: of a member, not of a file.
    """

    name: str
    kind: str
    offset: int
    size_bytes: int
    target: str


class TarFile:
    """An open tar file, whose headers are read one after the other and whose bytes can be read anywhere.

    Args:
        file: Open, without a buffer.

    Attributes:
        has_end: Whether, once all members have been given, the mark has been found that ends such a file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size_bytes = os.fstat(file.fileno()).st_size
        self._window, self._window_from = b"", 0
        self.has_end = False
        if hasattr(os, "posix_fadvise"):
            # From header to header: what lies between, the images, should not be read ahead.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Gives some bytes; fewer at the end of the file."""
        first = offset - self._window_from
        if first < 0 or first + size_bytes > len(self._window):
            self._window, self._window_from = read_at(self._file, offset, max(size_bytes, _WINDOW_BYTES)), offset
            first = 0
        return self._window[first : first + size_bytes]

    def members(self) -> Iterator[Member]:
        """Gives all members, in order.

        Raises:
            Compressed: The file is compressed.
            TarError: It is no tar file, or is damaged or cut off.
            OSError: It cannot be read.
        """
        offset = 0
        name, target = "", ""
        extended: dict[str, str] = {}
        while True:
            header = self.read(offset, BLOCK)
            if len(header) < BLOCK or not header[0]:
                if not any(header) and (len(header) == BLOCK or not header):
                    if offset == 0 and not header:
                        raise TarError("it is empty")
                    self.has_end = bool(header)
                    if name or target or extended:
                        raise TarError(f"it ends at byte {offset} after half of a header")
                    return
                if len(header) < BLOCK and offset:
                    raise TarError(f"it ends at byte {offset + len(header)} in the middle of a header")
            self._check(header, offset)
            kind = header[156:157]
            size_bytes = _number(header[124:136])
            if size_bytes is None or size_bytes < 0:
                raise TarError(f"the header at byte {offset} has no valid size")
            data = offset + BLOCK
            if kind in b"LKxgX" and kind:
                if size_bytes > MOST_HEADER_BYTES:
                    raise TarError(f"the header at byte {offset} is {size_bytes} bytes long, more than {MOST_HEADER_BYTES}")
                content = self.read(data, size_bytes)
                if len(content) < size_bytes:
                    raise TarError(f"it ends at byte {data + len(content)} in the middle of a header")
                if kind == b"L":
                    name = _text(content.split(b"\0", 1)[0])
                elif kind == b"K":
                    target = _text(content.split(b"\0", 1)[0])
                elif kind != b"g":  # A global one says nothing of single images.
                    extended = _extended(content, offset)
                offset = data + _padded(size_bytes)
                continue
            is_sparse = any(key.startswith("GNU.sparse.") for key in extended)
            if "size" in extended:
                size_bytes = _decimal(extended["size"], offset)
            name = extended.get("GNU.sparse.name") or extended.get("path") or name or _name(header)
            target = extended.get("linkpath") or target or _text(header[157:257].split(b"\0", 1)[0])
            if "\0" in name:
                raise TarError(f"the header at byte {offset} has a name that no file can have")
            if kind == b"S":
                data = self._after_map(header, data)
            if kind in _WITHOUT_BYTES:
                size_bytes = 0
            if data + size_bytes > self._size_bytes:
                raise TarError(f"it ends at byte {self._size_bytes}, its member {name[:300]!r} at {data + size_bytes}")
            # Of the oldest format, which knew no folders.
            is_folder = name.endswith("/")
            yield Member(
                plain_name(name),
                OTHER if is_folder else SPARSE if is_sparse else _KINDS.get(kind, OTHER),
                data,
                size_bytes,
                target if kind in b"12" else "",
            )
            offset = data + _padded(size_bytes)
            name, target, extended = "", "", {}

    def _check(self, header: bytes, offset: int) -> None:
        if offset == 0:
            for mark, (program, remedy) in _COMPRESSED.items():
                if header.startswith(mark):
                    raise Compressed(program, remedy)
        found = _number(header[148:156]) if len(header) == BLOCK else None
        if found is None or found != sum(header) - sum(header[148:156]) + 8 * 32:
            raise TarError("it is no tar file" if offset == 0 else f"there is no header where one should be, at byte {offset}")

    def _after_map(self, header: bytes, offset: int) -> int:
        """Gives where the bytes of a sparse member begin, after what says where its holes are."""
        goes_on = header[482:483] not in (b"\0", b"")
        while goes_on:
            block = self.read(offset, BLOCK)
            goes_on = block[504:505] not in (b"\0", b"")
            offset += BLOCK
        return offset


def read_at(file: BinaryIO, offset: int, size_bytes: int) -> bytes:
    """Reads from some place of a file without a buffer: at once, so that threads and forked processes can share the file."""
    if not hasattr(os, "pread"):
        file.seek(offset)
        return file.read(size_bytes)
    data = os.pread(file.fileno(), size_bytes, offset)
    # Linux reads at most 2 GiB at a time, network file systems what they have.
    while len(data) < size_bytes and (more := os.pread(file.fileno(), size_bytes - len(data), offset + len(data))):
        data += more
    return data


def plain_name(name: str) -> str:
    """Gives the name of a member without ``./`` before it, as programs write it that are given a folder."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def target_of(member: Member) -> str:
    """Gives the name of the member that a link stands for; a name that no member has where it leads out of the file."""
    if member.kind == LINK:
        return plain_name(member.target)
    # Of a symbolic link, from the folder that it is in.
    return posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.target))


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK) * BLOCK


def _number(field: bytes) -> int | None:
    """Gives what a field of a header says, in octal digits or, after a bit that no digit has, in binary; None for neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None


def _decimal(text: str, offset: int) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise TarError(f"the header before byte {offset} has no valid size")
    return int(text)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    name = _text(header[:100].split(b"\0", 1)[0])
    # GNU's own format ends the mark otherwise, and has times in the place of the prefix.
    prefix = _text(header[345:500].split(b"\0", 1)[0]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _extended(content: bytes, offset: int) -> dict[str, str]:
    """Gives the records ``<length> <key>=<value>``, a line each, of an extended header."""
    records: dict[str, str] = {}
    place = 0
    while place < len(content) and content[place]:
        match = re.compile(rb"([0-9]{1,8}) ([^=]*)=").match(content, place)
        stop = place + int(match[1]) if match else 0
        if match is None or not match.end() < stop <= len(content) or content[stop - 1 : stop] != b"\n":
            raise TarError(f"the extended header at byte {offset} is damaged")
        records[_text(match[2])] = _text(content[match.end() : stop - 1])
        place = stop
    return records
