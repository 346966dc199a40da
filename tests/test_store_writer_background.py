"""The writer's work in the background: its bounds, counters, errors and its end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import NetworkError, StoreError
from pipeline.records import FeatureBatch, RunSpec
from pipeline.store.run_folder import open_folder
from pipeline.store.shard import OpenShard
from pipeline.store.writer import MOST_FINISHERS, Writer

from .stored_runs import make_spec, make_statuses, make_values, put_rows, write_run


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "shards").iterdir())


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
