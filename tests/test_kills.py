"""Whatever stops a run, finished shards are whole and kept, and the same command ends with the same bits."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .killed_runs import (
    Moment,
    assert_same_run,
    call_python,
    closed,
    cut,
    finished_shards,
    partial_files,
    renamed,
    synced,
    temporary_folder,
    write_in_store,
)
from .processes import command, finish, start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no signals to stop a process by")

IMAGES = 40
SHARDS = 20
OPTIONS = ["network.weights=random", "data.size=32", "layers=[relu1_1]", "output.images_per_shard=2", "batch_size=2", "name=run"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small images, some of them broken."""
    folder = tmp_path_factory.mktemp("data") / "imgs"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        picture = Image.fromarray(draw.integers(0, 256, (20 + number, 37, 3), dtype=np.uint8))
        picture.save(folder / f"{number:02d}.{'png' if number % 3 else 'jpg'}")
    (folder / "05.png").write_bytes(b"")
    (folder / "12.jpg").write_bytes((folder / "12.jpg").read_bytes()[:400])
    (folder / "13.png").write_text("no image")
    (folder / "14.png").write_bytes((folder / "14.png").read_bytes()[:300])
    (folder / "15.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    write_in_store(folder / "outputs/run")
    return folder / "outputs/run"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = call_python(folder, real(images), folder)
    assert ended.returncode == 0, ended.stderr
    assert list(temporary_folder(folder).iterdir()) == []
    return folder / "outputs/run"


def real(images: Path) -> list[str]:
    """Gives the arguments of Python that run the command."""
    return ["-m", "pipeline.run", f"data.dir={images}", *OPTIONS]


def stop_and_go_on(folder: Path, arguments: Sequence[str], moments: Sequence[Moment], expected: Path) -> None:
    """Runs, is stopped at one moment after the other, goes on each time, and is let go to the end."""
    run = folder / "outputs/run"
    kept: dict[str, tuple[int, int]] = {}
    for moment in moments:
        ended = call_python(folder, arguments, folder, moment)
        assert (ended.returncode, "Traceback" in ended.stderr) == (moment.exit_code, False), (str(moment), ended.stderr)
        if moment.in_order:
            assert partial_files(run) == [], moment
            assert ended.stderr.splitlines()[-1].endswith("with output.existing=resume, to go on."), ended.stderr
        found = finished_shards(run)
        assert found.items() >= kept.items(), f"{moment}: a finished shard was written again"
        kept = found
    ended = call_python(folder, arguments, folder)
    assert ended.returncode == 0, ended.stderr
    assert finished_shards(run).items() >= kept.items()
    assert partial_files(run) == []
    assert_same_run(run, expected)
    # Nobody clears away after a process that was killed: TensorFlow's converted functions for instance, if it had any to convert.
    assert list(temporary_folder(folder).iterdir()) == []


# Shards are finished in the background, in no certain order, so a moment names the occasion and not the shard.
SHARD = "shards/shard-*"


@pytest.mark.parametrize(
    "moments",
    [
        # Twice at the same place, since going on can be stopped too.
        pytest.param([closed(SHARD), closed(SHARD), synced(SHARD, 3), cut(SHARD, 30_000, 2)], marks=pytest.mark.slow),
        pytest.param([renamed("shards", 9), closed("features.h5"), synced("features.h5")], marks=pytest.mark.slow),
        [closed(SHARD), cut(SHARD, 30_000, 2), synced("features.h5")],
        # Between a shard and its line, or in the middle of that.
        [closed("SHA256SUMS", 4), synced("SHA256SUMS", 3), cut(SHARD, 500), cut(SHARD, 900, 2)],
    ],
    ids=["shards", "index", "shards and index", "digests"],
)
def test_a_store_that_is_killed_goes_on_to_the_same_bits(moments: Sequence[Moment], stored: Path, tmp_path: Path) -> None:
    stop_and_go_on(tmp_path, ["-m", "tests.killed_runs", "outputs/run"], moments, stored)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        # Start: nothing is there yet, or folders alone.
        [
            Moment("import", "hydra*", 1, signal.SIGTERM),
            Moment("import", "tensorflow*", 40, signal.SIGINT),
            Moment("import", "tensorflow*", 40),
            Moment("os.mkdir", "*outputs*", 1),
            Moment("open", "*config.yaml.partial", 1),
            synced("config.yaml"),
            cut("config.yaml", 120_000),
            Moment("open", "*run.log", 1),
        ],
        [closed(SHARD, 2), synced(SHARD, 2), renamed("shards", 2), cut(SHARD, 200_000), cut(SHARD, 3_000)],
        # Two each: what all has come of is finished before the process ends, and soon that is everything.
        [closed(SHARD, 3, signal=signal.SIGINT), closed(SHARD, signal=signal.SIGTERM)],
        [synced(SHARD, 2, signal=signal.SIGTERM), renamed("shards", signal=signal.SIGINT)],
        [
            cut("shards/shard-*", 5_000, SHARDS),
            closed("features.h5"),
            closed("features.h5", signal=signal.SIGINT),
            synced("features.h5"),
            synced("features.h5", signal=signal.SIGTERM),
            renamed("run"),
        ],
        [
            synced("SHA256SUMS", 12),
            closed("SHA256SUMS", 7, signal=signal.SIGINT),
            synced("report.json", signal=signal.SIGINT),
            closed("report.json"),
            synced("report.json"),
            Moment("open", "*report.json.partial", 1, signal.SIGTERM),
            closed("report.html"),
            synced("report.html", signal=signal.SIGTERM),
            synced("report.html"),
            Moment("open", "*report.html.partial", 1, signal.SIGINT),
        ],
    ],
    ids=["start", "shards", "signals while writing", "signals while naming", "index", "report"],
)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    moments: Sequence[Moment], images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    stop_and_go_on(tmp_path, real(images), moments, undisturbed)
    report = json.loads((tmp_path / "outputs/run/report.json").read_text())
    assert (report["rows"], report["failed"]) == (IMAGES, 5)
    assert "</html>" in (tmp_path / "outputs/run/report.html").read_text()


@pytest.mark.slow
def test_a_run_that_is_stopped_at_random_goes_on_to_the_same_bits(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    arguments = command(f"data.dir={images}", *OPTIONS)
    run, stopped = tmp_path / "outputs/run", 0
    seconds: list[tuple[str, float]] = []
    for number in range(12):
        sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3]
        with start(arguments, tmp_path) as process:
            before = finished_shards(run)
            unfinished = {path.stat().st_ino for path in run.rglob("*.partial")}
            # Not before the program is there to hear it: that it says its first line.
            assert process.stderr is not None
            assert process.stderr.readline().startswith("images: ")
            # Every other one while shards are written, the others anywhere.
            deadline = time.monotonic() + (60 if number % 2 else draw.uniform(0, 4))
            while time.monotonic() < deadline and len(finished_shards(run)) == len(before) and process.poll() is None:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.1))
            process.send_signal(sent)
            if number % 4 == 2:
                process.send_signal(sent)
            asked = time.monotonic()
            _, said = process.communicate(timeout=60)
        seconds.append((sent.name, round(time.monotonic() - asked, 2)))
        assert "Traceback" not in said, said
        assert process.returncode in (0, Moment("", "", 1, sent).exit_code), said
        if sent != signal.SIGKILL:
            # Those of a run that was killed are there until the next one gets as far as the folder.
            left = {path.stat().st_ino for path in run.rglob("*.partial")}
            assert left in (set(), unfinished), (sent, said)
            assert not left or "layer: relu1_1" not in said, (sent, said)
        assert finished_shards(run).items() >= before.items()
        stopped += process.returncode != 0
        if process.returncode == 0:
            assert_same_run(run, undisturbed)
            for path in run.glob("shards/shard-0001*"):
                path.unlink()
    # The program allows itself 5; the rest is for a busy machine.
    assert max(took for _, took in seconds) < 15, seconds
    print(stopped, "of", len(seconds), "stopped:", seconds)
    assert stopped >= 6
    assert finish(arguments, tmp_path).returncode == 0
    assert_same_run(run, undisturbed)


# -- Two at once


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that makes a process stand still")
def test_a_second_run_is_refused_while_the_first_lives_and_needs_no_tidying_when_it_was_killed(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run, options = tmp_path / "outputs/run", [f"data.dir={images}", *OPTIONS]
    with start(command(*options), tmp_path) as first:
        deadline = time.monotonic() + 120
        while not finished_shards(run) and time.monotonic() < deadline:
            time.sleep(0.001)
        # Stands still, so that it lives as long as this takes.
        first.send_signal(signal.SIGSTOP)
        kept = finished_shards(run)
        partial = partial_files(run)
        for existing in ("resume", "replace", "fail"):
            with start(command(*options, f"output.existing={existing}"), tmp_path) as second:
                _, said = second.communicate(timeout=120)
            assert second.returncode == 1
            assert said.splitlines()[-1].startswith("error: outputs/run: another run writes this folder, got a lock held by"), (
                said
            )
        assert (finished_shards(run), partial_files(run)) == (kept, partial)
        first.kill()
        first.communicate()
    with start(command(*options), tmp_path) as third:
        _, said = third.communicate(timeout=120)
    assert third.returncode == 0, said
    assert finished_shards(run).items() >= kept.items()
    assert_same_run(run, undisturbed)


# -- Disks that refuse: one line, exit code 1, nothing unfinished left, and the same bits once there is room


linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and mounts of Linux")


def on_disk(images: Path, folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Runs lines of shell, whose arguments are the command, in a namespace of their own."""
    program = command(f"data.dir={images}", *OPTIONS)
    return finish(["unshare", "--map-root-user", "--mount", "sh", "-ec", script, "sh", *program], folder)


def can_mount() -> bool:
    """Whether this user may mount in a namespace of its own, as most systems let everybody."""
    try:
        return subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_mounts = pytest.mark.skipif(not can_mount(), reason="this system lets this user mount nothing, not even for itself")


@linux
@pytest.mark.slow
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
    ended = on_disk(images, tmp_path, script)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    line = next(line for line in ended.stderr.splitlines() if line.startswith("error:"))
    assert ".h5.partial: it cannot be written, got ENOSPC" in line
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


@linux
@pytest.mark.slow
@needs_mounts
def test_a_folder_that_becomes_read_only_is_refused_and_left_as_it_is(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "outputs/run")
    run = tmp_path / "outputs/run"
    (run / "features.h5").unlink()
    (run / "shards/shard-00007-of-00020.h5").unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    ended = on_disk(images, tmp_path, 'mount --bind outputs outputs; mount -o remount,bind,ro outputs; exec "$@"')
    lines = ended.stderr.splitlines()
    assert ended.returncode == 1, ended.stderr
    assert [line for line in lines if line.startswith("error:")] == lines[-1:], ended.stderr
    assert "it cannot be written, got EROFS" in lines[-1]
    assert "Traceback" not in ended.stderr
    assert "ignored" not in ended.stderr
    assert partial_files(run) == []
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert finish(command(f"data.dir={images}", *OPTIONS), tmp_path).returncode == 0
    assert_same_run(run, undisturbed)
