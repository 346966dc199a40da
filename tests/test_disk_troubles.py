"""The real command on disks that refuse: one line, exit code 1, nothing unfinished left, and the same bits once there is room."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from .killed_runs import assert_same_run, finished_shards, partial_files
from .processes import command, finish
from .test_kills import OPTIONS, SHARDS, images, undisturbed

__all__ = ["images", "undisturbed"]  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="limits and mounts of Linux")]


def call(
    images: Path, folder: Path, *more: str, limit_bytes: int | None = None, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs the command, with a limit to the size of files, or after a line of shell in a namespace of its own."""
    program = command(f"data.dir={images}", *OPTIONS, *more)
    if limit_bytes is not None:
        program = ["prlimit", f"--fsize={limit_bytes}", *program]
    if before:
        program = ["unshare", "--map-root-user", "--mount", "sh", "-ec", *before, "sh", *program]
    return finish(program, folder)


def assert_refused(ended: subprocess.CompletedProcess[str], words: str, run: Path) -> None:
    lines = ended.stderr.splitlines()
    assert ended.returncode == 1, ended.stderr
    assert [line for line in lines if line.startswith("error:")] == lines[-1:], ended.stderr
    assert words in lines[-1]
    assert "Traceback" not in ended.stderr
    assert "ignored" not in ended.stderr
    assert partial_files(run) == []


def can_mount() -> bool:
    """Whether this user may mount in a namespace of its own, as most systems let everybody."""
    try:
        return subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_mounts = pytest.mark.skipif(not can_mount(), reason="this system lets this user mount nothing, not even for itself")


def test_files_that_may_not_grow_stop_the_run_and_more_room_lets_it_go_on(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "outputs/run"
    sizes = [path.stat().st_size for path in sorted((undisturbed / "shards").iterdir())]
    # The manifest, options, shards, index and report are written in this order; each limit lets one more through.
    list_bytes, config_bytes = ((undisturbed / name).stat().st_size for name in ("manifest.jsonl.gz", "config.yaml"))
    assert_refused(call(images, tmp_path, limit_bytes=list_bytes - 1), "manifest.jsonl.gz: the file would be larger than", run)
    if config_bytes > list_bytes:
        assert_refused(call(images, tmp_path, limit_bytes=config_bytes - 1), "config.yaml: the file would be larger than", run)
    assert finished_shards(run) == {}
    limit_bytes = max(sizes[:5])
    assert max(sizes[8:]) > limit_bytes
    ended = call(images, tmp_path, limit_bytes=limit_bytes)
    assert_refused(ended, ".h5.partial: the file would be larger than this system allows, got EFBIG. Expected ", run)
    kept = finished_shards(run)
    assert 0 < len(kept) < SHARDS
    assert call(images, tmp_path).returncode == 0
    # The line of a report that is gone is taken out before it is written again, in a file that has a line for each shard.
    for name, limit_bytes, refused in (
        ("features.h5", (run / "features.h5").stat().st_size - 1, "features.h5: the file would be larger than"),
        ("report.json", 500, "SHA256SUMS: the file would be larger than"),
    ):
        digests = (run / "SHA256SUMS").read_bytes()
        (run / name).unlink()
        assert_refused(call(images, tmp_path, limit_bytes=limit_bytes), refused, run)
        assert not (run / name).exists()
        assert name == "features.h5" or (run / "SHA256SUMS").read_bytes() == digests
        assert call(images, tmp_path).returncode == 0
    assert finished_shards(run).items() >= kept.items()
    assert_same_run(run, undisturbed)


@needs_mounts
def test_a_full_disk_stops_the_run_and_more_room_lets_it_go_on(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # The disk lives as long as the shell; what is on it is copied away.
    script = """
        mount -t tmpfs -o size=2m none disk
        "$@" output.dir=disk && exit 9
        [ $? = 1 ] || exit 8
        cp -a disk/run stopped
        mount -o remount,size=100m disk
        "$@" output.dir=disk
        cp -a disk/run finished
    """
    ended = call(images, tmp_path, before=[script])
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    line = next(line for line in ended.stderr.splitlines() if line.startswith("error:"))
    assert ".h5.partial: the disk is full, got ENOSPC. Expected a folder that can be written. Free some space, then run" in line
    assert partial_files(tmp_path / "stopped") == []
    stopped, finished = (
        {path.name: path.stat().st_mtime_ns for path in (tmp_path / name / "shards").iterdir()}
        for name in ("stopped", "finished")
    )
    assert 0 < len(stopped) < SHARDS
    assert finished.items() >= stopped.items()
    # The folder's name is one of the options that are stored.
    for name in ("config.yaml", "run.log"):
        shutil.copy(undisturbed / name, tmp_path / "finished" / name)
    assert_same_run(tmp_path / "finished", undisturbed, but=["@config"])


@needs_mounts
def test_a_folder_that_becomes_read_only_is_refused_and_left_as_it_is(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "outputs/run")
    run = tmp_path / "outputs/run"
    (run / "features.h5").unlink()
    (run / "shards/shard-00007-of-00020.h5").unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    ended = call(images, tmp_path, before=['mount --bind outputs outputs; mount -o remount,bind,ro outputs; exec "$@"'])
    assert_refused(ended, "the file system is read-only, got EROFS. Expected a folder that can be written. Choose another", run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert call(images, tmp_path).returncode == 0
    assert_same_run(run, undisturbed)
