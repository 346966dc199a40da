"""``SHA256SUMS``: what is in it, when, and what a kill leaves of it."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.sharding import Share
from pipeline.store.digests import Digests
from pipeline.store.disk import file_digest
from pipeline.store.run_folder import open_folder
from pipeline.store.writer import Writer

from .damage import chunk_place, flip
from .stored_runs import make_spec, make_statuses, make_values, put_rows, write_run
from .test_store_folder import stored_values

NAMES = [*(f"shards/shard-0000{n}-of-00003.h5" for n in range(3)), "features.h5", "manifest.jsonl.gz"]


def test_every_finished_file_has_a_line_that_coreutils_can_check(tmp_path: Path) -> None:
    write_run(tmp_path, make_spec())
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    expected = [f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}" for name in NAMES]
    # Shards are finished in any order, after the manifest.
    assert [*sorted(lines[1:4], key=lambda line: line[64:]), *lines[4:], lines[0]] == expected
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("sha256sum of GNU coreutils is not installed")
    checked = subprocess.run([program, "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sorted(checked.stdout.splitlines()) == sorted(f"{name}: OK" for name in NAMES)


@pytest.mark.parametrize(
    "line", [b"1" * 30, b"0" * 64 + b" report.json", b"\xff" * 64 + b"  report.json", b"0" * 64 + b"  re" + b"1" * 64 + b"  x"]
)
def test_lines_that_are_none_say_nothing_and_go_with_the_next_change(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "SHA256SUMS").write_bytes(line + b"\n" + b"0" * 64 + b"  features.h5\n")
    digests = Digests(tmp_path)
    assert digests.by_name == {"features.h5": "0" * 64}
    digests.add("config.yaml", "2" * 64)
    assert (tmp_path / "SHA256SUMS").read_text() == f"{'0' * 64}  features.h5\n{'2' * 64}  config.yaml\n"


@pytest.mark.parametrize("damage", [False, True])
def test_a_shard_that_a_kill_left_without_a_line_is_checked_and_gets_it(
    tmp_path: Path, damage: bool, caplog: pytest.LogCaptureFixture
) -> None:
    spec, path = make_spec(rows=10), tmp_path / NAMES[1]
    write_run(tmp_path, spec, index=False)
    Digests(tmp_path).drop([NAMES[1]])
    if damage:
        flip(path, chunk_place(path, "relu4_1", 2))
    with open_folder(tmp_path, spec, "resume") as opened:
        assert [shard.number for shard in opened.missing] == [1] * damage
    assert path.exists() != damage
    assert any(line.startswith(f"{path}: removed, since it is damaged: {path}: ") for line in caplog.messages) == damage
    known = [name for name in NAMES if (tmp_path / name).exists()]
    assert Digests(tmp_path).by_name == {name: file_digest(tmp_path / name) for name in known}
    write_run(tmp_path, spec)
    assert all(Digests(tmp_path).agrees(name) for name in NAMES)


def test_lines_of_writers_are_folded_in_and_the_files_of_the_living_stay(tmp_path: Path) -> None:
    living = Digests(tmp_path, "1-of-2")
    living.add(NAMES[0], "1" * 64)
    Digests(tmp_path, "2-of-2").add(NAMES[1], "2" * 64)
    (tmp_path / "SHA256SUMS-2-of-2.partial").write_text("of a kill")
    (tmp_path / "SHA256SUMS-3-of-3").write_text(f"{'4' * 64}  {NAMES[3]}\n{'5' * 20}")
    Digests(tmp_path).add(NAMES[3], "5" * 64)
    # Of two that disagree none counts until the file has been looked at.
    assert Digests(tmp_path).by_name == {NAMES[0]: "1" * 64, NAMES[1]: "2" * 64}
    Digests(tmp_path).fold([Share(1, 2)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SHA256SUMS", "SHA256SUMS-1-of-2"]
    living.add(NAMES[2], "3" * 64)
    Digests(tmp_path).fold()
    expected = {NAMES[0]: "1" * 64, NAMES[1]: "2" * 64, NAMES[2]: "3" * 64}
    assert living.by_name == {NAMES[0]: "1" * 64, NAMES[2]: "3" * 64}
    assert [path.name for path in tmp_path.iterdir()] == ["SHA256SUMS"]
    assert Digests(tmp_path).by_name == expected


def test_two_writers_of_one_shard_do_not_write_into_one_file(tmp_path: Path) -> None:
    spec = make_spec(rows=4)
    write_run(tmp_path / "alone", spec)
    folder = tmp_path / "both"
    with open_folder(folder, spec, "resume") as opened:
        writers = [Writer(folder, spec, opened.missing, 1, digests=Digests(folder, f"w{number}")) for number in (1, 2)]
        values, statuses = make_values(spec), make_statuses(spec)
        for writer in writers:
            put_rows(writer, range(2), values, statuses)
        partial = sorted(path.name for path in (folder / "shards").iterdir())
        assert [re.sub("[0-9a-f]{8}", "?", name) for name in partial] == [
            f"shard-00000-of-00001.h5.w{number}-?.partial" for number in (1, 2)
        ]
        for writer in writers:
            put_rows(writer, range(2, 4), values, statuses)
            writer.close()
        assert [path.name for path in (folder / "shards").iterdir()] == ["shard-00000-of-00001.h5"]
        Digests(folder).fold()
    # Files that were made at different times say different things of it: it is looked at, and gets its line.
    write_run(folder, spec)
    assert all(Digests(folder).agrees(name) for name in Digests(folder).by_name)
    assert stored_values(folder) == stored_values(tmp_path / "alone")


def test_lines_of_files_that_are_gone_go_too_and_those_of_others_stay(tmp_path: Path) -> None:
    spec = make_spec()
    write_run(tmp_path, spec)
    with (tmp_path / "SHA256SUMS").open("a") as file:
        file.write("3" * 64 + "  my notes.txt\n")
    (tmp_path / NAMES[1]).unlink()
    with open_folder(tmp_path, spec, "resume") as opened:
        opened.prepare()
        assert sorted(Digests(tmp_path).by_name) == ["manifest.jsonl.gz", "my notes.txt", NAMES[0], NAMES[2]]
