"""What the machine has and what this process takes of it, and another process for what may crash. Imports no stage."""

from __future__ import annotations

import faulthandler
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

T = TypeVar("T")

# A file is read in so many seconds, and one more for each so many bytes, or the process that reads it hangs.
TIMEOUT_SECONDS, SLOWEST_BYTES_A_SECOND = 120.0, 2 << 20
# What that process runs: no module of the present folder, and not by multiprocessing, which would run a user's script again.
_CHILD = "import sys; sys.path[0] = sys.argv[1]; from pipeline import machine; machine.answer_parent()"

_MEMORY = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


class ChildError(Exception):
    """The process that was to read a file crashed, or did not end in time."""


def read_in_child(function: Callable[..., T], path: Path, *arguments: Any) -> T:
    """Return ``function(path, *arguments)``, called in another process: libraries may crash on a damaged file, or never return.

    Args:
        function: Of a module's top level, as pickle finds it by name. What it takes and returns goes through a pipe.
        path: Of the file that is read.
        arguments: Further ones.

    Raises:
        ChildError: The process crashed or did not end in time.
        Exception: What the function raises.
    """
    seconds = TIMEOUT_SECONDS + path.stat().st_size / SLOWEST_BYTES_A_SECOND
    task = pickle.dumps((seconds, function, path, *arguments)).hex()
    words = [sys.executable, "-c", _CHILD, str(Path(__file__).parents[1]), task]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        try:
            result = pickle.load(cast(BinaryIO, child.stdout))
        except (EOFError, pickle.UnpicklingError) as error:
            raise ChildError(f"a crash, or no answer for {seconds:.0f} s, exit code {child.wait()}") from error
    if isinstance(result, Exception):
        raise result
    return cast(T, result)


def answer_parent() -> None:
    """Do what :func:`read_in_child` asks for, and write what came of it to stdout."""
    seconds, function, *arguments = pickle.loads(bytes.fromhex(sys.argv[2]))
    # Here, since the parent may be killed before.
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        result = function(*arguments)
    except Exception as error:
        result = error
    # Protocol 5 copies no arrays.
    pickle.dump(result, sys.stdout.buffer, protocol=5)


def usable_cores() -> int:
    """Return the cores this process may use: a container or a scheduler may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Source: getrusage(2): kilobytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int | None:
    """Return the memory that is free or can be freed, and that this process may take; None where the system does not tell."""
    limits = [_memory("MemAvailable"), *(_free_in_group(folder) for folder in _groups())]
    return min((limit for limit in limits if limit is not None), default=None)


def total_bytes() -> int | None:
    """Return the memory of the machine, or what a container or a scheduler allows of it; None where the system does not tell."""
    limits = [int(text) for folder in _groups() if (text := _read(folder / "memory.max").strip()).isdigit()]
    return min(filter(None, [_memory("MemTotal"), *limits]), default=None)


def _memory(name: str) -> int | None:
    # Source: proc(5): in kB.
    found = _read(_MEMORY).partition(f"{name}:")[2].split()
    return int(found[0]) * 1024 if found else None


def _groups() -> list[Path]:
    """Return the control group folders of this process and of those around it. A container may show its own as the root."""
    # Source: cgroups(7): the line of version 2.
    own = [Path(line[3:]) for line in _read(_OWN_GROUPS).splitlines() if line.startswith("0::/")]
    return [_GROUPS / part.relative_to("/") for group in own for part in (group, *group.parents)]


def _free_in_group(folder: Path) -> int | None:
    """Return what a control group may still take; None where it has no limit."""
    # Source: Linux, admin-guide/cgroup-v2, memory interface files: bytes, or "max".
    most, taken, stat = (_read(folder / name) for name in ("memory.max", "memory.current", "memory.stat"))
    try:
        # Files that were read count as taken, and are forgotten when memory is needed.
        kinds = dict(line.split() for line in stat.splitlines())
        return max(0, int(most) - int(taken) + int(kinds.get("inactive_file", 0)) + int(kinds.get("active_file", 0)))
    except ValueError:  # none there, or "max"
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
