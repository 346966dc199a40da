"""Whether a run is whole and unchanged: what is found where, and that nothing is found where nothing is wrong."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from pipeline import machine
from pipeline.errors import StoreError
from pipeline.store import codec, verification
from pipeline.store.damage import UnsureError
from pipeline.store.digests import Digests
from pipeline.store.disk import file_digest
from pipeline.store.verification import VerifyResult, check_in_child, repair, verify_folder

from .damage import chunk_place, flip, write_companions
from .stored_runs import make_spec, write_run
from .test_store_damage import change
from .test_store_folder import files_in
from .test_store_reader import copy

__all__ = ["copy"]  # a fixture

SHARDS = [f"shards/shard-0000{n}-of-00003.h5" for n in range(3)]


def verify(folder: Path) -> VerifyResult:
    return verify_folder(folder, workers=1)


def lines(result: VerifyResult) -> dict[str, list[str]]:
    """Gives file -> what was said of it, without the folder and what to do."""
    return {
        name: [str(found).removeprefix(f"{result.folder}/").split(". Expected ")[0] for found in findings]
        for name, findings in result.findings.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "imgs-vgg19"
    write_run(path, make_spec(metadata={"author": tuple("abcdefghij")}), failed=[3])
    write_companions(path)
    return path


@pytest.mark.parametrize(
    "options",
    [{"dtype": "float16", "compression": "none"}, {"shapes": {"a": None, "b": None}, "rows": 6}],
    ids=["float16, not compressed", "native size"],
)
def test_a_whole_run_is_whole_wherever_it_lies(tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(**options)
    write_run(tmp_path / "run", spec, failed=[1])
    write_companions(tmp_path / "run")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    monkeypatch.chdir(tmp_path)
    result = verify_folder(Path("moved"), workers=2)
    assert lines(result) == {}
    assert (result.count, result.rows, result.files) == (0, len(spec.manifest), len(spec.shards()) + 4)
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*")} == before


def middle_of_row(path: Path) -> int:
    return chunk_place(path, "relu4_1", 2)


def unused_place(path: Path) -> int:
    """Gives a byte that HDF5 has kept for more links of the root's group than there are."""
    return path.read_bytes().index(b"SNOD") + 8 + 7 * 40 + 5


def checksum_place(path: Path) -> int:
    with h5py.File(path) as file:
        return int(file["checksums/relu4_1"].id.get_offset())


FLIPS: dict[str, tuple[str, Callable[[Path], int], str]] = {
    "a chunk": (SHARDS[1], middle_of_row, "layer relu4_1, row 6 is damaged, got "),
    "a table": (
        SHARDS[0],
        lambda path: path.read_bytes().index("image é0.jpg".encode()),
        "column 'key' of /images is damaged, got checksum",
    ),
    "a checksum of a row": (SHARDS[2], checksum_place, "layer relu4_1, row 8 is damaged, got checksum"),
    "the superblock": (SHARDS[1], lambda path: 3, "the HDF5 file is damaged, got "),
    "unused space": (SHARDS[1], unused_place, "the file is damaged, got SHA-256 "),
    "a source of the index": (
        "features.h5",
        lambda path: path.read_bytes().index(SHARDS[1].encode()) + len(SHARDS[1]) - 4,
        " is damaged, got ",
    ),
    "config.yaml": ("config.yaml", lambda path: 9, "the file is damaged, got SHA-256 "),
    "a line's end": ("SHA256SUMS", lambda path: path.read_bytes().index(b"\n"), "there is no line for "),
}


@pytest.mark.parametrize("case", FLIPS)
def test_a_byte_that_has_changed_is_named_by_what_lies_there(copy: Path, case: str, request: pytest.FixtureRequest) -> None:
    if case not in ("the superblock", "a source of the index"):
        request.getfixturevalue("here")
    name, find, words = FLIPS[case]
    flip(copy / name, find(copy / name))
    found = lines(verify(copy))
    assert words in "; ".join(found[name]), found
    assert set(found) == {name}


@pytest.mark.usefixtures("here")
def test_a_shard_whose_line_was_written_anew_is_held_to_its_content(copy: Path) -> None:
    def edit(file: h5py.File) -> None:
        del file["features/conv1_1"], file["images/label"]
        file["features/relu4_1"][1, 0, 0, 0] = 7

    change(copy / SHARDS[1], edit)
    change(copy / SHARDS[2], lambda file: file.attrs.update({"first_row": 0}))
    digests = Digests(copy)
    for name in SHARDS[1:]:
        digests.add(name, file_digest(copy / name))
    found = lines(verify(copy))
    assert set(found) == {*SHARDS[1:]}
    column, layer, row = found[SHARDS[1]]
    assert "column 'label' of /images is damaged" in column
    assert "layer conv1_1 is damaged, got " in layer
    assert "layer relu4_1, row 5 is damaged" in row
    assert "not the shard that its name says, got rows 0 to" in found[SHARDS[2]][0]


@pytest.mark.usefixtures("here")
def test_what_is_missing_is_named_and_the_rest_checked_and_an_index_over_it_is_removed_by_repair(copy: Path) -> None:
    (copy / SHARDS[2]).unlink()
    missing = {SHARDS[2]: [f"{SHARDS[2]}: the file is missing, got no such file"]}
    result = verify(copy)
    assert lines(result) == missing
    assert set(repair(result)) == {"features.h5", f"SHA256SUMS: {SHARDS[2]}", "SHA256SUMS: features.h5"}
    flip(copy / SHARDS[1], middle_of_row(copy / SHARDS[1]))
    found = lines(verify(copy))
    (damage,) = found.pop(SHARDS[1])
    assert "layer relu4_1, row 6" in damage
    unfinished = f"{copy}: the run is not finished, got 2 of 3 shards and features.h5 over 0 of 10 rows"
    assert found == {**missing, "features.h5": [unfinished]}


@pytest.mark.usefixtures("here")
def test_files_without_lines_and_lines_without_files_are_named(copy: Path) -> None:
    (copy / "report.json").unlink()
    sums = (copy / "SHA256SUMS").read_text().splitlines(keepends=True)
    (copy / "SHA256SUMS").write_text("".join(sums[1:]) + "4" * 64 + "  foreign.txt\n" + "5" * 64 + "  shards/sharf\n")
    (copy / "foreign.txt").write_text("of somebody else, who keeps its digest here")
    assert lines(verify(copy)) == {
        **{name: [f"{name}: the file is missing, got no such file"] for name in ("report.json", "shards/sharf")},
        "SHA256SUMS": ["SHA256SUMS: there is no line for manifest.jsonl.gz, got a file without a digest"],
    }
    with pytest.raises(StoreError, match=r"not a run, got no features.h5"):
        verify(copy / "shards")


@pytest.mark.usefixtures("here")
def test_repair_leaves_what_is_not_of_the_run(copy: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "other", make_spec(identity={"seed": "2"}))
    shutil.copy(tmp_path / "other" / SHARDS[1], copy / SHARDS[1])
    shutil.copy(copy / SHARDS[0], copy / SHARDS[2])
    shutil.copy(copy / SHARDS[0], copy / "shards/shard-00003-of-00004.h5")
    result = verify(copy)
    found = lines(result)
    assert "a file of another run, got run digest" in found[SHARDS[1]][0]
    assert found[SHARDS[2]] == [f"{SHARDS[2]}: not the shard that its name says, got rows 0 to 3"]
    assert "not in this run's plan of 3 shards, got an extra file" in found["shards/shard-00003-of-00004.h5"][0]
    assert not {SHARDS[1], SHARDS[2], "shards/shard-00003-of-00004.h5"} & set(result.damaged)
    before = files_in(copy)
    repair(result)
    assert before - files_in(copy) == set()


@pytest.mark.usefixtures("here")
def test_repair_keeps_what_may_be_whole(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without memory cannot read a row; that is no reason to remove it, unless its file has changed."""

    def exhausted(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(codec, "decode", exhausted)
    flip(copy / SHARDS[1], middle_of_row(copy / SHARDS[1]))
    result = verify(copy)
    assert set(result.findings) == {*SHARDS}
    assert "layer conv1_1, rows 0 to 3 cannot be read, got Cannot allocate memory (ENOMEM)" in lines(result)[SHARDS[0]][0]
    assert result.damaged == [SHARDS[1], "features.h5"]
    assert result.unread == [SHARDS[0], SHARDS[2]]
    assert repair(result) == []


def hang(path: Path) -> None:
    time.sleep(60)


def crash(path: Path) -> None:
    os.kill(os.getpid(), 11)


@pytest.mark.parametrize(("check", "code"), [(hang, 1), (crash, -11)])
def test_a_file_on_which_hdf5_hangs_or_crashes_is_a_finding(
    folder: Path, check: Callable[[Path], None], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "TIMEOUT_SECONDS", 1)
    monkeypatch.setattr(verification, "check_hdf5", check)
    began = time.monotonic()
    (finding,) = check_in_child(folder / SHARDS[0]).findings
    assert time.monotonic() - began < 30
    assert str(finding).startswith(f"{folder / SHARDS[0]}: the HDF5 file is damaged, got a crash, or no answer for 1 s")
    assert f"exit code {code}. Expected the bytes" in str(finding)
    assert isinstance(finding, UnsureError)
