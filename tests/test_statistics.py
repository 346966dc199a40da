"""Statistics gathered while writing: as a slow oracle has them, whatever the order of rows, and as the reader gives them."""

from __future__ import annotations

import math
import pickle
from functools import reduce
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store import format
from pipeline.store.reader import open_run
from pipeline.store.statistics import (
    BINS,
    BLOCK_VALUES,
    HISTOGRAM_STEP,
    OCTAVES,
    TINY,
    ZEROS,
    LayerStatistics,
    Tally,
    join_statistics,
)

from .killed_runs import assert_same_run
from .stored_runs import make_spec, make_values, write_run


def bin_edges(place: int) -> tuple[float, float]:
    """Return the bounds of a bin, as the format says."""
    if place == ZEROS:
        return 0.0, 0.0
    if place == TINY:
        return -(2.0**-62), 2.0**-62
    if place < ZEROS:
        low, high = bin_edges(2 * OCTAVES + 1 - place)
        return -high, -low
    return 2.0 ** (place - 129 - 62), math.inf if place == BINS - 1 else 2.0 ** (place - 129 - 61)


def oracle(rows: list[NDArray[np.floating]]) -> LayerStatistics:
    """The slow and obvious way: value by value into bins, sums without rounding."""
    channels = rows[0].shape[-1]
    positions = [row.reshape(-1, channels).astype(np.float64) for row in rows]
    flat = np.concatenate(positions)
    sampled = [of_row[place] for of_row in positions for place in range(min(10, len(of_row) // 2), len(of_row), 16)]
    edges = [bin_edges(place) for place in range(BINS)]
    histogram = np.zeros(BINS, np.int64)
    for value in np.concatenate(sampled).tolist():
        if value == 0.0 or abs(value) < edges[TINY][1]:
            histogram[ZEROS if value == 0.0 else TINY] += 1
        elif value > 0.0:
            histogram[next(place for place in range(TINY + 1, BINS) if edges[place][0] <= value < edges[place][1])] += 1
        else:
            histogram[next(place for place in range(ZEROS) if edges[place][0] < value <= edges[place][1])] += 1
    return LayerStatistics(
        len(rows),
        flat.size,
        int((flat == 0.0).sum()),
        np.array([math.fsum(flat.ravel()), 0.0]),
        np.array([math.fsum(flat.ravel() ** 2), 0.0]),
        flat.min(0).astype(np.float32),
        flat.max(0).astype(np.float32),
        histogram,
    )


def assert_equal(found: LayerStatistics, expected: LayerStatistics, exactly: bool = False) -> None:
    assert (found.rows, found.values, found.zeros) == (expected.rows, expected.values, expected.zeros)
    np.testing.assert_array_equal(found.histogram, expected.histogram)
    for name in ("channel_minimum", "channel_maximum"):
        got = getattr(found, name)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, getattr(expected, name))
        assert not np.signbit(got[got == 0]).any()
    tolerance = 0.0 if exactly else 1e-12
    squares, expected_squares = found.exact_sum_of_squares[0], expected.exact_sum_of_squares[0]
    assert squares == pytest.approx(expected_squares, rel=tolerance, abs=0.0)
    # Terms cancel: the sum is as near as the magnitudes allow.
    assert abs(found.exact_sum[0] - expected.exact_sum[0]) <= tolerance * math.sqrt(expected_squares * expected.values)


def statistics_of(rows: list[NDArray[np.float32]]) -> LayerStatistics:
    tally = Tally(rows[0].shape[-1])
    for row in rows:
        assert tally.add(row[None])
    return tally.statistics(len(rows))


ODD = np.array([0x80000000, 0x00000001, 0x807FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x20800000, 0x207FFFFF, 0xA07FFFFF], "<u4")


@given(
    pixels=st.integers(1, 60),
    channels=st.integers(1, 150),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["relu", "signed", "negative", "zeros", "any bits", "tiny"]),
)
@example(pixels=1, channels=1, seed=0, kind="signed")
@example(pixels=33, channels=64, seed=3, kind="any bits")
@example(pixels=3, channels=BLOCK_VALUES + 71, seed=1, kind="relu")
def test_one_pass_finds_what_a_slow_oracle_finds(pixels: int, channels: int, seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal((pixels, channels)).astype(np.float32) * np.float32(300)
    if kind == "relu":
        values = np.maximum(values - 100, 0)
    elif kind == "negative":
        values = -np.abs(values) - np.float32(1)
    elif kind == "zeros":
        values *= 0
    elif kind == "tiny":
        values *= np.float32(1e-21)
    elif kind == "any bits":
        bits = random.integers(0, 1 << 32, (pixels, channels), dtype=np.uint32)
        bits[(bits & 0x7F800000) == 0x7F800000] &= ~np.uint32(0x7F800000)
        values = bits.view(np.float32)
        values.reshape(-1)[: len(ODD)] = ODD.view(np.float32)[: values.size]
    assert_equal(statistics_of([values]), oracle([values]))
    vectors = Tally(channels)
    assert vectors.add(values)
    assert_equal(vectors.statistics(pixels), oracle([*values]))
    values[-1, -1] = np.inf
    assert not vectors.add(values)


def test_dead_channels_are_those_that_tell_nothing() -> None:
    relu = np.array([[[1, 0, 0, 5]], [[0, 0, 2, 5]]], np.float32)
    assert statistics_of([relu]).dead_channels.tolist() == [1]
    conv = np.array([[[1, -3, 0, 5]], [[0, -3, 2, 6]]], np.float32)
    assert statistics_of([conv]).dead_channels.tolist() == [1]
    # Of one value nobody can say that it never changes.
    assert statistics_of([conv[:1]]).dead_channels.tolist() == []


def test_statistics_of_nothing_are_no_numbers_and_change_none() -> None:
    nothing = Tally(3).statistics(0)
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.zero_share)
    assert nothing.dead_channels.tolist() == []
    something = statistics_of([np.array([[[1, 0, 2]]], np.float32)])
    assert_equal(join_statistics([nothing, something]), something, exactly=True)
    assert "1 rows: 0 to 2, mean 1, standard deviation 0.8165, 33.3% zeros, 1 dead of 3 channels" in repr(something)


@pytest.mark.parametrize(("dtype", "native"), [("float32", True), ("float16", False)])
def test_the_reader_gives_statistics_of_what_is_stored(tmp_path: Path, dtype: str, native: bool) -> None:
    shapes: dict[str, Any] = {"conv1_1": None, "relu4_1": None} if native else {"conv1_1": (5, 4, 3), "relu4_1": (7, 9, 70)}
    spec = make_spec(9, shapes, dtype=dtype, images_per_shard=4)
    values = make_values(spec, {row: (3 + row, 4) for row in range(9)})
    # What float16 makes a zero of.
    values["conv1_1"][2][0, 0, :] = [-1e-9, 1e-9, -7.0]
    write_run(tmp_path, spec, failed=[1, 5], values=values)
    run = open_run(tmp_path)
    assert list(run.statistics) == ["conv1_1", "relu4_1"]
    for layer in run.layers:
        expected = oracle([run[layer][row] for row in range(9) if row not in (1, 5)])
        assert_equal(run.statistics[layer], expected)
        assert_equal(pickle.loads(pickle.dumps(run)).statistics[layer], expected)
    assert run.statistics["conv1_1"].minimum == -7.0
    assert run.statistics["relu4_1"].zero_share == pytest.approx(0.5, abs=0.1)
    with h5py.File(tmp_path / "features.h5") as file:
        assert file["statistics"].attrs["histogram_step"] == HISTOGRAM_STEP
    shard = open_run(tmp_path / "shards" / spec.shards()[1].file_name)
    assert_equal(shard.statistics["conv1_1"], oracle([shard["conv1_1"][row] for row in (0, 2, 3)]))


def test_neither_batches_nor_threads_change_a_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "BAND_BYTES", 3000)
    spec = make_spec(18, {"a": None, "b": None}, images_per_shard=7)
    random = np.random.default_rng(5)
    values = {
        layer: [random.standard_normal((9, 11 + row % 3, 3)).astype(np.float32) * 100 for row in range(18)]
        for layer in ("a", "b")
    }
    for name, workers, batch_size in (("one", 1, 1), ("many", 8, 11)):
        write_run(tmp_path / name, spec, [3, 13], values, workers=workers, batch_size=batch_size)
    assert_same_run(tmp_path / "many", tmp_path / "one")


def test_neither_shards_nor_parts_of_them_change_a_sum() -> None:
    random = np.random.default_rng(11)
    rows = [(random.standard_normal((3, 2, 4)) * 10.0 ** random.integers(-9, 9)).astype(np.float32) for _ in range(60)]
    whole = statistics_of(rows)
    for shards in (1, 7, 13, 60):
        parts = [statistics_of(rows[first : first + shards]) for first in range(0, len(rows), shards)]
        by_one = reduce(lambda joined, part: join_statistics([joined, part]), parts)
        for joined in (join_statistics(parts), by_one, join_statistics(parts[::-1])):
            assert_equal(joined, whole, exactly=True)


def test_statistics_that_are_missing_are_named_by_the_reader(tmp_path: Path) -> None:
    write_run(tmp_path, make_spec())
    with h5py.File(tmp_path / "features.h5", "r+") as file:
        del file["statistics/conv1_1/histogram"]
    with pytest.raises(StoreError, match="/statistics/conv1_1 is damaged, got "):
        open_run(tmp_path).statistics["relu4_1"]
