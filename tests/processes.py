"""The commands, and programs of Python, in processes of their own; the commands in this one too."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from pipeline.cli import configuration_folder, declare_options, literal_arguments
from pipeline.config import to_yaml

REPOSITORY = Path(__file__).parent.parent


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "default", **variables}


def command(*arguments: str, module: str = "pipeline.run") -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def start(words: list[str], cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """Starts a process whose output is caught."""
    return subprocess.Popen(
        words, cwd=cwd, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(
    words: list[str], cwd: Path | None = None, timeout_seconds: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a process to its end, whatever its exit code."""
    given: dict[str, Any] = {"cwd": cwd, "env": environment(**variables), "timeout": timeout_seconds}
    return subprocess.run(words, **given, capture_output=True, text=True, check=False)


def call(*arguments: str, cwd: Path, module: str = "pipeline.run", **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own."""
    return finish(command(*arguments, module=module), cwd, **variables)


def call_here(*arguments: str, cwd: Path, module: str) -> subprocess.CompletedProcess[str]:
    """Does as :func:`call` in this process, which has loaded the libraries already and keeps its own signals."""
    before, said, errors, code = Path.cwd(), io.StringIO(), io.StringIO(), 0
    os.chdir(cwd)
    try:
        with (
            mock.patch("pipeline.signals.install"),
            mock.patch("pipeline.signals.ignore"),
            mock.patch.object(sys, "argv", [module, *arguments]),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(errors),
        ):
            importlib.import_module(module).main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), errors.getvalue())


def run_python(program: str, *arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that is given as text."""
    return finish([sys.executable, "-c", program, *map(str, arguments)], cwd, **variables)


def composed(arguments: list[str]) -> dict[str, Any]:
    """Gives what the options of a command line come to, as they are stored with a run."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    declare_options("pipeline.run")
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", literal_arguments(arguments)), resolve=True)
    stored: dict[str, Any] = yaml.safe_load(to_yaml(config))
    assert stored == config
    return stored
