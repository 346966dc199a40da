"""A run folder at an address: written, gone on with, read; in fsspec's memory, which has neither folders nor atomic names."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline import extract_features, storage
from pipeline.errors import LockedError, StoreError
from pipeline.index import index_run
from pipeline.sharding import Share
from pipeline.storage import RemotePath, StorageError, prepare_scratch, scratch_for
from pipeline.store import lock
from pipeline.store.lock import Lock
from pipeline.store.reader import beside, open_run
from pipeline.store.run_folder import open_folder
from pipeline.store.verification import verify_folder

from .bad_images import picture
from .killed_runs import assert_same_run
from .object_store import clean_memory, copy_here, names_at, put_files
from .stored_runs import make_spec, write_run, write_share
from .test_command import call_here
from .test_index import CONFIG, spec_of

ADDRESS = "memory://bucket/outputs/run"
SPEC = make_spec(rows=22)
FAILED = (3, 8, 9, 10, 11)


memory = pytest.fixture(autouse=True)(clean_memory)


@pytest.fixture
def folder(tmp_path: Path) -> RemotePath:
    return RemotePath(ADDRESS, tmp_path / "scratch")


def shard(number: int) -> str:
    return f"shards/{SPEC.shards()[number].file_name}"


def test_a_run_at_an_address_is_that_of_a_folder_bit_for_bit(folder: RemotePath, tmp_path: Path) -> None:
    write_run(folder, SPEC, FAILED)
    write_run(tmp_path / "local", SPEC, FAILED)
    assert_same_run(copy_here(ADDRESS, tmp_path / "copy"), tmp_path / "local")
    assert not (tmp_path / "scratch").exists()


def test_what_is_there_already_is_not_made_again(folder: RemotePath, memory: Any) -> None:
    write_run(folder, SPEC, FAILED)
    memory.rm_file(f"/bucket/outputs/run/{shard(2)}")
    memory.rm_file("/bucket/outputs/run/features.h5")
    before = dict(memory.store)
    write_run(folder, SPEC, FAILED)
    made = {path for path, file in memory.store.items() if before.get(path) is not file}
    assert made == {f"/bucket/outputs/run/{name}" for name in (shard(2), "features.h5", "SHA256SUMS")}


def test_an_upload_that_fails_stops_the_run_and_keeps_what_has_arrived(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = RemotePath.upload

    def refusing(self: RemotePath, local: Path) -> None:
        if self.name == Path(shard(3)).name:
            raise StorageError(5, "it does not answer as it should (HTTP 503)", str(self))
        upload(self, local)

    monkeypatch.setattr(RemotePath, "upload", refusing)
    with pytest.raises(StoreError, match=rf"^{ADDRESS}/{shard(3)}: the storage refuses, got it does not answer .*HTTP 503"):
        write_run(folder, SPEC, FAILED)
    there = names_at(ADDRESS)
    assert shard(0) in there
    assert not {shard(3), "features.h5", ".lock"}.intersection(there)
    monkeypatch.undo()
    write_run(folder, SPEC, FAILED)
    assert len(open_run(ADDRESS)) == 22


def test_results_at_the_address_are_refused_by_name_or_replaced_as_asked(folder: RemotePath) -> None:
    write_run(folder, SPEC, FAILED)
    with pytest.raises(StoreError, match=r"^memory://bucket/outputs/run: the folder holds another run, got .*seed"):
        write_run(folder, make_spec(rows=22, identity={"network.seed": "7"}))
    put_files(ADDRESS, {"notes.txt": b"somebody's"})
    write_run(folder, make_spec(rows=5, images_per_shard=5), existing="replace")
    assert names_at(ADDRESS) == ["SHA256SUMS", "features.h5", "manifest.jsonl.gz", "notes.txt", "shards/shard-00000-of-00001.h5"]
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0


def test_images_that_came_later_extend_a_run_at_an_address(folder: RemotePath) -> None:
    keys = [f"folder{i % 3}/image é{i}.jpg" for i in range(22)]
    write_run(folder, SPEC, FAILED)
    write_run(folder, make_spec(rows=25, keys=[*keys, "x/1.jpg", "x/2.jpg", "x/3.jpg"]), existing="extend")
    with open_run(ADDRESS) as run:
        assert (len(run), run.row("x/3.jpg"), run["conv1_1"][24].shape) == (25, 24, (5, 4, 3))
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0


def test_looking_before_running_changes_nothing(folder: RemotePath, memory: Any, tmp_path: Path) -> None:
    write_run(folder, SPEC, FAILED, index=False)
    memory.rm_file(f"/bucket/outputs/run/{shard(5)}")
    before = dict(memory.store)
    with open_folder(folder, SPEC, "resume", preview=True) as looked:
        assert [missing.number for missing in looked.missing] == [5]
    assert memory.store == before
    assert not (tmp_path / "scratch").exists()


# -- Locks


def test_two_runs_at_one_address_are_refused_wherever_they_are_made(tmp_path: Path) -> None:
    here, there = (RemotePath(ADDRESS, tmp_path / name) for name in ("here", "there"))
    with open_folder(here, SPEC, "resume"):
        for again in (here, there):
            with pytest.raises(LockedError, match=rf"^{ADDRESS}: another run writes this folder, got a lock held by "):
                open_folder(again, SPEC, "resume")
        with pytest.raises(LockedError, match="another run writes this folder"):
            open_folder(there, SPEC, "resume", preview=True)
    open_folder(there, SPEC, "resume").close()
    assert names_at(ADDRESS) == []


def test_a_lock_of_a_process_that_was_killed_is_named_with_how_to_remove_it(folder: RemotePath) -> None:
    killed = Lock(folder / ".lock")
    assert killed.take() == ""
    with pytest.raises(LockedError) as caught:
        open_folder(folder, SPEC, "resume")
    assert f"got a lock held by process {os.getpid()} on " in str(caught.value)
    assert f"removing the object {ADDRESS}/.lock" in str(caught.value)
    put_locks(".lock-1-of-2")
    killed.release()
    with pytest.raises(LockedError, match=rf"got part 1/2 held by process 1 on elsewhere .*the object {ADDRESS}/\.lock-1-of-2"):
        open_folder(folder, SPEC, "resume", Share(1, 2))
    (folder / ".lock-1-of-2").unlink()
    open_folder(folder, SPEC, "resume").close()
    assert names_at(ADDRESS) == []


def put_locks(*names: str) -> None:
    """Has a process of another machine hold locks."""
    put_files(ADDRESS, dict.fromkeys(names, b"process 1 on elsewhere"))


def test_a_part_waits_for_one_that_settles_however_long_that_takes(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "NOBODY_SECONDS", 0.4)
    put_locks(".lock")
    # The other part takes its own lock once this one has looked.
    taken = threading.Timer(0.2, put_locks, [".lock-1-of-2"])
    left = threading.Timer(1.2, lambda: memory.rm([f"/bucket/outputs/run/{name}" for name in (".lock", ".lock-1-of-2")]))
    began = time.monotonic()
    taken.start()
    left.start()
    open_folder(RemotePath(ADDRESS, tmp_path / "scratch"), SPEC, "resume", Share(2, 2)).close()
    assert time.monotonic() - began >= 1.1
    assert not [name for name in names_at(ADDRESS) if "lock" in name]


def test_parts_of_a_run_at_one_address_have_scratch_and_digests_of_their_own(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = RemotePath(ADDRESS, tmp_path / f"scratch{number}")
        assert write_share(folder, SPEC, Share(number, 2), FAILED) == (number == 2)
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0
    assert not [name for name in names_at(ADDRESS) if "lock" in name]


def test_a_run_at_an_address_is_ended_by_hand(tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_run(RemotePath(ADDRESS, tmp_path / "scratch"), spec_of(), failed=[3, 8], index=False)
    for _ in range(2):
        report = index_run(RemotePath(ADDRESS))
        assert (report.rows, report.failed, report.index) == (30, 2, f"{ADDRESS}/features.h5")
        assert {"features.h5", "report.json", "report.html", "run.log"} <= {*names_at(ADDRESS)}
        assert memory.cat_file("/bucket/outputs/run/config.yaml").decode() == CONFIG
        verdict = verify_folder(open_run(ADDRESS).path.parent, 2)
        assert (verdict.count, verdict.rows) == (0, 30), verdict.findings
        assert ".lock" not in names_at(ADDRESS)
        # By somebody else, whom this process would not notice if it did not look anew.
        memory.rm_file("/bucket/outputs/run/features.h5")
    assert memory.cat_file("/bucket/outputs/run/run.log").count(b"shards: all") == 2


# -- Reading


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
        some, again = (opened.batches("conv1_1", 4, shuffle=True, seed=3) for opened in (run, local))
        for (one, _), (other, _) in zip(some, again, strict=True):
            np.testing.assert_array_equal(one, other)
        copy = pickle.loads(pickle.dumps(run))
        np.testing.assert_array_equal(copy["conv1_1"][5], local["conv1_1"][5])
    with open_run(f"{ADDRESS}/{shard(1)}") as run:
        np.testing.assert_array_equal(run["relu4_1"][-1], made["relu4_1"][7])
    assert beside(RemotePath("memory://bucket/copy.h5")) == (Path(), "copy")


def test_a_chunk_that_was_damaged_at_the_address_is_named(folder: RemotePath, memory: Any) -> None:
    write_run(folder, SPEC, FAILED)
    data = bytearray(memory.cat_file(f"/bucket/outputs/run/{shard(1)}"))
    with h5py.File(io.BytesIO(data)) as file:
        place = file["features/relu4_1"].id.get_chunk_info(2).byte_offset + 9
    data[place] ^= 255
    memory.pipe_file(f"/bucket/outputs/run/{shard(1)}", bytes(data))
    with open_run(ADDRESS) as run, pytest.raises(StoreError, match=rf"^{ADDRESS}/{shard(1)}: layer relu4_1, row 6 is damaged"):
        run["relu4_1"][6]
    verdict = verify_folder(open_run(ADDRESS).path.parent, 2)
    assert verdict.count == 1
    assert str(verdict.findings[shard(1)][0]).startswith(f"{ADDRESS}/{shard(1)}: layer relu4_1, row 6 ")


def test_a_storage_that_refuses_is_never_called_damage(folder: RemotePath, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(folder, SPEC, FAILED)
    monkeypatch.setattr(storage, "PAUSES_SECONDS", ())
    before, cat_file = dict(memory.store), type(memory).cat_file
    left = 0

    def refusing(self: Any, *what: Any, **how: Any) -> bytes:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("it is down")
        return bytes(cat_file(self, *what, **how))

    monkeypatch.setattr(type(memory), "cat_file", refusing)
    for left_at_first in range(0, 8, 2):
        left = left_at_first
        with pytest.raises(StoreError, match="the storage refuses, got it does not answer"), open_folder(folder, SPEC, "resume"):
            pass
        # Some are read once more before they are looked at, and no request fails then.
        assert {path: file for path, file in memory.store.items() if not path.endswith(".lock")} == before
    left = 10**9
    with open_run(ADDRESS) as run:
        left = 0
        with pytest.raises(StoreError, match=rf"^{ADDRESS}/{shard(3)}: the storage refuses, got it does not answer"):
            run["relu4_1"][13]


def test_every_command_takes_a_run_at_an_address(tmp_path: Path, thin_weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "images").mkdir()
    for number in range(3):
        picture(number).resize((80 - 9 * number, 60)).save(tmp_path / f"images/{number}.jpg")
    (tmp_path / "images/broken.jpg").write_bytes(b"no image")
    options: dict[str, Any] = {"weights": "random", "size": 36, "images_per_shard": 2, "name": "run", "quiet": True}
    for where in ("memory://bucket/outputs", str(tmp_path / "local")):
        extract_features(tmp_path / "images", ["relu1_1", "relu2_1"], output_dir=where, **options)

    def said(module: str, *arguments: str) -> str:
        ended = call_here(f"run={ADDRESS}", *arguments, cwd=tmp_path, module=f"pipeline.{module}")
        assert "Traceback" not in ended.stderr
        # Errors are one line.
        assert ended.returncode == 0 or ended.stderr.count("\n") == 1, ended.stderr
        return ended.stdout + ended.stderr

    assert said("export") == "written: run-npy (3 rows of relu1_1, relu2_1)\n"
    with open_run(tmp_path / "local/run") as run:
        assert np.load(tmp_path / "run-npy/relu2_1.npy").tobytes() == run["relu2_1"][run.images["status"] == "ok"].tobytes()
    assert "file: not a valid value, got 'memory://bucket/x'. Expected a path on this machine" in said(
        "export", "file=memory://bucket/x"
    )
    # Here, and beside the run; of its index too.
    for arguments, place in (
        ([], "outputs/run-reduced"),
        (["output.dir=memory://bucket/outputs"], f"{ADDRESS}-reduced"),
        ([f"run={ADDRESS}/features.h5", "name=again"], "outputs/again"),
        (["layers=[relu1_1:avg:pca]", "reduction.pca.n_components=2", "name=fitted"], "outputs/fitted"),
    ):
        assert f"results    {place}/features.h5" in said("reduce", "reduce=[avg]", *arguments)
    assert_same_run(copy_here(f"{ADDRESS}-reduced", tmp_path / "copy"), tmp_path / "outputs/run-reduced", but=["@config"])
    assert "name: that of the run itself, got 'run'" in said(
        "reduce", "reduce=[avg]", "output.dir=memory://bucket/outputs", "name=run"
    )
    assert "there is no such run" in said("reduce", "reduce=[avg]", f"run={ADDRESS}-none")
    assert "whole and unchanged" in said("verify", f"run={ADDRESS}-reduced")
    assert "name=run-reduced" in said("show", f"run={ADDRESS}-reduced")
    assert said("plot").startswith("written: ")
    assert [*tmp_path.glob("run-*.png")]


# -- The scratch folder


def test_a_folder_for_scratch_that_somebody_else_has_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scratch = scratch_for(ADDRESS)
    assert scratch.parent == tmp_path
    (tmp_path / "elsewhere").mkdir()
    scratch.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="cannot be written, got EEXIST"):
        write_run(RemotePath(ADDRESS), SPEC)
    scratch.unlink()
    scratch.mkdir()
    prepare_scratch(RemotePath(ADDRESS))
    assert scratch.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_process_left_in_scratch_is_not_taken_for_anything(folder: RemotePath, tmp_path: Path) -> None:
    write_run(tmp_path / "scratch", make_spec(rows=22, identity={"network.seed": "7"}), index=False)
    write_run(folder, SPEC, FAILED)
    assert verify_folder(open_run(ADDRESS).path.parent, 2).count == 0
    assert not (tmp_path / "scratch").exists()
