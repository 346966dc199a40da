"""Odd surroundings: languages, homes, clocks, names of folders, terminals of few letters, lists of endless lines."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import open_run
from pipeline.cli import fail
from pipeline.errors import PipelineError, printable

from .bad_images import picture
from .processes import command, environment, finish
from .stored_runs import make_spec, write_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names, languages and pipes as on Unix")

NOT_UTF8 = os.fsdecode(b"run \xff\xfe")


def verify(folder: Path, **variables: str) -> tuple[int, list[str]]:
    arguments = [sys.executable, "-m", "pipeline.verify", f"run={folder}"]
    ended = subprocess.run(arguments, env={**environment(), **variables}, capture_output=True, check=False)
    return ended.returncode, (ended.stdout + ended.stderr).decode("utf-8", "replace").splitlines()


def test_findings_are_printed_whatever_the_terminal_and_the_name_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / f"{NOT_UTF8} \n é"
    write_run(folder, make_spec(3))
    with (folder / "features.h5").open("ab") as file:
        file.write(b"x")
    code, lines = verify(folder, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    assert code == 1
    found, summary, error = lines
    assert "features.h5: the file is damaged, got SHA-256" in found
    assert found.startswith(f"{tmp_path}/run \\udcff\\udcfe \\n ")
    assert summary.endswith(": 1 finding")
    assert error.startswith("error: ")


def test_an_error_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail(PipelineError("a\nb\x1b[2J\udcff é"))
    assert capsys.readouterr().err == "error: a\\nb\\x1b[2J\\udcff é\n"
    assert printable("abc", 2) == "ab"


@pytest.mark.slow
def test_a_run_is_the_same_in_every_language_home_and_order_of_hashing(tmp_path: Path) -> None:
    (tmp_path / "imgs").mkdir()
    for number in range(3):
        picture(number).save(tmp_path / f"imgs/é {number}.png")
    options = ["data.dir=imgs", "network.weights=random", "data.size=32", "layers=[relu1_1]"]
    found = []
    surroundings = [
        {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONHASHSEED": "0", "HOME": ""},
        {"HOME": "/dev/null", "LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"},
    ]
    for number, variables in enumerate(surroundings):
        name = f"output.dir={NOT_UTF8}" if number == 1 else "output.dir=out"
        arguments = command(*options, name, f"name=run{number}")
        given = {name: text for name, text in {**environment(), **variables}.items() if text}
        ended = subprocess.run(arguments, cwd=tmp_path, env=given, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr
        folder = tmp_path / name.removeprefix("output.dir=") / f"run{number}"
        code, lines = verify(folder)
        assert code == 0, lines
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        assert report["folder"] == str(folder.relative_to(tmp_path))
        with open_run(folder) as run:
            assert list(run.images["key"]) == ["é 0.png", "é 1.png", "é 2.png"]
            found.append((run.attributes["run_digest"], run["relu1_1"][:].tobytes()))
    assert len(set(found)) == 1


@pytest.mark.skipif(shutil.which("unshare") is None, reason="this system has no namespaces in which to mount for oneself")
def test_a_run_on_a_read_only_disk_is_verified_and_read(tmp_path: Path) -> None:
    write_run(tmp_path / "run", make_spec(3))
    program = """if True:
        from pathlib import Path
        from pipeline import open_run
        from pipeline.store.verification import verify_folder
        from pipeline.verify import verify
        print(verify_folder(Path("run"), 1).count, open_run("run")["relu4_1"][2].shape)
        try:
            verify(Path("run"), repair=True)
        except Exception as error:
            print(error)
    """
    script = f"mount --bind run run; mount -o remount,bind,ro run; {sys.executable} -c {shlex.quote(program)}"
    arguments = ["unshare", "--map-root-user", "--mount", "sh", "-ec", script]
    ended = finish(arguments, tmp_path)
    if "unshare:" in ended.stderr or "mount:" in ended.stderr:
        pytest.skip(f"this system lets this user mount nothing: {ended.stderr}")
    numbers, refusal = ended.stdout.splitlines()
    assert numbers == "0 (80, 80, 3)", ended
    assert "run/.lock: it cannot be written, got EROFS " in refusal, ended
