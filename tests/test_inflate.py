"""Our own inflating: all that it takes is what zlib says; all else it leaves alone, and touches nothing around."""

from __future__ import annotations

import random
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store import codec, deflate, inflate, prefix_codes
from pipeline.store.chunk_table import HAS_ADVICE, Handle
from pipeline.store.deflate_code import GROUP
from pipeline.store.inflate_code import MOST_STREAMS
from pipeline.store.reader import open_run
from pipeline.store.shards import ROWS_FORETOLD
from pipeline.vector_code import this_processor

from .damage import chunk_place, flip
from .stored_runs import make_spec, make_values, write_run

# Bytes before and after a place that must stay as they were.
AROUND = 512


def rectified(count: int, zeros: float, seed: int = 0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    values = np.abs(generator.standard_normal(count)).astype(np.float32) + np.float32(0.01)
    values[generator.random(count) < zeros] = 0.0
    return values


def stream(values: NDArray[np.float32]) -> bytes:
    found = deflate.compress(values, 64)
    assert found is not None
    return found


def inflated(streams: list[bytes], lengths: list[int]) -> list[bytes | None]:
    """Gives what each stream holds, or None; every stream and every place lies among bytes that are not its own."""
    sources = [np.frombuffer(b"\xff" * AROUND + data + b"\xff" * AROUND, np.uint8) for data in streams]
    targets = [np.full(length + 2 * AROUND, 0xA5, np.uint8) for length in lengths]
    places = [target[AROUND : AROUND + length] for target, length in zip(targets, lengths, strict=True)]
    numbers, done = iter(range(len(streams))), [False] * len(streams)

    def begin(lane: inflate.Lane) -> int | None:
        number = next(numbers, None)
        if number is not None:
            # Where it is, not copied: the bytes around it are to be seen if they are read.
            lane.data = sources[number][AROUND:-AROUND]
            lane.begin(places[number])
        return number

    for number, is_sound in inflate.inflate_all(begin):
        done[number] = is_sound
    for target, length in zip(targets, lengths, strict=True):
        assert (target[:AROUND] == 0xA5).all()
        assert (target[AROUND + length :] == 0xA5).all()
    return [place.tobytes() if is_done else None for is_done, place in zip(done, places, strict=True)]


def of_zlib(data: bytes, length: int) -> bytes | None:
    """Gives what zlib says a stream of so many bytes holds, with nothing behind it."""
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, length + 1)
    except zlib.error:
        return None
    return raw if inflater.eof and len(raw) == length and not inflater.unused_data else None


@given(
    counts=st.lists(st.integers(4200, 12_000), min_size=1, max_size=MOST_STREAMS),
    zeros=st.sampled_from([0.1, 0.5, 0.9, 0.96]),
    exponent=st.integers(-38, 30),
    seed=st.integers(0, 1000),
)
def test_what_was_compressed_comes_back_however_many_streams_there_are(
    counts: list[int], zeros: float, exponent: int, seed: int
) -> None:
    maps = [rectified(count, zeros, seed + number) * np.float32(10.0**exponent) for number, count in enumerate(counts)]
    streams = [deflate.compress(values, 64) for values in maps]
    pairs = [(data, values) for data, values in zip(streams, maps, strict=True) if data is not None]
    assert inflated([data for data, _ in pairs], [values.nbytes for _, values in pairs]) == [
        values.tobytes() for _, values in pairs
    ]


@pytest.mark.parametrize("gap", [1, 2, 3, 31, 32, 33, 62, 63, 64, 65, 66, 200])
@pytest.mark.parametrize("run", [1, 2, 15, 16, 17, 18, GROUP - 1, GROUP, GROUP + 1, 1000])
def test_zeros_in_any_number_and_at_any_distance_come_back(gap: int, run: int) -> None:
    values = rectified(20_000, 0.3)
    values[6000:] = 1.0 + np.arange(14_000)
    for start in range(6000, 20_000, gap + run):
        values[start : start + run] = 0.0
    data = deflate.compress(values, 64)
    assert data is not None
    assert inflated([data] * 3, [values.nbytes] * 3) == [values.tobytes()] * 3


def test_rare_bytes_that_have_the_longest_codes_come_back() -> None:
    values = rectified(60_000, 0.5)
    generator = np.random.default_rng(1)
    for start in range(3000, len(values), 901):
        values[start : start + 60] = generator.integers(0, 2**32, 60, dtype=np.uint32).view(np.float32)
    assert inflated([stream(values)] * 2, [values.nbytes] * 2) == [values.tobytes()] * 2


def test_streams_of_very_different_lengths_end_each_in_its_turn() -> None:
    maps = [rectified(count, 0.5, count) for count in (90_000, 5_000, 30_000, 4_300)]
    assert inflated([stream(values) for values in maps], [values.nbytes for values in maps]) == [
        values.tobytes() for values in maps
    ]


def test_what_others_have_made_is_left_to_the_library() -> None:
    values = rectified(30_000, 0.5)
    for level in (0, 1, 4, 9):
        data = zlib.compress(values.tobytes(), level)
        assert not inflate.may_take(np.frombuffer(data, np.uint8))
        assert inflated([data, stream(values)], [values.nbytes] * 2) == [None, values.tobytes()]
    assert inflated([isal_zlib.compress(values.tobytes(), 2)], [values.nbytes]) == [None]
    assert inflated([b"", b"\x78"], [10, 10]) == [None, None]


def test_streams_of_before_whose_codes_are_longer_are_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    values = rectified(60_000, 0.5)
    values[::7] *= np.float32(1e-20)
    for room in (prefix_codes, deflate):
        monkeypatch.setattr(room, "LARGEST_LENGTH", 13)
    monkeypatch.setattr(prefix_codes, "_REVERSED", prefix_codes._reversed_bits())
    data = stream(values)
    assert inflate.may_take(np.frombuffer(data, np.uint8))
    assert inflated([data], [values.nbytes]) == [None]
    np.testing.assert_array_equal(codec.decode(data, values.shape, values.dtype, True), values)


@pytest.mark.parametrize("length", [0, 1, -4, 4, 1000, -1000])
def test_a_stream_of_another_length_is_not_taken(length: int) -> None:
    values = rectified(6000, 0.5)
    good = values.nbytes if length == 0 else values.nbytes + length
    assert inflated([stream(values)], [good]) == [values.tobytes() if length == 0 else None]


def test_a_wrong_sum_is_not_taken() -> None:
    values = rectified(6000, 0.5)
    data = stream(values)
    assert inflated([data[:-1] + bytes([data[-1] ^ 1])], [values.nbytes]) == [None]
    assert inflated([data + b"\0"], [values.nbytes]) == [None]
    assert [inflated([data[:length]], [values.nbytes]) for length in range(0, len(data), 97)] == [[None]] * -(-len(data) // 97)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Gives a damaged stream: bits and bytes changed, pieces cut, doubled, or put in from another; the sum mostly set right.

    Half of the changes go where the codes' lengths are or just after.
    """
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        place = chance.randrange(chance.choice([200, len(changed) - 8]))
        match chance.randrange(6):
            case 0:
                changed[place] = chance.randrange(256)
            case 1:
                del changed[place : place + chance.randrange(1, 20)]
            case 2:
                changed[place:place] = changed[place : place + chance.randrange(1, 20)]
            case 3:
                end = min(len(changed) - 4, place + chance.randrange(1, 40))
                changed[place:end] = chance.randbytes(end - place)
            case _:
                changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def with_its_sum(data: bytes) -> tuple[bytes, int]:
    """Gives a damaged stream with the sum of what zlib finds in it, and how many bytes that is."""
    raw = b""
    inflater = zlib.decompressobj(-15)
    try:
        raw = inflater.decompress(data[2:-4], 1 << 20)
    except zlib.error:
        return data, 0
    return data[: len(data) - 4 - len(inflater.unused_data)] + zlib.adler32(raw).to_bytes(4, "big"), len(raw)


def hold_to_zlib(rounds: int, seed: int) -> tuple[int, int]:
    """Compares so many damaged streams, some at a time, with zlib; gives how many both took, and how many zlib alone."""
    chance = random.Random(seed)
    originals = [rectified(count, zeros, count) for count, zeros in ((4500, 0.5), (5000, 0.9), (4300, 0.15))]
    streams = [stream(values) for values in originals]
    both, alone = 0, 0
    for _ in range(rounds):
        datas, lengths = [], []
        for _ in range(chance.randrange(1, MOST_STREAMS + 1)):
            number = chance.randrange(len(streams))
            data, length = mutated(streams[number], chance), originals[number].nbytes
            if chance.random() < 0.7:
                data, found = with_its_sum(data)
                length = found or length
            datas.append(data)
            lengths.append(length)
        for ours, data, length in zip(inflated(datas, lengths), datas, lengths, strict=True):
            truth = of_zlib(data, length)
            assert ours is None or ours == truth
            both += ours is not None
            alone += ours is None and truth is not None
    return both, alone


def test_damaged_streams_are_what_zlib_says_or_are_left_alone() -> None:
    both, alone = hold_to_zlib(400, 1)
    # Many a change of a literal makes another sound stream: they are taken, and right.
    assert both > 100
    assert alone < both


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_a_hundred_thousand_damaged_streams_are_what_zlib_says_or_are_left_alone(seed: int) -> None:
    both, alone = hold_to_zlib(10_000, seed)
    assert both > 2500
    assert alone < both


def test_threads_inflate_at_once() -> None:
    maps = [rectified(20_000, 0.5, seed) for seed in range(4)]
    streams, lengths = [stream(values) for values in maps], [values.nbytes for values in maps]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: inflated(streams, lengths), range(40)):
            assert found == [values.tobytes() for values in maps]


def test_code_for_older_processors_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.store import inflate_code

    values = rectified(20_000, 0.6)
    for features in ("-avx512f,-avx2,-avx,-bmi,-bmi2", "-avx512f,+avx2"):
        if this_processor().lanes < 8 and "+avx2" in features:
            continue
        processor = this_processor()._replace(name="x86-64" if this_processor().lanes >= 8 else "generic", features=features)
        monkeypatch.setattr(inflate_code, "this_processor", lambda processor=processor: processor)
        code = inflate_code.compiled_inflate.__wrapped__()
        monkeypatch.setattr(inflate, "compiled_inflate", lambda code=code: code)
        assert inflated([stream(values)] * 4, [values.nbytes] * 4) == [values.tobytes()] * 4


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Has every reader inflate side by side; gives what came of each stream."""
    found: list[bool] = []
    is_sound = inflate.Lane.is_sound
    monkeypatch.setattr(inflate, "ENOUGH_STREAMS", -1)
    monkeypatch.setattr(inflate.Lane, "is_sound", lambda lane: found.append(is_sound(lane)) or found[-1])
    return found


def test_rows_of_several_shards_are_read_together(tmp_path: Path, always: list[bool]) -> None:
    spec = make_spec(11, {"relu4_1": (24, 24, 64)}, images_per_shard=4)
    write_run(tmp_path / "run", spec, failed=[3])
    layer, expected = open_run(tmp_path / "run")["relu4_1"], np.stack(make_values(spec)["relu4_1"])
    expected[3] = np.nan
    for rows in ([0, 4, 8], [10, 3, 1, 5, 0, 9, 2], [7], [6, 6, 2], list(range(11))):
        np.testing.assert_array_equal(layer.read(np.array(rows), threads=2), expected[rows])
    np.testing.assert_array_equal(layer.read(np.arange(11), np.dtype(np.float64)), expected)
    assert len(always) > 15
    assert all(always)


@pytest.mark.skipif(not HAS_ADVICE, reason="this system takes no advice about files")
def test_every_row_is_asked_of_the_disk_once_some_rows_before_it_is_inflated(
    tmp_path: Path, always: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", make_spec(30, {"relu4_1": (24, 24, 64)}, images_per_shard=7))
    events: list[tuple[str, tuple[int, int]]] = []
    foretell, read_into = Handle.foretell, Handle.read_into

    def note_foretelling(handle: Handle, position: int, size: int) -> None:
        events.append(("foretold", (handle.stamp[1], position)))
        foretell(handle, position, size)

    def note_reading(handle: Handle, buffer: memoryview, position: int) -> int:
        events.append(("read", (handle.stamp[1], position)))
        return read_into(handle, buffer, position)

    monkeypatch.setattr(Handle, "foretell", note_foretelling)
    monkeypatch.setattr(Handle, "read_into", note_reading)
    for threads in (2, 1):
        # The order is told with one alone: a thread may be overtaken between taking a row to foretell and doing so.
        events.clear()
        open_run(tmp_path / "run")["relu4_1"].read(np.arange(30), threads=threads)
        foretold = [place for what, place in events if what == "foretold"]
        assert len(set(foretold)) == len(foretold) == 30
    assert [what for what, _ in events[:ROWS_FORETOLD]] == ["foretold"] * ROWS_FORETOLD
    for number, (what, place) in enumerate(events):
        assert what == "foretold" or ("foretold", place) in events[:number]


def test_a_row_that_is_damaged_is_named_and_the_others_are_read(tmp_path: Path, always: list[bool]) -> None:
    write_run(tmp_path / "run", make_spec(8, {"relu4_1": (24, 24, 64)}, images_per_shard=4))
    run = open_run(tmp_path / "run")
    before = run["relu4_1"][:]
    shard = sorted((tmp_path / "run" / "shards").iterdir())[0]
    flip(shard, chunk_place(shard, "relu4_1", 1))
    run = open_run(tmp_path / "run")
    with pytest.raises(StoreError, match=r"layer relu4_1, row 1 \("):
        run["relu4_1"][:]
    np.testing.assert_array_equal(run["relu4_1"][[0, 2, 3, 4, 5]], before[[0, 2, 3, 4, 5]])
    assert always.count(False) == 1


def test_a_thread_keeps_nothing_of_what_it_has_read(tmp_path: Path, always: list[bool]) -> None:
    write_run(tmp_path / "run", make_spec(9, {"relu4_1": (24, 24, 64)}, images_per_shard=4))
    layer = open_run(tmp_path / "run")["relu4_1"]
    values = layer.read(np.arange(9), threads=1)
    assert len(always) == 9
    base = weakref.ref(values)
    del values
    assert base() is None


def test_as_many_rows_as_threads_are_left_to_the_library(tmp_path: Path, always: list[bool]) -> None:
    write_run(tmp_path / "run", make_spec(9, {"relu4_1": (24, 24, 64)}, images_per_shard=4))
    layer = open_run(tmp_path / "run")["relu4_1"]
    layer.read(np.arange(3), threads=3)
    assert not always
    layer.read(np.arange(4), threads=3)
    assert len(always) == 4


def test_few_rows_make_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate, "_asked", [0])
    assert not inflate.pays(inflate.ENOUGH_STREAMS)
    assert inflate.pays(1)
