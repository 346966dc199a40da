"""The SHA-256 of files; of files that were just written two at a time, where two threads ask at once, in the time of one.

Where the processor has no instructions for it, and for small files, Python's own library does it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from pathlib import Path
from threading import Event
from typing import BinaryIO

import numpy as np

from ..vector_code import this_processor
from .sha256_code import BLOCK_BYTES, ORDER, START, compiled_sha256, has_instructions

# Large enough that hashing runs outside the interpreter's lock for nearly all of its time.
PIECE_BYTES = 1 << 22
# Smaller files are hashed before the code would be made, in a fortieth of a second.
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
        return _by_library(file, stop)


def written_digest(path: Path) -> str:
    """Gives the SHA-256 of a file whose bytes are still in the system's cache, hex.

    One thread then reads and hashes for two. From a disk that would be slower: it is asked for one piece at a time.

    Raises:
        OSError: It cannot be read.
    """
    # The main thread may be interrupted anywhere, by Ctrl-C, so nothing of another thread's is left to it.
    alone = threading.current_thread() is threading.main_thread()
    if alone or path.stat().st_size < SMALL_BYTES or not pairs_pay():
        return file_digest(path)
    with path.open("rb", buffering=0) as file:
        return _pairs.digest(_Hashed(file))


@functools.cache
def pairs_pay() -> bool:
    """Tells whether this processor hashes two files in the time of one."""
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

    Attributes:
        state: Of the digest, as the code has it.
        guest: Another one that is hashed by the same thread.
        is_over: Nothing is left to do, or it went wrong.
        is_left: The thread that hashed it as a guest does so no longer.
        error: What went wrong.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._piece = np.empty(PIECE_BYTES + 2 * BLOCK_BYTES, np.uint8)
        self._begin = self._end = self._size_bytes = 0
        self._is_padded = False
        self.state = np.array([START[word] for word in ORDER], np.uint32)
        self.guest: _Hashed | None = None
        self.is_over = self.is_left = False
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
        """Reads the next blocks if there are none; after the last ones, and after an error, it is over."""
        try:
            if not self.blocks and not self.is_over:
                self._read()
        except BaseException as error:
            self.fail(error)

    def _read(self) -> None:
        assert self._begin == self._end
        if self._is_padded:
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

    def fail(self, error: BaseException) -> None:
        """Notes what went wrong: nothing is known of its state any more."""
        self.error, self.is_over = error, True

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
        self._renew()
        if hasattr(os, "register_at_fork"):
            # A child has none of these threads.
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._changed = threading.Condition()
        # Files whose thread may take in another.
        self._alone: list[_Hashed] = []

    def digest(self, own: _Hashed) -> str:
        """Gives the digest of a file, hashed here or by another thread.

        Raises:
            OSError: It cannot be read.
        """
        with self._changed:
            host = self._alone.pop() if self._alone else None
            if host is None:
                self._alone.append(own)
            else:
                host.guest = own
                self._changed.wait_for(lambda: own.is_over or own.is_left)
        try:
            while not own.is_over:
                self._step(own)
        finally:
            self._leave(own)
        return own.hex()

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
            try:
                code["sha256_two"](own.state.ctypes.data, own.address, guest.state.ctypes.data, guest.address, blocks)
                guest.took(blocks)
            except BaseException as error:
                guest.fail(error)
                raise
        own.took(blocks)

    def _part(self, own: _Hashed, guest: _Hashed) -> None:
        """Lets go of a guest: it is over, or its own thread goes on with it."""
        with self._changed:
            own.guest = None
            guest.is_left = True
            self._alone += [one for one in (own, guest) if not one.is_over]
            self._changed.notify_all()

    def _leave(self, own: _Hashed) -> None:
        """Ends with a file, whatever became of it."""
        with self._changed:
            own.is_over = True
            if own in self._alone:
                self._alone.remove(own)
            if own.guest is not None:
                self._part(own, own.guest)


_pairs = _Pairs()
