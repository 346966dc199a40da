"""Extended runs and what keeps them whole: their digests, what verify says of them, and repair."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from pipeline.store.verification import VerifyResult, repair, verify_folder

from .damage import accept, chunk_place, flip
from .test_store_extend import begun, everything, run, spec_of, whole
from .test_store_verification import lines

__all__ = ["begun", "whole"]  # fixtures

OLD = [f"shards/shard-0000{n}-of-00002.h5" for n in range(2)]
NEW = [f"shards/shard-part001-0000{n}-of-00003.h5" for n in range(3)]
MANIFESTS = ["manifest.jsonl.gz", "manifest-part001.jsonl.gz"]


@pytest.fixture(scope="module")
def stopped(begun: Path) -> Path:
    """Gives a run whose extension was stopped after the first of three shards."""
    path = Path(shutil.copytree(begun, begun.parent / "stopped"))
    run(path, spec_of("abcdefghi"), shards=1)
    return path


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def verify(folder: Path) -> VerifyResult:
    return verify_folder(folder, workers=1)


def damage_row(folder: Path, name: str) -> None:
    flip(folder / name, chunk_place(folder / name, "relu4_1", 0))


def sums(folder: Path) -> list[str]:
    return (folder / "SHA256SUMS").read_text().splitlines()


def sums_are_right(folder: Path) -> None:
    """Holds every line to its file, and every file of the run to its having one."""
    names = {path.relative_to(folder).as_posix() for path in [*folder.rglob("*.h5"), *folder.glob("manifest*")]}
    assert sorted(sums(folder)) == sorted(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in names)


def test_an_extension_keeps_the_lines_adds_its_own_and_replaces_that_of_the_index(tmp_path: Path) -> None:
    run(tmp_path, spec_of("bdf"))
    before = sums(tmp_path)
    assert before[-1].endswith("  features.h5")
    run(tmp_path, spec_of("abcdefghi"), shards=2)
    assert sums(tmp_path)[: len(before)] == before
    sums_are_right(tmp_path)
    run(tmp_path, spec_of("abcdefghi"), "resume")
    assert sums(tmp_path)[: len(before) - 1] == before[:-1]
    assert before[-1] not in sums(tmp_path)
    sums_are_right(tmp_path)
    stays = sums(tmp_path)
    run(tmp_path, spec_of("abcdefghi"), "resume")
    assert sums(tmp_path)[:-1] == stays[:-1]
    run(tmp_path, spec_of("xyz"), "replace")
    assert len(sums(tmp_path)) == 4
    sums_are_right(tmp_path)


def test_of_a_stopped_extension_the_missing_shards_are_named_and_the_rows_before_it_are_whole(
    stopped: Path, tmp_path: Path
) -> None:
    copy = copied(stopped, tmp_path)
    result = verify(copy)
    assert lines(result) == {
        "features.h5": [f"{copy}: the run is not finished, got 3 of 5 shards and features.h5 over the first 3 of 9 rows"],
        **{name: [f"{name}: the shard is missing, got 3 of 5 shards"] for name in NEW[1:]},
    }
    # There is nothing to repair, and the index is good for the rows that it has.
    assert repair(result) == []
    assert (copy / "features.h5").exists()
    damage_row(copy, NEW[0])
    result = verify(copy)
    assert repair(result) == [NEW[0], f"SHA256SUMS: {NEW[0]}"]
    damage_row(copy, OLD[1])
    assert set(repair(verify(copy))) == {OLD[1], "features.h5", f"SHA256SUMS: {OLD[1]}", "SHA256SUMS: features.h5"}
    run(copy, spec_of("abcdefghi"), "resume")
    assert lines(verify(copy)) == {}
    sums_are_right(copy)


@pytest.mark.parametrize(("name", "existing"), [(OLD[0], "resume"), (NEW[1], "extend")])
def test_repair_removes_the_damaged_shard_of_any_part_and_the_same_bits_are_made_again(
    whole: Path, tmp_path: Path, name: str, existing: str
) -> None:
    copy = copied(whole, tmp_path)
    damage_row(copy, name)
    result = verify(copy)
    assert set(lines(result)) == {name}
    assert set(repair(result)) == {name, "features.h5", f"SHA256SUMS: {name}", "SHA256SUMS: features.h5"}
    folder = run(copy, spec_of("abcdefghi"), existing)
    assert [f"shards/{shard.file_name}" for shard in folder.missing] == [name]
    assert lines(verify(copy)) == {}
    assert everything(copy) == everything(whole)
    sums_are_right(copy)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_damaged_or_lost_list_is_named_and_written_anew(whole: Path, tmp_path: Path, name: str) -> None:
    copy = copied(whole, tmp_path)
    flip(copy / name, 40)
    result = verify(copy)
    assert lines(result) == {name: [f"{name}: the manifest is damaged, got none that agrees with its own digest"]}
    assert repair(result) == [f"SHA256SUMS: {name}"]
    run(copy, spec_of("abcdefghi"), "resume")
    assert lines(verify(copy)) == {}
    assert (copy / name).read_bytes() == (whole / name).read_bytes()
    # A time in the head of the file: nothing that it lists.
    flip(copy / name, 5)
    assert ": the file is damaged, got SHA-256 " in lines(verify(copy))[name][0]
    (copy / name).unlink()
    assert lines(verify(copy)) == {name: [f"{name}: the manifest is missing, got no such file"]}
    run(copy, spec_of("abcdefghi"), "resume")
    assert everything(copy) == everything(whole)
    sums_are_right(copy)


def test_files_of_another_extension_are_not_of_the_run(whole: Path, tmp_path: Path) -> None:
    copy, other = copied(whole, tmp_path), tmp_path / "other"
    run(other, spec_of("bdf"))
    run(other, spec_of("bdfuvwxyz"))
    shutil.copy(other / NEW[1], copy / NEW[1])
    accept(copy, NEW[1])
    result = verify(copy)
    found = lines(result)
    assert set(found) == {NEW[1]}
    assert found[NEW[1]][0].startswith(f"{NEW[1]}: a file of another run, got run digest ")
    assert result.damaged == []
    # The manifest is the plan: with that of another run all others are foreign, and nothing is removed.
    shutil.copy(other / MANIFESTS[1], copy / MANIFESTS[1])
    accept(copy, MANIFESTS[1])
    result = verify(copy)
    assert set(lines(result)) == {NEW[0], NEW[2], "features.h5"}
    assert result.damaged == []
