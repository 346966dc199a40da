"""What a run says and measures while it goes on: seconds by stage, log lines, a bar, failed images."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from .errors import DatasetError, PipelineError
from .formatting import words_for_seconds
from .records import ImageStatus, RunSpec
from .store import disk

Item = TypeVar("Item")

# All modules log below this name. A program that runs a job from Python may have handlers of its own at the root: lines must not
# come twice.
LOGGER = logging.getLogger("pipeline")
LOGGER.setLevel(logging.INFO)
LOGGER.propagate = False

# Stages of the loop in order, and what a user can do where most of the time goes there.
STAGES: dict[str, str] = {
    "list": "listing the images",
    "start": "loading TensorFlow and the weights",
    "read": "waiting for images (on a CPU resized too): faster disk, more runtime.workers; at a fixed size data.decode=fast",
    "network": "resizing on a GPU and the network itself: a GPU, an earlier layer, a smaller data.size",
    "reduce": "reading and reducing the features of a finished run: faster disk, more cores",
    "store": "waiting for features to be encoded and written: faster disk, more runtime.workers, output.dtype=float16",
    "finish": "finishing shards and writing the index",
    "other": "everything else",
}
LINE_EVERY_SECONDS = 30.0
# Failed images that are named while the run goes on.
FAILURES_SAID = 20
# Characters of a key in a line: a list may have a name of megabytes.
LONGEST_KEY = 300

_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)


class Stopwatch:
    """Splits the wall time of one thread into stages; they add up to the whole, what no stage claims is ``other``.

    A stage entered inside another stops the outer one's clock.
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._stack = ["other"]
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` block for this stage."""
        self.seconds()
        self._stack.append(name)
        try:
            yield
        finally:
            self.seconds()
            self._stack.pop()

    def over(self, items: Iterable[Item], name: str) -> Iterator[Item]:
        """Yield the items, counting the time it takes to get each for this stage."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def divide(self, name: str, shares: Mapping[str, float]) -> None:
        """Give the time of one stage to others, in proportion: it was spent waiting for workers that were at these."""
        whole, total = self._seconds[name], sum(shares.values())
        if total:
            self._seconds[name] = 0.0
            for stage, share in shares.items():
                self._seconds[stage] += whole * share / total

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every stage so far."""
        now = time.perf_counter()
        self._seconds[self._stack[-1]] += now - self._last
        self._last = now
        return dict(self._seconds)


@dataclass(slots=True)
class Made:
    """What was made of a run, by this process or by its workers."""

    device: str = "none"  # cpu or gpu; none where there was nothing to make
    bytes_raw: int = 0  # activations before compression
    bytes_stored: int = 0  # the same, after
    encode_seconds: float = 0.0  # of background threads, summed
    write_seconds: float = 0.0  # likewise
    peak_memory_bytes: int = 0  # largest resident size of any process; 0 where the system does not tell
    rows_now: int = 0  # of the shards that were made; the others of the run were finished before and kept
    rows_added: int = 0  # those of them whose images came after the run had begun: output.existing=extend
    images_per_second: float = 0.0  # rows_now over the time from the first batch asked for to the last shard finished

    def add(self, other: Any) -> None:
        """Add the bytes and seconds of something else that was made, or of a writer."""
        for name in ("bytes_raw", "bytes_stored", "encode_seconds", "write_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def can_draw() -> bool:
    """Return whether a bar may be drawn: on a terminal, or in a notebook, whose kernel says of its stderr that it is none."""
    return not _is_quiet.get() and (sys.stderr.isatty() or "ipykernel" in sys.modules)


class _Terminal(logging.Handler):
    """Writes lines to stderr, as they are, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            tqdm.write(self.format(record), sys.stderr)


@contextmanager
def log_to_terminal(quiet: bool = False) -> Iterator[MemoryHandler]:
    """Send lines to stderr, and keep them for :func:`log_to_file`; ``quiet``: only warnings, and no bar is drawn."""
    terminal, kept = _Terminal(logging.WARNING if quiet else logging.INFO), MemoryHandler(sys.maxsize, sys.maxsize)
    _is_quiet.set(quiet)
    LOGGER.addHandler(terminal)
    LOGGER.addHandler(kept)
    try:
        yield kept
    finally:
        LOGGER.removeHandler(terminal)
        LOGGER.removeHandler(kept)


@contextmanager
def log_to_file(path: Path, kept: MemoryHandler) -> Iterator[None]:
    """Append lines with their time to a file: those kept so far, and all that follow; last, what ended the run."""
    with disk.writing(path):
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # A full disk stops the run by its own error; that the log cannot be written then is no news.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    kept.setTarget(handler)
    kept.flush()
    # From here on none is kept.
    kept.capacity = 0
    try:
        yield
    except BaseException as error:
        # For the file alone: the command says it on the terminal.
        text = str(error) if isinstance(error, PipelineError) else f"stopped by {type(error).__name__} {error}".strip()
        handler.handle(LOGGER.makeRecord(LOGGER.name, logging.ERROR, "", 0, text, (), None))
        raise
    finally:
        kept.setTarget(None)
        with suppress(OSError):
            handler.close()


class Progress:
    """Counts rows as they are done: by a bar on a terminal, by a line every half minute elsewhere.

    So many ``rows`` are to be made by this process; ``rows_before`` were by an earlier one, of which ``failed_before`` failed.
    """

    def __init__(
        self, spec: RunSpec, rows: int, rows_before: int = 0, failed_before: int = 0, max_failed_fraction: float = 1.0
    ) -> None:
        self._keys, self._fraction = spec.manifest.keys, max_failed_fraction
        self._failed, self._failed_before = failed_before, failed_before
        self._rows, self._rows_before, self._done = rows, rows_before, 0
        self._began = self._last_line = time.monotonic()
        settings: dict[str, Any] = {"unit": "img", "disable": not can_draw(), "dynamic_ncols": True, "smoothing": 0.05}
        self._bar = tqdm(total=rows_before + rows, initial=rows_before, **settings)

    def count(self, statuses: Sequence[ImageStatus]) -> None:
        """Count rows that are done, and refuse to go on where more than the allowed share has failed."""
        self._done += len(statuses)
        for status in filter(lambda status: status.error, statuses):
            self._failed += 1
            said = self._failed - self._failed_before
            if said <= FAILURES_SAID:
                LOGGER.warning("failed: %r: %s", self._keys[status.index][:LONGEST_KEY], status.error)
            elif said == FAILURES_SAID + 1:
                LOGGER.warning("failed: further ones are only counted here; all reasons are in /images/error")
            if self._failed < len(self._keys):
                # Where all fail, the run ends in order, with a report.
                refuse_failures(self._failed, len(self._keys), self._fraction, status.error)
        self._bar.set_postfix({"failed": self._failed}, refresh=False)
        self._bar.update(len(statuses))
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line, rate = now, self._done / (now - self._began)
            LOGGER.info(
                "%d of %d images, %d failed, %.2f images/s, %s left",
                *(self._rows_before + self._done, self._rows_before + self._rows, self._failed, rate),
                words_for_seconds((self._rows - self._done) / rate),
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def refuse_failures(failed: int, rows: int, max_failed_fraction: float, example: str) -> None:
    """Raise ``DatasetError`` if all rows have failed, or more than this share; ``example``: why one of them has."""
    # The quotient is rounded the way the user's decimal number was: 29 of 100 is 0.29.
    if failed == rows or failed / rows > max_failed_fraction:
        raise DatasetError(
            f"data.max_failed_fraction: too many images fail, got {failed} of {rows}, e.g. {example!r}. Expected at most a share "
            f"of {max_failed_fraction:g}, and never all. Raise it, or mend the images and use output.existing=replace."
        )
