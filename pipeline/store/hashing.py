"""The SHA-256 of files, two at a time where threads ask for several: one thread then hashes for both in the time of one.

Where the processor has no instructions for it, and for small files, Python's own library does it.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from pathlib import Path
from threading import Event
from typing import BinaryIO

import numpy as np

from ..vector_code import this_processor
from .sha256_code import BLOCK_BYTES, ORDER, START, compiled_sha256, has_instructions

# Large enough that hashing runs outside the interpreter's lock for nearly all of its time.
PIECE_BYTES = 1 << 20
# Smaller files are hashed before the code would be made, in a fiftieth of a second.
SMALL_BYTES = 1 << 24


def file_digest(path: Path, stop: Event | None = None) -> str:
    """Gives the SHA-256 of a file, hex.

    Args:
        path: Of the file.
        stop: Once set, what has been read is enough and the digest means nothing.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        if path.stat().st_size < SMALL_BYTES or not _is_fast():
            return _by_library(file, stop)
        found = _pairs.digest(_Hashed(file, stop))
        if found is None:
            file.seek(0)
            found = _by_library(file, stop)
        return found


@functools.cache
def _is_fast() -> bool:
    return has_instructions(this_processor())


def _by_library(file: BinaryIO, stop: Event | None) -> str:
    digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
    while (count := file.readinto(piece)) and not (stop and stop.is_set()):  # type: ignore[attr-defined]
        digest.update(piece[:count])
    return digest.hexdigest()


class _Hashed:
    """A file that is being hashed.

    Args:
        file: At its beginning, unbuffered.
        stop: As for :func:`file_digest`.

    Attributes:
        state: Of the digest, as the code has it.
        guest: Another one that is hashed by the same thread.
        is_over: Nothing is left to do, or it went wrong.
        is_left: The thread that hashed it as a guest does so no longer.
        is_torn: Blocks are being read or taken in; where that is interrupted, nobody knows which have been.
        error: What went wrong.
    """

    def __init__(self, file: BinaryIO, stop: Event | None) -> None:
        self._file, self._stop = file, stop
        self._piece = np.empty(PIECE_BYTES + 2 * BLOCK_BYTES, np.uint8)
        self._begin = self._end = self._size_bytes = 0
        self._is_padded = False
        self.state = np.array([START[word] for word in ORDER], np.uint32)
        self.guest: _Hashed | None = None
        self.is_over = self.is_left = self.is_torn = False
        self.error: BaseException | None = None

    @property
    def blocks(self) -> int:
        """Gives how many whole blocks are there to be taken in."""
        return (self._end - self._begin) // BLOCK_BYTES

    @property
    def address(self) -> int:
        """Gives where they are."""
        return self._piece.ctypes.data + self._begin

    def fill(self) -> None:
        """Reads the next blocks if there are none; after the last ones it is over. Raises nothing but Ctrl-C."""
        if self.blocks or self.is_over:
            return
        self.is_torn = True
        try:
            self._read()
        except Exception as error:
            self.error, self.is_over = error, True
        self.is_torn = False

    def _read(self) -> None:
        assert self._begin == self._end
        if self._is_padded or (self._stop and self._stop.is_set()):
            self.is_over = True
            return
        self._begin = self._end = 0
        while self._end < PIECE_BYTES:
            count = self._file.readinto(self._piece.data[self._end : PIECE_BYTES])  # type: ignore[attr-defined]
            if not count:
                self._pad()
                return
            self._end += count
            self._size_bytes += count

    def _pad(self) -> None:
        # Source: FIPS 180-4, 5.1.1: a bit, zeros, and the number of bits of all.
        self._is_padded = True
        zeros = -(self._end + 1 + 8) % BLOCK_BYTES
        padding = b"\x80" + bytes(zeros) + (8 * self._size_bytes).to_bytes(8, "big")
        self._piece[self._end : self._end + len(padding)] = np.frombuffer(padding, np.uint8)
        self._end += len(padding)

    def took(self, blocks: int) -> None:
        """Notes that so many blocks have been taken in."""
        self._begin += blocks * BLOCK_BYTES

    def hex(self) -> str:
        """Gives the digest.

        Raises:
            OSError: The file could not be read.
        """
        if self.error is not None:
            raise self.error
        words = np.empty(len(START), np.uint32)
        words[list(ORDER)] = self.state
        return words.astype(">u4").tobytes().hex()


class _Pairs:
    """Has the thread that hashes one file take in the next one that a thread asks for, until one of the two is over."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # Files whose thread may take in another.
        self._alone: list[_Hashed] = []

    def digest(self, own: _Hashed) -> str | None:
        """Gives the digest of a file, hashed here or by another thread; None where that thread was interrupted."""
        try:
            with self._changed:
                host = self._alone.pop() if self._alone else None
                if host is None:
                    self._alone.append(own)
                else:
                    host.guest = own
                    self._changed.wait_for(lambda: own.is_over or own.is_left)
            while not own.is_over and not own.is_torn:
                self._step(own)
            return None if own.is_torn else own.hex()
        finally:
            self._leave(own)

    def _step(self, own: _Hashed) -> None:
        guest = own.guest
        own.fill()
        if guest is not None:
            guest.fill()
            if guest.is_over or own.is_over:
                self._part(own, guest)
                guest = None
        if own.is_over:
            return
        code, blocks = compiled_sha256(), own.blocks
        if guest is None:
            code["sha256_one"](own.state.ctypes.data, own.address, blocks)
        else:
            blocks = min(blocks, guest.blocks)
            guest.is_torn = True
            code["sha256_two"](own.state.ctypes.data, own.address, guest.state.ctypes.data, guest.address, blocks)
            guest.took(blocks)
            guest.is_torn = False
        own.took(blocks)

    def _part(self, own: _Hashed, guest: _Hashed) -> None:
        """Lets go of a guest: it is over, or its own thread goes on with it."""
        with self._changed:
            own.guest = None
            guest.is_left = True
            self._alone += [one for one in (own, guest) if not one.is_over and not one.is_torn]
            self._changed.notify_all()

    def _leave(self, own: _Hashed) -> None:
        """Ends with a file, also where Ctrl-C came into the middle of it, or while another thread hashed it."""
        own.is_over = True
        if own.guest is not None:
            self._part(own, own.guest)
        with self._changed:
            if own in self._alone:
                self._alone.remove(own)


_pairs = _Pairs()
