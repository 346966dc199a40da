"""Memory that the CPU's engine takes again for the next batch."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from pipeline.network.winograd import engine
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


def test_free_memory_has_a_limit_and_is_not_spent_on_a_small_array(monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemoryPool()
    large = source.take(100_000)
    del large
    gc.collect()
    small = source.take(10)
    assert len(source._free) == 1
    assert small.shape == (10,)
    monkeypatch.setattr(engine, "KEPT_BYTES", 10_000)
    source = MemoryPool()
    arrays = [source.take(1000) for _ in range(5)]
    del arrays
    gc.collect()
    assert sum(piece.size for piece in source._free) <= 10_000
