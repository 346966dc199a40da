"""The writer: what it is given is in the files, read back with h5py."""

from __future__ import annotations

import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.records import RunSpec
from pipeline.store.reader import open_run

from .stored_runs import make_spec, make_values, write_run


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
