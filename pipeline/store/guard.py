"""A process that opens the files under suspicion: HDF5 may crash, or never come back, where a file is damaged.

``python -m pipeline.store.guard`` is the process; :class:`Guard` is who started it. Both speak lines of JSON: a path goes in;
findings, signs of life and at last the facts come out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import StoreError
from . import examination
from .damage import DamagedError, ForeignError, UnreadableError, UnsureError, damaged
from .examination import Facts

# A sign of life is due after every chunk; the largest takes seconds on a slow disk.
SILENCE_SECONDS = 120.0
SIGN_EVERY_SECONDS = 1.0
# Findings of one file that are kept; a disk that has lost a file has lost all of its rows.
FINDINGS_KEPT = 20

_PACKAGE = __name__.partition(".")[0]


# What a finding says of its file: making it again mends it; it is whole and another's; it may be the machine that failed, which
# the digest tells; it is in use or cannot be read, so that nothing is known.
DAMAGED, FOREIGN, UNSURE, UNREAD = "damaged", "foreign", "unsure", "unread"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a file, in one line.

    Attributes:
        line: For the user.
        kind: :data:`DAMAGED`, or :data:`FOREIGN`, :data:`UNSURE` or :data:`UNREAD`, for which the file must be kept.
    """

    line: str
    kind: str


def make_finding(error: StoreError) -> Finding:
    """Makes a finding of an error."""
    kinds = ((DamagedError, DAMAGED), (ForeignError, FOREIGN), (UnsureError, UNSURE), (UnreadableError, UNREAD))
    return Finding(str(error), next((kind for of, kind in kinds if isinstance(error, of)), UNSURE))


@dataclass(frozen=True, slots=True)
class Examination:
    """What came of one file.

    Attributes:
        findings: The first :data:`FINDINGS_KEPT`.
        uncounted: How many more there were.
        facts: What it tells of its run; None where that could not be read.
    """

    findings: tuple[Finding, ...]
    uncounted: int
    facts: Facts | None


def renamed(found: Examination, here: Path, path: Path) -> Examination:
    """Gives what came of a file by the name that a person knows, where a copy of it was examined."""
    if here == path:
        return found
    findings = tuple(replace(finding, line=finding.line.replace(str(here), str(path))) for finding in found.findings)
    return replace(found, findings=findings)


class Guard:
    """Has files examined by another process, one at a time; starts another one where that has ended.

    Args:
        threads: That decode rows, in the process.
        waiting_bytes: Of values that they hold at a time; one row always may.
        silence_seconds: Without a sign of life for so long, the process is taken to hang, and ended.
    """

    def __init__(
        self, threads: int, silence_seconds: float = SILENCE_SECONDS, waiting_bytes: int = examination.WAITING_BYTES
    ) -> None:
        self._threads = threads
        self._waiting_bytes = waiting_bytes
        self._silence_seconds = silence_seconds
        self._process: subprocess.Popen[str] | None = None
        # What the process says besides, should it end by itself.
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 closed in close()
        self._stopped = False

    def examine(self, path: Path) -> Examination:
        """Examines a shard or an index; a process that ends or hangs meanwhile is a finding."""
        findings: list[Finding] = []
        try:
            for message in self._exchange(path):
                if "line" in message:
                    findings.append(Finding(message["line"], message["kind"]))
                if "facts" in message:
                    facts = None if message["facts"] is None else Facts(**message["facts"])
                    return Examination(tuple(findings), message["uncounted"], facts)
            got = self._last_words()
        except TimeoutError:
            got = f"no sign of life from HDF5 for {self._silence_seconds:g} s"
        except OSError:
            got = self._last_words()
        self._end()
        findings.append(Finding(str(damaged(path, "the HDF5 file", got)), UNSURE))
        return Examination(tuple(findings), 0, None)

    def stop(self) -> None:
        """Ends the process, whatever it is doing, from another thread than the one that waits for it."""
        self._stopped = True
        if process := self._process:
            process.kill()

    def close(self) -> None:
        """Ends the process and frees what was held for it."""
        self._stopped = True
        self._end()
        self._said.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            assert not self._stopped
            home = str(Path(__file__).parent.parent.parent)
            paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{_PACKAGE}.store.guard"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                text=True,
                encoding="utf-8",
            )
        return self._process

    def _exchange(self, path: Path) -> Iterator[dict[str, Any]]:
        """Sends a request, and gives what comes back until there is no more.

        Raises:
            TimeoutError: The process hung, and was ended.
            OSError: It had ended before.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([str(path), self._threads, self._waiting_bytes]) + "\n")
        process.stdin.flush()
        hangs = threading.Event()

        def end() -> None:
            hangs.set()
            process.kill()

        while True:
            timer = threading.Timer(self._silence_seconds, end)
            timer.daemon = True
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            if hangs.is_set():
                raise TimeoutError
            if not line:
                return
            yield json.loads(line)

    def _last_words(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        if code < 0:
            return f"a crash of HDF5, {signal.Signals(-code).name}, while it was read"
        self._said.seek(0)
        lines = self._said.read().split("\n")
        return f"an end of the process that read it, exit code {code} {next(filter(None, reversed(lines)), '')}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    # What was not flushed is for nobody any more.
                    with suppress(OSError):
                        pipe.close()


def main() -> None:
    """Serves requests from stdin until it ends."""
    # Ctrl-C is for whoever started this process, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit()
    # Whatever a library prints must not come between the lines.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for request in sys.stdin:
        path, threads, waiting_bytes = json.loads(request)
        serve(Path(path), threads, waiting_bytes, lambda message: print(json.dumps(message), file=replies, flush=True))


def serve(path: Path, threads: int, waiting_bytes: int, reply: Callable[[dict[str, Any]], None]) -> None:
    """Examines a file in this process.

    Args:
        path: Of the file.
        threads: That decode rows.
        waiting_bytes: Of values that they hold at a time.
        reply: Called with each message.
    """
    said = 0
    last_sign = time.monotonic()

    def say(error: StoreError) -> None:
        nonlocal said
        said += 1
        if said <= FINDINGS_KEPT:
            reply(asdict(make_finding(error)))

    def alive() -> None:
        nonlocal last_sign
        if time.monotonic() - last_sign >= SIGN_EVERY_SECONDS:
            last_sign = time.monotonic()
            reply({})

    facts = examination.examine(path, threads, waiting_bytes, say, alive)
    reply({"facts": None if facts is None else asdict(facts), "uncounted": max(0, said - FINDINGS_KEPT)})


def _limit() -> None:
    """Lets a damaged length end in an error of this process, and a crash leave no picture of its memory on the disk."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or hard > memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))


if __name__ == "__main__":
    main()
