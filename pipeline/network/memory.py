"""Memory for activations that is used again: what the system hands out anew it must first clear, and that takes its time.

An array taken here is an ordinary one. When the last view of it is gone, wherever that was, its memory waits for the next.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT_BYTES = 4
CACHE_LINE_BYTES = 64

# Waiting memory above this is given back to the system, the longest unused first.
KEPT_BYTES = 1 << 30
# A larger piece is not spent on a small array.
LARGEST_WASTE = 1.25


class Memory:
    """Hands out arrays and takes their memory back. Safe for any number of threads."""

    def __init__(self) -> None:
        self._waiting: list[NDArray[np.uint8]] = []
        # An array can go in the middle of taking another, in the same thread.
        self._lock = threading.RLock()

    def take(self, *shape: int) -> NDArray[np.float32]:
        """Gives an array of whatever values, its beginning on a cache line: else every vector would lie across two.

        Raises:
            MemoryError: The system has no more.
        """
        count_bytes = int(np.prod(shape)) * FLOAT_BYTES
        piece = np.asarray(_Loan(self._find(count_bytes + CACHE_LINE_BYTES), self))
        start = -piece.ctypes.data % CACHE_LINE_BYTES
        return piece[start : start + count_bytes].view(np.float32).reshape(shape)

    def give_back(self, piece: NDArray[np.uint8]) -> None:
        """Keeps a piece for the next array."""
        with self._lock:
            self._waiting.append(piece)
            while sum(piece.size for piece in self._waiting) > KEPT_BYTES:
                del self._waiting[0]

    def _find(self, count_bytes: int) -> NDArray[np.uint8]:
        with self._lock:
            fitting = [piece for piece in self._waiting if count_bytes <= piece.size <= count_bytes * LARGEST_WASTE]
            if fitting:
                best = min(fitting, key=len)
                self._waiting = [piece for piece in self._waiting if piece is not best]
                return best
        return np.empty(count_bytes, np.uint8)


class _Loan:
    """Stands behind an array and outlives it by a moment."""

    def __init__(self, piece: NDArray[np.uint8], memory: Memory) -> None:
        self._piece = piece
        self._memory = memory
        self.__array_interface__: dict[str, Any] = piece.__array_interface__

    def __del__(self) -> None:
        self._memory.give_back(self._piece)
