"""Finished files that another program has open, or that the system does not let us read: named, and never removed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline import open_run
from pipeline.errors import StoreError
from pipeline.index import index_run
from pipeline.show import overview
from pipeline.store import tables
from pipeline.store.damage import DamagedError, UnreadableError, damaged
from pipeline.store.run_folder import open_folder
from pipeline.store.verification import check_in_child
from pipeline.verify import verify

from .stored_runs import write_run
from .test_index import spec_of

SHARD, INDEX, LISTING = "shards/shard-00001-of-00008.h5", "features.h5", "manifest.jsonl.gz"

_HOLD = "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read(); file.close()"


@contextmanager
def held_open(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold a file open for writing, as a notebook does; HDF5 marks the file meanwhile, in one byte."""
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        yield other
        other.communicate()


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a run but its lock and its log."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith((".lock", "run.log"))
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in_use") / "run"
    write_run(folder, spec_of(), failed=[3])
    index_run(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def resume(folder: Path, existing: str, rows: int = 30) -> None:
    with open_folder(folder, spec_of(rows), existing) as run_folder:
        run_folder.prepare()


# What opens finished files.
ACTIONS: dict[str, Callable[[Path], Any]] = {
    "resume": lambda folder: resume(folder, "resume"),
    "extend": lambda folder: resume(folder, "extend", rows=33),
    "replace": lambda folder: resume(folder, "replace"),
    "show": overview,
    "read": lambda folder: open_run(folder)["relu4_1"][0:8],
}


def actions(name: str) -> list[Callable[[Path], Any]]:
    # What the index tells of a shard, show does not ask the shard.
    return [action for word, action in ACTIONS.items() if (word, name) != ("show", SHARD)]


@pytest.mark.parametrize("name", [SHARD, INDEX])
def test_a_file_that_another_program_has_open_is_named_and_kept(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{folder / name}: in use by another program, got a lock"
    with held_open(folder / name):
        before = bytes_of(folder)
        for action in actions(name):
            with pytest.raises(UnreadableError, match=f"^{line}. Expected no writer. Close it there"):
                action(folder)
        with pytest.raises(StoreError) as refused:
            verify(folder, repair=True)
        assert bytes_of(folder) == before
    assert f"not all of the run could be read, got 1 file in use or unreadable, {name} among them." in str(refused.value)
    assert capsys.readouterr().out.startswith(line)


def test_a_shard_in_use_that_must_be_looked_into_is_kept(folder: Path) -> None:
    """Without an index, and without its line in the digests."""
    (folder / INDEX).unlink()
    digests = folder / "SHA256SUMS"
    digests.write_bytes(b"".join(line for line in digests.read_bytes().splitlines(keepends=True) if SHARD.encode() not in line))
    with held_open(folder / SHARD):
        before = bytes_of(folder)
        for act in (ACTIONS["resume"], index_run):
            with pytest.raises(StoreError, match=f"{SHARD}: in use by another program"):
                act(folder)
        (finding,) = check_in_child(folder / SHARD).findings
        assert type(finding) is UnreadableError
        assert bytes_of(folder) == before
    assert check_in_child(folder / SHARD).findings == []


def test_a_file_that_a_killed_writer_has_marked_is_kept(folder: Path) -> None:
    path = folder / SHARD
    with h5py.File(path, "r") as old, h5py.File(folder / "new.h5", "w", libver="latest") as new:
        for name in old:
            old.copy(name, new)
        new.attrs.update(old.attrs)
    (folder / "new.h5").replace(path)
    with held_open(path) as other:
        other.kill()
    before = bytes_of(folder)
    for action in ("resume", "replace"):
        with pytest.raises(UnreadableError, match="in use by another program, got the mark of a writer"):
            ACTIONS[action](folder)
    with pytest.raises(StoreError, match=r"1 file in use or unreadable"):
        verify(folder, repair=True)
    assert bytes_of(folder) == before


def refuse(monkeypatch: pytest.MonkeyPatch, number: int, name: str) -> None:
    """Have the system refuse one file, to h5py and to whoever opens it in Python."""
    opened, file = Path.open, h5py.File

    class Refused(file):  # type: ignore[misc]
        def __init__(self, source: Any, *arguments: Any, **options: Any) -> None:
            if str(source).endswith(name):
                raise OSError(number, os.strerror(number), str(source))
            super().__init__(source, *arguments, **options)

    def refused(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(name) and "r" in mode:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr(h5py, "File", Refused)
    monkeypatch.setattr(Path, "open", refused)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("number", "name"),
    [(errno.ENOMEM, SHARD), (errno.EIO, INDEX), (errno.EIO, LISTING), (errno.ESTALE, "SHA256SUMS")],
)
def test_a_file_that_the_system_does_not_let_us_read_is_named_and_kept(
    folder: Path, number: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bytes_of(folder)
    refuse(monkeypatch, number, name)
    words = rf"{name}: .*cannot be read, got .* \({errno.errorcode[number]}\)\. Expected a file that can be read\."
    acts = actions(name) if name in (SHARD, INDEX) else (ACTIONS["resume"], ACTIONS["extend"], index_run)
    for act in acts:
        with pytest.raises(UnreadableError, match=words):
            act(folder)
    with pytest.raises(StoreError, match=words if name in (LISTING, "SHA256SUMS") else r"1 file in use or unreadable"):
        verify(folder, repair=True)
    monkeypatch.undo()
    assert bytes_of(folder) == before


def test_a_file_system_without_locks_is_read_without_and_that_is_said_once(
    whole: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, number = h5py.File, errno.ENOLCK

    class Unlocked(file):  # type: ignore[misc]
        def __init__(self, source: Any, mode: str, *, locking: bool = True) -> None:
            if locking:
                raise OSError(number, f"Unable to lock file (unable to lock file, errno = {number})")
            super().__init__(source, mode, locking=False)

    expected = open_run(whole)["relu4_1"][:]
    tables._say_no_locks.cache_clear()
    monkeypatch.setattr(h5py, "File", Unlocked)
    np.testing.assert_array_equal(open_run(whole)["relu4_1"][:], expected)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["no locks"]


def test_what_h5py_raises_is_told_apart_by_the_error_number_and_not_by_its_class(tmp_path: Path) -> None:
    """Where HDF5 could not look up a name, h5py raises a KeyError or a RuntimeError, and the number is in the message alone."""
    refused = "Unable to synchronously open object (file read failed: time = Sat, errno = 5, error message = '...')"
    for error in (KeyError(refused), RuntimeError(refused), OSError(5, refused)):
        said = damaged(tmp_path / "shard.h5", "layer relu4_1", error)
        assert isinstance(said, UnreadableError)
        assert "got Input/output error (EIO)" in str(said)
    for wrong in (OSError("truncated file: eof = 8"), KeyError("bad symbol table node signature"), ValueError("no chunk")):
        assert isinstance(damaged(tmp_path / "shard.h5", "layer relu4_1", wrong), DamagedError)
