"""Where the program's lines go: the terminal, and ``run.log`` in the run folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from logging.handlers import MemoryHandler
from pathlib import Path

from .errors import PipelineError
from .store import disk

# All rooms log below this name.
LOGGER = logging.getLogger("pipeline")

_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)


def can_draw() -> bool:
    """Tells whether a bar may be drawn: on a terminal, or in a notebook, whose kernel says of its stderr that it is none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return not _is_quiet.get() and (sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", {}))


@contextmanager
def to_terminal(quiet: bool = False) -> Iterator[MemoryHandler]:
    """Sends lines to stderr, as they are, and keeps them for :func:`to_file`.

    Args:
        quiet: Whether only warnings are sent, and no bar is drawn.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    handler.setFormatter(logging.Formatter("%(message)s"))
    kept = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    token = _is_quiet.set(quiet)
    try:
        with closing(kept), _attached(handler), _attached(kept):
            yield kept
    finally:
        _is_quiet.reset(token)


@contextmanager
def to_file(path: Path, kept: MemoryHandler) -> Iterator[None]:
    """Appends lines with their time to a file: those kept so far, and all that follow; last, what ended the run.

    Raises:
        StoreError: It cannot be written.
    """
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise disk.write_error(path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # A full disk stops the run by its own error; that the log cannot be written then is no news.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    with _closing(handler):
        for record in kept.buffer:
            handler.handle(record)
        try:
            with _attached(handler):
                yield
        except BaseException as error:
            # For the file alone: the door says it on the terminal.
            text = str(error) if isinstance(error, PipelineError) else f"stopped by {type(error).__name__} {error}".strip()
            handler.handle(LOGGER.makeRecord(LOGGER.name, logging.ERROR, "", 0, text, (), None))
            raise


@contextmanager
def _closing(handler: logging.Handler) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            handler.close()


@contextmanager
def _attached(handler: logging.Handler) -> Iterator[None]:
    before = LOGGER.level, LOGGER.propagate
    LOGGER.setLevel(logging.INFO)
    # A program that runs a job from Python may have handlers of its own at the root; lines must not come twice.
    LOGGER.propagate = False
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]
