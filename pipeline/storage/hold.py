"""Who writes a folder at an address: an object that is made by one process alone, and renewed while it lives.

What is promised: of two runs that begin at the same moment one is refused, where the storage makes an object only if it is not
there (S3 since 2024, Google Cloud Storage). A hold that has not been renewed for minutes is taken over; of several who take it
over at once one has it, as long as the storage answers within a tenth of :data:`RENEWED_SECONDS`. Where it is slower, or a third
finds the address free just then, and where a process comes back that was cut off for minutes, whoever has lost its hold notices
within :data:`RENEWED_SECONDS` and stops. What both have written until then does no harm: files appear whole, and both make the
same bits.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import LockedError
from .address import Address
from .objects import create, read, remove, write

RENEWED_SECONDS = 30.0
# Without a sign of life for so long, and none while somebody has looked on for as long as one is due.
STALE_SECONDS = 180.0
# For so long, and it is no matter of clocks.
# Source: Amazon S3, error RequestTimeTooSkewed: a clock may be 15 minutes off, here one forward and one back, and some more.
DEAD_SECONDS = 2400.0
_MOST_BYTES = 1 << 12


class Hold:
    """An object that says who holds what it stands for, until :meth:`release`; renewed meanwhile.

    Args:
        address: Of the object.
        lost: Called with the error once another process has taken it over.

    Attributes:
        is_taken: Whether this process has it.
        holder: Who has it else, in words.

    Raises:
        OSError: The storage refuses.
    """

    def __init__(self, address: Address, lost: Callable[[BaseException], None]) -> None:
        self._address = address
        self._lost = lost
        self._token = secrets.token_hex(8)
        self.holder = ""
        self.is_taken = self._take()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="hold", daemon=True)
        if self.is_taken:
            self._thread.start()

    def _take(self) -> bool:
        has_removed = False
        for _ in range(2):
            # An answer that was lost has the request made again, and that finds what it has made itself.
            if create(self._content(), self._address) or self._is_ours():
                if not has_removed:
                    return True
                # Another may have looked before ours was there, and have removed it as the dead one.
                time.sleep(RENEWED_SECONDS / 10)
                if self._is_ours():
                    return True
                break
            self.holder, judged = _judge(self._address)
            if self.holder:
                return False
            # Judging takes as long as a renewal; whoever has judged meanwhile may have taken it.
            if judged is not None and _read(self._address) == judged:
                remove([self._address])
                has_removed = True
        self.holder = "a process that has taken it just now"
        return False

    def _is_ours(self) -> bool:
        found = _read(self._address)
        return found is not None and found.get("token") == self._token

    def _content(self) -> bytes:
        return json.dumps({"token": self._token, "time": time.time(), **_me()}).encode()

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_SECONDS):
            # A storage that does not answer stops the run by its own error, elsewhere.
            with suppress(OSError):
                found = _read(self._address)
                if self._ended.is_set():
                    return
                if found is None or found.get("token") != self._token:
                    self._lost(
                        LockedError(
                            f"{self._address.parent}: another run has taken this folder over, got a lock of "
                            f"{_name(found or {})}. Expected that of this run, which was cut off for minutes. "
                            "Run again when the other is done: what is finished is kept."
                        )
                    )
                    return
                write(self._content(), self._address)

    def release(self) -> None:
        """Lets others have the folder; never raises."""
        if not self.is_taken:
            return
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            if self._is_ours():
                remove([self._address])


def _judge(address: Address) -> tuple[str, dict[str, Any] | None]:
    """Gives the living holder, in words, or "" and the hold that was found dead; None if there was none.

    Of one that seems dead it makes sure where clocks that differ could deceive, which takes as long as it should renew.
    """
    found = _read(address)
    if found is None or _has_died(found):
        return "", found
    age_seconds = time.time() - _number(found.get("time"))
    if age_seconds >= DEAD_SECONDS:
        return "", found
    if age_seconds >= STALE_SECONDS:
        time.sleep(RENEWED_SECONDS * 1.5)
        again = _read(address)
        if again is None or again == found:
            return "", again
        found, age_seconds = again, 0.0
    words = f"sign of life {max(0.0, age_seconds):.0f} s ago; counts as living for {STALE_SECONDS / 60:.0f} min"
    return f"{_name(found)} ({words})", found


def _me() -> dict[str, Any]:
    return {**_machine(), "pid": os.getpid()}


def _machine() -> dict[str, Any]:
    """Gives what only processes share that see one another by their numbers: copies of a container share name and card alone."""
    found: dict[str, Any] = {"host": socket.gethostname(), "machine": f"{uuid.getnode():012x}"}
    # Linux alone has them.
    # Source: Linux man-pages, random(4), "boot_id"; namespaces(7), "/proc/pid/ns/": same inode, same namespace.
    with suppress(OSError, UnicodeDecodeError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        found["pids"] = Path("/proc/self/ns/pid").stat().st_ino
    return found


def _name(found: dict[str, Any]) -> str:
    return f"process {str(found.get('pid'))[:20]} on {str(found.get('host'))[:100]}"


def _has_died(found: dict[str, Any]) -> bool:
    """Tells whether the holder was a process of this machine that is there no more."""
    pid, names = found.get("pid"), ("host", "machine", "boot", "pids")
    here = _machine()
    if any(found.get(name) != here.get(name) for name in names) or not isinstance(pid, int) or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    # Of this process itself: a run in a notebook whose hold could not be released.
    return False


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _read(address: Address) -> dict[str, Any] | None:
    """Gives what a hold says; None if there is none. What is no hold says nothing, and is taken over in time."""
    try:
        data = read(address, pauses=(0.5, 1.0))
    except FileNotFoundError:
        return None
    try:
        found = json.loads(data[:_MOST_BYTES])
    except (ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}
