"""A run folder at an address: written, gone on with, read; in fsspec's memory, which has neither folders nor atomic names."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import LockedError, StoreError
from pipeline.storage import hold, objects
from pipeline.storage.address import Address
from pipeline.storage.connection import StorageError
from pipeline.storage.mirror import make_private, scratch_for
from pipeline.storage.remote_path import RemotePath
from pipeline.store import remote
from pipeline.store.index_file import build_index
from pipeline.store.reader import open_run
from pipeline.store.run_folder import open_folder, preview_folder
from pipeline.store.verification import verify_folder
from pipeline.store.writer import Writer

from .killed_runs import assert_same_run
from .object_store import clean_memory, copy_here, names_at, put_files, run_at
from .stored_runs import make_spec, make_statuses, make_values, put_rows, write_run

ADDRESS = "memory://bucket/outputs/run"
SPEC = make_spec(rows=22)
FAILED = (3, 8, 9, 10, 11)


memory = pytest.fixture(autouse=True)(clean_memory)


@pytest.fixture
def folder(tmp_path: Path) -> RemotePath:
    return run_at(ADDRESS, tmp_path / "scratch")


def shard(number: int) -> str:
    return f"shards/{SPEC.shards()[number].file_name}"


def test_a_run_at_an_address_is_that_of_a_folder_bit_for_bit(folder: RemotePath, tmp_path: Path) -> None:
    write_run(folder, SPEC, FAILED)
    write_run(tmp_path / "local", SPEC, FAILED)
    (tmp_path / "local/.lock").unlink(missing_ok=True)
    assert_same_run(copy_here(ADDRESS, tmp_path / "copy"), tmp_path / "local")
    verdict = verify_folder(tmp_path / "copy", 2)
    assert (verdict.count, verdict.rows) == (0, 22)
    assert not (tmp_path / "scratch").exists()


def test_what_is_there_already_is_neither_downloaded_nor_made_again(
    folder: RemotePath, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(folder, SPEC, FAILED)
    memory.rm_file(f"/bucket/outputs/run/{shard(2)}")
    memory.rm_file("/bucket/outputs/run/features.h5")
    before = dict(memory.store)
    downloaded: list[str] = []
    monkeypatch.setattr("pipeline.storage.mirror.download", _noting(downloaded, objects.download))
    write_run(folder, SPEC, FAILED)
    made = {path for path, file in memory.store.items() if before.get(path) is not file}
    assert made == {f"/bucket/outputs/run/{name}" for name in (shard(2), "features.h5", "SHA256SUMS")}
    assert not [name for name in downloaded if name.endswith(".h5")]


def _noting(names: list[str], download: Any) -> Any:
    def noting(address: Address, *rest: Any) -> None:
        names.append(address.name)
        download(address, *rest)

    return noting


def test_a_shard_without_a_line_is_read_whole_before_it_counts(folder: RemotePath, memory: Any) -> None:
    write_run(folder, SPEC, FAILED)
    lines = memory.cat_file("/bucket/outputs/run/SHA256SUMS").splitlines(keepends=True)
    memory.pipe_file("/bucket/outputs/run/SHA256SUMS", b"".join(line for line in lines if b"shard-0000" not in line))
    damaged = bytearray(memory.cat_file(f"/bucket/outputs/run/{shard(1)}"))
    damaged[len(damaged) // 2] ^= 1
    memory.pipe_file(f"/bucket/outputs/run/{shard(1)}", bytes(damaged))
    with open_folder(folder, SPEC, "resume") as run_folder:
        assert [missing.number for missing in run_folder.missing] == [1]
    write_run(folder, SPEC, FAILED)
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0


def test_digests_never_name_what_has_not_arrived(folder: RemotePath, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "DIGESTS_EVERY_SECONDS", 0.0)
    seen: list[tuple[set[str], set[str]]] = []
    upload = objects.upload

    def slow(local: Path, address: Address) -> Any:
        time.sleep(0.02)
        lines = memory.store.get("/bucket/outputs/run/SHA256SUMS")
        named = {line.split()[1].decode() for line in lines.getvalue().splitlines()} if lines else set()
        seen.append((named, {path.removeprefix("/bucket/outputs/run/") for path in memory.store.copy()}))
        return upload(local, address)

    monkeypatch.setattr("pipeline.storage.mirror.upload", slow)
    write_run(folder, SPEC, FAILED)
    assert len(seen) >= 7
    for named, there in seen:
        assert named <= there
    assert any(shard(number) in named for named, _ in seen for number in range(3))
    lines = memory.cat_file("/bucket/outputs/run/SHA256SUMS").decode().splitlines()
    for digest, name in (line.split("  ") for line in lines):
        assert hashlib.sha256(memory.cat_file(f"/bucket/outputs/run/{name}")).hexdigest() == digest, name


@pytest.mark.slow
def test_scratch_holds_a_few_shards_however_slow_the_storage_is(
    folder: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    upload = objects.upload

    def slow(local: Path, address: Address) -> Any:
        nonlocal most
        time.sleep(0.05)
        most = max(most, len(list((tmp_path / "scratch/shards").iterdir())))
        return upload(local, address)

    monkeypatch.setattr("pipeline.storage.mirror.upload", slow)
    write_run(folder, make_spec(rows=60, shapes={"conv1_1": (5, 4, 3)}, images_per_shard=2), batch_size=2)
    from pipeline.store.disk import SHARDS_IN_SCRATCH

    assert 2 < most <= SHARDS_IN_SCRATCH


def test_an_upload_that_fails_stops_the_run_and_keeps_what_has_arrived(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    upload = objects.upload

    def refusing(local: Path, address: Address) -> Any:
        if address.name == Path(shard(3)).name:
            raise StorageError(5, "it does not answer as it should (HTTP 503)", str(address))
        return upload(local, address)

    monkeypatch.setattr("pipeline.storage.mirror.upload", refusing)
    with pytest.raises(StoreError) as caught:
        write_run(folder, SPEC, FAILED)
    assert str(caught.value) == (
        f"{ADDRESS}/{shard(3)}: the storage refuses, got it does not answer as it should (HTTP 503). Expected an address that "
        "can be read and, by a run, written. Check the address, the credentials and the network, then run again: finished shards "
        "are kept."
    )
    there = names_at(ADDRESS)
    assert shard(0) in there
    assert shard(3) not in there
    assert "features.h5" not in there
    assert ".lock" not in there
    monkeypatch.undo()
    write_run(folder, SPEC, FAILED)
    assert len(open_run(ADDRESS)) == 22


def test_half_an_upload_is_no_file_of_the_run_and_is_removed(
    folder: RemotePath, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(folder, SPEC, FAILED)
    memory.rm_file(f"/bucket/outputs/run/{shard(2)}")
    put_files(ADDRESS, {f"{shard(2)}.0a1b2c3d.uploading": b"half"})
    with pytest.raises(StoreError, match=r"the shard is missing, got 5 of 6"):
        open_run(ADDRESS)
    write_run(folder, SPEC, FAILED)
    assert not [name for name in names_at(ADDRESS) if name.endswith(".uploading")]


@pytest.mark.slow
def test_an_upload_of_another_size_is_tried_again(folder: RemotePath, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put_file, cut = type(memory).put_file, []

    def cutting(self: Any, local: str, path: str, **how: Any) -> None:
        if not cut and path.endswith(".uploading"):
            cut.append(path)
            self.pipe_file(path, Path(local).read_bytes()[:-7])
        else:
            put_file(self, local, path, **how)

    monkeypatch.setattr(type(memory), "put_file", cutting)
    monkeypatch.setattr("pipeline.storage.connection.time.sleep", lambda seconds: None)
    write_run(folder, SPEC, FAILED)
    assert cut
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0


@pytest.mark.parametrize("existing", ["resume", "extend"])
def test_other_options_at_the_address_are_refused_by_name(folder: RemotePath, existing: str) -> None:
    write_run(folder, SPEC, FAILED)
    with pytest.raises(StoreError, match=r"^memory://bucket/outputs/run: the folder holds a run with other options, got .*seed"):
        write_run(folder, make_spec(rows=22, identity={"network.seed": "7"}), existing=existing)


@pytest.mark.slow
def test_results_at_the_address_are_refused_or_replaced_as_asked(folder: RemotePath) -> None:
    write_run(folder, SPEC, FAILED)
    put_files(ADDRESS, {"notes.txt": b"somebody's"})
    with pytest.raises(StoreError, match=r"the folder holds results, got 7 files from shard-00000-of-00006\.h5 on"):
        write_run(folder, SPEC, existing="fail")
    other = make_spec(rows=5, images_per_shard=5)
    write_run(folder, other, existing="replace")
    assert names_at(ADDRESS) == ["SHA256SUMS", "features.h5", "manifest.jsonl.gz", "notes.txt", "shards/shard-00000-of-00001.h5"]
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0


@pytest.mark.slow
def test_images_that_came_later_extend_a_run_at_an_address(folder: RemotePath) -> None:
    keys = [f"folder{i % 3}/image é{i}.jpg" for i in range(22)]
    write_run(folder, SPEC, FAILED)
    write_run(folder, make_spec(rows=25, keys=[*keys, "x/1.jpg", "x/2.jpg", "x/3.jpg"]), existing="extend")
    with open_run(ADDRESS) as run:
        assert len(run) == 25
        assert run.row("x/3.jpg") == 24
        assert run["conv1_1"][24].shape == (5, 4, 3)
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0


def test_looking_before_running_changes_nothing(folder: RemotePath, memory: Any, tmp_path: Path) -> None:
    write_run(folder, SPEC, FAILED, index=False)
    memory.rm_file(f"/bucket/outputs/run/{shard(5)}")
    before = dict(memory.store)
    with preview_folder(folder, SPEC, "resume") as looked:
        assert [missing.number for missing in looked.missing] == [5]
    assert memory.store == before
    assert not (tmp_path / "scratch").exists()


def test_two_runs_at_one_address_are_refused_wherever_they_are_made(tmp_path: Path) -> None:
    here, there = (run_at(ADDRESS, tmp_path / name) for name in ("here", "there"))
    with open_folder(here, SPEC, "resume"):
        for again in (here, there):
            with pytest.raises(LockedError) as caught:
                open_folder(again, SPEC, "resume")
            assert str(caught.value).startswith(f"{ADDRESS}: another run writes this folder, got a lock held by ")
        assert "sign of life 0 s ago" in str(caught.value)
        with pytest.raises(LockedError, match="another run writes this folder"):
            preview_folder(there, SPEC, "resume")
    open_folder(there, SPEC, "resume").close()
    assert names_at(ADDRESS) == []


@pytest.mark.parametrize(
    ("holder", "is_held"),
    [
        ({}, True),
        ({"time": -1000.0}, False),
        ({"time": -10000.0}, False),
        ({"pid": 2**22 + 1, "own": True}, False),
        ({"pid": 2**22 + 1}, True),
    ],
)
def test_a_lock_whose_holder_has_died_is_taken_over(
    holder: dict[str, Any], is_held: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hold, "RENEWED_SECONDS", 0.01)
    said = hold._me() if holder.get("own") else {"host": "elsewhere", "machine": "1", "pid": 1}
    said |= {"token": "x", "time": time.time() + holder.get("time", 0.0), "pid": holder.get("pid", said["pid"])}
    put_files(ADDRESS, {".lock": json.dumps(said).encode()})
    folder = run_at(ADDRESS, tmp_path / "scratch")
    if is_held:
        with pytest.raises(LockedError, match=r"got a lock held by process \d+ on elsewhere"):
            open_folder(folder, SPEC, "resume")
    else:
        open_folder(folder, SPEC, "resume").close()
        assert names_at(ADDRESS) == []


@pytest.mark.parametrize("name", ["host", "machine", "boot", "pids"])
def test_a_process_of_another_container_is_not_looked_for_here(name: str) -> None:
    gone = hold._me() | {"pid": 2**22 + 1, "time": time.time()}
    address = Address(f"{ADDRESS}/.lock")
    put_files(ADDRESS, {".lock": json.dumps(gone).encode()})
    assert hold._judge(address)[0] == ""
    put_files(ADDRESS, {".lock": json.dumps(gone | {name: "another"}).encode()})
    assert hold._judge(address)[0].startswith(f"process {2**22 + 1} on ")
    put_files(ADDRESS, {".lock": json.dumps({key: value for key, value in gone.items() if key != name}).encode()})
    # Elsewhere than on Linux nobody has the latter two.
    assert bool(hold._judge(address)[0]) is (name in gone)


DEAD = {"host": "elsewhere", "machine": "1", "pid": 1, "token": "dead", "time": 0.0}


def put_lock(**said: Any) -> None:
    put_files(ADDRESS, {".lock": json.dumps(DEAD | said).encode()})


def take(lost: Any = None) -> hold.Hold:
    return hold.Hold(Address(f"{ADDRESS}/.lock"), lost or (lambda error: None))


def test_a_dead_lock_that_somebody_else_takes_over_meanwhile_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find it dead; the other has it before this process removes anything."""
    put_lock()
    judge, others = hold._judge, list[hold.Hold]()

    def judge_slowly(address: Address) -> Any:
        found = judge(address)
        if not others:
            monkeypatch.setattr(hold, "_judge", judge)
            others.append(take())
        return found

    monkeypatch.setattr(hold, "RENEWED_SECONDS", 0.5)
    monkeypatch.setattr(hold, "_judge", judge_slowly)
    mine = take()
    assert (mine.is_taken, others[0].is_taken) == (False, True)
    assert mine.holder.startswith(f"process {os.getpid()} on ")
    others[0].release()
    assert names_at(ADDRESS) == []


def test_a_lock_that_somebody_removes_for_the_dead_one_is_not_held_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read it for the last time; this process removes it and makes its own, which the other removes."""
    put_lock()
    made, removed, results = threading.Event(), threading.Event(), list[hold.Hold]()
    remove = hold.remove

    def remove_slowly(addresses: Any) -> None:
        if threading.current_thread() is other:
            removed.set()
            assert made.wait(10)
        else:
            assert removed.wait(10)
        remove(addresses)

    def create(data: bytes, address: Address) -> bool:
        is_made = objects.create(data, address)
        if is_made:
            made.set()
        return is_made

    other = threading.Thread(target=lambda: results.append(take()))
    monkeypatch.setattr(hold, "RENEWED_SECONDS", 3.0)
    monkeypatch.setattr(hold, "remove", remove_slowly)
    monkeypatch.setattr(hold, "create", create)
    other.start()
    mine = take()
    other.join()
    assert (mine.is_taken, results[0].is_taken) == (False, True)
    assert mine.holder == "a process that has taken it just now"
    monkeypatch.setattr(hold, "remove", remove)
    results[0].release()
    assert names_at(ADDRESS) == []


def test_a_lock_whose_making_was_answered_late_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # The request is made again, and finds what the first has made.
    monkeypatch.setattr(hold, "create", lambda data, address: objects.create(data, address) and objects.create(data, address))
    mine = take()
    assert mine.is_taken
    mine.release()
    assert names_at(ADDRESS) == []


def test_a_lock_that_is_renewed_while_somebody_looks_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "RENEWED_SECONDS", 0.02)
    old = {"host": "elsewhere", "machine": "1", "pid": 1, "token": "x", "time": time.time() - 1000}
    put_files(ADDRESS, {".lock": json.dumps(old).encode()})
    new = json.dumps({**old, "time": time.time() - 999}).encode()
    timer = threading.Timer(0.01, put_files, (ADDRESS, {".lock": new}))
    timer.start()
    assert hold._judge(Address(f"{ADDRESS}/.lock"))[0].startswith("process 1 on elsewhere")
    timer.join()


def test_a_run_whose_lock_was_taken_over_stops(folder: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "RENEWED_SECONDS", 0.01)
    with open_folder(folder, SPEC, "resume") as run_folder:
        run_folder.make_room()
        put_files(ADDRESS, {".lock": b'{"token": "other", "host": "elsewhere", "pid": 5}'})
        time.sleep(0.1)
        writer = Writer(folder, run_folder.spec, run_folder.missing, workers=1)
        with pytest.raises(LockedError, match=r"another run has taken this folder over, got a lock of process 5 on elsewhere"):
            put_rows(writer, range(22), make_values(SPEC), make_statuses(SPEC))
        writer.abort()
    assert ".lock" in names_at(ADDRESS)


def test_parts_of_a_run_at_one_address_have_scratch_and_digests_of_their_own(tmp_path: Path) -> None:
    from pipeline.records import Share

    values = make_values(SPEC)
    for number in (1, 2):
        share = Share(number, 2)
        folder = run_at(ADDRESS, tmp_path / f"scratch{number}")
        with open_folder(folder, SPEC, "resume", share) as run_folder:
            run_folder.make_room()
            writer = Writer(folder, SPEC, run_folder.missing, workers=1, digests=run_folder.digests())
            rows = [row for spec in run_folder.missing for row in range(spec.first, spec.stop)]
            put_rows(writer, rows, values, make_statuses(SPEC, FAILED))
            writer.close()
            with run_folder.alone():
                assert bool(run_folder.lacking()) == (number == 1)
                if number == 2:
                    run_folder.gather_digests()
                    build_index(folder, SPEC)
                    remote.settle(folder)
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0
    assert not [name for name in names_at(ADDRESS) if "lock" in name]


def test_rows_columns_and_statistics_are_read_where_they_are(folder: RemotePath, tmp_path: Path) -> None:
    made = write_run(folder, SPEC, FAILED)
    write_run(tmp_path / "local", SPEC, FAILED)
    with open_run(ADDRESS) as run, open_run(tmp_path / "local") as local:
        assert (run.layers, len(run)) == (local.layers, 22)
        for layer in run.layers:
            np.testing.assert_array_equal(run[layer][:], local[layer][:])
            assert run.statistics[layer].mean == local.statistics[layer].mean
        np.testing.assert_array_equal(run["relu4_1"][17], made["relu4_1"][17])
        for column in local.images:
            assert run.images[column].tolist() == local.images[column].tolist()
        some = [batch[0] for batch in run.batches("conv1_1", 4, shuffle=True, seed=3)]
        again = [batch[0] for batch in local.batches("conv1_1", 4, shuffle=True, seed=3)]
        for one, other in zip(some, again, strict=True):
            np.testing.assert_array_equal(one, other)
        copy = pickle.loads(pickle.dumps(run))
        np.testing.assert_array_equal(copy["conv1_1"][5], local["conv1_1"][5])
    for path in (f"{ADDRESS}/features.h5", f"{ADDRESS}/{shard(1)}"):
        with open_run(path) as run:
            np.testing.assert_array_equal(
                run["relu4_1"][-1], made["relu4_1"][len(run) - 1 + (4 if path.endswith(shard(1)) else 0)]
            )


def test_native_size_is_read_where_it_is(folder: RemotePath) -> None:
    spec = make_spec(rows=6, shapes={"relu1_1": None}, identity={"data.size": "native"})
    values = make_values(spec, native={row: (5 + row, 7) for row in range(6)})
    write_run(folder, spec, [2], values)
    with open_run(ADDRESS) as run:
        np.testing.assert_array_equal(run["relu1_1"][5], values["relu1_1"][5])
        assert np.isnan(run["relu1_1"][2]).all()


@pytest.mark.slow
def test_a_chunk_that_was_damaged_at_the_address_is_named(folder: RemotePath, memory: Any) -> None:
    write_run(folder, SPEC, FAILED)
    with open_run(ADDRESS) as run:
        table = run._shards.open(1).chunk_table("relu4_1")
        assert table is not None
        place = int(table.positions[2]) + 9
    data = bytearray(memory.cat_file(f"/bucket/outputs/run/{shard(1)}"))
    data[place] ^= 255
    memory.pipe_file(f"/bucket/outputs/run/{shard(1)}", bytes(data))
    with open_run(ADDRESS) as run, pytest.raises(StoreError, match=rf"^{ADDRESS}/{shard(1)}: layer relu4_1, row 6 .* is damaged"):
        run["relu4_1"][6]
    verdict = verify_folder(open_run(ADDRESS).path.parent, 2)
    assert verdict.count == 1
    assert verdict.findings[shard(1)][0].line.startswith(f"{ADDRESS}/{shard(1)}: layer relu4_1, row 6 ")


def test_a_storage_that_refuses_while_rows_are_read_is_not_called_damage(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(folder, SPEC, FAILED)

    def refusing(address: Address, *rest: Any, **how: Any) -> bytes:
        raise StorageError(5, "it does not answer as it should", str(address))

    with open_run(ADDRESS) as run:
        monkeypatch.setattr("pipeline.storage.range_file.read", refusing)
        with pytest.raises(StoreError, match=rf"^{ADDRESS}/{shard(3)}: the storage refuses, got it does not answer"):
            run["relu4_1"][13]


def test_what_is_no_run_at_an_address_is_said_so(folder: RemotePath) -> None:
    with pytest.raises(StoreError, match=r"^memory://bucket/nothing: there is no such run"):
        open_run("memory://bucket/nothing")
    put_files("memory://bucket/other", {"a.txt": b"x"})
    with pytest.raises(StoreError, match=r"^memory://bucket/other: not a run folder, got no features\.h5"):
        open_run("memory://bucket/other")
    write_run(folder, SPEC, FAILED, index=False)
    with pytest.raises(StoreError, match=r"the run is not finished, got 6 of 6 shards and no features\.h5"):
        open_run(ADDRESS)


def test_somebody_else_s_files_at_the_address_are_refused(folder: RemotePath) -> None:
    put_files(ADDRESS, {"config.yaml": b"mine"})
    with pytest.raises(StoreError, match=r"not a run folder, got config\.yaml of somebody else"):
        write_run(folder, SPEC)


def test_a_scratch_folder_that_is_somebody_else_s_is_refused(folder: RemotePath, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "scratch").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=rf"^{tmp_path}/scratch: permission is denied"):
        write_run(folder, SPEC)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owner here")
def test_a_folder_for_scratch_that_somebody_else_has_made_or_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = scratch_for(Address(ADDRESS))
    make_private(home)
    assert home.parent.parent == tmp_path
    assert [path.stat().st_mode & 0o777 for path in (home, home.parent)] == [0o700, 0o700]
    for path in (home, home.parent):
        for mode in (0o720, 0o702):
            path.chmod(mode)
            with pytest.raises(PermissionError, match="a folder that others may write") as caught:
                make_private(home)
            assert caught.value.filename == str(path)
        path.chmod(0o700)
    # Of one that the user has named, what lies above may be anybody's.
    named = scratch_for(Address(ADDRESS), tmp_path / "named")
    (tmp_path / "named").mkdir()
    (tmp_path / "named").chmod(0o777)
    make_private(named)
    lstat = Path.lstat

    def lstat_of_another(path: Path) -> Any:
        info = lstat(path)
        another = os.getuid() + 1
        return os.stat_result((*info[:4], another, *info[5:])) if path in (home.parent, tmp_path / "named") else info

    monkeypatch.setattr(Path, "lstat", lstat_of_another)
    make_private(named)
    with pytest.raises(PermissionError, match="somebody else's folder or a link") as caught:
        make_private(home)
    assert caught.value.filename == str(home.parent)


@pytest.mark.slow
def test_what_a_killed_process_left_in_scratch_is_not_taken_for_anything(folder: RemotePath, tmp_path: Path) -> None:
    write_run(tmp_path / "other", make_spec(rows=22, identity={"network.seed": "7"}), index=False)
    (tmp_path / "other").rename(tmp_path / "scratch")
    write_run(folder, SPEC, FAILED)
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0
    assert not (tmp_path / "scratch").exists()
