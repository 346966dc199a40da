"""Extending a run with the real command, killed: what is there stays right, and the end is the same bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import open_run

from .killed_runs import Moment, call_python
from .processes import call, command, environment
from .test_extend import pictures  # noqa: F401 (a fixture)
from .test_store_extend import everything, stamps

ARGUMENTS = ["network.weights=random", "data.size=32", "layers=[relu1_1,pool2]", "output.images_per_shard=2", "batch_size=3"]
FIRST, NEW = "bdfhj", "acegiklm"

# Before or after which file has its name, and by what the run goes on: a list that never got its name is nothing that resume
# could go on with.
CHOSEN = [
    ("before", "manifest-part001.jsonl.gz", "extend"),
    ("after", "manifest-part001.jsonl.gz", "resume"),
    ("before", "config.yaml", "extend"),
    ("before", "shard-part001-00000-of-00004.h5", "resume"),
    ("after", "shard-part001-00000-of-00004.h5", "extend"),
    ("before", "shard-part001-00003-of-00004.h5", "extend"),
    ("after", "shard-part001-00003-of-00004.h5", "resume"),
    ("before", "features.h5", "resume"),
    ("after", "features.h5", "extend"),
    ("before", "report.json", "resume"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, pictures: Callable[[Path, str], None]) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("kills") / "imgs"
    pictures(folder.parent / "first/imgs", FIRST)
    pictures(folder, FIRST + NEW)
    return folder


@pytest.fixture(scope="module")
def begun(images: Path) -> Path:
    """A finished run over the first images, to be copied."""
    home = images.parent / "begun"
    home.mkdir()
    result = call(f"data.dir={images.parent / 'first/imgs'}", *ARGUMENTS, cwd=home)
    assert result.returncode == 0, result.stderr
    return home


def at(moment: str, name: str) -> Moment:
    """Gives when a file of this name is about to get it, or has just got it."""
    return Moment("os.rename", f"*/{name}.partial") if moment == "before" else Moment("renamed", f"*/{name}")


def copied(home: Path, target: Path) -> Path:
    # With its inodes' times: images must not look newer than the shards.
    subprocess.run(["cp", "-a", str(home), str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def whole(images: Path, begun: Path) -> Path:
    """The extension that nobody has disturbed."""
    home = copied(begun, images.parent / "whole")
    result = call(f"data.dir={images}", *ARGUMENTS, "output.existing=extend", cwd=home)
    assert result.returncode == 0, result.stderr
    return home / "outputs/imgs-vgg19"


def assert_ends_as_undisturbed(home: Path, whole: Path, before: dict[str, Any], *arguments: str) -> None:
    """Goes on to the end, which has the same bits; no shard that was there ``before`` is written again."""
    folder = home / "outputs/imgs-vgg19"
    result = call(*arguments, cwd=home)
    assert result.returncode == 0, result.stderr
    assert everything(folder) == everything(whole)
    assert stamps(folder).items() >= before.items()
    assert not list(folder.rglob("*.partial"))
    assert '"rows": 13' in (folder / "report.json").read_text()


def assert_old_rows_can_be_read(folder: Path, begun: Path) -> None:
    """While there is an index it is right: for the rows before, or for all."""
    with open_run(folder) as now, open_run(begun / "outputs/imgs-vgg19") as then:
        assert len(now) in (len(FIRST), len(FIRST + NEW))
        for layer in then.layers:
            np.testing.assert_array_equal(now[layer][: len(then)], then[layer][:])


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "name", "existing"), CHOSEN, ids=str)
def test_an_extension_killed_at_a_chosen_moment_ends_with_the_same_bits(
    moment: str, name: str, existing: str, images: Path, begun: Path, whole: Path, tmp_path: Path
) -> None:
    home = copied(begun, tmp_path / "killed")
    folder = home / "outputs/imgs-vgg19"
    arguments = [f"data.dir={images}", *ARGUMENTS, "output.existing=extend"]
    before = stamps(folder)
    killed = call_python(tmp_path, ["-m", "pipeline.run", *arguments], home, at(moment, name))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_old_rows_can_be_read(folder, begun)
    assert_ends_as_undisturbed(home, whole, before, *arguments[:-1], f"output.existing={existing}")


def names_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != ".lock"}


def wait_for_a_moment(process: subprocess.Popen[bytes], folder: Path, generator: random.Random) -> None:
    """Waits until a process has made or removed some files in a folder, and a little longer; or for its end."""
    names, changes, left = names_in(folder), 0, generator.randint(0, 12)
    while process.poll() is None and changes < left:
        now = names_in(folder)
        changes, names = changes + (now != names), now
        time.sleep(0.001)
    time.sleep(generator.uniform(0, 0.02 if left else 6))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_an_extension_killed_again_and_again_at_random_ends_with_the_same_bits(
    seed: int, images: Path, begun: Path, whole: Path, tmp_path: Path
) -> None:
    home, generator, kills = copied(begun, tmp_path / "killed"), random.Random(seed), 0
    folder = home / "outputs/imgs-vgg19"
    arguments = [f"data.dir={images}", *ARGUMENTS, "output.existing=extend"]
    before = stamps(folder)
    for _ in range(4):
        with subprocess.Popen(command(*arguments), cwd=home, env=environment(), stderr=subprocess.DEVNULL) as process:
            wait_for_a_moment(process, folder, generator)
            process.kill()
        kills += process.returncode == -signal.SIGKILL
        assert_old_rows_can_be_read(folder, begun)
    assert kills, "nothing was killed"
    assert_ends_as_undisturbed(home, whole, before, *arguments)


@pytest.mark.slow
def test_a_first_run_that_was_killed_is_finished_and_extended_in_one_go(images: Path, whole: Path, tmp_path: Path) -> None:
    for name, options in (
        ("shard-00000-of-00003.h5", [f"data.dir={images.parent / 'first/imgs'}"]),
        ("shard-00001-of-00003.h5", [f"data.dir={images}", "output.existing=extend"]),
        ("shard-part001-00001-of-00004.h5", [f"data.dir={images}", "output.existing=extend"]),
    ):
        killed = call_python(tmp_path, ["-m", "pipeline.run", *ARGUMENTS, *options], tmp_path, at("after", name))
        assert killed.returncode == -signal.SIGKILL
    assert_ends_as_undisturbed(tmp_path, whole, {}, f"data.dir={images}", *ARGUMENTS)
