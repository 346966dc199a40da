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
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


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
    limits = [_free_in_group(folder) for folder in _groups()]
    if _MEMORY.is_file():
        # Source: proc(5).
        found = _MEMORY.read_text().partition("MemAvailable:")[2].split()
        limits.append(int(found[0]) * 1024 if found else None)
    return min((limit for limit in limits if limit is not None), default=None)


def _groups() -> list[Path]:
    """Return the control group folders of this process and of those around it. A container may show its own as the root."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return []
    # Source: cgroups(7): the line of version 2.
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return []
    within = Path(own)
    return [_GROUPS / part for part in (within, *within.parents)]


def _free_in_group(folder: Path) -> int | None:
    """Return what a control group may still take; None where it has no limit."""
    try:
        # Source: Linux, admin-guide/cgroup-v2, memory interface files: bytes, or "max".
        most, taken = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # Files that were read count as taken, and are forgotten when memory is needed.
        files = sum(int(kinds.get(kind, 0)) for kind in ("inactive_file", "active_file"))
        return max(0, int(most) - int(taken) + files)
    except (OSError, ValueError):  # none there, or "max"
        return None
