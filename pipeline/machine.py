"""What the machine has and what this process takes of it. Every stage may ask; it imports none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_MEMORY = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


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
