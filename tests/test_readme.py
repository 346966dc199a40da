"""What the README promises is run."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import extract_features
from pipeline.config import Options, PlotOptions, check_options, defaults
from pipeline.store import format

from .processes import REPOSITORY, call, call_here, composed
from .test_config import CHOICES

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make extract` makes, in a folder of its own."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(REPOSITORY / "tests/photographs", folder / "tests/photographs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        extract_features("tests/photographs", "relu4_1", name="samples", weights="random", quiet=True)
    finally:
        os.chdir(before)
    return folder


def test_every_block_of_python_runs_and_gives_what_it_says(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(samples)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    found: dict[str, Any] = {}
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        if "layer_table" in names:
            assert names["run"]["relu2_1"].shape == (7, 32, 32, 128)
            assert names["table"]["pool5"].shape == (2, 2, 512)
        else:
            assert (names["features"].shape[-3:], names["features"].dtype) == ((28, 28, 512), "float32")
            found = names | found
    assert found["run"].layers == ("relu4_1",)
    assert len(found["run"]) == len(found["heights"]) == 7
    assert (found["row"], found["labels"][found["row"]]) == (0, "animals")
    assert found["good"].all()
    assert found["some"].shape == (3, 28, 28, 512)
    assert 0.2 < found["statistics"].zero_share < 0.8
    assert found["dataset"].class_names == ("animals", "people", "sky", "things")
    assert found["key"] == "sky/hubble.jpg"


def commands() -> list[list[str]]:
    """Gives the words of every command in the README's blocks that starts a module, as a shell sees them."""
    lines = re.findall(r"^    python -m (pipeline\.\w+.*)$", README, flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_command_that_looks_at_the_samples_runs(samples: Path) -> None:
    looking = [
        words for words in commands() if words[0] == "pipeline.layers" or {"run=outputs/samples", "run=outputs/small"} & {*words}
    ]
    assert len(looking) >= 6
    said = ""
    for module, *arguments in looking:
        ended = call_here(*arguments, cwd=samples, module=module)
        assert ended.returncode == 0, ended.stderr
        said += ended.stdout
    for text in ("relu4_1", "whole and unchanged", "written: cat.pdf", "command    python -m pipeline.run"):
        assert text in said
    assert (samples / "cat.pdf").read_bytes().startswith(b"%PDF")


def test_the_options_of_every_command_that_extracts_are_right() -> None:
    for words in commands():
        if words[0] == "pipeline.run":
            assert isinstance(check_options(composed(words[1:])), Options), words


def rows_of(section: str) -> dict[str, str]:
    """Gives option -> the row of a section's table that has it in its first cell."""
    text = README.split(f"## {section}\n")[1].split("\n## ")[0]
    return {name: row for row in text.splitlines() if row.startswith("| `") for name in re.findall("`(.+?)`", row.split("|")[1])}


@pytest.mark.parametrize(("section", "kind"), [("Options", Options), ("Looking at it", PlotOptions)])
def test_the_tables_of_options_have_every_option_with_its_default_and_choices(section: str, kind: type) -> None:
    rows = rows_of(section)
    assert set(rows) == {key.removesuffix(".name") for key in defaults(kind)}
    for key, default in defaults(kind).items():
        name = key.removesuffix(".name")
        cells = [cell.strip() for cell in rows[name].split("|")]
        names = re.findall("`(.+?)`", cells[1])
        written = cells[2].split(", ")
        said = yaml.safe_load(written[names.index(name)] if len(written) == len(names) else cells[2])
        assert said == default, key
        for value in CHOICES.get(key, ()) if kind is Options else ():
            assert f"`{value}`" in rows[name], (key, value)


def test_every_column_and_every_package_is_named() -> None:
    for column in (*format.TEXT_COLUMNS, *format.NUMBER_COLUMNS):
        assert f"`/images/{column}`" in README, column
    assert len(README.splitlines()) <= 250
    # What the last section names is there, and each file or its folder is named.
    listing = README.split("    pipeline/\n")[1].split("\n\n")[0]
    for path in {*(REPOSITORY / "pipeline").glob("[!_]*")} - {REPOSITORY / "pipeline/py.typed"}:
        assert re.search(rf"\b{path.name.partition('.')[0]}\b", listing), path


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


def test_make_passes_data_layers_and_arguments_on_as_typed(make_extract: Callable[..., list[str]]) -> None:
    for folder in ("my imgs", "it's $(x) ${foo} $HOME #hash", 'a;b q"uote ünï', "new\nline", "back\\"):
        said, *arguments = make_extract(f"DATA=/x/{folder}", "LAYERS=relu4_1,relu5_1", "ARGS=batch_size=8 data.size=64")
        assert arguments[:4] == ["-m", "pipeline.run", f"data.dir=/x/{folder}", "layers=[relu4_1,relu5_1]"]
        assert arguments[4:] == ["batch_size=8", "data.size=64"]
        assert "untrained" not in said


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
    for path in (REPOSITORY / "tests/photographs").glob("*/*.*"):
        assert f"`{path.parent.name}/{path.name}`" in credits


@pytest.mark.slow  # loads TensorFlow twice, Keras, and PyTorch where it is installed
def test_a_linear_probe_on_features_tells_stripes_from_dots(tmp_path: Path) -> None:
    result = call(str(tmp_path), cwd=REPOSITORY, module="tests.examples.linear_probe")
    assert result.returncode == 0, result.stderr
    accuracy = dict(re.findall(r"^(tf\.data|PyTorch): accuracy (\d\.\d\d) on 40 pictures", result.stdout, flags=re.MULTILINE))
    # Half is chance; 0.8 of 40 would be that by chance once in ten thousand times.
    assert float(accuracy["tf.data"]) >= 0.8, result.stdout
    if importlib.util.find_spec("torch"):
        assert float(accuracy["PyTorch"]) >= 0.8, result.stdout
    else:
        assert "PyTorch: not installed (pip install torch)" in result.stdout
