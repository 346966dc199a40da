"""``python -m pipeline.verify``, as a subprocess: lines, exit codes, and the run that repair makes possible."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from pipeline.errors import LockedError
from pipeline.store.lock import Hold
from pipeline.store.verification import repair, verify_folder
from pipeline.verify import verify as verify_run

from .damage import chunk_place, flip, write_companions
from .processes import call_here, command, start
from .stored_runs import make_spec, make_values, write_run
from .test_store_damage import RUNS
from .test_store_folder import files_in, stored_values
from .test_store_verification import SHARDS

MODULE = "pipeline.verify"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "outputs" / "a,b 2024_01"
    write_run(path, make_spec(), failed=[3])
    write_companions(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def test_a_whole_run_is_one_line_and_exit_code_0(folder: Path) -> None:
    result = call_here(f"run=outputs/{folder.name}", cwd=folder.parent.parent, module=MODULE)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "checked: 7 files, 10 rows: whole and unchanged\n"


def test_damage_is_named_and_exit_code_1_and_nothing_is_written(copy: Path) -> None:
    for row in (0, 2):
        flip(copy / SHARDS[1], chunk_place(copy / SHARDS[1], "relu4_1", row))
    (copy / SHARDS[2]).unlink()
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    result = call_here(f"run={copy}/features.h5", cwd=copy, module=MODULE)
    assert result.returncode == 1
    first, second, missing, last = result.stdout.splitlines()
    assert first.startswith(f"{copy / SHARDS[1]}: layer relu4_1, row 4 is damaged, got ")
    assert second.startswith(f"{copy / SHARDS[1]}: layer relu4_1, row 6 is damaged, got ")
    assert missing.startswith(f"{copy / SHARDS[2]}: the file is missing, got no such file. ")
    assert last == "checked: 6 files, 10 rows: 3 findings"
    assert result.stderr.startswith(f"error: {copy}: the run is not whole and unchanged, got 3 findings. Expected none. Verify")
    assert result.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_repair_removes_what_is_damaged_and_says_what_to_run(copy: Path) -> None:
    flip(copy / SHARDS[1], chunk_place(copy / SHARDS[1], "relu4_1", 0))
    (copy / "shards/notes.txt").write_text("of somebody else")
    before = files_in(copy)
    result = call_here(f"run={copy}", "repair=true", cwd=copy, module=MODULE)
    assert result.returncode == 1
    assert result.stdout.splitlines()[2:] == [
        f"removed: {SHARDS[1]}",
        "removed: features.h5",
        f"removed: SHA256SUMS: {SHARDS[1]}",
        "removed: SHA256SUMS: features.h5",
    ]
    assert "Expected none. Run the extraction again" in result.stderr
    assert files_in(copy) == before - {SHARDS[1], "features.h5"} | {".lock"}


def test_an_interrupt_ends_the_check_at_once_with_exit_code_130(copy: Path) -> None:
    # A file without content of 64 GB: minutes of hashing.
    os.truncate(copy / "report.json", 64 << 30)
    (copy / ".lock").unlink()
    process = start(command(f"run={copy}", "repair=true", module=MODULE), copy)
    deadline = time.monotonic() + 60
    while not (copy / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, ""), error
    assert error.startswith("interrupted: the run folder holds what it held")
    assert len(error.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_whatever_byte_changes_is_found_and_named(kind: str, tmp_path: Path) -> None:
    spec, native = RUNS[kind]
    write_run(tmp_path, spec, failed=[1], values=make_values(spec, native))
    write_companions(tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock")
    sizes = [path.stat().st_size for path in files]
    dice = random.Random(2026)
    for number in range(150):
        # By turns any file and any byte: tables and metadata are small beside the rows.
        path = dice.choice(files) if number % 2 else dice.choices(files, sizes)[0]
        place, bit = dice.randrange(path.stat().st_size), 1 << dice.randrange(8)
        flip(path, place, bit)
        result = verify_folder(tmp_path, workers=1)
        name = path.relative_to(tmp_path).as_posix()
        assert result.count, (name, place, bit)
        if name != "SHA256SUMS":
            # No other file is accused.
            assert result.findings.keys() == {name}, (name, place, bit, result.findings)
            assert name in str(result.findings[name][0])
        flip(path, place, bit)
    assert verify_folder(tmp_path, workers=1).count == 0


@pytest.mark.slow
def test_repair_and_resume_mend_whatever_byte_has_changed(tmp_path: Path) -> None:
    spec, dice = RUNS["small"][0], random.Random(7)
    write_run(tmp_path / "whole", spec, failed=[3])
    expected = stored_values(tmp_path / "whole")
    for number in range(40):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"run{number}"))
        write_companions(folder)
        path = dice.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"))
        flip(path, dice.randrange(path.stat().st_size), 1 << dice.randrange(8))
        repair(verify_folder(folder, workers=1))
        write_run(folder, spec, failed=[3])
        write_companions(folder)
        assert verify_folder(folder, workers=1).count == 0, path
        assert stored_values(folder) == expected, path


def test_repair_is_refused_while_a_run_writes_the_folder(copy: Path) -> None:
    flip(copy / SHARDS[1], 3)
    hold = Hold(copy)
    with pytest.raises(LockedError, match="another run writes this folder"):
        verify_run(copy, repair=True)
    hold.release()
    assert (copy / SHARDS[1]).exists()
