"""The sides of a comparison, in processes of their own: functions that are measured in turns, and whole commands."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

REPOSITORY = Path(__file__).parents[2]

Figure = TypeVar("Figure")
Turn = Callable[[], Any]
# Makes everything ready that is not to be measured; gives facts, what the caller should know, and what measures one turn.
Prepare = Callable[[], tuple[dict[str, Any], Turn]]

# Of the side whose process this is.
_turn: Turn


@contextmanager
def side(prepare: Prepare) -> Iterator[tuple[dict[str, Any], Turn]]:
    """Gives the facts of a side and what measures one turn of it, in a process that is idle between two turns."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool.submit(_begin, prepare).result(), lambda: pool.submit(_measure).result()


def _begin(prepare: Prepare) -> dict[str, Any]:
    global _turn
    facts, _turn = prepare()
    return facts


def _measure() -> Any:
    return _turn()


def in_process(function: Callable[..., object], *arguments: Any) -> None:
    """Calls a function in a process of its own, which ends with it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(function, *arguments).result()


def interleave(turns_of: Mapping[str, Callable[[], Figure]], turns: int) -> dict[str, list[Figure]]:
    """Measures every side once a turn, so that a slow minute falls on all of them; forwards and backwards (A B C C B A ...).

    Else one side would always come after another that leaves caches full, or memory that a virtual machine has to ask for again.

    Args:
        turns_of: Name -> what measures it once.
        turns: At least 1.

    Returns:
        Name -> one figure a turn.
    """
    figures: dict[str, list[Figure]] = {name: [] for name in turns_of}
    for turn in range(turns):
        for name in reversed(turns_of) if turn % 2 else turns_of:
            figures[name].append(turns_of[name]())
    return figures


def measure_sides(sides: Mapping[str, Prepare], turns: int) -> tuple[dict[str, list[Any]], dict[str, dict[str, Any]]]:
    """Measures sides in turns, each in a process of its own; gives their figures and their facts by name."""
    with ExitStack() as stack:
        ready = {name: stack.enter_context(side(prepare)) for name, prepare in sides.items()}
        figures = interleave({name: turn for name, (_, turn) in ready.items()}, turns)
    return figures, {name: facts for name, (facts, _) in ready.items()}


def missing(modules: Sequence[str]) -> str:
    """Gives "" where all these packages are installed, else which are not and how to install them."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)} (pip install {' '.join(absent)})" if absent else ""


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
    """Runs ``python -m module`` of a checkout, start to exit; its report is empty.

    Raises:
        RuntimeError: It ends with another exit code than 0.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=repository, env=environment, stdout=said, stderr=said)
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
