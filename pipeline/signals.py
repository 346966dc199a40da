"""Ctrl-C and SIGTERM: one line and the right exit code, within seconds, whatever the program is doing.

At first a signal ends the process at once. Where something could be lost it raises in the main thread instead, and a thread ends
the process if that takes too long. Light, since it must be there before everything that takes time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

# Source of the exit codes: POSIX shells report death by signal n as 128 + n.
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# What dropping the open shard and finishing complete ones may take. One step of the network over a huge image, or a disk that
# does not answer, can take longer, and Python's main thread hears nothing before it returns; then the process ends as it is,
# which loses no more than SIGKILL. Half of what `docker stop` waits before it kills.
GRACE_SECONDS = 5.0


@dataclass
class _State:
    raises: bool = False  # in the main thread, instead of ending the process
    clear: Callable[[], None] | None = None  # is called before the end
    advice: str = ""
    terminal: int = 2
    number: int = signal.SIGINT  # of the signal that has come


# Signals belong to the process, and so does this.
_state = _State()


@contextmanager
def _changed(**changes: Any) -> Iterator[None]:
    before = {name: getattr(_state, name) for name in changes}
    vars(_state).update(changes)
    try:
        yield
    finally:
        vars(_state).update(before)


def leaving_at_once() -> AbstractContextManager[None]:
    """Make signals end the process at once inside a block, for imports: libraries take what is raised there for their fault."""
    return _changed(raises=False)


def clearing(clear: Callable[[], None]) -> AbstractContextManager[None]:
    """Call something if the process is ended inside a block without the block's own end; what it raises is lost."""
    return _changed(clear=clear)


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Set the handlers of signals again after the block, in which a library may have put its own in their place."""
    handlers = {number: signal.getsignal(number) for number in WORDS}
    try:
        yield
    finally:
        with suppress(ValueError, TypeError):  # in another thread, where a library cannot have put any; unknown to Python
            for number, handler in handlers.items():
                signal.signal(number, handler)


def install(advice: str) -> None:
    """Make signals end the process at once, with a line that ends in advice; those that the parent ignores stay ignored."""
    _state.advice = advice
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _answer)
    # Of its own: loading TensorFlow sends the usual one elsewhere for a while.
    with suppress(OSError):
        _state.terminal = os.dup(2)


def raise_in_main_thread() -> None:
    """Make the first signal raise ``KeyboardInterrupt`` in the main thread, SIGTERM too; further ones do nothing.

    Does nothing unless :func:`install` has been called: a program that runs a job from Python answers its own signals.
    """
    if _state.raises or not any(signal.getsignal(number) is _answer for number in WORDS):
        return
    _state.raises = True
    # Python's handlers wait until the main thread comes back from what it computes; the thread that reads these bytes does not.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()


def ignore() -> None:
    """Make signals do nothing: all is done, or given up, and the process only ends."""
    for number in WORDS:
        signal.signal(number, signal.SIG_IGN)


def stop() -> NoReturn:
    """Say which signal has stopped the run, and end the process at once with its exit code.

    Everything has been closed by then. Python would clear TensorFlow away object by object, which takes a second, on a busy
    machine ten.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    _end(_state.number)


def _answer(number: int, frame: FrameType | None) -> None:
    _state.number = number
    # Impatient people press twice, and a shell may pass on what the terminal has sent already.
    ignore()
    if not _state.raises:
        _end(number)
    # It may come into the middle of a library's making an object, which then cannot be cleared away: h5py says so at length.
    sys.unraisablehook = lambda _: None
    raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """Wait for a signal, give the main thread its time, and end the process."""
    while (number := os.read(reader, 1)[0]) not in WORDS:
        pass
    time.sleep(GRACE_SECONDS)
    _end(number)


def _end(number: int) -> NoReturn:
    if _state.clear is not None:
        with suppress(Exception):
            _state.clear()
    # Not by print, which may wait for a lock of the thread that was stopped.
    with suppress(OSError):
        os.write(_state.terminal, f"{WORDS[signal.Signals(number)]}: {_state.advice}\n".encode())
    os._exit(128 + number)
