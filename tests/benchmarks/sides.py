"""Sides in processes of their own: each is prepared once, then measured once a turn and idle between.

As a program (``python -m tests.benchmarks.sides module:function``) it is the inside of such a process. The function is handed
the arguments, prepares everything that is not to be measured, and gives (facts, turn): what the caller should know, and what
measures one turn.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parent.parent.parent

Turn = Callable[[], Any]


def usable_cores() -> int:
    """Gives the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(repository: Path = REPOSITORY) -> dict[str, str]:
    """Gives what every process is started with: a checkout first, and TensorFlow silent."""
    return {**os.environ, "PYTHONPATH": str(repository), "TF_CPP_MIN_LOG_LEVEL": "3"}


class Side:
    """A process that measures one side.

    Args:
        function: ``module:function`` below ``tests.benchmarks``.
        repository: Of another checkout; this one.
        arguments: Of the function, as JSON can carry them.

    Attributes:
        facts: What the function had to say when it was ready.
    """

    def __init__(self, function: str, repository: Path = REPOSITORY, **arguments: Any) -> None:
        self._function = function
        # What it says on its standard error, kept for the case that it ends.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.sides", function],
            cwd=repository,
            env=environment(repository),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self.facts: dict[str, Any] = self._ask(arguments)

    def turn(self) -> Any:
        """Measures one turn."""
        return self._ask({})

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._said.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._said.seek(0)
            last = self._said.read().decode(errors="replace")[-3000:]
            self.close()
            raise RuntimeError(f"{self._function} ended with exit code {self._process.returncode}:\n{last}")
        return json.loads(answer)


class Finished(NamedTuple):
    """What a command took from start to exit.

    Attributes:
        seconds: Wall time.
        peak_bytes: Largest resident memory.
        report: Content of the run's ``report.json``; empty where there is none.
    """

    seconds: float
    peak_bytes: int
    report: dict[str, Any]


def run_program(module: str, *arguments: str | Path, repository: Path = REPOSITORY) -> Finished:
    """Runs ``python -m module``, start to exit; its report is empty.

    Raises:
        RuntimeError: It ends with another exit code than 0.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=repository, env=environment(repository), stdout=said, stderr=said)
        # wait4 tells this child's own peak; getrusage would tell the largest of all children.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{command} ended with exit code {process.returncode}:\n{said.read().decode(errors='replace')}")
    return Finished(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), {})


def run_ours(output: Path, *overrides: str, repository: Path = REPOSITORY) -> Finished:
    """Runs ``python -m pipeline.run`` with seeded random weights, start to exit.

    Args:
        output: The run's folder.
        overrides: Further options.
        repository: Of another checkout; this one.

    Raises:
        RuntimeError: It ends with another exit code than 0.
    """
    options = [f"output.dir={output.parent}", f"name={output.name}", "network.weights=random", *overrides]
    finished, report = run_program("pipeline.run", *options, repository=repository), output / "report.json"
    return finished._replace(report=json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {})


def _serve(function: str) -> None:
    """Answers questions on standard input until it ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = function.partition(":")
    prepare = getattr(importlib.import_module(f".{module}", "tests.benchmarks"), name)
    facts, turn = prepare(**json.loads(sys.stdin.readline()))
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
