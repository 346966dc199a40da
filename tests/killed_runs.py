"""Runs that are stopped at chosen moments, and what must be left of them.

The program has no hook for this. Python loads ``sitecustomize`` at the start of every process; the one below listens to what
the interpreter tells its auditors (a file is opened, is renamed) and, at the moment asked for, sends its own process a signal, or
lowers the size that the system allows a file to have, so that the next write past it is cut in the middle and kills.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ROOT = Path(__file__).parent.parent

LISTENER = """
import fnmatch, os, signal, sys
from pathlib import Path

event, name, count, number, limit_bytes = os.environ["STOPPED_AT"].split("|")
seen = 0
if limit_bytes:
    import resource

    # Python ignores it, so that a write beyond the limit is an error; by default it kills.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def listen(happened, arguments):
    global seen
    if happened != event or not isinstance(arguments[0], (str, os.PathLike)):
        return
    if not fnmatch.fnmatch(os.fspath(arguments[0]), name):
        return
    seen += 1
    if seen != int(count):
        return
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_bytes), int(limit_bytes)))
    else:
        os.kill(os.getpid(), int(number))


def replaced(path, target):
    result = replace(path, target)
    listen("renamed", [target])
    return result


replace, Path.replace = Path.replace, replaced
sys.addaudithook(listen)
"""


@dataclass(frozen=True)
class Moment:
    """When a process is stopped, and how."""

    event: str  # that the interpreter tells auditors of: open, os.rename, os.mkdir, import; and renamed, after it
    name: str  # pattern of the path, or of the module
    count: int = 1  # at which occasion, from 1
    signal: signal.Signals = signal.SIGKILL  # what is sent; SIGXFSZ: by the system, at the first write beyond limit_bytes
    limit_bytes: int | None = None  # largest file from this moment on

    @property
    def exit_code(self) -> int:
        """What the process ends with, as Python gives it."""
        return {signal.SIGINT: 130, signal.SIGTERM: 143}.get(self.signal, -self.signal)

    @property
    def in_order(self) -> bool:
        """Whether the program hears of it and can tidy up."""
        return self.signal in (signal.SIGINT, signal.SIGTERM)

    def environment(self) -> dict[str, str]:
        """Gives the variable that the listener reads."""
        return {"STOPPED_AT": f"{self.event}|{self.name}|{self.count}|{self.signal.value}|{self.limit_bytes or ''}"}

    def __str__(self) -> str:
        limit = f", {self.limit_bytes} bytes" if self.limit_bytes else ""
        return f"{self.signal.name} at {self.event} {self.name} {self.count}{limit}"


def closed(name: str, count: int = 1, **how: Any) -> Moment:
    """All of a file has been handed to the system, nothing of it is forced to the disk yet."""
    return Moment("open", f"*{name}.partial", count, **how)


def synced(name: str, count: int = 1, **how: Any) -> Moment:
    """A file is on the disk and has not got its final name."""
    return Moment("os.rename", f"*{name}.partial", count, **how)


def renamed(folder: str, count: int = 1, **how: Any) -> Moment:
    """A file in this folder has got its final name; the name is not forced to the disk yet."""
    return Moment("open", f"*{folder}", count, **how)


def cut(after: str, limit_bytes: int, count: int = 1) -> Moment:
    """In the middle of a write, of whatever is the first to grow beyond the limit after this file has been put in place."""
    return Moment("os.rename", f"*{after}.partial", count, signal.SIGXFSZ, limit_bytes)


def call_python(
    listener: Path, arguments: Sequence[str], folder: Path, moment: Moment | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python in a folder, to its end or to the moment; ``listener``: a folder for the listener's file."""
    (listener / "sitecustomize.py").write_text(LISTENER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary_folder(listener))}
    if moment:
        environment |= {"PYTHONPATH": f"{listener}{os.pathsep}{ROOT}", **moment.environment()}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def temporary_folder(listener: Path) -> Path:
    """Gives the folder for what :func:`call_python`'s processes do not put elsewhere."""
    folder = listener / "temporary"
    folder.mkdir(exist_ok=True)
    return folder


def partial_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.partial*"))


def finished_shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Gives (inode, time of change in ns) of the shards with their final name: a file written again has others."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shards/*.h5")}


def contents(path: Path) -> dict[str, Any]:
    """Gives every dataset and attribute of a file but the time at which it was made and what covers it; floats as their bits."""
    found: dict[str, Any] = {}

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        for key, value in node.attrs.items():
            # References of dimension scales are not equal between files.
            if key not in ("created", "DIMENSION_LIST", "REFERENCE_LIST"):
                found[f"{name}@{key}"] = (np.asarray(value).dtype, np.asarray(value).tolist())
        if isinstance(node, h5py.Dataset):
            values = node[()]
            if values.dtype.kind == "f":
                values = values.view(f"u{values.itemsize}")
            found[name] = (node.dtype, node.chunks, node.shape, values.tobytes() if values.dtype != object else values.tolist())

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return found


def assert_same_run(folder: Path, undisturbed: Path, but: Sequence[str] = ()) -> None:
    """Holds all files of a run but its lock to those of another, bit for bit, but for what ends with one of these words."""
    names, expected = (
        {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}
        for root in (folder, undisturbed)
    )
    assert names == expected
    for name in sorted(names):
        if name.endswith(".h5"):
            assert_same_file(folder / name, undisturbed / name, but)


def assert_same_file(one: Path, other: Path, but: Sequence[str] = ()) -> None:
    """Holds what is in a file to what is in another, bit for bit, but for what ends with one of these words."""
    found, expected = contents(one), contents(other)
    assert found.keys() == expected.keys(), one
    for part in found:
        assert part.endswith(tuple(but)) or found[part] == expected[part], (one, part)


def write_in_store(folder: Path) -> None:
    """Writes a run of some shards without network, TensorFlow and images."""
    from .stored_runs import make_spec, write_run

    write_run(folder, make_spec(rows=40), failed=[3, 8, 9, 10, 11])


if __name__ == "__main__":
    write_in_store(Path(sys.argv[1]))
