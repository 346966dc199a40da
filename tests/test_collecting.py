"""What the index takes of very many shards, read by several processes: the same as by one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.store import collecting
from pipeline.store.collecting import Collected, collect

from .stored_runs import make_spec, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "run"
    write_run(path, make_spec(rows=14, images_per_shard=2), failed=[3, 8, 9])
    return path


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "SHARDS_A_TASK", 2)


def assert_same(one: Collected, other: Collected) -> None:
    assert (one.columns.keys(), one.checksums.keys()) == (other.columns.keys(), other.checksums.keys())
    for name, column in one.columns.items():
        assert (column.dtype, column.tolist()) == (other.columns[name].dtype, other.columns[name].tolist())
    for layer, values in one.checksums.items():
        np.testing.assert_array_equal(values, other.checksums[layer])
        assert (one.statistics[layer].rows, one.statistics[layer].sum) == (11, other.statistics[layer].sum)
        np.testing.assert_array_equal(one.statistics[layer].histogram, other.statistics[layer].histogram)
    assert one.shards_with == other.shards_with == dict.fromkeys(one.columns, 7)


def test_several_processes_give_what_one_gives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(rows=14, images_per_shard=2)
    several = collect(folder, spec, processes=2)
    assert_same(collect(folder, spec, processes=1), several)
    monkeypatch.setattr(collecting, "SHARDS_A_TASK", 500)
    assert_same(collect(folder, spec), several)


def test_what_is_wrong_with_a_shard_comes_back_as_the_same_line(folder: Path) -> None:
    path = folder / "shards/shard-00004-of-00007.h5"
    content = path.read_bytes()
    try:
        path.write_bytes(content[: len(content) // 2])
        said = []
        for processes in (1, 2):
            with pytest.raises(StoreError) as raised:
                collect(folder, make_spec(rows=14, images_per_shard=2), processes)
            said.append((type(raised.value), str(raised.value)))
        assert said[0] == said[1]
        assert said[0][1].startswith(f"{path}: ")
    finally:
        path.write_bytes(content)


def test_a_process_that_ends_by_itself_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = collecting._start

    def start_and_kill() -> subprocess.Popen[bytes]:
        helper = start()
        os.kill(helper.pid, signal.SIGKILL)
        helper.wait()
        return helper

    monkeypatch.setattr(collecting, "_start", start_and_kill)
    with pytest.raises(
        StoreError, match=r"a process that read shards has ended by itself, got exit code -9\. Expected what is in"
    ):
        collect(folder, make_spec(rows=14, images_per_shard=2), processes=2)
