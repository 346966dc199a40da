"""Several runs at the same time: one folder has one, and others do not feel it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .killed_runs import Moment, assert_same_run, call_python, finished_shards, partial_files
from .test_command import command, environment
from .test_kills import OPTIONS, images, undisturbed

__all__ = ["images", "undisturbed"]  # fixtures

pytestmark = pytest.mark.slow


def start(folder: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*options, cwd=folder), cwd=folder, env={**environment(), **variables}, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that makes a process stand still")
def test_a_second_run_is_refused_while_the_first_lives_and_needs_no_tidying_when_it_was_killed(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run, options = tmp_path / "outputs/run", [f"data.dir={images}", *OPTIONS]
    with start(tmp_path, *options) as first:
        deadline = time.monotonic() + 120
        while not finished_shards(run) and time.monotonic() < deadline:
            time.sleep(0.001)
        # Stands still, so that it lives as long as this takes.
        first.send_signal(signal.SIGSTOP)
        kept = finished_shards(run)
        partial = partial_files(run)
        for existing in ("resume", "replace", "fail"):
            with start(tmp_path, *options, f"output.existing={existing}") as second:
                _, said = second.communicate(timeout=120)
            assert second.returncode == 1
            assert said.splitlines()[-1].startswith("error: outputs/run: another run writes this folder, got a lock held by"), (
                said
            )
        assert (finished_shards(run), partial_files(run)) == (kept, partial)
        first.kill()
        first.communicate()
    with start(tmp_path, *options) as third:
        _, said = third.communicate(timeout=120)
    assert third.returncode == 0, said
    assert finished_shards(run).items() >= kept.items()
    assert_same_run(run, undisturbed)


def test_runs_that_start_together_do_not_disturb_each_other_s_cache_of_weights(
    images: Path, tmp_path: Path, random_weights: Any
) -> None:
    from .matconvnet_writer import write_matconvnet

    write_matconvnet(tmp_path / "net.mat", random_weights(), "old")
    options = [f"data.dir={images}", *OPTIONS[1:-1], f"network.weights={tmp_path / 'net.mat'}"]
    cache = tmp_path / "cache"
    together = [start(tmp_path, *options, f"name=run{number}", XDG_CACHE_HOME=str(cache)) for number in range(3)]
    for process in together:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert "cache" not in said
    files = [path.name for path in (cache / "deep-feature-pipeline").iterdir()]
    assert [name.split("-", 2)[2] for name in files] == ["convolutions.npz"], files
    later = start(tmp_path, *options, "name=later", XDG_CACHE_HOME=str(cache))
    _, said = later.communicate(timeout=300)
    assert later.returncode == 0, said
    assert "weights: reading" not in said
    for number in range(3):
        assert_same_run(tmp_path / f"outputs/run{number}", tmp_path / "outputs/later", but=["@config"])


def test_what_a_killed_run_left_of_the_cache_harms_nobody_and_is_removed_in_time(
    images: Path, tmp_path: Path, random_weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .matconvnet_writer import write_matconvnet

    write_matconvnet(tmp_path / "net.mat", random_weights(), "old")
    options = [f"data.dir={images}", *OPTIONS[1:], f"network.weights={tmp_path / 'net.mat'}"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = tmp_path / "cache/deep-feature-pipeline"
    moment = Moment("os.rename", "*.npz.*.partial")
    killed = call_python(tmp_path, ["-m", "pipeline.run", *options], tmp_path, moment)
    assert killed.returncode == moment.exit_code, killed.stderr
    (left,) = cache.iterdir()
    assert left.name.endswith(".partial")
    old = time.time() - 2 * 24 * 3600
    os.utime(left, (old, old))
    again = call_python(tmp_path, ["-m", "pipeline.run", *options], tmp_path)
    assert again.returncode == 0, again.stderr
    (kept,) = cache.iterdir()
    assert kept.name.endswith("-convolutions.npz")
