"""Streams that :mod:`~.deflate` made, inflated several at a time by one thread. Bytes in and out; no HDF5, no judgement.

What it takes is what that writes: one block, its header to the bit. Everything else, all that is damaged included, it leaves to
the library, whose verdict counts: so it needs no words for what is wrong. What it takes it has checked as the library does: each
symbol, the length, the Adler-32.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from .deflate import DISTANCE_RANGES, LENGTH_RANGES, LENGTHS_BIT, STREAM_BEGINNING
from .inflate_code import MOST_STREAMS as MOST_STREAMS
from .inflate_code import compiled_inflate
from .inflate_tables import ALPHABETS, ENDED, FIELD_BITS, INPUT_END, MEMORY, OUTPUT, OUTPUT_END, POSITION, STATE, STATUS

ADLER_BYTES = 4
_FIRST_BIT = LENGTHS_BIT + FIELD_BITS * sum(ALPHABETS)

# Making the code takes as long as it saves over some 64 streams of 1.6 MB: who reads fewer never pays for it.
ENOUGH_STREAMS = 64
_asked = [0]

_RANGES = np.array([*zip(*LENGTH_RANGES, strict=True), *zip(*DISTANCE_RANGES, strict=True)], np.int64)
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


def inflate_into(streams: Sequence[NDArray[np.uint8]], into: Sequence[NDArray[np.uint8]]) -> list[bool]:
    """Inflates streams side by side, each straight into its place.

    Args:
        streams: At most :data:`MOST_STREAMS`.
        into: (n,) where each goes, which it must fill.

    Returns:
        Of each, whether it is there, whole and sound. Where not, its place holds anything.
    """
    code = compiled_inflate()
    done = [may_take(data) for data in streams]
    taken: list[int] = []
    memories = _memories()
    for number, (data, target) in enumerate(zip(streams, into, strict=True)):
        if not done[number]:
            continue
        memory, source, start = memories[len(taken)], data.ctypes.data, target.ctypes.data
        code["prepare"](memory.ctypes.data, source, LENGTHS_BIT, _RANGES.ctypes.data)
        if not memory[STATUS]:
            memory[: STATE - 1] = source * 8 + _FIRST_BIT, source + len(data) - ADLER_BYTES, start, start, start + len(target)
            taken.append(number)
        else:
            done[number] = False
    if taken:
        code[f"inflate_{len(taken)}"](*(memory.ctypes.data for memory in memories[: len(taken)]), _RANGES.ctypes.data)
    for memory, number in zip(memories, taken, strict=False):
        done[number] = _is_sound(memory.tolist()[:STATE], streams[number], into[number])
    return done


def _is_sound(state: list[int], data: NDArray[np.uint8], target: NDArray[np.uint8]) -> bool:
    """Tells whether a stream ended where its data does, filled its place, and has the sum that it names."""
    is_whole = state[STATUS] == ENDED and state[OUTPUT] == state[OUTPUT_END] and -(-state[POSITION] // 8) == state[INPUT_END]
    return is_whole and int(isal_zlib.adler32(target)) == int.from_bytes(data[-ADLER_BYTES:].tobytes(), "big")


def _memories() -> list[NDArray[np.int64]]:
    memories: list[NDArray[np.int64]] | None = getattr(_of_thread, "memories", None)
    if memories is None:
        memories = _of_thread.memories = [np.zeros(MEMORY, np.int64) for _ in range(MOST_STREAMS)]
    return memories
