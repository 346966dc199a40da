"""The file that HDF5 writes through: chunks that are written beside it, and disks that refuse them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.store import shard
from pipeline.store.shard import RawFile

CHUNKS = np.random.default_rng(0).integers(0, 256, (7, 5000), np.uint8)
needs_pwrite = pytest.mark.skipif(not hasattr(os, "pwrite"), reason="this system cannot write at a place")


def write(path: Path, compression: str | None, beside: bool) -> list[int | None]:
    """Writes a file of several chunks; gives where they were located, last first."""
    places: list[int | None] = []
    with RawFile(path) as file:
        with h5py.File(file, "w") as h5:
            file.hide_refusals()
            dataset = h5.create_dataset("x", CHUNKS.shape, np.uint8, chunks=(1, 5000), compression=compression)
            waiting: list[tuple[Any, int]] = []
            for row, chunk in enumerate(CHUNKS):
                data: bytes | NDArray[np.uint8] = chunk if compression is None else bytes(chunk[: 100 * row + 7])
                if beside:
                    place = file.locate(data, lambda row=row, data=data: dataset.id.write_direct_chunk((row, 0), data))
                    places.append(place)
                    if place is not None:
                        waiting.append((data, place))
                else:
                    dataset.id.write_direct_chunk((row, 0), data)
                # Metadata lie between the chunks.
                h5.create_dataset(f"y{row}", data=np.arange(row + 1))
            for data, place in waiting[::-1]:
                file.write_at(data, place)
        file.check()
    return places


@needs_pwrite
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_chunks_written_beside_hdf5_make_the_same_file(tmp_path: Path, compression: str | None) -> None:
    places = write(tmp_path / "beside", compression, beside=True)
    assert None not in places
    assert write(tmp_path / "through", compression, beside=False) == []
    assert (tmp_path / "beside").read_bytes() == (tmp_path / "through").read_bytes()
    if compression is None:
        with h5py.File(tmp_path / "beside") as h5:
            np.testing.assert_array_equal(h5["x"], CHUNKS)


def test_where_the_system_cannot_write_at_a_place_hdf5_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "through", None, beside=False)
    monkeypatch.delattr(shard.os, "pwrite", raising=False)
    assert write(tmp_path / "beside", None, beside=True) == [None] * len(CHUNKS)
    assert (tmp_path / "beside").read_bytes() == (tmp_path / "through").read_bytes()


@needs_pwrite
def test_what_the_disk_refuses_is_said_afterwards_and_nothing_is_written_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RawFile(tmp_path / "file") as file, h5py.File(file, "w") as h5:
        file.hide_refusals()
        dataset = h5.create_dataset("x", CHUNKS.shape, np.uint8, chunks=(1, 5000))
        place = file.locate(CHUNKS[0], lambda: dataset.id.write_direct_chunk((0, 0), CHUNKS[0]))
        assert place is not None
        monkeypatch.setattr(shard.os, "pwrite", refuse)
        file.write_at(CHUNKS[0], place)
        monkeypatch.undo()
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                file.check()
            file.write_at(CHUNKS[0], place)
        h5.close()
    assert CHUNKS[0].tobytes() not in (tmp_path / "file").read_bytes()
