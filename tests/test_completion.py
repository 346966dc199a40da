"""Completion of options, as bash asks for it; nothing of the program is started at a press of the key."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline import completion
from pipeline.schema import known_keys

from .test_command import REPOSITORY, call


def complete(*lines: str, cwd: Path) -> list[list[str]]:
    """Gives what bash would offer at the end of each of these lines."""
    call_it = "COMP_LINE=$1; COMP_POINT=${#1}; COMPREPLY=(); _deep_features x y z"
    ask = f'ask() {{ {call_it}; printf "%s\\0" "${{COMPREPLY[@]}}"; echo; }}'
    asked = "\n".join(f"ask '{line}'" for line in lines)
    program = ["bash", "--norc", "-c", f"{completion.script()}\n{ask}\n{asked}"]
    done = subprocess.run(program, cwd=cwd, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"})
    # Outside of a completion there is nothing whose options could be set.
    assert done.stderr == ""
    # Files come in whatever order the folder has them.
    return [sorted(filter(None, line.split("\0"))) for line in done.stdout.splitlines()]


def test_names_choices_layers_and_paths_are_offered(tmp_path: Path) -> None:
    (tmp_path / "my imgs").mkdir()
    (tmp_path / "my.mat").touch()
    assert complete(
        "python -m pipeline.run data.re",
        "deep-features data.dir=imgs data.resize=",
        "deep-features data.resize=c",
        "python3 -m pipeline.run layers=[relu4_1,conv5_",
        "python -m pipeline.run layers=bl",
        "python -m pipeline.run network=",
        "python -m pipeline.run network.weights=m",
        "python -m pipeline.run data.dir=m",
        "python -m pipeline.show ",
        "python -m pipeline.show json=t",
        "deep-features-verify rep",
        "deep-features-verify run=my",
        cwd=tmp_path,
    ) == [
        ["data.resize="],
        ["crop", "pad", "squash"],
        ["crop"],
        ["[relu4_1,conv5_1", "[relu4_1,conv5_2", "[relu4_1,conv5_3", "[relu4_1,conv5_4"],
        ["block1", "block2", "block3", "block4", "block5"],
        ["vgg16", "vgg19"],
        ["matconvnet", "my imgs", "my.mat"],
        ["my imgs"],
        ["--help", "json=", "run="],
        ["true"],
        ["repair="],
        ["my imgs"],
    ]


def test_other_commands_are_left_alone(tmp_path: Path) -> None:
    lines = ["python other.py data.re", "python -m http.ser", "python -m pipeline.ru", "python -m pipeline.none da"]
    assert complete(*lines, cwd=tmp_path) == [[], [], [], []]


def test_every_option_is_offered(tmp_path: Path) -> None:
    (offered,) = complete("python -m pipeline.run ", cwd=tmp_path)
    assert {option.rstrip("=") for option in offered} == {key.removesuffix(".name") for key in known_keys()} | {"--help"}


def test_the_commands_give_the_script_and_take_it_away(tmp_path: Path) -> None:
    for module in ("pipeline.run", "pipeline.verify"):
        result = call("-sc", "install=bash", cwd=tmp_path, module=module)
        assert (result.returncode, result.stdout, result.stderr) == (0, completion.script(), "")
    assert completion.answer(["--shell-completion", "uninstall=bash"]) == completion.removal()
    # Hydra's own to answer.
    assert completion.answer(["-sc", "install=fish"]) is None
    assert completion.answer(["data.dir=install=bash"]) is None
    check = f"{completion.script()}\n{completion.removal()}\ncomplete -p python"
    done = subprocess.run(["bash", "--norc", "-c", check], capture_output=True, text=True, check=False)
    assert "no completion specification" in done.stderr


@pytest.mark.parametrize("name", completion.programs())
def test_every_console_script_is_a_door(name: str) -> None:
    door = name.removeprefix("deep-features").lstrip("-") or "run"
    assert f'{name} = "pipeline.{door}:main"' in (REPOSITORY / "pyproject.toml").read_text()
    assert (REPOSITORY / f"pipeline/{door}.py").is_file()
