"""The reader: rows by index, layer and key; threads and processes."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store.reader import open_run

from .processes import run_python
from .stored_runs import NATIVE_SIZES, make_spec, make_values, write_native_run, write_run

METADATA = {"author": tuple("abcdefghij"), "width": tuple("0123456789")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "imgs-vgg19"
    write_run(path, make_spec(metadata=METADATA), failed=[3])
    return path


@pytest.fixture
def values() -> dict[str, NDArray[np.float32]]:
    """What ``folder`` holds: layer -> (10, h, w, c)."""
    stacked = {layer: np.stack(of_layer) for layer, of_layer in make_values(make_spec()).items()}
    for of_layer in stacked.values():
        of_layer[3] = np.nan
    return stacked


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_run_opens_by_its_folder_its_index_or_a_shard(folder: Path, values: dict[str, NDArray[np.float32]]) -> None:
    for path in (folder, folder / "features.h5", str(folder)):
        with open_run(path) as run:
            assert (run.layers, len(run), "relu4_1" in run, "relu9_9" in run) == (("conv1_1", "relu4_1"), 10, True, False)
            assert run.attributes["network"] == "vgg19"
            assert [shard.first for shard in run.shards] == [0, 4, 8]
            np.testing.assert_array_equal(run["relu4_1"][:], values["relu4_1"])
    run = open_run(folder / "shards/shard-00001-of-00003.h5")
    assert (len(run), run.row("folder2/image é5.jpg")) == (4, 1)
    np.testing.assert_array_equal(run["conv1_1"][:], values["conv1_1"][4:8])
    last = open_run(folder / "shards/shard-00002-of-00003.h5")
    np.testing.assert_array_equal(last["relu4_1"][[1, 0]], values["relu4_1"][[9, 8]])


@pytest.mark.parametrize(
    "wanted",
    [
        *(0, -10, np.int64(4), slice(None), slice(2, 9, 3), slice(None, None, -1), slice(5, 5), [1, 8, 1, 3], [-1, 0], []),
        *(np.array([7, 2], np.uint8), np.arange(10) % 3 == 1, [True] * 5 + [False] * 5),
        *((4, slice(1, 3)), (slice(3, 6), 0, 1), ([5, 2], slice(None), slice(None), 2), (), ...),
    ],
    ids=repr,
)
@pytest.mark.parametrize("layer", ["conv1_1", "relu4_1"])
def test_a_layer_is_indexed_as_an_array(folder: Path, values: dict[str, NDArray[np.float32]], layer: str, wanted: Any) -> None:
    expected = values[layer][np.array(wanted, np.int64) if isinstance(wanted, list) and not wanted else wanted]
    read = open_run(folder)[layer][wanted]
    assert read.dtype == np.float32
    assert read.shape == expected.shape
    assert read.flags.writeable
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("wanted", [10, [3, -11], [True, False], "cats/tom.jpg", 1.5], ids=repr)
def test_a_wrong_index_is_one_line(folder: Path, wanted: Any) -> None:
    with pytest.raises(StoreError) as raised:
        open_run(folder)["relu4_1"][wanted]
    assert isinstance(raised.value, IndexError)
    assert str(raised.value).startswith(f"layer relu4_1: no such rows, got {wanted!r}. Expected a row from -10 to 9, ")


def test_a_layer_is_iterated_and_made_an_array(folder: Path, values: dict[str, NDArray[np.float32]]) -> None:
    layer = open_run(folder)["conv1_1"]
    assert (layer.shape, layer.dtype, layer.channels, layer.stride_px, len(layer)) == ((10, 5, 4, 3), np.float32, 3, 8, 10)
    np.testing.assert_array_equal(np.stack(list(layer)), values["conv1_1"])
    np.testing.assert_array_equal(np.asarray(layer), values["conv1_1"])
    assert np.asarray(layer, np.float64).dtype == np.float64


def test_native_size_is_indexed_alike(tmp_path: Path) -> None:
    expected = make_values(make_spec(6, {"relu4_1": None}), NATIVE_SIZES)["relu4_1"]
    layer = open_run(write_native_run(tmp_path))["relu4_1"]
    assert layer.shape == (6, None, None, 3)
    assert "6 x native x native x 3  float32" in repr(open_run(tmp_path))
    np.testing.assert_array_equal(layer[-1], expected[5])
    assert layer[4].flags.writeable
    assert [read.shape for read in layer[[5, 0]]] == [(8, 4, 3), (3, 9, 3)]
    np.testing.assert_array_equal(layer[2:5, 1][1], expected[3][1])
    assert (layer[1].shape, layer[1].dtype) == ((1, 1, 3), np.float32)
    assert np.isnan(layer[1]).all()
    assert [read.shape[:2] for read in layer] == [(1, 1) if i == 1 else NATIVE_SIZES[i] for i in range(6)]
    with pytest.raises(StoreError, match="no array, got images of native size"):
        np.asarray(layer)
    np.testing.assert_array_equal(open_run(tmp_path / "shards/shard-00001-of-00002.h5")["relu4_1"][1], expected[5])


def test_the_table_of_images_has_the_columns_of_the_format_and_the_list(folder: Path) -> None:
    images = open_run(folder).images
    assert list(images) == ["key", "label", "status", "error", "height", "width", "bytes", "sha256", "author", "list_width"]
    assert images["author"].tolist() == list("abcdefghij")
    assert images["list_width"].tolist() == [*range(10)]
    assert images["width"].dtype == np.int32
    assert images["width"].tolist() == [0 if i == 3 else 400 + i for i in range(10)]
    assert images["bytes"].dtype == np.int64
    assert images["key"][8] == "folder2/image é8.jpg"
    assert np.flatnonzero(images["status"] == "failed").tolist() == [3]
    assert open_run(folder)["conv1_1"][images["label"] == "folder1"].shape == (3, 5, 4, 3)
    with pytest.raises(StoreError, match=r"features\.h5: no such column, got 'hight'\. Expected one of: height"):
        images["hight"]


def test_unknown_layers_and_keys_name_the_nearest(folder: Path) -> None:
    run = open_run(folder)
    assert run.row("folder1/image é7.jpg") == 7
    with pytest.raises(StoreError, match=r"features\.h5: no such layer, got 'relu4_2'\. Expected one of: relu4_1\."):
        run["relu4_2"]
    with pytest.raises(StoreError, match=r"no such image, got 'folder1/image 7\.jpg'\. Expected a key such as: folder1/image é7"):
        run.row("folder1/image 7.jpg")


def test_keys_that_are_not_unicode_are_found(tmp_path: Path) -> None:
    write_run(tmp_path, make_spec(2, keys=["caf\udce9.jpg", "b.jpg"]))
    run = open_run(tmp_path)
    assert run.images["key"][0] == "caf\\udce9.jpg"
    assert run.row("caf\udce9.jpg") == 0


def test_a_run_says_what_it_is(folder: Path) -> None:
    run = open_run(folder)
    assert repr(run).startswith(f"<run '{folder / 'features.h5'}': 10 images, vgg19, made {run.attributes['created']}>\nlayer ")
    assert repr(run).endswith("relu4_1  10 x 80 x 80 x 3  float32  3         8 px")
    assert repr(run["conv1_1"]) == "<layer conv1_1: (10, 5, 4, 3) float32>"


def test_a_run_and_a_layer_are_pickled_by_their_path(folder: Path, values: dict[str, NDArray[np.float32]]) -> None:
    run = open_run(folder)
    assert len(pickle.dumps(run)) < 500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(run))["conv1_1"][:], values["conv1_1"])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(run["conv1_1"]))[5], values["conv1_1"][5])
    assert pickle.loads(pickle.dumps(run.images))["label"][1] == "folder1"


def test_threads_share_a_run_and_no_shard_stays_open(folder: Path, values: dict[str, NDArray[np.float32]]) -> None:
    run = open_run(folder)

    def read(seed: int) -> None:
        for row in np.random.default_rng(seed).integers(0, 10, 60):
            for layer in run.layers:
                np.testing.assert_array_equal(run[layer][int(row)], values[layer][row])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    files = Path("/proc/self/fd")
    assert not (files.exists() and any(folder in file.resolve().parents for file in files.iterdir()))


def test_a_shard_that_is_made_anew_is_read_as_it_is_now(copy: Path, values: dict[str, NDArray[np.float32]]) -> None:
    run = open_run(copy)
    np.testing.assert_array_equal(run["relu4_1"][:], values["relu4_1"])
    (copy / "shards/shard-00001-of-00003.h5").unlink()
    write_run(copy, make_spec(metadata=METADATA, compression="none"), failed=[3])
    np.testing.assert_array_equal(run["relu4_1"][:], values["relu4_1"])


def test_a_process_that_is_forked_while_threads_read_can_read(tmp_path: Path) -> None:
    write_run(tmp_path, make_spec())
    program = (
        "import os, sys, threading, numpy as np; from pipeline.store.reader import open_run\n"
        "run = open_run(sys.argv[1]); expected = run['relu4_1'][:].sum(); stop = threading.Event()\n"
        "def read():\n"
        "    while not stop.is_set(): run['relu4_1'][:]; run.close()\n"
        "threads = [threading.Thread(target=read) for _ in range(3)]\n"
        "[thread.start() for thread in threads]\n"
        "for _ in range(10):\n"
        "    child = os.fork()\n"
        "    if child == 0: os._exit(int(run['relu4_1'][:].sum() != expected))\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "stop.set(); [thread.join() for thread in threads]\n"
    )
    ended = run_python(program, tmp_path, PYTHONWARNINGS="ignore::DeprecationWarning")
    assert ended.returncode == 0, ended.stderr
