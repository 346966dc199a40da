"""What the README promises is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.schema import CHOICES, PlotSchema, VerifySchema, known_keys
from pipeline.store import format

from .test_command import REPOSITORY, call

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make extract` makes, in a folder of its own."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(REPOSITORY / "tests/photographs", folder / "tests/photographs")
    result = call("data.dir=tests/photographs", "name=samples", "network.weights=random", "layers=[relu4_1]", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_block_of_python_runs_and_gives_what_it_says(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(samples)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names: dict[str, object] = {}
        exec(block, names)
        assert names["features"].shape[-3:] == (28, 28, 512)
        assert names["features"].dtype == "float32"
        if "dataset" in names:
            assert len(names["features"]) == len(names["heights"]) == 7
            assert names["dataset"].class_names == ("animals", "people", "sky", "things")
        elif "run" in names:
            assert names["run"].layers == ("relu4_1",)
            assert len(names["run"]) == 7
            assert (names["row"], names["labels"][names["row"]]) == (0, "animals")
            assert names["good"].all()
            assert names["some"].shape == (3, 28, 28, 512)
            assert 0.2 < names["statistics"].zero_share < 0.8
            names["run"].close()
        else:
            assert names["key"] == "sky/hubble.jpg"


def test_every_option_is_in_the_table() -> None:
    table = README.split("## Options")[1].split("\n## ")[0]
    for key in known_keys():
        key = key.removesuffix(".name")
        assert f"`{key}`" in table, key
    for key, values in CHOICES.items():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{key.removesuffix('.name')}`"))
        for value in values:
            assert f"`{value}`" in row, (key, value)


def test_every_option_and_exit_code_of_verify_is_named() -> None:
    section = README.split("## Checking it")[1].split("\n## ")[0]
    for key in known_keys(VerifySchema()):
        assert f" {key}=" in section, key
    for code in ("0", "1", "2", "130"):
        assert f"\n| {code}" in section, code


def test_every_option_of_plot_is_named() -> None:
    section = README.split("## Looking at it")[1].split("\n## ")[0]
    for key in known_keys(PlotSchema()):
        assert f"`{key}`" in section, key


def test_every_column_and_every_package_is_named() -> None:
    for column in (*format.TEXT_COLUMNS, *format.NUMBER_COLUMNS):
        assert f"`/images/{column}`" in README, column
    for folder in ("engines", "storage", "images", "network", "store", "training"):
        assert f"{folder}/ " in README


@pytest.fixture
def make_extract(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs `make extract` in an environment whose Python only tells its arguments; gives the last call's, and what was said."""
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").write_text('#!/bin/sh\nprintf \'%s\\0\' "$@" > "$TOLD"\n')
    (tmp_path / "venv/bin/python").chmod(0o755)
    for stamp in (".ready", ".ready-dev"):
        (tmp_path / "venv" / stamp).touch()

    def call_make(*arguments: str) -> list[str]:
        told = tmp_path / "told"
        environment = {**os.environ, "TOLD": str(told)}
        command = ["make", "extract", f"VENV={tmp_path / 'venv'}", *arguments]
        said = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout
        return [said, *told.read_text().split("\0")[:-1]]

    return call_make


def test_make_passes_data_layers_and_arguments_on(make_extract: Callable[..., list[str]]) -> None:
    said, *arguments = make_extract("DATA=my imgs", "LAYERS=relu4_1,relu5_1", "ARGS=batch_size=8 data.size=64")
    assert arguments == ["-m", "pipeline.run", "data.dir=my imgs", "layers=[relu4_1,relu5_1]", "batch_size=8", "data.size=64"]
    assert "untrained" not in said


@pytest.mark.parametrize("folder", ["it's", 'q"uote', "$(x)", "${foo}", "$HOME", "new\nline", "back\\", "#hash", "a;b", "ünï"])
def test_make_passes_a_folder_on_as_it_is_typed(folder: str, make_extract: Callable[..., list[str]]) -> None:
    assert make_extract(f"DATA=/x/{folder}")[3] == f"data.dir=/x/{folder}"


def test_make_without_data_takes_the_samples_and_says_what_the_weights_are(make_extract: Callable[..., list[str]]) -> None:
    said, *arguments = make_extract()
    assert "These weights are untrained" in said
    assert arguments[2:] == ["data.dir=tests/photographs", "name=samples", "network.weights=random", "layers=[relu4_1]"]


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    assert targets
    for target in targets[1].split():
        assert f"make {target} " in listed, target


def test_the_samples_are_credited() -> None:
    credits = (REPOSITORY / "tests/photographs/CREDITS.md").read_text()
    pictures = [path for path in (REPOSITORY / "tests/photographs").glob("*/*") if path.suffix in (".jpg", ".png")]
    assert len(pictures) >= 5
    for path in pictures:
        assert f"`{path.parent.name}/{path.name}`" in credits
