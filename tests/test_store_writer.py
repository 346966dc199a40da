"""The writer: what it is given is in the files, read back with h5py."""

from __future__ import annotations

import errno
import threading
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import NetworkError, StoreError
from pipeline.records import FeatureBatch, RunSpec
from pipeline.store import shard
from pipeline.store.reader import open_run
from pipeline.store.run_folder import open_folder
from pipeline.store.shard import OpenShard, RawFile
from pipeline.store.writer import MOST_FINISHERS, Writer

from .stored_runs import make_spec, make_statuses, make_values, put_rows, write_run


def shard_path(folder: Path, spec: RunSpec, number: int) -> Path:
    return folder / "shards" / spec.shards()[number].file_name


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "shards").iterdir())


@pytest.mark.parametrize(("dtype", "compression"), [("float32", "gzip"), ("float16", "none")])
def test_a_shard_has_the_tree_that_the_format_says(tmp_path: Path, compression: str, dtype: str) -> None:
    spec = make_spec(dtype=dtype, compression=compression, metadata={"author": tuple("abcdefghij")})
    values = write_run(tmp_path, spec, failed=[5])
    assert names_in(tmp_path) == [f"shard-0000{n}-of-00003.h5" for n in range(3)]
    with h5py.File(shard_path(tmp_path, spec, 1)) as file:
        assert {name for name in file if isinstance(file[name], h5py.Group)} == {"features", "images", "checksums", "statistics"}
        dataset = file["features/relu4_1"]
        assert dataset.shape == (4, 80, 80, 3)
        assert dataset.dtype == np.dtype(dtype)
        assert dataset.compression == (compression if compression == "gzip" else None)
        assert not dataset.shuffle
        assert np.isnan(dataset.fillvalue)
        assert {name: value for name, value in dataset.attrs.items() if name != "DIMENSION_LIST"} == {
            "axes": "image,height,width,channel",
            "channels": 3,
            "stride_px": 8,
            "network_index": 1,
            "dtype": dtype,
        }
        for row in (4, 6, 7):
            np.testing.assert_array_equal(dataset[row - 4], values["relu4_1"][row])
            np.testing.assert_array_equal(file["features/conv1_1"][row - 4], values["conv1_1"][row])
            assert file["checksums/conv1_1"][row - 4] == zlib.crc32(file["features/conv1_1"][row - 4].tobytes())
        assert np.isnan(dataset[1]).all()
        assert np.isnan(file["features/conv1_1"][1]).all()
        assert file["checksums/conv1_1"][1] == 0
        images = file["images"]
        assert images["key"].asstr()[:].tolist() == list(spec.manifest.keys[4:8])
        assert images["status"].asstr()[:].tolist() == ["ok", "failed", "ok", "ok"]
        assert images["error"].asstr()[:].tolist() == ["", "truncated after 17 bytes", "", ""]
        assert images["label"].asstr()[:].tolist() == ["folder1", "folder2", "folder0", "folder1"]
        assert images["author"].asstr()[:].tolist() == ["e", "f", "g", "h"]
        assert images["sha256"].asstr()[:].tolist() == [f"{4:064x}", "", f"{6:064x}", f"{7:064x}"]
        assert h5py.check_string_dtype(images["key"].dtype).encoding == "utf-8"
        assert (images["height"].dtype, images["bytes"].dtype) == (np.int32, np.int64)
        assert images["height"][:].tolist() == [304, 0, 306, 307]
        assert images["width"][:].tolist() == [404, 0, 406, 407]
        assert images["bytes"][:].tolist() == [1238, 17, 1240, 1241]
        root = file.attrs
        assert (root["format"], root["format_version"], root["file_kind"]) == ("deep-feature-pipeline", 3, "shard")
        assert (root["run_digest"], root["manifest_digest"]) == (spec.digest, spec.manifest.digest)
        assert (root["first_row"], root["rows"], root["images_per_shard"]) == (4, 10, 4)
        assert root["created"].endswith("+00:00")
        assert root["network"] == "vgg19"
        assert root["mean_pixel"].tolist() == [123.68, 116.779, 103.939]


def test_chunks_whose_rows_all_failed_are_not_stored(tmp_path: Path) -> None:
    spec = make_spec(rows=8)
    write_run(tmp_path, spec, failed=[0, 2, 4, 5, 6, 7])
    for number, count in enumerate((2, 0)):
        with h5py.File(shard_path(tmp_path, spec, number)) as file:
            assert file["features/relu4_1"].id.get_num_chunks() == count
            assert file["features/conv1_1"].id.get_num_chunks() == min(count, 1)


@pytest.mark.parametrize(("dtype", "compression"), [("float32", "none"), ("float16", "gzip")])
def test_native_size_stores_one_dataset_an_image(tmp_path: Path, compression: str, dtype: str) -> None:
    spec = make_spec(5, {"conv1_1": None, "relu4_1": None}, dtype=dtype, compression=compression, images_per_shard=2)
    sizes = {0: (3, 4), 1: (9, 2), 2: (1, 1), 3: (7, 7), 4: (700, 200)}
    values = write_run(tmp_path, spec, failed=[1], values=make_values(spec, sizes))
    with h5py.File(shard_path(tmp_path, spec, 0)) as file:
        assert list(file["features/conv1_1"]) == ["000000000"]
        assert file["features/conv1_1"].attrs["axes"] == "height,width,channel"
    with h5py.File(shard_path(tmp_path, spec, 2)) as file:
        dataset = file["features/relu4_1/000000004"]
        assert dataset.chunks == ((436 if dtype == "float32" else 700), 200, 3)
        np.testing.assert_array_equal(dataset[()], values["relu4_1"][4])
    run = open_run(tmp_path)
    for row in (0, 2, 3, 4):
        read = run["relu4_1"][row]
        assert read.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(read, values["relu4_1"][row])


# -- Work in the background: its bounds, counters, errors and its end


def test_putting_waits_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(rows=4, shapes={"relu4_1": (80, 80, 3)})
    gate, encode = threading.Event(), OpenShard.encode
    waiting: list[int] = []

    def slow(self: OpenShard, *arguments: Any) -> Any:
        waiting.append(writer._bytes_waiting)
        gate.wait(10)
        return encode(self, *arguments)

    monkeypatch.setattr(OpenShard, "encode", slow)
    with open_folder(tmp_path, spec, "fail") as folder:
        writer = Writer(tmp_path, spec, folder.missing, 4, waiting_bytes=2 * 76_800)
        putting = threading.Thread(target=put_rows, args=(writer, range(4), make_values(spec), make_statuses(spec), 4))
        putting.start()
        putting.join(0.3)
        assert putting.is_alive()
        assert len(waiting) == 2
        gate.set()
        putting.join(10)
        writer.close()
    assert max(waiting) <= 2 * 76_800


def test_shards_that_wait_for_a_slow_disk_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, goes_on = OpenShard.finish, threading.Event()

    def slow(*arguments: Any) -> None:
        assert goes_on.wait(30)
        finish(*arguments)

    monkeypatch.setattr(OpenShard, "finish", slow)
    spec = make_spec(rows=12, shapes={"conv1_1": (5, 4, 3)}, images_per_shard=1)
    most = 2 * MOST_FINISHERS
    with open_folder(tmp_path, spec, "fail") as folder:
        writer = Writer(tmp_path, spec, folder.missing, 2)
        putting = threading.Thread(
            target=put_rows, args=(writer, range(12), make_values(spec), make_statuses(spec)), kwargs={"batch_size": 1}
        )
        putting.start()
        putting.join(0.5)
        assert putting.is_alive()
        assert len(names_in(tmp_path)) == most
        goes_on.set()
        putting.join(30)
        writer.close()
    assert len(names_in(tmp_path)) == 12


@pytest.mark.parametrize(
    ("value", "dtype", "line"),
    [
        (
            65_520.0,
            "float16",
            "folder2/image é2.jpg: layer relu4_1 has a value that float16 cannot hold, got 65520. "
            "Expected values from -65504 to 65504. Use output.dtype=float32, or output.overflow=row, which fails that image "
            "alone.",
        ),
        (
            np.nan,
            "float32",
            "folder2/image é2.jpg: layer relu4_1 has a value that is not finite, got nan. Expected finite numbers. "
            "Check network.weights and the image.",
        ),
    ],
)
def test_values_that_cannot_be_stored_name_layer_and_image(tmp_path: Path, value: float, dtype: str, line: str) -> None:
    spec = make_spec(4, {"relu4_1": (5, 4, 3)}, dtype=dtype)
    values = make_values(spec)
    values["relu4_1"][2][1, 2, 1] = value
    with pytest.raises(NetworkError) as raised:
        write_run(tmp_path, spec, values=values)
    assert str(raised.value) == line
    assert names_in(tmp_path) == []


def test_an_error_in_the_background_is_raised_at_the_next_put(tmp_path: Path) -> None:
    spec = make_spec(rows=8, shapes={"relu4_1": (80, 80, 3)})
    values = make_values(spec)
    values["relu4_1"][1][0] = np.nan
    with open_folder(tmp_path, spec, "fail") as folder:
        writer = Writer(tmp_path, spec, folder.missing, 1, waiting_bytes=1)
        with pytest.raises(NetworkError):
            put_rows(writer, range(8), values, make_statuses(spec))
        with pytest.raises(NetworkError):
            writer.put_statuses([])
        with pytest.raises(NetworkError):
            writer.put_features(FeatureBatch("relu4_1", np.zeros(0, np.int64), np.zeros((0, 80, 80, 3), np.float32)))
        writer.abort()
    assert names_in(tmp_path) == []


def test_running_out_of_memory_is_one_line_and_other_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(rows=10)
    encode = OpenShard.encode

    def exhausted(self: OpenShard, *arguments: Any) -> Any:
        if self.shard.number == 1:
            raise MemoryError
        return encode(self, *arguments)

    monkeypatch.setattr(OpenShard, "encode", exhausted)
    with open_folder(tmp_path, spec, "fail") as folder:
        writer = Writer(tmp_path, spec, folder.missing, 2)
        put_rows(writer, range(4), make_values(spec), make_statuses(spec))
        with pytest.raises(StoreError, match=r"out of memory while encoding, got 134217728 bytes allowed to wait\."):
            fill_and_close(writer, spec, range(4, 10))
        writer.abort()
    assert "shard-00000-of-00003.h5" in names_in(tmp_path)
    assert not any("00001" in name or "partial" in name for name in names_in(tmp_path))


def fill_and_close(writer: Writer, spec: RunSpec, rows: range) -> None:
    put_rows(writer, rows, make_values(spec), make_statuses(spec))
    writer.close()


def test_abort_keeps_whole_shards_and_leaves_no_partial_file(tmp_path: Path) -> None:
    spec = make_spec(rows=10)
    with open_folder(tmp_path, spec, "fail") as folder:
        writer = Writer(tmp_path, spec, folder.missing, 2)
        put_rows(writer, range(6), make_values(spec), make_statuses(spec))
        assert (tmp_path / "shards/shard-00001-of-00003.h5.partial").exists()
        writer.abort()
        writer.abort()
    assert names_in(tmp_path) == ["shard-00000-of-00003.h5"]


def test_an_interrupt_while_a_file_is_made_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come after the file is there and before the writer knows of it."""

    def interrupted(*arguments: Any) -> Any:
        OpenShard(*arguments)
        raise KeyboardInterrupt

    spec = make_spec(rows=6)
    with open_folder(tmp_path, spec, "fail") as folder:
        writer = Writer(tmp_path, spec, folder.missing, 1)
        monkeypatch.setattr("pipeline.store.writer.OpenShard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.put_statuses(make_statuses(spec, [])[:1])
        assert names_in(tmp_path)[0].endswith(".partial")
        writer.abort()
    assert names_in(tmp_path) == []


# -- Chunks that are written beside HDF5


CHUNKS = np.random.default_rng(0).integers(0, 256, (7, 5000), np.uint8)


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
