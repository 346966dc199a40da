"""Several jobs from one command line, through Hydra's launchers: one line, the right exit code, and nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import signal
import time
from pathlib import Path

import pytest

from pipeline.cli import literal_arguments, sweep_suffix
from pipeline.store.verification import verify_folder

from .killed_runs import assert_same_run
from .processes import call, command, run_python, start
from .test_command import REFUSALS
from .test_kills import OPTIONS, images

__all__ = ["images"]  # a fixture

LAUNCHERS = {"basic": "hydra", "joblib": "hydra_plugins.hydra_joblib_launcher", "submitit_local": "submitit"}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def require(launcher: str) -> None:
    try:
        found = importlib.util.find_spec(LAUNCHERS[launcher])
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"the launcher {launcher} is not installed")


def test_what_ends_a_job_is_one_line_and_its_exit_code(tmp_path: Path) -> None:
    cases = [
        (["data.dir=~/x y", "part=1/2,5/2"], 1, "error: data.dir: no such folder, got '"),
        (["data.dir=x", "part=3/2,1/2"], 2, "error: part: not a valid value, got '3/2'. Expected k/n with k from 1 to n"),
        (["data.dri=x"], 2, "error: data.dri: there is no such option, got 'data.dri'."),
        (["hydra/launcher=nosuch"], 2, "error: hydra/launcher: there is none of this name, got 'nosuch'. Expected one of: basic"),
    ]
    arguments = json.dumps([["-m", *arguments] for arguments, _, _ in cases])
    found, left, _ = json.loads(run_python(REFUSALS, arguments, cwd=tmp_path).stdout)
    for (code, said), (arguments, expected, message) in zip(found, cases, strict=True):
        # The first line, if there are two, is Hydra's own, which says which job it was.
        *before, last = said.splitlines()
        assert (code, last[: len(message)]) == (expected, message), (arguments, said)
        assert all(line.startswith("Error executing job with overrides: ") for line in before)
    assert left == [".multirun"]


def test_paths_are_as_typed_commas_are_jobs_and_the_flag_may_stand_anywhere() -> None:
    given = ["data.dir=~/2024_01", "name=a,b", "network=vgg16,vgg19", "-m", "layers=relu4_1,relu5_1", 'output.dir="x"']
    expected = ['data.dir="~/2024_01"', "name=a,b", "network.name=vgg16,vgg19", "layers=relu4_1,relu5_1", 'output.dir="x"']
    assert literal_arguments(given) == ["--multirun", *expected]


def test_the_name_of_a_job_tells_what_is_swept() -> None:
    typed = ["--multirun", "layers=[relu4_1,pool5],[relu?_1]", "data.size=32,null", "part=1/2,2/2", "dry_run=true", "network=a,b"]
    job = ["layers=[relu4_1,pool5]", "data.size=null", "part=1/2", "dry_run=True", "network=a"]
    assert sweep_suffix(literal_arguments(typed), job) == "-layers=relu4_1+pool5-size=null"
    assert sweep_suffix(["data.dir='a/imgs','b/imgs'"], ["data.dir='a/imgs'"]) == "-dir=a+imgs"
    # What no file's name has is told apart all the same.
    words = [sweep_suffix(typed, [f"layers=[{word}]"]) for word in ("relu?_1", "relu*_1", "a" * 300, "a" * 301)]
    assert len(set(words)) == 4
    assert all(len(word) < 110 and "*" not in word for word in words)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_parts_through_a_launcher_fail_in_one_line_and_make_the_run_of_one_process(
    images: Path, tmp_path: Path, launcher: str
) -> None:
    require(launcher)
    failed = call("-m", "data.dir=nowhere", "part=1/2,2/2", f"hydra/launcher={launcher}", cwd=tmp_path)
    assert (failed.returncode, "Traceback" in failed.stderr) == (1, False), failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: data.dir: no such folder, got '")
    options = [f"data.dir={images}", *OPTIONS, "runtime.workers=1"]
    alone = call(*options, "output.dir=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    done = call("-m", *options, "part=1/3,2/3,3/3", f"hydra/launcher={launcher}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs/run"
    assert verify_folder(run, 1).count == 0
    assert names_in(tmp_path) == {"alone", "outputs", ".multirun"}
    assert {f"run-{number}-of-3.log" for number in (1, 2, 3)} < names_in(run)
    reports = [json.loads((run / f"report-{number}-of-3.json").read_text()) for number in (1, 2, 3)]
    assert (sum(part["rows"] for part in reports), sum(part["failed"] for part in reports)) == (40, 5)
    for name in ("run-{}-of-3.log", "report-{}-of-3.json"):
        for number in (1, 2, 3):
            (run / name.format(number)).unlink()
    for folder in (run, tmp_path / "alone/run"):
        for name in ("run.log", "report.json", "report.html"):
            (folder / name).unlink(missing_ok=True)
    # The options are the same but for the folder, which is told apart on purpose.
    assert_same_run(run, tmp_path / "alone/run", but=["@config"])


@pytest.mark.slow
def test_workers_of_joblib_end_with_the_command(images: Path, tmp_path: Path) -> None:
    require("joblib")
    shards = tmp_path / "outputs/run/shards"
    options = [f"data.dir={images}", "network.weights=random", "data.size=512", "layers=[relu5_4]", "name=run"]
    with start(command("-m", *options, "part=1/2,2/2", "hydra/launcher=joblib"), tmp_path) as process:
        while not (shards.is_dir() and any(shards.iterdir())):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        # Workers that went on would keep the pipes open.
        _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "\nterminated: " in f"\n{said}"


@pytest.mark.slow
def test_a_sweep_over_networks_and_folders_is_a_run_each(images: Path, tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "imgs").symlink_to(images)
    options = [option for option in OPTIONS if not option.startswith(("name=", "layers=", "data.size="))]
    done = call(*options, "data.dir=a/imgs,b/imgs", "network=vgg16,vgg19", "layers=relu1_1", "data.size=32", "-m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert names_in(tmp_path / "outputs") == {f"imgs-vgg{number}-dir={folder}+imgs" for number in (16, 19) for folder in "ab"}
