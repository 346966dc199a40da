"""Which tar files are meant by paths, patterns, ranges and folders."""

# Paths are texts in this room, and stay as they are written.
# ruff: noqa: PTH100, PTH111, PTH112, PTH118, PTH119, PTH207

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence

from ..errors import DatasetError
from .names import quoted_names

# Each is opened while they are listed.
MOST_TARS = 1_000_000


def find_tars(names: Sequence[str]) -> list[str]:
    """Gives the absolute paths of all tar files that are meant, each once, in the order of their names.

    Raises:
        DatasetError: There is none.
    """
    paths: set[str] = set()
    missing: list[str] = []
    for written in names:
        for name in itertools.islice(_expanded(os.path.abspath(os.path.expanduser(written))), MOST_TARS + 1):
            if os.path.isdir(name):
                matches = glob.glob(os.path.join(glob.escape(name), "*.tar"))
            else:
                matches = [name] if os.path.lexists(name) else glob.glob(name, recursive=True) if glob.has_magic(name) else []
            # What has no .tar in its name is a folder, also where it is not there: the folder of the keys depends on it.
            plain = matches == [name] and ".tar" not in os.path.basename(name).lower()
            matches = [match for match in matches if not plain and not os.path.isdir(match)]
            paths.update(matches)
            missing += [] if matches else [name]
        if len(paths) + len(missing) > MOST_TARS:
            raise DatasetError(
                f"data.tar: too many tar files, got {written!r}. Expected at most {MOST_TARS:,}. Divide them among several runs."
            )
    if missing:
        raise DatasetError(
            f"data.tar: {len(missing)} names without a tar file, got {quoted_names(missing)}. Expected files, folders that hold "
            f"*.tar, or patterns that match some. Check the path."
        )
    return sorted(paths)


def _expanded(name: str) -> Iterator[str]:
    """Gives the names that braces stand for, as the shell and WebDataset do: ``{000..012}``, ``{train,val}``."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", name)
    # What is there under this very name is meant.
    if match is None or os.path.lexists(name):
        yield name
        return
    if match[3] is not None:
        parts: Iterator[str] = iter(match[3].split(","))
    else:
        first, last = int(match[1]), int(match[2])
        width = max(len(match[1]), len(match[2])) if "0" in (match[1][0], match[2][0]) else 0
        parts = (f"{number:0{width}d}" for number in range(first, last + 1))
    for part in parts:
        yield from _expanded(name[: match.start()] + part + name[match.end() :])
