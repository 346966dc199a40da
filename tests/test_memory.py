from __future__ import annotations

import gc

import numpy as np

from pipeline.network.winograd import engine
from pipeline.network.winograd.convolution import CACHE_LINE_BYTES
from pipeline.network.winograd.engine import MemoryPool


def test_an_array_is_an_ordinary_one_on_a_cache_line() -> None:
    taken = [MemoryPool().take(3, 5, 7), MemoryPool().take(1), MemoryPool().take(1000)]
    assert [array.shape for array in taken] == [(3, 5, 7), (1,), (1000,)]
    for array in taken:
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.ctypes.data % CACHE_LINE_BYTES == 0


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    source = MemoryPool()
    array = source.take(100, 10)
    address, view = array.ctypes.data, array[3:, ::2]
    del array
    gc.collect()
    other = source.take(100, 10)
    assert other.ctypes.data != address
    del view
    gc.collect()
    assert source.take(100, 10).ctypes.data == address


def test_views_hold_their_values_while_others_come_and_go() -> None:
    source = MemoryPool()
    kept = []
    for number in range(20):
        array = source.take(50, 50)
        array[...] = number
        if number % 3 == 0:
            kept.append((number, array[number]))
        del array
    for number, view in kept:
        np.testing.assert_array_equal(view, float(number))


def test_free_memory_has_a_limit(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(engine, "KEPT_BYTES", 10_000)
    source = MemoryPool()
    arrays = [source.take(1000) for _ in range(5)]
    del arrays
    gc.collect()
    assert sum(piece.size for piece in source._free) <= 10_000


def test_a_large_piece_is_not_spent_on_a_small_array() -> None:
    source = MemoryPool()
    large = source.take(100_000)
    del large
    gc.collect()
    small = source.take(10)
    assert len(source._free) == 1
    assert small.shape == (10,)
