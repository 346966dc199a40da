"""Several runs at the same time: one folder has one, and others do not feel it."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from .killed_runs import assert_same_run, finished_shards, partial_files
from .processes import command, start
from .test_kills import OPTIONS, images, undisturbed

__all__ = ["images", "undisturbed"]  # fixtures

pytestmark = pytest.mark.slow


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
