"""Where the program's lines go: the terminal, and ``run.log`` in the run folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .store import disk

# All rooms log below this name.
LOGGER = logging.getLogger("pipeline")


@contextmanager
def to_terminal() -> Iterator[None]:
    """Sends lines to stderr, as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    with _attached(handler):
        yield


@contextmanager
def to_file(path: Path) -> Iterator[None]:
    """Appends lines with their time to a file.

    Raises:
        StoreError: It cannot be written.
    """
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise disk.write_error(path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    with closing(handler), _attached(handler):
        yield


@contextmanager
def _attached(handler: logging.Handler) -> Iterator[None]:
    LOGGER.setLevel(logging.INFO)
    # A program that runs a job from Python may have handlers of its own at the root; lines must not come twice.
    LOGGER.propagate = False
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
