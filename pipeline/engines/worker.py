"""One worker: a process with its own network that makes the shards it is given, and says at each turn what came of them.

Knows nothing of Ray. Turns are how it hears of its driver: a worker that hears nothing for a while has none any more, gives no
shard its name from then on, and ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..errors import EngineError, PipelineError, StoreError
from ..estimate import raw_bytes
from ..machine import peak_memory_bytes
from ..making import make_shards
from ..plan import versions
from ..records import ImageStatus, ShardSpec
from ..report import Stopwatch
from ..stages import Stages, make_stages
from ..store import format
from ..store.publication import Publication
from ..store.writer import Writer
from .messages import Batched, Ready, Setup, Turn

# For a file that the driver has just written to be seen from another machine. Source: nfs(5): names are believed for up to 60 s
# (acdirmax), 30 s at first (acdirmin), but a name that nobody has asked for yet is looked up at once.
SEEN_SECONDS = 5.0


class _Stopped(Exception):
    """Nothing more is wanted of this worker."""


class Worker:
    """Makes shards. One caller at a time, in any thread.

    Args:
        setup: Of the run.
        name: Letters, digits and dashes; no other worker of the run has it.
        threads: Of each kind.
        device: Other than the options', for this worker: ``cpu``, ``gpu`` or ``auto``.
    """

    def __init__(self, setup: Setup, name: str, threads: int, device: str) -> None:
        runtime = replace(setup.options.runtime, workers=setup.options.runtime.workers or threads, device=device)
        self._options = replace(setup.options, runtime=runtime)
        self._setup = setup
        self._name = name
        self._threads = runtime.workers or threads
        self._changed = threading.Condition()
        self._given: deque[ShardSpec] = deque()
        self._batches: list[Batched] = []
        self._finished: dict[str, str] = {}
        self._error: BaseException | None = None
        self._is_stopped = self._has_failed = False
        self._has_lease = False
        self._heard = time.monotonic()
        self._watch = Stopwatch()
        self._seconds: Mapping[str, float] = {}
        self._writers: list[Writer] = []
        self._thread: threading.Thread | None = None

    def check(self, probe: str, token: str) -> Ready:
        """Looks for what the driver sees.

        Args:
            probe: Path of a file in the run folder.
            token: Its content.
        """
        host = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "?")
        given = next(iter(self._setup.parts.values())).attributes
        other = [f"{name} {text}" for name, text in versions().items() if given.get(f"version_{name}") not in (text, None)]
        if not _is_seen(Path(probe), token):
            return Ready(error=not_shared(host, self._setup.folder, "the run folder", "output.dir"))
        if self._setup.image and not Path(self._setup.image).exists():
            return Ready(error=not_shared(host, self._setup.image, "the images", "data.dir, data.list or data.tar"))
        if other:
            wanted = [f"{name.removeprefix('version_')} {text}" for name, text in given.items() if name.startswith("version_")]
            words = [text for text in wanted if text.split()[0] in {name.split()[0] for name in other}]
            return Ready(
                error=EngineError(
                    f"engine: node {host} has other libraries, got {', '.join(other)}. Expected {', '.join(words)}, as on this "
                    "machine. Install the same there."
                )
            )
        return Ready(host=host)

    def begin(self) -> Ready:
        """Makes the stages and starts to work on what will be given."""
        _end_with_parent()
        # On a CPU TensorFlow's own convolutions would take all cores from the workers beside this one.
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ[name] = str(self._threads)
        try:
            part = next(iter(self._setup.parts.values()))
            stages = make_stages(self._options, part, self._setup.weights)
        except BaseException as error:
            return Ready(error=_portable(error))
        self._thread = threading.Thread(target=self._work, args=(stages,), name="work", daemon=True)
        self._thread.start()
        return Ready(stages.device.kind)

    def turn(self, given: Sequence[ShardSpec], wait_seconds: float) -> Turn:
        """Takes shards to make after those that it has, and says what has come since the turn before.

        Args:
            given: In order.
            wait_seconds: How long to wait for a shard to be finished.
        """
        self._heard = time.monotonic()
        if not self._has_lease:
            # Not before: the driver may have much to look at until it gives the first shard.
            self._has_lease = True
            threading.Thread(target=self._mind_the_lease, name="lease", daemon=True).start()
        with self._changed:
            self._given.extend(given)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._finished or self._error, wait_seconds)
            turn = Turn(
                tuple(self._batches),
                dict(self._finished),
                self._error,
                self._seconds,
                sum(writer.bytes_raw for writer in self._writers),
                sum(writer.bytes_stored for writer in self._writers),
                sum(writer.encode_seconds for writer in self._writers),
                sum(writer.write_seconds for writer in self._writers),
                peak_memory_bytes(),
            )
            self._batches.clear()
            self._finished.clear()
        self._heard = time.monotonic()
        return turn

    def stop(self, wait_seconds: float) -> None:
        """Drops what is unfinished, as far as that is possible in this time."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(wait_seconds)

    def _work(self, stages: Stages) -> None:
        try:
            shard = self._take()
            while shard is not None:
                following: list[ShardSpec | None] = []
                self._make(shard, following, stages)
                shard = following[0]
        except _Stopped:
            pass
        except BaseException as error:
            with self._changed:
                self._error = _portable(error)
                self._changed.notify_all()

    def _make(self, first: ShardSpec, following: list[ShardSpec | None], stages: Stages) -> None:
        """Makes shards as they are given, until one of another part comes, or none any more."""
        part = self._setup.parts[first.part]
        publication = Publication(self._name, self._require_driver, self._tell)
        writer = Writer(Path(self._setup.folder), part, (), self._threads, digests=publication)
        self._writers.append(writer)
        plan = part.shards()

        def groups() -> Iterator[Sequence[ShardSpec]]:
            shard: ShardSpec | None = first
            while shard is not None and shard.part == first.part:
                yield [shard]
                shard = self._take()
            following.append(shard)

        before = first.first - first.number * part.images_per_shard
        place_of_part = next(place for place, shard in enumerate(plan) if shard.part == first.part)

        def done(statuses: Sequence[ImageStatus]) -> None:
            if self._is_stopped:
                raise _Stopped
            # A batch is of one shard, since each shard is read for itself.
            shard = plan[place_of_part + (statuses[0].index - before) // part.images_per_shard]
            failed = tuple(status for status in statuses if status.error)
            with self._changed:
                self._batches.append(Batched(shard, len(statuses), failed, raw_bytes(part, statuses)))
                self._seconds = self._watch.seconds()

        make_shards(writer, part, groups(), stages, self._threads, self._watch, done, self._take_no_more)

    def _take(self) -> ShardSpec | None:
        """Waits for a shard to make; None when nothing more is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._given or self._is_stopped or self._has_failed)
            return None if self._is_stopped or self._has_failed else self._given.popleft()

    def _take_no_more(self) -> None:
        with self._changed:
            self._has_failed = True
            self._changed.notify_all()

    def _tell(self, path: Path, digest: str) -> None:
        with self._changed:
            self._finished[format.shard_path(path.name)] = digest
            self._changed.notify_all()

    def _has_driver(self) -> bool:
        return time.monotonic() - self._heard < self._setup.lease_seconds

    def _require_driver(self) -> None:
        if self._is_stopped or not self._has_driver():
            raise StoreError(f"{self._setup.folder}: this worker's run has ended. Expected it to go on. Run the command again.")

    def _mind_the_lease(self) -> None:
        while self._has_driver():
            time.sleep(self._setup.lease_seconds / 10)
        # Nobody will ask for it again, and what it still does is in the way of the run that goes on.
        self._is_stopped = True
        for path in Path(self._setup.folder, format.SHARD_FOLDER).glob(f"*.{self._name}-*{format.PARTIAL_SUFFIX}"):
            with suppress(OSError):
                path.unlink()
        os._exit(1)


def _end_with_parent() -> None:
    """Has the system end this process with the one that started it, which a driver that is killed takes with it.

    Ray's own look at that comes seconds later, and a run that goes on at once must find nobody at work.
    """
    if sys.platform == "linux":
        # Source: prctl(2), PR_SET_PDEATHSIG is 1.
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def not_shared(host: str, path: str, what: str, option: str) -> EngineError:
    """Gives the one line for a machine from which something cannot be seen."""
    return EngineError(
        f"engine: node {host} does not see {what}, got nothing of this run at {path!r}. Expected storage that all nodes share, "
        f"under the same path. Choose another place with {option}, or nodes that have it."
    )


def _is_seen(probe: Path, token: str) -> bool:
    end = time.monotonic() + SEEN_SECONDS
    while True:
        with suppress(OSError):
            if probe.read_text() == token:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def _portable(error: BaseException) -> BaseException:
    """Gives an error that another process can be sent: of the house's as it is, of others with their traceback."""
    if isinstance(error, PipelineError):
        return type(error)(str(error))
    return RuntimeError("".join(traceback.format_exception(error)).rstrip())
