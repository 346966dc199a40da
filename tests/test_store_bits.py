"""Properties of what is stored: every bit comes back, in whatever chunks, shards and batches it went in."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.store import format
from pipeline.store.reader import open_run

from .stored_runs import Shape, make_spec, write_run

# float16 and float32: sign with nothing, the smallest subnormal, the largest finite value, one.
ODD_BITS = {"float16": (0x8000, 0x0001, 0x7BFF, 0x3C00), "float32": (0x80000000, 0x00000001, 0x7F7FFFFF, 0x3F800000)}
EXPONENT = {"float16": 0x7C00, "float32": 0x7F800000}
UNSIGNED = {"float16": "<u2", "float32": "<u4"}
dtypes = st.sampled_from(["float16", "float32"])
compressions = st.sampled_from(["gzip", "none"])


def draw_values(data: st.DataObject, shape: Shape, dtype: str) -> NDArray[np.float32]:
    """Gives values of any finite bits of the stored dtype, as float32, which holds them all."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    bits = np.random.default_rng(seed).integers(0, 1 << (8 * np.dtype(UNSIGNED[dtype]).itemsize), shape, dtype=UNSIGNED[dtype])
    bits[(bits & EXPONENT[dtype]) == EXPONENT[dtype]] &= ~np.array(EXPONENT[dtype], UNSIGNED[dtype])
    odd = data.draw(st.lists(st.sampled_from(ODD_BITS[dtype]), max_size=bits.size))
    bits.reshape(-1)[: len(odd)] = odd
    return bits.view(format.STORED_DTYPES[dtype]).astype(np.float32)


def as_bits(values: NDArray[np.floating], dtype: str) -> bytes:
    return values.astype(format.STORED_DTYPES[dtype]).tobytes()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_run_comes_back_bit_for_bit_in_whatever_chunks_and_shards(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows, dtype = data.draw(st.integers(1, 9), "rows"), data.draw(dtypes, "dtype")
    sides = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 6))
    native = data.draw(st.booleans(), "native")
    fixed = data.draw(sides, "sides")
    shapes = [(*data.draw(sides, "image")[:2], 3) if native else fixed for _ in range(rows)]
    failed = data.draw(st.sets(st.integers(0, rows - 1)), "failed")
    spec = make_spec(
        rows,
        {"relu1_1": None if native else fixed},
        dtype=dtype,
        compression=data.draw(compressions, "compression"),
        images_per_shard=data.draw(st.integers(1, 10), "images_per_shard"),
    )
    values = [draw_values(data, shape, dtype) for shape in shapes]
    single_bytes = data.draw(st.integers(1, 600), "single_bytes")
    with pytest.MonkeyPatch.context() as patch:
        # What is forced to the disk is no matter of this test, and takes most of its time.
        patch.setattr(os, "fsync", lambda handle: None)
        # Small arrays then make every kind of chunk: of several rows, of one, of bands of one.
        patch.setattr(format, "SINGLE_ROW_BYTES", single_bytes)
        patch.setattr(format, "SEVERAL_ROWS_BYTES", single_bytes * data.draw(st.integers(1, 8), "several"))
        patch.setattr(format, "LARGEST_CHUNK_BYTES", single_bytes + data.draw(st.integers(0, 400), "largest"))
        for name in ("LARGE_ROW_BAND_BYTES", "BAND_BYTES"):
            patch.setattr(format, name, data.draw(st.integers(1, 500), name))
        folder = tmp_path_factory.mktemp("run")
        write_run(folder, spec, sorted(failed), {"relu1_1": values}, batch_size=data.draw(st.integers(1, 4), "batch_size"))
        with open_run(folder) as run, h5py.File(folder / "features.h5") as index:
            assert [status == "failed" for status in run.images["status"]] == [row in failed for row in range(rows)]
            for row, expected in enumerate(values):
                if row in failed:
                    assert np.isnan(run["relu1_1"][row]).all()
                    continue
                assert as_bits(run["relu1_1"][row], dtype) == as_bits(expected, dtype)
                node = index["features/relu1_1"]
                by_hdf5 = node[format.native_name(row)][()] if native else node[row]
                assert as_bits(by_hdf5, dtype) == as_bits(expected, dtype)
                assert index["checksums/relu1_1"][row] == zlib.crc32(as_bits(expected, dtype))


def test_bands_of_one_value_each_do_not_overwrite_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "BAND_BYTES", 1)
    # Of a map as wide as the placeholder of an image that is read at native size.
    values = np.arange(9, dtype=np.float32).reshape(3, 1, 3)
    spec = make_spec(1, {"relu1_1": None}, compression="none")
    write_run(tmp_path, spec, [], {"relu1_1": [values]}, batch_size=1)
    with open_run(tmp_path) as run:
        assert run["relu1_1"][0].tolist() == values.tolist()
