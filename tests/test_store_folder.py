"""The run folder: resuming, refusing, replacing, locking."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.sharding import Share
from pipeline.store.reader import open_run
from pipeline.store.run_folder import open_folder

from .stored_runs import make_spec, write_run


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def stored_values(folder: Path) -> dict[str, bytes]:
    run = open_run(folder)
    return {layer: run[layer][:].tobytes() for layer in run.layers}


def test_another_run_is_refused_with_the_differing_options(tmp_path: Path) -> None:
    write_run(tmp_path, make_spec(identity={"data.size": "224", "network": "vgg19", "seed": "1"}))
    before = files_in(tmp_path)
    with pytest.raises(StoreError) as raised:
        open_folder(tmp_path, make_spec(identity={"data.size": "256", "network": "vgg19", "list": "x" * 99}), "resume")
    differing = f"data.size 256 (in the folder 224), list {'x' * 99} (in the folder none), seed none (in the folder 1)"
    assert str(raised.value).startswith(f"{tmp_path}: the folder holds another run, got {differing}. Expected the same options")
    assert files_in(tmp_path) == before
    write_run(tmp_path, make_spec(identity={"data.size": "224", "network": "vgg19", "seed": "1"}), existing="resume")


def test_fail_refuses_results_and_nothing_else(tmp_path: Path) -> None:
    open_folder(tmp_path, make_spec(), "resume").close()
    (tmp_path / "run.log").write_text("begun")
    open_folder(tmp_path, make_spec(), "fail").close()
    write_run(tmp_path, make_spec())
    with pytest.raises(StoreError) as raised:
        open_folder(tmp_path, make_spec(), "fail")
    # A folder that was refused is not left locked.
    open_folder(tmp_path, make_spec(), "resume").close()
    assert str(raised.value).startswith(f"{tmp_path}: the folder holds results, got 4 files, e.g. features.h5. Expected none")


def test_replace_removes_what_this_program_wrote_and_nothing_else(tmp_path: Path) -> None:
    keys = [f"{i}.jpg" for i in range(9)]
    for count in (2, 9):
        write_run(tmp_path, make_spec(count, keys=keys[:count]), existing="extend")
    own = [
        *("config.yaml", "report.json", "report.html", "run.log", "features.h5.partial"),
        *("shards/shard-00007-of-00009.h5.partial", "manifest-part002.jsonl.gz.partial"),
        *("run-2-of-3.log", "report-2-of-3.json", "report-2-of-3.json.partial", "SHA256SUMS-1-of-3.partial"),
    ]
    foreign = [
        *("notes.txt", "other.h5", "manifest-part7.jsonl.gz", "shards/notes.txt", "shards/shard-1.h5"),
        *("shards/shard-00000-of-00003.h5.bak", "shards/shard-part01-00000-of-00001.h5", "shards/shard-part003.h5"),
        *("run-x-of-3.log", "report-2.json", "my SHA256SUMS-1-of-3"),
    ]
    for name in own + foreign:
        (tmp_path / name).write_text("x")
    before = files_in(tmp_path)
    assert "shards/shard-part001-00000-of-00002.h5" in before
    with open_folder(tmp_path, make_spec(3, identity={"seed": "2"}), "replace") as opened:
        assert len(opened.missing) == 1
        # Something may still refuse the run: the device, the size of the disk.
        assert files_in(tmp_path) == before | {".lock"}
        # What is first goes before all else: a reader takes a run with an index for whole.
        assert opened.replaced[0].name == "features.h5"
        opened.prepare()
    assert files_in(tmp_path) == {".lock", "manifest.jsonl.gz", "SHA256SUMS", *foreign}
    write_run(tmp_path, make_spec(3, identity={"seed": "2"}))
    assert len(open_run(tmp_path)) == 3


@pytest.mark.parametrize(
    "name", ["shards/shard-00001-of-00003.h5", "shards/shard-00007-of-00009.h5", "features.h5", "SHA256SUMS.partial", "shards"]
)
def test_a_link_or_a_folder_under_a_name_of_a_run_is_refused(tmp_path: Path, name: str) -> None:
    folder, outside = tmp_path / "run", tmp_path / "outside"
    write_run(folder, make_spec())
    path = folder / name
    path.rename(outside) if path.exists() else outside.write_text("precious")
    path.symlink_to(outside)
    for kind in ("a link", "a folder") if name != "shards" else ("a link",):
        if kind == "a folder":
            path.unlink()
            path.mkdir()
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for existing in ("resume", "extend", "replace", "fail"):
            with pytest.raises(StoreError, match=f"^{path}: not a file of the run, got {kind}"):
                open_folder(folder, make_spec(), existing)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["features.h5", "shards/shard-00001-of-00003.h5"])
def test_a_file_of_another_program_is_not_replaced(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, make_spec())
    (tmp_path / name).unlink()
    with h5py.File(tmp_path / name, "w") as file:
        file["precious"] = 1
    before = (tmp_path / name).read_bytes()
    with pytest.raises(StoreError, match=r"not a file of the run, got one of another program\. Expected"):
        open_folder(tmp_path, make_spec(), "replace")
    with pytest.raises(StoreError, match="not a file that this version of the program writes, got format None"):
        open_folder(tmp_path, make_spec(), "resume")
    assert (tmp_path / name).read_bytes() == before


def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("precious")
    for existing in ("resume", "extend", "replace", "fail"):
        with pytest.raises(StoreError) as raised:
            open_folder(tmp_path, make_spec(), existing)
        assert str(raised.value).startswith(f"{tmp_path}: not a run folder, got config.yaml of somebody else. Expected an empty")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    (tmp_path / "config.yaml").rename(tmp_path / "notes.txt")
    (tmp_path / ".lock").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(StoreError, match=r"\.lock: it cannot be written, got ELOOP"):
        open_folder(tmp_path, make_spec(), "replace")
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_damaged_shards_are_made_again_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = make_spec()
    values = write_run(tmp_path, spec)
    broken = min((tmp_path / "shards").iterdir())
    broken.write_bytes(broken.read_bytes()[:3000])
    with open_folder(tmp_path, spec, "resume") as opened:
        assert {shard.number for shard in opened.finished} == {1, 2}
        opened.prepare()
    assert f"{broken}: removed, since it is damaged" in caplog.messages
    assert not (tmp_path / "features.h5").exists()
    write_run(tmp_path, spec)
    np.testing.assert_array_equal(open_run(tmp_path)["conv1_1"][:], np.stack(values["conv1_1"]))


@pytest.mark.parametrize("share", [None, Share(1, 1)], ids=["alone", "a part"])
def test_a_file_system_without_locks_is_gone_on_with_and_said_once(
    tmp_path: Path, share: Share | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):
        with open_folder(tmp_path, make_spec(), "resume", share) as opened:
            opened.prepare()
            with opened.alone():
                assert len(opened.lacking()) == 3
    said = [message for message in caplog.messages if "no locks" in message]
    assert said == [f"{tmp_path}: this file system has no locks; see to it that no second run writes the folder"]
