"""Chunks read by position, by several threads; shards that are replaced, damaged or cut anew while a run is open."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store.reader import open_run

from .processes import run_python
from .stored_runs import make_spec, make_values, write_run

SHAPES = {"small": (5, 4, 3), "large": (80, 80, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", make_spec(10, SHAPES), failed=[3, 8])
    return tmp_path / "run"


@pytest.fixture
def expected() -> dict[str, NDArray[np.float32]]:
    stacked = {layer: np.stack(of_layer) for layer, of_layer in make_values(make_spec(10, SHAPES)).items()}
    for of_layer in stacked.values():
        of_layer[[3, 8]] = np.nan
    return stacked


def test_rows_are_read_without_hdf5_once_their_places_are_known(
    folder: Path, expected: dict[str, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(folder)
    for layer in SHAPES:
        np.testing.assert_array_equal(run[layer][:], expected[layer])
    monkeypatch.setattr(h5py, "File", lambda *_, **__: pytest.fail("HDF5 was opened again"))
    for layer in SHAPES:
        np.testing.assert_array_equal(np.stack(list(run[layer])), expected[layer])
        np.testing.assert_array_equal(run[layer][[9, 0, 4, 4, 3]], expected[layer][[9, 0, 4, 4, 3]])


@pytest.mark.parametrize("chunk", [(3, 5, 4, 3), (1, 3, 4, 3), None])
def test_chunks_that_another_program_has_cut_are_read_too(
    folder: Path, expected: dict[str, NDArray[np.float32]], chunk: tuple[int, ...] | None
) -> None:
    with h5py.File(folder / "shards/shard-00001-of-00003.h5", "r+") as file:
        old = file["features/small"]
        values, attributes, filters = old[:], dict(old.attrs), old.compression
        del file["features/small"]
        new = file["features"].create_dataset("small", data=values, chunks=chunk, compression=filters if chunk else None)
        new.attrs.update(attributes)
    run = open_run(folder)
    np.testing.assert_array_equal(run["small"][:], expected["small"])
    np.testing.assert_array_equal(np.stack([run["small"][row] for row in range(10)]), expected["small"])


def test_a_layer_of_another_shape_than_the_index_says_is_damaged(tmp_path: Path) -> None:
    shape = (4, 80, 80, 2)
    write_run(tmp_path, make_spec(10, SHAPES, compression="none"))
    with h5py.File(tmp_path / "shards/shard-00001-of-00003.h5", "r+") as file:
        values, attributes = file["features/large"][:], dict(file["features/large"].attrs)
        del file["features/large"]
        data = values.reshape(4, -1)[:, : np.prod(shape[1:])].reshape(shape)
        new = file["features"].create_dataset("large", data=data, chunks=(1, *shape[1:]))
        new.attrs.update(attributes)
    with pytest.raises(StoreError, match=r"shard-00001-of-00003\.h5: layer large is damaged, got \(.* where the run has"):
        open_run(tmp_path)["large"][:]


def test_a_shard_that_is_made_anew_is_read_as_it_is_now(folder: Path, expected: dict[str, NDArray[np.float32]]) -> None:
    run = open_run(folder)
    for layer in SHAPES:
        np.testing.assert_array_equal(run[layer][:], expected[layer])
    (folder / "shards/shard-00001-of-00003.h5").unlink()
    write_run(folder, make_spec(10, SHAPES, compression="none"), failed=[3, 8], existing="resume")
    np.testing.assert_array_equal(run["large"][:], expected["large"])
    run.close()
    for layer in SHAPES:
        np.testing.assert_array_equal(run[layer][:], expected[layer])


def test_a_process_that_is_forked_while_threads_read_can_read(tmp_path: Path) -> None:
    write_run(tmp_path, make_spec(10, SHAPES))
    program = (
        "import os, sys, threading, numpy as np; from pipeline.store.reader import open_run\n"
        "run = open_run(sys.argv[1]); expected = run['large'][:].sum(); stop = threading.Event()\n"
        "def read():\n"
        "    while not stop.is_set(): run['large'][:]; run.close()\n"
        "threads = [threading.Thread(target=read) for _ in range(3)]\n"
        "[thread.start() for thread in threads]\n"
        "for _ in range(10):\n"
        "    child = os.fork()\n"
        "    if child == 0: os._exit(int(run['large'][:].sum() != expected))\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "stop.set(); [thread.join() for thread in threads]\n"
    )
    ended = run_python(program, tmp_path, PYTHONWARNINGS="ignore::DeprecationWarning")
    assert ended.returncode == 0, ended.stderr
