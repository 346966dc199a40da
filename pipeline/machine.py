"""What the machine has and what this process takes of it. Every stage may ask; it imports none."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def usable_cores() -> int:
    """Gives the cores this process may use: a container or a scheduler may allow fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Gives the largest resident size of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Source: getrusage(2): kilobytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int | None:
    """Gives the memory that is free or can be freed; None where the system does not tell."""
    information = Path("/proc/meminfo")
    if not information.is_file():
        return None
    # Source: proc(5).
    found = information.read_text().partition("MemAvailable:")[2].split()
    return int(found[0]) * 1024 if found else None
