"""The writer: what it is given is in the files, read back with h5py."""

from __future__ import annotations

import gc
import io
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import NetworkError, StoreError
from pipeline.records import RunSpec
from pipeline.store.run_folder import open_folder
from pipeline.store.shard import OpenLayer, OpenShard, ShardFile
from pipeline.store.writer import MOST_FINISHING, Writer

from .stored_runs import make_spec, make_statuses, make_values, put_rows, write_run


def shard_path(folder: Path, spec: RunSpec, number: int) -> Path:
    return folder / "shards" / spec.shards()[number].file_name


@contextmanager
def open_writer(folder: Path, spec: RunSpec, workers: int = 2) -> Iterator[Writer]:
    with open_folder(folder, spec, "fail") as opened:
        yield Writer(folder, spec, opened.missing, workers, opened.digests())


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
        assert (dataset.shape, dataset.dtype) == ((4, 80, 80, 3), np.dtype(dtype))
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
        for name, expected in {
            "key": [*spec.manifest.keys[4:8]],
            "status": ["ok", "failed", "ok", "ok"],
            "error": ["", "truncated after 17 bytes", "", ""],
            "label": ["folder1", "folder2", "folder0", "folder1"],
            "author": ["e", "f", "g", "h"],
            "sha256": [f"{4:064x}", "", f"{6:064x}", f"{7:064x}"],
        }.items():
            assert images[name].asstr()[:].tolist() == expected, name
        assert h5py.check_string_dtype(images["key"].dtype).encoding == "utf-8"
        assert (images["height"].dtype, images["bytes"].dtype) == (np.int32, np.int64)
        sizes = [images[name][:].tolist() for name in ("height", "width", "bytes")]
        assert sizes == [[304, 0, 306, 307], [404, 0, 406, 407], [1238, 17, 1240, 1241]]
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


@pytest.mark.parametrize(("dtype", "band"), [("float32", 436), ("float16", 700)])
def test_native_size_stores_one_dataset_an_image(tmp_path: Path, dtype: str, band: int) -> None:
    spec = make_spec(3, {"conv1_1": None}, dtype=dtype, images_per_shard=2)
    write_run(tmp_path, spec, failed=[1], values=make_values(spec, {2: (700, 200)}))
    with h5py.File(shard_path(tmp_path, spec, 0)) as first, h5py.File(shard_path(tmp_path, spec, 1)) as second:
        assert list(first["features/conv1_1"]) == ["000000000"]
        assert first["features/conv1_1"].attrs["axes"] == "height,width,channel"
        assert second["features/conv1_1/000000002"].chunks == (band, 200, 3)


# -- Work in the background: its bounds, counters, errors and its end


def test_putting_waits_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(rows=4, shapes={"relu4_1": (80, 80, 3)})
    gate, encode = threading.Event(), OpenLayer.encode
    waiting: list[int] = []

    def slow(*arguments: Any) -> Any:
        waiting.append(writer._bytes_waiting)
        gate.wait(10)
        return encode(*arguments)

    monkeypatch.setattr(OpenLayer, "encode", slow)
    monkeypatch.setattr("pipeline.store.writer.WAITING_BYTES", 2 * 76_800)
    with open_writer(tmp_path, spec, 4) as writer:
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
    with open_writer(tmp_path, spec) as writer:
        putting = threading.Thread(
            target=put_rows, args=(writer, range(12), make_values(spec), make_statuses(spec)), kwargs={"batch_size": 1}
        )
        putting.start()
        putting.join(0.5)
        assert putting.is_alive()
        assert len(names_in(tmp_path)) == MOST_FINISHING
        goes_on.set()
        putting.join(30)
        writer.close()
    assert len(names_in(tmp_path)) == 12


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (65_520.0, "float16", "got 65520."),
        (np.inf, "float16", "got inf."),
        (np.nan, "float32", "got nan."),
    ],
)
def test_values_that_cannot_be_stored_name_layer_and_image(tmp_path: Path, value: float, dtype: str, expected: str) -> None:
    spec = make_spec(4, {"relu4_1": (5, 4, 3)}, dtype=dtype)
    values = make_values(spec)
    values["relu4_1"][2][1, 2, 1] = value
    with pytest.raises(NetworkError) as raised:
        write_run(tmp_path, spec, values=values)
    assert str(raised.value).startswith(f"folder2/image é2.jpg: layer relu4_1 has a value that {dtype} cannot hold, {expected}")
    assert names_in(tmp_path) == []


def test_running_out_of_memory_is_one_line_and_other_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(rows=10)
    encode = OpenLayer.encode

    def exhausted(layer: OpenLayer, piece: Any) -> Any:
        if layer._shard.number == 1:
            raise MemoryError
        return encode(layer, piece)

    monkeypatch.setattr(OpenLayer, "encode", exhausted)
    with open_writer(tmp_path, spec) as writer:
        put_rows(writer, range(4), make_values(spec), make_statuses(spec))
        with pytest.raises(StoreError, match="out of memory while encoding"):
            fill_and_close(writer, spec, range(4, 10), make_values(spec))
        with pytest.raises(StoreError, match="out of memory while encoding"):
            writer.put_statuses([])
        writer.abort()
    assert "shard-00000-of-00003.h5" in names_in(tmp_path)
    assert not any("00001" in name or "partial" in name for name in names_in(tmp_path))


def fill_and_close(writer: Writer, spec: RunSpec, rows: range, values: dict[str, list[NDArray[np.float32]]]) -> None:
    put_rows(writer, rows, values, make_statuses(spec))
    writer.close()


def test_abort_keeps_whole_shards_and_leaves_no_partial_file(tmp_path: Path) -> None:
    spec = make_spec(rows=10)
    with open_writer(tmp_path, spec) as writer:
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
    with open_writer(tmp_path, spec, 1) as writer:
        monkeypatch.setattr("pipeline.store.writer.OpenShard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.put_statuses(make_statuses(spec, [])[:1])
        assert names_in(tmp_path)[0].endswith(".partial")
        writer.abort()
    assert names_in(tmp_path) == []


# -- The file of a shard: chunks on the disk, all else in memory


CHUNKS = np.random.default_rng(0).integers(0, 256, (7, 5000), np.uint8)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_chunks_written_beside_hdf5_make_the_file_that_hdf5_makes(tmp_path: Path, compression: str | None) -> None:
    def make(file: Any, write_chunk: Callable[..., object]) -> None:
        with h5py.File(file, "w") as hdf5:
            dataset = hdf5.create_dataset("x", CHUNKS.shape, np.uint8, chunks=(1, 5000), compression=compression)
            for row, chunk in enumerate(CHUNKS):
                write_chunk(dataset, (row, 0), chunk if compression is None else bytes(chunk[: 100 * row + 7]))
                # Metadata lie between the chunks.
                hdf5.create_dataset(f"y{row}", data=np.arange(row + 1))

    with ShardFile((tmp_path / "beside").open("wb", buffering=0)) as file:
        make(file, file.write_chunk)
        assert len(file._chunks) == len(CHUNKS)
        file.write_rest()
    with (tmp_path / "through").open("w+b") as through:
        make(through, lambda dataset, offset, data: dataset.id.write_direct_chunk(offset, data))
    assert (tmp_path / "beside").read_bytes() == (tmp_path / "through").read_bytes()


def test_hdf5_reads_back_what_it_has_written_on_a_disk_that_refuses(tmp_path: Path) -> None:
    """Else it would follow references to texts that are not there, and the process would die of it, sooner or later."""
    names = [f"image {number}.jpg" for number in range(100)]
    with ShardFile(Path("/dev/full").open("wb", buffering=0)) as file, h5py.File(file, "w") as hdf5:
        hdf5.create_dataset("key", data=np.array(names, object), dtype=h5py.string_dtype())
        hdf5.flush()
        assert hdf5["key"].asstr()[:].tolist() == names
        with pytest.raises(OSError, match="No space left"):
            file.write_rest()


@pytest.mark.parametrize("shape", [(5, 4, 3), None])
def test_nothing_is_collected_while_hdf5_calls_a_file(
    tmp_path: Path, shape: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were HDF5's objects closed within its own call, it would lose count of them."""
    enabled: list[bool] = []

    def noting(kind: Any) -> Any:
        def write(file: Any, data: Any) -> int:
            enabled.append(gc.isenabled())
            return int(kind.write(file, data))

        return type("Noting", (kind,), {"write": write})

    monkeypatch.setattr("pipeline.store.shard.ShardFile", noting(ShardFile))
    monkeypatch.setattr("pipeline.store.index_file.io", SimpleNamespace(BytesIO=noting(io.BytesIO)))
    write_run(tmp_path, make_spec(6, {"relu4_1": shape}))
    assert enabled
    assert not any(enabled)
    assert gc.isenabled()
