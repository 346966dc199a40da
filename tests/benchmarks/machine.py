"""What a table was measured on: date, processor, versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from pipeline.machine import usable_cores

from .sides import REPOSITORY

PROGRAMS = (*("tensorflow", "keras", "numpy", "h5py", "pillow", "isal", "llvmlite"), *("ncnn", "MNN", "onnxruntime", "onnx"))


def describe_machine() -> dict[str, str]:
    """Gives the lines that stand before a table, name -> text."""
    versions = {"python": platform.python_version()}
    for name in PROGRAMS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        "processor": f"{_processor()}, {usable_cores()} cores",
        "commit": _commit(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    try:
        words = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not known"
