"""Disks that refuse, and files that survive a power cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.store import writer
from pipeline.store.run_folder import open_folder
from pipeline.store.writer import Writer

from .processes import run_python
from .stored_runs import make_spec, make_statuses, make_values, put_rows, write_run


def test_a_folder_removed_under_the_run_is_one_line(tmp_path: Path) -> None:
    spec = make_spec()
    with open_folder(tmp_path / "run", spec, "resume") as opened:
        writer = Writer(tmp_path / "run", spec, opened.missing, 2, opened.digests())
        put_rows(writer, range(3), make_values(spec), make_statuses(spec))
        (tmp_path / "run").rename(tmp_path / "gone")
        with pytest.raises(StoreError, match=r"\.h5\.partial: it cannot be written, got ENOENT "):
            put_rows(writer, range(3, 10), make_values(spec), make_statuses(spec))
        writer.abort()


FULL = """
import resource, sys
from pathlib import Path
from tests.stored_runs import *
from pipeline.errors import StoreError
folder, spec = Path(sys.argv[1]), make_spec(300, {"a": (1, 1, 4), "b": (2, 2, 3)}, images_per_shard=100)
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_run(folder, spec)
    except StoreError as error:
        print(error, *folder.rglob("*.partial"))
"""


def test_a_full_disk_is_one_line_and_the_run_goes_on_where_there_is_room(tmp_path: Path) -> None:
    spec = make_spec(300, {"a": (1, 1, 4), "b": (2, 2, 3)}, images_per_shard=100)
    write_run(tmp_path / "whole", spec)
    index_bytes = (tmp_path / "whole/features.h5").stat().st_size
    ended = run_python(FULL, tmp_path / "run", 100, 15_000, 40_000, index_bytes - 1)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    for line, name in zip(lines, ("manifest.jsonl.gz", *2 * [".h5.partial"], "features.h5"), strict=True):
        assert f"{name}: it cannot be written, got EFBIG " in line
    write_run(tmp_path / "run", spec)
    assert (tmp_path / "run/features.h5").stat().st_size == index_bytes


def test_every_file_of_a_run_is_on_the_disk_before_its_name_and_its_name_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []  # inode, time of change in ns
    renamed: dict[str, int] = {}  # name -> how many had been synced
    sync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        sync(handle)
        state = os.fstat(handle)
        synced.append((state.st_ino, state.st_mtime_ns))

    def note_replace(source: Path, target: Path) -> None:
        state = Path(source).stat()
        assert synced[-1] == (state.st_ino, state.st_mtime_ns), f"{source} has changed since it was forced to the disk"
        replace(source, target)
        renamed[Path(target).name] = len(synced)

    # One shard after the other: what another thread syncs meanwhile would be between.
    monkeypatch.setattr(writer, "MOST_FINISHING", 1)
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    # Path.replace asks for it by name before Python 3.11 and at each call from then on.
    monkeypatch.setattr(Path, "replace", lambda path, target: note_replace(path, target))
    folder = tmp_path / "new/outputs/run"
    write_run(folder, make_spec())
    shards = [shard.file_name for shard in make_spec().shards()]
    assert renamed.pop("SHA256SUMS") == len(synced) - 1
    assert sorted(renamed) == sorted([*shards, "features.h5", "manifest.jsonl.gz"])
    folders = [place.stat().st_ino for place in (tmp_path, tmp_path / "new", tmp_path / "new/outputs", folder)]
    assert [inode for inode, _ in synced[:4]] == folders
    for name, count in renamed.items():
        assert synced[count][0] == (folder / "shards" if name in shards else folder).stat().st_ino
    # The index says that all shards are there: its name comes after theirs are durable.
    assert max(renamed[shard] for shard in shards) < renamed["features.h5"]
    # After that there are only its folder and the file of digests, with a line of it.
    assert renamed["features.h5"] == len(synced) - 3
