"""Memory that the CPU's engine takes again for the next batch."""

from __future__ import annotations

import gc

import numpy as np

from pipeline.network.winograd.engine import MemoryPool


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    source = MemoryPool()
    array = source.take(100, 10)
    array[...] = 7.0
    address, view = array.ctypes.data, array[3:, ::2]
    del array
    gc.collect()
    other = source.take(100, 10)
    other[...] = 3.0
    assert other.ctypes.data != address
    assert np.all(view == 7.0)
    del view
    gc.collect()
    assert source.take(100, 10).ctypes.data == address
