"""What processes do at an address besides writing: wait for each other, end a run by hand, tell of digests."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.errors import LockedError, OptionError
from pipeline.index import check_options, index_run
from pipeline.records import Share
from pipeline.store import digests, lock, remote
from pipeline.store.reader import open_run
from pipeline.store.run_folder import open_folder
from pipeline.store.verification import verify_folder

from .object_store import clean_memory, names_at, put_files, run_at
from .stored_runs import make_spec, write_run
from .test_index import CONFIG, spec_of

ADDRESS = "memory://bucket/outputs/run"
SPEC = make_spec(rows=22)


memory = pytest.fixture(autouse=True)(clean_memory)


def put_locks(*names: str) -> None:
    """Has a process of another machine hold locks."""
    holder = {"host": "elsewhere", "machine": "1", "pid": 1, "token": "x", "time": time.time()}
    put_files(ADDRESS, dict.fromkeys(names, json.dumps(holder).encode()))


def test_a_part_waits_for_one_that_settles_however_long_that_takes(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "NOBODY_SECONDS", 0.4)
    put_locks(".lock")
    # The other part takes its own lock once this one has looked.
    taken = threading.Timer(0.2, put_locks, [".lock-1-of-2"])
    left = threading.Timer(1.5, lambda: memory.rm([f"/bucket/outputs/run/{name}" for name in (".lock", ".lock-1-of-2")]))
    began = time.monotonic()
    taken.start()
    left.start()
    open_folder(run_at(ADDRESS, tmp_path / "scratch"), SPEC, "resume", Share(2, 2)).close()
    assert time.monotonic() - began >= 1.4
    assert names_at(ADDRESS) == []


def test_a_part_does_not_wait_for_a_whole_run_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "NOBODY_SECONDS", 0.2)
    put_locks(".lock")
    with pytest.raises(LockedError, match=rf"^{ADDRESS}: another run writes this folder, got a lock held by process 1 on elsewh"):
        open_folder(run_at(ADDRESS, tmp_path / "scratch"), SPEC, "resume", Share(2, 2))


def test_a_run_at_an_address_is_ended_by_hand(tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_run(run_at(ADDRESS, tmp_path / "scratch"), spec_of(), failed=[3, 8], index=False)
    for _ in range(2):
        report = index_run(check_options({"run": ADDRESS}))
        assert (report.rows, report.failed, report.index) == (30, 2, f"{ADDRESS}/features.h5")
        assert {"features.h5", "report.json", "report.html", "run.log"} <= {*names_at(ADDRESS)}
        assert memory.cat_file("/bucket/outputs/run/config.yaml").decode() == CONFIG
        verdict = verify_folder(open_run(ADDRESS).path.parent, 2)
        assert (verdict.count, verdict.rows) == (0, 30), verdict.findings
        assert ".lock" not in names_at(ADDRESS)
        # By somebody else, whom this process would not notice if it did not look anew.
        memory.rm_file("/bucket/outputs/run/features.h5")


def test_an_index_of_an_address_that_nothing_reaches_is_a_wrong_option() -> None:
    with pytest.raises(OptionError, match=r"^run: "):
        check_options({"run": "nowhere://bucket/run"})


def test_a_line_that_is_added_while_the_digests_are_sent_is_sent_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_at(ADDRESS, tmp_path / "scratch")
    line = digests._line

    def sending(name: str, digest: str) -> bytes:
        # As the thread does in which a shard has just arrived, between the opening of the file and the line.
        remote.send_changed(folder)
        return line(name, digest)

    with open_folder(folder, SPEC, "resume"):
        put_files(ADDRESS, {"config.yaml": b"x"})
        remote.look_anew(folder)
        monkeypatch.setattr(digests, "_line", sending)
        digests.Digests(folder).add("config.yaml", "0" * 64)
        remote.settle(folder)
        assert fsspec.filesystem("memory").cat_file("/bucket/outputs/run/SHA256SUMS") == line("config.yaml", "0" * 64)
