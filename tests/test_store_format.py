"""The format's numbers: chunks, shard plan, names; and the codec of a chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sharding
from pipeline.store import codec, format

from .stored_runs import make_spec


@pytest.mark.parametrize(
    ("shape", "itemsize", "chunk"),
    [
        ((28, 28, 512), 4, (1, 28, 28, 512)),
        ((1, 1, 4096), 4, (16, 1, 1, 4096)),  # 256 KiB together
        ((1, 1, 4095), 2, (32, 1, 1, 4095)),  # rows are a power of two
        ((4, 4, 1024), 4, (1, 4, 4, 1024)),  # 64 KiB: a chunk of its own
        ((4, 4, 1023), 4, (4, 4, 4, 1023)),
        ((2048, 2048, 64), 4, (1, 2048, 2048, 64)),  # 1 GiB, still whole
        ((2049, 2048, 64), 4, (1, 128, 2048, 64)),  # above it
    ],
)
def test_chunks_hold_whole_rows_up_to_a_gibibyte(shape: tuple[int, ...], itemsize: int, chunk: tuple[int, ...]) -> None:
    assert format.chunk_shape(shape, itemsize) == chunk


def test_bands_are_whole_map_rows_of_a_mebibyte_and_at_least_one() -> None:
    assert format.band_shape((700, 200, 3), 4) == (436, 200, 3)
    assert format.band_shape((3, 5, 2), 4) == (3, 5, 2)
    assert format.band_shape((9, 3000, 512), 4) == (1, 3000, 512)


@pytest.mark.parametrize(
    ("row_bytes", "rows", "chunk_rows", "step"),
    [(28 * 28 * 512 * 4, 10_000, 1, 167), (4000, 1_000_000, 64, 4096), (4000, 10, 64, 4096), (300 << 20, 100, 1, 1)],
)
def test_a_shard_holds_about_256_mib_and_at_most_4096_images(row_bytes: int, rows: int, chunk_rows: int, step: int) -> None:
    assert sharding.plan_images_per_shard(row_bytes, rows, chunk_rows) == step


@given(row_bytes=st.integers(1, 1 << 30), rows=st.integers(1, 20_000_000), chunk_rows=st.sampled_from([1, 2, 16, 1024]))
def test_there_are_never_thousands_of_shards_and_they_end_where_chunks_do(row_bytes: int, rows: int, chunk_rows: int) -> None:
    step = sharding.plan_images_per_shard(row_bytes, rows, chunk_rows)
    assert step >= 1
    assert -(-rows // step) <= 2000
    assert step % chunk_rows == 0 or step < chunk_rows


@given(rows=st.integers(1, 500), images_per_shard=st.integers(1, 600))
def test_shards_tile_the_manifest(rows: int, images_per_shard: int) -> None:
    shards = make_spec(rows, keys=[str(i) for i in range(rows)], images_per_shard=images_per_shard).shards()
    assert [row for shard in shards for row in range(shard.first, shard.stop)] == list(range(rows))
    assert {shard.count for shard in shards} == {len(shards)}


def test_metadata_columns_never_take_a_name_of_the_format() -> None:
    names = format.column_names(["author", "status", "list_status", "a/b", "a_b", "", "."])
    assert [*names.values()] == ["author", "list_status", "list_list_status", "a_b", "list_a_b", "list_", "list_."]


def test_a_damaged_or_short_chunk_is_an_error() -> None:
    data = bytearray(codec.encode(np.arange(999, dtype=np.float32), "gzip"))
    for kept, count, words in ((50, 999, "fewer than 3996"), (None, 998, "more than 3992"), (None, 1000, "fewer than 4000")):
        with pytest.raises(ValueError, match=f"a stream of {words} bytes"):
            codec.decode(bytes(data[:kept]), (count,), np.dtype("<f4"), True)
    data[-1] ^= 1
    with pytest.raises(codec.DecodeError):
        codec.decode(bytes(data), (999,), np.dtype("<f4"), True)
