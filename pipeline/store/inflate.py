"""Streams that :mod:`~.deflate` made, inflated several at a time by one thread. Bytes in and out; no HDF5, no judgement.

What it takes is what that writes: one block, its header to the bit. Everything else, all that is damaged included, it leaves to
the library, whose verdict counts: so it needs no words for what is wrong. What it takes it has checked as the library does: each
symbol, the length, the Adler-32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from .deflate import DISTANCE_RANGES, LENGTH_RANGES, LENGTHS_BIT, STREAM_BEGINNING
from .inflate_code import MOST_STREAMS, compiled_inflate
from .inflate_tables import (
    ALPHABETS,
    ENDED,
    FIELD_BITS,
    INPUT_END,
    MEMORY,
    OUTPUT,
    OUTPUT_END,
    POSITION,
    REFUSED,
    STATE,
    STATUS,
    WORKING,
)

ADLER_BYTES = 4
# A lane keeps its memory for what is stored, up to so much.
KEPT_BYTES = 4 << 20
_FIRST_BIT = LENGTHS_BIT + FIELD_BITS * sum(ALPHABETS)

# Making the code takes as long as it saves over some 64 streams of 1.6 MB: who reads fewer never pays for it.
ENOUGH_STREAMS = 64
_asked = [0]

_RANGES = np.array([*zip(*LENGTH_RANGES, strict=True), *zip(*DISTANCE_RANGES, strict=True)], np.int64)
Owner = TypeVar("Owner")

_NOTHING = np.empty(0, np.uint8)
_of_thread = threading.local()


def pays(streams: int) -> bool:
    """Counts streams that are to be read by this process, and tells whether they are enough for code of their own."""
    _asked[0] += streams
    return _asked[0] > ENOUGH_STREAMS


def may_take(data: NDArray[np.uint8]) -> bool:
    """Tells whether a stream begins as ours do."""
    whole, rest = divmod(LENGTHS_BIT, 8)
    if len(data) < _FIRST_BIT // 8 + ADLER_BYTES + 1 or data[:whole].tobytes() != STREAM_BEGINNING[:whole]:
        return False
    return not (int(data[whole]) ^ STREAM_BEGINNING[whole]) & ((1 << rest) - 1)


class Lane:
    """What one stream needs on its way; used again for the next. Fresh memory for each would cost more than reading it."""

    def __init__(self) -> None:
        self.memory = np.zeros(MEMORY, np.int64)
        self.address = self.memory.ctypes.data
        self._kept = self.data = self.target = _NOTHING

    def room(self, size_bytes: int) -> NDArray[np.uint8]:
        """Gives memory for a stream as it is stored."""
        kept = self._kept if size_bytes <= len(self._kept) else np.empty(size_bytes, np.uint8)
        if size_bytes <= KEPT_BYTES:
            self._kept = kept
        self.data = kept[:size_bytes]
        return self.data

    def leave(self) -> None:
        """Lets go of the stream and its place, which would live as long as the thread."""
        self.data = self.target = _NOTHING

    def begin(self, target: NDArray[np.uint8]) -> None:
        """Prepares the stream that was put into the room; one that does not begin as ours do has come to its end."""
        self.target = target
        self.memory[STATUS] = REFUSED
        if not may_take(self.data):
            return
        source, start = self.data.ctypes.data, target.ctypes.data
        ends = source + len(self.data) - ADLER_BYTES, start, start, start + len(target)
        self.memory[: STATE - 1] = source * 8 + _FIRST_BIT, *ends
        compiled_inflate()["prepare"](self.address, source, LENGTHS_BIT, _RANGES.ctypes.data)

    def works(self) -> bool:
        """Tells whether the stream has neither ended nor been refused."""
        return int(self.memory[STATUS]) == WORKING

    def is_sound(self) -> bool:
        """Tells whether the stream ended where its data does, filled its place, and has the sum that it names."""
        state = self.memory[:STATE].tolist()
        is_whole = state[STATUS] == ENDED and state[OUTPUT] == state[OUTPUT_END] and -(-state[POSITION] // 8) == state[INPUT_END]
        return is_whole and int(isal_zlib.adler32(self.target)) == int.from_bytes(self.data[-ADLER_BYTES:].tobytes(), "big")


def inflate_all(begin: Callable[[Lane], Owner | None], most: int = MOST_STREAMS) -> Iterator[tuple[Owner, bool]]:
    """Inflates streams side by side, as many as there are.

    Args:
        begin: Puts the next stream into a lane, begins it, and gives whose it is; None: there are no more.
        most: How many side by side, from 1 to :data:`MOST_STREAMS`.

    Yields:
        Whose stream has come to an end, and whether what it gave is whole and sound; where not, its place holds anything.
    """
    code = compiled_inflate()
    lanes: list[Lane] = getattr(_of_thread, "lanes", None) or [Lane() for _ in range(MOST_STREAMS)]
    # Whoever begins anew before this has ended has lanes of its own.
    _of_thread.lanes = None
    busy: list[tuple[Lane, Owner]] = []
    free, more = lanes[:most], True
    while True:
        while free and more:
            owner = begin(free[-1])
            if owner is None:
                more = False
            else:
                busy.append((free.pop(), owner))
        if not busy:
            break
        if all(lane.works() for lane, _ in busy):
            code[f"inflate_{len(busy)}"](*(lane.address for lane, _ in busy), _RANGES.ctypes.data)
        ended = [pair for pair in busy if not pair[0].works()]
        busy = [pair for pair in busy if pair[0].works()]
        for lane, owner in ended:
            is_sound = lane.is_sound()
            lane.leave()
            free.append(lane)
            yield owner, is_sound
    _of_thread.lanes = lanes
