from __future__ import annotations

import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib
from numpy.typing import NDArray

from pipeline.store import codec, deflate
from pipeline.store.deflate_code import GROUP, LARGEST_GAP
from pipeline.store.prefix_codes import LARGEST_LENGTH, make_code

# The contract: our own streams may be so much longer than h5py's.
LARGEST_SIZE = 1.05


def rectified(count: int, zeros: float, seed: int = 0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    values = np.abs(generator.standard_normal(count)).astype(np.float32) + np.float32(0.01)
    values[generator.random(count) < zeros] = 0.0
    return values


def stream(values: NDArray[np.float32], neighbour: int = 64) -> bytes:
    found = deflate.compress(values, neighbour)
    assert found is not None
    return found


@given(
    count=st.integers(5000, 20_000),
    zeros=st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]),
    exponent=st.integers(-38, 30),
    neighbour=st.integers(1, 512),
    seed=st.integers(0, 1000),
)
def test_zlib_gives_back_what_was_compressed(count: int, zeros: float, exponent: int, neighbour: int, seed: int) -> None:
    values = rectified(count, zeros, seed) * np.float32(10.0**exponent)
    found = deflate.compress(values, neighbour)
    if found is not None:
        assert zlib.decompress(found) == values.tobytes()
        assert len(found) < values.nbytes


@given(seed=st.integers(0, 10_000), neighbour=st.integers(1, 64), step=st.integers(2, 9))
def test_any_bytes_come_back_or_are_left_to_the_library(seed: int, neighbour: int, step: int) -> None:
    values = np.frombuffer(np.random.default_rng(seed).bytes(4 * 6000), np.float32).copy()
    values[::step] = 0.0
    found = deflate.compress(values, neighbour)
    assert found is None or zlib.decompress(found) == values.tobytes()


def test_bytes_that_the_counted_parts_never_saw_come_back() -> None:
    values = rectified(200_000, 0.5)
    generator = np.random.default_rng(1)
    # Anything at all in a few places, most of which no part covers.
    for start in range(3000, len(values), 9001):
        values[start : start + 60] = generator.integers(0, 2**32, 60, dtype=np.uint32).view(np.float32)
    assert zlib.decompress(stream(values)) == values.tobytes()


@pytest.mark.parametrize(
    "gap", [1, 2, 3, 4, 5, 8, 9, 31, 32, 33, LARGEST_GAP - 1, LARGEST_GAP, LARGEST_GAP + 1, LARGEST_GAP + 2, 200]
)
def test_a_zero_is_found_at_every_distance_from_the_one_before(gap: int) -> None:
    values = rectified(12_000, 0.3)
    values[6000:] = 1.0 + np.arange(6000)
    values[6000::gap] = 0.0
    assert zlib.decompress(stream(values)) == values.tobytes()


@pytest.mark.parametrize("rest", [*range(0, GROUP, 5), GROUP - 1])
def test_any_number_of_values_beyond_whole_groups_comes_back(rest: int) -> None:
    values = rectified(GROUP * 100 + rest, 0.8)
    values[-3:] = 0.0
    assert zlib.decompress(stream(values)) == values.tobytes()


@pytest.mark.parametrize("run", [1, 2, 3, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 2 * GROUP + 3, 1000])
def test_runs_of_any_length_come_back_wherever_they_begin(run: int) -> None:
    values = 1.0 + np.arange(30_000, dtype=np.float32)
    start = 100
    while start < len(values) - run:
        values[start : start + run] = 0.0
        start += run + 1 + start % min(97, 9 * run)
    assert zlib.decompress(stream(values)) == values.tobytes()


def test_negative_zero_is_no_zero_and_nan_keeps_its_bits() -> None:
    values = rectified(10_000, 0.5)
    values[5::50] = -0.0
    values[7::50] = np.array([0x7FC12345], np.uint32).view(np.float32)
    values[11::50] = np.inf
    assert zlib.decompress(stream(values)) == values.tobytes()


def test_the_library_makes_what_it_makes_better() -> None:
    dense = rectified(51_200, 0.0)
    assert deflate.compress(dense, 64) is None  # no zeros
    assert deflate.compress(rectified(51_200, 0.99), 64) is None  # little else
    flat = np.tile(rectified(64, 0.5), 800)
    assert deflate.compress(flat, 64) is None  # each value equals that of the pixel before
    assert deflate.compress(rectified(4000, 0.5), 64) is None  # small
    assert deflate.compress(np.full(50_000, np.nan, np.float32), 64) is None  # a failed row
    for values in (dense, flat):
        assert codec.encode(values.reshape(-1, 64), "gzip") == isal_zlib.compress(values.view(np.uint8), codec.LEVEL)


def test_the_codec_uses_it_for_float32_and_hdf5_reads_it(tmp_path: Path) -> None:
    values = rectified(16 * 16 * 64, 0.5).reshape(1, 16, 16, 64)
    encoded = codec.encode(values, "gzip")
    assert bytes(encoded) == stream(values.reshape(-1))
    np.testing.assert_array_equal(codec.decode(bytes(encoded), values.shape, values.dtype, True), values)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        dataset = file.create_dataset("x", values.shape, "<f4", chunks=values.shape, compression="gzip")
        dataset.id.write_direct_chunk((0, 0, 0, 0), encoded)
    with h5py.File(tmp_path / "one.h5") as file:
        np.testing.assert_array_equal(file["x"][:], values)
    half = values.astype("<f2")
    assert codec.encode(half, "gzip") == isal_zlib.compress(half.reshape(-1).view(np.uint8), codec.LEVEL)


@pytest.mark.parametrize("zeros", [0.07, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_streams_are_hardly_longer_than_h5py_makes_them(zeros: float) -> None:
    values = rectified(28 * 28 * 512, zeros)
    assert len(stream(values, 512)) <= LARGEST_SIZE * len(zlib.compress(values.tobytes(), 4))


def test_the_same_values_give_the_same_bytes() -> None:
    values = rectified(30_000, 0.5)
    first = stream(values)
    stream(rectified(60_000, 0.9, 1))
    assert stream(values.copy()) == first


@pytest.mark.parametrize("seed", [101, 132, 191, *range(6)])
def test_whole_numbers_come_back(seed: int) -> None:
    # Of the codes of the first three much space is left, and few symbols could take it.
    values = np.maximum(np.random.default_rng(seed).integers(-255, 256, 14 * 14 * 512), 0).astype(np.float32)
    assert zlib.decompress(stream(values, 512)) == values.tobytes()


@pytest.mark.parametrize("seed", [10, 102, 276, *range(6)])
def test_values_rounded_to_bfloat16_come_back(seed: int) -> None:
    values = np.maximum(np.random.default_rng(seed).standard_normal(14 * 14 * 512).astype(np.float32), 0)
    values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert zlib.decompress(stream(values, 512)) == values.tobytes()


@given(st.lists(st.floats(1e-9, 1e9), min_size=270, max_size=280), st.integers(0, 6))
def test_codes_are_complete_where_few_symbols_are_spare(counts: list[float], power: int) -> None:
    given_counts = np.array([*(count**power for count in counts), *[0.0] * 6])
    code = make_code(given_counts)
    assert np.sum(0.5 ** code.lengths[code.lengths > 0].astype(np.float64)) == 1.0


@given(st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=286), st.integers(0, 10))
def test_codes_are_complete_and_no_longer_than_allowed(counts: list[float], absent: int) -> None:
    given_counts = np.array([*counts, *[0.0] * (absent + LARGEST_LENGTH)])
    code = make_code(given_counts)
    used = code.lengths > 0
    assert used[: len(counts)].all()
    assert code.lengths.max() <= LARGEST_LENGTH
    assert np.sum(0.5 ** code.lengths[used].astype(np.float64)) == 1.0
    # No code is the beginning of another: as deflate's decoder would take them, all fill the space without overlap.
    spans = sorted(
        (int(f"{int(bits):0{LARGEST_LENGTH}b}"[::-1], 2), 1 << (LARGEST_LENGTH - int(length)))
        for bits, length in zip(code.bits[used], code.lengths[used], strict=True)
    )
    assert [start for start, _ in spans[1:]] == np.cumsum([span for _, span in spans])[:-1].tolist()


def test_codes_are_nearly_as_short_as_can_be() -> None:
    generator = np.random.default_rng(0)
    for power in (0.5, 1, 2, 4, 8):
        counts = np.concatenate([generator.random(270) ** power, np.zeros(16)])
        shares = counts[:270] / counts.sum()
        entropy = -(shares * np.log2(shares)).sum()
        assert (shares * make_code(counts).lengths[:270]).sum() <= 1.02 * entropy + 0.03
